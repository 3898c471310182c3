"""The C kernels against float64, their promise of batch invariance, and what the loader says when something is missing.

The library under test is built here, with the AMX tiles emulated in C, so that the tile code runs on any processor with
AVX-512. AMBIDEX_TEST_TILES=1 builds it for real tiles instead, on a processor that has them.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from ambidex.kernels.cpu import build as cpu_build
from ambidex.kernels.cpu.arguments import DTYPES, AttentionArgs, LinearArgs, NormArgs, QkvArgs, SampleArgs, UnpackArgs
from ambidex.kernels.cpu.library import KernelError, Level, Library, LibraryMissing, open_library

F32, BF16 = torch.float32, torch.bfloat16
LEVELS = list(Level)
DTYPE_IDS = {"argvalues": [F32, BF16], "ids": ["f32", "bf16"]}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    try:
        cpu_build.find_compiler()
    except cpu_build.CompilerMissing as missing:
        pytest.skip(str(missing))
    defines = () if os.environ.get("AMBIDEX_TEST_TILES") else ("AMBIDEX_EMULATE_AMX",)
    path = cpu_build.build(tmp_path_factory.mktemp("cpu"), defines=defines)
    return open_library(path)


def need(library: Library, level: Level) -> None:
    """Skips a level that this processor lacks; AMX is emulated on top of AVX-512."""
    if level > library.cpu_level and not (level == Level.AMX and library.cpu_level == Level.AVX512_BF16):
        pytest.skip(f"this processor lacks {level.name}")


def pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def aligned_bytes(num_bytes: int) -> torch.Tensor:
    """64-byte aligned memory, poisoned with NaN in either dtype."""
    raw = torch.full((num_bytes + 64,), 0xFF, dtype=torch.uint8)
    offset = -raw.data_ptr() % 64
    return raw[offset : offset + num_bytes]


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def pack(library: Library, weight_NK: torch.Tensor, chunk_rows: int = 0) -> torch.Tensor:
    n, k = weight_NK.shape
    dtype = DTYPES[weight_NK.dtype]
    panels = aligned_bytes(library.packed_bytes(n, k, dtype))
    step = chunk_rows or n
    for row0 in range(0, n, step):
        rows = weight_NK[row0 : row0 + step]
        library.pack(panels.data_ptr(), rows.data_ptr(), weight_NK.stride(0), row0, len(rows), k, dtype)
    return panels


def linear(
    library: Library,
    level: Level,
    x_MK: torch.Tensor,
    panels: torch.Tensor,
    num_outputs: int,
    *,
    out_dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    width = num_outputs // 2 if gated else num_outputs
    y = poisoned(x_MK.shape[0], width, dtype=out_dtype or x_MK.dtype)
    args = LinearArgs(
        level=level,
        dtype=DTYPES[x_MK.dtype],
        out_dtype=DTYPES[y.dtype],
        gated=int(gated),
        num_rows=x_MK.shape[0],
        num_outputs=num_outputs,
        num_inputs=x_MK.shape[1],
        x=pointer(x_MK),
        x_stride=x_MK.stride(0),
        weight=pointer(panels),
        y=pointer(y),
        y_stride=y.stride(0),
        residual=pointer(residual),
        residual_stride=0 if residual is None else residual.stride(0),
        bias=pointer(bias),
        bias_dtype=0 if bias is None else DTYPES[bias.dtype],
        norm_weight=pointer(norm),
        norm_dtype=0 if norm is None else DTYPES[norm.dtype],
        norm_eps=1e-5,
    )
    library.linear(args)
    return y


def hf_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Within half a unit in the last place of the largest value's rounding for bf16, 2e-6 of it for float32."""
    share = 2e-6 if dtype == F32 else 2**-8
    scale = expected.abs().max().item() or 1.0
    assert torch.isfinite(actual).all()
    assert (actual.double() - expected).abs().max().item() <= share * scale


