# SPDX-License-Identifier: Apache-2.0
"""Results folders for tests of the explorer, written by hand: two models, every kind of task, hostile texts.

`python -m tests.tools.explorer_results FOLDER` writes them for a look, and for docs/explorer.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MODELS = ("llemma_7b", "llemma_34b")

# (problem, reference, level, subject, answers of 8 samples of each model); the first answer is the right one.
MATH = [
    (
        "Let $a$ and $b$ be the roots of $x^2 - 5x + 3 = 0.$ Find $\\frac{a}{b} + \\frac{b}{a}.$",
        "By Vieta, $a + b = 5$ and $ab = 3,$ so\n\\[\\frac{a}{b} + \\frac{b}{a} = \\frac{(a+b)^2 - 2ab}{ab} "
        "= \\frac{25 - 6}{3} = \\boxed{\\frac{19}{3}}.\\]",
        3, "Algebra", ("\\frac{19}{3}", "\\frac{25}{3}", "19"), (5, 2, 1), (8, 0, 0),
    ),
    (
        "Compute $\\displaystyle\\sum_{k=1}^{\\infty} \\frac{k}{2^k}.$",
        "Let $S = \\sum_{k \\ge 1} k x^k$ with $x = \\tfrac12.$ Then\n\\begin{align*}\nS &= x \\frac{d}{dx} "
        "\\frac{1}{1-x} \\\\\n&= \\frac{x}{(1-x)^2} = \\boxed{2}.\n\\end{align*}",
        4, "Intermediate Algebra", ("2", "1", "\\infty"), (3, 4, 1), (7, 1, 0),
    ),
    (
        "How many positive divisors does $360$ have?",
        "Since $360 = 2^3 \\cdot 3^2 \\cdot 5,$ there are $(3+1)(2+1)(1+1) = \\boxed{24}$ divisors.",
        2, "Number Theory", ("24", "12", "18"), (6, 1, 1), (8, 0, 0),
    ),
    (
        "A triangle has sides $13,$ $14$ and $15.$ What is the radius of its incircle?\n\n[asy]\n"
        "pair A = (5,12), B = (0,0), C = (14,0);\ndraw(A--B--C--cycle);\ndraw(incircle(A,B,C));\n[/asy]",
        "By Heron, the area is $\\sqrt{21 \\cdot 8 \\cdot 7 \\cdot 6} = 84,$ and "
        "$r = \\dfrac{84}{21} = \\boxed{4}.$",
        4, "Geometry", ("4", "\\frac{84}{13}", "8"), (2, 5, 1), (5, 2, 1),
    ),
    (
        "Evaluate $\\begin{pmatrix} 1 & 1 \\\\ 1 & 0 \\end{pmatrix}^{10}.$",
        "Its powers hold Fibonacci's: \\[\\begin{pmatrix} F_{n+1} & F_n \\\\ F_n & F_{n-1} \\end{pmatrix}, "
        "\\quad\\text{so the answer is } \\boxed{\\begin{pmatrix} 89 & 55 \\\\ 55 & 34 \\end{pmatrix}}.\\]",
        5, "Precalculus",
        (
            "\\begin{pmatrix} 89 & 55 \\\\ 55 & 34 \\end{pmatrix}",
            "\\begin{pmatrix} 55 & 34 \\\\ 34 & 21 \\end{pmatrix}", "1",
        ),
        (1, 6, 1), (4, 3, 1),
    ),
    (
        "A fair coin is tossed $6$ times. What is the probability of exactly $3$ heads?",
        "$\\binom{6}{3} / 2^6 = 20/64 = \\boxed{\\frac{5}{16}}.$",
        3, "Counting & Probability", ("\\frac{5}{16}", "0.3125", "\\frac12"), (4, 3, 1), (6, 2, 0),
    ),
]  # fmt: skip

# (problem, reference, program); the second one's program fails in the first model.
PYTHON = [
    (
        "Mara buys 4 boxes of 12 eggs for $3 a box and sells each egg for $0.50. What does she earn?",
        "12.0",
        "def solution():\n    eggs = 4 * 12\n    cost = 4 * 3\n    return eggs * 0.50 - cost\n",
    ),
    (
        "A train goes 60 miles an hour for 2.5 hours. How far does it go?",
        "150.0",
        "def solution():\n    speed = 60\n    hours = 2.5\n    return speed * hours\n",
    ),
]
FAILING = "def solution():\n    return speed * 2.5\n"
ERROR = (
    'Traceback (most recent call last):\n  File "program.py", line 2\n'
    "NameError: name 'speed' is not defined"
)

# Ways into a page: tags, attributes, URLs, ends of scripts and styles, and what KaTeX must
# refuse (links, images, attributes, endless macros, rules that cover the page).
HOSTILE = (
    '<script>window.ran = 1</script><img src=x onerror="window.ran = 1"><svg onload=window.ran=1>'
    '<a href="javascript:window.ran=1">click</a></script>'
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe></textarea></style><!-- -->"
    "<math><mtext></mtext></math>${window.ran=1}\u2028\u2029\u202e\x00 "
    "$\\href{javascript:window.ran=1}{x}$ $\\url{javascript:window.ran=1}$ "
    "$\\includegraphics{http://x.invalid/a.png}$ $\\htmlStyle{background:url(http://x.invalid)}{y}$ "
    "$\\htmlData{a=b}{z}$ $\\htmlClass{top}{w}$ $\\unknowncommand{1}$ $\\frac{1}{$ \\[\\begin{matrix}\\] "
    "$\\def\\a{\\a\\a}\\a$ $\\rule{9999em}{9999em}$"
)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _generation(answer: str, number: int) -> str:
    ways = ("We work step by step.", "Consider the two cases.", "Recall the definition.", "It is known that")
    n = number + 2
    return (
        f"{ways[number % 4]} With $n = {n}$ we find that\n$$f(n) = \\int_0^n 2t\\,dt = n^2 = {n**2},$$\n"
        f"and therefore the answer is $\\boxed{{{answer}}}.$\nFinal Answer: The final answer is ${answer}$. "
        "I hope it is correct."
    )


def _math(folder: Path, model: int) -> None:
    samples, verdicts, votes = [], [], []
    for item, (problem, reference, level, subject, answers, *counts) in enumerate(MATH):
        given = [answer for answer, count in zip(answers, counts[model], strict=True) for _ in range(count)]
        name = f"math_{item}"
        for number in range(8):
            answer = given[number * 3 % 8]
            samples.append({
                "task": "llemma_math", "item": name, "sample": number, "problem": problem,
                "reference": reference, "level": level, "subject": subject, "tokens": 90 + number,
                "prompt_sha256": "0" * 64,
                "generation": _generation(answer, number),
            })  # fmt: skip
            is_right = answer == answers[0]
            verdicts.append({
                "item": name, "sample": number, "answer": answer, "minerva": is_right,
                "math_verify": is_right or answer == "0.3125", "correct": is_right, "program": None,
            })  # fmt: skip
        winner = max(answers, key=given.count)
        classes = {answer: given.count(answer) for answer in answers if answer in given}
        votes.append({"item": name, "answer": winner, "votes": classes, "correct": winner == answers[0]})
    write_lines(folder / "samples_llemma_math.jsonl", reversed(samples))
    write_lines(folder / "verdicts_llemma_math.jsonl", verdicts)
    write_lines(folder / "votes_llemma_math.jsonl", votes)


def _python(folder: Path, model: int) -> None:
    samples, verdicts = [], []
    for item, (problem, reference, program) in enumerate(PYTHON):
        is_right = item == 0 or model == 1
        code = program if is_right else FAILING
        name = f"gsm8k_{item}"
        samples.append({
            "task": "llemma_gsm8k_python", "item": name, "sample": 0, "problem": problem,
            "reference": reference, "level": None, "subject": None, "prompt_sha256": "1" * 64,
            "generation": code, "tokens": 40,
        })  # fmt: skip
        ran = {"code": code, "output": reference if is_right else "", "error": None if is_right else ERROR}
        verdicts.append({
            "item": name, "sample": 0, "answer": reference if is_right else None, "minerva": None,
            "math_verify": None, "correct": is_right, "program": ran,
        })  # fmt: skip
    write_lines(folder / "samples_llemma_gsm8k_python.jsonl", samples)
    write_lines(folder / "verdicts_llemma_gsm8k_python.jsonl", verdicts)


def _perplexity(folder: Path, model: int) -> None:
    lines = [
        {
            "task": "llemma_math_perplexity", "item": f"solution_{item}", "sample": 0, "problem": problem,
            "reference": reference, "loglikelihood": -30.5 - item + 4 * model, "bytes": len(reference),
        }
        for item, (problem, reference, *_) in enumerate(MATH[:2])
    ]  # fmt: skip
    write_lines(folder / "samples_llemma_math_perplexity.jsonl", lines)


CASES = "0 + 0 = 0\n\nS n + 0 = S n"
# As tools/prove.py keeps it: a node is named by its place.
TREE = [
    {
        "parent": None, "outcome": "open", "cost": 0.0, "expanded": 0,
        "goals": "n : nat\n============================\nn + 0 = n",
    },
    {
        "parent": 0, "outcome": "error", "cost": 0.4, "tactic": "ring.", "logprob": -0.4,
        "message": "Tactic failure: not a valid ring equation.",
    },
    {"parent": 0, "outcome": "open", "cost": 0.7, "tactic": "induction n.", "goals": CASES, "expanded": 1},
    {"parent": 2, "outcome": "proved", "cost": 1.1, "tactic": "all: simpl; auto.", "logprob": -0.4},
    {"parent": 2, "outcome": "seen", "cost": 1.9, "tactic": "simpl.", "logprob": -1.2},
    {"parent": 0, "outcome": "open", "cost": 2.2, "tactic": "destruct n.", "logprob": -2.2, "goals": CASES},
]  # fmt: skip


def _proofs(folder: Path, model: int) -> None:
    proofs = [
        {
            "theorem": "plus_n_O", "proved": True, "seconds": 1.25, "expansions": 2, "status": "proved",
            "statement": "Require Import Arith.\n\nTheorem plus_n_O : forall n : nat, n + 0 = n.",
            "proof": "intros n.\ninduction n.\nall: simpl; auto.", "tree": TREE,
        },
        {
            "theorem": "sqrt2",
            "statement": "Theorem sqrt2 : forall p q : nat, q <> 0 -> p * p <> 2 * (q * q).",
            "proved": model == 1, "proof": "lia." if model else None, "seconds": 600.0, "expansions": 100,
            "status": "proved" if model else "timeout", "tree": None,
        },
    ]  # fmt: skip
    write_lines(folder / "proofs.jsonl", proofs)


def _measures(folder: Path, model: int) -> None:
    value = (0.4375, 0.7917)[model]
    tasks = {
        "llemma_math": {
            "items": len(MATH), "samples_per_item": 8,
            "published": {
                "Llemma 7B": {"accuracy": 0.18, "maj@256": 0.335, "source": "arXiv:2310.10631"},
                "Llemma 34B": {"accuracy": 0.25, "maj@256": 0.431, "source": "arXiv:2310.10631"},
            },
            "comparable": "6 items of our own",
            "metrics": {
                "accuracy": {"value": value, "low": value - 0.2, "high": value + 0.15},
                "pass@1": {"value": value, "low": value - 0.2, "high": value + 0.15},
                "pass@8": {"value": 1.0, "low": 0.61, "high": 1.0},
                "maj@8": {"value": (0.5, 1.0)[model], "low": (0.19, 0.61)[model], "high": (0.81, 1.0)[model]},
            },
        },
        "llemma_math_perplexity": {
            "items": 2, "samples_per_item": 1, "published": None, "comparable": False,
            "metrics": {"perplexity_per_byte": {"value": 1.3412 - 0.05 * model, "low": 1.2, "high": 1.5}},
        },
    }  # fmt: skip
    settings = {"temperature": 0.6, "top_p": 0.95, "k": 8, "decoding": {"max_new_tokens": 1024}}
    content = {"tasks": tasks, "model": f"checkpoints/{MODELS[model]}", "settings": settings}
    (folder / "results.json").write_text(json.dumps(content))


def write_results(folder: Path) -> list[Path]:
    """A results folder a model, under `folder`."""
    for model, name in enumerate(MODELS):
        for write in (_math, _python, _perplexity, _proofs, _measures):
            write(folder / name, model)
    return [folder / name for name in MODELS]


def write_hostile(path: Path) -> Path:
    """Generations, of which every text attacks the page."""
    line = {
        "task": HOSTILE, "item": HOSTILE, "model": HOSTILE, "problem": HOSTILE, "generation": HOSTILE,
        "reference": HOSTILE, "subject": HOSTILE, "answer": HOSTILE, "correct": False,
        "program": {"code": HOSTILE, "output": HOSTILE, "error": HOSTILE}, "__proto__": HOSTILE,
        "other": "<b>x",
    }  # fmt: skip
    return write_lines(path, [line, {**line, "item": "__proto__", "task": "constructor"}])


if __name__ == "__main__":
    print(*write_results(Path(sys.argv[1])))
