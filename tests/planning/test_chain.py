"""Machines of SRAM: enough devices for all of it, and bounds that a real one stays behind."""

import math
from dataclasses import replace

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.ops.step_cost import step_cost
from ambidex.planning.chain import SOURCE, Chain, chain
from ambidex.planning.plan import plan_row
from ambidex.planning.point import Load
from ambidex.planning.precision import precision
from ambidex.planning.question import Question
from ambidex.planning.shards import shard
from ambidex.planning.subject import sized_subject

SUBJECT = sized_subject("70B")


def of(profile: str, form: str = "bf16", question: Question | None = None) -> Chain:
    numbers = load(profile)
    stored = precision(form, numbers)
    assert not isinstance(stored, str)
    return chain(SUBJECT, numbers, stored, question or Question())


def test_as_many_devices_as_hold_weights_and_keys() -> None:
    found = of("groq-lpu")
    resident = found.weight_bytes + 32 * 1200 * 327_680
    assert found.weight_bytes == 2 * SUBJECT.num_parameters
    assert found.num_devices == math.ceil(resident / (0.2142 * 2**30))
    assert of("groq-lpu", "int8").num_devices < found.num_devices
    assert of("cerebras-cs3").num_devices == 4


def test_the_bound_of_one_request_is_its_bytes_and_operations() -> None:
    found, load_ = of("groq-lpu"), Load()
    context = load_.input_len + load_.output_len // 2
    cost = step_cost(shard(SUBJECT.config).sites, [(context - 1, 1)])
    alone = found.points[0]
    assert alone.batch == 1
    assert alone.tpot_s == pytest.approx(max(cost.num_bytes / 80e12, cost.num_operations / 188e12))
    assert alone.tokens_per_s == pytest.approx(1 / alone.tpot_s)


def test_requests_fill_the_chain_before_they_slow_one_another() -> None:
    found = of("groq-lpu", "int8", Question(concurrency=4000))
    few = [each for each in found.points if each.batch <= 128]
    assert len({each.tpot_s for each in few}) == 1
    assert found.points[-1].tpot_s > few[0].tpot_s
    rates = [each.tokens_per_s for each in found.points]
    assert rates == sorted(rates)
    assert found.max_concurrency >= 4000


def test_without_a_published_rate_nothing_is_said_of_prompts() -> None:
    assert of("cerebras-cs3").at.ttft_s is None
    row = plan_row(SUBJECT, load("cerebras-cs3"), "bf16", Question())
    assert (row["fits"], row["is_bound"], row["efficiency_source"]) == (True, True, SOURCE)
    assert (row["ttft_ms"], row["min_tensor_parallel"], row["num_devices"]) == (None, None, 4)


def test_a_degree_that_says_nothing_of_a_chain_is_refused() -> None:
    row = plan_row(SUBJECT, load("groq-lpu"), "int8", Question(tensor_parallel=2))
    assert not row["fits"]
    assert "by a chain of devices" in row["reason"]


def test_the_longest_context_has_room() -> None:
    """On the fewest devices that hold 32 requests of 1,200 tokens there is none for one of 131,072."""
    found = of("groq-lpu", "int8")
    room = found.num_devices * 0.2142 * 2**30 - found.weight_bytes
    assert found.max_context_tokens == int(room // found.kv_token_bytes) < 40_000
    assert of("cerebras-cs3").max_context_tokens <= SUBJECT.config.max_positions


def test_a_window_makes_a_chains_step_cheaper() -> None:
    config = replace(SUBJECT.config, windows=(1024,) * SUBJECT.config.num_layers)
    windowed, question = replace(SUBJECT, config=config), Question(Load(30_000, 500))
    stored = precision("int8", load("groq-lpu"))
    assert not isinstance(stored, str)
    all_keys, few_keys = (chain(each, load("groq-lpu"), stored, question) for each in (SUBJECT, windowed))
    assert few_keys.at.tpot_s < all_keys.at.tpot_s
    assert (few_keys.at.ttft_s or 0.0) < (all_keys.at.ttft_s or 0.0)
