# SPDX-License-Identifier: Apache-2.0
"""The order of sequences against a second derivation and megatron-core's own classes, and its cache."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron.core.datasets import gpt_dataset, helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.data import index_cache
from megatron.data.index_cache import IndexCache, Peers
from megatron.data.mcore_datasets import Packing, SequenceOrder
from megatron.data.sources import Source, split_source
from megatron.data.token_file import TokenFile
from megatron.neox_arguments.errors import UserError
from tests.data.corpora import random_documents, write_documents
from tests.ranks import run_ranks

SEQ_LENGTH = 16


def packing(seed: int = 1234, seq_length: int = SEQ_LENGTH, eod_mask_loss: bool = False) -> Packing:
    return Packing(seq_length, seed, vocab_size=1000, eod_id=2, eod_mask_loss=eod_mask_loss)


def source_of(prefix: Path, name: str = "source") -> Source:
    return Source.whole(name, TokenFile.open(prefix))


def in_memory() -> IndexCache:
    return IndexCache(None, Peers())


def order_of(
    prefix: Path, sequences: int, cache: IndexCache | None = None, seed: int = 1234
) -> SequenceOrder:
    return SequenceOrder([source_of(prefix)], [1.0], sequences, packing(seed), cache or in_memory())


def rows(order: SequenceOrder) -> list[list[int]]:
    """Each sequence with the token after it."""
    samples = [order[position] for position in range(len(order))]
    for sample in samples:
        assert sample.tokens_S[1:].tolist() == sample.labels_S[:-1].tolist()
    return [[*sample.tokens_S.tolist(), int(sample.labels_S[-1])] for sample in samples]


def packed_by_hand(documents: list[list[int]], sequences: int, seq_length: int, seed: int) -> list[list[int]]:
    """GPT-NeoX's packing, derived again: shuffle documents, lay end to end, cut with a token shared, shuffle.

    Where several passes are needed, the last is kept apart (megatron-core) if less than 80% of it is used.
    """
    tokens = sum(map(len, documents))
    epochs = -(-(sequences * seq_length + 1) // tokens)
    whole_before = ((epochs - 1) * tokens - 1) // seq_length
    apart = epochs > 1 and sequences - whole_before < int(0.8 * ((tokens - 1) // seq_length))
    generator = np.random.RandomState(seed)
    order: list[int] = []
    for part in [epochs - 1, 1] if apart else [epochs]:
        numbers = np.tile(np.arange(len(documents)), part)
        generator.shuffle(numbers)
        order += numbers.tolist()
    stream = [token for number in order for token in documents[number]]
    cut = [stream[i : i + seq_length + 1] for i in range(0, len(stream) - seq_length, seq_length)]
    parts = [np.arange(whole_before), np.arange(whole_before, len(cut))] if apart else [np.arange(len(cut))]
    for numbers in parts:
        generator.shuffle(numbers)
    return [cut[number] for number in np.concatenate(parts)][:sequences]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 40),
    longest=st.sampled_from([2, 5, 50]),
    share=st.floats(0.01, 4.5),
    seq_length=st.sampled_from([1, 2, 7, 16]),
)
def test_packing_is_what_the_words_say(
    tmp_path: Path, seed: int, count: int, longest: int, share: float, seq_length: int
) -> None:
    documents = random_documents(seed, count, longest)
    prefix = write_documents(tmp_path / "p", documents, overwrite=True)
    source = source_of(prefix)
    if source.sequences(seq_length) == 0:
        return
    sequences = max(1, int(source.sequences(seq_length) * share))
    order = SequenceOrder([source], [1.0], sequences, packing(seed, seq_length), in_memory())
    assert rows(order) == packed_by_hand(documents, sequences, seq_length, seed)


def test_one_pass_reads_every_token_once(tmp_path: Path) -> None:
    documents = [[10 * i + j for j in range(10)] for i in range(97)]
    order = order_of(write_documents(tmp_path / "p", documents), sequences=(970 - 1) // SEQ_LENGTH)
    read = [token for row in rows(order) for token in row[:-1]]
    assert len(read) == len(set(read)) == 960


def greedy(weights: list[float], sequences: int) -> list[tuple[int, int]]:
    """The blend, derived again: each position takes the source that is furthest behind its share."""
    shares, drawn, chosen = np.array(weights) / np.sum(weights), np.zeros(len(weights), dtype=int), []
    for position in range(sequences):
        source = int(np.argmax(shares * max(position, 1) - drawn))
        chosen.append((source, int(drawn[source])))
        drawn[source] += 1
    return chosen


def blended(tmp_path: Path, weights: list[float], sequences: int) -> SequenceOrder:
    prefixes = [
        write_documents(tmp_path / f"p{i}", random_documents(i, 200), overwrite=True)
        for i in range(len(weights))
    ]
    sources = [source_of(prefix, f"s{i}") for i, prefix in enumerate(prefixes)]
    return SequenceOrder(sources, weights, sequences, packing(), in_memory())


PROOF_PILE_2 = [2.0, 4.0, 1.0, 0.147368, 0.221053]


@pytest.mark.parametrize("weights", [PROOF_PILE_2, [1.0, 1.0], [1000.0, 1.0, 1.0]])
@pytest.mark.parametrize("sequences", [1, 2, 3, 700])
def test_the_blend_is_what_the_words_say(tmp_path: Path, weights: list[float], sequences: int) -> None:
    order = blended(tmp_path, weights, sequences)
    alone = {}
    for i in range(len(weights)):
        drawn = max(1, int(np.ceil(np.ceil(sequences * weights[i] / sum(weights)) * 1.005)), sequences)
        # more than is drawn here: the sequences of the first pass do not depend on how many are asked for
        first_pass = min(drawn, source_of(tmp_path / f"p{i}").sequences(SEQ_LENGTH))
        alone[i] = rows(order_of(tmp_path / f"p{i}", first_pass))
    for position, (source, number) in enumerate(greedy(weights, sequences)):
        assert order.source_of(position) == f"s{source}"
        if number < len(alone[source]) and not _repeats(order, source, weights, sequences, tmp_path):
            sample = order[position]
            assert [*sample.tokens_S.tolist(), int(sample.labels_S[-1])] == alone[source][number]


def _repeats(order: SequenceOrder, source: int, weights: list[float], sequences: int, tmp_path: Path) -> bool:
    """Whether a source is read more than once, which changes its shuffle."""
    asked = sequences * weights[source] / sum(weights) * 1.005 + 1
    return asked >= source_of(tmp_path / f"p{source}").sequences(SEQ_LENGTH)


def test_the_blend_is_the_one_of_megatron_cores_blended_dataset(tmp_path: Path) -> None:
    order = blended(tmp_path, PROOF_PILE_2, 600)
    theirs = BlendedDataset(order._datasets, PROOF_PILE_2, 600, order._datasets[0].config)
    for position in range(600):
        assert order[position].tokens_S.tolist() == theirs[position]["tokens"].tolist()


def test_each_source_of_a_blend_is_packed_for_half_a_percent_more_than_its_share(tmp_path: Path) -> None:
    """GPT-NeoX's 1.005: sources of 100 sequences that are asked for 100 each are packed for two passes."""
    documents = [random_documents(seed, 200) for seed in (0, 1)]
    for held in documents:
        while sum(map(len, held)) > 100 * SEQ_LENGTH + 1:
            held.pop()
        held.append([7] * (100 * SEQ_LENGTH + 1 - sum(map(len, held))))
    sources = [
        source_of(write_documents(tmp_path / f"p{i}", [d for d in held if d]), f"s{i}")
        for i, held in enumerate(documents)
    ]
    assert [source.sequences(SEQ_LENGTH) for source in sources] == [100, 100]
    order = SequenceOrder(sources, [1.0, 1.0], 200, packing(), in_memory())
    for i, held in enumerate(documents):
        drawn = [row for position, row in enumerate(rows(order)) if order.source_of(position) == f"s{i}"]
        assert drawn == packed_by_hand([d for d in held if d], 101, SEQ_LENGTH, 1234)[:100]


