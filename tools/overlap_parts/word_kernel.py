# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""The compiled part of the search for words: candidates among the bytes of documents.

Every n-gram of a test item covers at least `stride` bytes before its last `anchor` words begin. So of every
`stride` bytes of a document it is enough to look at the `anchor` words that begin next: where they are not
`anchor` consecutive words of an item, no n-gram lies over that place, and the first of them that no item has
ends the look. Where they are, all windows of words around the place are hashed (a polynomial over word
hashes) and looked up. A window that is found is a candidate, and the caller compares it exactly.

Words are those of `str.split()` in UTF-8: white space is what `str.isspace` calls so, beyond ASCII too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

U64 = np.uint64
# FNV-1a's offset; 2^64 over the golden ratio, and another odd constant, to mix.
FNV_START, MIX, STEP = 1469598103934665603, 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
# Eight bytes at once: spaces, "!", the highest bit of each, and the byte's own number from the top.
SPACES, BELOW = 0x2020202020202020, 0x2121212121212121
HIGH, PLACES = 0x8080808080808080, 0x0001020304050607
PADDING = b" " * 24  # after the last document, so that eight bytes may be read from its last on
LEADS = (0xC2, 0xE1, 0xE2, 0xE3)  # first bytes of all white space beyond ASCII


class Tables(NamedTuple):
    """What is looked for."""

    white: npt.NDArray[np.uint8]
    """See `classes`."""
    stride_bytes: int
    anchor_words: int
    word_bits: npt.NDArray[np.uint8]
    """Of the words of all items: most words of other texts are none of them."""
    anchor_bits: npt.NDArray[np.uint8]
    anchor_hashes: npt.NDArray[np.uint64]
    longest_word: int
    """In bytes, of all items."""
    lengths: npt.NDArray[np.int64]
    """Of n-grams in words, ascending."""
    powers: npt.NDArray[np.uint64]
    """STEP to each of the lengths."""
    gram_bits: npt.NDArray[np.uint8]
    gram_hashes: npt.NDArray[np.uint64]


class Scratch(NamedTuple):
    """Room for the words around an anchor, and for candidates."""

    begins: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    sums: npt.NDArray[np.uint64]
    found: npt.NDArray[np.int64]


def classes() -> npt.NDArray[np.uint8]:
    """Of each byte: 1 white space by itself, 2 perhaps the beginning of white space, 0 part of a word."""
    table = np.zeros(256, np.uint8)
    for byte in range(128):
        table[byte] = chr(byte).isspace()
    table[list(LEADS)] = 2
    return table


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Kept on disk beside this file, or in the user's cache; where neither can be written, in memory."""
    # _nrt=False: arrays come from the caller, so none is counted; counting them took three quarters of the
    # time.
    try:
        return numba.njit(_nrt=False, cache=True)(function)
    except RuntimeError:
        return numba.njit(_nrt=False)(function)


