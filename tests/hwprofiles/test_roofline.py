"""The roofline: which limit binds, that more work never takes less time, and how many SRAM devices hold the weights."""

import pytest
from ambidex.hwprofiles.reader import load
from ambidex.hwprofiles.roofline import roofline
from hypothesis import given, settings
from hypothesis import strategies as st

PROFILES = ["nvidia-h100-sxm", "nvidia-h200-sxm", "amd-mi300x", "intel-gaudi3"]
work = st.floats(min_value=0, max_value=1e18)


def test_the_larger_side_binds() -> None:
    decode = roofline(load("nvidia-h100-sxm"), 16e9, 16e9, "bfloat16")
    assert decode.limit == "bandwidth"
    assert decode.seconds == pytest.approx(16e9 / 3350e9)
    prefill = roofline(load("nvidia-h100-sxm"), 16e9, 16e9 * 2048, "bfloat16")
    assert prefill.limit == "compute"
    assert prefill.seconds == pytest.approx(16e9 * 2048 / 989.4e12)
    assert prefill.bandwidth_seconds == decode.bandwidth_seconds


def test_sram_machines_say_how_many_hold_the_weights() -> None:
    weights_bytes = 70e9
    groq = roofline(load("groq-lpu"), weights_bytes, 140e9, "int8")
    assert groq.num_devices == 305
    assert groq.limit == "bandwidth"
    assert roofline(load("groq-lpu"), 1e6, 1e6, "int8", resident_bytes=weights_bytes).num_devices == 305
    assert roofline(load("cerebras-cs3"), weights_bytes, 140e9, "float16").num_devices == 2


def test_hbm_machines_count_devices_only_when_asked() -> None:
    assert roofline(load("amd-mi300x"), 1e9, 1e9, "bfloat16").num_devices is None
    assert roofline(load("amd-mi300x"), 1e9, 1e9, "bfloat16", resident_bytes=810e9).num_devices == 4


def test_an_unpublished_rate_sets_no_limit() -> None:
    bound = roofline(load("cerebras-cs3"), 1e9, 1e18, "float16")
    assert (bound.limit, bound.compute_seconds) == ("bandwidth", None)


def test_what_cannot_be_known_is_refused() -> None:
    with pytest.raises(ValueError, match="does not compute in float8_e4m3fn"):
        roofline(load("amd-mi300x"), 1, 1, "float8_e4m3fn")
    with pytest.raises(ValueError, match="call on_device"):
        roofline(load("cpu-amx"), 1, 1, "bfloat16")
    with pytest.raises(ValueError, match="cannot be negative"):
        roofline(load("amd-mi300x"), -1, 1, "bfloat16")


def test_a_cpu_is_bound_after_its_device_is_read() -> None:
    cpu = load("cpu-amx").on_device(units=2, clock_ghz=2.5, bandwidth_gb_per_s=25)
    assert roofline(cpu, 1e9, 2e9, "bfloat16").limit == "bandwidth"
    assert roofline(cpu, 1e9, 2e12, "bfloat16").limit == "compute"


@pytest.mark.parametrize("name", PROFILES)
@settings(deadline=None, max_examples=60)
@given(num_bytes=work, flops=work, more_bytes=work, more_flops=work)
def test_more_work_never_takes_less_time(
    name: str, num_bytes: float, flops: float, more_bytes: float, more_flops: float
) -> None:
    profile = load(name)
    less = roofline(profile, num_bytes, flops, "bfloat16")
    more = roofline(profile, num_bytes + more_bytes, flops + more_flops, "bfloat16")
    assert more.seconds >= less.seconds
    sides = {"bandwidth": less.bandwidth_seconds, "compute": less.compute_seconds}
    assert less.seconds == sides[less.limit] == max(less.bandwidth_seconds or 0, less.compute_seconds or 0)


@settings(deadline=None, max_examples=60)
@given(resident=st.floats(min_value=0, max_value=1e14), more=st.floats(min_value=0, max_value=1e14))
def test_devices_hold_what_they_are_counted_for(resident: float, more: float) -> None:
    groq = load("groq-lpu")
    num_devices = groq.devices_to_hold(resident)
    assert groq.memory.usable_gib is not None
    assert num_devices * groq.memory.usable_gib * 2**30 >= resident * (1 - 1e-12)
    assert groq.devices_to_hold(resident + more) >= num_devices >= 1