def test_weights_are_kept_to_within_a_sequence(tmp_path: Path) -> None:
    order = blended(tmp_path, PROOF_PILE_2, 700)
    shares = np.array(PROOF_PILE_2) / sum(PROOF_PILE_2)
    for upto in (70, 350, 700):
        drawn = [sum(order.source_of(p) == f"s{i}" for p in range(upto)) for i in range(len(shares))]
        assert np.abs(np.array(drawn) - shares * upto).max() <= 1.01


def test_the_seed_changes_the_order_and_nothing_else_does(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", random_documents(0, 100))
    first = rows(order_of(prefix, 50))
    assert rows(order_of(prefix, 50)) == first
    assert rows(order_of(prefix, 50, seed=1)) != first
    assert rows(order_of(prefix, 20)) == first[:20]


def test_end_of_document_can_be_left_out_of_the_loss(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[5, 6, 2]] * 40)
    plain = order_of(prefix, 3)[0]
    assert plain.loss_mask_S.tolist() == [1.0] * SEQ_LENGTH
    masked = SequenceOrder([source_of(prefix)], [1.0], 3, packing(eod_mask_loss=True), in_memory())[0]
    assert masked.tokens_S.tolist() == plain.tokens_S.tolist()
    assert masked.loss_mask_S.tolist() == [0.0 if token == 2 else 1.0 for token in masked.tokens_S.tolist()]


