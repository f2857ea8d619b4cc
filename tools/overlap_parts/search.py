# SPDX-License-Identifier: Apache-2.0
"""The two searches, over words and over token ids, and the one that a `Spec` asks for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer, build_tokenizer
from tools.overlap_parts.items import Patterns, Spec, read_items, token_patterns, word_patterns

if TYPE_CHECKING:
    from tools.overlap_parts import word_kernel

ANCHOR_WORDS = 3
ANCHOR_TOKENS = 8
BITS_PER_HASH = 64  # of the bitmap before a table: one hash in 64 that is not in it passes


@dataclass(frozen=True)
class Occurrence:
    """One place of an n-gram: of a document, its first unit (from 0); of its text, the characters."""

    document: int
    unit: int
    start: int
    end: int
    gram: str | bytes


@dataclass
class Hit:
    """An n-gram in a document: where it stands first, and how often it is there."""

    document: int
    unit: int
    start: int
    end: int
    gram: str
    items: tuple[int, ...]
    occurrences: int = 1


def bitmap(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """One bit for the last bits of each hash; its size is a power of two."""
    size = 1 << max(13, (len(hashes) * BITS_PER_HASH // 8).bit_length())
    bits = np.zeros(size, np.uint8)
    places = hashes & np.uint64(size * 8 - 1)
    np.bitwise_or.at(bits, places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8))
    return bits


class WordSearch:
    """Finds n-grams of words in texts, exactly as `" ".join(words[i : i + n])` of `str.split()` has them.

    Raises:
        UserError: the package that compiles the search is not installed.
    """

    def __init__(self, patterns: Patterns[str]) -> None:
        try:
            from tools.overlap_parts import word_kernel
        except ImportError:
            raise UserError(
                "numba is not installed, which the search over words is compiled with; "
                "pip install -r requirements/requirements-data.txt"
            ) from None
        self._kernel, self.patterns = word_kernel, patterns
        self._white = word_kernel.classes()
        if patterns.lengths:
            self.tables = self._tables()
            room = 2 * patterns.lengths[-1] + 2
            self._scratch = word_kernel.Scratch(
                np.zeros(room, np.int64),
                np.zeros(room, np.int64),
                np.zeros(room + 1, np.uint64),
                np.zeros((1024, 2), np.int64),
            )

    def _tables(self) -> word_kernel.Tables:
        lengths, sequences = self.patterns.lengths, self.patterns.sequences
        anchor = max(1, min(ANCHOR_WORDS, lengths[0] // 2))
        grams, anchors, words_of, strides, longest = [], [], [], [], 1
        for words, length in sequences:
            sizes = np.array([len(word.encode("utf-8", "surrogatepass")) for word in words])
            longest = max(longest, int(sizes.max()))
            begins = np.concatenate([[0], np.cumsum(sizes + 1)])
            last = np.arange(length - anchor, len(words) - anchor + 1)  # where the last anchor words begin
            strides.append(int((begins[last] - begins[last - (length - anchor)]).min()))
            hashes = self._hashes(words)
            words_of.append(hashes)
            grams.append(self._windows(hashes, length, length))
            anchors.append(self._windows(hashes, anchor, 0))
        gram_hashes, anchor_hashes = (np.unique(np.concatenate(hashes)) for hashes in (grams, anchors))
        return self._kernel.Tables(
            white=self._white,
            stride_bytes=max(1, min(strides)),
            anchor_words=anchor,
            word_bits=bitmap(np.unique(np.concatenate(words_of))),
            anchor_bits=bitmap(anchor_hashes),
            anchor_hashes=anchor_hashes,
            longest_word=longest,
            lengths=np.array(lengths, np.int64),
            powers=np.array([pow(self._kernel.STEP, n, 1 << 64) for n in lengths], np.uint64),
            gram_bits=bitmap(gram_hashes),
            gram_hashes=gram_hashes,
        )

    def _hashes(self, words: Sequence[str]) -> npt.NDArray[np.uint64]:
        data, blocks = self._laid_out([" ".join(words).encode("utf-8", "surrogatepass")])
        hashes = np.zeros(len(words), np.uint64)
        assert self._kernel.hash_words(data, blocks, self._white, hashes) == len(words)
        return hashes

    def _laid_out(self, raws: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
        """Texts in one row, as bytes and as numbers of eight bytes."""
        size = sum(map(len, raws)) + len(raws)
        padding = self._kernel.PADDING + b" " * (-(size - 1 + len(self._kernel.PADDING)) % 8)
        data = b" ".join(raws) + padding if len(raws) > 1 else raws[0] + padding
        return np.frombuffer(data, np.uint8), np.frombuffer(data, "<u8")

    def _windows(self, hashes: npt.NDArray[np.uint64], length: int, salt: int) -> npt.NDArray[np.uint64]:
        out = np.zeros(len(hashes) - length + 1, np.uint64)
        self._kernel.mixed_sums(hashes, length, salt, out)
        return out

    def occurrences(self, texts: Sequence[str]) -> Iterator[Occurrence]:
        """Every place of every n-gram, by document and place."""
        if not self.patterns.lengths or not texts:
            return
        raws = [text.encode("utf-8", "surrogatepass") for text in texts]
        sizes_D = np.fromiter(map(len, raws), np.int64, len(raws))
        begins_D = np.cumsum(sizes_D + 1) - sizes_D - 1
        candidates = self._candidates(raws, begins_D, begins_D + sizes_D)
        documents = np.searchsorted(begins_D, candidates[:, 0], side="right") - 1
        spans = [
            (int(document), int(start - begins_D[document]), int(end - begins_D[document]))
            for document, (start, end) in zip(documents, candidates, strict=True)
        ]
        for document, of_document in groupby(spans, lambda span: span[0]):
            yield from self._exact(document, raws[document], [(start, end) for _, start, end in of_document])

    def _candidates(
        self, raws: list[bytes], begins_D: npt.NDArray[np.int64], ends_D: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        data, blocks = self._laid_out(raws)
        while True:
            found = self._scratch.found
            count = self._kernel.find(data, blocks, begins_D, ends_D, self.tables, self._scratch)
            if count <= len(found):
                return np.array(found[:count])
            self._scratch = self._scratch._replace(found=np.zeros((count, 2), np.int64))

    def _exact(self, document: int, raw: bytes, spans: list[tuple[int, int]]) -> Iterator[Occurrence]:
        """Those of a document's candidates that are n-grams; counts words and characters before them."""
        at_byte = at_char = at_word = 0
        for start, end in spans:
            text = raw[start:end].decode("utf-8", "surrogatepass")
            gram = " ".join(text.split())
            if gram not in self.patterns.grams:
                continue
            before = raw[at_byte:start].decode("utf-8", "surrogatepass")
            at_byte, at_char = start, at_char + len(before)
            at_word += len(before.split())
            yield Occurrence(document, at_word, at_char, at_char + len(text), gram)


