"""The conformance suite judges: faulty kernels fail, refused ones do neither; its four modes, as others run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ambidex.bench.operands import Poison, in_page_layout, packed, widened
from ambidex.bench.trials import Place, Trial, compare, reference_kernel, trials
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.contract import Kernel
from ambidex.ops.layouts import PAGES_PSHD, PANEL16, dense
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.state import Attending, Pages
from ambidex.ops.store_kv import random_pages
from ambidex.ops.types import Determinism, Weight

pytest_plugins = ("pytester",)

OPS = discovery.ops()
PLACE = Place(load("cpu-avx512"), torch.device("cpu"), {})


def reference(name: str) -> Callable[..., Any]:
    return ReferenceOps(OPS).function(OPS[name])


def trial(op: str, run: Callable[..., Any], case: str = "", **more: Any) -> Trial:
    found = next(each for each in OPS[op].cases if not case or each.name == case)
    given = {"language": "torch", "determinism": Determinism.NONE, "priority": 1, **more}
    kernel = Kernel("mine", op, run=run, dtypes=frozenset({torch.float32}), **given)
    return Trial(OPS[op], kernel, found, torch.float32)


def unwritten(x: torch.Tensor, weight: Weight, bias: Weight | None = None, **params: Any) -> torch.Tensor:
    y = torch.empty((x.shape[0], weight.shape[0]))
    y[:, :-1] = reference("linear")(x, weight, bias)[:, :-1]
    return y


def wrong(x: torch.Tensor, weight: Weight, bias: Weight | None = None, **params: Any) -> torch.Tensor:
    y = reference("linear")(x, weight, bias)
    y[-1, -1] += 1e-3
    return y


def wrong_dtype(x: torch.Tensor, weight: Weight, bias: Weight | None = None, **params: Any) -> torch.Tensor:
    return reference("linear")(x, weight, bias).double()


def forgetful(q: torch.Tensor, pages: Pages, attending: Attending, **params: Any) -> torch.Tensor:
    """Lets the keys beyond a request's last through."""
    longer = replace(attending, context_lengths=attending.context_lengths + 1)
    return reference("paged_attention")(q, pages, longer, **params)


def bleeding(k: torch.Tensor, v: torch.Tensor, pages: Pages, slots: torch.Tensor) -> None:
    reference("store_kv")(k, v, pages, slots.abs())


FAULTS: list[tuple[Trial, str]] = [
    (trial("linear", unwritten), "1 of 32 values are NaN or infinite"),
    (trial("linear", wrong), "the op allows 1.0e-05"),
    (trial("linear", wrong_dtype), "the op announces"),
    (trial("paged_attention", forgetful), "NaN"),
    (trial("store_kv", bleeding), "error"),
]


