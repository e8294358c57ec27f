"""Words to token ids without a vocabulary file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

_WORD = re.compile(r"\w+|[^\w\s]")


def hashed(texts: Sequence[str], *, length: int, first: int, vocabulary: int, begin: int, end: int, pad: int) -> Tensor:
    """Token ids (number of texts, length).

    A word, lower case, or a punctuation mark is ``first + crc32(word) % (vocabulary - first)``: the same everywhere and
    always, but words may share an id. What does not fit is cut off.

    Args:
        texts: to be split into words.
        length: ids a text, ``begin`` and ``end`` among them; at least 3.
        first: id from which on words have their place.
        vocabulary: number of ids.
        begin, end, pad: ids that stand before a text, after it, and in what is left of ``length``.
    """

    def ids(text: str) -> list[int]:
        words = _WORD.findall(text.lower())[: length - 2]
        known = [first + crc32(w.encode(errors="surrogatepass")) % (vocabulary - first) for w in words]
        return [begin, *known, end, *[pad] * (length - 2 - len(known))]

    return torch.tensor([ids(text) for text in texts])
