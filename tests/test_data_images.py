"""Readers of a user's idx and CIFAR folders, on small files written here byte by byte; and what is refused, and how."""

from __future__ import annotations

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from benchmarks.data.cifar import read_cifar
from benchmarks.data.folder import DataError
from benchmarks.data.idx import read_idx, read_idx_folder
from benchmarks.meta_step import MetaStep, settled
from benchmarks.workloads import GENERATED, WORKLOADS
from estimators import SAMA

# idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_bytes(array):
    """As LeCun's page describes the format."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def numbers(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def idx_folder(path, count=6, pack=lambda x: x, ending="", images=IMAGES, labels=LABELS):
    path.mkdir(exist_ok=True)
    (path / (images + ending)).write_bytes(pack(idx_bytes(numbers(count, 4, 5))))
    (path / (labels + ending)).write_bytes(pack(idx_bytes(np.arange(count) % 3)))
    return path


@pytest.mark.parametrize(("pack", "ending"), [(bytes, ""), (gzip.compress, ".gz")])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_is_read(tmp_path, pack, ending, mark):
    names = (x.replace("-idx", mark + "idx") for x in (IMAGES, LABELS))
    found = read_idx_folder(idx_folder(tmp_path / "mnist", 6, pack, ending, *names))
    assert found.name == "idx set 'train' from mnist" and found.classes == 3
    assert found.images.dtype == np.uint8 and found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.images, numbers(6, 4, 5)[:, None])
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 0, 1, 2])


def test_emnist_names_and_a_test_set_beside(tmp_path):
    folder = idx_folder(tmp_path, 6, images="emnist-letters-" + IMAGES, labels="emnist-letters-" + LABELS)
    (folder / "emnist-letters-test-images-idx3-ubyte").write_bytes(b"not looked at")
    assert read_idx_folder(str(folder)).name == f"idx set 'emnist-letters-train' from {tmp_path.name}"


def test_the_unpacked_file_is_taken_where_both_are_there(tmp_path):
    folder = idx_folder(tmp_path)
    for name in (IMAGES, LABELS):
        (folder / f"{name}.gz").write_bytes(b"not looked at")
    assert len(read_idx_folder(folder).images) == 6


def changed(at, to):
    return lambda content: content[:at] + to + content[at + len(to) :]


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        (IMAGES, changed(0, b"<htm"), r"train-images-idx3-ubyte begins with 3c 68 74 6d.*web page"),
        (IMAGES, lambda _: b"", "begins with nothing"),
        (IMAGES, changed(2, b"\x0d"), r"magic number 00 00 0d 03, expected 00 00 08 03"),
        (IMAGES, changed(3, b"\x01"), r"magic number 00 00 08 01, expected 00 00 08 03.*give the images"),
        (LABELS, changed(3, b"\x03"), r"train-labels.*expected 00 00 08 01.*give the labels"),
        (IMAGES, lambda x: x[:-1], r"train-images.* 6 x 4 x 5 bytes and is truncated \(119 read\)"),
        (LABELS, lambda x: x + b"\0", r"train-labels.* 6 bytes and is longer"),
        (IMAGES, lambda x: x[:9], "ends within its header"),
        (
            IMAGES,
            lambda _: struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1),
            "says that it holds 0 x 42.*, none",
        ),
        (LABELS, lambda _: idx_bytes(np.zeros(5)), "6 images but train-labels-idx1-ubyte 5 labels"),
        (IMAGES, lambda x: gzip.compress(x)[:-12], "train-images-idx3-ubyte cannot be unpacked.*truncated or damaged"),
        (IMAGES, lambda x: changed(30, b"\xff\xff\xff")(gzip.compress(x)), "cannot be unpacked"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, file, damage, says):
    at = idx_folder(tmp_path) / file
    at.write_bytes(damage(at.read_bytes()))
    with pytest.raises(DataError, match=says):
        read_idx_folder(tmp_path)


def test_an_idx_file_that_claims_to_be_huge_is_refused_in_little_memory(tmp_path):
    at = tmp_path / "x"
    at.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31) + b"few")
    with pytest.raises(DataError, match="is truncated"):
        read_idx(at, 3)


def test_folders_that_are_no_idx_set_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"missing: there is no such folder.*train-images-idx3-ubyte"):
        read_idx_folder(tmp_path / "missing")
    with pytest.raises(DataError, match=r"holds no \*train-images-idx3-ubyte\[.gz\] \(it is empty\)"):
        read_idx_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes.txt is a file: give the folder"):
        read_idx_folder(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"\(it holds notes.txt\)"):
        read_idx_folder(tmp_path)
    idx_folder(tmp_path)
    (tmp_path / f"other-{IMAGES}").write_bytes(b"")
    with pytest.raises(DataError, match=r"several sets \(other-train, train\)"):
        read_idx_folder(tmp_path)
    (tmp_path / f"other-{IMAGES}").unlink()
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataError, match=r"holds train-images-idx3-ubyte but no train-labels-idx1-ubyte"):
        read_idx_folder(tmp_path)
    (tmp_path / LABELS).write_bytes(idx_bytes(np.zeros(0)))
    (tmp_path / IMAGES).write_bytes(idx_bytes(np.zeros((0, 4, 5))))
    with pytest.raises(DataError, match=f"{IMAGES} says that it holds 0 x 4 x 5 bytes, none"):
        read_idx_folder(tmp_path)
    (tmp_path / IMAGES).unlink()
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(DataError, match=f"{IMAGES} is no file"):
        read_idx_folder(tmp_path)


# CIFAR


def number(n):
    if abs(n) < 2**31:
        return b"J" + struct.pack("<i", n)
    content = n.to_bytes(n.bit_length() // 8 + 1, "little")
    return b"\x8b" + struct.pack("<i", len(content)) + content


def string(s):
    return b"T" + struct.pack("<i", len(s)) + s


def array_bytes(shape, content, code=b"u1", columns_first=False):
    """A NumPy array as Python 2 pickled it, opcode by opcode: CIFAR's files are from then."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b") + b"\x87R"
        + b"(" + number(1)
        + b"(" + b"".join(number(n) for n in shape) + b"t"
        + b"cnumpy\ndtype\n" + string(code) + number(0) + number(1) + b"\x87R"
        + b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        + (b"\x88" if columns_first else b"\x89") + string(content) + b"tb"
    )  # fmt: skip


