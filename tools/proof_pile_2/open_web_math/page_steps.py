# SPDX-License-Identifier: Apache-2.0
"""The rules of `open-web-math` as steps of a recipe, in the order in which pages meet them."""

from __future__ import annotations

import functools
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.documents import Document, Dropped, version_of
from tools.proof_pile_2.open_web_math.guard import Ended, GuardedExtractor, PageLimits
from tools.proof_pile_2.open_web_math.math_score import load_classifier
from tools.proof_pile_2.open_web_math.packages import package_version
from tools.proof_pile_2.open_web_math.perplexity import load_model
from tools.proof_pile_2.open_web_math.prefilter import (
    FEWEST_CHARACTERS_BY_SCORE,
    FirstLook,
    first_look,
    has_common_command,
)

LEAST_SCORE_WITH_MATH = 0.17
LEAST_SCORE_WITHOUT_MATH = 0.8
MOST_PERPLEXITY = 15_000.0
LEAST_ENGLISH = 0.5
_LOOK = "first_look"
_NO_MATH = "no mathematics"


@functools.cache
def _extractor(limits: PageLimits, thread: int) -> GuardedExtractor:
    return GuardedExtractor(limits)


@dataclass(frozen=True)
class Prefilter:
    """Drops pages whose bytes promise no mathematics. With a classifier to come (`judged_by_words`), pages
    without a TeX command go on to it."""

    judged_by_words: bool
    name: str = "prefilter"

    @property
    def version(self) -> str:
        """Of its code and option."""
        return version_of(1, self.judged_by_words)

    def __call__(self, document: Document) -> Document | Dropped:
        """The page, with what was seen in its `meta` until it is extracted."""
        look = first_look(document.text.encode("utf-8", "replace"))
        if look is FirstLook.WORDS and not self.judged_by_words:
            return Dropped(_NO_MATH)
        return document.with_meta(**{_LOOK: look.name})


@dataclass(frozen=True)
class Extract:
    """HTML to text, in a process that a page cannot stop. `meta` gets the title and the formulas by kind."""

    limits: PageLimits
    name: str = "extraction"

    @property
    def version(self) -> str:
        """Of the code, of Resiliparse and of the limits."""
        return version_of(1, package_version("resiliparse"), self.limits)

    def __call__(self, document: Document) -> Document | Dropped:
        """The text of the page."""
        page = _extractor(self.limits, threading.get_ident())(document.text)
        if isinstance(page, Ended):
            return Dropped(page.reason)
        if page.skipped is not None:
            return Dropped(page.skipped)
        if not page.text:
            return Dropped("no text")
        meta = {key: value for key, value in document.meta.items() if key != _LOOK}
        look = document.meta.get(_LOOK, FirstLook.MATH.name)
        surely = bool(page.formulas) or look == FirstLook.MATH.name or (
            look == FirstLook.PERHAPS.name and has_common_command(page.text)
        )  # fmt: skip
        return Document(page.text, {**meta, "title": page.title, "formulas": page.formulas, "math": surely})


@dataclass(frozen=True)
class English:
    """Keeps texts that are English with a probability of at least `least`, by a fastText model for languages
    (`lid.176.bin` or the like, `__label__en`) or, without one, by py3langid."""

    least: float = LEAST_ENGLISH
    model: Path | None = None
    model_sha256: str = ""
    name: str = "language"

    @property
    def version(self) -> str:
        """Of the threshold and of the model."""
        return version_of(1, self.least, self.model_sha256 or package_version("py3langid"))

    def __call__(self, document: Document) -> Document | Dropped:
        """The document with the probability in its `meta`."""
        probability = self._probability(document.text)
        if probability < self.least:
            return Dropped("not English")
        return document.with_meta(english=probability)

    def _probability(self, text: str) -> float:
        from tools.proof_pile_2.open_web_math.english import english_by_fasttext, english_by_langid

        return english_by_langid(text) if self.model is None else english_by_fasttext(text, self.model)


@dataclass(frozen=True)
class MathScore:
    """Keeps texts that score enough; without a classifier, those in which mathematics was found."""

    classifier: Path | None
    sha256: str = ""
    least_with_math: float = LEAST_SCORE_WITH_MATH
    least_without_math: float = LEAST_SCORE_WITHOUT_MATH
    name: str = "MathScore"

    @property
    def version(self) -> str:
        """Of the classifier and the thresholds."""
        return version_of(1, self.sha256, self.least_with_math, self.least_without_math)

    def __call__(self, document: Document) -> Document | Dropped:
        """The document with its score in `meta`."""
        found = bool(document.meta.get("math"))
        if self.classifier is None:
            return document if found else Dropped(_NO_MATH)
        if not found and len(document.text) <= FEWEST_CHARACTERS_BY_SCORE:
            return Dropped(f"no mathematics and at most {FEWEST_CHARACTERS_BY_SCORE} characters")
        score = load_classifier(self.classifier).score(document.text)
        least = self.least_with_math if found else self.least_without_math
        if score < least:
            return Dropped(f"below {least:g} with{'' if found else 'out'} mathematics found")
        return document.with_meta(math_score=score)


@dataclass(frozen=True)
class Perplexity:
    """Drops texts that the language model finds too unlikely."""

    model: Path
    sha256: str
    most: float = MOST_PERPLEXITY
    name: str = "perplexity"

    @property
    def version(self) -> str:
        """Of the model and the threshold."""
        return version_of(1, self.sha256, self.most)

    def __call__(self, document: Document) -> Document | Dropped:
        """The document with its perplexity in `meta`."""
        perplexity = load_model(self.model).perplexity(document.text)
        if perplexity > self.most:
            return Dropped(f"above {self.most:g}")
        return document.with_meta(perplexity=perplexity)


def file_sha256(path: Path, option: str) -> str:
    """The hash of a model's file. Errors: `UserError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read ({error.strerror}); check the path") from None
    return digest.hexdigest()
