"""Curves: inside their points, flat beyond them; which source stands behind which share."""

import numpy as np
import pytest
from ambidex.hwprofiles.reader import load
from ambidex.ops import tuned
from ambidex.planning.deployment import Deployment, deploy
from ambidex.planning.efficiency import DEFAULT, HOST, KINDS, Curve, ceilings, efficiency, shares
from ambidex.planning.precision import precision
from ambidex.planning.subject import sized_subject
from ambidex.runtime.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

ABOVE_0 = st.floats(1e-3, 1e6, allow_nan=False)
POINTS = st.tuples(ABOVE_0, st.floats(0.01, 3.0))
CURVES = st.lists(POINTS, min_size=1, max_size=8, unique_by=lambda pair: f"{pair[0]:.6g}").map(
    lambda pairs: shares(pairs, "drawn")
)


@given(CURVES, st.floats(0.0, 1e9))
def test_a_share_lies_between_those_of_the_points_around_it(curve: Curve, value: float) -> None:
    found = curve.at(value)
    assert min(curve.shares) - 1e-9 <= found <= max(curve.shares) + 1e-9
    if value <= curve.axis[0]:
        assert found == pytest.approx(curve.shares[0])
    if value >= curve.axis[-1]:
        assert found == pytest.approx(curve.shares[-1])


@given(CURVES, st.lists(ABOVE_0, min_size=1, max_size=5))
def test_many_places_are_read_as_each_alone(curve: Curve, values: list[float]) -> None:
    assert curve.at_all(np.array(values)) == pytest.approx([curve.at(value) for value in values])


@given(CURVES)
def test_a_curve_goes_through_its_points(curve: Curve) -> None:
    assert [curve.at(at) for at in curve.axis] == pytest.approx(list(curve.shares))


def test_points_at_one_place_count_with_their_mean() -> None:
    curve = shares([(8.0, 0.2), (1.0, 0.5), (8.0, 0.4)], "two rounds")
    assert curve.axis == (1.0, 8.0)
    assert curve.shares == pytest.approx((0.5, 0.3))


@pytest.mark.parametrize(
    ("axis", "found"), [((), ()), ((1.0, 2.0), (0.5,)), ((2.0, 1.0), (0.5, 0.5)), ((0.0, 1.0), (0.5, 0.5)),
                        ((1.0,), (0.0,))]
)  # fmt: skip
def test_what_is_no_curve_is_refused(axis: tuple[float, ...], found: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="a curve \\(broken\\)"):
        Curve(axis, found, "broken")


def test_a_calibration_comes_first_and_defaults_can_be_asked_for() -> None:
    profile = load("nvidia-h200-sxm")
    assert efficiency(profile, calibrated=HOST) is HOST
    assert efficiency(profile, calibrated=HOST, only_defaults=True) is DEFAULT
    assert efficiency(load("cpu-avx512"), only_defaults=True) is HOST
    assert set(DEFAULT.curves) == set(HOST.curves) == set(KINDS)


def test_a_class_of_hosts_knows_no_ceilings_until_one_is_calibrated() -> None:
    with pytest.raises(ConfigError, match="run `ambidex calibrate`"):
        ceilings(load("cpu-avx512"), "bf16")


def test_measured_rows_are_one_point_each_and_the_default_goes_on_beyond_them() -> None:
    curve, default = efficiency(load("nvidia-h200-sxm")).curves["product"], DEFAULT.curves["product"]
    rows = {row.rows for table in tuned.tables() for row in table.rows if {"N", "K"} <= row.dims.keys()}
    measured = [at for at in curve.axis if at not in default.axis]
    assert len(measured) == len(rows)
    beyond = [at for at in default.axis if at > measured[-1]]
    assert list(curve.axis) == [*measured, *beyond]
    assert curve.at(1e3) == default.at(1e3)
    assert curve.source.startswith("measured (sm_90-132, ")
    assert curve.source.endswith(f" to intensity {measured[-1]:.2g}, then default")


def test_a_step_of_more_requests_takes_no_less() -> None:
    """A device could always compute a row for nothing."""
    wanted = precision("fp8", load("nvidia-h200-sxm"), "fp8")
    assert not isinstance(wanted, str)
    found = deploy(sized_subject("70B", "llama"), load("nvidia-h200-sxm"), wanted)
    assert isinstance(found, Deployment)
    sizes = range(1, 257)
    took = [found.step_time.seconds(np.full(size, 600), np.ones(size, dtype=np.int64), size) for size in sizes]
    assert (np.diff(took) > 0).all()


def test_a_size_that_two_ops_have_measured_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    profile, tables = load("nvidia-h200-sxm"), tuned.tables()
    before = efficiency(profile).curves["product"]
    again = [replace(table, op=f"{table.op}_again") for table in tables if table.op == "norm_linear"]
    assert again
    monkeypatch.setattr("ambidex.ops.tuned.tables", lambda: (*again, *tables))
    assert efficiency(profile).curves["product"].shares == pytest.approx(before.shares)


def test_of_the_kernels_that_were_measured_the_fastest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    profile, tables = load("nvidia-h200-sxm"), tuned.tables()
    before = efficiency(profile).curves["product"]
    for factor, is_same in ((10.0, True), (0.5, False)):
        others = [replace(table, rows=tuple(replace(row, time_us=factor * row.time_us) for row in table.rows))
                  for table in tables]  # fmt: skip
        monkeypatch.setattr("ambidex.ops.tuned.tables", lambda others=others: (*others, *tables))
        assert (efficiency(profile).curves["product"].shares == pytest.approx(before.shares)) is is_same
