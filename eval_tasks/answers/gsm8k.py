# SPDX-License-Identifier: Apache-2.0
"""GSM8k: the number after "The answer is" (Wei et al., arXiv:2201.11903), or after the data's own marks."""

from __future__ import annotations

import re

# `#### ` ends the references of GSM8k, `A: ` those of its model solutions. The prompt's phrase comes first.
_MARKS = ("The answer is", "####", "\nA:")
# A minus may be U+2212, and may stand before a sign of currency.
_NUMBER = re.compile(r"(?P<minus>[-\u2212](?:\\?[$€£¥])?)?(?P<digits>[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")


def taken(generation: str) -> str | None:
    """The number behind the first mark; None where there is none, or it is no number.

    Currency signs, words and units around it do not count, and neither do commas and a fraction of zeros.
    """
    text = "\n" + generation
    for mark in _MARKS:
        start = text.find(mark)
        if start >= 0:
            return number_in(text[start + len(mark) : start + len(mark) + 200].split("\n")[0])
    return None


def reference(text: str) -> str | None:
    """The number of a reference: behind its last mark, or all of it."""
    for mark in ("####", "\nA:"):
        start = ("\n" + text).rfind(mark)
        if start >= 0:
            return number_in(("\n" + text)[start + len(mark) :])
    return number_in(text)


def number_in(text: str) -> str | None:
    """The first number of a text in one form: `1,200.0` and `$1200` are `1200`."""
    match = _NUMBER.search(text)
    if match is None:
        return None
    digits = match["digits"].replace(",", "")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    sign = "-" if match["minus"] else ""
    whole, point, fraction = digits.partition(".")
    digits = (whole.lstrip("0") or "0") + point + fraction
    return digits if digits == "0" else sign + digits
