"""WRENCH folders: what is read, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.data.folder import DataError
from benchmarks.data.words import hashed
from benchmarks.data.wrench import load, majority
from benchmarks.meta_step import MetaStep, settled
from benchmarks.workloads import WORKLOADS
from estimators import registry

NAMES = ["world", "sport", "money"]


def example(i: int) -> dict[str, Any]:
    """Class i % 3; two functions vote, the second is wrong for every other example and silent in a fifth of them."""
    c = i % 3
    text = f"News {i}: {NAMES[c]} {NAMES[c]}, again." + " more" * (i % 7)
    return {"label": c, "weak_labels": [c if i % 5 else -1, (c + i % 2) % 3, -1], "data": {"text": text, "id": i}}


def folder(path: Path, train: int = 30, valid: int = 12) -> Path:
    path.mkdir()
    for part, number in (("train", train), ("valid", valid)):
        (path / f"{part}.json").write_text(json.dumps({str(i): example(i) for i in range(number)}))
    (path / "label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return folder(tmp_path / "tiny news")


def spoil(path: Path, **fields: Any) -> None:
    """Replace fields of the example called "1"; None takes one out."""
    examples = json.loads(path.read_text())
    examples["1"] = {k: v for k, v in (examples["1"] | fields).items() if v is not None}
    path.write_text(json.dumps(examples))


def test_a_folder_is_read(copy: Path) -> None:
    found = load(copy)
    assert found.classes == NAMES
    assert len(found.train.texts) == 30 and len(found.valid.texts) == 12
    assert found.train.texts[1] == "News 1: sport sport, again. more"
    assert found.train.labels[:4] == [0, 1, 2, 0]
    assert found.train.votes[0] == [-1, 0, -1] and found.train.votes[1] == [1, 2, -1]


def test_majority() -> None:
    assert majority([2, 1, 2, -1, -1, -1]) == 2
    assert majority([2, 1, -1]) == 1  # a tie: the first class
    assert majority([0]) == 0
    assert majority([-1, -1]) is None
    assert majority([]) is None


def crc32(word: bytes) -> int:
    """Bit by bit, after the polynomial of IEEE 802.3."""
    c = 0xFFFFFFFF
    for byte in word:
        c ^= byte
        for _ in range(8):
            c = (c >> 1) ^ (0xEDB88320 if c & 1 else 0)
    return c ^ 0xFFFFFFFF


def test_words_are_hashed_to_the_same_ids_everywhere() -> None:
    ids = hashed(["To be, TO", "", "to " * 9], length=7, first=104, vocabulary=512, begin=101, end=102, pad=0)
    to, be, comma = (104 + crc32(w) % 408 for w in (b"to", b"be", b","))
    assert len({to, be, comma}) == 3
    # half of a pair, which JSON can hold and UTF-8 cannot
    half = hashed(["\ud800x"], length=4, first=104, vocabulary=512, begin=101, end=102, pad=0)
    assert half.shape == (1, 4)
    assert ids.tolist() == [
        [101, to, be, comma, to, 102, 0],
        [101, 102, 0, 0, 0, 0, 0],
        [101, *[to] * 5, 102],  # cut off
    ]


def test_a_workload_of_it(copy: Path) -> None:
    make = WORKLOADS["bert_noisy"].make
    w = make(data=str(copy), batch=8, length=12, unroll=2)
    assert w.data.startswith("WRENCH from tiny news: words hashed to ids, labels by majority vote, 0 texts")
    assert w.settings["data"] == "tiny news" and w.settings["classes"] == 3
    drawn = [w.stage.stream(t) for t in range(4)]
    assert all(x.shape == (8, 12) and y.shape == (8,) for x, y in drawn)
    again, other = make(data=str(copy), batch=8, length=12), make(data=str(copy), batch=8, length=12, seed=1)
    assert torch.equal(again.stage.stream(0)[0], drawn[0][0]) and not torch.equal(other.stage.stream(0)[0], drawn[0][0])

    found = MetaStep(w, registry["sama"].estimator, settled(w))()
    assert all(bool(torch.isfinite(x).all()) for x in found.hparams.values())


def test_an_epoch_holds_every_text_with_its_majority(copy: Path) -> None:
    w = WORKLOADS["bert_noisy"].make(data=str(copy), batch=12, length=20)
    tokens, labels = (torch.cat(x) for x in zip(*(w.stage.stream(t) for t in range(3)), strict=True))
    assert torch.equal(tokens[30:], tokens[:6]) and torch.equal(labels[30:], labels[:6])  # the next epoch

    expected = []
    for i in range(30):
        right, other = i % 3, (i % 3 + i % 2) % 3
        # the first function is silent for every fifth text; of two classes with a vote each, the first counts
        expected.append(other if i % 5 == 0 else min(right, other))
    texts = [example(i)["data"]["text"] for i in range(30)]
    ids = hashed(texts, length=20, first=104, vocabulary=512, begin=101, end=102, pad=0)
    pairs = sorted((*x, y) for x, y in zip(tokens[:30].tolist(), labels[:30].tolist(), strict=True))
    assert pairs == sorted((*x, y) for x, y in zip(ids.tolist(), expected, strict=True))
    assert tokens[:30].tolist() != ids.tolist()  # shuffled


def test_the_outer_loss_is_over_right_labels(copy: Path) -> None:
    w = WORKLOADS["bert_noisy"].make(data=str(copy), batch=12, length=20, dtype=torch.float64)
    texts = [example(i)["data"]["text"] for i in range(12)]
    ids = hashed(texts, length=20, first=104, vocabulary=512, begin=101, end=102, pad=0)
    start = w.problem.start
    assert isinstance(start, dict)
    outer = w.problem.outer(start, w.problem.hparams)
    torch.testing.assert_close(outer, w.plain(start, (ids, torch.arange(12) % 3)), rtol=1e-12, atol=0)
    assert outer != w.plain(start, (ids, (torch.arange(12) + 1) % 3))


def test_padding_has_no_influence(copy: Path) -> None:
    """The same texts at twice the length: the loss does not see what was filled up."""
    values = []
    for length in (20, 40):
        w = WORKLOADS["bert_noisy"].make(data=str(copy), batch=8, length=length, dtype=torch.float64)
        start = w.problem.start
        assert isinstance(start, dict)
        values.append((w.problem.outer(start, w.problem.hparams), w.plain(start, w.stage.stream(0))))
    assert int((w.stage.stream(0)[0][:, 20:] != 0).sum()) == 0
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)


def test_texts_without_a_vote_are_left_out(copy: Path) -> None:
    spoil(copy / "train.json", weak_labels=[-1, -1, -1])
    w = WORKLOADS["bert_noisy"].make(data=str(copy), batch=4)
    assert "1 texts without a vote left out" in w.data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": None}, r"train\.json, example '1': has no 'label', only data, weak_labels: is it"),
        ({"label": None} | {f"{i}{'x' * 100}": 0 for i in range(9)}, r"only 0x{79}, (\dx{79}, ){5}\.\.\.: is it"),
        ({"weak_labels": None}, "example '1': has no 'weak_labels'"),
        ({"data": {"feature": [1.0]}}, r"data hold no text \(feature\): only text classification sets"),
        ({"data": "bare"}, r"data hold no text \(str\)"),
        ({"label": 3}, "its label is 3, not one of the 3 classes"),
        ({"label": [0, 1]}, "sequence tagging"),
        ({"label": True}, "its label is True"),
        ({"label": float("nan")}, "its label is nan"),
        ({"weak_labels": [0, 7]}, r"weak_labels is \[0, 7\], not a list of classes below 3, or -1"),
        ({"weak_labels": [0, -2]}, "weak_labels is"),
        ({"weak_labels": 2}, "weak_labels is 2"),
    ],
)
def test_a_wrong_entry_is_named(copy: Path, fields: dict[str, Any], message: str) -> None:
    spoil(copy / "train.json", **fields)
    with pytest.raises(DataError, match=message):
        load(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train.json",
            None,
            r"has no train\.json, it holds label\.json, valid\.json: give a folder that holds train\.json, valid",
        ),
        ("label.json", None, r"has no label\.json"),
        ("valid.json", '{"0": ', r"valid\.json: is no JSON \(.*\): is the copy complete\?"),
        ("valid.json", '{"0": ' + "9" * 5000 + "}", r"valid\.json: is no JSON \(Exceeds the limit"),
        ("valid.json", "[]", r"valid\.json: holds a list, not \{id: example\}"),
        ("valid.json", "{}", r"valid\.json: holds no example"),
        ("train.json", '{"0": 5}', r"train\.json, example '0': is int, not"),
        ("label.json", '{"a": "b"}', r"label\.json: the classes are a, not \"0\", \"1\""),
        ("label.json", '{"0": "a"}', "two at least"),
        ("label.json", '{"0": "a", "2": "b"}', r"the classes are 0, 2, not"),
    ],
)
def test_a_wrong_file_is_named(copy: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load(copy)


def test_bytes_that_are_no_text(copy: Path) -> None:
    (copy / "train.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.json: is no JSON"):
        load(copy)


def test_a_wrong_folder_is_refused_by_the_workload(copy: Path, tmp_path: Path) -> None:
    make = WORKLOADS["bert_noisy"].make
    with pytest.raises(DataError, match="there is no such folder. Give one that holds train.json"):
        make(data=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is a file: give the folder"):
        make(data=str(copy / "train.json"))
    with pytest.raises(DataError, match=r"valid\.json has 12 examples with a label, fewer than batch=20"):
        make(data=str(copy), batch=20)
