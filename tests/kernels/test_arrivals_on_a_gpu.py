"""What programs of a launch do for one another on a real device: they arrive in any order, the bits stay the same."""

from __future__ import annotations

import pytest
import torch
from ambidex.backends.choosing import places
from ambidex.hwprofiles.schema import Profile
from ambidex.kernels.triton import large_launch, sample
from ambidex.kernels.triton.arrivals import counters
from ambidex.kernels.triton.large_product import large_product
from ambidex.ops.layouts import dense
from ambidex.ops.sample import OP
from ambidex.ops.types import Site
from torch.nn.functional import linear, silu

REPEATS = 100


def gpu() -> tuple[Profile, torch.device]:
    """The first device that is no CPU, and its profile; the test is skipped where there is none."""
    for place in places():
        if place.report.vendor != "cpu" and place.match.profile is not None and torch.cuda.is_available():
            return place.match.profile, place.backend.device(place.report)
    pytest.skip("no GPU with a profile is here")


@pytest.mark.gpu
@pytest.mark.parametrize("behind", [False, True], ids=["the-only-round", "a-last-round"])
@pytest.mark.parametrize("shares", [2, 4, 7])
@pytest.mark.parametrize("op", ["linear", "linear_add", "gated_linear"])
def test_a_hundred_runs_give_the_same_bits_and_leave_the_counters_at_zero(
    op: str, shares: int, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, device = gpu()
    is_gated, width, outputs, rows = op == "gated_linear", 7 * 2048, 4096, 100
    site = Site(op, "w", {"N": outputs, "K": width}, dict.fromkeys(("x", "weight", "y"), torch.bfloat16))
    launch = large_launch.launch(site, profile, 128)
    launch = {**launch, "flat": launch["described"] and behind}  # as launches with several rounds are
    tiles = -(-rows // launch["block_t"]) * -(-(outputs // (1 + is_gated)) // launch["block_n"])
    launch |= {"programs": tiles // 2 + 3} if behind else {}
    assert large_launch.fits(site, profile, launch) is None
    # More pieces than the memory's bound allows: many that arrive together.
    monkeypatch.setattr("ambidex.kernels.triton.large_product.shares_of", lambda *_: shares)
    generator = torch.Generator(device).manual_seed(shares)
    x, values, residual = (
        torch.randn(size, device=device, generator=generator, dtype=torch.bfloat16) * scale
        for size, scale in (((rows, width), 1.0), ((outputs, width), width**-0.5), ((rows, outputs), 1.0))
    )
    weight, added = dense("w", values), residual if op == "linear_add" else None

    def run() -> torch.Tensor:
        return large_product(x, weight, None, None, added, gated=is_gated, **launch)

    first = run()
    assert all(torch.equal(first, run()) for _ in range(REPEATS))
    assert not counters(x.device).any(), "every launch leaves zeros"
    wanted = linear(x.double(), values.double())
    wanted = silu(wanted[:, : outputs // 2]) * wanted[:, outputs // 2 :] if is_gated else wanted
    wanted = wanted if added is None else wanted + added.double()
    assert float((first.double() - wanted).abs().max() / wanted.abs().max()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [128256, 151936])
def test_a_hundred_draws_behind_filters_are_the_ops_own(vocabulary: int) -> None:
    """A row's programs count in any order, its last one says where each slice's tokens go."""
    profile, device = gpu()
    assert sample.KERNELS[0].launch is not None
    site = Site("sample", "logits", {"V": vocabulary}, {"x": torch.float32})
    launch = sample.KERNELS[0].launch(site, profile, 32)
    (logits, sampling), _ = OP.inputs({"L": 32, "V": vocabulary}, torch.float32, device, torch.Generator())
    assert OP.reference is not None
    wanted = OP.reference(logits, sampling)[0]
    for _ in range(REPEATS):
        assert torch.equal(sample.sample_triton(logits, sampling, **launch)[0], wanted)
    assert not counters(device).any(), "every launch leaves zeros"
