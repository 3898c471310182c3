"""The GPU backends without a GPU: recorded driver answers to reports, sensors that refuse, why nothing is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ambidex.backends import cuda, rocm
from ambidex.backends.contract import Backend
from ambidex.backends.torch_gpu import TorchGpuBackend, pci_address
from ambidex.backends.torch_graphs import Replay
from ambidex.hwprofiles.match import DeviceReport, match

FIXTURES = Path(__file__).resolve().parents[1] / "hwprofiles" / "fixtures"
RECORDED = [*sorted(FIXTURES.glob("nvidia-*.json")), *sorted(FIXTURES.glob("amd-*.json"))]
REPORTERS: dict[str, Callable[..., DeviceReport]] = {"nvidia": cuda.report_from, "amd": rocm.report_from}


def properties_of(recorded: dict[str, Any]) -> SimpleNamespace:
    """The driver's answers as torch's device properties; what another tool recorded is taken from the report."""
    report = recorded["report"]
    given = {
        "name": report["name"],
        "gcnArchName": report["arch"],
        "multi_processor_count": report["units"],
        "total_memory": report["memory_bytes"],
    }
    return SimpleNamespace(**{**given, **recorded["driver"]})


def recorded_product(recorded: dict[str, Any]) -> int | None:
    number = recorded["report"]["pci_device_id"]
    return int(number, 16) if isinstance(number, str) else number


def card(**more: object) -> SimpleNamespace:
    known = {"name": "card", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80 << 30}
    return SimpleNamespace(**{**known, **more})


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_card_gets_its_profile(path: Path) -> None:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    wanted = recorded["report"]
    report = REPORTERS[wanted["vendor"]](properties_of(recorded), recorded_product(recorded), index=3)
    assert report.index == 3
    assert report.arch == str(wanted["arch"]).partition(":")[0]
    assert (report.vendor, report.units, report.name) == (wanted["vendor"], wanted["units"], wanted["name"])
    assert (report.pci_device_id, report.memory_bytes) == (recorded_product(recorded), wanted["memory_bytes"])
    found = match(report)
    assert found.profile is not None
    assert (found.profile.name, found.kind) == (recorded["profile"], recorded["kind"])


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_missing_telemetry_changes_neither_backend_nor_profile(path: Path) -> None:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    wanted = recorded["report"]
    report = REPORTERS[wanted["vendor"]](properties_of(recorded), None)
    found = match(report)
    assert found.profile is not None
    assert found.profile.vendor == wanted["vendor"]
    assert found.profile.arch == report.arch


def test_the_slot_is_not_the_product() -> None:
    """torch's `pci_device_id` is the slot on the bus: it makes an address, never an identity."""
    properties = card(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    assert pci_address(properties) == "0000:1b:00.0"
    assert cuda.report_from(properties, None).pci_device_id is None
    assert pci_address(card()) is None


class Refusal(Exception):
    """Stands for NVML's error: a card in slices does not answer about its power."""


class SlicedCard:
    """NVML's functions on a card that answers some questions only. pciDeviceId: product, then vendor 0x10de."""

    NVMLError = Refusal
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> bytes:  # noqa: N802 - NVML's name
        if address != b"0000:1b:00.0":
            raise Refusal
        return address

    def nvmlDeviceGetPciInfo(self, handle: bytes) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(pciDeviceId=0x233510DE)

    def nvmlDeviceGetTemperature(self, handle: bytes, sensor: int) -> int:  # noqa: N802
        return 41

    def nvmlDeviceGetMemoryInfo(self, handle: bytes) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=123)

    def refused(self, *arguments: object) -> None:
        raise Refusal

    nvmlDeviceGetPowerUsage = nvmlDeviceGetEnforcedPowerLimit = refused  # noqa: N815
    nvmlDeviceGetUtilizationRates = nvmlDeviceGetClockInfo = refused  # noqa: N815


