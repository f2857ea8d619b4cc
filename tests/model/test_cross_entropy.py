# SPDX-License-Identifier: Apache-2.0
"""The loss of each token, and its gradient, against torch's cross-entropy on the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ranks import run_ranks

TOKENS, SEQUENCES = 7, 3
COLUMNS = 12
TOLERANCE = {"float32": 2e-5, "bfloat16": 2**-8}
# Logits reach 200, where float32 has steps of 1.5e-5: so exact are probabilities. Weights of losses reach 21.
ROUNDING = 1.5e-5 * TOKENS * SEQUENCES


def _logits_and_labels(ids: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits with a spread that overflows a sum of bare exponentials; labels with the first and last id."""
    generator = np.random.default_rng(3)
    logits = 60 * generator.standard_normal((TOKENS, SEQUENCES, columns)).astype(np.float32)
    labels = generator.integers(0, ids, (TOKENS, SEQUENCES))
    labels[0, 0], labels[1, 1] = 0, ids - 1
    return logits, labels


Case = tuple[int, str]  # ids, and the dtype of the logits


def ours(cases: list[Case], ranks: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each case this rank's losses, and the gradient of their weighted sum in this rank's columns."""
    import torch

    from megatron.backend import initialize
    from megatron.core import parallel_state
    from megatron.model import cross_entropy
    from megatron.neox_arguments.config import ParallelConfig

    cross_entropy._PIECE_BYTES["cpu"] = 4 * COLUMNS * 2  # several pieces, the last one shorter
    backend = initialize(ParallelConfig(model_parallel_size=ranks), seed=0)
    here = COLUMNS // ranks
    first = backend.tensor_parallel_rank * here
    results = []
    for ids, dtype_name in cases:
        whole, labels = _logits_and_labels(ids, COLUMNS)
        mine = torch.from_numpy(whole[..., first : first + here])
        leaf = mine.to(getattr(torch, dtype_name)).requires_grad_()
        loss_SB = cross_entropy.vocab_parallel_cross_entropy(
            leaf.clone(),
            torch.from_numpy(labels),
            first_id=first,
            ids_here=min(max(0, ids - first), here),
            group=parallel_state.get_tensor_model_parallel_group(),
        )
        (loss_SB * torch.arange(1, 1 + loss_SB.numel()).view(loss_SB.shape)).sum().backward()
        assert leaf.grad is not None
        results.append((loss_SB.detach().numpy(), leaf.grad.float().numpy()))
    return results


def theirs(ids: int, columns: int, dtype_name: str) -> tuple[np.ndarray, np.ndarray]:
    import torch

    whole, labels = _logits_and_labels(ids, columns)
    leaf = torch.from_numpy(whole).to(getattr(torch, dtype_name)).double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        leaf[..., :ids].flatten(0, 1), torch.from_numpy(labels).flatten(), reduction="none"
    )
    (loss * torch.arange(1, 1 + loss.numel())).sum().backward()
    assert leaf.grad is not None
    return loss.detach().view(labels.shape).numpy(), leaf.grad.numpy()


# With three ranks and five ids, one rank has only padding.
@pytest.mark.parametrize(("ranks", "ids"), [(1, [12, 11]), (2, [11]), (3, [5])])
def test_against_torch(ranks: int, ids: list[int]) -> None:
    """Probabilities that cancel against the label's one keep only their absolute exactness."""
    cases = [(count, name) for count in ids for name in TOLERANCE]
    by_rank = run_ranks(ours, ranks, cases, ranks)
    for number, (count, dtype_name) in enumerate(cases):
        results = [of_rank[number] for of_rank in by_rank]
        loss, gradient = theirs(count, COLUMNS, dtype_name)
        for rank_loss, _ in results:
            np.testing.assert_allclose(rank_loss, loss, rtol=1e-6, atol=1e-5)
        found = np.concatenate([part for _, part in results], axis=-1)
        np.testing.assert_allclose(found, gradient, rtol=TOLERANCE[dtype_name], atol=ROUNDING)
        assert not found[..., count:].any()
