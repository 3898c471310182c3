"""Tuned rows: their reader, the nearest row, and what a binding makes of them."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from ambidex.hwprofiles.reader import load
from ambidex.hwprofiles.schema import Profile
from ambidex.ops import contract, discovery, tuned
from ambidex.ops.binding import UNBOUNDED, Binding, BindingError, bind
from ambidex.ops.contract import Kernel, Launch
from ambidex.ops.launches import Launches, launch_reason, parse_choice
from ambidex.ops.layouts import PANEL16, dense
from ambidex.ops.manifest import fingerprint, manifest
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.support import bucket_of
from ambidex.ops.tracing import Recorder
from ambidex.ops.tuned import Row, Table, Tuned, TunedError, distance, read, timed_dims, written
from ambidex.ops.types import Determinism, Reason, Site
from hypothesis import given, settings
from hypothesis import strategies as st

OPS = discovery.ops()
H200, B200, MI300X = load("nvidia-h200-sxm"), load("nvidia-b200"), load("amd-mi300x")
META = torch.device("meta")
Policy = partial(contract.Policy, buckets=(1, 8, 64, 512))
BUCKETS = (*Policy().buckets, UNBOUNDED)


def sites_of(forward: Callable[[Any], object]) -> tuple[Site, ...]:
    recorder = Recorder(OPS, num_logits=3)
    forward(recorder)
    return recorder.sites


def linear_site(outputs: int = 64, width: int = 32) -> Site:
    def forward(ops: Any) -> None:
        x, weight = torch.empty((5, width), device=META), dense("w", torch.empty((outputs, width), device=META))
        ops.linear(x, weight)

    return sites_of(forward)[0]


def normed_site() -> Site:
    def forward(ops: Any) -> None:
        norm, weight = (dense(name, torch.empty(size, device=META)) for name, size in (("n", (32,)), ("w", (64, 32))))
        ops.norm_linear(torch.empty((5, 32), device=META), norm, weight, eps=1e-5)

    return sites_of(forward)[0]


def default(site: Site, profile: Profile, bucket: int) -> Launch:
    return {"block": 16, "level": "plain"}


def kernel(name: str, op: str = "linear", **more: Any) -> Kernel:
    base = {
        "language": "triton", "dtypes": frozenset({torch.float32}), "determinism": Determinism.BATCH, "priority": 50,
        "run": ReferenceOps(OPS).function(OPS[op]), "launch": default,
        "on_chip_bytes": lambda launch: 1024 * launch["block"],
    }  # fmt: skip
    return Kernel(name, op, **{**base, **more})


def row(site: Site, name: str = "k", rows: int = 1, time_us: float = 10.0, launch: Launch | None = None) -> Row:
    return Row(
        kernel=name, dims=timed_dims(site), dtypes=tuned.dtype_names(site), formats=tuned.formats(site), rows=rows,
        launch=dict({"block": 32, "level": "plain"} if launch is None else launch), time_us=time_us,
        roofline_share=0.9, error=1e-6,
    )  # fmt: skip


def table(rows: Iterable[Row], profile: Profile = H200, op: str = "linear", **more: Any) -> Table:
    facts: dict[str, Any] = {
        "op": op, "family": profile.tuning_family, "vendor": profile.vendor, "arch": profile.arch,
        "units": profile.compute.units, "profile": profile.name, "device": profile.title,
        "date": datetime.date(2026, 11, 25), "torch": "2.13.0", "triton": "3.9.0", "read_gb_per_s": 4000.0,
        "matrix_tflops": {"bfloat16": 700.0},
    }  # fmt: skip
    return Table(**{**facts, **more}, rows=list(rows))


def bound(
    site: Site, made: Sequence[Kernel], rows: Sequence[Table] = (), policy: contract.Policy | None = None,
    profile: Profile = H200,
) -> Binding:  # fmt: skip
    return bind((site,), profile, policy or Policy(), kernels={each.name: each for each in made}, tuned=Tuned(rows))


def outcome(binding: Binding) -> list[tuple[str, str | None, Any]]:
    return [(each.chosen, each.source, each.launch.get("block")) for each in binding.sites[0].choices]


# The reader


def put(folder: Path, record: Any, family: str = "sm_90-132", op: str = "linear") -> Path:
    path = folder / family / f"{op}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path


def plain(rows: Iterable[Any] = (), **more: Any) -> dict[str, Any]:
    return {**msgspec.to_builtins(table(rows)), **more}


scalars = st.one_of(st.booleans(), st.integers(0, 1 << 20), st.floats(0.1, 1e3), st.text(max_size=4), st.none())
launches = st.dictionaries(st.text(min_size=1, max_size=4), st.one_of(st.booleans(), st.integers(), st.text()))
rows_made = st.builds(
    Row, kernel=st.sampled_from("abc"), dims=st.dictionaries(st.sampled_from("NKT"), scalars),
    dtypes=st.dictionaries(st.sampled_from("xy"), st.sampled_from(["float32", "bfloat16"])),
    formats=st.sampled_from([["dense"], [], ["int4"]]), rows=st.integers(1, 1 << 20), launch=launches,
    time_us=st.floats(1e-3, 1e6), roofline_share=st.floats(1e-3, 10), error=st.floats(0, 1),
)  # fmt: skip


@given(st.lists(rows_made, max_size=5, unique_by=lambda each: each.key))
@settings(deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, made: list[Row]) -> None:
    path = put(tmp_path_factory.mktemp("tuned"), written(table(made)))
    assert read(path) == table(sorted(made, key=lambda each: each.key))


WRONG: list[tuple[Any, str]] = [
    ("{", "truncated"),
    ([], "Expected `object`, got `array`"),
    ({"op": "linear"}, "missing required field `family`"),
    (plain(speed=3), "unknown field `speed`"),
    (plain(read_gb_per_s=0), "Expected `float` > 0.0 - at `$.read_gb_per_s`"),
    (plain(date="yesterday"), "Invalid RFC3339"),
    (plain(rows=[{**msgspec.to_builtins(row(linear_site())), "rows": 0}]), "at `$.rows[0].rows`"),
    (plain(rows=[{**msgspec.to_builtins(row(linear_site())), "time_us": "fast"}]), "at `$.rows[0].time_us`"),
    (plain(rows=[{**msgspec.to_builtins(row(linear_site())), "launch": {"block": [1]}}]), "at `$.rows[0].launch[...]`"),
    (plain([row(linear_site()), row(linear_site(), time_us=3.0)]), "hold two of k"),
    (plain(family="sm_80-108"), "are of linear and family sm_80-108: they belong in sm_80-108/linear.json"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "text"), WRONG, ids=[text for _, text in WRONG])
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, record: Any, text: str) -> None:
    path = put(tmp_path, record)
    with pytest.raises(TunedError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_row_that_is_shipped_can_be_read() -> None:
    for found in tuned.load(tuned.FOLDER):
        for each in found.rows:
            assert each.kernel in discovery.kernels(), f"{found.family}/{found.op}: {each.kernel} is gone"
            assert discovery.kernels()[each.kernel].op == found.op


def test_every_launch_that_is_shipped_is_one_that_its_kernel_takes() -> None:
    for found in tuned.load(tuned.FOLDER):
        profile = load(found.profile)
        for each in found.rows:
            dtypes = {name: getattr(torch, word) for name, word in each.dtypes.items()}
            where, bucket = Site(found.op, "w", each.dims, dtypes), bucket_of(each.rows, contract.Policy())
            reason = launch_reason(discovery.kernels()[each.kernel], where, profile, bucket, each.launch)
            assert reason is None, f"{found.family}/{found.op}: {each.kernel} of {each.rows} rows: {reason}"


# Exact, near, derived


def test_the_order_of_sources() -> None:
    site, made = linear_site(), [kernel("k")]
    exact = table([row(site, rows=1), row(site, rows=512, launch={"block": 64, "level": "plain"})])
    assert outcome(bound(site, made, [exact])) == [
        ("k", "exact", 32),  # 1 row
        ("k", "derived", 16),  # 8: nothing within a factor of 2
        ("k", "derived", 16),  # 64
        ("k", "exact", 64),  # 512
        ("k", "derived", 16),  # beyond: 4,096 rows stand for it
    ]
    wider = linear_site(outputs=128)
    assert outcome(bound(wider, made, [exact]))[0] == ("k", "near", 32)
    assert outcome(bound(linear_site(outputs=64 * 16), made, [exact]))[0] == ("k", "derived", 16)


def test_the_own_family_comes_before_others_and_other_vendors_never() -> None:
    site, made = linear_site(outputs=128), [kernel("k")]
    far = table([row(linear_site(outputs=256), launch={"block": 64, "level": "plain"})])
    same_size = row(site, launch={"block": 128, "level": "plain"})
    assert outcome(bound(site, made, [table([same_size], B200), far]))[0] == ("k", "near", 64)
    assert outcome(bound(site, made, [table([same_size], B200)]))[0] == ("k", "near", 128)
    assert outcome(bound(site, made, [table([same_size], MI300X)]))[0] == ("k", "derived", 16)
    cut = H200.on_device(units=78)
    both = [table([same_size]), table([row(site)], B200)]
    assert outcome(bound(site, made, both, profile=cut))[0] == ("k", "near", 128)


def test_a_launch_that_does_not_fit_is_passed_over() -> None:
    site, big = linear_site(), {"block": 100, "level": "plain"}
    rows = [table([row(site, launch=big)], MI300X), table([row(linear_site(outputs=128))], MI300X)]
    assert outcome(bound(site, [kernel("k")], rows, profile=MI300X))[0] == ("k", "near", 32)
    own = [table([row(site, launch=big)])]
    assert outcome(bound(site, [kernel("k")], own))[0] == ("k", "exact", 100)


def test_a_row_for_a_kernel_that_changed_is_passed_over() -> None:
    site = linear_site()
    for launch in ({"tile": 32}, {"block": 32}, {"block": 32, "level": "amx"}, {"block": 32, "level": True}):
        assert outcome(bound(site, [kernel("k")], [table([row(site, launch=launch)])]))[0] == ("k", "derived", 16)
    levels = kernel("k", configurations=lambda *_: [{"block": 16, "level": "amx"}])
    found = bound(site, [levels], [table([row(site, launch={"block": 32, "level": "amx"})])])
    assert outcome(found)[0] == ("k", "exact", 32)


def test_a_kernel_may_refuse_a_launch() -> None:
    odd = kernel("k", refuses_launch=lambda site, profile, launch: (
        Reason("shape", "takes even blocks") if launch["block"] % 2 else None
    ))  # fmt: skip
    site = linear_site()
    rows = table([row(site, launch={"block": 33, "level": "plain"})])
    assert outcome(bound(site, [odd], [rows]))[0] == ("k", "derived", 16)
    assert str(launch_reason(odd, site, H200, 1, {"block": 33, "level": "plain"})) == "shape: takes even blocks"


def test_a_kernel_that_does_not_say_its_memory_gets_only_what_it_offers() -> None:
    silent = {"on_chip_bytes": None}
    site, rows = linear_site(), [table([row(linear_site())])]
    assert outcome(bound(site, [kernel("k", **silent)], rows))[0] == ("k", "derived", 16)
    offers = kernel("k", **silent, configurations=lambda *_: [{"block": 32, "level": "plain"}])
    assert outcome(bound(site, [offers], rows))[0] == ("k", "exact", 32)


sizes = st.sampled_from([16, 32, 64, 128, 256, 1024])
measured = st.builds(
    lambda outputs, rows, block, family: (outputs, rows, block, family),
    sizes, sizes, st.sampled_from([8, 32, 64, 100, 230]), st.sampled_from([H200, B200, MI300X]),
)  # fmt: skip


@given(st.lists(measured, max_size=8), st.randoms(use_true_random=False), sizes, st.sampled_from([H200, MI300X]))
@settings(deadline=None, max_examples=150)
def test_the_nearest_row_does_not_depend_on_order_and_always_fits(
    made: list[tuple[int, int, int, Profile]], shuffle: Any, outputs: int, profile: Profile
) -> None:
    site, k = linear_site(outputs=outputs), kernel("k")
    tables = [
        table([row(linear_site(outputs=n), rows=rows, launch={"block": block, "level": "plain"})], family)
        for n, rows, block, family in made
    ]
    first = outcome(bound(site, [k], tables, profile=profile))
    shuffle.shuffle(tables)
    assert outcome(bound(site, [k], tables, profile=profile)) == first
    limit = profile.on_chip.shared_memory_per_block_kib
    assert limit is not None
    assert all(block <= limit for _, _, block in first)
    own = {block for *_, block, family in made if family.vendor == profile.vendor}
    assert {block for _, source, block in first if source != "derived"} <= own


@given(sizes, sizes, sizes, sizes)
def test_distance_is_symmetric(outputs: int, other: int, rows: int, others: int) -> None:
    there = distance(row(linear_site(outputs), rows=rows), timed_dims(linear_site(other)), others)
    assert there == distance(row(linear_site(other), rows=others), timed_dims(linear_site(outputs)), rows)
    assert (there == 0) == ((outputs, rows) == (other, others))
    assert (there is None) == (
        max(outputs, other) > 8 * min(outputs, other) or max(rows, others) > 2 * min(rows, others)
    )
    assert there is None or there <= math.log(8) + math.log(2) + 1e-6


def test_ties_are_settled_by_name() -> None:
    site = linear_site(outputs=128)
    half, double = (row(linear_site(outputs=n), launch={"block": n // 4, "level": "plain"}) for n in (64, 256))
    for rows in ([half, double], [double, half]):
        assert outcome(bound(site, [kernel("k")], [table(rows)]))[0] == ("k", "near", 64)  # "256" comes before "64"


def test_flags_and_what_is_nothing_are_not_near_anything() -> None:
    site = linear_site()
    with_bias = msgspec.structs.replace(row(site), dims={**timed_dims(site), "bias": True})
    assert distance(with_bias, timed_dims(site), 1) is None
    assert distance(msgspec.structs.replace(row(site), dims={"N": 64}), timed_dims(site), 1) is None
    assert "eps" in normed_site().dims
    assert "eps" not in timed_dims(normed_site())


# Which kernel


def test_the_fastest_of_the_measured_wins_and_the_loser_says_both_times() -> None:
    site, made = linear_site(), [kernel("first", priority=90), kernel("second", priority=10)]
    rows = table([row(site, "first", time_us=12.1), row(site, "second", time_us=9.8)])
    binding = bound(site, made, [rows])
    assert [name for name, *_ in outcome(binding)] == ["second", "first", "first", "first", "first"]
    loser = binding.sites[0].choices[0].refused["first"]
    assert str(loser) == "policy: 12.1 us measured, second took 9.8"
    assert str(binding.sites[0].choices[1].refused["second"]) == "policy: first comes before it"


@pytest.mark.parametrize("only", ["first", "second"])
def test_one_measured_kernel_proves_nothing(only: str) -> None:
    site, made = linear_site(), [kernel("first", priority=90), kernel("second", priority=10)]
    assert outcome(bound(site, made, [table([row(site, only)])]))[0][0] == "first"


def test_rows_of_another_family_do_not_choose_a_kernel() -> None:
    site, made = linear_site(), [kernel("first", priority=90), kernel("second", priority=10)]
    rows = table([row(site, "first", time_us=12.0), row(site, "second", time_us=9.0)], B200)
    assert outcome(bound(site, made, [rows]))[0] == ("first", "near", 32)


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 99), min_size=1), st.permutations(range(4)))
@settings(deadline=None)
def test_times_rank_the_measured_and_priorities_the_others(times: dict[str, int], priorities: Sequence[int]) -> None:
    site = linear_site()
    made = [kernel(name, priority=number) for name, number in zip("abcd", priorities, strict=True)]
    binding = bound(site, made, [table([row(site, name, time_us=time) for name, time in times.items()])])
    chosen = binding.sites[0].choices[0].chosen
    top = max(made, key=lambda each: each.priority).name
    assert chosen == (min(times, key=lambda name: (times[name], name)) if top in times else top)


def test_times_are_compared_at_one_number_of_rows() -> None:
    site, made = linear_site(), [kernel("first", priority=90), kernel("second", priority=10)]
    apart = table([row(site, "first", rows=40, time_us=12.0), row(site, "second", rows=17, time_us=9.0)])
    assert outcome(bound(site, made, [apart]))[2] == ("first", "exact", 32)
    both = table([*apart.rows, row(site, "second", rows=40, time_us=11.0), row(site, "second", rows=64, time_us=99.0)])
    binding = bound(site, made, [both])
    assert outcome(binding)[2][0] == "second"
    assert str(binding.sites[0].choices[2].refused["first"]) == "policy: 12.0 us measured, second took 11.0"
    parts = normed_site()
    whole = table([row(parts, "whole", rows=33, time_us=9.0)], op="norm_linear")
    norm, product = (table([row(part, name, rows=34, time_us=1.0)], op=part.op)
                     for part, name in zip(parts.parts, ("norm", "product"), strict=True))  # fmt: skip
    found = [kernel("whole", "norm_linear"), kernel("norm", "rms_norm"), kernel("product")]
    assert outcome(bound(parts, found, [whole, norm, product]))[2][0] == "whole"


def test_a_choice_is_kept_against_the_times() -> None:
    site, made = linear_site(), [kernel("first", priority=90), kernel("second", priority=10)]
    rows = [table([row(site, "first", time_us=12.1), row(site, "second", time_us=9.8)])]
    assert outcome(bound(site, made, rows, Policy(choices={"linear": "first"})))[0][0] == "first"


def test_the_layout_follows_the_measured_kernel() -> None:
    site = linear_site()
    made = [kernel("panels", priority=90, layout=PANEL16), kernel("rows", priority=10)]
    times = {"panels": 12.0, "rows": 9.0}
    rows = table([row(site, name, rows=n, time_us=t) for name, t in times.items() for n in (1, 8, 64, 512, 4096)])
    assert bound(site, made).weight_layouts["w"] is PANEL16
    binding = bound(site, made, [rows])
    assert binding.weight_layouts["w"].name == "row_major"
    assert {name for name, *_ in outcome(binding)} == {"rows"}


def test_parts_that_were_measured_faster_are_taken() -> None:
    site = normed_site()
    norm, product = site.parts
    made = [kernel("whole", "norm_linear"), kernel("norm", "rms_norm"), kernel("product")]

    def rows(whole: float, product_us: float | None) -> list[Table]:
        products = [row(product, "product", time_us=product_us)] if product_us else []
        return [table([row(site, "whole", time_us=whole)], op="norm_linear"), table(products),
                table([row(norm, "norm", time_us=2.0)], op="rms_norm")]  # fmt: skip

    taken = bound(site, made, rows(12.0, 9.0)).sites[0]
    assert [choice.chosen for choice in taken.choices] == ["parts", "whole", "whole", "whole", "whole"]
    assert str(taken.choices[0].refused["whole"]) == "policy: 12.0 us measured, its parts took 11.0"
    assert [part.choices[0].chosen for part in taken.parts] == ["norm", "product"]
    assert outcome(bound(site, made, rows(12.0, 11.0)))[0][0] == "whole"
    assert outcome(bound(site, made, rows(12.0, None)))[0][0] == "whole"
    kept = bound(site, made, rows(12.0, 9.0), Policy(choices={"norm_linear": "whole"}))
    assert outcome(kept)[0][0] == "whole"


def test_parts_that_compute_between_the_calls_are_not_added_up() -> None:
    def forward(ops: Any) -> None:
        weight, x = dense("w", torch.empty((32, 32), device=META)), torch.empty((5, 32), device=META)
        ops.linear_add(x, weight, x)

    site = sites_of(forward)[0]
    made = [kernel("whole", "linear_add"), kernel("product")]
    rows = [table([row(site, "whole", time_us=12.0)], op="linear_add"),
            table([row(site.parts[0], "product", time_us=2.0)])]  # fmt: skip
    assert outcome(bound(site, made, rows))[0][0] == "whole"


def test_another_package_brings_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, plain([row(linear_site())]))
    monkeypatch.setattr(tuned, "plugins", lambda group: {"mine": str(tmp_path)} if group == "tuned" else {})
    site = linear_site()
    found = tuned.found.__wrapped__()
    binding = bind((site,), H200, kernels={"k": kernel("k")}, tuned=found)
    assert outcome(binding)[0] == ("k", "exact", 32)


# Determinism


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 8, 64, 512, 4096]), st.integers(1, 99),
                       st.sampled_from([8, 32, 64])), max_size=8, unique_by=lambda each: each[:2]),
    st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_at_batch_one_kernel_with_one_launch_serves_all_buckets(
    made: list[tuple[str, int, int, int]], composite: bool
) -> None:
    site, op = (normed_site(), "norm_linear") if composite else (linear_site(), "linear")
    rows = [row(site, name, n, t, {"block": block, "level": "plain"}) for name, n, t, block in made]
    found = [kernel("a", op, launch=lambda s, p, b: {"block": min(b, 99), "level": "plain"}), kernel("b", op)]
    binding = bound(site, found, [table(rows, op=op)], Policy(determinism=Determinism.BATCH))
    choices = binding.sites[0].choices
    assert len({(choice.chosen, tuple(sorted(choice.launch.items()))) for choice in choices}) == 1
    first = [each for each in rows if each.kernel == choices[0].chosen and each.rows == 1]
    assert (choices[0].source == "exact") == bool(first)
    assert not first or choices[-1].launch == first[0].launch
    assert {choice.source for choice in choices[1:]} <= {"near", "derived"}


# What is asked for


def test_launch_parameters_can_be_chosen() -> None:
    site, made = linear_site(), [kernel("k")]
    policy = Policy(choices={"linear@w": "k{block=48}"})
    assert outcome(bound(site, made, [table([row(site)])], policy)) == [("k", "explicit", 48)] * 5
    binding = bound(site, made, policy=policy)
    assert binding.sites[0].choices[0].launch == {"block": 48, "level": "plain"}


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("k{block=4096}", "k cannot be launched for linear@w as asked: on_chip_bytes: needs 4,194,304 bytes a block"),
        ("k{tile=1}", "k cannot be launched for linear@w as asked: launch: has block, level, not tile"),
        ("k{level=amx}", "launch: offers no level=amx on nvidia-h200-sxm"),
        ("reference{block=1}", "reference cannot be launched for linear@w as asked: has no launch parameters"),
        ("k{block}", "'k{block}' is not NAME{parameter=value,…}"),
        ("k{block=1", "is not NAME{parameter=value,…}"),
    ],
)
def test_a_launch_that_cannot_be_met_is_an_error(choice: str, text: str) -> None:
    with pytest.raises(BindingError) as caught:
        bound(linear_site(), [kernel("k")], policy=Policy(choices={"linear": choice}))
    assert text in str(caught.value)


def test_a_choice_is_read() -> None:
    assert parse_choice("k") == ("k", {})
    assert parse_choice("k{a=1,b=true, c=amx}") == ("k", {"a": 1, "b": True, "c": "amx"})


# The record


def test_the_manifest_and_its_fingerprint_know_where_a_launch_comes_from() -> None:
    site, same = linear_site(), {"block": 16, "level": "plain"}
    derived, exact = bound(site, [kernel("k")]), bound(site, [kernel("k")], [table([row(site, launch=same)])])
    sources = [choice["launch_source"] for choice in manifest(exact)["sites"][0]["choices"]]
    assert sources == ["exact", "derived", "derived", "derived", "derived"]
    assert [each.launch for each in exact.sites[0].choices] == [each.launch for each in derived.sites[0].choices]
    assert fingerprint(exact) != fingerprint(derived)
    assert json.loads(json.dumps(manifest(exact)))["sites"][0]["choices"][0]["launch"] == same


def test_a_pick_is_made_once() -> None:
    asked: list[int] = []

    def counted(site: Site, profile: Profile, bucket: int) -> Mapping[str, Any]:
        asked.append(bucket)
        return default(site, profile, bucket)

    launches_here = Launches(H200, Tuned(), BUCKETS, single=False)
    made, site = kernel("k", launch=counted), linear_site()
    assert launches_here.pick(made, site, 8) is launches_here.pick(made, site, 8)
    assert asked == [8]
