"""The embedded model: what is shipped fits, agrees with itself, and predicts Python that it was not trained on."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import json
import math
import re
from typing import Any

import pytest
import torch
from ambidex.runtime.embedded.corpus import split_of
from ambidex.runtime.embedded.location import folder
from ambidex.runtime.embedded.network import Llama, Shape
from ambidex.runtime.embedded.vocabulary import SPECIAL_TOKENS
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file
from tokenizers import Tokenizer

FOLDER = folder()
MAX_FOLDER_BYTES = 12_000_000
MAX_CURVE_BYTES = 60_000
EXCERPT_CHARACTERS = 3000
MAX_PERPLEXITY = 10.0  # 8.1 on Python 3.11's fnmatch.py; a few lines of it differ from one Python to the next


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def excerpt_ids(tokenizer: Tokenizer) -> torch.Tensor:
    """The start of a module that every Python has and that no training text contains."""
    assert split_of("fnmatch.py") == "test"
    return torch.tensor([tokenizer.encode(inspect.getsource(fnmatch)[:EXCERPT_CHARACTERS]).ids])


@pytest.fixture(scope="module")
def reference() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def template(source: str) -> str:
    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def?"}]
    return environment.from_string(source).render(messages=messages, bos_token="<s>", add_generation_prompt=True)


def test_the_folder_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert sum(sizes.values()) <= MAX_FOLDER_BYTES
    assert 0 < sizes["loss_curve.png"] <= MAX_CURVE_BYTES


def test_the_card_names_these_weights() -> None:
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_log_ends_where_the_card_says() -> None:
    losses = [json.loads(line)["val_loss"] for line in (FOLDER / "training_log.jsonl").read_text("utf-8").splitlines()]
    card = re.search(
        r"^\| validation [^|]*\|[^|]*\| ([\d.]+) \|", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert card
    assert min(losses) < 0.9 * losses[0]
    assert math.exp(min(losses)) == pytest.approx(float(card[1]), rel=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        inspect.getsource(fnmatch),
        "class A:\n    def f(self):\n\treturn '\\t'  \n\n\n\n        # é中😀\x0c\r\n  \t x = 1   #  y\n ",
        "",
        "    ",
    ],
    ids=["module", "odd white space", "empty", "indentation"],
)
def test_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_an_indentation_is_one_token(tokenizer: Tokenizer, depth: int) -> None:
    indent = " " * 4 * depth
    assert tokenizer.encode(f"\n{indent}x", add_special_tokens=False).tokens[1] == "Ġ" * len(indent)


def test_special_ids_agree(tokenizer: Tokenizer) -> None:
    config, generation = read_json("config.json"), read_json("generation_config.json")
    names, listed = read_json("tokenizer_config.json"), read_json("special_tokens_map.json")
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert [tokenizer.id_to_token(index) for index in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)
    for name in ("bos_token", "pad_token"):
        assert tokenizer.token_to_id(names[name]) == config[f"{name}_id"] == generation[f"{name}_id"]
        assert listed[name] == names[name]
    ends = [tokenizer.token_to_id(token) for token in (names["eos_token"], "<|end|>")]
    assert ends == config["eos_token_id"] == generation["eos_token_id"]
    assert tokenizer.encode("x").ids[0] == config["bos_token_id"]


def test_the_chat_template_renders_to_special_tokens(tokenizer: Tokenizer) -> None:
    text = template(read_json("tokenizer_config.json")["chat_template"])
    assert text == "<s><|system|>Be brief.<|end|><|user|>def?<|end|><|assistant|>"
    assert tokenizer.encode(text.removeprefix("<s>")).tokens[-2:] == ["<|end|>", "<|assistant|>"]


def test_it_predicts_python_that_it_has_not_seen(reference: Any, excerpt_ids: torch.Tensor) -> None:
    with torch.no_grad():
        loss = reference(excerpt_ids, labels=excerpt_ids).loss.item()
    assert math.exp(loss) < MAX_PERPLEXITY


def test_the_training_network_is_the_llama_of_transformers(reference: Any, excerpt_ids: torch.Tensor) -> None:
    config = read_json("config.json")
    network = Llama(Shape(**{name: config[name] for name in Shape.__dataclass_fields__})).eval()
    stored = load_file(FOLDER / "model.safetensors")
    network.load_state_dict({name.removeprefix("model."): value.float() for name, value in stored.items()})
    with torch.no_grad():
        ours, theirs = network(excerpt_ids), reference(excerpt_ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