def _inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of compiled functions."""
    return numba.njit(_nrt=False, forceinline=True)(function)


@_inlined
def _white(data, at, end, table):
    """Bytes of the white space character that begins at `at`; 0 for any other."""
    byte = data[at]
    kind = table[byte]
    if kind == 0:
        return 0
    if kind == 1:
        return 1
    if byte == 0xC2:
        return 2 if at + 1 < end and (data[at + 1] == 0x85 or data[at + 1] == 0xA0) else 0
    if at + 2 >= end:
        return 0
    second, third = data[at + 1], data[at + 2]
    if byte == 0xE1:
        return 3 if second == 0x9A and third == 0x80 else 0
    if byte == 0xE3:
        return 3 if second == 0x80 and third == 0x80 else 0
    if second == 0x80:
        if (third >= 0x80 and third <= 0x8A) or third == 0xA8 or third == 0xA9 or third == 0xAF:
            return 3
        return 0
    return 3 if second == 0x81 and third == 0x9F else 0


@_inlined
def _eight(blocks, at):
    """The eight bytes from `at` on, the first lowest, of data in aligned blocks of eight."""
    block, shift = at >> 3, U64((at & 7) * 8)
    # Twice, since a shift by 64 is not defined.
    return (blocks[block] >> shift) | ((blocks[block + 1] << (U64(63) - shift)) << U64(1))


@_inlined
def _suspects(eight):
    """The highest bit of each byte that may be white space: below "!" or beyond ASCII. Says too many."""
    return (((eight - U64(BELOW)) & ~eight) | eight) & U64(HIGH)


@_inlined
def _first(suspects):
    """The number of the lowest byte whose highest bit is set."""
    lowest = (suspects & (~suspects + U64(1))) >> U64(7)
    return np.int64((lowest * U64(PLACES)) >> U64(56))


@_inlined
def _after_white(data, blocks, at, end, table):
    """The next place from `at` on that is not white space; `end` where there is none."""
    while at < end:
        other = _eight(blocks, at) ^ U64(SPACES)
        if other == 0:  # indentation
            at += 8
            continue
        at += _first((((other & ~U64(HIGH)) + ~U64(HIGH)) | other) & U64(HIGH))
        if at >= end:
            break
        width = _white(data, at, end, table)
        if width == 0:
            break
        at += width
    return min(at, end)


@_inlined
def _word(data, blocks, at, end, table):
    """End and hash of the word that begins at `at`, eight bytes a step; white space follows all documents."""
    value = U64(FNV_START)
    while True:
        eight = _eight(blocks, at)
        suspects = _suspects(eight)
        while suspects != 0:
            place = _first(suspects)
            if _white(data, at + place, end, table) != 0:
                rest = eight & ((U64(1) << U64(8 * place)) - U64(1))
                last = ((value ^ rest) * U64(STEP)) ^ U64(place)
                return at + place, (last ^ (last >> U64(32))) * U64(MIX)
            suspects &= suspects - U64(1)
        mixed = (value ^ eight) * U64(STEP)
        value = mixed ^ (mixed >> U64(32))
        at += 8


@_inlined
def _end_of_word(data, blocks, at, end, table):
    """The next white space from `at` on."""
    while True:
        suspects = _suspects(_eight(blocks, at))
        while suspects != 0:
            place = _first(suspects)
            if _white(data, at + place, end, table) != 0:
                return at + place
            suspects &= suspects - U64(1)
        at += 8


@_inlined
def _mixed(value, length):
    value = (value ^ (U64(length) * U64(MIX))) * U64(STEP)
    return value ^ (value >> U64(29))


@_inlined
def _may_be_known(value, bits):
    """Whether the bit of a hash is set."""
    place = value & U64(bits.size * 8 - 1)
    return (bits[place >> U64(3)] >> np.uint8(place & U64(7))) & np.uint8(1) != 0


@_inlined
def _known(value, bits, hashes):
    """Whether a hash is in a sorted table; `bits` says no to nearly all that are not."""
    if not _may_be_known(value, bits):
        return False
    low, high = 0, hashes.size
    while low < high:
        middle = (low + high) >> 1
        if hashes[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < hashes.size and hashes[low] == value


@_inlined
def _before(data, at, start):
    """The first byte of the character that ends before `at`."""
    at -= 1
    while at > start and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@_compiled
def _words_back(data, at, start, words, longest_word, table):
    """The beginning of the word that stands up to `words` words before the one at `at`, and how many."""
    count = 0
    while count < words:
        stop = at
        while stop > start:
            place = _before(data, stop, start)
            if _white(data, place, data.size, table) == 0:
                break
            stop = place
        begin = stop
        while begin > start and stop - begin <= longest_word:
            place = _before(data, begin, start)
            if _white(data, place, data.size, table) != 0:
                break
            begin = place
        if begin == stop or stop - begin > longest_word:  # none left, or one that no item has
            break
        at = begin
        count += 1
    return at, count


@_compiled
def _windows(data, blocks, anchor_at, seen_at, start, end, tables, scratch, count):
    """Notes the known windows that begin after `seen_at` and not after `anchor_at`; returns their number."""
    lengths, begins, sums, found = tables.lengths, scratch.begins, scratch.sums, scratch.found
    most = lengths[-1]
    at, back = _words_back(data, anchor_at, start, most - 1, tables.longest_word, tables.white)
    words = 0
    sums[0] = U64(0)
    while words < back + most and at < end:
        begins[words] = at
        at, value = _word(data, blocks, at, end, tables.white)
        scratch.stops[words] = at
        sums[words + 1] = sums[words] * U64(STEP) + value
        words += 1
        at = _after_white(data, blocks, at, end, tables.white)
    for first in range(min(back + 1, words)):
        if begins[first] <= seen_at:
            continue
        for index in range(lengths.size):
            length = lengths[index]
            if first + length > words:
                break
            value = _mixed(sums[first + length] - sums[first] * tables.powers[index], length)
            if _known(value, tables.gram_bits, tables.gram_hashes):
                if count < found.shape[0]:
                    found[count, 0] = begins[first]
                    found[count, 1] = scratch.stops[first + length - 1]
                count += 1
    return count


@_compiled
def find(data, blocks, begins_D, ends_D, tables, scratch):
    """Candidates in documents that lie in `data` with white space after each and `PADDING` at the end.

    `blocks` are the same bytes as numbers of eight. Writes first byte and end of each into `scratch.found`,
    as far as there is room; returns how many there are."""
    count, white, stride = 0, tables.white, tables.stride_bytes
    for document in range(begins_D.size):
        start, end = begins_D[document], ends_D[document]
        sample, seen_at = start, start - 1
        while sample < end:
            at = sample
            while at > start and data[at] & 0xC0 == 0x80:
                at -= 1
            at = _after_white(data, blocks, _end_of_word(data, blocks, at, data.size, white), end, white)
            anchor_at, value, words, is_known = at, U64(0), 0, True
            while at < end and is_known and words < tables.anchor_words:
                at, of_word = _word(data, blocks, at, end, white)
                is_known = _may_be_known(of_word, tables.word_bits)
                value = value * U64(STEP) + of_word
                words += 1
                at = _after_white(data, blocks, at, end, white)
            if anchor_at >= end:
                break
            is_whole = is_known and words == tables.anchor_words
            if is_whole and _known(_mixed(value, 0), tables.anchor_bits, tables.anchor_hashes):
                count = _windows(data, blocks, anchor_at, seen_at, start, end, tables, scratch, count)
                seen_at = anchor_at
            # Samples before the anchor would find the same one again.
            sample += stride * ((anchor_at - sample + stride - 1) // stride)
    return count


@_compiled
def hash_words(data, blocks, table, hashes):
    """Word hashes of test items, by the function that hashes documents; returns how many words there are."""
    at, words = _after_white(data, blocks, 0, data.size, table), 0
    while at < data.size:
        at, hashes[words] = _word(data, blocks, at, data.size, table)
        words += 1
        at = _after_white(data, blocks, at, data.size, table)
    return words


@_compiled
def mixed_sums(hashes, length, salt, out):
    """The hash of each window of `length` words; `salt` is 0 for anchors, the length for n-grams."""
    for first in range(hashes.size - length + 1):
        value = U64(0)
        for place in range(first, first + length):
            value = value * U64(STEP) + hashes[place]
        out[first] = _mixed(value, salt)
