# SPDX-License-Identifier: Apache-2.0
"""Text out of ids that come one by one: no half characters, and nothing of a text that ends it.

A character may be several tokens, and what a token reads as may depend on the one before it (a piece's
leading space). So new ids are decoded together with a few before them, and what they add is the difference.
Those begin with a whole character: decoders write nothing but replacements for a row of bytes that does not.
Text that may still become another, or the beginning of a stop text, is held back.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron.tokenizer.interface import Tokenizer

# As many ids before the first new one, at least, are decoded with it.
CONTEXT_IDS = 8
# What decoders write for bytes that are no character, or not yet.
REPLACEMENT = "\ufffd"


class TextStream:
    """The text of one answer.

    Attributes:
        text: what was given so far.
        stopped_by: the stop text that ended it, or None. Nothing is taken after that.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()) -> None:
        """`stops` are texts that end the answer before themselves."""
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids = _end_of(prompt_ids, tokenizer)
        # Where a whole character begins; ids before the last of these places have given their text.
        self._boundaries = [0, len(self._ids)]
        self._held = ""
        self.text = ""
        self.stopped_by: str | None = None

    def feed(self, ids: Sequence[int]) -> str:
        """Takes new ids; returns the text that is certain now."""
        if self.stopped_by is not None:
            return ""
        self._ids += ids
        return self._give(self._new_text(is_last=False), is_last=False)

    def finish(self) -> str:
        """The end of the ids; returns what was held back."""
        if self.stopped_by is not None:
            return ""
        return self._give(self._new_text(is_last=True), is_last=True)

    def _new_text(self, is_last: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._boundaries[-1]])
        after = self._tokenizer.decode(self._ids)
        if after.endswith(REPLACEMENT) and not is_last:
            return ""
        self._boundaries.append(len(self._ids))
        unneeded = max(place for place in self._boundaries if place <= max(0, len(self._ids) - CONTEXT_IDS))
        self._ids = self._ids[unneeded:]
        self._boundaries = [place - unneeded for place in self._boundaries if place >= unneeded]
        return after[len(before) :]

    def _give(self, new: str, is_last: bool) -> str:
        """Cuts at the first stop text and holds back what may become one."""
        text = self._held + new
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stopped_by = min(found)
            certain, self._held = text[:place], ""
        else:
            held = 0 if is_last else max((_overlap(text, stop) for stop in self._stops), default=0)
            certain, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += certain
        return certain


def _end_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The last ids that begin with a whole character, `CONTEXT_IDS` of them or a few more."""
    for count in range(CONTEXT_IDS, len(ids)):
        if not tokenizer.decode(ids[-count:]).startswith(REPLACEMENT):
            return list(ids[-count:])
    return list(ids)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`, at most all but one of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
