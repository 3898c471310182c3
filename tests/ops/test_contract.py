"""Every op keeps the contract: documented, validated in one line, cost in closed form, right against other code."""

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ambidex.bench.operands import on_device
from ambidex.bench.trials import Trial, reference_kernel, tensors_of, work_of
from ambidex.ops import discovery
from ambidex.ops.contract import Arguments, Op, Policy
from ambidex.ops.layouts import ROW_MAJOR, dense
from ambidex.ops.reference import ReferenceOps
from ambidex.ops.state import Attending, Pages
from ambidex.ops.types import ONE_DEVICE, Mesh, Weight, Work, dtype_name
from torch.nn import functional

OPS = discovery.ops()
TRIALS = [
    Trial(op, reference_kernel(op), case, dtype) for op in OPS.values() for case in op.proofs for dtype in op.tolerance
]
NAMED = {
    "add_rms_norm", "all_reduce", "all_reduce_add_norm", "embedding", "gated_linear", "linear", "linear_add",
    "linear_all_reduce", "norm_linear", "norm_qkv_rope_store", "paged_attention", "qkv_rope_store", "rms_norm", "rope",
    "rotation", "sample", "silu_and_mul", "store_kv",
}  # fmt: skip


def call(name: str, *args: Any, **params: Any) -> Any:
    return ReferenceOps(OPS).function(OPS[name])(*args, **params)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first_trial(name: str) -> Trial:
    return next(trial for trial in TRIALS if trial.op.name == name)


def test_the_ops_that_models_need_are_there() -> None:
    assert set(OPS) >= NAMED


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_an_op_says_what_it_computes(op: Op) -> None:
    text = sys.modules[op.check.__module__].__doc__ or ""
    first = text.splitlines()[0]
    assert first.startswith(f"{op.name}: ")
    assert re.search(r"\[[^\]]*[A-Z.][^\]]*\]|list of all ranks", text), "no shapes"
    assert len(op.cases) >= 1
    assert set(op.tolerance) <= {torch.float32, torch.bfloat16, torch.float16}


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_cases_have_names_of_their_own_and_twins_of_the_same_form(op: Op) -> None:
    names = [case.name for case in op.cases]
    assert len(set(names)) == len(names)
    for case in op.cases:
        assert set(case.dims) == set(case.twin)
        for size in ("page_size", "window", "softcap", "norm", "bias", "logits"):
            assert case.dims.get(size) == case.twin.get(size)
        assert volume(case.twin) <= max(volume(case.dims), 1)


def volume(dims: Any) -> int:
    total = 1
    for value in dims.values():
        total *= max(1, sum(value) if isinstance(value, tuple) else int(value))
    return total


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_validation_announces_what_the_reference_returns(trial: Trial) -> None:
    args, params = trial.operands
    signature = trial.op.check(*args, **params)
    on_meta = trial.op.check(*on_device(args, "meta"), **params)
    assert (on_meta.dims, on_meta.dtypes, on_meta.outputs) == (signature.dims, signature.dtypes, signature.outputs)
    result = trial.kernel.run(*args, **params)
    assert tuple((tuple(y.shape), y.dtype) for y in tensors_of(result)) == signature.outputs
    assert signature.dtypes["x"] in (trial.dtype, torch.float32)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_cost_is_positive_and_grows_with_the_work(trial: Trial) -> None:
    work = work_of(trial.operands[0], trial.num_rows)
    twice = Work(2 * work.rows, 2 * work.num_requests, 2 * work.context_tokens, 2 * work.pairs)
    once, more = trial.op.cost(trial.site, work), trial.op.cost(trial.site, twice)
    alone = trial.op.name == "all_reduce"
    assert once.num_bytes >= (0 if alone else 1)
    assert more.num_bytes >= once.num_bytes + (0 if alone else 1)
    assert more.num_operations >= once.num_operations >= 0
    assert once.num_bytes >= trial.site.weight_bytes * (trial.op.name != "embedding")


def test_a_product_that_stores_costs_what_its_parts_compute_and_moves_less() -> None:
    site = first_trial("norm_qkv_rope_store").site
    work = Work(rows=3)
    whole = OPS["norm_qkv_rope_store"].cost(site, work)
    parts = [OPS[part.op].cost(part, work) for part in site.parts]
    assert whole.num_operations == sum(each.num_operations for each in parts)
    assert whole.num_bytes == parts[0].num_bytes < sum(each.num_bytes for each in parts)


