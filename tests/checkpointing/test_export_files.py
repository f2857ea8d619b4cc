# SPDX-License-Identifier: Apache-2.0
"""What lies beside exported weights, as transformers reads it; and the model card of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from megatron.checkpointing import convert, export_files
from megatron.checkpointing.record import CheckpointRecord
from tests.llamas import run_config, save_hf_llama


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return save_hf_llama(tmp_path / "hf")


def round_trip(hf: Path) -> Path:
    convert.hf_to_neox(hf, hf.parent / "neox", 1)
    convert.neox_to_hf(hf.parent / "neox", hf.parent / "back")
    return hf.parent / "back"


def test_messages_pass_through_where_the_base_has_no_template(hf: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(round_trip(hf))
    messages = [{"role": "user", "content": "w3 {{ w4 }}\n"}, {"role": "assistant", "content": "w5"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "w3 {{ w4 }}\nw5"


@pytest.mark.parametrize("place", ["a file", "tokenizer_config.json"])
def test_the_bases_own_template_stays(hf: Path, place: str) -> None:
    from transformers import AutoTokenizer

    template = "{{ messages[0]['content'] }}!"
    if place == "a file":
        (hf / "chat_template.jinja").write_text(template)
    else:
        path = hf / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    tokenizer = AutoTokenizer.from_pretrained(round_trip(hf))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "w3!"


def test_generation_settings(hf: Path) -> None:
    from transformers import GenerationConfig

    (hf / "generation_config.json").unlink(missing_ok=True)
    assert GenerationConfig.from_pretrained(round_trip(hf)).eos_token_id == 0


def test_the_bases_own_generation_settings_stay(hf: Path) -> None:
    (hf / "generation_config.json").write_text('{"eos_token_id": [0, 5], "temperature": 0.6}')
    written = json.loads((round_trip(hf) / "generation_config.json").read_text())
    assert written == {"eos_token_id": [0, 5], "temperature": 0.6}


def test_the_card_of_a_run_names_base_data_tokens_and_rotary_change(tmp_path: Path) -> None:
    cfg = run_config(
        rotary_emb_base=10000.0,
        data={
            "train_data_paths": ["/private/arxiv_text_document", "/private/web/web_text_document"],
            "train_data_weights": [1.0, 3.0],
        },
        checkpoint={"load": "/private/code_llama_7b", "save": "/private/run"},
    )
    record = CheckpointRecord(
        iteration=20, sequences_seen=160, tokens_seen=10_240, model=cfg.model.model_dump(mode="json"),
        vocab_size=512, padded_vocab_size=512, tokenizer_fingerprint="", dtype="bfloat16", layout={},
        has_optimizer=True, rotary_history=[{"iteration": 0, "from": 1e6, "to": 1e4}],
        run=cfg.model_dump(mode="json"),
    )  # fmt: skip
    card = export_files.model_card("llemma-tiny", record, {})
    header, body = card.split("---\n")[1:]
    assert yaml.safe_load(header) == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    for part in (
        "# llemma-tiny", "Continued pretraining of code_llama_7b on 10,240 tokens", "| arxiv | 25.0% |",
        "| web | 75.0% |", "| Rotary base | 10,000, changed from 1,000,000 to 10,000 at step 0 |",
        "| Steps | 20 of 40 |", "| Learning rate | 0.001, constant |",
    ):  # fmt: skip
        assert part in body, body
    assert "/private" not in card
    named = export_files.model_card("x", record, {"_name_or_path": "codellama/CodeLlama-7b-hf"})
    assert yaml.safe_load(named.split("---\n")[1])["base_model"] == "codellama/CodeLlama-7b-hf"
    resumed = {**record.run, "checkpoint": {**record.run["checkpoint"], "load": "/private/run"}}
    assert "| Base | not recorded |" in export_files.model_card(
        "x", dataclasses.replace(record, run=resumed), {"_name_or_path": "/private/base"}
    )


def test_the_card_of_an_import_says_that_nothing_was_trained(hf: Path) -> None:
    card = (round_trip(hf) / "README.md").read_text()
    assert "# back\n" in card
    assert "as they are, without training" in card
    assert "Training data" not in card
