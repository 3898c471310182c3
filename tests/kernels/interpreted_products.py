"""Products of few rows in Triton's interpreter against torch, with what no launch has there by itself: blocks that are
loaded early, beside shares of K, and blocks without a loop. Run by test_triton_products.py in a process of its own.
"""

from __future__ import annotations

from itertools import product as every

import torch
from ambidex.kernels.triton.language import INTERPRETED
from ambidex.kernels.triton.product import product
from ambidex.ops.layouts import dense
from torch.nn.functional import linear, rms_norm, silu

assert INTERPRETED, "TRITON_INTERPRET=1 is to be set before the process starts"

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
ROW = {"block_t": 0, "splits": 1, "early": 0, "num_stages": 1, "block_k": 32}
TILE = {"block_t": 16, "num_stages": 2, "block_k": 16}
LAUNCHES = (
    *({**TILE, "splits": splits, "early": early} for splits, early in ((1, 16), (2, 16), (4, 32), (2, 64))),
    *({**ROW, "unrolled": unrolled} for unrolled in (False, True)),
)


def multiply(dtype: torch.dtype, gated: bool, normed: bool, launch: dict[str, int | bool]) -> None:
    num_rows, num_outputs, width = 1 if launch["block_t"] == 0 else 5, 40, 128
    x = torch.randn(num_rows, width).to(dtype)
    values = (torch.randn(num_outputs * (1 + gated), width) / 10).to(dtype)
    norm = torch.rand(width).to(dtype) if normed else None
    y = product(
        x, dense("w", values), None if norm is None else dense("n", norm), eps=1e-5 if normed else 0.0, gated=gated,
        block_n=16, num_warps=4, pdl=False, **launch,
    )  # fmt: skip
    wide = x.float() if norm is None else rms_norm(x.float(), (width,), norm.float(), 1e-5)
    wanted = linear(wide, values.float())
    wanted = silu(wanted[:, :num_outputs]) * wanted[:, num_outputs:] if gated else wanted
    found = float((y.float() - wanted).norm() / wanted.norm())
    assert found < TOLERANCE[dtype], f"{dtype} {gated=} {normed=} {launch}: {found}"


if __name__ == "__main__":
    torch.manual_seed(0)
    for case in every(TOLERANCE, (False, True), (False, True), LAUNCHES):
        multiply(*case)
