"""CIFAR-10 and CIFAR-100 as distributed for Python: pickles, read without running anything that is in them.

A pickle is a program. The unpickler here knows only the names by which NumPy arrays are written, and even these
stand for inert records of what was written; any other name is refused, and so are keys other than text, since a nested
tuple of a hundred bytes can take a century to hash. The array is then made of the recorded bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from .folder import DataError, contents, opened, origin
from .images import LabelledImages

READS = "a CIFAR folder for Python: cifar-10-batches-py (data_batch_1 to data_batch_5) or cifar-100-python (train)"
SIDE = 32
LARGEST = 2**31 - 1
"""A number beyond is no size and no label, and may be too long to print."""
SETS = {
    "CIFAR-10": (tuple(f"data_batch_{i}" for i in range(1, 6)), b"labels", 10),
    "CIFAR-100": (("train",), b"fine_labels", 100),
}
"""name -> (files of the training set, key of the labels, classes)."""


class _Array:
    """Stands for ``numpy._reconstruct(...)``: records the state that an array would be given."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.content: Any = b""
        self.columns_first: Any = False

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.columns_first, self.content = state


class _Type:
    """Stands for ``numpy.dtype(...)``."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: bytes have neither."""


_STEPS: dict[int, Callable[[Any], None]] = {**pickle._Unpickler.dispatch}
"""What an opcode does."""


class _Restricted(pickle._Unpickler):
    """Derived from the unpickler that is written in Python: what it does to a dict can be looked at before it is done."""

    NAMES: Mapping[tuple[str, str], type] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise DataError(
                f"wants to call {module}.{name}, which no CIFAR file does: do not trust it, and fetch the set anew from its "
                "authors' page"
            )
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refers to objects outside of it, which no CIFAR file does: fetch the set anew")

    stack: list[Any]

    def refuse(self) -> NoReturn:
        raise DataError("builds what no CIFAR file does, such as a dict whose keys are no text. Fetch it anew")

    def set_item(self) -> None:
        self.keyed(pickle.SETITEM, self.stack[-2:-1])

    def set_items(self) -> None:
        self.keyed(pickle.SETITEMS, self.stack[::2])  # all since the mark

    def make_dict(self) -> None:
        self.keyed(pickle.DICT, self.stack[::2])

    def keyed(self, opcode: bytes, keys: list[Any]) -> None:
        if not all(isinstance(k, bytes | str) for k in keys):
            self.refuse()
        _STEPS[opcode[0]](self)

    dispatch: ClassVar[Any] = _STEPS | {
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.DICT[0]: make_dict,
        # others that hash, and one that takes as much memory as a number in the file says
        pickle.ADDITEMS[0]: refuse,
        pickle.FROZENSET[0]: refuse,
        pickle.BYTEARRAY8[0]: refuse,
    }


def read_cifar(data: str | Path) -> LabelledImages:
    """The training images and labels of a CIFAR folder.

    Raises:
        DataError: no such folder, a file is missing, truncated, no pickle or names what no array needs; or the
            numbers in it are not those of 32x32 images in three colours with a label each.
    """
    folder = opened(data, READS)
    for name, (files, key, classes) in SETS.items():
        there = [f for f in files if (folder / f).is_file()]
        if not there:
            continue
        if missing := [f for f in files if f not in there]:
            raise DataError(f"{folder} lacks {', '.join(missing)} of {name}: unpack the whole archive there")
        parts = [_part(folder / f, key, classes) for f in files]
        images, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
        return LabelledImages(origin(name, folder), images, labels, classes)
    inside = [p.name for p in folder.iterdir() if p.name in ("cifar-10-batches-py", "cifar-100-python")]
    hint = f"give --data {folder / inside[0]}" if inside else f"give {READS}"
    raise DataError(f"{folder} holds neither data_batch_1 nor train ({contents(folder)}): {hint}")


def _part(path: Path, key: bytes, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 3, 32, 32) and labels (n,) of one file."""
    try:
        with path.open("rb") as file:
            content = _Restricted(file, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path.name} {error}") from None
    except Exception as error:  # what a damaged pickle raises is anything
        raise DataError(
            f"{path.name} cannot be read as a pickle ({type(error).__name__}: {error}): it is truncated or no CIFAR file. "
            "Fetch it anew"
        ) from error
    if not isinstance(content, dict) or not {b"data", key} <= content.keys():
        raise DataError(f"{path.name} holds no dict with b'data' and {key!r}: give {READS}")
    return _images(path.name, content[b"data"]), _labels(path.name, content, key, classes)


def _images(file: str, array: Any) -> NDArray[np.uint8]:
    expected = f"expected bytes of shape (n, {3 * SIDE * SIDE})"
    if not isinstance(array, _Array) or not isinstance(array.dtype, _Type) or array.dtype.code not in ("u1", b"u1"):
        raise DataError(f"{file}: b'data' is no array of bytes, {expected}. Fetch it anew")
    shape = array.shape
    if not (isinstance(shape, tuple) and all(type(n) is int and 0 <= n <= LARGEST for n in shape)):
        raise DataError(f"{file}: the shape of b'data' is none, {expected}. Fetch it anew")
    if len(shape) != 2 or not all(shape):
        raise DataError(f"{file}: b'data' has the shape {shape}, {expected}. Fetch it anew")
    if shape[1] != 3 * SIDE * SIDE or not isinstance(array.content, bytes) or len(array.content) != prod(shape):
        size = len(array.content) if isinstance(array.content, bytes) else "no"
        raise DataError(f"{file}: b'data' has the shape {shape} and {size} bytes, {expected}. Fetch it anew")
    flat = np.frombuffer(array.content, np.uint8)
    rows = flat.reshape(shape[::-1]).T if array.columns_first else flat.reshape(shape)
    return np.ascontiguousarray(rows).reshape(-1, 3, SIDE, SIDE)


def _labels(file: str, content: dict[bytes, Any], key: bytes, classes: int) -> NDArray[np.int64]:
    labels, count = content[key], content[b"data"].shape[0]
    if not isinstance(labels, list) or not all(type(x) is int and abs(x) <= LARGEST for x in labels):
        raise DataError(f"{file}: {key!r} is no list of whole numbers. Fetch it anew")
    if len(labels) != count:
        raise DataError(f"{file} holds {count} images but {len(labels)} labels. Fetch it anew")
    if not all(0 <= x < classes for x in labels):
        raise DataError(f"{file}: {key!r} goes from {min(labels)} to {max(labels)}, expected 0 to {classes - 1}")
    return np.array(labels, np.int64)
