# SPDX-License-Identifier: Apache-2.0
"""Which language a text is in: py3langid's naive Bayes model over byte n-grams, which comes in its wheel (97
languages, numpy only, about 10 MB a second). What is English depends on its version, which is pinned."""

from __future__ import annotations

from megatron.neox_arguments.errors import UserError

# More says no more about the language, and takes time.
_JUDGED_CHARACTERS = 20_000


def identifier() -> str:
    """The identifier and its version, for fingerprints and reports. Errors: `UserError` where it is
    missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"py3langid {version('py3langid')}"
    except PackageNotFoundError:
        raise UserError(
            "py3langid, which tells English from other languages, is not installed; "
            "pip install -r requirements/requirements-data.txt"
        ) from None


def language_of_text(text: str) -> str:
    """The likeliest language, as a code of ISO 639-1."""
    try:
        import py3langid
    except ModuleNotFoundError:
        identifier()
        raise
    language, _ = py3langid.classify(text[:_JUDGED_CHARACTERS])
    return str(language)


def is_english(text: str) -> bool:
    """Whether English is the likeliest language. A text without a letter is in none."""
    return any(map(str.isalpha, text)) and language_of_text(text) == "en"
