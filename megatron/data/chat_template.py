# SPDX-License-Identifier: Apache-2.0
"""Chat templates in transformers' form: Jinja programs that write a conversation as one text.

The environment is that of transformers' `apply_chat_template`: sandboxed, with its `tojson`,
`raise_exception`, `{% break %}` and `{% generation %}`. One thing is left out, `strftime_now`: what is learnt
must not depend on the day of the tokenising.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Turns of a conversation are headed like this where no template is given; an answer ends with the document,
# or before the next heading.
PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)


class TemplateFailed(Exception):
    """The template does not take these messages; the message says why."""


def read_template(path: Path) -> str:
    """The text of a chat template's file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--chat-template {path}: cannot be read ({reason}); correct the path") from None


class ChatTemplate:
    """A compiled template."""

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the texts of `bos_token`, `eos_token` and the like.

        Raises:
            UserError: it is not a template, or writes a special token that is not among them.
        """
        import jinja2
        import jinja2.meta

        environment = _environment()
        try:
            names = jinja2.meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"--chat-template: is not a Jinja template ({error}); correct it") from None
        used = [name for name in SPECIAL_TOKENS if name in names]
        if lacking := [name for name in used if name not in special_tokens]:
            raise UserError(
                f"--chat-template: writes {', '.join(lacking)}, which tokenizer_config.json and "
                "special_tokens_map.json beside an HFTokenizer do not name (with SPMTokenizer the text of "
                "such a token stays text); name it there, or take it out of the template"
            )
        self._tokens = {name: special_tokens[name] for name in used}
        self.definition = json.dumps([text, self._tokens])
        """All that decides what is written."""

    def render(self, messages: Sequence[Any], add_generation_prompt: bool) -> str:
        """The text of messages; with `add_generation_prompt`, up to where the assistant's words come.

        Raises:
            TemplateFailed: the template does not take them. It is a program, and whatever it does wrong is
                told.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except Exception as error:
            what = str(error) or "no reason given"
            raise TemplateFailed(f"{type(error).__name__}: {what}") from None


def _environment() -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What stands between `{% generation %}` and `{% endgeneration %}` is written as it is."""

        tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