@pytest.mark.parametrize(("faulty", "text"), FAULTS, ids=[text for _, text in FAULTS])
def test_a_faulty_kernel_fails(faulty: Trial, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        faulty.check(PLACE)


def test_a_broken_promise_fails() -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return reference("silu_and_mul")(x) + 1e-7 * torch.rand(())

    with pytest.raises(AssertionError, match="promises determinism `run`, two runs differ"):
        trial("silu_and_mul", noisy, determinism=Determinism.RUN).check(PLACE)

    def by_number(x: torch.Tensor) -> torch.Tensor:
        return reference("silu_and_mul")(x) + 1e-7 * x.shape[0]

    trial("silu_and_mul", by_number, determinism=Determinism.RUN).check(PLACE)
    with pytest.raises(AssertionError, match="promises determinism `batch`, row 0 differs when alone"):
        trial("silu_and_mul", by_number, determinism=Determinism.BATCH).check(PLACE)


def test_a_request_that_feels_its_company_fails() -> None:
    def crowded(q: torch.Tensor, pages: Pages, attending: Attending, **params: Any) -> torch.Tensor:
        return reference("paged_attention")(q, pages, attending, **params) + 1e-7 * len(attending.context_lengths)

    with pytest.raises(AssertionError, match="request 0 differs when alone"):
        trial("paged_attention", crowded, determinism=Determinism.BATCH).check(PLACE)


def test_the_reference_in_company_passes() -> None:
    for name in ("linear", "rms_norm", "paged_attention", "sample"):
        replace(trial(name, reference(name)), kernel=reference_kernel(OPS[name])).check(PLACE)


def test_a_refusal_is_the_bindings() -> None:
    assert str(trial("linear", wrong, language="hip").refusal(PLACE)).startswith("language_missing")
    assert trial("linear", wrong).refusal(PLACE) is None
    paged = trial("paged_attention", forgetful, page_sizes=(256,))
    assert str(paged.refusal(PLACE)) == "page_size: takes 256 tokens a page, not 16"


def test_poison_is_nan_or_the_largest_integer() -> None:
    with Poison():
        made = [torch.empty(3), torch.empty(3, dtype=torch.int32), torch.ones(2).new_empty(3), torch.zeros(2)]
        like = torch.empty_like(made[3])
    assert made[0].isnan().all()
    assert (made[1] == 2**31 - 1).all()
    assert made[2].isnan().all()
    assert like.isnan().all()
    assert not made[3].isnan().any()
    assert not torch.empty(3).fill_(0).isnan().any()


def test_comparison_knows_where_infinities_belong() -> None:
    wanted = torch.tensor([1.0, torch.inf, torch.nan])
    compare("t", wanted, wanted, 0.0)
    for y in ([1.0, -torch.inf, torch.nan], [1.0, torch.inf, 0.0], [torch.nan, torch.inf, torch.nan]):
        with pytest.raises(AssertionError, match="1 of 3"):
            compare("t", torch.tensor(y), wanted, 1.0)
    with pytest.raises(AssertionError, match="1 of 2 integers"):
        compare("t", torch.tensor([1, 2]), torch.tensor([1, 3]), 1.0)


def test_operands_are_remade_without_loss() -> None:
    weight = dense("w", torch.randn(5, 7).bfloat16(), PANEL16)
    wide, again = widened((weight, "word", 3)), packed((weight,), PANEL16, PAGES_PSHD)
    assert wide[1:] == ("word", 3)
    assert torch.equal(wide[0].values, weight.logical().double())
    assert again[0].layout is PANEL16
    assert again[0].values is not weight.values
    assert torch.equal(again[0].logical(), weight.logical())
    pages = random_pages(2, 4, 3, 8, torch.float32, torch.device("cpu"), torch.Generator())
    turned = in_page_layout(pages, PAGES_PSHD)
    assert torch.equal(turned.canonical("k"), pages.canonical("k"))
    assert tuple(turned.planes["k"].shape) == (3, 8, 2, 4)


def test_every_kernel_and_reference_is_tried() -> None:
    tried = {each.kernel.name for each in trials()}
    assert tried >= set(discovery.kernels())
    assert {f"{name}.{'reference' if op.reference else 'parts'}" for name, op in OPS.items()} <= tried
    assert {each.kernel.name for each in trials("linear_to*")} == {"linear_torch", "linear_torch_widened"}


# As a third party runs it


class Suite:
    """`pytest --pyargs ambidex.bench.conformance_suite` with options, in a folder of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.path = pytester.path
        self._run = pytester.runpytest_inprocess

    def __call__(self, *options: str) -> tuple[int, str]:
        done = self._run("-q", "-rs", "--pyargs", "ambidex.bench.conformance_suite", *options)
        return int(done.ret), f"{done.stdout}\n{done.stderr}"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # this run's; where it is set nothing is timed
    return Suite(pytester)


def test_test_mode_passes_and_skips_with_reasons(suite: Suite) -> None:
    status, out = suite("--ambidex-kernels", "*_torch", "-k", "paged_attention and float32")
    assert status == 0, out
    assert "not supported: shape: has no soft cap" in out
    assert "passed" in out


def test_perf_mode_times_the_cases_themselves(suite: Suite) -> None:
    status, out = suite(
        "--ambidex-mode=perf", "--ambidex-kernels=rms_norm_torch", "-k", "qwen", "--benchmark-json=out.json",
        "--benchmark-max-time=0.05", "--benchmark-min-rounds=2",
    )  # fmt: skip
    assert status == 0, out
    written = (suite.path / "out.json").read_text()
    assert '"gb_per_s"' in written
    assert "rms_norm: qwen2.5-0.5b" in written


def test_support_mode_prints_the_matrix_for_any_profile(suite: Suite) -> None:
    status, out = suite("--ambidex-mode=support", "--ambidex-kernels=norm_linear_*", "--ambidex-profile=amd-mi300x")
    assert status == 0, out
    lines = [line.split(maxsplit=3) for line in out.splitlines() if line.startswith("norm_linear ")]
    found = {(kernel, dtype): outcome for _, kernel, dtype, outcome in lines}
    assert found["norm_linear_triton_invariant", "bfloat16"] == "ok"
    assert found["norm_linear_cpu", "float32"].startswith("language_missing: is written in cpu; amd-mi300x runs")


def test_trace_mode_prints_sites_and_choices(suite: Suite) -> None:
    status, out = suite("--ambidex-mode=trace", "--ambidex-profile=nvidia-h200-sxm", "-k", "norm_linear and odd")
    assert status == 0, out
    assert "norm_linear@weight: norm_linear_triton block_t=" in out
    assert "not norm_linear_triton_invariant: policy: norm_linear_triton comes before it" in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--ambidex-kernels", "nobody*"], "no kernel is called 'nobody*'"),
        (["--ambidex-profile", "nvidia-h300", "--ambidex-kernels", "linear_torch"], "nvidia-h300"),
        (["--ambidex-programs", "0", "--ambidex-kernels", "linear_torch"], "at least one program"),
        (["--ambidex-mode", "guess"], "invalid choice: 'guess'"),
        (["--ambidex-mode", "perf", "-p", "no:benchmark"], "pip install 'ambidex[bench]'"),
    ],
)
def test_a_wrong_option_is_one_line(suite: Suite, options: list[str], text: str) -> None:
    status, out = suite(*options)
    assert status != 0
    assert text in out
    assert "Traceback" not in out


def test_the_plugin_does_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        "import sys\n\ndef test_one():\n    assert not {'ambidex.bench.trials', 'torch'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "test_one.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("most", [None, 16, 1 << 20])
def test_grids_of_a_fixed_size_are_cut_where_that_is_asked(most: int | None) -> None:
    place = Place(load("nvidia-h200-sxm"), torch.device("cpu"), {}, most)
    for name, programs in (("paged_attention_triton", 264), ("linear_triton_large", 132)):
        launch = trials(name)[0].launch(place, 1)
        assert launch["programs"] == min(programs, most or programs)
    assert "programs" not in trials("rms_norm_triton")[0].launch(place, 1)