def test_orders_that_are_described_alike_begin_alike_and_others_do_not(tmp_path: Path) -> None:
    """What a checkpoint's record says of its data decides whether a longer run may go on with it."""
    prefix = write_documents(tmp_path / "data", random_documents(3, 12))
    in_a_pass = source_of(prefix).sequences(SEQ_LENGTH)
    lengths = [in_a_pass // 2, *(in_a_pass * tenths // 10 for tenths in (9, 11, 15, 17, 19, 21, 26, 29))]
    orders = [order_of(prefix, length) for length in lengths]
    verdicts = set()
    for number, longer in enumerate(orders):
        for shorter in orders[:number]:
            is_same = rows(longer)[: len(shorter)] == rows(shorter)
            assert (longer.describe() == shorter.describe()) == is_same
            verdicts.add(is_same)
    assert verdicts == {True, False}
    changed = order_of(prefix, lengths[0], seed=5)
    assert changed.describe() != orders[0].describe()


def test_a_source_without_a_whole_sequence_is_refused(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[1]] * SEQ_LENGTH)
    with pytest.raises(
        UserError, match=r"p\): 16 documents with 16 tokens do not fill .* seq_length=16 .*smaller"
    ):
        order_of(prefix, 1)
    write_documents(prefix, [[1]] * (SEQ_LENGTH + 1), overwrite=True)
    assert rows(order_of(prefix, 3)) == [[1] * (SEQ_LENGTH + 1)] * 3


def test_positions_outside_the_order(tmp_path: Path) -> None:
    order = order_of(write_documents(tmp_path / "p", random_documents(0, 100)), 5)
    for position in (-1, 5):
        with pytest.raises(IndexError, match="outside an order of 5 sequences"):
            order[position]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(documents=3, shares=[0, 1, 1], separator=",")  # rounding gives away one document too many
@given(
    documents=st.integers(1, 60),
    shares=st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(any),
    separator=st.sampled_from([",", "/"]),
)
def test_a_split_shares_out_all_documents_in_order(
    tmp_path: Path, documents: int, shares: list[int], separator: str
) -> None:
    prefix = tmp_path / f"p{documents}"
    if not Path(f"{prefix}.idx").exists():
        write_documents(prefix, [[1]] * documents)
    parts = split_source(source_of(prefix), separator.join(map(str, shares)))
    numbers = [number for part in parts if part for number in range(part.first_document, part.end_document)]
    assert numbers == list(range(documents))
    for part, share in zip(parts, [*shares, 0, 0], strict=False):
        held = part.end_document - part.first_document if part else 0
        assert abs(held - share / sum(shares) * documents) <= 2


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "0,0,0", "-1,2", "nan,1", "inf,1"])
def test_splits_that_are_none(tmp_path: Path, split: str) -> None:
    source = source_of(write_documents(tmp_path / "p", [[1]] * 9))
    with pytest.raises(UserError, match="split=.*is not up to three shares"):
        split_source(source, split)


def building_is_forbidden(*_: object, **__: object) -> None:
    raise AssertionError("indices were built again")


