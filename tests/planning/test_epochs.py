# SPDX-License-Identifier: Apache-2.0
"""Epochs of each source, from token files that the repository's writer made."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.planning.epochs import source_uses
from tests.launcher.runs import small_run


def write_tokens(prefix: Path, tokens: int, vocab_size: int) -> None:
    """A token file as megatron-core's own builder writes it."""
    import numpy as np

    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    dtype = np.uint16 if vocab_size < 65500 else np.int32
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    builder.add_document(np.arange(tokens, dtype=dtype), [tokens])
    builder.finalize(f"{prefix}.idx")


def test_epochs_are_tokens_read_over_tokens_there(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a", 1280, 512)
    write_tokens(tmp_path / "b", 640, 100_000)
    paths = [str(tmp_path / name) for name in ("a", "b", "absent")]
    cfg = small_run(tmp_path, train_data_paths=paths, train_data_weights=[1, 2, 1])
    a, b, absent = source_uses(
        cfg, sequences=40
    )  # x 128 = 5,120 tokens, of which a quarter, a half, a quarter
    assert (a.tokens, a.tokens_read, a.epochs) == (1280, 1280, 1.0)
    assert (b.tokens, b.tokens_read, b.epochs) == (640, 2560, 4.0)
    assert absent.epochs is None
    assert "absent.idx is not there" in str(absent.why_unknown)


def test_what_is_no_index_is_not_counted(tmp_path: Path) -> None:
    for suffix in (".bin", ".idx"):
        (tmp_path / f"a{suffix}").write_bytes(bytes(64))
    [use] = source_uses(small_run(tmp_path, train_data_paths=[str(tmp_path / "a")]), sequences=1)
    assert use.epochs is None
    assert use.why_unknown == f"{tmp_path / 'a.idx'} is not an index of Megatron"
    assert use.share == pytest.approx(1.0)
