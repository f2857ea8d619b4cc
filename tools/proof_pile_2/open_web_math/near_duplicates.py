# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates over a whole corpus: SimHash says how alike two documents are, min-wise hashes say which to
compare.

A document's features are its windows of 20 characters, letters and digits alone, of which one in eight is
taken by its hash. Two documents are near-duplicates if the cosine of their feature vectors, as their 64-bit
SimHashes estimate it, is at least the threshold: bits differ with probability angle / pi (Charikar 2002,
section 3), so that 0.7 allows 16 of 64 bits. Documents that differ in 16 bits share no long stretch of bits
by which they could be found; so candidates are documents with equal bands of MinHash (Broder 1997; Leskovec
et al., "Mining of Massive Datasets", section 3.4) over the same features."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.proof_pile_2.documents import Document, version_of
from tools.proof_pile_2.keys import Rows, group_starts

WINDOW_CHARACTERS = 20
_SAMPLED_SHIFT = np.uint64(61)  # one window in eight
_BASE = 0x9E3779B97F4A7C15 | 1
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # the multipliers of splitmix64
_MIX_AGAIN = np.uint64(0x94D049BB133111EB)
_CHUNK = 1 << 15
_MINHASHED_FEATURES = 256
_BANDS, _ROWS = 20, 4
_COMPARED_BEFORE = 8

Hashes = npt.NDArray[np.uint64]


