# SPDX-License-Identifier: Apache-2.0
"""The last rules: pages by their address, and texts that are too short or hardly English."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.documents import Document, Dropped, version_of

URL_LIST = Path(__file__).with_name("url_substrings.txt")
FEWEST_CHARACTERS = 100
MOST_ACCENTED = 0.015
# Letters with diacritics of Latin-1 and Latin Extended-A and -B; × and ÷ stand among them and are none.
_ACCENTED = re.compile("[À-ÖØ-öø-ɏ]")


def read_url_list(path: Path) -> tuple[str, ...]:
    """One part of a URL a line, in lower case; blank lines and what follows `#` count for nothing.

    Errors: `UserError` for a file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--url-list {path}: cannot be read ({error}); give a text file") from None
    return tuple(word for line in lines if (word := line.partition("#")[0].strip().lower()))


@dataclass(frozen=True)
class ManualRules:
    """Drops pages by a part of their URL, below `fewest_characters`, and above `most_accented`, the share of
    characters with accents."""

    urls: tuple[str, ...]
    fewest_characters: int = FEWEST_CHARACTERS
    most_accented: float = MOST_ACCENTED
    name: str = "manual rules"

    @property
    def version(self) -> str:
        """Of all three."""
        return version_of(1, self.urls, self.fewest_characters, self.most_accented)

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or the first rule that it breaks."""
        url = str(document.meta.get("url", "")).lower()
        if url and any(part in url for part in self.urls):
            return Dropped("address on the list")
        if len(document.text) < self.fewest_characters:
            return Dropped(f"fewer than {self.fewest_characters} characters")
        if len(_ACCENTED.findall(document.text)) > self.most_accented * len(document.text):
            return Dropped(f"more than {self.most_accented:.1%} accented characters")
        return document
