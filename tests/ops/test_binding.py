"""Binding: who serves what and why not, layouts that sites share, promises kept or refused by name, the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from ambidex.hwprofiles.reader import load
from ambidex.hwprofiles.schema import Profile
from ambidex.ops import contract, discovery
from ambidex.ops.binding import UNBOUNDED, Binding, BindingError, bind
from ambidex.ops.contract import Kernel
from ambidex.ops.layouts import PAGES_PHSD, PAGES_PSHD, PANEL16, ROW_MAJOR, dense
from ambidex.ops.manifest import fingerprint, manifest, references
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.state import Attending, Pages
from ambidex.ops.store_kv import random_pages
from ambidex.ops.tracing import Recorder
from ambidex.ops.types import Determinism, Reason, Site, Weight

OPS = discovery.ops()
CPU = load("cpu-avx512")
META = torch.device("meta")
TOKENS, WIDTH, VOCABULARY = 11, 32, 48
Forward = Callable[[Any], object]

Policy = partial(contract.Policy, buckets=(1, 8, 64, 512))


def run_reference(name: str) -> Callable[..., Any]:
    return ReferenceOps(OPS).function(OPS[name])


def kernel(name: str, op: str, **more: Any) -> Kernel:
    given = {"language": "cpu", "dtypes": frozenset({torch.float32}), "determinism": Determinism.BATCH, "priority": 50}
    return Kernel(name, op, run=more.pop("run", run_reference(op)), **{**given, **more})


def kernels(*made: Kernel) -> dict[str, Kernel]:
    return {each.name: each for each in made}


def weight(role: str, *shape: int, device: torch.device | None = META) -> Weight:
    return dense(role, torch.empty(shape, device=device))


def sites_of(forward: Forward) -> tuple[Site, ...]:
    recorder = Recorder(OPS, num_logits=3)
    forward(recorder)
    return recorder.sites


def x(rows: int = TOKENS, width: int = WIDTH) -> torch.Tensor:
    return torch.empty((rows, width), device=META)


def one_linear(ops: Any) -> None:
    ops.linear(x(), weight("w", 16, WIDTH))


def normed(ops: Any) -> None:
    ops.norm_linear(x(), weight("norm", WIDTH), weight("w", 16, WIDTH), eps=1e-5)


def tied(ops: Any) -> None:
    table = weight("table", VOCABULARY, WIDTH)
    ops.embedding(torch.empty(TOKENS, dtype=torch.int64, device=META), table)
    ops.linear(x(3), table)


def decided(
    forward: Forward, made: dict[str, Kernel], policy: contract.Policy | None = None, profile: Profile = CPU
) -> Binding:
    return bind(sites_of(forward), profile, policy or Policy(), kernels=made)


def chosen(binding: Binding) -> dict[str, list[str]]:
    return {bound.site.name: [choice.chosen for choice in bound.choices] for bound in binding.sites}


def reason(binding: Binding, name: str, bucket: int = 0) -> Reason:
    return binding.sites[0].choices[bucket].refused[name]


# Who serves


def test_the_first_by_priority_serves_and_the_others_say_why_not() -> None:
    binding = decided(one_linear, kernels(kernel("slow", "linear", priority=1), kernel("fast", "linear", priority=2)))
    assert chosen(binding) == {"linear@w": ["fast"] * 5}
    assert str(reason(binding, "slow")) == "policy: fast comes before it"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"language": "triton"}, "language_missing: is written in triton; cpu-avx512 runs torch, cpu"),
    ({"needs": frozenset({"amx_tile", "fma"})}, "arch: cpu-avx512 has no amx_tile"),
    ({"dtypes": frozenset({torch.bfloat16})}, "dtype: takes bfloat16, not float32"),
    ({"formats": frozenset({"int4"})}, "format: reads int4; w is dense"),
    ({"determinism": Determinism.NONE}, "determinism: promises none, not run"),
    ({"refuses": lambda site, profile, bucket: Reason("shape", f"K is {site.dim('K')}")}, "shape: K is 32"),
]


@pytest.mark.parametrize(("needs", "text"), REFUSALS, ids=[text.partition(":")[0] for _, text in REFUSALS])
def test_a_refusal_has_a_code_and_a_sentence(needs: dict[str, Any], text: str) -> None:
    binding = decided(one_linear, kernels(kernel("k", "linear", **needs)))
    assert chosen(binding) == {"linear@w": ["reference"] * 5}
    assert str(reason(binding, "k")) == text


def test_a_language_that_cannot_run_here_gives_its_own_sentence() -> None:
    made = kernels(kernel("k", "linear"))
    binding = bind(
        sites_of(one_linear), CPU, Policy(), kernels=made, missing={"cpu": "the library is not built: make build"}
    )
    assert str(reason(binding, "k")) == "language_missing: the library is not built: make build"


def test_a_tile_that_does_not_fit_the_chip_is_refused_on_one_profile_and_taken_on_another() -> None:
    big = kernel(
        "big", "linear", language="triton", launch=lambda site, profile, bucket: {"bytes": 100 * 1024},
        on_chip_bytes=lambda launch: launch["bytes"],
    )  # fmt: skip
    small, large = load("amd-mi300x"), load("nvidia-h200-sxm")
    refused = decided(one_linear, kernels(big), profile=small)
    assert str(reason(refused, "big")) == "on_chip_bytes: needs 102,400 bytes a block, amd-mi300x has 65,536"
    taken = decided(one_linear, kernels(big), profile=large)
    assert chosen(taken) == {"linear@w": ["big"] * 5}
    assert dict(taken.sites[0].choices[0].launch) == {"bytes": 100 * 1024}


def test_buckets_choose_on_their_own() -> None:
    few = kernel("few", "linear", priority=90, max_rows=8)
    binding = decided(one_linear, kernels(few, kernel("many", "linear")))
    assert chosen(binding) == {"linear@w": ["few", "few", "many", "many", "many"]}
    assert [choice.bucket for choice in binding.sites[0].choices] == [1, 8, 64, 512, UNBOUNDED]
    assert str(reason(binding, "few", 2)) == "rows: is made for at most 8 rows"


# Composites


def test_a_composite_is_served_whole_or_by_its_parts() -> None:
    part = kernel("linear_k", "linear", max_rows=8)
    parts = decided(normed, kernels(part))
    assert chosen(parts) == {"norm_linear@w": ["parts"] * 5}
    inner = {bound.site.name: [choice.chosen for choice in bound.choices] for bound in parts.sites[0].parts}
    assert inner == {"rms_norm@norm": ["reference"] * 5, "linear@w": ["linear_k"] * 2 + ["reference"] * 3}
    whole = decided(normed, kernels(part, kernel("whole", "norm_linear")))
    assert chosen(whole) == {"norm_linear@w": ["whole"] * 5}
    assert whole.sites[0].parts == ()


def test_references_are_listed_with_parts() -> None:
    assert references(decided(normed, {})) == ["rms_norm@norm", "linear@w"]
    assert references(decided(normed, kernels(kernel("whole", "norm_linear")))) == []


# Layouts


def test_tied_weights_lie_in_the_layout_that_serves_both_sites_best() -> None:
    packed = kernel("packed", "linear", layout=PANEL16, priority=100)
    row_major = kernel("row_major", "linear", priority=10)
    lookup = kernel("lookup", "embedding", priority=10)
    together = decided(tied, kernels(packed, row_major, lookup))
    assert together.weight_layouts == {"table": ROW_MAJOR}
    assert chosen(together) == {"embedding@table": ["lookup"] * 5, "linear@table": ["row_major"] * 5}
    refused = together.sites[1].choices[0].refused["packed"]
    assert str(refused) == "layout: reads panel16, table lies in row_major"
    both = decided(tied, kernels(packed, row_major, lookup, kernel("panels", "embedding", layout=PANEL16)))
    assert both.weight_layouts == {"table": PANEL16}
    assert chosen(both) == {"embedding@table": ["panels"] * 5, "linear@table": ["packed"] * 5}


def test_a_chosen_kernel_gets_its_layout() -> None:
    made = kernels(
        kernel("packed", "linear", layout=PANEL16, priority=1), kernel("row_major", "linear", priority=5_000),
        kernel("lookup", "embedding", priority=5_000),
    )  # fmt: skip
    assert decided(tied, made).weight_layouts == {"table": ROW_MAJOR}
    binding = decided(tied, made, Policy(choices={"linear": "packed"}))
    assert binding.weight_layouts == {"table": PANEL16}
    assert chosen(binding) == {"embedding@table": ["reference"] * 5, "linear@table": ["packed"] * 5}


def groups(windows: tuple[int, ...] = (0,)) -> list[Pages]:
    made = []
    for index, window in enumerate(windows):
        pages = random_pages(2, 8, 4, 16, torch.float32, torch.device("cpu"), torch.Generator(), window)
        group = replace(pages.group, name=f"kv{index}")
        planes = {name: tensor.to("meta") for name, tensor in pages.planes.items()}
        made.append(Pages(group, planes, pages.layout, pages.page_size))
    return made


def attending(ops: Any, windows: tuple[int, ...] = (0,)) -> None:
    integers = torch.empty(2, dtype=torch.int32, device=META)
    who = Attending(torch.empty(3, dtype=torch.int32, device=META), integers, integers[:, None], TOKENS)
    for pages in groups(windows):
        q, k = torch.empty((TOKENS, 4, 8), device=META), torch.empty((TOKENS, 2, 8), device=META)
        ops.store_kv(k, k, pages, torch.empty(TOKENS, dtype=torch.int64, device=META))
        ops.paged_attention(q, pages, who, scale=1.0)


def test_pages_lie_as_every_kernel_of_the_group_accepts() -> None:
    made = kernels(
        kernel("store", "store_kv", page_layouts=(PAGES_PSHD, PAGES_PHSD)),
        kernel("attend", "paged_attention", page_layouts=(PAGES_PSHD,), page_sizes=(64, 256)),
        kernel("attend_slowly", "paged_attention", page_layouts=(PAGES_PHSD,), priority=1),
    )
    binding = decided(attending, made)
    demand = binding.page_demands["kv0"]
    assert (demand.layout, demand.page_size) == (PAGES_PSHD, 64)
    assert chosen(binding) == {"store_kv@kv0": ["store"] * 5, "paged_attention@kv0": ["attend"] * 5}
    assert str(binding.sites[1].choices[0].refused["attend_slowly"]) == "layout: reads PHSD pages"
    other = decided(attending, made, Policy(page_sizes=(16,)))
    assert str(other.sites[1].choices[0].refused["attend"]) in (
        "page_size: takes 64, 256 tokens a page, not 16", "layout: reads PSHD pages",
    )  # fmt: skip


def test_each_group_settles_its_pages_alone() -> None:
    def windowed_only(site: Site, profile: Profile, bucket: int) -> Reason | None:
        return None if site.dims["window"] else Reason("shape", "serves windows only")

    made = kernels(
        kernel("windowed", "paged_attention", priority=90, page_sizes=(128,), refuses=windowed_only),
        kernel("plain", "paged_attention", page_sizes=(32,)),
        kernel("store", "store_kv"),
    )
    binding = decided(lambda ops: attending(ops, (0, 512)), made)
    assert {name: demand.page_size for name, demand in binding.page_demands.items()} == {"kv0": 32, "kv1": 128}
    assert chosen(binding)["paged_attention@kv0"] == ["plain"] * 5
    assert chosen(binding)["paged_attention@kv1"] == ["windowed"] * 5


# Promises


def test_a_choice_is_met_by_op_or_by_site_and_the_site_comes_first() -> None:
    def two(ops: Any) -> None:
        ops.linear(x(), weight("a", 16, WIDTH))
        ops.linear(x(), weight("b", 16, WIDTH))

    made = kernels(kernel("k", "linear"), kernel("j", "linear", priority=1))
    policy = Policy(choices={"linear": "j", "linear@b": "reference"})
    binding = decided(two, made, policy)
    assert chosen(binding) == {"linear@a": ["j"] * 5, "linear@b": ["reference"] * 5}
    assert str(reason(binding, "k")) == "policy: j was chosen for linear"


def test_parts_are_a_choice() -> None:
    made = kernels(kernel("whole", "norm_linear"), kernel("linear_k", "linear"))
    binding = decided(normed, made, Policy(choices={"norm_linear@w": "parts", "linear": "linear_k"}))
    assert chosen(binding) == {"norm_linear@w": ["parts"] * 5}
    with pytest.raises(BindingError, match="linear is never bound on its own: a composite around it is served whole"):
        decided(normed, made, Policy(choices={"linear": "linear_k"}))


def test_a_choice_that_reaches_only_some_sites_of_its_op_says_so() -> None:
    def both(ops: Any) -> None:
        normed(ops)
        ops.linear(x(), weight("head", 16, WIDTH))

    made = kernels(kernel("whole", "norm_linear"), kernel("linear_k", "linear"))
    choices = {"linear": "linear_k"}
    (line,) = decided(both, made, Policy(choices=choices)).warnings
    assert line.startswith("the choice for linear does not reach linear@w: a composite around it is served whole")
    assert decided(both, made, Policy(choices={**choices, "norm_linear": "parts"})).warnings == ()
    some = kernels(kernel("whole", "norm_linear", max_rows=8), kernel("linear_k", "linear"))
    (line,) = decided(both, some, Policy(choices=choices)).warnings
    assert "linear@w" in line, "of few rows the composite is served whole"


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"linear": "amx"}, "amx cannot serve linear@w: arch: cpu-avx512 has no amx_tile"),
        ({"linear@w": "few"}, "few cannot serve linear@w: rows: is made for at most 8 rows"),
        (
            {"linear": "nobody"},
            "nobody cannot serve linear@w: it is not one of its implementations (amx, few, reference)",
        ),
        (
            {"linear": "parts"},
            "parts cannot serve linear@w: it is not one of its implementations (amx, few, reference)",
        ),
        ({"linaer@w": "few"}, "no site or op is called linaer@w; did you mean linear@w?"),
        ({"zzz": "few"}, "no site or op is called zzz; there are linear, linear@w"),
    ],
)
def test_a_choice_that_cannot_be_met_is_an_error_that_names_why(choices: dict[str, str], text: str) -> None:
    made = kernels(
        kernel("amx", "linear", needs=frozenset({"amx_tile"})), kernel("few", "linear", max_rows=8),
    )  # fmt: skip
    with pytest.raises(BindingError) as caught:
        decided(one_linear, made, Policy(choices=choices))
    assert str(caught.value) == text


def test_forbidden_fallback_names_what_was_tried() -> None:
    made = kernels(kernel("few", "linear", max_rows=8))
    with pytest.raises(BindingError) as caught:
        decided(one_linear, made, Policy(fallback="forbid"))
    assert str(caught.value) == (
        "fallback is forbid and only the reference serves linear@w: few: rows: is made for at most 8 rows"
    )
    allowed = decided(one_linear, made, Policy(fallback="forbid", choices={"linear": "reference"}))
    assert chosen(allowed) == {"linear@w": ["reference"] * 5}


def test_a_warned_fallback_is_a_line_a_site() -> None:
    policy = Policy(fallback="warn")
    binding = decided(normed, kernels(kernel("few", "linear", max_rows=8)), policy)
    assert binding.warnings == (
        "rms_norm@norm runs on its reference: no kernel of this op exists",
        "linear@w runs on its reference: few: rows: is made for at most 8 rows",
    )
    assert decided(normed, {}).warnings == ()
    assert decided(one_linear, kernels(kernel("k", "linear")), policy).warnings == ()
    assert decided(one_linear, {}, replace(policy, choices={"linear": "reference"})).warnings == ()


def test_batch_determinism_takes_one_kernel_for_all_buckets() -> None:
    made = kernels(
        kernel("few", "linear", priority=90, max_rows=8),
        kernel("run_only", "linear", priority=80, determinism=Determinism.RUN),
        kernel("invariant", "linear", priority=1),
    )
    binding = decided(one_linear, made, Policy(determinism=Determinism.BATCH))
    assert chosen(binding) == {"linear@w": ["invariant"] * 5}
    assert str(reason(binding, "run_only")) == "determinism: promises run, not batch"
    assert reason(binding, "few").code == "determinism"
    assert "serves not every bucket (rows: is made for at most 8 rows)" in reason(binding, "few").text


def test_batch_determinism_is_refused_by_name_where_nobody_promises_it() -> None:
    made = kernels(kernel("run_only", "linear", determinism=Determinism.RUN))
    with pytest.raises(BindingError) as caught:
        decided(one_linear, made, Policy(determinism=Determinism.BATCH))
    assert str(caught.value) == (
        "linear@w cannot promise determinism=batch: run_only: determinism: promises run, not batch"
    )


# The manifest


def test_the_manifest_says_everything_and_its_hash_follows_the_decisions() -> None:
    made = kernels(kernel("k", "linear"), kernel("j", "linear", priority=1))
    first, again = decided(one_linear, made), decided(one_linear, made)
    other = decided(one_linear, made, Policy(choices={"linear": "j"}))
    record = manifest(first)
    assert record["profile"] == "cpu-avx512"
    assert record["weight_layouts"] == {"w": "row_major"}
    entry = record["sites"][0]["choices"][0]
    assert (entry["max_rows"], entry["chosen"]) == (1, "k")
    assert entry["refused"]["j"] == {"code": "policy", "text": "k comes before it"}
    assert record["sites"][0]["choices"][-1]["max_rows"] is None
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)
    assert fingerprint(first).startswith("fp_")
    without = decided(one_linear, kernels(kernel("k", "linear")))
    assert fingerprint(without) == fingerprint(first), "who was refused is not part of the hash"


# Calls


def test_bound_ops_run_what_was_chosen_with_its_launch_and_agree_with_the_reference() -> None:
    seen: list[int] = []

    def spy(x: torch.Tensor, weight: Weight, bias: Weight | None = None, *, tile: int, **params: Any) -> torch.Tensor:
        seen.append(tile)
        return run_reference("linear")(x, weight, bias, **params)

    made = kernels(kernel("spy", "linear", run=spy, launch=lambda site, profile, bucket: {"tile": min(bucket, 999)}))
    binding = decided(normed, made)
    generator = torch.Generator().manual_seed(0)
    norm, w = (
        dense("norm", torch.rand(WIDTH, generator=generator)),
        dense("w", torch.randn(16, WIDTH, generator=generator)),
    )
    for rows in (1, 2, 8, 9, 600):
        operand = torch.randn(rows, WIDTH, generator=generator)
        wanted = ReferenceOps(OPS).norm_linear(operand, norm, w, eps=1e-5)
        assert torch.equal(binding.ops.norm_linear(operand, norm, w, eps=1e-5), wanted)
    assert seen == [1, 8, 8, 64, 999]


def test_what_was_not_traced_is_not_bound() -> None:
    with pytest.raises(AttributeError, match="embedding is not bound: the model's trace did not call it"):
        _ = decided(one_linear, {}).ops.embedding


def test_rotation_counts_its_rows_on_the_axis_of_tokens() -> None:
    seen: list[int] = []

    def spy(positions: torch.Tensor, frequencies: torch.Tensor, *, scaling: float, bucket: int) -> torch.Tensor:
        seen.append(bucket)
        return run_reference("rotation")(positions, frequencies, scaling=scaling)

    def rotate(ops: Any) -> None:
        ops.rotation(torch.empty((1, TOKENS), dtype=torch.int64, device=META), torch.empty(4, device=META), scaling=1.0)

    made = kernels(kernel("spy", "rotation", run=spy, launch=lambda site, profile, bucket: {"bucket": bucket}))
    binding = decided(rotate, made)
    for tokens in (1, 9):
        binding.ops.rotation(torch.zeros((1, tokens), dtype=torch.int64), torch.ones(4), scaling=1.0)
    assert seen == [1, 64]


def test_two_kernels_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = kernel("linear_torch", "linear")
    monkeypatch.setattr(discovery, "plugins", lambda group: {"other": (twin,)} if group == "kernels" else {})
    with pytest.raises(ValueError, match="two definitions of linear_torch"):
        discovery.kernels.__wrapped__()


@pytest.mark.parametrize("name", ["amd-mi300x", "nvidia-h200-sxm", "cpu-amx", "groq-lpu"])
def test_every_shipped_profile_binds_with_reasons(name: str) -> None:
    binding = bind((*sites_of(normed), *sites_of(tied)), load(name))
    for bound in binding.sites:
        for choice in bound.choices:
            serving = {k.name for k in discovery.kernels().values() if k.op == bound.site.op}
            assert set(choice.refused) == serving - {choice.chosen}
            assert all(reason.text for reason in choice.refused.values())
