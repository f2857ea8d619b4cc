# SPDX-License-Identifier: Apache-2.0
"""The classifier, the language model and the identifier of languages."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")
pytest.importorskip("fasttext", reason="needs requirements/requirements-data.txt")
pytest.importorskip("kenlm", reason="needs requirements/requirements-data.txt")
pytest.importorskip("py3langid", reason="needs requirements/requirements-data.txt")

from tests.tools.proof_pile_2.open_web_math.pages import PROSE
from tools.proof_pile_2.open_web_math.english import english_by_fasttext, english_by_langid
from tools.proof_pile_2.open_web_math.kneser_ney import Text, write_model
from tools.proof_pile_2.open_web_math.math_score import (
    MathClassifier,
    TrainingOptions,
    train_classifier,
)
from tools.proof_pile_2.open_web_math.perplexity import PerplexityModel, train_model
from tools.proof_pile_2.open_web_math.words import classifier_words, model_lines, without_equations

SMALL = TrainingOptions(epochs=5, dimensions=8, buckets=1000)
Gram = tuple[str, ...]


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    words = [
        "the",
        "a",
        "lemma",
        "proof",
        "ring",
        "field",
        "of",
        "is",
        "and",
        "we",
        "let",
        "x",
        "every",
        "finite",
        "group",
    ]
    return [
        " ".join(rng.choice(words[: 3 + i % 12]) for i in range(rng.randrange(1, 12))) for _ in range(count)
    ]


class Reference:
    """Modified Kneser-Ney by definition, with dictionaries."""

    def __init__(self, text: list[list[str]], order: int) -> None:
        raw: list[dict[Gram, int]] = [defaultdict(int) for _ in range(order + 1)]
        for sentence in text:
            padded = ["<s>", *sentence, "</s>"]
            for n in range(1, order + 1):
                for i in range(len(padded) - n + 1):
                    raw[n][tuple(padded[i : i + n])] += 1
        preceding = [Counter(longer[1:] for longer in grams) for grams in raw]
        self.discounts: dict[int, tuple[float, ...]] = {}
        self.counts: list[dict[Gram, int]] = [{} for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram in raw[n]:
                as_often = n == order or gram[0] == "<s>"
                self.counts[n][gram] = raw[n][gram] if as_often else preceding[n + 1][gram]
        del self.counts[1]["<s>",]
        self.after: dict[Gram, dict[str, int]] = defaultdict(dict)
        for grams in self.counts:
            for gram, count in grams.items():
                self.after[gram[:-1]][gram[-1]] = count
        self.vocabulary = {word for sentence in text for word in sentence} | {"</s>", "<unk>"}

    def discount(self, n: int, count: int) -> float:
        if n not in self.discounts:
            n1, n2, n3, n4 = (sum(c == k for c in self.counts[n].values()) for k in (1, 2, 3, 4))
            y = n1 / (n1 + 2 * n2)
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            usable = all(0 < discount < k for k, discount in enumerate(found, 1))
            self.discounts[n] = (0.0, *(found if usable else (0.5, 1.0, 1.5)))
        return self.discounts[n][min(count, 3)]

    def probability(self, word: str, context: Gram) -> float:
        n = len(context) + 1
        below = 1 / len(self.vocabulary) if n == 1 else self.probability(word, context[1:])
        after = self.after.get(context, {})
        total = sum(after.values())
        if not total:
            return below
        taken = sum(self.discount(n, count) for count in after.values())
        count = after.get(word, 0)
        return (count - self.discount(n, count)) / total + taken / total * below


def test_the_estimate_is_kneser_and_neys(tmp_path: Path) -> None:
    """Against the definition in 40 lines, read back through KenLM; the probabilities sum to one."""
    import kenlm

    rng = random.Random(0)  # words as rare as in language, so that there are counts of 1 to 4 in each order
    lines = [[f"w{int(rng.paretovariate(0.7)) % 400}" for _ in range(9)] for _ in range(200)]
    lines += [["the", "lemma"], ["the", "lemma", "w1"], ["the", "w2"]] * 2
    reference, text = Reference(lines, 3), Text()
    for line in lines:
        text.add(line)
    estimate = write_model(text, 3, tmp_path / "a.arpa")
    assert estimate.fallback_orders in ((), (3,))  # the others have discounts of their own
    assert estimate.ngrams == (
        len(reference.vocabulary) + 1,
        len(reference.counts[2]),
        len(reference.counts[3]),
    )
    model = PerplexityModel(tmp_path / "a.arpa")._model
    for context in [(), ("<s>",), ("w1",), ("<s>", "the"), ("the", "lemma"), ("w1", "w1"), ("w1", "nowhere")]:
        before = kenlm.State()
        if context[:1] == ("<s>",):
            model.BeginSentenceWrite(before)
        else:
            model.NullContextWrite(before)
        for word in context:
            if word != "<s>":
                after = kenlm.State()
                model.BaseScore(before, word, after)
                before = after
        total = 0.0
        for word in sorted(reference.vocabulary):
            found = 10 ** model.BaseScore(before, word, kenlm.State())
            assert found == pytest.approx(reference.probability(word, context), rel=1e-5), (word, context)
            total += found
        assert total == pytest.approx(1, abs=1e-5)


def test_pruning_keeps_a_distribution(tmp_path: Path) -> None:
    import kenlm

    text = Text()
    for line in sentences(1, 300):
        text.add(line.split())
    whole = write_model(text, 4, tmp_path / "whole.arpa")
    pruned = write_model(text, 4, tmp_path / "pruned.arpa", prune=True)
    assert pruned.ngrams[:2] == whole.ngrams[:2]
    assert pruned.ngrams[3] < whole.ngrams[3]
    model = PerplexityModel(tmp_path / "pruned.arpa")._model
    for sentence in ("", "the", "the a", "the a lemma", "x let we"):
        before = kenlm.State()
        model.BeginSentenceWrite(before)
        for word in sentence.split():
            after = kenlm.State()
            model.BaseScore(before, word, after)
            before = after
        words = [word for word in text.words if word != "<s>"]
        assert sum(10 ** model.BaseScore(before, word, kenlm.State()) for word in words) == pytest.approx(
            1, abs=1e-5
        )


def test_the_language_model_prefers_its_own_language(tmp_path: Path) -> None:
    texts = ["\n".join(sentences(seed, 30)) for seed in range(40)]
    report = train_model(iter(texts), tmp_path / "a.arpa", 3, True, 10**6)
    again = train_model(iter(texts), tmp_path / "b.arpa", 3, True, 10**6)
    assert (tmp_path / "a.arpa").read_bytes() == (tmp_path / "b.arpa").read_bytes()
    assert report == again
    assert report["held_out_texts"] >= 1
    assert report["texts_not_read"] == 0
    model = PerplexityModel(tmp_path / "a.arpa")
    assert model.perplexity("the lemma of a finite group is let") < 20
    assert model.perplexity("Viagra!!! buy now & save $$$") > 100
    assert model.perplexity(" \n ") == math.inf
    short = train_model(iter(texts), tmp_path / "c.arpa", 3, True, 500)
    assert short["texts_not_read"] > 0
    with pytest.raises(UserError, match="no words"):
        train_model(iter(["", "\n"]), tmp_path / "d.arpa", 3, True, 100)
    with pytest.raises(UserError, match="--perplexity-model"):
        PerplexityModel(Path(__file__))


def test_the_classifier_learns_and_is_the_same_again(tmp_path: Path) -> None:
    rng = random.Random(0)
    math_words, others = (
        ["theorem", "lemma", "proof", "integral", "ring", "prime"],
        ["cat", "dog", "news", "sport", "city", "tea"],
    )
    positive = [" ".join(rng.choice(math_words) for _ in range(20)) + f" $x_{i}$" for i in range(200)]
    negative = [" ".join(rng.choice(others) for _ in range(20)) for i in range(200)]
    report = train_classifier(positive, negative, tmp_path / "a.bin", SMALL)
    train_classifier(positive, negative, tmp_path / "b.bin", SMALL)
    hashes = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.bin", "b.bin")}
    assert len(hashes) == 1
    assert report["shares"]["at least 0.5"] == {"positive": 1.0, "negative": 0.0}
    classifier = MathClassifier(tmp_path / "a.bin")
    assert classifier.score("The proof of this lemma uses a prime ring.") > 0.8
    assert classifier.score("News of the city: a cat drinks tea.") < 0.17
    assert classifier.score(" $x$ ") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin"]
    with pytest.raises(UserError, match="--negative: holds 3 texts"):
        train_classifier(positive, ["a b", "c d", "e f"], tmp_path / "c.bin", SMALL)
    with pytest.raises(UserError, match="--classifier"):
        MathClassifier(Path(__file__))


def test_words_of_the_models() -> None:
    assert classifier_words("Let $x_1$ be\n\\[y\\] 25 Cats") == "let be 00 cats"
    assert without_equations("a $x$ b \\$5 c \\begin{align}y\\end{align}").split() == ["a", "b", "\\$5", "c"]
    assert list(model_lines("Let $x_12$.\n\n  So!")) == [["let", "$", "x", "_", "00", "$", "."], ["so", "!"]]


def test_english(tmp_path: Path) -> None:
    import fasttext

    assert english_by_langid(PROSE) > 0.9
    assert (
        english_by_langid("Soit une fonction continue sur un intervalle fermé; elle y atteint son maximum.")
        < 0.5
    )
    assert english_by_langid("$x^2 + y^2$ \n\n 1 2 3") == 0
    lines = [f"__label__en {PROSE}"] * 40 + ["__label__fr Soit une fonction continue sur un intervalle"] * 40
    (tmp_path / "train.txt").write_text("\n".join(lines))
    fasttext.train_supervised(str(tmp_path / "train.txt"), thread=1, dim=4, epoch=20, verbose=0).save_model(
        str(tmp_path / "lid.bin")
    )
    assert english_by_fasttext(PROSE, tmp_path / "lid.bin") > 0.5
    assert english_by_fasttext("Soit une fonction", tmp_path / "lid.bin") < 0.5
