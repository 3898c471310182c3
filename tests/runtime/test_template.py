"""Chat templates: Hugging Face's extras work, hostile ones do not get out, arguments are allow-listed."""

from __future__ import annotations

import pytest
from ambidex.runtime.errors import RequestError
from ambidex.runtime.template import ChatTemplate

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


@pytest.mark.parametrize("name", ["tokenize", "messages_", "bos_token", "chat_template"])
def test_arguments_off_the_list_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="not allowed"):
        render("x", **{name: True})


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(RequestError, match="no chat template"):
        ChatTemplate(None, {}).render(MESSAGES)


@pytest.mark.parametrize("messages", [[], ["hi"], [{"content": "x"}], [{"role": "user", "content": 3}]])
def test_messages_are_checked(messages: list[object]) -> None:
    with pytest.raises(RequestError):
        ChatTemplate("x", {}).render(messages)  # type: ignore[arg-type]
