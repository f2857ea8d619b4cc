# SPDX-License-Identifier: Apache-2.0
"""Models in the formats of others → here → Hugging Face: the same bytes as the model that was given away.

The files are written here from a transformers Llama, each layout by its own description: Meta's from what its
model computes (pairs of neighbours turned), GPT-NeoX's head by head. None of it shares code with the readers.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.checkpointing import convert, huggingface, sources
from megatron.checkpointing.sources import Hints
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama

LAYERS, HEADS, HEAD_DIM, HIDDEN, FFN, VOCAB = 3, 4, 16, 64, 176, 256

State = dict[str, torch.Tensor]


def state_of(folder: Path) -> State:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def copy_tokenizer(hf: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(hf / name, target / name)


def neighbours_from_halves(weight: torch.Tensor) -> torch.Tensor:
    """Row 2i of each of Meta's heads is row i of Hugging Face's, row 2i + 1 is row i + D/2."""
    rows = []
    for head in weight.split(HEAD_DIM):
        for i in range(HEAD_DIM // 2):
            rows += [head[i], head[i + HEAD_DIM // 2]]
    return torch.stack(rows)


def write_meta(hf: Path, folder: Path, ranks: int = 1, **params: Any) -> Path:
    """As Meta's FairScale layers lie on so many ranks; tokenizer beside the folder, as with Llama 2."""
    state, embedding_cut = state_of(hf), params.pop("embedding_cut", 1)
    kv_heads = state["model.layers.0.self_attn.k_proj.weight"].size(0) // HEAD_DIM
    copy_tokenizer(hf, folder.parent)
    folder.mkdir()
    shards: list[State] = [{} for _ in range(ranks)]

    def put(name: str, weight: torch.Tensor, cut: int | None) -> None:
        parts = [weight] * ranks if cut is None else weight.chunk(ranks, dim=cut)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()

    put("tok_embeddings.weight", state["model.embed_tokens.weight"], embedding_cut)
    put("norm.weight", state["model.norm.weight"], None)
    if "lm_head.weight" in state:
        put("output.weight", state["lm_head.weight"], 0)
    put("rope.freqs", torch.ones(HEAD_DIM // 2), None)
    for layer in range(LAYERS):
        there, here = f"model.layers.{layer}.", f"layers.{layer}."
        put(here + "attention_norm.weight", state[there + "input_layernorm.weight"], None)
        put(here + "ffn_norm.weight", state[there + "post_attention_layernorm.weight"], None)
        for x in "qkvo":
            weight = state[there + f"self_attn.{x}_proj.weight"]
            weight = neighbours_from_halves(weight) if x in "qk" else weight
            put(here + f"attention.w{x}.weight", weight, 1 if x == "o" else 0)
        put(here + "feed_forward.w1.weight", state[there + "mlp.gate_proj.weight"], 0)
        put(here + "feed_forward.w2.weight", state[there + "mlp.down_proj.weight"], 1)
        put(here + "feed_forward.w3.weight", state[there + "mlp.up_proj.weight"], 0)
    for rank, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    content = {
        "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "multiple_of": 256, "norm_eps": 1e-5,
        "rope_theta": 100000.0, "vocab_size": -1, **params,
    }  # fmt: skip
    if kv_heads != HEADS:
        content["n_kv_heads"] = kv_heads
    (folder / "params.json").write_text(json.dumps(content))
    return folder


def neox_qkv(state: State, layer: int) -> torch.Tensor:
    """For each query head: its queries, then its even share of all rows of keys, then of values."""
    q, k, v = (state[f"model.layers.{layer}.self_attn.{x}_proj.weight"] for x in "qkv")
    share = k.size(0) // HEADS
    blocks = []
    for head in range(HEADS):
        blocks.append(q[head * HEAD_DIM : (head + 1) * HEAD_DIM])
        blocks += [part[head * share : (head + 1) * share] for part in (k, v)]
    return torch.cat(blocks)


def neox_modules(hf: Path, ranks: int, padding: int = 0) -> list[dict[int, State]]:
    """The numbered modules of each tensor parallel rank."""
    state = state_of(hf)
    by_rank: list[dict[int, State]] = [{} for _ in range(ranks)]

    def put(module: int, name: str, weight: torch.Tensor, cut: int | None) -> None:
        parts = [weight] * ranks if cut is None else weight.chunk(ranks, dim=cut)
        for modules, part in zip(by_rank, parts, strict=True):
            modules.setdefault(module, {})[name] = part.clone()

    def padded(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight, torch.randn(padding, HIDDEN)])

    put(0, "word_embeddings.weight", padded(state["model.embed_tokens.weight"]), 0)
    for layer in range(LAYERS):
        there, module = f"model.layers.{layer}.", layer + 2
        put(module, "input_layernorm.scale", state[there + "input_layernorm.weight"], None)
        put(module, "post_attention_layernorm.scale", state[there + "post_attention_layernorm.weight"], None)
        put(module, "attention.query_key_value.weight", neox_qkv(state, layer), 0)
        put(module, "attention.dense.weight", state[there + "self_attn.o_proj.weight"], 1)
        put(module, "attention.rotary_emb.inv_freq", torch.ones(HEAD_DIM // 2), None)
        put(module, "mlp.w1.weight", state[there + "mlp.gate_proj.weight"], 0)
        put(module, "mlp.w2.weight", state[there + "mlp.down_proj.weight"], 1)
        put(module, "mlp.w3.weight", state[there + "mlp.up_proj.weight"], 0)
    put(LAYERS + 3, "norm.scale", state["model.norm.weight"], None)
    put(LAYERS + 4, "final_linear.weight", padded(state["lm_head.weight"]), 0)
    return by_rank


def neox_yaml(hf: Path) -> str:
    kv_heads = state_of(hf)["model.layers.0.self_attn.k_proj.weight"].size(0) // HEAD_DIM
    return f"""{{
      "pipe-parallel-size": 1, "model-parallel-size": 2, "num-layers": {LAYERS}, "hidden-size": {HIDDEN},
      "num-attention-heads": {HEADS}, "num_kv_heads": {kv_heads}, "ffn_hidden_size": {FFN},
      "seq-length": 128, "max-position-embeddings": 128, "norm": "rmsnorm", "rms_norm_epsilon": 1.0e-5,
      "rotary_emb_base": 100000, "no-weight-tying": true, "mlp_type": "llama", "activation": "silu",
      "optimizer": {{"type": "Adam", "params": {{"lr": 0.0001}}}}, "train-iters": 10,
      "train_micro_batch_size_per_gpu": 1, "vocab-file": "/somewhere/tokenizer.model"
    }}"""


def write_neox_layers(hf: Path, folder: Path, ranks: int = 2, padding: int = 0) -> Path:
    """With pipeline stages: a file for each module and rank; and the run's folder around it."""
    step = folder / "global_step7"
    (step / "configs").mkdir(parents=True)
    for rank, modules in enumerate(neox_modules(hf, ranks, padding)):
        for module, tensors in modules.items():
            torch.save(tensors, step / f"layer_{module:02d}-model_{rank:02d}-model_states.pt")
    (step / "configs" / "run.yml").write_text(neox_yaml(hf))
    (folder / "latest").write_text("global_step7")
    copy_tokenizer(hf, step)
    return folder


def write_neox_ranks(hf: Path, folder: Path, ranks: int = 2) -> Path:
    """Without: all modules in a rank's file, among the state of generators and of the run."""
    folder.mkdir()
    for rank, modules in enumerate(neox_modules(hf, ranks)):
        module = {
            f"sequential.{n}.{name}": t for n, tensors in modules.items() for name, t in tensors.items()
        }
        content = {
            "module": module,
            "optimizer": None,
            "iteration": 7,
            "np_rng_state": np.random.get_state(),
            "args": {"num_layers": LAYERS},
        }
        torch.save(content, folder / f"mp_rank_{rank:02d}_model_states.pt")
    copy_tokenizer(hf, folder)
    (folder.parent / "run.yml").write_text(neox_yaml(hf))
    return folder


def write_bin(hf: Path, folder: Path, shards: int = 1) -> Path:
    state = state_of(hf)
    shutil.copytree(hf, folder)
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    weight_map = {name: f"pytorch_model-{i % shards + 1:05d}.bin" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_gguf(hf: Path, folder: Path) -> Path:
    """As llama.cpp has it: queries and keys turned as Meta's, so neighbours again."""
    import gguf

    state = state_of(hf)
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_name("a random model")
    for add, value in (
        (writer.add_block_count, LAYERS), (writer.add_context_length, 128), (writer.add_vocab_size, VOCAB),
        (writer.add_embedding_length, HIDDEN), (writer.add_feed_forward_length, FFN),
        (writer.add_head_count, HEADS), (writer.add_head_count_kv, 2), (writer.add_rope_freq_base, 100000.0),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, HEAD_DIM),
    ):  # fmt: skip
        add(value)
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in state.items():
        stem = name.removesuffix(".weight")
        if stem in outside:
            there = outside[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            there = f"blk.{layer}.{names[rest]}"
        turned = neighbours_from_halves(weight) if there.endswith(("attn_q", "attn_k")) else weight
        writer.add_tensor(f"{there}.weight", turned.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy_tokenizer(hf, folder)
    return folder


MHA = {"num_key_value_heads": 4}
# Name: the model, who writes it, and what the command is told.
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Path, Path], Path], Callable[[Path], Hints]]] = {
    "Meta, 1 file": ({}, write_meta, lambda _: Hints()),
    "Meta, 2 files": ({}, lambda hf, to: write_meta(hf, to, 2), lambda _: Hints()),
    "Meta, 4 files, MHA": (MHA, lambda hf, to: write_meta(hf, to, 4), lambda _: Hints()),
    "Meta, 2 files, embedding cut by rows": (
        {}, lambda hf, to: write_meta(hf, to, 2, embedding_cut=0), lambda _: Hints(),
    ),
    "Meta, bfloat16": ({"dtype": "bfloat16"}, lambda hf, to: write_meta(hf, to, 2), lambda _: Hints()),
    "GPT-NeoX layers, GQA": ({}, write_neox_layers, lambda _: Hints()),
    "GPT-NeoX layers, MHA, padding": (
        MHA, lambda hf, to: write_neox_layers(hf, to, 2, padding=8), lambda _: Hints(),
    ),
    "GPT-NeoX ranks, GQA": (
        {}, write_neox_ranks, lambda folder: Hints(config=folder.parent / "run.yml"),
    ),
    "GPT-NeoX ranks, MHA, 1 rank": (
        MHA,
        lambda hf, to: write_neox_ranks(hf, to, 1),
        lambda folder: Hints(config=folder.parent / "run.yml"),
    ),
    "bin": ({}, write_bin, lambda _: Hints()),
    "bin, shards, bfloat16": (
        {"dtype": "bfloat16"}, lambda hf, to: write_bin(hf, to, 3), lambda _: Hints(),
    ),
    "GGUF": ({}, write_gguf, lambda _: Hints()),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_in_bit_exact(tmp_path: Path, name: str) -> None:
    changes, write, hints = FORMATS[name]
    hf = save_hf_llama(tmp_path / "hf", **changes)
    theirs = write(hf, tmp_path / "theirs")
    record, source = convert.hf_to_neox(theirs, tmp_path / "neox", 2, hints(theirs))
    assert name.startswith(source.format) or source.format == "Hugging Face"
    assert record.rotary_base == 100000.0
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    before, after = state_of(hf), state_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize("name", ["Meta, 2 files", "GPT-NeoX layers, GQA", "bin", "GGUF"])
def test_the_export_computes_what_the_model_computes(tmp_path: Path, name: str) -> None:
    """Through transformers on both sides: config.json says what the bytes mean."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changes, write, hints = FORMATS[name]
    hf = save_hf_llama(tmp_path / "hf", **changes)
    theirs = write(hf, tmp_path / "theirs")
    convert.hf_to_neox(theirs, tmp_path / "neox", 1, hints(theirs))
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    ids = AutoTokenizer.from_pretrained(tmp_path / "back")("w3 w99 w7 w42", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[3, 99, 7, 42]]
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(side)(ids).logits for side in (hf, tmp_path / "back")
        )
    assert torch.equal(before, after)


@pytest.mark.parametrize(("params", "base", "positions"), [
    ({"rope_theta": 1e6}, 1e6, 16384),  # Code Llama
    ({"rope_theta": 5e5}, 5e5, 8192),  # Llama 3
    ({"rope_theta": None}, 1e4, 4096),  # Llama 2
    ({"rope_theta": None, "norm_eps": 1e-6}, 1e4, 2048),  # Llama 1
])  # fmt: skip
def test_what_metas_files_do_not_say_is_told_from_what_they_do(
    tmp_path: Path, params: dict[str, Any], base: float, positions: int
) -> None:
    hf = save_hf_llama(tmp_path / "hf")
    folder = write_meta(hf, tmp_path / "meta", **params)
    if params["rope_theta"] is None:  # absent, in fact
        content = json.loads((folder / "params.json").read_text())
        del content["rope_theta"]
        (folder / "params.json").write_text(json.dumps(content))
    source = sources.open_source(folder)
    assert (source.config["rope_theta"], source.config["max_position_embeddings"]) == (base, positions)
    assert f"{positions:,}" in source.notices[0]


class Program:
    """What a malicious pickle does: it names something to be called."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.trace),)


def poison(path: Path, trace: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["more"] = Program(trace)
    torch.save(content, path)


def poison_legacy(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Program(trace)}))


@pytest.mark.parametrize("poisoned", [poison, poison_legacy])
@pytest.mark.parametrize(("name", "file"), [
    ("Meta, 1 file", "consolidated.00.pth"),
    ("bin", "pytorch_model.bin"),
    ("GPT-NeoX layers, GQA", "global_step7/layer_02-model_01-model_states.pt"),
])  # fmt: skip
def test_a_program_in_a_pickle_is_refused(
    tmp_path: Path, name: str, file: str, poisoned: Callable[[Path, Path], None]
) -> None:
    theirs = FORMATS[name][1](save_hf_llama(tmp_path / "hf"), tmp_path / "theirs")
    if poisoned is poison:
        poison(theirs / file, tmp_path / "it-ran")
    else:
        poison_legacy(theirs / file, tmp_path / "it-ran")
    with pytest.raises(UserError, match=Path(file).name):
        convert.hf_to_neox(theirs, tmp_path / "neox", 1)
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "neox").exists()
    if poisoned is poison:  # the trap works: whoever trusts the file runs it
        torch.load(theirs / file, weights_only=False)
        assert (tmp_path / "it-ran").exists()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def outside_index(folder: Path) -> None:
    shutil.copyfile(folder / "pytorch_model.bin", folder.parent / "elsewhere.bin")
    content = {"weight_map": {"lm_head.weight": "../elsewhere.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))


def cut_short(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])

    return cut


def latest_outside(folder: Path) -> None:
    (folder / "latest").write_text("../hf")


def tiktoken_instead(folder: Path) -> None:
    (folder.parent / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")


def other_tensor(folder: Path) -> None:
    path = folder / "consolidated.00.pth"
    torch.save({**torch.load(path), "adapter": torch.ones(2)}, path)


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "index outside": ("bin", outside_index, "names '../elsewhere.bin', which is not in this folder"),
    "bin cut short": ("bin", cut_short("pytorch_model.bin"), "cannot be read"),
    "pth cut short": ("Meta, 1 file", cut_short("consolidated.00.pth"), "cannot be read"),
    "a missing file": (
        "Meta, 4 files, MHA",
        lambda at: (at / "consolidated.01.pth").unlink(),
        "consolidated.01.pth is missing",
    ),
    "the last file missing": (
        "Meta, 4 files, MHA",
        lambda at: (at / "consolidated.03.pth").unlink(),
        "3 consolidated files are there, but each holds 1 part in 4",
    ),
    "a tensor too many": ("Meta, 1 file", other_tensor, "unknown: adapter"),
    "params without dim": (
        "Meta, 1 file", lambda at: (at / "params.json").write_text("{}"), "has no dim, n_layers, n_heads",
    ),
    "other heads": (
        "Meta, 1 file",
        lambda at: edit_json(at / "params.json", n_heads=8, n_kv_heads=8),
        "by its configuration",
    ),
    "scaled rope": (
        "Meta, 1 file", lambda at: edit_json(at / "params.json", use_scaled_rope=True), "use_scaled_rope",
    ),
    "other layers": (
        "Meta, 1 file", lambda at: edit_json(at / "params.json", n_layers=4), "missing: model.layers.3",
    ),
    "tiktoken": (
        "Meta, 1 file",
        tiktoken_instead,
        "is a tiktoken file",
    ),
    "no tokenizer": (
        "Meta, 1 file", lambda at: (at.parent / "tokenizer.json").unlink(), "give one with --tokenizer",
    ),
    "no configuration": (
        "GPT-NeoX layers, GQA", lambda at: shutil.rmtree(at / "global_step7" / "configs"), "with --config",
    ),
    "a rank missing": (
        "GPT-NeoX layers, GQA",
        lambda at: (at / "global_step7" / "layer_03-model_00-model_states.pt").unlink(),
        "layer_03 of rank 00 is missing",
    ),
    "a layer missing": (
        "GPT-NeoX layers, GQA",
        lambda at: [path.rename(path.with_suffix(".gone")) for path in at.glob("*/layer_03-*")],
        "missing: model.layers.1",
    ),
    "latest outside": ("GPT-NeoX layers, GQA", latest_outside, "`latest` names none of its checkpoints"),
    "gguf cut short": ("GGUF", cut_short("model.gguf"), "not a whole GGUF file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    form, spoil, message = BAD[name]
    changes, write, hints = FORMATS[form]
    theirs = write(save_hf_llama(tmp_path / "hf", **changes), tmp_path / "theirs")
    spoil(theirs)
    with pytest.raises(UserError, match=message):
        convert.hf_to_neox(theirs, tmp_path / "neox", 1, hints(theirs))
    assert not (tmp_path / "neox").exists()
    assert not list(tmp_path.glob(".*"))


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: when a tensor is read, at most one row of the table was read and not yet let go."""
    import weakref

    from megatron.checkpointing import safetensors_file

    alive: set[int] = set()
    most = [0]
    real = safetensors_file.bytes_of

    def watch(tensor: torch.Tensor) -> memoryview:
        alive.add(id(tensor))
        weakref.finalize(tensor, alive.discard, id(tensor))
        most[0] = max(most[0], len(alive))
        return real(tensor)

    monkeypatch.setattr(safetensors_file, "bytes_of", watch)  # called for each tensor that is read or written
    hf = save_hf_llama(tmp_path / "hf")
    convert.hf_to_neox(hf, tmp_path / "neox", 1)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    assert 1 <= most[0] <= 4  # q, k and v, and what was written before


def test_added_tokens_and_a_resized_vocabulary_survive(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = save_hf_llama(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(hf)
    tokenizer.add_tokens(["<theorem>", "<qed>"], special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(hf)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "resized")
    tokenizer.save_pretrained(tmp_path / "resized")
    record, _ = convert.hf_to_neox(tmp_path / "resized", tmp_path / "neox", 4)
    assert (record.vocab_size, record.padded_vocab_size) == (VOCAB + 2, VOCAB + 4)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    assert convert.digest_of(tmp_path / "back") == convert.digest_of(tmp_path / "resized")
    again = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert again("w3 <qed>")["input_ids"] == [3, VOCAB + 1]
    assert huggingface.read_json(tmp_path / "back" / "config.json")["vocab_size"] == VOCAB + 2
