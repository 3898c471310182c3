"""The four families against transformers: logits of random weights, through pages, in batches of unequal lengths."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.ops import discovery
from ambidex.ops.layouts import PAGES_PHSD
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.state import Attending, Pages, StateGroup
from ambidex.ops.types import ONE_DEVICE, Layout
from ambidex.runtime.batch import Batch
from ambidex.runtime.checkpoint import Checkpoint
from ambidex.runtime.config import read_config
from ambidex.runtime.loading import load_weights, trace
from ambidex.runtime.model import find_model

CPU = torch.device("cpu")
PAGE_SIZE, NUM_PAGES = 4, 24
LENGTHS, NUM_DECODED = (9, 1, 17), 4

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def rope(theta: float = 10_000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-grouped": ("llama", {}),
    "llama-heads-of-10-tied": ("llama", {"head_dim": 10, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-heads-of-20-biases": ("llama", {"head_dim": 20, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", rope(rope_type="linear", factor=2.5)),
    "llama-llama3": ("llama", {**rope(500_000.0, **LLAMA3, original_max_position_embeddings=16), "head_dim": 32}),
    "llama-yarn": ("llama", {**rope(**YARN), "head_dim": 32}),
    "llama-yarn-mscale": ("llama", rope(**YARN, mscale=0.7, mscale_all_dim=1.2, beta_fast=4.0, truncate=False)),
    "llama-yarn-attention-factor": ("llama", rope(**YARN, attention_factor=1.3)),
    "mistral-window": ("mistral", {"sliding_window": 6, "num_key_value_heads": 1}),
    "mistral-whole-tied": ("mistral", {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 20}),
    "mistral-llama3": ("mistral", {"sliding_window": 64, **rope(**LLAMA3, original_max_position_embeddings=8)}),
    "qwen2-biases": ("qwen2", {"num_key_value_heads": 4}),
    "qwen2-upper-windows-tied": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2-window-unused": ("qwen2", {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2-yarn": ("qwen2", rope(1_000_000.0, **YARN)),
    "qwen3-norms": ("qwen3", {"head_dim": 20}),
    "qwen3-alternating-windows": (
        "qwen3",
        {
            "use_sliding_window": True, "sliding_window": 5, "attention_bias": True, "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3-linear": ("qwen3", {**rope(rope_type="linear", factor=4.0), "head_dim": 10, "num_key_value_heads": 1}),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small wait longer for a second thread than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unwritten(group: StateGroup) -> Pages:
    """Pages full of NaN: what is read and was not written shows."""
    shapes = {plane: PAGES_PHSD.shape(plane, NUM_PAGES, PAGE_SIZE) for plane in group.planes}
    planes = {plane.name: torch.full(shape, torch.nan, dtype=plane.dtype) for plane, shape in shapes.items()}
    return Pages(group, planes, PAGES_PHSD, PAGE_SIZE)


class Runner:
    """A loaded model with pages of its own."""

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.float32, layouts: Mapping[str, Layout] | None = None
    ) -> None:
        config = replace(read_config(folder), dtype=dtype)
        model_class = find_model(config.model_type)
        parameters = model_class.parameters(config)
        weights = load_weights(Checkpoint.open(folder), parameters, layouts or {}, dtype, CPU, explicit_dtype=True)
        self.model = model_class(config, weights, CPU)
        self.ops = ReferenceOps(discovery.ops())
        self.state = {
            group.name: [unwritten(group) for _ in range(group.num_layers)] for group in model_class.groups(config)
        }
        self.lengths = [0] * len(LENGTHS)
        pages = random.Random(5).sample(range(NUM_PAGES), NUM_PAGES)
        share = NUM_PAGES // len(LENGTHS)
        self.tables = [pages[index * share : (index + 1) * share] for index in range(len(LENGTHS))]

    def step(self, spans: Sequence[Sequence[int]], **more: Any) -> list[torch.Tensor]:
        """Logits of every token of the spans, one span a request (none, if it is empty)."""
        logits = self.model.forward(self.batch(spans, **more), None, self.state, self.ops, ONE_DEVICE)
        assert logits.dtype == torch.float32
        return list(logits.split([len(span) for span in spans]))

    def batch(self, spans: Sequence[Sequence[int]], **more: Any) -> Batch:
        active = [index for index, span in enumerate(spans) if span]
        positions, slots, starts = [], [], [0]
        for index in active:
            for _ in spans[index]:
                position = self.lengths[index]
                positions.append(position)
                slots.append(self.tables[index][position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE)
                self.lengths[index] += 1
            starts.append(len(positions))
        attending = Attending(
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor([self.lengths[index] for index in active], dtype=torch.int32),
            torch.tensor([self.tables[index] for index in active], dtype=torch.int32),
            max(len(span) for span in spans),
        )
        return Batch(
            torch.tensor([token for span in spans for token in span]),
            torch.tensor([positions]),
            {name: torch.tensor(slots) for name in self.state},
            dict.fromkeys(self.state, attending),
            torch.arange(len(positions)),
            **more,
        )


def texts() -> list[list[int]]:
    generator = random.Random(11)
    return [[generator.randrange(101) for _ in range(length + NUM_DECODED)] for length in LENGTHS]


def run(runner: Runner) -> list[torch.Tensor]:
    """All logits of `texts`: two requests first, the third while they decode, then decoding together."""
    first, second, third = texts()
    a, b, c = LENGTHS
    steps = [
        runner.step([first[:a], second[:b], []]),
        runner.step([first[a : a + 1], second[b : b + 1], third[: c - 5]]),
        runner.step([first[a + 1 : a + 2], [], third[c - 5 : c]]),
    ]
    steps += [runner.step([first[a + 2 + i : a + 3 + i], [], third[c + i : c + i + 1]]) for i in range(2)]
    steps.append(runner.step([[], second[b + 1 :], third[c + 2 :]]))
    return [torch.cat([step[index] for step in steps]) for index in range(3)]


@torch.no_grad()
def wanted(model: Any) -> list[torch.Tensor]:
    return [model(torch.tensor([text]), use_cache=False).logits[0].float() for text in texts()]


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest deviation over the largest logit."""
    difference = torch.cat(found) - torch.cat(expected)
    return float(difference.abs().max() / torch.cat(expected).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, make_model: Callable[..., Any], tmp_path: Path) -> None:
    model_type, fields = CASES[case]
    model = make_model(model_type, **fields)
    model.save_pretrained(tmp_path)
    runner = Runner(tmp_path)
    assert error(run(runner), wanted(model)) <= 1e-4


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_bfloat16_shards(model_type: str, make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model(model_type, sliding_window=6) if model_type == "mistral" else make_model(model_type)
    expected = wanted(model)
    model.bfloat16().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert read_config(tmp_path).dtype == torch.bfloat16
    assert error(run(Runner(tmp_path, torch.bfloat16)), expected) <= 0.04
    wide = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert error(run(Runner(tmp_path, torch.float32)), wanted(wide)) <= 1e-4


def test_partial_rotation(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """Rotating 6 of 12 dimensions is rotating all, with rows reordered and the other frequencies 0."""
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(config.replace("{", '{"partial_rotary_factor": 0.5, ', 1), encoding="utf-8")
    assert read_config(tmp_path).rotated == 6
    order = torch.tensor([0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11])
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            heads = projection.weight.data.view(-1, 12, 48)
            projection.weight.data = heads[:, order].reshape(-1, 48)
    model.model.rotary_emb.inv_freq = torch.cat([10_000.0 ** -(torch.arange(3) / 3), torch.zeros(3)])
    assert error(run(Runner(tmp_path)), wanted(model)) <= 1e-4


def test_embeddings_replace_ids(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model("qwen3")
    model.save_pretrained(tmp_path)
    ids, replaced = [5, 6, 7, 8], [5, 70, 7, 80]
    values = model.model.embed_tokens.weight.data[[80, 70]]
    given = {"embedding_rows": torch.tensor([3, 1]), "embedding_values": values}
    found = Runner(tmp_path).step([ids, [], []], **given)[0]
    assert torch.equal(found, Runner(tmp_path).step([replaced, [], []])[0])
    assert not torch.equal(found, Runner(tmp_path).step([ids, [], []])[0])


def test_sites(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model(*CASES["qwen3-alternating-windows"][:1], **CASES["qwen3-alternating-windows"][1]).save_pretrained(
        tmp_path
    )
    config = read_config(tmp_path)
    sites = {site.name: site for site in trace(find_model("qwen3"), config, torch.bfloat16)}
    counts = {name: site.num_layers for name, site in sites.items()}
    assert counts == {
        "rotation@rotated_12": 1, "embedding@embed": 1, "norm_qkv_rope_store@kv_window": 2,
        "paged_attention@kv_window": 2, "linear_add@layers.*.o": 3, "gated_linear@layers.*.gate_up": 3,
        "linear_add@layers.*.down": 3, "norm_qkv_rope_store@kv": 1, "paged_attention@kv": 1, "norm_linear@embed": 1,
        "sample@logits": 1,
    }  # fmt: skip
    logits = {name for name, site in sites.items() if site.rows == "logits"}
    assert logits == {"norm_linear@embed", "sample@logits"}
    assert sites["norm_linear@embed"].dtypes["y"] == torch.float32
    parts = [part.name for part in sites["norm_qkv_rope_store@kv_window"].parts]
    assert parts == ["norm_linear@layers.*.qkv", "qkv_rope_store@kv_window"]
    assert sites["paged_attention@kv"].group.planes[0].dtype == torch.bfloat16  # type: ignore[union-attr]
