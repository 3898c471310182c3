"""Large products and prefill over pages in Triton's interpreter against torch and the op, at tiles smaller than the
shapes. Run by test_triton_large.py in a process of its own, as the interpreter is chosen when a kernel is decorated;
by mutations.py with the word `shares`, for shares of K alone.
"""

from __future__ import annotations

import math
import sys
from itertools import accumulate, pairwise

import torch
from ambidex.kernels.triton.arrivals import counters
from ambidex.kernels.triton.language import INTERPRETED
from ambidex.kernels.triton.large_launch import shares_of
from ambidex.kernels.triton.large_product import large_product
from ambidex.kernels.triton.paged_prefill import prefill
from ambidex.ops.layouts import PAGES_PHSD, PAGES_PSHD, dense
from ambidex.ops.paged_attention import OP
from ambidex.ops.state import Attending, PageLayout, Pages, Plane, StateGroup
from torch.nn.functional import linear, silu

assert INTERPRETED, "TRITON_INTERPRET=1 is to be set before the process starts"

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
WIDTH = 8 * 1024 + 104
LENGTHS, QUERIES = (70, 1, 33, 100, 40), (70, 1, 10, 45, 2)


def off(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((ours.float() - wanted.float()).norm() / wanted.float().norm())


def multiply(
    dtype: torch.dtype, described: bool, gated: bool, biased: bool, added: bool, parts: int, shares: int = 1,
    programs: int = 4, width: int = 104, block_k: int = 16,
) -> None:  # fmt: skip
    """Odd rows, outputs and widths; 9 tiles: more than programs, or fewer."""
    num_rows, num_outputs = 70, 88
    x, values = torch.randn(num_rows, width).to(dtype), torch.randn(num_outputs * (1 + gated), width) / width**0.5
    values = values.to(dtype)
    bias = torch.randn(values.shape[0]).to(dtype) if biased else None
    residual = torch.randn(num_rows, num_outputs).to(dtype) if added else None
    y = large_product(
        x, dense("w", values), None, None if bias is None else dense("b", bias), residual, gated=gated, block_t=32,
        block_n=32, block_k=block_k, group_t=2, programs=programs, slices=2, shares=shares, parts=parts,
        described=described, flat=True, pdl=False, num_warps=4, num_stages=2,
    )  # fmt: skip
    wanted = linear(x.float(), values.float(), None if bias is None else bias.float())
    wanted = silu(wanted[:, :num_outputs]) * wanted[:, num_outputs:] if gated else wanted
    wanted = wanted if residual is None else wanted + residual.float()
    found = off(y, wanted)
    assert found < TOLERANCE[dtype], f"product {dtype} {described=} {gated=} {biased=} {added=}: {found}"


def filled(layout: PageLayout, group: StateGroup, page_size: int) -> tuple[Pages, torch.Tensor]:
    """Pages in a mixed order, each request's last ended by values that are no numbers; the table names no page that
    lies before the earliest key that a query sees."""
    counts = [-(-length // page_size) for length in LENGTHS]
    order, taken = torch.randperm(sum(counts)).int(), [0, *accumulate(counts)]
    table = torch.zeros(len(LENGTHS), max(counts), dtype=torch.int32)
    planes = {
        plane.name: torch.randn(layout.shape(plane, len(order), page_size)).to(plane.dtype) for plane in group.planes
    }
    for request, (start, end) in enumerate(pairwise(taken)):
        table[request, : end - start] = order[start:end]
        used = LENGTHS[request] - (end - start - 1) * page_size
        for plane in planes.values():
            layout.canonical(plane)[int(order[end - 1]), used:] = math.nan
        gone = max(0, LENGTHS[request] - QUERIES[request] + 1 - group.window) // page_size if group.window else 0
        table[request, :gone] = 1 << 30
    return Pages(group, planes, layout, page_size), table


def attend(
    dtype: torch.dtype, layout: PageLayout, page_size: int, window: int, softcap: float, size: int, packed: bool,
    described: bool,
) -> None:  # fmt: skip
    group = StateGroup("kv", "paged", (Plane("k", (2, size), dtype), Plane("v", (2, size), dtype)), 1, window)
    pages, table = filled(layout, group, page_size)
    starts = torch.tensor([0, *accumulate(QUERIES)], dtype=torch.int32)
    attending = Attending(starts, torch.tensor(LENGTHS, dtype=torch.int32), table, max(QUERIES))
    q = torch.randn(sum(QUERIES), 6, size).to(dtype)
    scale, log2e = size**-0.5, math.log2(math.e)
    assert OP.reference is not None
    wanted = OP.reference(q, pages, attending, scale=scale, softcap=softcap)
    y, k, v = torch.full_like(q, math.nan), pages.canonical("k"), pages.canonical("v")
    sizes = {
        "GROUP": 3, "D": size, "BLOCK_D": 32, "PAGE_SIZE": page_size, "WINDOW": window, "CAPPED": softcap > 0,
        "UPCAST": dtype == torch.bfloat16,
    }  # fmt: skip
    prefill(
        (q, k, v, starts, attending.context_lengths, table, y), len(LENGTHS), 2,
        (table.stride(0), *q.stride()[:2], *k.stride()[:3], y.stride(0)),
        (scale / softcap, softcap * log2e) if softcap else (scale * log2e, 0.0), sizes, rows=32, keys=32, warps=4,
        stages=2, packed=packed, described=described, slices=2,
    )  # fmt: skip
    for request, (begin, end) in enumerate(pairwise(starts.tolist())):
        if end - begin == 1:
            assert y[begin].isnan().all(), "a request of one query is not prefill's"
            continue
        found = off(y[begin:end], wanted[begin:end])
        assert found < TOLERANCE[dtype], f"request {request}: {dtype} {page_size=} {window=} {packed=}: {found}"


torch.manual_seed(0)
# The last round of three has one tile, the only one all nine. K of nine blocks: three in each share but the fourth,
# which is empty; five and four; of thirteen, 27 pieces for 14 programs.
for described in (False, True):
    for programs, shares, width in ((4, 4, WIDTH), (20, 2, WIDTH), (14, 3, WIDTH + 4 * 1024)):
        assert shares_of(9, programs, width, shares) == shares
        shared = {"shares": shares, "programs": programs, "width": width, "block_k": 1024}
        gated, dtype = described == (programs == 4), torch.float16 if programs == 20 else torch.float32
        multiply(dtype, described, gated=gated, biased=True, added=not gated, parts=2, **shared)
assert not counters(torch.device("cpu")).any(), "every launch leaves zeros"
if sys.argv[1:] == ["shares"]:
    sys.exit()
for dtype in TOLERANCE:
    for described in (False, True):
        multiply(dtype, described, gated=False, biased=True, added=True, parts=2)
        multiply(dtype, described, gated=True, biased=True, added=False, parts=1)
    attend(dtype, PAGES_PHSD, 32, 0, 0.0, 32, packed=False, described=True)
    attend(dtype, PAGES_PSHD, 64, 40, 5.0, 32, packed=True, described=True)
    attend(dtype, PAGES_PHSD, 8, 20, 0.0, 24, packed=True, described=False)
attend(torch.float32, PAGES_PSHD, 8, 0, 0.0, 24, packed=False, described=False)
print("alike")