def test_the_cost_of_a_product_is_its_weight_its_operands_and_two_operations_a_term() -> None:
    weight = dense("w", normal(6, 4).bfloat16())
    site = Trial(
        replace(OPS["linear"], inputs=lambda *_: ((normal(3, 4).bfloat16(), weight), {})),
        reference_kernel(OPS["linear"]), OPS["linear"].cases[0], torch.bfloat16,
    ).site  # fmt: skip
    cost = OPS["linear"].cost(site, Work(rows=3))
    assert (cost.num_bytes, cost.num_operations) == (2 * (6 * 4 + 3 * 4 + 3 * 6), 2 * 3 * 6 * 4)


def test_attention_counts_pairs_under_causality_and_window() -> None:
    trials = {trial.case.name: trial for trial in TRIALS if trial.op.name == "paged_attention"}
    prefill = trials["llama-3.1-8b-prefill"]
    tokens = prefill.num_rows
    assert work_of(prefill.operands[0], tokens) == Work(tokens, 1, tokens, tokens * (tokens + 1) // 2)
    window = trials["mistral-window"]
    assert work_of(window.operands[0], window.num_rows).pairs == 20 * (1 + 12)


def bad(change: Callable[[list[Any], dict[str, Any]], None]) -> Callable[[Arguments], Arguments]:
    def changed(operands: Arguments) -> Arguments:
        args, params = list(operands[0]), dict(operands[1])
        change(args, params)
        return tuple(args), params

    return changed


def put(index: int, value: Any) -> Callable[[Arguments], Arguments]:
    return bad(lambda args, params: args.__setitem__(index, value))


FAULTS = [
    ("add_rms_norm", put(1, normal(2, 3))),
    ("all_reduce", put(0, torch.ones(2, 2, dtype=torch.int32))),
    ("all_reduce_add_norm", put(1, normal(2, 3))),
    ("embedding", put(0, torch.ones(2, 2, dtype=torch.int64))),
    ("embedding", put(0, torch.ones(2))),
    ("gated_linear", put(1, dense("w", normal(3, 64)))),
    ("linear", put(0, normal(2, 3))),
    ("linear", put(0, normal(2, 3, 4))),
    ("linear", put(2, dense("b", normal(3)))),
    ("linear_add", put(2, normal(2, 3))),
    ("linear_all_reduce", put(0, normal(2, 3))),
    ("norm_linear", put(1, dense("n", normal(3)))),
    ("norm_qkv_rope_store", put(2, dense("w", normal(7, 136)))),
    ("norm_qkv_rope_store", put(4, normal(3, 64))),
    ("paged_attention", put(0, normal(2, 3, 128))),
    ("paged_attention", put(0, normal(2, 4, 7))),
    ("qkv_rope_store", put(0, normal(5, 3))),
    ("qkv_rope_store", put(4, dense("q", normal(128)))),
    ("rms_norm", put(1, dense("n", normal(3)))),
    ("rope", put(1, normal(5, 7))),
    ("rope", put(1, normal(5, 256))),
    ("rotation", put(0, torch.ones(3, 5, dtype=torch.int64))),
    ("sample", put(0, normal(2, 200))),
    ("silu_and_mul", put(0, normal(2, 3))),
    ("store_kv", put(0, normal(2, 3, 4))),
]


def test_every_op_has_a_fault_below() -> None:
    assert {name for name, _ in FAULTS} >= NAMED


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(FAULTS)])
def test_validation_refuses_in_one_line(name: str, fault: Callable[[Arguments], Arguments]) -> None:
    args, params = fault(first_trial(name).operands)
    with pytest.raises(ValueError, match=r"(must be|not a multiple|together|no more|\[gate \| up\])") as caught:
        OPS[name].check(*args, **params)
    assert "\n" not in str(caught.value)


def test_an_op_has_a_reference_or_parts() -> None:
    for op in OPS.values():
        assert (op.reference is None) != (op.parts is None)
    with pytest.raises(AssertionError):
        replace(OPS["linear"], parts=OPS["linear_add"].parts)
    assert list(inspect.signature(OPS["linear_add"].check).parameters)[:3] == ["x", "weight", "residual"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fallback": "sometimes"}, "fallback is 'sometimes', it must be one of allow, warn, forbid"),
        ({"page_sizes": ()}, "page_sizes"),
        ({"buckets": (8, 8)}, "buckets"),
        ({"buckets": (0, 8)}, "buckets"),
    ],
)
def test_a_policy_is_validated(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Policy(**options)


# Other code as the judge


def test_rms_norm_is_torchs() -> None:
    x, weight = normal(5, 64), dense("n", normal(64, seed=1))
    torch.testing.assert_close(
        call("rms_norm", x, weight, eps=1e-5), functional.rms_norm(x, (64,), weight.values, 1e-5)
    )


def test_silu_and_mul_is_torchs() -> None:
    x = torch.cat([normal(4, 10) * 40, normal(4, 10, seed=1)], dim=1)
    torch.testing.assert_close(call("silu_and_mul", x), functional.silu(x[:, :10]) * x[:, 10:])


def test_linear_is_torchs() -> None:
    x, weight, bias = normal(5, 16), dense("w", normal(8, 16, seed=1)), dense("b", normal(8, seed=2))
    torch.testing.assert_close(call("linear", x, weight, bias), functional.linear(x, weight.values, bias.values))


def test_logits_are_not_rounded_on_the_way_to_float32() -> None:
    x, weight = normal(2, 64).bfloat16(), dense("w", normal(8, 64, seed=1).bfloat16())
    y = call("linear", x, weight, out_dtype=torch.float32)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x.float() @ weight.values.float().T)
    assert not torch.equal(y, y.bfloat16().float())


