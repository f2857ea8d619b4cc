# SPDX-License-Identifier: Apache-2.0
"""The chat template of a checkpoint, rendered as by transformers; without one, messages pass as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpointing.export_files import PASS_THROUGH, TEMPLATE
from megatron.neox_arguments.errors import UserError
from tools.serve_parts.refusal import Refused

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class ChatTemplate:
    """Messages to one prompt. With a `problem`, all are refused with it."""

    template: str
    special_tokens: dict[str, str]
    problem: str = ""

    @property
    def is_pass_through(self) -> bool:
        return self.template == PASS_THROUGH

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt after which the assistant's words come.

        Raises:
            Refused: the template does not take these messages.
        """
        if self.problem:
            raise Refused(400, f"messages: {self.problem}", field="messages")
        if self.is_pass_through:
            return "".join(message["content"] for message in messages)
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.template,
                add_generation_prompt=True,
                **self.special_tokens,
            )
        except Exception as error:  # a template may refuse, and it is a program: what it does wrong is told
            raise Refused(
                400, f"messages: the model's chat template does not take them ({error})", field="messages"
            ) from None
        return str(texts[0])


def read_chat_template(folder: Path) -> ChatTemplate:
    """The template among a checkpoint's or an export's files, with the special tokens it may name.

    Raises:
        UserError: a file is not readable, or there are several templates and none is the default.
    """
    config = _tokenizer_config(folder)
    special = {name: token for name in _SPECIAL_TOKENS if (token := _token(config.get(name))) is not None}
    path = folder / TEMPLATE
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), special)
    template = config.get("chat_template")
    if isinstance(template, list):  # by name, as Cohere's and Hermes' exports have it
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        if "default" not in named:
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: has chat templates {', '.join(map(str, named))} and "
                f"none called default; put the right one into {TEMPLATE} beside it"
            )
        template = named["default"]
    return ChatTemplate(template if isinstance(template, str) else PASS_THROUGH, special)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repair the file or remove it") from None
    return value if isinstance(value, dict) else {}


def _token(value: object) -> str | None:
    """A special token as a text, or as an AddedToken's object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
