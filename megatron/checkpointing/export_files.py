# SPDX-License-Identifier: Apache-2.0
"""What lies beside the weights of an export: generation settings, a chat template, a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from megatron.checkpointing.record import CheckpointRecord
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.whole_files import write_whole

GENERATION, TEMPLATE, CARD = "generation_config.json", "chat_template.jinja", "README.md"
# A base model knows no turns of a conversation. Servers refuse chat requests without a template; this one
# adds nothing to what the messages say.
PASS_THROUGH = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_companions(folder: Path, name: str, record: CheckpointRecord, config: dict[str, Any]) -> None:
    """Writes those files that did not come with the base model, and the card.

    `folder` has everything else of the export, `config` is its config.json, `name` what it will be called.
    """
    if not (folder / GENERATION).is_file():
        tokens = {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config
        }
        known = {key: value for key, value in tokens.items() if value is not None}
        write_whole(folder / GENERATION, json.dumps(known, indent=2) + "\n")
    has_own = has_chat_template(folder)
    if not has_own:
        write_whole(folder / TEMPLATE, PASS_THROUGH)
    write_whole(folder / CARD, model_card(name, record, config, has_own))


def has_chat_template(folder: Path) -> bool:
    if (folder / TEMPLATE).is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


def base_name(record: CheckpointRecord, config: dict[str, Any]) -> str | None:
    """What the base model is called: its own word, or the folder that the run started from. Never a path."""
    own = str(config.get("_name_or_path") or "")
    if own and not own.startswith((".", "/", "~")):
        return own
    places = record.run.get("checkpoint") or {}
    load = places.get("load")
    if not load or load == places.get("save"):
        return None
    path = Path(load)
    return path.parent.name if path.name.startswith("global_step") else path.name


def model_card(
    name: str, record: CheckpointRecord, config: dict[str, Any], has_own_template: bool = False
) -> str:
    """A README.md in the form of Hugging Face's model cards, made from the run's configuration."""
    base = base_name(record, config)
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base is not None and base.count("/") == 1:  # a name on the hub
        header["base_model"] = base
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    if record.tokens_seen:
        of_base = f" of {base}" if base else ""
        lines += [f"Continued pretraining{of_base} on {record.tokens_seen:,} tokens."]
    else:
        lines += [f"The weights of {base or 'the base model'} as they are, without training."]
    lines += ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in _facts(record, base))]
    if record.run and record.tokens_seen:
        lines += ["", *_data(record)]
    template = "" if has_own_template else "The chat template passes the messages on as they are. "
    lines += ["", f"{template}Licence and limits are those of the base model and of the data."]
    return "\n".join(lines) + "\n"


def _facts(record: CheckpointRecord, base: str | None) -> list[tuple[str, str]]:
    model = record.model
    facts = [
        ("Base", base or "not recorded"),
        (
            "Shape",
            f"{model['num_layers']} layers, hidden {model['hidden_size']}, "
            f"{model['num_attention_heads']} heads, {model['num_kv_heads']} KV heads, "
            f"MLP {model['intermediate_size']}, {record.vocab_size:,} ids",
        ),
        ("Positions", f"{model['max_position_embeddings']:,}"),
        ("Rotary base", f"{record.rotary_base:,.0f}" + _rotary_changes(record)),
        ("Norm", model["norm"]),
        ("Weights", record.dtype),
    ]
    if record.run and record.tokens_seen:
        run = RunConfig.model_validate(record.run)
        facts += [
            ("Tokens", f"{record.tokens_seen:,}"),
            ("Steps", f"{record.iteration:,} of {run.schedule.train_iters:,}"),
            ("Sequence length", f"{run.model.seq_length:,}"),
            (
                "Optimizer",
                f"{run.optimizer.optimizer_type}, betas {run.optimizer.adam_beta1} and "
                f"{run.optimizer.adam_beta2}, weight decay {run.optimizer.weight_decay}, gradients clipped "
                f"at {run.optimizer.gradient_clipping}",
            ),
            ("Learning rate", f"{run.optimizer.lr}, {run.schedule.lr_decay_style}"),
        ]
    return facts


def _rotary_changes(record: CheckpointRecord) -> str:
    changes = [
        f"from {change['from']:,.0f} to {change['to']:,.0f} at step {change['iteration']:,}"
        for change in record.rotary_history
    ]
    return f", changed {', then '.join(changes)}" if changes else ""


def _data(record: CheckpointRecord) -> list[str]:
    """The training sources by their names, with their shares of the tokens."""
    data = RunConfig.model_validate(record.run).data
    weights = data.train_data_weights or (1.0,) * len(data.data_names)
    total = sum(weights)
    rows = [
        f"| {name} | {100 * weight / total:.1f}% |"
        for name, weight in zip(data.data_names, weights, strict=True)
    ]
    return ["| Training data | Share of tokens |", "|---|---|", *rows]