@functools.cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the base, and of its inverse, modulo 2^64."""
    count = _CHUNK + WINDOW_CHARACTERS
    inverse = pow(_BASE, -1, 1 << 64)
    up = np.multiply.accumulate(np.full(count, _BASE, np.uint64))
    down = np.multiply.accumulate(np.full(count, inverse, np.uint64))
    return up, down


@functools.cache
def _letters() -> tuple[bytes, bytes]:
    """A table for `bytes.translate`, to lower case, and the bytes to leave out: ASCII but letters and
    digits."""
    table = bytes(range(256)).lower()
    return table, bytes(byte for byte in range(128) if not chr(byte).isalnum())


def features(text: str) -> Hashes:
    """Hashes of the windows taken from a text; its own hash alone where it has no window that is taken."""
    table, others = _letters()
    squeezed = np.frombuffer(text.encode("utf-8", "replace").translate(table, others), np.uint8)
    if len(squeezed) < WINDOW_CHARACTERS:
        squeezed = np.concatenate([squeezed, np.zeros(WINDOW_CHARACTERS - len(squeezed), np.uint8)])
    found = [_windows(squeezed[start : start + _CHUNK + WINDOW_CHARACTERS - 1])
             for start in range(0, len(squeezed) - WINDOW_CHARACTERS + 1, _CHUNK)]  # fmt: skip
    hashes = np.concatenate(found) if len(found) > 1 else found[0]
    sampled = hashes[(hashes >> _SAMPLED_SHIFT) == 0]
    return sampled if len(sampled) else hashes[:1] if len(hashes) == 1 else np.array([hashes.min()])


def _windows(characters: npt.NDArray[np.uint8]) -> Hashes:
    """A mixed polynomial hash of every window, by differences of one running sum."""
    up, down = _powers()
    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum(characters * up[: len(characters)], out=sums[1:])
    hashes = sums[WINDOW_CHARACTERS:] - sums[:-WINDOW_CHARACTERS]
    hashes *= down[: len(hashes)]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(29)
    return hashes


@functools.cache
def _bits_of_bytes() -> npt.NDArray[np.int64]:
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int64)


def simhash(hashes: Hashes) -> int:
    """64 bits: each says whether most features have it set."""
    mixed = hashes * _MIX_AGAIN
    mixed ^= mixed >> np.uint64(31)
    columns = mixed.view(np.uint8).reshape(-1, 8)
    if len(hashes) < 256:
        counts = np.unpackbits(columns, axis=1).sum(axis=0, dtype=np.int64)
    else:
        table = _bits_of_bytes()
        counts = np.concatenate([np.bincount(columns[:, i], minlength=256) @ table for i in range(8)])
    return int.from_bytes(np.packbits(2 * counts > len(hashes)).tobytes(), "little")


@functools.cache
def _multipliers() -> Hashes:
    """Odd numbers, one for each MinHash, from splitmix64."""
    values = []
    state = 0
    for _ in range(_BANDS * _ROWS):
        state = (state + _BASE) % (1 << 64)
        mixed = ((state ^ (state >> 30)) * int(_MIX)) % (1 << 64)
        mixed = ((mixed ^ (mixed >> 27)) * int(_MIX_AGAIN)) % (1 << 64)
        values.append((mixed ^ (mixed >> 31)) | 1)
    return np.array(values, np.uint64)


def bands(hashes: Hashes) -> list[bytes]:
    """16 bytes for each band of MinHashes; documents with an equal band are compared.

    At most the 256 smallest features are used: the smallest of similar documents are similar sets."""
    if len(hashes) > _MINHASHED_FEATURES:
        hashes = np.partition(hashes, _MINHASHED_FEATURES)[:_MINHASHED_FEATURES]
    mixed = hashes * _MIX_AGAIN
    mixed ^= mixed >> np.uint64(32)
    smallest = (mixed[None, :] * _multipliers()[:, None]).min(axis=1).reshape(_BANDS, _ROWS)
    smallest ^= smallest >> np.uint64(31)
    numbers = np.arange(1, _BANDS + 1, dtype=np.uint64)
    weights = _multipliers()[: 2 * _ROWS].reshape(2, _ROWS)
    key = (smallest[:, None, :] * weights[None, :, :]).sum(axis=2, dtype=np.uint64) * _MIX + numbers[:, None]
    key ^= key >> np.uint64(29)
    key *= _MIX_AGAIN
    key ^= key >> np.uint64(32)
    data = key.astype(">u8").tobytes()
    return [data[start : start + 16] for start in range(0, len(data), 16)]


def most_bits(threshold: float) -> int:
    """Most bits of 64 that may differ for a cosine of at least `threshold`."""
    return math.floor(64 * math.acos(threshold) / math.pi)


@dataclass(frozen=True)
class NearDuplicateKeys:
    """The bands of a document, each with its SimHash."""

    name: str = "near-duplicates"

    @property
    def version(self) -> str:
        """Of the features and bands."""
        return version_of(1, WINDOW_CHARACTERS, _MINHASHED_FEATURES, _BANDS, _ROWS)

    def __call__(self, document: Document) -> Iterable[tuple[bytes, int]]:
        """(band, SimHash) for each band."""
        hashes = features(document.text)
        fingerprint = simhash(hashes)
        return [(band, fingerprint) for band in bands(hashes)]


@dataclass(frozen=True)
class AlikeEnough:
    """Of documents with a band in common, one goes if an earlier one is alike enough, whether or not that
    one is kept. Each is compared with the first of its band and with the 8 before it, so that a band that a
    million pages share costs no more than others a page."""

    threshold: float

    @property
    def version(self) -> str:
        """Of the threshold."""
        return version_of(1, self.threshold, _COMPARED_BEFORE)

    def __call__(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether each row's document is left out."""
        first = group_starts(rows)
        gone = self._alike(rows, rows[first])
        for distance in range(1, min(_COMPARED_BEFORE + 1, len(rows))):
            same_band = first[distance:] == first[:-distance]
            gone[distance:] |= same_band & self._alike(rows[distance:], rows[:-distance])
        return gone

    def _alike(self, rows: Rows, earlier: Rows) -> npt.NDArray[np.bool_]:
        other = (rows["shard"] != earlier["shard"]) | (rows["document"] != earlier["document"])
        differing = _count_bits(rows["payload"] ^ earlier["payload"])
        return np.asarray(other & (differing <= most_bits(self.threshold)))


def _count_bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Bits set in each (numpy 2's bitwise_count, for all byte orders)."""
    return np.bitwise_count(np.ascontiguousarray(values, np.uint64))
