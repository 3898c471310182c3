"""Tracing: a model's calls on shapes become sites; repeated layers fold, disagreeing ones are refused."""

from typing import Any

import pytest
import torch
from ambidex.ops import discovery
from ambidex.ops.layouts import dense
from ambidex.ops.rotation import frequencies
from ambidex.ops.tracing import Recorder
from ambidex.ops.types import Weight

TOKENS, LOGITS, WIDTH = 11, 3, 32


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def weight(role: str, *shape: int, shard: str | None = None) -> Weight:
    made = dense(role, empty(*shape))
    made.shard = shard
    return made


def forward(ops: Any, num_layers: int = 2) -> Any:
    ids = torch.empty(TOKENS, dtype=torch.int64, device="meta")
    hidden = ops.embedding(ids, weight("embedding", 50, WIDTH))
    for _ in range(num_layers):
        gated = ops.gated_linear(hidden, weight("up", 128, WIDTH, shard="row:tp"), weight("norm", WIDTH), eps=1e-5)
        hidden = ops.linear_add(gated, weight("down", WIDTH, 64), hidden)
    rows = ops.norm_linear(hidden[:LOGITS], weight("final", WIDTH), weight("head", 50, WIDTH), eps=1e-5)
    return ops.silu_and_mul(rows)


def recorded(num_layers: int = 2) -> Recorder:
    recorder = Recorder(discovery.ops(), LOGITS)
    result = forward(recorder, num_layers)
    assert result.device.type == "meta"
    assert list(result.shape) == [LOGITS, 25]
    return recorder


def test_layers_of_one_role_are_one_site() -> None:
    sites = {site.name: site for site in recorded(5).sites}
    assert list(sites) == ["embedding@embedding", "gated_linear@up", "linear_add@down", "norm_linear@head",
                           "silu_and_mul@gate_up_50"]  # fmt: skip
    assert [site.num_layers for site in sites.values()] == [1, 5, 5, 1, 1]


def test_a_site_knows_its_static_side() -> None:
    site = next(site for site in recorded().sites if site.name == "gated_linear@up")
    assert (site.dim("N"), site.dim("K"), site.dim("I")) == (128, WIDTH, 64)
    assert site.dims["norm"] is True
    assert [spec.role for spec in site.weights] == ["up"]
    assert site.weights[0].format == "dense"
    assert site.weight_bytes == 128 * WIDTH * 2
    assert site.shard == "row:tp"
    assert site.dtypes["x"] == torch.bfloat16


def test_rows_are_tokens_or_logits() -> None:
    rows = {site.op: site.rows for site in recorded().sites}
    assert rows["gated_linear"] == rows["embedding"] == "tokens"
    assert rows["norm_linear"] == rows["silu_and_mul"] == "logits"


@pytest.mark.parametrize("rows", [(TOKENS, LOGITS, LOGITS), (LOGITS, TOKENS, LOGITS), (LOGITS, LOGITS, TOKENS)])
def test_a_site_counts_the_layers_whose_rows_are_logits(rows: tuple[int, ...]) -> None:
    recorder = Recorder(discovery.ops(), LOGITS)
    for size in rows:
        recorder.silu_and_mul(empty(size, 64))
    (site,) = recorder.sites
    assert (site.num_layers, site.num_logit_layers, site.rows) == (3, 2, "tokens")


def test_rows_of_a_rotation_are_its_tokens_not_its_axes() -> None:
    recorder = Recorder(discovery.ops(), num_logits=1)
    recorder.rotation(torch.empty((1, TOKENS), dtype=torch.int64, device="meta"), frequencies(8, 1e4)[0].to("meta"))
    assert recorder.sites[0].rows == "tokens"


def test_a_composite_carries_its_parts() -> None:
    site = next(site for site in recorded().sites if site.name == "gated_linear@up")
    assert [part.name for part in site.parts] == ["rms_norm@norm", "linear@up", "silu_and_mul@gate_up_128"]
    assert all(part.num_layers == 1 for part in site.parts)


def test_tracing_twice_gives_equal_sites() -> None:
    first, second = recorded().sites, recorded().sites
    assert [site.signature for site in first] == [site.signature for site in second]
    assert [site.plain() for site in first] == [site.plain() for site in second]
    assert len({hash(site.signature) for site in first}) == len(first)


def test_two_calls_of_one_name_must_agree() -> None:
    recorder = Recorder(discovery.ops(), LOGITS)
    recorder.linear(empty(TOKENS, 32), weight("w", 16, 32))
    with pytest.raises(ValueError, match="two calls of linear@w differ"):
        recorder.linear(empty(TOKENS, 64), weight("w", 16, 64))


def test_validation_speaks_while_tracing() -> None:
    with pytest.raises(ValueError, match=r"weight w is \[16, 31\], it must be \[any, 32\]"):
        Recorder(discovery.ops(), LOGITS).linear(empty(TOKENS, 32), weight("w", 16, 31))


def test_an_unknown_op_is_named_with_the_known_ones() -> None:
    recorder = Recorder(discovery.ops(), LOGITS)
    with pytest.raises(AttributeError, match=r"no op is called liner: there are .*linear"):
        recorder.liner(empty(1, 1))


def test_an_empty_step_can_be_validated() -> None:
    signature = discovery.ops()["rms_norm"].check(empty(0, WIDTH), weight("norm", WIDTH), eps=1e-5)
    assert signature.outputs == (((0, WIDTH), torch.bfloat16),)
