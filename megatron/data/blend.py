# SPDX-License-Identifier: Apache-2.0
"""From the configuration to the data of a run: the blend to train on, validation and test sets by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.data.index_cache import IndexCache, Peers
from megatron.data.mcore_datasets import Packing, SequenceOrder
from megatron.data.sources import Source, open_files, split_source
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, Problem, UserError
from megatron.tokenizer import Tokenizer


@dataclass(frozen=True)
class Blends:
    """The data of a run: the blend to train on, each held-out set by its name, and what there is to say."""

    train: SequenceOrder | None
    valid: dict[str, SequenceOrder]
    test: dict[str, SequenceOrder]
    notices: list[str]


@dataclass(frozen=True)
class _Sets:
    """Sources with their weights, for each of the three uses."""

    train: list[tuple[Source, float]]
    valid: list[tuple[Source, float]]
    test: list[tuple[Source, float]]
    notices: list[str]


def build_blends(
    cfg: RunConfig,
    tokenizer: Tokenizer,
    train_sequences: int,
    eval_sequences: int,
    peers: Peers | None = None,
) -> Blends:
    """Open the token files of `cfg` and lay out the order in which they are read.

    The training order has `train_sequences` sequences, each validation and test set `eval_sequences`, the
    same ones at every evaluation; a number of 0 leaves that use out. Every rank calls this (`peers` defaults
    to the process group, where one is initialised). Errors: `UserError`, the same on every rank, for token
    files that are missing, broken, of another tokenizer or too small, with all of them in one list as far as
    they can be seen together."""
    sets = _open_sets(cfg, tokenizer, with_test=cfg.validation.do_test)
    if train_sequences and not sets.train:
        constraint = "is not set, and neither is data_path"
        raise ConfigError([Problem("train_data_paths", None, constraint, "name the token files to read")])
    packing = Packing(
        cfg.model.seq_length, cfg.data.seed, tokenizer.vocab_size, tokenizer.eod_id, cfg.data.eod_mask_loss
    )
    used = [
        *(source for source, _ in sets.train if train_sequences),
        *(source for source, _ in [*sets.valid, *sets.test] if eval_sequences),
    ]
    too_small = [error for source in used if (error := source.lacks_a_sequence(packing.seq_length))]
    if too_small:
        raise UserError("\n".join(dict.fromkeys(too_small)))
    cache = IndexCache(_cache_folder(cfg, used), peers or Peers.of_this_run())
    train = None
    if train_sequences:
        sources, weights = [source for source, _ in sets.train], [weight for _, weight in sets.train]
        train = SequenceOrder(sources, weights, train_sequences, packing, cache)
    valid, test = (
        {source.name: SequenceOrder([source], [1.0], eval_sequences, packing, cache) for source, _ in chosen}
        if eval_sequences
        else {}
        for chosen in (sets.valid, sets.test)
    )
    notices = [
        *sets.notices,
        *_repeats(sets, train_sequences, eval_sequences, packing.seq_length),
        *cache.notices,
    ]
    if cache.folder is None and used:
        notices.append(
            "data_cache_path: no folder for indices can be written; each rank builds them in its memory"
        )
    return Blends(train, valid, test, notices)


def _open_sets(cfg: RunConfig, tokenizer: Tokenizer, with_test: bool) -> _Sets:
    data = cfg.data
    if data.data_path is not None and not data.train_data_paths:
        [file], notices = open_files([data.data_path], tokenizer)
        parts = split_source(Source.whole(data.data_names[0], file), data.split)
        train, valid, test = ([(part, 1.0)] if part is not None else [] for part in parts)
        return _Sets(train, valid, test if with_test else [], notices)
    test_paths = data.test_data_paths if with_test else ()
    # Opened together, so that all that is wrong is told together.
    files, notices = open_files([*data.train_data_paths, *data.valid_data_paths, *test_paths], tokenizer)
    remaining = iter(files)
    sets: list[list[tuple[Source, float]]] = []
    for use, paths in (("", data.train_data_paths), ("valid_", data.valid_data_paths), ("test_", test_paths)):
        names = getattr(data, f"{use}data_names")
        weights = getattr(data, f"{use or 'train_'}data_weights")
        _check_names(f"{use}data_names", names)
        members = [
            (Source.whole(name, next(remaining)), weight)
            for _, name, weight in zip(paths, names, weights, strict=bool(paths))
        ]
        notices += [
            f"{source.name}: has weight 0 and is not read" for source, weight in members if weight == 0
        ]
        sets.append([(source, weight) for source, weight in members if weight > 0])
    train, valid, test = sets
    return _Sets(train, valid, test, notices)


def _check_names(key: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        problem = Problem(
            key, list(names), f"repeats {', '.join(repeated)}", "give each source a name of its own"
        )
        raise ConfigError([problem])


def _cache_folder(cfg: RunConfig, sources: Sequence[Source]) -> Path | None:
    """Where indices go: `data_cache_path`, beside the first token file, or beside the checkpoints."""
    if cfg.data.data_cache_path is not None:
        return cfg.data.data_cache_path
    if sources and os.access(sources[0].file.prefix.parent, os.W_OK):
        return sources[0].file.prefix.parent / "index_cache"
    return cfg.checkpoint.save / "index_cache" if cfg.checkpoint.save is not None else None


def _repeats(sets: _Sets, train_sequences: int, eval_sequences: int, seq_length: int) -> list[str]:
    """Which sources are read more than once, and how often."""
    total = sum(weight for _, weight in sets.train)
    shares = [(source, train_sequences * weight / total) for source, weight in sets.train]
    shares += [(source, eval_sequences) for source, _ in [*sets.valid, *sets.test]]
    return [
        f"{source.name} ({source.file.prefix}): holds {source.sequences(seq_length):,} sequences and is "
        f"asked for {share:,.0f}, so it is read {share / source.sequences(seq_length):.2f} times"
        for source, share in shares
        if source.sequences(seq_length) < round(share)
    ]