def test_the_cache_serves_the_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_documents(tmp_path / "p", random_documents(0, 100))
    cache = IndexCache(tmp_path / "cache", Peers())
    first = rows(order_of(prefix, 50, cache))
    monkeypatch.setattr(gpt_dataset, "_build_document_index", building_is_forbidden)
    again = order_of(prefix, 50, cache)
    assert rows(again) == first == packed_by_hand(random_documents(0, 100), 50, SEQ_LENGTH, 1234)
    assert isinstance(again._datasets[0].document_index, np.memmap)
    assert cache.notices == []
    with pytest.raises(AssertionError, match="built again"):
        order_of(prefix, 50, cache, seed=1)


def test_other_data_at_the_same_path_is_not_served_from_the_cache(tmp_path: Path) -> None:
    cache = IndexCache(tmp_path / "cache", Peers())
    documents = random_documents(0, 100)
    order_of(write_documents(tmp_path / "p", documents), 50, cache)
    documents.reverse()  # as many documents and tokens as before
    prefix = write_documents(tmp_path / "p", documents, overwrite=True)
    assert rows(order_of(prefix, 50, cache)) == packed_by_hand(documents, 50, SEQ_LENGTH, 1234)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("damage", ["cut", "empty", "removed", "pickle", "description"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    prefix = write_documents(tmp_path / "p", random_documents(0, 100))
    cache = IndexCache(tmp_path / "cache", Peers())
    first = rows(order_of(prefix, 50, cache))
    pattern = "*.json" if damage == "description" else "*sample_index.npy"
    [path] = (tmp_path / "cache").glob(pattern)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Trap(str(tmp_path / "trapped"))))
    else:
        path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    assert rows(order_of(prefix, 50, cache)) == first
    assert path.read_bytes() == content
    assert not (tmp_path / "trapped").exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", random_documents(0, 100))
    (tmp_path / "file").write_text("")
    cache = IndexCache(tmp_path / "file" / "cache", Peers())
    assert rows(order_of(prefix, 50, cache)) == rows(order_of(prefix, 50))
    assert "cannot be written" in cache.notices[0]


def test_a_full_disk_leaves_no_half_written_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_documents(tmp_path / "p", random_documents(0, 100))
    cache = IndexCache(tmp_path / "cache", Peers())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(index_cache.np, "save", full)
        assert rows(order_of(prefix, 50, cache)) == rows(order_of(prefix, 50))
    assert "No space left" in cache.notices[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_error_of_the_builder_reaches_every_rank() -> None:
    """The one that builds still comes to each wait, so that nobody waits for it for ever."""
    waits: list[int] = []
    cache = IndexCache(Path("/nonexistent"), Peers(0, 0, lambda: waits.append(0)))

    def fail() -> dict[str, np.ndarray]:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.get("name", {}, fail)
    assert waits == [0]


def read_as_a_rank(prefix: str, cases: list[list[str]]) -> list[tuple[list[list[int]], int]]:
    """Run on each rank, for each case (a cache folder a rank): the sequences, and how often it built."""
    import torch.distributed

    os.environ["LOCAL_RANK"] = "0"  # each rank stands for a node
    torch.distributed.init_process_group("gloo")
    built = 0
    real = helpers.build_sample_idx

    def counting(*arguments: object) -> object:
        nonlocal built
        built += 1
        return real(*arguments)

    helpers.build_sample_idx = counting
    results = []
    for folders in cases:
        built = 0
        folder = Path(folders[torch.distributed.get_rank()])
        order = order_of(Path(prefix), 50, IndexCache(folder, Peers.of_this_run()))
        results.append((rows(order), built))
    torch.distributed.destroy_process_group()
    return results


def test_ranks_share_what_the_first_builds(tmp_path: Path) -> None:
    """On one disk rank 0 builds for both; on two (here: folders) each has its own; on none, its memory."""
    documents = random_documents(0, 100)
    prefix = write_documents(tmp_path / "p", documents)
    (tmp_path / "file").write_text("")
    one, two, none = (str(tmp_path / name) for name in ("one", "two", "file/none"))
    cases = [[one, one], [one, two], [one, two], [none, none]]
    first, second = run_ranks(read_as_a_rank, 2, str(prefix), cases, timeout_seconds=400)
    expected = packed_by_hand(documents, 50, SEQ_LENGTH, 1234)
    assert [result for result, _ in [*first, *second]] == [expected] * 8
    assert [built for _, built in first] == [1, 0, 0, 1]
    assert [built for _, built in second] == [0, 1, 0, 1]
