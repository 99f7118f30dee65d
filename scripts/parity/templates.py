"""Chat templates in the style of well-known models, rendered by transformers' Jinja.

Each template exists twice: as models ship it, and with `{% generation %}` around what the assistant says (its content
and its end-of-turn token). Both must render alike; the second gives the spans that a loss mask is made of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import write_json
from transformers.utils.chat_template_utils import render_jinja_template

Message = dict[str, Any]

CHATML = """\
{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant' + '\\n' }}\
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {% elif message['role'] == 'assistant' %}
        {{- ' ' -}}{% generation %}{{- content.strip() + ' ' + eos_token -}}{% endgeneration %}
    {% endif %}
{% endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role not in ["user", "assistant"] %}
        {{- raise_exception("Only user and assistant roles are supported, got: " + message.role) }}
    {%- endif %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message["role"] == "user" %}
        {%- if message == user_messages[-1] and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " }}
        {%- generation %}
            {{- message["content"]|trim + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

QWEN = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' }}{% if role == 'model' %}\
{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{% else %}\
{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Written in features the others do not use: macros, items(), tojson, inline if, joins, title(), loop controls.
FEATURES = """\
{%- macro head(role, n) -%}
    ### {{ role.title() }} {{ n }}{{ ':' if n < 3 else ' (later):' }}
{%- endmacro -%}
{%- set tags = {'system': 'S', 'user': 'U', 'assistant': 'A'} -%}
{%- for key, value in tags.items() %}{{ key }}={{ value }}{{ ', ' if not loop.last }}{% endfor %}
{{ [bos_token, 'v1'] | join('/') }}
{% for message in messages %}
    {%- if message.content | length == 0 %}{% continue %}{% endif %}
    {{- '\\n' if not loop.first }}{{ head(message.role, loop.index) }}
{# a comment leaves no trace #}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content.strip() }}{{ eos_token }}{% endgeneration %}
    {%- elif message.role == 'system' %}
        {{- {'content': message.content} | tojson }}
    {%- else %}
        {{- message['content'].replace('\\t', '    ').rstrip() ~ '' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '\\n' + head('assistant', messages | length + 1) }}
{%- endif %}
"""

CONVERSATIONS: dict[str, list[Message]] = {
    "one_turn": [
        {"role": "user", "content": "What is the capital of Korea?"},
        {"role": "assistant", "content": "Seoul."},
    ],
    "korean": [
        {"role": "system", "content": "당신은 친절한 도우미입니다."},
        {"role": "user", "content": "민수는 사과를 몇 개 가지고 있나요? 🍎🍎🍎"},
        {"role": "assistant", "content": "민수는 사과를 세 개 가지고 있어요. 👍"},
        {"role": "user", "content": "고마워요!"},
        {"role": "assistant", "content": "천만에요 — 언제든지 물어보세요."},
    ],
    "spaces": [
        {"role": "user", "content": "  leading and trailing  \n\n"},
        {"role": "assistant", "content": "\n one line \n\tand another  "},
        {"role": "user", "content": "<b>\"quotes\" & 'apostrophes'</b> {{ not a template }} {% nor this %}"},
        {"role": "assistant", "content": "a \\ b <|im_end|> c"},
    ],
    "same_twice": [
        {"role": "user", "content": "네"},
        {"role": "assistant", "content": "네"},
        {"role": "user", "content": "네"},
        {"role": "assistant", "content": "네"},
    ],
    "thinking": [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "<think>\n2 + 2 = 4\n</think>\n\n4"},
    ],
    "open": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "안녕"}],
}


@dataclass(frozen=True)
class Style:
    template: str
    bos_token: str
    eos_token: str


STYLES = {
    "chatml": Style(CHATML, "", "<|im_end|>"),
    "llama2": Style(LLAMA2, "<s>", "</s>"),
    "llama3": Style(LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": Style(MISTRAL, "<s>", "</s>"),
    "qwen": Style(QWEN, "", "<|im_end|>"),
    "gemma": Style(GEMMA, "<bos>", "<end_of_turn>"),
    "features": Style(FEATURES, "<s>", "</s>"),
}


def untagged(template: str) -> str:
    """The template without its generation tags, as most models ship it. Their whitespace control is kept by leaving
    an empty comment in their place."""
    return re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{#\1 \2#}", template)


def byte_spans(text: str, spans: list[tuple[int, int]]) -> list[list[int]]:
    """Character positions to UTF-8 byte positions."""
    return [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans]


def render(style: Style, template: str, messages: list[Message], prompt: bool) -> dict[str, Any]:
    """One rendering, or the error a template raised on purpose."""
    from jinja2.exceptions import TemplateError

    try:
        (text,), spans = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=prompt,
            return_assistant_tokens_mask="generation" in template, bos_token=style.bos_token,
            eos_token=style.eos_token,
        )
    except TemplateError as error:
        return {"error": str(error)}
    return {"text": text, "spans": byte_spans(text, spans[0] if spans else [])}


def cases(style: Style) -> list[dict[str, Any]]:
    found = []
    for name, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            tagged = render(style, style.template, messages, prompt)
            plain = render(style, untagged(style.template), messages, prompt)
            assert tagged.get("text") == plain.get("text"), (name, tagged, plain)
            found.append({"conversation": name, "add_generation_prompt": prompt, **tagged})
    return found


def write_all(out: Path) -> None:
    write_json(out / "conversations.json", CONVERSATIONS)
    for name, style in STYLES.items():
        write_json(
            out / f"{name}.json",
            {
                "tagged": style.template,
                "plain": untagged(style.template),
                "bos_token": style.bos_token,
                "eos_token": style.eos_token,
                "cases": cases(style),
            },
        )
