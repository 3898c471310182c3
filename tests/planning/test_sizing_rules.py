"""The rules of thumb by which engineers size a 70B model, against the bytes: docs/results.md shows both."""

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.planning.answer import Answer, Degree, answer
from ambidex.planning.deployment import Deployment
from ambidex.planning.precision import precision
from ambidex.planning.question import Question
from ambidex.planning.subject import sized_subject

K = 1024


def planned(params: str, profile_name: str, form: str, kv_format: str, context: int, concurrency: int) -> Answer:
    profile = load(profile_name)
    stored = precision(form, profile, kv_format)
    assert not isinstance(stored, str)
    question = Question(context=context, concurrency=concurrency, kv_format=kv_format)
    return answer(sized_subject(params), profile, stored, question)


def chosen(found: Answer) -> tuple[int, Deployment]:
    assert found.chosen is not None
    assert found.chosen.deployment is not None
    return found.chosen.tensor_parallel, found.chosen.deployment


def degree(found: Answer, ranks: int) -> Degree:
    return next(each for each in found.degrees if each.tensor_parallel == ranks)


def test_70b_in_16_bits_is_141_gb_and_two_h100() -> None:
    """'About 140 GB, two H100': true, with room for 27 requests of 1,200 tokens beside."""
    ranks, deployment = chosen(planned("70B", "nvidia-h100-sxm", "bf16", "bf16", 8 * K, 1))
    assert ranks == 2
    assert deployment.weight_bytes == pytest.approx(141.1e9, rel=1e-3)
    assert deployment.kv_cache_tokens // 1200 == 27


@pytest.mark.parametrize(("kv_format", "whole_gb"), [("bf16", 1374), ("fp8", 687)])
def test_the_kv_cache_of_128k_and_32_requests(kv_format: str, whole_gb: int) -> None:
    """'Another 50 to 80 GB': that is 4 to 6 % of full contexts (keys in FP8: 7 to 12 %)."""
    found = planned("70B", "nvidia-h100-sxm", "bf16", kv_format, 128 * K, 32)
    deployment = degree(found, 8).deployment
    assert deployment is not None
    whole = deployment.kv_bytes_per_token * 128 * K * 32
    assert whole / 1e9 == pytest.approx(whole_gb, abs=1)
    low, high = 50e9 / whole, 80e9 / whole
    assert (low, high) == pytest.approx((0.036, 0.058) if kv_format == "bf16" else (0.073, 0.116), abs=0.001)
    assert found.chosen is None


@pytest.mark.parametrize(
    ("kv_format", "context", "ranks", "held_percent", "missing_gib", "enough"),
    [
        ("fp8", 32 * K, 2, 46, 43.4, 4),
        ("fp8", 128 * K, 4, 33, 107.1, None),
        ("bf16", 32 * K, 2, 23, 123.4, 8),
        ("bf16", 128 * K, 4, 17, 267.1, None),
    ],
)
def test_70b_in_fp8_holds_32_requests_only_in_part(
    kv_format: str, context: int, ranks: int, held_percent: int, missing_gib: float, enough: int | None
) -> None:
    """'32K and 32 requests: TP 2, 128K: TP 4': if requests fill this share of their contexts on average."""
    found = planned("70B", "nvidia-h100-sxm", "fp8", kv_format, context, 32)
    at_rule = degree(found, ranks)
    assert not at_rule.fits
    assert round(100 * at_rule.held_share) == held_percent
    assert at_rule.missing_bytes / 2**30 == pytest.approx(missing_gib, abs=0.1)
    assert (found.chosen.tensor_parallel if found.chosen else None) == enough
    filled = int(at_rule.held_share * context) // 64 * 64
    assert chosen(planned("70B", "nvidia-h100-sxm", "fp8", kv_format, filled - 128, 32))[0] <= ranks


def test_70b_in_4_bits_is_one_h100() -> None:
    """'35 GB, one H100': the layers are 35.3 GB; tables and head in 16 bits make it 39.5 GB."""
    ranks, deployment = chosen(planned("70B", "nvidia-h100-sxm", "int4", "bf16", 1200, 32))
    assert ranks == 1
    assert deployment.weight_bytes == pytest.approx(39.5e9, rel=1e-3)
    assert deployment.weight_bytes - deployment.part.table_bytes == pytest.approx(35.3e9, rel=1e-3)
    assert deployment.ledger.predicted["KV cache"] / 2**30 == pytest.approx(33.1, abs=0.1)


def test_120b_in_16_bits_is_one_mi325x_for_few_requests() -> None:
    """'A 120B in FP16 on one card': what is left holds 22 requests of 1,200 tokens, 32 need a second card."""
    ranks, deployment = chosen(planned("120B", "amd-mi325x", "bf16", "bf16", 1200, 16))
    assert ranks == 1
    assert deployment.weight_bytes == pytest.approx(239.6e9, rel=1e-3)
    assert deployment.kv_cache_tokens // 1200 == 22
    assert chosen(planned("120B", "amd-mi325x", "bf16", "bf16", 1200, 32))[0] == 2