def test_nvml_answers_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_nvml", SlicedCard)
    here = card(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    elsewhere = card(pci_domain_id=0, pci_bus_id=0x1C, pci_device_id=0)
    assert cuda.BACKEND.report(1, here) == cuda.report_from(here, 0x2335, 1)
    assert cuda.BACKEND.report(0, elsewhere).pci_device_id is None
    assert cuda.BACKEND.report(0, card()).pci_device_id is None
    assert cuda.sensors(SlicedCard(), b"0000:1b:00.0") == {"temperature_c": 41.0, "memory_used_bytes": 123.0}


def test_without_nvml_the_report_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_nvml", lambda: None)
    assert cuda.BACKEND.report(0, card()) == cuda.report_from(card(), None)
    assert cuda.BACKEND.telemetry(torch.device("cuda", 0)) == {}


def sysfs(root: Path, address: str, number: int, files: dict[str, str]) -> None:
    folder = root / "sys/bus/pci/devices" / address
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    drm = root / f"sys/class/drm/card{number}"
    drm.mkdir(parents=True)
    (drm / "device").symlink_to(folder)


MI300X = {
    "vendor": "0x1002\n",
    "device": "0x74a1\n",
    "gpu_busy_percent": "17\n",
    "mem_info_vram_used": "1048576\n",
    "hwmon/hwmon4/power1_average": "143000000\n",
    "hwmon/hwmon4/power1_cap": "750000000\n",
    "hwmon/hwmon4/temp1_input": "48000\n",
    "hwmon/hwmon4/freq1_input": "2100000000\n",
    "hwmon/hwmon4/freq2_input": "",
}


def test_sysfs_gives_product_and_sensors(tmp_path: Path) -> None:
    sysfs(tmp_path, "0000:05:00.0", 0, {"vendor": "0x1a03\n", "device": "0x2000\n"})
    sysfs(tmp_path, "0000:85:00.0", 1, MI300X)
    properties = card(gcnArchName="gfx942:sramecc+:xnack-", pci_domain_id=0, pci_bus_id=0x85, pci_device_id=0)
    backend = rocm.RocmBackend(tmp_path)
    assert backend.report(0, properties).pci_device_id == 0x74A1
    folder = rocm.card_folder(tmp_path, pci_address(properties))
    assert folder is not None
    assert rocm.sensors(folder) == pytest.approx(
        {
            "power_w": 143.0,
            "power_limit_w": 750.0,
            "temperature_c": 48.0,
            "clock_mhz": 2100.0,
            "busy_percent": 17.0,
            "memory_used_bytes": 1048576.0,
        }
    )


def test_without_an_address_alike_cards_name_the_product(tmp_path: Path) -> None:
    assert rocm.product_id(tmp_path, None) is None
    sysfs(tmp_path, "0000:85:00.0", 0, MI300X)
    sysfs(tmp_path, "0000:86:00.0", 1, MI300X)
    assert rocm.product_id(tmp_path, None) == 0x74A1
    sysfs(tmp_path, "0000:87:00.0", 2, {**MI300X, "device": "0x74a5\n"})
    assert rocm.product_id(tmp_path, None) is None


@pytest.mark.parametrize(
    ("backend", "built", "toolkit"), [(cuda.BACKEND, "cuda", "CUDA"), (rocm.BACKEND, "hip", "ROCm")]
)
def test_the_build_of_torch_decides(
    backend: TorchGpuBackend, built: str, toolkit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, built, None)
    reason = backend.missing()
    assert reason is not None
    assert f"is not built for {toolkit}: install" in reason
    assert backend.probe() == ()


def no_driver() -> int:
    raise RuntimeError("Found no NVIDIA driver on your system.\nMore lines.")


@pytest.mark.parametrize(
    ("count", "cause"), [(lambda: 0, "the driver lists none"), (no_driver, "Found no NVIDIA driver")]
)
def test_a_build_without_a_device_says_what_to_look_at(
    count: Callable[[], int], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", count)
    reason = cuda.BACKEND.missing()
    assert reason is not None
    assert cause in reason
    assert "nvidia-smi" in reason
    assert "\n" not in reason


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [cuda.BACKEND, rocm.BACKEND], ids=lambda backend: backend.name)
def test_a_real_card(backend: Backend) -> None:
    if (reason := backend.missing()) is not None:
        pytest.skip(reason)
    for report in backend.probe():
        found, device = backend.profile(report), backend.device(report)
        assert found.profile is not None
        memory = backend.memory(device)
        assert 0 < memory.free_bytes <= memory.total_bytes
        measured, spec = backend.read_bandwidth_gb_per_s(device), found.profile.memory.bandwidth_gb_per_s.best
        assert spec is not None
        assert 0.5 * spec < measured < 1.1 * spec
        assert backend.collectives() == "nccl"


@pytest.mark.parametrize("backend", [cuda.BACKEND, rocm.BACKEND], ids=lambda backend: backend.name)
def test_without_a_device_nothing_is_captured(backend: Backend) -> None:
    reason, ran = backend.missing(), []
    if reason is None:
        pytest.skip("there is a device")
    assert backend.capture(lambda: ran.append(1)) == reason
    assert not ran


def present() -> Backend:
    """The backend of the GPU that is here; skips where there is none."""
    found = [backend for backend in (cuda.BACKEND, rocm.BACKEND) if backend.missing() is None]
    if not found:
        pytest.skip(f"{cuda.BACKEND.missing()}; {rocm.BACKEND.missing()}")
    return found[0]


def doubled(x: torch.Tensor, kept: list[torch.Tensor]) -> Callable[[], None]:
    """Keeps 2x + 1, by way of tensors that it does not keep."""

    def step() -> None:
        kept[:] = [(x * 2).clone() + 1]

    return step


def captured(backend: Backend, x: torch.Tensor) -> tuple[Replay, torch.Tensor]:
    kept: list[torch.Tensor] = []
    replay = backend.capture(doubled(x, kept))
    assert isinstance(replay, Replay), replay
    return replay, kept[0]


@pytest.mark.gpu
def test_replays_take_new_inputs_and_keep_their_own_results() -> None:
    backend = present()
    inputs = [torch.zeros(rows, 1 << 10, device="cuda") for rows in (64, 8)]
    graphs = [captured(backend, x) for x in inputs]
    for number, x in enumerate(inputs):
        x.fill_(number + 5)
    for replay, _ in graphs:
        replay()
    torch.cuda.synchronize()
    assert [float(result[0, 0]) for _, result in graphs] == [11.0, 13.0]
    assert all(bool((result == result[0, 0]).all()) for _, result in graphs)


@pytest.mark.gpu
def test_graphs_share_their_memory() -> None:
    """What is kept of the smaller graphs finds its place in what the largest used in between."""
    backend, mebibyte = present(), 1 << 18
    x = torch.zeros(256 * mebibyte, device="cuda")
    graphs = [captured(backend, x[: size * mebibyte]) for size in (256, 64, 32, 16)]
    largest, *smaller = (replay.num_bytes for replay, _ in graphs)
    assert largest >= 512 << 20
    assert sum(smaller) == 0


def reads(x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        x.mul_(float(x.sum()))

    return step


def selects(x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        x[: len(x[x > 0])] = 1

    return step


def breaks_at_the_second_run(x: torch.Tensor) -> Callable[[], None]:
    runs: list[int] = []

    def step() -> None:
        runs.append(1)
        x.add_(1)
        if len(runs) == 2:
            raise RuntimeError("broken while captured\nmore")

    return step


def reads_at_the_second_run(x: torch.Tensor) -> Callable[[], None]:
    runs: list[int] = []

    def step() -> None:
        runs.append(1)
        x.mul_(x.sum() if len(runs) == 1 else float(x.sum()))

    return step


@pytest.mark.gpu
@pytest.mark.parametrize("function", [reads, selects, breaks_at_the_second_run, reads_at_the_second_run])
def test_what_cannot_be_captured_says_why_and_leaves_no_trace(
    function: Callable[[torch.Tensor], Callable[[], None]],
) -> None:
    backend, stream = present(), torch.cuda.current_stream()
    x = torch.ones(8, device="cuda")
    reason = backend.capture(function(x))
    assert isinstance(reason, str)
    assert reason.startswith("the step cannot be captured: ")
    assert "\n" not in reason
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    replay, result = captured(backend, x.fill_(3))
    x.fill_(4)
    replay()
    assert result.tolist() == [9.0] * 8