def cifar_bytes(images, labels, key=b"labels", **how):
    return (
        b"\x80\x02}(" + string(b"batch_label") + string(b"training batch 1 of 5")
        + string(b"data") + array_bytes(images.shape, how.pop("content", images.tobytes()), **how)
        + string(key) + b"](" + b"".join(number(n) for n in labels) + b"eu."
    )  # fmt: skip


def cifar_folder(path, count=3, write=cifar_bytes):
    path.mkdir(exist_ok=True)
    for i in range(5):
        images = numbers(count, 3072) + np.uint8(i)
        (path / f"data_batch_{i + 1}").write_bytes(write(images, [(i + j) % 10 for j in range(count)]))
    return path


def by_python_3(images, labels):
    return pickle.dumps({b"data": images, b"labels": labels}, protocol=3)


def by_columns(images, labels):
    return cifar_bytes(images, labels, content=images.tobytes(order="F"), columns_first=True)


@pytest.mark.parametrize("write", [cifar_bytes, by_python_3, by_columns])
def test_cifar10_is_read(tmp_path, write):
    found = read_cifar(cifar_folder(tmp_path / "cifar-10-batches-py", write=write))
    assert found.name == "CIFAR-10 from cifar-10-batches-py" and found.classes == 10
    assert found.images.shape == (15, 3, 32, 32) and found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images[3].reshape(-1), numbers(3, 3072)[0] + np.uint8(1))
    assert found.labels.tolist() == [(i + j) % 10 for i in range(5) for j in range(3)]


