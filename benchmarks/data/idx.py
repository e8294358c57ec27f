"""MNIST, EMNIST and others in the idx format (LeCun): big-endian sizes, then bytes; plain or gzipped."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from .folder import DataError, contents, opened, origin
from .images import LabelledImages

READS = "an idx folder (MNIST, EMNIST): train-images-idx3-ubyte and train-labels-idx1-ubyte, .gz or not"
BYTES = 0x08
"""The format's code for unsigned bytes; its other types are not used by these sets."""

_IMAGES = re.compile(r"(?P<set>.*train)-images[-.]idx3-ubyte(\.gz)?")


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One file as an array.

    Args:
        path: the file; what is gzipped is told from its content.
        dimensions: how many the array must have.

    Raises:
        DataError: no idx file, of another type or number of dimensions, empty, or shorter or longer than it says.
    """
    if not path.is_file():
        raise DataError(f"{path.name} is no file: put the set's own under this name")
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with cast("IO[bytes]", gzip.open(path, "rb") if packed else path.open("rb")) as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise DataError(
                    f"{path.name} begins with {head.hex(' ') or 'nothing'}, not with 00 00 08 {dimensions:02x}: it is no idx file"
                    " (a web page saved in its place?). Fetch it anew"
                )
            if head[2] != BYTES or head[3] != dimensions:
                raise DataError(
                    f"{path.name} has the magic number {head.hex(' ')}, expected 00 00 08 {dimensions:02x} (bytes in "
                    f"{dimensions} dimension(s)): give the {'images' if dimensions == 3 else 'labels'} under this name"
                )
            sizes = file.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise DataError(f"{path.name} ends within its header: it is truncated. Fetch it anew")
            shape = struct.unpack(f">{dimensions}I", sizes)
            if not all(shape):
                raise DataError(
                    f"{path.name} says that it holds {' x '.join(map(str, shape))} bytes, none: give a set that has some"
                )
            content = _at_most(file, prod(shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path.name} cannot be unpacked ({error}): it is truncated or damaged. Fetch it anew"
        ) from error
    if len(content) != prod(shape):
        what = "is truncated" if len(content) < prod(shape) else "is longer than that"
        raise DataError(
            f"{path.name} says that it holds {' x '.join(map(str, shape))} bytes and {what} ({len(content)} read): fetch it "
            "anew"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _at_most(file: IO[bytes], count: int) -> bytearray:
    """What is left of ``file``, but no more than ``count`` bytes; piecewise, since ``count`` may be a wrong number."""
    content = bytearray()
    while len(content) < count and (piece := file.read(min(2**20, count - len(content)))):
        content += piece
    return content


def read_idx_folder(data: str | Path) -> LabelledImages:
    """The training images and labels of an idx folder.

    Raises:
        DataError: no such folder, not exactly one training set in it, labels missing, or as `read_idx`; images and
            labels differ in number.
    """
    folder = opened(data, READS)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # so that of x.gz and x the latter stays
        if match := _IMAGES.fullmatch(path.name):
            found[match["set"]] = path
    if not found:
        raise DataError(f"{folder} holds no *train-images-idx3-ubyte[.gz] ({contents(folder)}): give {READS}")
    if len(found) > 1:
        raise DataError(f"{folder} holds several sets ({', '.join(sorted(found))}): give a folder with one of them")
    ((name, path),) = found.items()
    labels_at = [
        candidate
        for ending in ("", ".gz")
        for mark in "-."
        if (candidate := folder / f"{name}-labels{mark}idx1-ubyte{ending}").is_file()
    ]
    if not labels_at:
        raise DataError(f"{folder} holds {path.name} but no {name}-labels-idx1-ubyte[.gz]: put it beside the images")
    images, labels = read_idx(path, 3), read_idx(labels_at[0], 1)
    if len(images) != len(labels):
        raise DataError(
            f"{path.name} holds {len(images)} images but {labels_at[0].name} {len(labels)} labels: they are of different "
            "sets. Fetch both anew"
        )
    return LabelledImages(
        origin(f"idx set '{name}'", folder), images[:, None], labels.astype(np.int64), int(labels.max()) + 1
    )
