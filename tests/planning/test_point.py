"""An operating point: throughput, latency and cost agree with one another and with what limits them."""

from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.planning.deployment import Deployment, deploy
from ambidex.planning.memory import Demand
from ambidex.planning.point import Load, capacity, decode_step, point, prompt_s
from ambidex.planning.precision import precision
from ambidex.planning.subject import sized_subject

LOAD = Load(1000, 200)


def deployed(profile_name: str = "nvidia-h200-sxm", seqs: int = 4096) -> Deployment:
    profile = load(profile_name)
    stored = precision("bf16", profile)
    assert not isinstance(stored, str)
    found = deploy(sized_subject("8B"), profile, stored, 1, Demand(LOAD.longest, max_num_seqs=seqs))
    assert isinstance(found, Deployment)
    return found


DEPLOYMENT = deployed()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_tokens_a_second_by_hand(batch: int) -> None:
    """Every request gets an answer of n tokens and a prompt; between them nothing is lost."""
    found = point(DEPLOYMENT, batch, LOAD)
    _, added = prompt_s(DEPLOYMENT, LOAD.input_len, batch - 1, LOAD.input_len + LOAD.output_len / 2)
    round_s = LOAD.output_len * found.decode.seconds + batch * added
    assert found.tokens_per_s == pytest.approx(batch * LOAD.output_len / round_s)
    assert found.tpot_s == pytest.approx(batch / found.tokens_per_s)


def test_more_at_once_is_more_throughput_and_more_latency() -> None:
    # From two on: a request alone shares its prompt's read of the weights with no other's token.
    points = [point(DEPLOYMENT, batch, LOAD) for batch in (2, 8, 32, 128)]
    assert [each.tokens_per_s for each in points] == sorted(each.tokens_per_s for each in points)
    assert [each.tpot_s for each in points] == sorted(each.tpot_s for each in points)
    assert [each.ttft_s for each in points] == sorted(each.ttft_s for each in points)


def test_a_longer_prompt_takes_longer_and_chunks_add_up() -> None:
    times = [prompt_s(DEPLOYMENT, length, 0, 0)[0] for length in (100, 2048, 2049, 20_000)]
    assert times == sorted(times)
    total, added = prompt_s(DEPLOYMENT, 5000, 3, 500)
    assert added == pytest.approx(total - 3 * decode_step(DEPLOYMENT, 3, 500).seconds)


def test_what_has_room_and_what_limits() -> None:
    small = deployed("nvidia-h100-sxm")
    most = capacity(small, LOAD)
    pages = -(-LOAD.longest // small.page_size)
    assert most * pages * small.page_size <= small.kv_cache_tokens + small.page_size
    assert most < small.max_num_seqs
    assert point(small, most, LOAD, wanted=small.max_num_seqs).limit == "memory"
    assert point(small, 1, LOAD, wanted=1).limit == "bandwidth"
    assert capacity(deployed(seqs=8), LOAD) == 8


def test_costs() -> None:
    found = point(DEPLOYMENT, 8, LOAD)
    assert found.eur_per_million_tokens(3.6) == pytest.approx(3.6 / 3600 * 1e6 / found.tokens_per_s)
    assert found.kj_per_million_tokens(700) == pytest.approx(700 * 1e3 / found.tokens_per_s)
    assert found.eur_per_million_tokens(None) is None
    assert found.kj_per_million_tokens(None) is None


def test_very_many_chunks_are_told_by_some_of_them() -> None:
    small = replace(DEPLOYMENT, token_budget=16)
    chunks = [(first, min(16, 20_001 - first)) for first in range(0, 20_001, 16)]
    exact = sum(small.step_time.seconds(np.array([first]), np.array([count]), int(first + count == 20_001))
                for first, count in chunks)  # fmt: skip
    assert len(chunks) > 1000
    assert prompt_s(small, 20_001, 0, 0)[0] == pytest.approx(exact, rel=0.01)
    begun = perf_counter()
    prompt_s(small, 1 << 24, 0, 0)
    assert perf_counter() - begun < 1, "a million chunks"
