"""Chat templates: Hugging Face's extras work, hostile ones do not get out, arguments are allow-listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ambidex.runtime.embedded.location import folder
from ambidex.runtime.errors import CheckpointCorrupt, RequestError
from ambidex.runtime.template import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from ambidex.runtime.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]


def render(source: str, **kwargs: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES, **kwargs)  # type: ignore[arg-type]


def test_extras_of_hugging_face() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}\n"
        "  {% if m.role == 'tool' %}{% continue %}{% endif %}\n"
        "{{ m.role }}: {{ {'a': '<b>'} | tojson }}{% generation %}!{% endgeneration %}\n"
        "{% endfor %}{% if add_generation_prompt %}go{% endif %}"
    )
    assert render(source) == '<s>user: {"a": "<b>"}!go'


def test_the_template_can_refuse() -> None:
    with pytest.raises(RequestError, match="only one turn"):
        render("{{ raise_exception('only one turn') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__['os'] }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% if %}",
    ],
)
def test_hostile_templates_are_an_error_of_the_request(source: str) -> None:
    with pytest.raises(RequestError, match="chat template refuses"):
        render(source)


def test_a_long_complaint_is_cut_to_one_line() -> None:
    with pytest.raises(RequestError) as caught:
        render("{{ raise_exception('a\nb' * 10000) }}")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"[]", "is not a tokenizer"),
        ("tokenizer.json", b'{"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}',
         "is not a tokenizer"),
        ("tokenizer_config.json", b'{"a":' + b"[" * 100_000, "is nested too deep"),
        ("tokenizer_config.json", b"\xff\xfe", "is not JSON"),
        ("chat_template.jinja", b"\xff\xfe", "is not UTF-8"),
        ("chat_template.jinja", b"x" * (4 * MAX_TEMPLATE_CHARACTERS + 1), "more than any chat template"),
    ],
    ids=["no object", "a panic of Rust", "deep", "no JSON", "no text", "too long"],
)  # fmt: skip
def test_files_that_are_not_what_they_should_be(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    shutil.copy(folder() / "tokenizer.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=said):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenize", "messages_", "bos_token", "chat_template"])
def test_arguments_off_the_list_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="not allowed"):
        render("x", **{name: True})


def test_a_tokenizer_file_neither_cuts_nor_fills_prompts(tmp_path: Path) -> None:
    content = json.loads((folder() / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "x",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer(tmp_path).encode("import os") == Tokenizer(folder()).encode("import os")


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate(None, {}).render(MESSAGES)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"content": "x"}], [{"role": "user", "content": 3}]])
def test_messages_are_checked(messages: list[object]) -> None:
    with pytest.raises(RequestError):
        ChatTemplate("x", {}).render(messages)  # type: ignore[arg-type]
