"""The faces of the C library as the binding calls them: the ops' meaning on every twin, strides, batches, threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from ambidex.hwprofiles.reader import load as load_profile
from ambidex.hwprofiles.schema import Profile
from ambidex.kernels.cpu import language, levels
from ambidex.kernels.cpu.library import Level, LibraryMissing, load
from ambidex.ops import discovery
from ambidex.ops.binding import UNBOUNDED, bind
from ambidex.ops.contract import Kernel, Op, Policy
from ambidex.ops.layouts import PANEL16, ROW_MAJOR, dense
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.state import Pages, Plane, StateGroup
from ambidex.ops.tracing import Recorder
from ambidex.ops.types import Determinism, Reason, Site, Weight

built = pytest.mark.skipif(language.missing() is not None, reason=str(language.missing()))

F32, BF16 = torch.float32, torch.bfloat16
CPU = torch.device("cpu")
OPS = discovery.ops()
SERVED = {name: kernel for name, kernel in discovery.kernels().items() if kernel.language == "cpu"}
MEANING = ReferenceOps(OPS)
AMX = load_profile("cpu-amx")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def usable_levels() -> list[str]:
    return [name for name, code in levels.LEVELS.items() if code <= load().cpu_level]


def best_level() -> str:
    return load().cpu_level.name.lower()


def laid_out(kernel: Kernel, argument: Any) -> Any:
    """A weight in the layout that the kernel reads; anything else as it is."""
    if isinstance(argument, Weight) and len(argument.shape) == 2:
        return dense(argument.role, argument.logical(), kernel.layout)
    return argument


def copied(argument: Any) -> Any:
    """Pages that a call may write, apart from those of another call."""
    if isinstance(argument, Pages):
        return replace(argument, planes={name: plane.clone() for name, plane in argument.planes.items()})
    return argument


def on_meta(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.to("meta")
    if isinstance(argument, Weight):
        values = argument.values.to("meta")
        return replace(argument, tensors={"values": values})
    if isinstance(argument, Pages):
        return replace(argument, planes={name: plane.to("meta") for name, plane in argument.planes.items()})
    return argument


def site_of(op: str, *args: Any, **params: Any) -> Site:
    recorder = Recorder(OPS, num_logits=-1)
    getattr(recorder, op)(*(on_meta(argument) for argument in args), **params)
    return recorder.sites[0]


def observed(op: Op, function: Callable[..., Any], args: tuple[Any, ...], params: Mapping[str, Any]) -> list[Any]:
    owned = tuple(copied(argument) for argument in args)
    return [tensor.clone() for tensor in op.observe(function(*owned, **params), owned)]


def launched(kernel: Kernel, level: str) -> dict[str, str]:
    return {"level": level} if kernel.launch else {}


def largest(tensor: torch.Tensor) -> float:
    return float(tensor.nan_to_num().abs().max())


def assert_near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.dtype == wanted.dtype
    if not got.is_floating_point():
        assert torch.equal(got, wanted)
        return
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * largest(wanted), equal_nan=True)


def twins() -> list[Any]:
    return [
        pytest.param(kernel, case.twin, dtype, id=f"{name}-{case}-{dtype}".replace("torch.", ""))
        for name, kernel in SERVED.items()
        for case in OPS[kernel.op].proofs
        for dtype in (F32, BF16)
        if dtype in OPS[kernel.op].tolerance
    ]


@built
@pytest.mark.parametrize(("kernel", "dims", "dtype"), twins())
def test_a_kernel_computes_its_op_or_says_why_not(kernel: Kernel, dims: Mapping[str, Any], dtype: torch.dtype) -> None:
    op = OPS[kernel.op]
    args, params = op.inputs(dims, dtype, CPU, generator())
    reason = kernel.refuses(site_of(kernel.op, *args, **params), AMX, 1) if kernel.refuses else None
    if reason is not None:
        assert reason.code == "shape"
        assert dims.get("I", 0) % 16 or site_of(kernel.op, *args, **params).dims.get("ancestors")
        return
    wanted = observed(op, MEANING.function(op), args, params)
    given = tuple(laid_out(kernel, argument) for argument in args)
    for level in usable_levels():
        got = observed(op, kernel.run, given, {**params, **launched(kernel, level)})
        for each, expected in zip(got, wanted, strict=True):
            assert_near(each, expected, op.tolerance[dtype])


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a slice of a wider tensor: rows apart, the last axis contiguous."""
    wider = torch.full((tensor.shape[0], *tensor.shape[1:-1], tensor.shape[-1] + 3), torch.nan, dtype=tensor.dtype)
    wider[..., : tensor.shape[-1]] = tensor
    return wider[..., : tensor.shape[-1]]


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the first axis contiguous: C cannot read it, the wrapper has to copy."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def first_row(tensor: torch.Tensor) -> torch.Tensor:
    """One row, whose strides torch leaves free: here 1."""
    return torch.as_strided(tensor[:1].clone(), (1, *tensor.shape[1:]), (1, *tensor.stride()[1:]))