def test_the_synthetic_file_is_what_pickle_takes_for_numpy(tmp_path):
    """Python's own unpickler agrees on what the bytes written here mean."""
    content = cifar_bytes(numbers(3, 3072), [1, 2, 3]).replace(b"numpy.core", b"numpy._core")
    found = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(found[b"data"], numbers(3, 3072))
    assert found[b"labels"] == [1, 2, 3]


def test_cifar100_is_read_by_its_fine_labels(tmp_path):
    (tmp_path / "train").write_bytes(cifar_bytes(numbers(2, 3072), [0, 99], key=b"fine_labels"))
    found = read_cifar(tmp_path)
    assert found.classes == 100 and found.labels.tolist() == [0, 99]
    assert found.name == f"CIFAR-100 from {tmp_path.name}"


class Harmful:
    def __init__(self, at):
        self.at = at

    def __reduce__(self):
        return os.system, (f"touch {self.at}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    mark = tmp_path / "harm"
    folder = cifar_folder(tmp_path / "cifar")
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Harmful(mark)}, protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_3 wants to call (posix|nt)\.system.*do not trust it"):
        read_cifar(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "names",
    [
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.f2py", "compile"),
        ("copyreg", "_reconstructor"),
        ("elsewhere", "ndarray"),
    ],
)
def test_only_the_names_of_arrays_are_known(tmp_path, names):
    folder = cifar_folder(tmp_path)
    content = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in names) + b"\x93."
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_1 wants to call {names[0]}\.{names[1]}"):
        read_cifar(folder)


IMAGES_3, LABELS_3 = numbers(3, 3072), [1, 2, 3]

NESTED = b"N" + b"2\x86" * 60
"""None in 60 pairs, each of the one before twice: 2^60 steps to hash it, or to print it."""


def with_shape(shape):
    content = cifar_bytes(IMAGES_3, LABELS_3)
    given = b"(" + number(3) + number(3072) + b"t"
    assert content.count(given) == 1
    return content.replace(given, shape)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (cifar_bytes(IMAGES_3, LABELS_3)[:-100], r"cannot be read as a pickle.*truncated"),
        (b"", "cannot be read as a pickle"),
        (b"<html>not found</html>", "cannot be read as a pickle"),
        (pickle.dumps([1, 2]), r"holds no dict with b'data' and b'labels'"),
        (pickle.dumps({b"data": 1}), r"holds no dict with b'data' and b'labels'"),
        (pickle.dumps({b"data": [1], b"labels": [1]}), "b'data' is no array of bytes"),
        (cifar_bytes(IMAGES_3, LABELS_3, code=b"f4"), "b'data' is no array of bytes"),
        (cifar_bytes(numbers(3, 3071), LABELS_3), r"shape \(3, 3071\)"),
        (cifar_bytes(numbers(3 * 3072), LABELS_3), r"shape \(9216,\), expected bytes of shape \(n, 3072\)"),
        (cifar_bytes(numbers(0, 3072), []), r"shape \(0, 3072\)"),
        (cifar_bytes(IMAGES_3, LABELS_3, content=b"few"), r"shape \(3, 3072\) and 3 bytes"),
        (cifar_bytes(IMAGES_3, [1, 2]), "holds 3 images but 2 labels"),
        (cifar_bytes(IMAGES_3, [1, 2, 10]), "from 1 to 10, expected 0 to 9"),
        (cifar_bytes(IMAGES_3, [-1, 2, 3]), "from -1 to 3"),
        (pickle.dumps({b"data": IMAGES_3, b"labels": ["1", "2", "3"]}, protocol=3), "no list of whole numbers"),
        (cifar_bytes(IMAGES_3, [1, 2, 10**5000]), "no list of whole numbers"),
        (with_shape(NESTED), "the shape of b'data' is none"),
        (with_shape(b"N" + b"\x85" * 10_000), "the shape of b'data' is none"),
        (with_shape(b"\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000 + b"\x85"), "the shape of b'data' is none"),
        *(
            (b"\x80\x04" + begin + NESTED + end + b".", "builds what no CIFAR file does")
            for begin, end in ((b"}", b"Ns"), (b"}(", b"Nu"), (b"(", b"Nd"), (b"\x8f(", b"\x90"), (b"(", b"\x91"))
        ),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "builds what no CIFAR file does"),
        (b"\x80\x02Ppersistent\n.", "cannot be read|refers to objects outside"),
    ],
)
def test_damaged_cifar_is_refused(tmp_path, content, says):
    folder = cifar_folder(tmp_path)
    (folder / "data_batch_4").write_bytes(content)
    with pytest.raises(DataError, match="^data_batch_4.*" + "(" + says + ")"):
        read_cifar(folder)


