"""A model cut over ranks: their sum is the whole, and they meet twice a layer."""

from math import prod

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.ops.step_cost import step_cost
from ambidex.planning.efficiency import DEFAULT
from ambidex.planning.links import collectives
from ambidex.planning.shards import refusal, shard
from ambidex.planning.subject import sized_subject
from ambidex.runtime.errors import ConfigError
from ambidex.runtime.loading import trace
from ambidex.runtime.model import find_model

CONFIG = sized_subject("8B").config
SPANS = [(700, 1), (0, 64), (31, 1)]


def test_one_rank_is_the_whole() -> None:
    part = shard(CONFIG)
    model = find_model("llama")
    assert part.sites == trace(model, CONFIG, CONFIG.dtype)
    assert part.table_bytes + part.layer_bytes == 2 * sum(prod(each.shape) for each in model.parameters(CONFIG))
    assert part.num_collectives == 0


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_ranks_together_are_the_whole(ranks: int) -> None:
    whole, part = shard(CONFIG), shard(CONFIG, ranks)
    assert part.layer_bytes * ranks == whole.layer_bytes
    norms = 2 * CONFIG.hidden_size * (2 * CONFIG.num_layers + 1)  # each rank keeps them
    assert (part.table_bytes - norms) * ranks == whole.table_bytes - norms
    products = {"norm_linear", "linear_add", "gated_linear", "paged_attention"}
    one, all_ranks = (step_cost([site for site in each.sites if site.op in products], SPANS) for each in (whole, part))
    assert all_ranks.num_operations * ranks == pytest.approx(one.num_operations, rel=1e-3)


def test_more_ranks_than_key_heads_keep_one_each() -> None:
    assert shard(CONFIG, 16).config.num_kv_heads == 1
    assert shard(CONFIG, 8).config.num_kv_heads == 1


@pytest.mark.parametrize("ranks", [0, -2, 3, 5, 64])
def test_an_impossible_degree_is_refused_with_the_possible(ranks: int) -> None:
    with pytest.raises(ConfigError, match="possible are 1, 2, 4, 8, 16") as caught:
        shard(CONFIG, ranks)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide() -> None:
    from dataclasses import replace

    odd = replace(CONFIG, num_heads=36, num_kv_heads=6)
    assert "key-value heads" in str(refusal(odd, 4))
    assert refusal(odd, 3) is None or "intermediate" in str(refusal(odd, 3))


def test_collectives_of_a_ring() -> None:
    profile = load("nvidia-h100-sxm")
    assert collectives(shard(CONFIG), profile, DEFAULT) is None
    found = collectives(shard(CONFIG, 4), profile, DEFAULT)
    assert found is not None
    rate = 450e9 * DEFAULT.link_share
    tensor, calls = 100 * 4096 * 2, 2 * 32
    moved = 2 * 3 / 4 * tensor * calls + 3 * 7 * 4 * 128_256 / 4
    assert found.seconds(100, 7) == pytest.approx(moved / rate + (calls + 1) * 1e-6 * DEFAULT.link_us)
    assert found.buffer_bytes(100, 7) == 2 * tensor + 4 * 7 * 4 * 128_256 // 4
