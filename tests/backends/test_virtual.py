"""The virtual backend: its clock goes on only as told, and it is never chosen to run a model."""

from __future__ import annotations

import pytest
import torch
from ambidex.backends import choosing
from ambidex.backends.contract import BackendError
from ambidex.backends.virtual_clock import VirtualBackend
from ambidex.hwprofiles.match import DeviceReport
from ambidex.hwprofiles.reader import load
from hypothesis import given
from hypothesis import strategies as st

META = torch.device("meta")
REPORT = DeviceReport("virtual")


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6))))
def test_the_clock_goes_on_as_told_and_never_back(moves: list[tuple[bool, float]]) -> None:
    device = VirtualBackend(now_s=5.0)
    for is_work, value in moves:
        before = device.clock()
        device.advance(value) if is_work else device.idle_until(value)
        assert device.clock() == (before + value if is_work else max(before, value))
    assert device.clock() >= 5.0


@pytest.mark.parametrize("seconds", [-1e-9, float("nan")])
def test_it_does_not_go_back(seconds: float) -> None:
    with pytest.raises(BackendError, match="a clock cannot go on by"):
        VirtualBackend().advance(seconds)


def test_what_is_launched_takes_the_time_that_is_said_of_it() -> None:
    device = VirtualBackend(load("nvidia-h200-sxm"))
    assert device.elapsed_s(lambda: device.advance(0.25), META) == 0.25


def test_it_stands_for_a_device_of_its_profile() -> None:
    profile = load("amd-mi300x")
    device = VirtualBackend(profile)
    assert device.profile(REPORT).profile is profile
    assert device.memory(META).free_bytes == int((profile.memory.usable_gib or 0) * 2**30)
    assert device.read_bandwidth_gb_per_s(META) == profile.memory.bandwidth_gb_per_s.best
    assert device.device(REPORT).type == "meta"
    assert not device.captures


@pytest.mark.parametrize("ask", [lambda device: device.memory(META), lambda device: device.profile(REPORT)])
def test_without_a_profile_it_says_so(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(BackendError, match="give the virtual backend a profile"):
        ask(VirtualBackend())


def test_what_only_a_host_knows_is_not_invented() -> None:
    with pytest.raises(BackendError, match="only the host knows"):
        VirtualBackend(load("cpu-avx2")).memory(META)


def test_it_is_found_and_never_chosen() -> None:
    found = choosing.found()["virtual"]
    assert found.probe() == ()
    assert "ambidex simulate" in (found.missing() or "")
    assert all(place.backend.name != "virtual" for place in choosing.places())
    with pytest.raises(BackendError, match="virtual cannot be used: it is a clock and no device"):
        choosing.best("virtual")
