"""Rope and stores in Triton's interpreter where values are no numbers. Run by test_triton_attention.py in a process of
its own, as the interpreter is chosen when a kernel is decorated.
"""

from __future__ import annotations

import math

import torch
from ambidex.kernels.triton.language import INTERPRETED
from ambidex.kernels.triton.product import Stored, product
from ambidex.kernels.triton.qkv_rope_store import qkv_rope_store_triton
from ambidex.ops.layouts import dense
from ambidex.ops.qkv_rope_store import CASES, OP

assert INTERPRETED, "TRITON_INTERPRET=1 is to be set before the process starts"

(qkv, rotation, pages, slots, *_), params = OP.inputs(
    next(case.twin for case in CASES if case.name == "llama-3.1-8b"), torch.float32, torch.device("cpu"),
    torch.Generator().manual_seed(0),
)  # fmt: skip
slots[0] = 3
value = pages.canonical("v")[0, 3]
spoilt = qkv.clone()
spoilt[0, -128:-120] = math.inf  # of the last head of the values
qkv_rope_store_triton(spoilt, rotation, pages, slots, **params, block_h=4, num_warps=4, pdl=False)
assert value[-1, :8].isinf().all()
assert value[-1, 8:].isfinite().all(), "an inf of a value's half stays alone"

width = 16
x, weight = torch.ones(1, width), torch.zeros(qkv.shape[1], width)
weight[:, 0] = spoilt[0].clamp(max=1e38)
stored = Stored(rotation[:1], pages, slots[:1], params["num_heads"])
shared = {"block_n": 32, "block_k": 16, "splits": 1, "early": 0, "num_warps": 4, "num_stages": 1, "pdl": False}
for block_t in (0, 16):  # the kernel for one row, and the one for a few
    value.zero_()
    product(1e3 * x, dense("w", weight), stored=stored, block_t=block_t, **shared)
    assert value[-1, :8].isinf().all()
    assert value[-1, 8:].isfinite().all(), "an inf of a value's half stays alone"
print("alone")
