# SPDX-License-Identifier: Apache-2.0
"""Chat templates against transformers' own rendering; what a template does wrong is told."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.data.chat_template import PLAIN_TEMPLATE, ChatTemplate, TemplateFailed
from megatron.data.instructions import Conversation
from megatron.data.readers import Broken, Fields
from megatron.neox_arguments.errors import UserError

MESSAGES = [
    {"role": "user", "content": "a < b & c > 'd' \u00ef"},
    {"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": [True]}}]},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    "template",
    [
        PLAIN_TEMPLATE,
        "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
        "{{ messages[1].tool_calls | tojson(indent=2) }}",
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{{ bos_token }}{{ tools }}",
        "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{{ x }}"
        "{% endfor %}",
        "{% for m in messages %}{{ loop.index }}{% if true %}{% break %}{% endif %}{% endfor %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "{% if add_generation_prompt %}\n  {{- 'go' }}\n{% endif %}\n{{ messages[0]['content'][:3] }}\n",
    ],
)
@pytest.mark.parametrize("is_prompt", [True, False])
def test_the_text_is_that_of_transformers(template: str, is_prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    [[expected], _] = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=is_prompt, **TOKENS
    )
    assert ChatTemplate(template, TOKENS).render(MESSAGES, is_prompt) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content.index('#') }}", "ValueError: substring not found"),
        ("{{ messages[0].content + 1 }}", "TypeError: "),
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[0].nothing.more }}", "UndefinedError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        ("{{ messages.append(1) }}", "SecurityError: "),
        ("{{ strftime_now('%Y') }}", "'strftime_now' is undefined"),
    ],
)
def test_whatever_a_template_does_wrong_is_a_broken_line(template: str, reason: str) -> None:
    with pytest.raises(TemplateFailed, match=reason):
        ChatTemplate(template, {}).render(MESSAGES, add_generation_prompt=True)
    found = Conversation("m", template).pieces(Fields({"m": MESSAGES}, "f:7"))
    assert isinstance(found, Broken)
    assert found.where == "f:7"
    assert "the template refuses it" in found.reason


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "is not a Jinja template"),
        ("{% generation %}", "is not a Jinja template"),
        ("{{ eos_token }}", "writes eos_token, which tokenizer_config.json"),
        ("{% for m in messages %}{{ m.content + pad_token }}{% endfor %}", "writes pad_token"),
    ],
)
def test_what_no_conversation_could_be_written_with(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatTemplate(template, {})


def test_a_name_that_the_template_sets_is_its_own() -> None:
    template: Any = ChatTemplate("{% set eos_token = 'E' %}{{ eos_token }}", {})
    assert template.render([], add_generation_prompt=False) == "E"