def test_folders_that_are_no_cifar_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"neither data_batch_1 nor train \(it is empty\): give a CIFAR folder"):
        read_cifar(tmp_path)
    folder = cifar_folder(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match=r"it holds cifar-10-batches-py/.*: give --data .*cifar-10-batches-py"):
        read_cifar(tmp_path)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2 of CIFAR-10"):
        read_cifar(folder)
    with pytest.raises(DataError, match="there is no such folder"):
        read_cifar(tmp_path / "cifar")


# the workloads that read them


def test_pruning_of_a_users_cifar(tmp_path):
    folder = cifar_folder(tmp_path / "cifar-10-batches-py", count=4)
    w = WORKLOADS["resnet18_pruning"].make(data=str(folder), batch=6, dtype=torch.float64)
    assert w.data == w.settings["data"] == "CIFAR-10 from cifar-10-batches-py" and str(tmp_path) not in repr(w.settings)
    images, labels = w.stage.stream(0)
    assert images.shape == (6, 3, 32, 32) and w.settings["side"] == 32
    whole = read_cifar(folder)
    pixels = whole.images.astype(float)
    scaled = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    for image, label in zip(images.numpy(), labels.tolist(), strict=True):
        (at,) = np.flatnonzero(np.abs(scaled - image).max((1, 2, 3)) < 1e-5)
        assert whole.labels[at] == label
    assert not torch.equal(images, w.stage.stream(1)[0])
    found = MetaStep(w, SAMA(), settled(w))()
    assert all(bool(torch.isfinite(x).all()) for x in found.hparams.values())


def test_few_shot_tasks_of_a_users_characters(tmp_path):
    folder = tmp_path / "emnist"
    folder.mkdir()
    each, classes = 6, 7
    pictures = numbers(classes * each, 28, 28)
    (folder / IMAGES).write_bytes(idx_bytes(pictures))
    (folder / LABELS).write_bytes(idx_bytes(np.arange(classes * each) % classes))
    make = WORKLOADS["omniglot_imaml"].make
    w = make(data=str(folder), ways=3, shots=2, queries=4, dtype=torch.float64)
    assert w.data == "idx set 'train' from emnist" and not w.data.startswith(GENERATED)
    images, labels = w.stage.stream(0)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and images.shape == (6, 1, 28, 28)
    origin = []
    for image in images[:, 0].numpy():
        (at,) = np.flatnonzero((np.abs(pictures / 255 - image) < 1e-12).all((1, 2)))
        origin.append(at)
    drawn = [at % classes for at in origin]
    assert len(set(origin)) == 6 and drawn[::2] == drawn[1::2] and len(set(drawn)) == 3
    again, other = (make(data=str(folder), ways=3, shots=2, queries=4, seed=s) for s in (0, 1))
    assert torch.equal(again.stage.stream(0)[0].double(), images.float().double())
    assert not torch.equal(other.stage.stream(0)[0], again.stage.stream(0)[0])
    with pytest.raises(DataError, match="7 classes of at least 6 examples, the task needs ways=8"):
        make(data=str(folder), ways=8, shots=2, queries=4)
    with pytest.raises(DataError, match="0 classes of at least 7 examples"):
        make(data=str(folder), ways=3, shots=2, queries=5)


@pytest.mark.parametrize("name", ["resnet18_pruning", "omniglot_imaml"])
def test_a_wrong_folder_says_what_to_give(tmp_path, name):
    with pytest.raises(DataError, match="give (a CIFAR|an idx) folder"):
        WORKLOADS[name].make(data=str(tmp_path))
