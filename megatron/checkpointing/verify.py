# SPDX-License-Identifier: Apache-2.0
"""Whether an export computes what its checkpoint computes: logits of both sides on real text, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.backend import initialize, shut_down
from megatron.checkpointing.inference import open_model
from megatron.neox_arguments.config import ParallelConfig

# Text of the two kinds that a mathematics model reads, written for this check.
TEXTS = (
    r"""\begin{theorem} Let $f \colon [a, b] \to \mathbb{R}$ be continuous. Then there is $c \in [a, b]$ with
$f(c) = \frac{1}{b - a} \int_a^b f(x)\,dx$. \end{theorem} \begin{proof} By the extreme value theorem $f$
attains its minimum $m$ and its maximum $M$, so $m (b - a) \le \int_a^b f(x)\,dx \le M (b - a)$, and the
intermediate value theorem gives $c$. \end{proof}""",
    '''def greatest_common_divisor(a: int, b: int) -> int:
    """Euclid's algorithm: the last remainder that is not zero."""
    while b:
        a, b = b, a % b
    return abs(a)


assert greatest_common_divisor(1071, 462) == 21
''',
)
# Sums in another order: the largest difference seen on float32 Llamas was 1.4e-5 of the largest logit.
RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """The largest difference of two sides' logits, and the largest logit."""

    max_difference: float
    max_logit: float
    tokens: int

    @property
    def is_equal(self) -> bool:
        return self.max_difference <= RELATIVE_TOLERANCE * max(1.0, self.max_logit)

    def describe(self) -> str:
        verdict = "equal" if self.is_equal else "DIFFERENT: do not use this export"
        return (
            f"verify: {verdict}; logits differ by at most {self.max_difference:.1e} over {self.tokens} "
            f"tokens of LaTeX and Python (largest logit {self.max_logit:.1f}, float32, against transformers)"
        )


def compare_logits(checkpoint: Path, exported: Path) -> Comparison:
    """Runs both sides on TEXTS; transformers stands for whoever will load the export."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(exported)
    backend = initialize(ParallelConfig(), seed=0)
    try:
        ours = open_model(checkpoint, backend, dtype="float32")
        theirs.to(backend.device)
        difference = largest = 0.0
        tokens = 0
        for text in TEXTS:
            ids = their_tokenizer(text, add_special_tokens=False)["input_ids"]
            limit = ours.record.model["max_position_embeddings"]
            tokens_BS = torch.tensor([ids[:limit]], device=backend.device)
            with torch.no_grad():
                their_logits = theirs(tokens_BS).logits.float()
            our_logits = ours.logits(tokens_BS)
            gap = (our_logits - their_logits).abs().max().item()
            difference = max(difference, gap if gap == gap else float("inf"))  # NaN is a difference
            largest = max(largest, their_logits.abs().max().item())
            tokens += tokens_BS.numel()
    finally:
        shut_down()
    return Comparison(difference, largest, tokens)