def test_all_reduce_gives_every_rank_the_sum() -> None:
    mesh = Mesh(sizes={"tp": 3})
    ranks = [normal(2, 4, seed=seed) for seed in range(3)]
    results = call("all_reduce", ranks, mesh=mesh, axis="tp")
    assert len(results) == 3
    for result in results:
        torch.testing.assert_close(result, ranks[0] + ranks[1] + ranks[2])
    with pytest.raises(ValueError, match="3 ranks"):
        call("all_reduce", ranks[0], mesh=mesh, axis="tp")
    assert call("all_reduce", ranks[0], mesh=ONE_DEVICE, axis="tp") is ranks[0]


def attention_trials() -> list[Trial]:
    return [t for t in TRIALS if t.op.name == "paged_attention" and t.dtype == torch.float32]


@pytest.mark.parametrize("trial", attention_trials(), ids=str)
def test_paged_attention_is_torchs_on_the_gathered_keys(trial: Trial) -> None:
    args, params = trial.operands
    if params["softcap"]:
        pytest.skip("torch's attention has no soft cap")
    q, pages, attending = args
    y = call("paged_attention", *args, **params)
    for number in range(attending.context_lengths.shape[0]):
        start, end = attending.query_starts[number : number + 2].tolist()
        length = int(attending.context_lengths[number])
        if start == end:
            continue
        position = torch.arange(length - (end - start), length)[:, None]
        key = torch.arange(length)[None, :]
        seen = (key <= position) & ((key > position - pages.group.window) | (pages.group.window == 0))
        if attending.ancestors is not None:
            seen[:, length - (end - start) :] &= attending.ancestors[start:end, : end - start]
        k, v = (keys_of(pages, attending, number, name, length) for name in ("k", "v"))
        wanted = functional.scaled_dot_product_attention(
            q[start:end].transpose(0, 1), k, v, attn_mask=seen, scale=params["scale"], enable_gqa=True
        )
        torch.testing.assert_close(y[start:end], wanted.transpose(0, 1))
    assert torch.equal(y[end:], torch.zeros_like(y[end:]))


def keys_of(pages: Pages, attending: Attending, number: int, name: str, length: int) -> torch.Tensor:
    """[G, C, D], read slot by slot, evicted ones as zeros."""
    plane, table = pages.canonical(name), attending.page_tables[number].tolist()
    slots = [plane[table[i // pages.page_size], i % pages.page_size] for i in range(length)]
    return torch.stack(slots).nan_to_num(0.0).transpose(0, 1)


def test_a_soft_cap_bounds_the_scores() -> None:
    trial = next(t for t in attention_trials() if t.operands[1]["softcap"])
    args, params = trial.operands
    capped, free = (call("paged_attention", *args, **{**params, "softcap": cap}) for cap in (1e-4, 0.0))
    q, pages, attending = args
    length = int(attending.context_lengths[0])
    mean = (
        keys_of(pages, attending, 0, "v", length).mean(1).repeat_interleave(q.shape[1] // pages.planes["v"].shape[1], 0)
    )
    torch.testing.assert_close(capped[0], mean, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(capped, free, atol=1e-3)


def test_stored_keys_are_where_the_slots_say() -> None:
    trial = first_trial("store_kv")
    (k, v, pages, slots), _ = trial.operands
    before = pages.canonical("k").clone()
    call("store_kv", k, v, pages, slots)
    flat = pages.canonical("k").flatten(0, 1)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert torch.equal(flat[slot], k[token])
    untouched = sorted(set(range(flat.shape[0])) - set(slots.tolist()))
    assert torch.equal(flat[untouched], before.flatten(0, 1)[untouched])


def test_a_weight_counts_its_bytes_and_gives_its_numbers_back() -> None:
    values = normal(3, 5).bfloat16()
    weight = Weight("w", (3, 5), torch.bfloat16, ROW_MAJOR, {"values": values})
    assert weight.num_bytes == 30
    assert torch.equal(weight.logical(), values)
    assert dtype_name(weight.dtype) == "bfloat16"
