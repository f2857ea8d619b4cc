# SPDX-License-Identifier: Apache-2.0
"""Bits per byte against transformers on the same model, and what is counted as tokens and bytes."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama
from tests.runs import run_on_ranks
from tools.bits_per_byte import Scored, batched, beginning, nats_of, parse_documents

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    "letters": ["w3 w9 w27 w81 w243", "w5"],
    "numbers": [" ".join(f"w{2 + (n * n) % 250}" for n in range(70)), "w7 w7 w7 w8 w200"],
}
MAX_TOKENS = 24


class Characters:
    """A tokenizer of UTF-8 bytes, two to a token where that fits: cuts fall inside characters."""

    eod_id = 0

    def encode(self, text: str) -> list[int]:
        content = text.encode("utf-8")
        return [int.from_bytes(content[at : at + 2], "big") + 1 for at in range(0, len(content), 2)]

    def decode(self, ids: list[int]) -> str:
        content = b"".join((number - 1).to_bytes(2, "big").lstrip(b"\0") for number in ids)
        return content.decode("utf-8", errors="replace")


class Lowercase(Characters):
    """One that rewrites its text."""

    def decode(self, ids: list[int]) -> str:
        return super().decode(ids).lower()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random Llama as a Hugging Face folder, and as our checkpoint."""
    from megatron.checkpointing.convert import hf_to_neox

    folder = tmp_path_factory.mktemp("bpb")
    theirs = save_hf_llama(folder / "hf")
    hf_to_neox(theirs, folder / "ours", 1)
    return theirs, folder / "ours"


def by_transformers(folder: Path, texts: list[str], rotary_base: float | None) -> float:
    """The same figure by its definition: transformers, one document and one token at a time."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder)
    if rotary_base is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rotary_base}
    model = LlamaForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bits, count_bytes = 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)[:MAX_TOKENS]
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.eos_token_id, *ids]])).logits[0].double()
        for place, token in enumerate(ids):
            bits -= float(torch.log_softmax(logits[place], -1)[token]) / math.log(2)
        count_bytes += len(" ".join(text.split(" ")[: len(ids)]).encode("utf-8"))
    return bits / count_bytes


@pytest.mark.parametrize("rotary_base", [None, 500.0])
def test_figures_are_those_of_transformers(
    checkpoint: tuple[Path, Path], tmp_path: Path, rotary_base: float | None
) -> None:
    theirs, ours = checkpoint
    documents = []
    for name, texts in TEXTS.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "", "w9 left out"]))
        documents.append(f"{name}={path}")
    command = [
        sys.executable, "tools/bits_per_byte.py", str(ours), "--documents", *documents,
        "--max-tokens", str(MAX_TOKENS), "--max-documents", "2", "--json", str(tmp_path / "out.json"),
        *(["--rotary-base", str(rotary_base)] if rotary_base else []),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["rotary_base"] == (rotary_base or 100000.0)
    for name, texts in TEXTS.items():
        measured = report["sources"][name]
        assert measured["documents"] == 2
        assert measured["bits_per_byte"] == pytest.approx(
            by_transformers(theirs, texts, rotary_base), abs=1e-4
        )
        assert f"{measured['bits_per_byte']:.4f} bits per byte" in done.stdout
    assert report["sources"]["numbers"]["cut_documents"] == 1
    assert report["sources"]["numbers"]["tokens"] == MAX_TOKENS + 5
    other = by_transformers(theirs, TEXTS["numbers"], 500.0 if rotary_base is None else None)
    assert abs(report["sources"]["numbers"]["bits_per_byte"] - other) > 1e-3  # the base is not without effect


def test_two_ranks_measure_what_one_does(checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "numbers.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS["numbers"]))

    def arguments(ranks: int, layout_invariant: bool, rank: int) -> list[object]:
        return [
            *(
                "tools/bits_per_byte.py",
                checkpoint[1],
                "--documents",
                f"numbers={tmp_path / 'numbers.jsonl'}",
            ),
            *("--json", tmp_path / f"{ranks}_{layout_invariant}.json"),
            *(["--layout-invariant"] if layout_invariant else []),
        ]

    found = {}
    for ranks, layout_invariant in ((1, False), (2, False), (2, True)):
        case = functools.partial(arguments, ranks, layout_invariant)
        for rank, done in enumerate(run_on_ranks(tmp_path / f"{ranks}_{layout_invariant}", ranks, case)):
            assert done.status == 0, done.err
            assert ("bits per byte" in done.out) == (rank == 0)
        found[ranks, layout_invariant] = json.loads(
            (tmp_path / f"{ranks}_{layout_invariant}.json").read_text()
        )
    nats = {case: report["sources"]["numbers"]["nats_per_token"] for case, report in found.items()}
    assert nats[2, False] == pytest.approx(nats[1, False], rel=1e-6)
    assert nats[2, True] == pytest.approx(nats[1, False], rel=1e-6)


def test_padding_and_batches_change_nothing() -> None:
    import torch

    def logits_of(tokens_BS: torch.Tensor) -> torch.Tensor:
        """Each row depends on all tokens before it, and on nothing after."""
        sums_BS = tokens_BS.cumsum(1)
        return torch.sin(sums_BS[..., None] * torch.arange(1.0, 12.0))

    documents = [Scored([1 + (n + k) % 10 for k in range(n)], n, False) for n in (1, 3, 7, 7, 2)]
    apart = {len(d.ids): nats_of([d], logits_of, 0)[0] for d in documents}
    together = list(batched(documents, batch_tokens=14))
    assert [len(batch) for batch in together] == [3, 2]
    for batch in together:
        for document, nats in zip(batch, nats_of(batch, logits_of, 0), strict=True):
            assert nats == pytest.approx(apart[len(document.ids)], rel=1e-6)


@given(st.text(min_size=1, max_size=60), st.integers(1, 40))
def test_a_cut_text_ends_at_a_whole_character(text: str, max_tokens: int) -> None:
    text = text.replace("\0", "0")
    if len(text.encode("utf-8", errors="ignore").decode()) != len(text):
        return
    tokenizer = Characters()
    try:
        scored = beginning(text, tokenizer, max_tokens)  # type: ignore[arg-type]
    except UserError:
        cuts = (tokenizer.decode(tokenizer.encode(text)[:end]) for end in range(1, max_tokens + 1))
        assert not any(text.startswith(covered) for covered in cuts)
        return
    assert len(scored.ids) <= max_tokens
    assert scored.is_cut == (len(tokenizer.encode(text)) > max_tokens)
    covered = tokenizer.decode(scored.ids)
    assert text.startswith(covered)
    assert scored.text_bytes == len(covered.encode("utf-8"))
    assert scored.is_cut or covered == text


def test_a_tokenizer_that_rewrites_is_refused_where_bytes_would_be_wrong() -> None:
    assert beginning("ABCD", Lowercase(), 8).text_bytes == 4  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rewrites the text that begins 'ABCD"):
        beginning("ABCD" * 9, Lowercase(), 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latex"], "give name=path"),
        (["=a.jsonl"], "give name=path"),
        (["a=nowhere.jsonl"], "nowhere.jsonl is not there"),
        ([f"a={__file__}", f"a={__file__}"], "stands twice"),
    ],
)
def test_documents_that_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_documents(arguments)


def test_errors_are_said_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "w3"}\n{"tex\n')
    for file, message in (("empty", "holds no document"), ("broken", "broken.jsonl:2: is not JSON")):
        command = [sys.executable, "tools/bits_per_byte.py", str(tmp_path), "--documents"]
        done = subprocess.run(
            [*command, f"a={tmp_path / file}.jsonl"],
            cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