def strided_calls() -> list[Any]:
    names = ["linear", "norm_linear", "linear_add", "gated_linear", "rms_norm", "add_rms_norm"]
    return [
        pytest.param(f"{name}_cpu", form, id=f"{name}-{form.__name__}") for name in names for form in (spread, turned)
    ]


@built
@pytest.mark.parametrize(("name", "form"), strided_calls())
def test_strides_do_not_matter(name: str, form: Callable[[torch.Tensor], torch.Tensor]) -> None:
    kernel = SERVED[name]
    op = OPS[kernel.op]
    args, params = op.inputs({**op.cases[0].twin, "T": 5}, BF16, CPU, generator())
    given = [laid_out(kernel, argument) for argument in args]
    strided = [form(argument) if isinstance(argument, torch.Tensor) else argument for argument in given]
    launch = launched(kernel, best_level())
    plain, other = kernel.run(*given, **params, **launch), kernel.run(*strided, **params, **launch)
    assert_same_bits(plain, other)


def assert_same_bits(one: Any, other: Any) -> None:
    for a, b in zip(*(value if isinstance(value, tuple) else (value,) for value in (one, other)), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@built
def test_one_row_of_any_stride() -> None:
    kernel = SERVED["linear_cpu"]
    x, weight = torch.randn((1, 40), generator=generator()), dense("w", torch.randn((32, 40)), PANEL16)
    level = best_level()
    assert first_row(x).stride() == (1, 1)
    assert torch.equal(kernel.run(first_row(x), weight, level=level), kernel.run(x, weight, level=level))


@built
@pytest.mark.parametrize("shape", [(3, 4, 24), (2, 3, 2, 24)])
def test_norms_take_any_number_of_axes(shape: tuple[int, ...]) -> None:
    x, residual = torch.randn(shape, generator=generator()), torch.randn(shape, generator=generator(1))
    weight = dense("norm", torch.rand(24, generator=generator(2)))
    level = best_level()
    for given in (x, turned(x)):
        y = SERVED["rms_norm_cpu"].run(given, weight, eps=1e-5, level=level)
        assert_near(y, MEANING.rms_norm(x, weight, eps=1e-5), 1e-6)
        both = SERVED["add_rms_norm_cpu"].run(given, residual, weight, eps=1e-5, level=level)
        for got, wanted in zip(both, MEANING.add_rms_norm(x, residual, weight, eps=1e-5), strict=True):
            assert_near(got, wanted, 1e-6)


@built
def test_bias_and_norm_may_be_float32_beside_bfloat16() -> None:
    op, kernel = OPS["norm_linear"], SERVED["norm_linear_cpu"]
    (x, _, weight, _), params = op.inputs({"T": 5, "N": 48, "K": 64}, BF16, CPU, generator())
    norm, bias = dense("norm", torch.rand(64) + 0.5), dense("bias", torch.randn(48))
    packed = laid_out(kernel, weight)
    assert kernel.refuses is not None
    assert kernel.refuses(site_of("norm_linear", x, norm, weight, bias, **params), AMX, 8) is None
    got = kernel.run(x, norm, packed, bias, **params, level=best_level())
    assert_near(got, MEANING.norm_linear(x, norm, weight, bias, **params), op.tolerance[BF16])


@built
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", ["linear", "norm_linear", "linear_add", "gated_linear"])
def test_a_row_has_the_same_bits_in_every_batch(name: str, dtype: torch.dtype) -> None:
    kernel, op = SERVED[f"{name}_cpu"], OPS[name]
    dims = {"T": 40, "N": 96, "I": 48, "K": 200, "norm": True, "bias": True}
    args, params = op.inputs(dims, dtype, CPU, generator())
    given = [laid_out(kernel, argument) for argument in args]
    for level in usable_levels():
        whole = kernel.run(*given, **params, level=level)
        for num_rows in range(1, 41):
            begin = 40 - num_rows if num_rows % 2 else 0
            part = [a[begin : begin + num_rows] if isinstance(a, torch.Tensor) else a for a in given]
            assert torch.equal(kernel.run(*part, **params, level=level), whole[begin : begin + num_rows])


@built
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_attention_of_a_request_has_the_same_bits_alone_and_in_chunks(dtype: torch.dtype) -> None:
    kernel, op = SERVED["paged_attention_cpu"], OPS["paged_attention"]
    queries, contexts = (1, 70, 7), (150, 70, 90)
    dims = {"H": 4, "G": 2, "D": 64, "page_size": 16, "queries": queries, "contexts": contexts}
    (q, pages, attending), params = op.inputs(dims, dtype, CPU, generator())
    for level in usable_levels():
        whole = kernel.run(q, pages, attending, **params, level=level)
        start = 0
        for index, (num_queries, context) in enumerate(zip(queries, contexts, strict=True)):
            for first in range(0, num_queries, 33):
                count = min(33, num_queries - first)
                alone = replace(
                    attending,
                    query_starts=torch.tensor([0, count], dtype=torch.int32),
                    context_lengths=torch.tensor([context - num_queries + first + count], dtype=torch.int32),
                    page_tables=attending.page_tables[index : index + 1],
                    num_queries=count,
                )
                rows = slice(start + first, start + first + count)
                assert torch.equal(kernel.run(q[rows], pages, alone, **params, level=level), whole[rows])
            start += num_queries


@built
def test_attention_reads_strided_operands_and_zeroes_padding() -> None:
    kernel, op = SERVED["paged_attention_cpu"], OPS["paged_attention"]
    dims = {"H": 4, "G": 2, "D": 64, "page_size": 16, "queries": (1, 9), "contexts": (40, 9)}
    (q, pages, attending), params = op.inputs(dims, BF16, CPU, generator())
    level = best_level()
    wanted = kernel.run(q, pages, attending, **params, level=level)
    both = torch.stack([pages.planes["k"], pages.planes["v"]], dim=1)
    apart = replace(pages, planes={"k": both[:, 0], "v": both[:, 1]})
    wide_tables = torch.full((2, 9), 10_000, dtype=torch.int32)
    wide_tables[:, 2:5] = attending.page_tables
    sliced = replace(attending, page_tables=wide_tables[:, 2:5])
    padded = torch.cat([q.view(len(q), -1), torch.full((3, 256), torch.nan, dtype=BF16)]).view(-1, 4, 64)
    got = kernel.run(spread(padded), apart, sliced, **params, level=level)
    assert torch.equal(got[: len(q)], wanted)
    assert torch.equal(got[len(q) :], torch.zeros_like(got[len(q) :]))


@built
def test_attention_refuses_an_ancestor_mask_at_the_call_too() -> None:
    op = OPS["paged_attention"]
    (q, pages, attending), params = op.inputs(op.cases[0].twin, F32, CPU, generator())
    tree = replace(attending, ancestors=torch.ones((len(q), 1), dtype=torch.bool))
    with pytest.raises(ValueError, match="ancestor mask"):
        SERVED["paged_attention_cpu"].run(q, pages, tree, **params, level="generic")


@built
def test_queries_keys_and_values_from_strided_operands() -> None:
    op, kernel = OPS["qkv_rope_store"], SERVED["qkv_rope_store_cpu"]
    args, params = op.inputs(op.cases[1].twin, BF16, CPU, generator())
    qkv, rotation, pages, slots, *norms = args
    launch = {**params, "level": best_level()}
    wanted = observed(op, kernel.run, args, launch)
    joined = torch.stack([pages.planes["k"], pages.planes["v"]], dim=1)
    apart = replace(pages, planes={"k": joined[:, 0], "v": joined[:, 1]})
    q = kernel.run(spread(qkv), turned(rotation), apart, torch.stack([slots, slots], dim=1)[:, 0], *norms, **launch)
    for got, expected in zip((q, apart.canonical("k"), apart.canonical("v")), wanted, strict=True):
        assert torch.equal(got, expected)


@built
def test_pages_in_another_order_are_an_error_not_a_copy() -> None:
    op = OPS["qkv_rope_store"]
    (qkv, rotation, pages, slots, *norms), params = op.inputs(op.cases[3].twin, F32, CPU, generator())
    wrong = {name: plane.transpose(1, 2).contiguous().transpose(1, 2) for name, plane in pages.planes.items()}
    with pytest.raises(ValueError, match="contiguous in the order HSD"):
        SERVED["qkv_rope_store_cpu"].run(
            qkv, rotation, replace(pages, planes=wrong), slots, *norms, **params, level="generic"
        )


@built
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_embedding_takes_both_kinds_of_ids(dtype: torch.dtype) -> None:
    table = torch.randn((37, 20), generator=generator()).bfloat16()
    ids = torch.tensor([[36, 1], [0, 2], [5, 3]], dtype=dtype)[:, 0]
    got = SERVED["embedding_cpu"].run(ids, dense("embedding", table, PANEL16))
    assert torch.equal(got, table[[36, 0, 5]])


@built
@pytest.mark.parametrize("name", ["linear_cpu", "norm_linear_cpu", "gated_linear_cpu"])
def test_no_rows_give_no_rows(name: str) -> None:
    kernel = SERVED[name]
    op = OPS[kernel.op]
    args, params = op.inputs({"T": 0, "N": 32, "I": 16, "K": 24}, F32, CPU, generator())
    given = [laid_out(kernel, argument) for argument in args]
    y = kernel.run(*given, **params, level=best_level())
    assert (y.shape[0], y.numel()) == (0, 0)


@built
def test_two_threads_call_at_once_with_one_weight() -> None:
    kernel, op = SERVED["gated_linear_cpu"], OPS["gated_linear"]
    args, params = op.inputs({"T": 9, "I": 48, "K": 96, "norm": True, "bias": True}, BF16, CPU, generator())
    _, weight, norm, bias = (laid_out(kernel, argument) for argument in args)
    inputs = [torch.randn((n, 96), generator=generator(n)).bfloat16() for n in range(1, 13)]
    level = best_level()

    def call(index: int) -> Any:
        return kernel.run(inputs[index], weight, norm, bias, **params, level=level)

    wanted = [call(index) for index in range(len(inputs))]

    def rounds(offset: int) -> bool:
        order = [(i + offset) % len(inputs) for i in range(len(inputs))] * 15
        return all(torch.equal(call(index), wanted[index]) for index in order)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(rounds, (0, 5)))


