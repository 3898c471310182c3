"""Which device is taken: found by listing, refused by version, ranked by certainty, overridden by name."""

from __future__ import annotations

import pytest
import torch
from ambidex.backends import choosing
from ambidex.backends.contract import CONTRACT_VERSION, Backend, BackendError, Memory
from ambidex.hwprofiles.match import DeviceReport
from ambidex.ops import discovery

H100 = DeviceReport("nvidia", "sm_90", 132, 0x2330, 85_520_809_984, "H100")
H200 = DeviceReport("nvidia", "sm_90", 132, 0x2335, 150_754_820_096, "H200", index=1)
CUT = DeviceReport("nvidia", "sm_90", 60, None, 40 << 30, "a slice of something", index=2)
UNKNOWN = DeviceReport("nvidia", "sm_61", 20, None, 8 << 30, "old", index=3)
HOST = DeviceReport("cpu", "x86_64", 2, None, 16 << 30, "host", frozenset({"avx2", "fma", "f16c"}))


class Recorded(Backend):
    """A backend whose devices were written down."""

    contract_version = 1

    def __init__(self, name: str, *reports: DeviceReport, missing: str | None = None) -> None:
        self.name, self._reports, self._missing = name, reports, missing

    def missing(self) -> str | None:
        return self._missing

    def probe(self) -> tuple[DeviceReport, ...]:
        return self._reports

    def device(self, report: DeviceReport) -> torch.device:
        return torch.device("cpu")

    def memory(self, device: torch.device) -> Memory:
        return Memory(1, 1)


def known(*backends: Backend) -> dict[str, Backend]:
    return {backend.name: backend for backend in backends}


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choosing.DEVICE_VARIABLE, raising=False)


def test_the_files_here_are_found() -> None:
    assert set(choosing.found()) >= {"cpu", "cuda", "rocm"}
    assert all(name == backend.name for name, backend in choosing.found().items())
    assert {backend.contract_version for backend in choosing.found().values()} == {CONTRACT_VERSION}


def test_this_machine_has_a_best_device() -> None:
    place = choosing.best()
    assert place.match.profile is not None
    assert place.backend.missing() is None


def test_an_accelerator_with_a_profile_comes_before_the_cpu() -> None:
    backends = known(Recorded("cpu", HOST), Recorded("cuda", UNKNOWN, CUT, H100, H200))
    assert [place.name for place in choosing.places(backends)] == ["cuda:1", "cuda:0", "cuda:2", "cpu:0", "cuda:3"]
    assert choosing.best(backends=backends).report is H200


def test_an_accelerator_without_a_profile_does_not() -> None:
    backends = known(Recorded("cpu", HOST), Recorded("cuda", UNKNOWN))
    assert choosing.best(backends=backends).report is HOST
    with pytest.raises(BackendError, match="cuda:3 has no profile: no profile for nvidia sm_61: describe it"):
        choosing.best("cuda", backends)


def test_a_backend_that_is_missing_is_passed_over() -> None:
    backends = known(Recorded("cpu", HOST), Recorded("cuda", H200, missing="no driver: install one"))
    assert choosing.best(backends=backends).backend.name == "cpu"
    with pytest.raises(BackendError, match="cuda cannot be used: no driver: install one"):
        choosing.best("cuda:1", backends)


def test_a_name_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = known(Recorded("cpu", HOST), Recorded("cuda", H100, H200))
    assert choosing.best("cpu", backends).report is HOST
    assert choosing.best("cuda:0", backends).report is H100
    monkeypatch.setenv(choosing.DEVICE_VARIABLE, "cuda:0")
    assert choosing.best(backends=backends).report is H100
    assert choosing.best("cpu", backends).report is HOST


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", "no backend is called 'gpu': there are cpu, cuda"),
        ("cuda:7", "there is no device cuda:7: cuda has cuda:1, cuda:0"),
        ("cuda:", "there is no device cuda:: cuda has"),
        ("cpu:x", "there is no device cpu:x: cpu has cpu:0"),
    ],
)
def test_a_wrong_name_says_what_there_is(name: str, said: str) -> None:
    backends = known(Recorded("cpu", HOST), Recorded("cuda", H100, H200))
    with pytest.raises(BackendError, match=said):
        choosing.best(name, backends)


def test_nothing_at_all() -> None:
    with pytest.raises(BackendError, match="no device can be used here"):
        choosing.best(backends=known(Recorded("cuda", missing="no")))


class Newer(Recorded):
    contract_version = CONTRACT_VERSION + 1


class Older(Recorded):
    contract_version = CONTRACT_VERSION - 1


def test_another_version_of_the_contract_is_refused() -> None:
    with pytest.raises(BackendError, match=r"backend x speaks contract 2, this ambidex speaks 1: update ambidex"):
        choosing.checked(Newer("x"))
    with pytest.raises(BackendError, match=r"backend x speaks contract 0, this ambidex speaks 1: update x"):
        choosing.checked(Older("x"))
    with pytest.raises(BackendError, match="backend object speaks contract None"):
        choosing.checked(object())


def test_plugins_are_found_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: dict[str, Backend] = {"tpu": Recorded("tpu", HOST)}
    monkeypatch.setattr(discovery, "plugins", lambda group: offered if group == "backends" else {})
    assert "tpu" in choosing.found.__wrapped__()
    offered["twice"] = Recorded("cpu", HOST)
    with pytest.raises(BackendError, match="two backends are called cpu"):
        choosing.found.__wrapped__()
    del offered["twice"]
    offered["new"] = Newer("new")
    with pytest.raises(BackendError, match="backend new speaks contract 2"):
        choosing.found.__wrapped__()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("missing", 0), ("probe", 0), ("device", 1), ("memory", 1), ("synchronize", 1), ("read_bandwidth_gb_per_s", 1)],
)
def test_what_must_be_written_says_so(method: str, arguments: int) -> None:
    backend = Backend()
    backend.name = "new"
    with pytest.raises(NotImplementedError, match=rf"new: write {method}\("):
        getattr(backend, method)(*[None] * arguments)
