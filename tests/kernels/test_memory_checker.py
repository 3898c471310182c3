"""One case a kernel under the memory checker of the GPU that is here: no access out of bounds, none misaligned."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from ambidex.ops import discovery

SUITE = Path(__file__).with_name("test_conformance.py")
CHECKER = "compute-sanitizer"
KERNELS = sorted(each.name for each in discovery.kernels().values() if each.language not in ("torch", "cpu"))
FOUND = 86
"""The exit code that the checker is told to give."""


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    """The command under the checker, every tensor an allocation of its own, so that its bounds are known."""
    whole = [CHECKER, "--tool", "memcheck", "--error-exitcode", str(FOUND), sys.executable, *command]
    # A worker of pytest-xdist would make the suite below one too.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**own, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run(whole, env=environment, cwd=SUITE.parents[2], capture_output=True, text=True, check=False)


@cache
def missing() -> str | None:
    """Why the checker cannot be used here."""
    if shutil.which(CHECKER) is None:
        return f"{CHECKER} is not installed (it comes with the CUDA toolkit)"
    tried = checked("-c", "import torch; torch.zeros(8, device='cuda').sum().item()")
    said = (tried.stdout + tried.stderr).strip().splitlines()
    return None if tried.returncode == 0 else f"{CHECKER} does not accept this device: {said[-1] if said else 'silent'}"


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_stays_within_its_memory(kernel: str) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    case = discovery.ops()[discovery.kernels()[kernel].op].cases[0].name
    done = checked(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE), "--ambidex-device", "gpu",
        "--ambidex-kernels", kernel, "-k", f"{case}-",
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert "ERROR SUMMARY: 0 errors" in done.stdout + done.stderr