class TokenSearch:
    """Finds n-grams of token ids in documents that lie end to end."""

    def __init__(self, patterns: Patterns[bytes], tokenizer: Tokenizer) -> None:
        self.patterns, self.tokenizer = patterns, tokenizer
        if not patterns.lengths:
            return
        self._anchor = max(1, min(ANCHOR_TOKENS, patterns.lengths[0] // 2))
        self.stride_tokens = patterns.lengths[0] - self._anchor + 1
        windows = [
            self._hashes(np.asarray(ids_T, np.int64), np.arange(len(ids_T) - self._anchor + 1))
            for ids_T, _ in patterns.sequences
        ]
        self._known = np.unique(np.concatenate(windows))
        self._bits = bitmap(self._known)

    def _hashes(self, ids_T: npt.NDArray[Any], places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """The hash of the `_anchor` ids from each place on."""
        value = np.zeros(len(places), np.uint64)
        for step in range(self._anchor):
            value = value * np.uint64(0xD6E8FEB86659FD93) + ids_T[places + step].astype(np.uint64)
            value ^= value >> np.uint64(29)
        return value

    def occurrences_in(
        self, ids_T: npt.NDArray[Any], bounds_D: npt.NDArray[np.int64]
    ) -> Iterator[Occurrence]:
        """Every place of every n-gram in the documents that `bounds_D`, D + 1 numbers, cut `ids_T` into."""
        if not self.patterns.lengths or len(ids_T) < self._anchor:
            return
        places = np.arange(0, len(ids_T) - self._anchor + 1, self.stride_tokens)
        hashes = self._hashes(ids_T, places)
        slots = hashes & np.uint64(self._bits.size * 8 - 1)
        bit = (self._bits[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8)) & np.uint8(1)
        passed = np.flatnonzero(bit)
        places = places[passed[np.isin(hashes[passed], self._known)]]
        seen = -1
        for place in places.tolist():
            # A window that begins at or before the last anchor and reaches this one was looked at there.
            first = max(seen + 1, place + self._anchor - self.patterns.lengths[-1], 0)
            yield from self._windows(ids_T, bounds_D, first, place)
            seen = place

    def _windows(
        self, ids_T: npt.NDArray[Any], bounds_D: npt.NDArray[np.int64], first: int, last: int
    ) -> Iterator[Occurrence]:
        lengths, grams = self.patterns.lengths, self.patterns.grams
        near = np.ascontiguousarray(ids_T[first : last + lengths[-1]], dtype=np.int32).tobytes()
        for start in range(first, last + 1):
            begin = 4 * (start - first)
            for length in lengths:
                gram = near[begin : begin + 4 * length]
                if len(gram) < 4 * length or gram not in grams:
                    continue
                document = int(np.searchsorted(bounds_D, start, side="right")) - 1
                if start + length <= bounds_D[document + 1]:
                    unit = start - int(bounds_D[document])
                    yield Occurrence(document, unit, unit, unit + length, gram)

    def occurrences(self, texts: Sequence[str]) -> Iterator[Occurrence]:
        """The same in texts, through the tokenizer."""
        ids = self.tokenizer.encode_batch(list(texts))
        bounds_D = np.concatenate([[0], np.cumsum([len(of_text) for of_text in ids], dtype=np.int64)])
        flat = np.fromiter((token for of_text in ids for token in of_text), np.int32, int(bounds_D[-1]))
        yield from self.occurrences_in(flat, bounds_D.astype(np.int64))


def hits_of(search: WordSearch | TokenSearch, occurrences: Iterator[Occurrence]) -> list[Hit]:
    """One hit for each n-gram of a document, by document and place."""
    hits: dict[tuple[int, str | bytes], Hit] = {}
    for found in occurrences:
        known = hits.get((found.document, found.gram))
        if known is not None:
            known.occurrences += 1
            continue
        grams: dict[Any, tuple[int, ...]] = search.patterns.grams
        shown = found.gram
        if isinstance(shown, bytes):
            assert isinstance(search, TokenSearch)
            shown = search.tokenizer.decode(np.frombuffer(shown, np.int32).tolist())
        hits[found.document, found.gram] = Hit(
            found.document, found.unit, found.start, found.end, shown, grams[found.gram]
        )
    return sorted(hits.values(), key=lambda hit: (hit.document, hit.unit, hit.end))


@dataclass
class Search:
    """The search of a `Spec`, with the items it is about."""

    spec: Spec
    ids: tuple[str | int, ...]
    by: WordSearch | TokenSearch


@functools.lru_cache(maxsize=1)
def build_search(spec: Spec) -> Search:
    """The search that `spec` asks for; built once in each process.

    Raises:
        UserError: test set or tokenizer cannot be read.
    """
    items = read_items(spec.test, spec.key, spec.id_key, spec.level_key)
    texts, ids = [item.text for item in items], tuple(item.id for item in items)
    if spec.unit == "words":
        return Search(spec, ids, WordSearch(word_patterns(texts, spec.ngram, spec.match_short_from)))
    assert spec.tokenizer_type is not None
    assert spec.vocab_file is not None
    tokenizer = build_tokenizer(spec.tokenizer_type, spec.vocab_file)
    patterns = token_patterns(tokenizer.encode_batch(texts), spec.ngram, spec.match_short_from)
    return Search(spec, ids, TokenSearch(patterns, tokenizer))