def empty(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def linear_site(x: torch.dtype, weight: torch.dtype, bias: torch.dtype | None, y: torch.dtype) -> Site:
    added = None if bias is None else dense("bias", empty(16, dtype=bias))
    return site_of("linear", empty(2, 8, dtype=x), dense("w", empty(16, 8, dtype=weight)), added, out_dtype=y)


def refused(name: str, site: Site) -> Reason | None:
    kernel = SERVED[name]
    assert kernel.refuses is not None
    return kernel.refuses(site, AMX, 8)


@pytest.mark.parametrize(
    ("dtypes", "code"),
    [
        ((F32, F32, None, F32), None),
        ((BF16, BF16, F32, F32), None),
        ((BF16, BF16, torch.float16, BF16), "dtype"),
        ((BF16, F32, None, BF16), "dtype"),
        ((F32, F32, None, BF16), "dtype"),
    ],
)
def test_a_product_refuses_mixtures_that_c_does_not_serve(dtypes: tuple[Any, ...], code: str | None) -> None:
    reason = refused("linear_cpu", linear_site(*dtypes))
    assert (reason.code if reason else None) == code


def attention_site(
    size: int, k: torch.dtype = F32, v_shape: tuple[int, int] | None = None, trees: bool = False
) -> Site:
    op = OPS["paged_attention"]
    dims = {"H": 2, "G": 2, "D": size, "page_size": 8, "queries": (2,), "contexts": (9,)}
    (q, pages, attending), params = op.inputs(dims, F32, CPU, generator())
    planes = (Plane("k", (2, size), k), Plane("v", v_shape or (2, size), F32))
    group = StateGroup("kv", "paged", planes, 1)
    ancestors = torch.ones((2, 2), dtype=torch.bool) if trees else None
    return site_of("paged_attention", q, replace(pages, group=group), replace(attending, ancestors=ancestors), **params)


@pytest.mark.parametrize(
    ("site", "code", "said"),
    [
        (attention_site(64, trees=True), "shape", "ancestor"),
        (attention_site(7), "shape", "even head size of at most 512, not 7"),
        (attention_site(514), "shape", "not 514"),
        (attention_site(64, k=torch.float16), "dtype", "pages of x's dtype float32, not float16"),
        (attention_site(64, v_shape=(2, 32)), "format", "planes k and v of one shape"),
    ],
)
def test_attention_refuses_what_c_does_not_serve(site: Site, code: str, said: str) -> None:
    reason = refused("paged_attention_cpu", site)
    assert reason is not None
    assert reason.code == code
    assert said in reason.text
    assert refused("paged_attention_cpu", attention_site(64)) is None


def test_a_gate_that_shares_a_panel_with_up_is_refused() -> None:
    fits, straddles = ([empty(2, 8), dense("w", empty(2 * i, 8))] for i in (48, 40))
    assert refused("gated_linear_cpu", site_of("gated_linear", *fits)) is None
    reason = refused("gated_linear_cpu", site_of("gated_linear", *straddles))
    assert reason is not None
    assert str(reason) == "shape: takes a width that is a multiple of 16, not 40"


def test_a_tied_table_lies_in_panels_and_an_untied_one_in_rows() -> None:
    table, ids = dense("embedding", empty(64, 32)), torch.zeros(3, dtype=torch.int64)
    tied = (site_of("embedding", ids, table), site_of("linear", empty(3, 32), table))
    for policy in (Policy(), Policy(determinism=Determinism.BATCH)):
        together, alone = bind(tied, AMX, policy), bind(tied[:1], AMX, policy)
        assert together.weight_layouts["embedding"] is PANEL16
        assert [site.choices[0].chosen for site in together.sites] == ["embedding_cpu", "linear_cpu"]
        assert alone.weight_layouts["embedding"] is ROW_MAJOR
        assert alone.sites[0].choices[0].chosen == "embedding_torch"


@pytest.mark.parametrize(
    ("name", "level"),
    [("cpu-amx", "amx"), ("cpu-avx512", "avx512_bf16"), ("cpu-avx2", "avx2"), ("cpu-arm", "generic")],
)
def test_the_profile_chooses_the_level(name: str, level: str) -> None:
    launch = levels.level_launch(linear_site(F32, F32, None, F32), load_profile(name), UNBOUNDED)
    assert launch == {"level": level}


def test_a_level_needs_all_those_below() -> None:
    whole = AMX.capabilities
    assert levels.level_of(whole - {"avx512_bf16"}) is Level.AVX2
    assert levels.level_of(whole - {"fma"}) is Level.GENERIC
    assert levels.level_of(whole - {"amx_tile"}) is Level.AVX512_BF16


@built
def test_on_this_machine_the_library_bounds_the_level() -> None:
    here: Profile = AMX.on_device(units=2, usable_gib=4.0)
    assert levels.level_launch(linear_site(F32, F32, None, F32), here, 1) == {"level": best_level()}


def test_a_missing_library_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise LibraryMissing("the CPU kernels are not built: build them by `make build`")

    monkeypatch.setattr(language, "load", absent)
    assert language.missing() == "the CPU kernels are not built: build them by `make build`"