# (M, N, K): odd remainders in each; 1100 and 600 inputs cross the K-blocks of bf16 and float32
LINEAR_SHAPES = [(1, 16, 32), (1, 40, 70), (3, 33, 31), (15, 64, 64), (17, 50, 600), (33, 96, 1100), (70, 48, 34)]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("shape", LINEAR_SHAPES, ids=str)
def test_linear_against_float64(
    library: Library, level: Level, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    need(library, level)
    m, n, k = shape
    torch.manual_seed(0)
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    bias, residual = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
    panels = pack(library, weight, chunk_rows=16)
    exact = x.double() @ weight.double().T
    assert_close(linear(library, level, x, panels, n), exact, dtype)
    assert_close(linear(library, level, x, panels, n, out_dtype=F32), exact, F32)
    full = linear(library, level, x, panels, n, bias=bias, residual=residual)
    assert_close(full, exact + bias.double() + residual.double(), dtype)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("m", [1, 5, 37])
def test_gated_and_normed_linear(library: Library, level: Level, dtype: torch.dtype, m: int) -> None:
    need(library, level)
    torch.manual_seed(1)
    width, k = 48, 130
    x, weight = torch.randn(m, k).to(dtype) * 3, torch.randn(2 * width, k).to(dtype)
    bias, norm = torch.randn(2 * width), (1 + torch.randn(k) / 4).to(dtype)
    panels = pack(library, weight)
    y = linear(library, level, x, panels, 2 * width, bias=bias, norm=norm, gated=True)
    gate, up = (hf_norm(x, norm).double() @ weight.double().T + bias.double()).chunk(2, dim=-1)
    assert_close(y, gate * torch.sigmoid(gate) * up, dtype)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
def test_a_row_has_the_same_bits_in_every_batch(library: Library, level: Level, dtype: torch.dtype) -> None:
    need(library, level)
    torch.manual_seed(2)
    n, k = 80, 1060
    weight, rows = torch.randn(n, k).to(dtype), torch.randn(70, k).to(dtype)
    norm, residual = torch.rand(k).to(dtype), torch.randn(70, n).to(dtype)
    panels = pack(library, weight)
    alone = torch.cat(
        [linear(library, level, rows[i : i + 1], panels, n, norm=norm, residual=residual[i : i + 1]) for i in range(70)]
    )
    for m in range(1, 71):
        chosen = torch.randperm(70)[:m]
        batch = linear(
            library, level, rows[chosen].contiguous(), panels, n, norm=norm, residual=residual[chosen].contiguous()
        )
        assert torch.equal(batch, alone[chosen]), f"{m} rows"


def test_threads_and_row_groups_do_not_change_bits(library: Library) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(600, 200).to(BF16), torch.randn(96, 200).to(BF16)
    panels = pack(library, weight)
    level = min(library.cpu_level, Level.AVX512_BF16)
    many = linear(library, level, x, panels, 96)
    library.set_num_threads(1)
    try:
        one = linear(library, level, x, panels, 96)
    finally:
        library.set_num_threads(torch.get_num_threads())
    assert torch.equal(many, one)
    assert torch.equal(many[511:512], linear(library, level, x[511:512], panels, 96))


@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("shape", [(16, 32), (37, 33), (64, 70), (1, 1)], ids=str)
def test_packed_rows_come_back(library: Library, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape).to(dtype)
    panels = pack(library, weight, chunk_rows=16)
    ids = torch.randint(shape[0], (9,))
    out = poisoned(9, shape[1] + 3, dtype=dtype)
    args = UnpackArgs(DTYPES[dtype], 0, *shape, pointer(panels), pointer(ids), len(ids), pointer(out), out.stride(0))
    library.unpack_rows(args)
    assert torch.equal(out[:, : shape[1]], weight[ids])
    assert torch.isnan(out[:, shape[1] :]).all()
    ids[-1] = shape[0]
    with pytest.raises(KernelError, match="BAD_SHAPE"):
        library.unpack_rows(args)


def test_bf16_panels_hold_pairs_and_zeros(library: Library) -> None:
    weight = torch.arange(1, 18 * 33 + 1).reshape(18, 33).to(BF16)
    panels = pack(library, weight).view(BF16).reshape(2, 32, 16, 2)
    padded = torch.zeros(32, 64, dtype=BF16)
    padded[:18, :33] = weight
    assert torch.equal(panels, padded.reshape(2, 16, 32, 2).permute(0, 2, 1, 3))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("k", [16, 70, 896])
def test_rms_norm_and_the_sum_before_it(library: Library, level: Level, dtype: torch.dtype, k: int) -> None:
    need(library, level)
    torch.manual_seed(4)
    x, residual, weight = torch.randn(5, k).to(dtype), torch.randn(5, k).to(dtype), torch.rand(k).to(dtype)
    y, total = poisoned(5, k, dtype=dtype), residual.clone()
    args = NormArgs(
        level=level, dtype=DTYPES[dtype], num_rows=5, num_inputs=k, x=pointer(x), x_stride=k, residual=pointer(total),
        residual_stride=k, sum_out=pointer(total), sum_stride=k, y=pointer(y), y_stride=k, weight=pointer(weight),
        weight_dtype=DTYPES[dtype], eps=1e-5,
    )  # fmt: skip
    library.rms_norm(args)
    assert torch.equal(total, x + residual)
    expected = hf_norm(x + residual, weight)
    assert torch.allclose(y.float(), expected.float(), rtol=1e-6 if dtype == F32 else 2**-7, atol=0)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("sizes", [(4, 2, 64, 64), (3, 1, 18, 10), (2, 2, 80, 0)], ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_qkv_rope_store(
    library: Library, level: Level, dtype: torch.dtype, sizes: tuple[int, int, int, int], normed: bool
) -> None:
    need(library, level)
    torch.manual_seed(5)
    hq, hkv, d, r = sizes
    tokens, page_size, num_pages = 6, 8, 3
    qkv = torch.randn(tokens, (hq + 2 * hkv) * d).to(dtype)
    cos, sin = torch.rand(tokens, r // 2), torch.rand(tokens, r // 2)
    norms = [torch.rand(d).to(dtype), torch.rand(d).to(dtype)] if normed else [None, None]
    q = poisoned(tokens, hq, d, dtype=dtype)
    planes = [poisoned(num_pages, hkv, page_size, d, dtype=dtype) for _ in range(2)]
    slots = torch.tensor([17, 3, -1, 8, 23, 0])
    args = QkvArgs(
        level=level, dtype=DTYPES[dtype], num_tokens=tokens, num_heads=hq, num_kv_heads=hkv, head_size=d,
        rotary_size=r, qkv=pointer(qkv), qkv_stride=qkv.stride(0), q_norm=pointer(norms[0]),
        k_norm=pointer(norms[1]),
        norm_dtype=DTYPES[dtype], norm_eps=1e-5, cos=pointer(cos), sin=pointer(sin),
        rotation_stride=r // 2, q=pointer(q), q_stride=hq * d,
        k_pages=pointer(planes[0]), v_pages=pointer(planes[1]), num_pages=num_pages, page_size=page_size,
        page_stride=0, slots=pointer(slots),
    )  # fmt: skip
    library.qkv_rope_store(args)
    heads = qkv.view(tokens, hq + 2 * hkv, d)
    parts = list(heads.split([hq, hkv, hkv], dim=1))
    for i in range(2):
        weight = norms[i]
        part = parts[i] if weight is None else hf_norm(parts[i], weight)
        parts[i] = rotate(part.float(), cos, sin).to(dtype)
    tolerance = 1e-6 if dtype == F32 else 2**-6
    assert torch.allclose(q.float(), parts[0].float(), rtol=tolerance, atol=tolerance)
    stored = torch.zeros(num_pages * page_size, dtype=torch.bool)
    for plane, part in zip(planes, parts[1:], strict=True):
        rows = plane.permute(0, 2, 1, 3).reshape(-1, hkv, d)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                stored[slot] = True
                assert torch.allclose(rows[slot].float(), part[token].float(), rtol=tolerance, atol=tolerance)
        assert torch.isnan(rows[~stored]).all()


class Cache:
    """Requests' keys and values in shuffled pages; slots that no request owns hold NaN."""

    def __init__(self, contexts: list[int], hkv: int, d: int, page_size: int, dtype: torch.dtype) -> None:
        counts = [-(-context // page_size) for context in contexts]
        self.page_size, self.num_pages = page_size, sum(counts) + 1
        self.max_pages = max(counts)
        order = torch.randperm(self.num_pages).tolist()
        self.table = torch.zeros(len(contexts), self.max_pages, dtype=torch.int32)
        self.k_pages, self.v_pages = (poisoned(self.num_pages, hkv, page_size, d, dtype=dtype) for _ in range(2))
        self.keys, self.values = ([torch.randn(c, hkv, d).to(dtype) for c in contexts] for _ in range(2))
        for b, context in enumerate(contexts):
            for key in range(context):
                if key % page_size == 0:
                    self.table[b, key // page_size] = order.pop()
                page = int(self.table[b, key // page_size])
                self.k_pages[page, :, key % page_size] = self.keys[b][key]
                self.v_pages[page, :, key % page_size] = self.values[b][key]


def attend(
    library: Library,
    level: Level,
    cache: Cache,
    requests: list[int],
    queries: list[torch.Tensor],
    contexts: list[int],
    window: int = 0,
    softcap: float = 0.0,
) -> list[torch.Tensor]:
    q = torch.cat(queries)
    tokens, hq, d = q.shape
    counts = [len(part) for part in queries]
    starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    lengths, table = torch.tensor(contexts, dtype=torch.int32), cache.table[requests].contiguous()
    out = poisoned(tokens, hq, d, dtype=q.dtype)
    args = AttentionArgs(
        level=level, dtype=DTYPES[q.dtype], num_requests=len(requests), num_heads=hq,
        num_kv_heads=cache.k_pages.shape[1], head_size=d, num_tokens=tokens, query_start=pointer(starts),
        context_lengths=pointer(lengths), page_table=pointer(table), max_pages=cache.max_pages, q=pointer(q),
        q_stride=hq * d, k_pages=pointer(cache.k_pages), v_pages=pointer(cache.v_pages), num_pages=cache.num_pages,
        page_size=cache.page_size, page_stride=0, out=pointer(out), out_stride=hq * d, scale=d**-0.5, softcap=softcap,
        window=window,
    )  # fmt: skip
    library.paged_attention(args)
    return list(out.split(counts))


def exact_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int, softcap: float
) -> torch.Tensor:
    num_queries, hq, d = q.shape
    context, hkv, _ = keys.shape
    keys, values = (part.double().repeat_interleave(hq // hkv, dim=1) for part in (keys, values))
    scores = torch.einsum("ihd,jhd->hij", q.double(), keys) * d**-0.5
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    i = torch.arange(context - num_queries, context)[:, None]
    j = torch.arange(context)[None]
    visible = (j <= i) & ((j > i - window) if window else torch.ones_like(j, dtype=torch.bool))
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, values)


# heads, kv heads, head size, page size, window, soft cap
ATTENTION_CASES = [
    (4, 2, 64, 16, 0, 0.0),
    (7, 1, 32, 8, 0, 0.0),
    (3, 3, 18, 64, 0, 5.0),
    (2, 1, 80, 128, 40, 0.0),
    (2, 2, 256, 16, 100, 20.0),
]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_paged_attention_against_float64(
    library: Library, level: Level, dtype: torch.dtype, case: tuple[int, int, int, int, int, float]
) -> None:
    need(library, level)
    torch.manual_seed(6)
    hq, hkv, d, page_size, window, softcap = case
    contexts, counts = [1, 63, 130, 200], [1, 1, 130, 37]
    cache = Cache(contexts, hkv, d, page_size, dtype)
    queries = [torch.randn(count, hq, d).to(dtype) for count in counts]
    outputs = attend(library, level, cache, [0, 1, 2, 3], queries, contexts, window, softcap)
    for b, out in enumerate(outputs):
        exact = exact_attention(queries[b], cache.keys[b], cache.values[b], window, softcap)
        assert_close(out, exact, dtype)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", **DTYPE_IDS)
@pytest.mark.parametrize("window", [0, 50])
def test_a_query_has_the_same_bits_in_every_batch(
    library: Library, level: Level, dtype: torch.dtype, window: int
) -> None:
    need(library, level)
    torch.manual_seed(7)
    contexts = [150, 90]
    cache = Cache(contexts, 2, 32, 16, dtype)
    q = torch.randn(150, 6, 32).to(dtype)
    (whole,) = attend(library, level, cache, [0], [q], [150], window)
    for first in (0, 64, 97):
        chunk = attend(library, level, cache, [1, 0], [q[:5], q[first:140]], [90, 140], window)[1]
        assert torch.equal(chunk, whole[first:140])
    for i in (0, 63, 64, 149):
        (single,) = attend(library, level, cache, [0], [q[i : i + 1]], [i + 1], window)
        assert torch.equal(single, whole[i : i + 1])


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_read_bandwidth_reads_every_byte(library: Library, level: Level) -> None:
    need(library, level)
    words = torch.randint(2**60, (5000,))
    expected = 0
    for word in words.tolist():
        expected ^= word
    assert library.read_bandwidth(level, pointer(words), 40000) == expected


def test_nothing_to_do_is_fine(library: Library) -> None:
    level = library.cpu_level
    panels = pack(library, torch.randn(16, 32).to(BF16))
    assert linear(library, level, torch.empty(0, 32, dtype=BF16), panels, 16).shape == (0, 16)
    library.sample(SampleArgs(level=level, num_columns=4, logits_stride=4))
    library.paged_attention(
        AttentionArgs(num_heads=1, num_kv_heads=1, head_size=2, page_size=8, q_stride=2, out_stride=2)
    )


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("level", 9, "BAD_LEVEL"),
        ("dtype", 5, "BAD_DTYPE"),
        ("num_inputs", 0, "BAD_SHAPE"),
        ("x_stride", 31, "BAD_SHAPE"),
        ("y_stride", 15, "BAD_SHAPE"),
        ("weight", 0, "BAD_POINTER"),
        ("x", 0, "BAD_POINTER"),
        ("gated", 1, "BAD_SHAPE"),
    ],
)
def test_bad_arguments_are_refused(library: Library, field: str, value: int, status: str) -> None:
    x, y = torch.zeros(2, 32), poisoned(2, 16, dtype=F32)
    panels = pack(library, torch.zeros(16, 32))
    args = LinearArgs(
        level=0, num_rows=2, num_outputs=16, num_inputs=32, x=pointer(x), x_stride=32, weight=pointer(panels),
        y=pointer(y), y_stride=16,
    )  # fmt: skip
    setattr(args, field, value)
    with pytest.raises(KernelError, match=status):
        library.linear(args)
    assert torch.isnan(y).all()


def test_threads_are_as_many_as_torchs(library: Library) -> None:
    assert library.num_threads == torch.get_num_threads()


def test_missing_and_foreign_libraries_are_named(tmp_path: Path) -> None:
    with pytest.raises(LibraryMissing, match="not built"):
        open_library(tmp_path / "none.so")
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"not a library")
    with pytest.raises(LibraryMissing, match="cannot be loaded"):
        open_library(foreign)


def test_struct_sizes_match_the_header() -> None:
    structs = (LinearArgs, NormArgs, QkvArgs, AttentionArgs, UnpackArgs)
    assert [ctypes.sizeof(s) for s in structs] == [128, 104, 176, 168, 64]


def test_compilers_are_found_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "my-cc -m64")
    assert cpu_build.find_compiler() == ["my-cc", "-m64"]
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gcc").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "gcc").chmod(0o755)
    assert cpu_build.find_compiler() == [str(tmp_path / "gcc")]
    with pytest.raises(cpu_build.BuildFailed, match="failed with 3"):
        cpu_build.build(tmp_path)
