"""paged_attention: softmax(scale · q·kᵀ)·v over the pages of each request; one ragged op for prefill and decode.

o_thd = Σ_j softmax_j(cap(scale · q_th · k_jg)) v_jg, g = h // (H/G): grouped queries, Ainslie et al., arXiv:2305.13245;
paged keys and values, Kwon et al., arXiv:2309.06180. Row t of a request with n queries and c keys stands at position
p = c - n + t and sees key j if j ≤ p and, with a window w > 0, j > p - w. cap(s) = softcap · tanh(s / softcap) if
softcap > 0. With `ancestors` row t sees of its own span only the keys that its mask row marks. Pages that lie wholly
before the window of a request's first row may have been evicted: their table entries name any page, and are not read.

q: [T, H, D]; pages: planes k and v of G heads; attending: see `Attending`. Rows beyond the last request are padding and
come back as zeros; a request may have neither query nor key. Returns [T, H, D] in q's dtype. ValueError: heads that the
group's do not divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from .contract import Arguments, Case, Op, Signature
from .state import Attending, Pages
from .store_kv import random_pages
from .types import Cost, Determinism, Site, Work, accumulator
from .validation import COMPUTE_TOLERANCE, expect_float, expect_shape, random_tensor


def _label(q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0) -> str:
    return pages.group.name


def _check(q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0) -> Signature:
    groups, size = pages.group.planes[0].shape
    expect_float("paged_attention", "q", q)
    expect_shape("paged_attention", "q", q, None, None, size)
    if q.shape[1] % groups:
        raise ValueError(f"paged_attention: {q.shape[1]} query heads are not a multiple of {groups} key-value heads")
    expect_shape("paged_attention", "context_lengths", attending.context_lengths, attending.page_tables.shape[0])
    dims = {
        "H": q.shape[1], "G": groups, "D": size, "window": pages.group.window, "scale": scale, "softcap": softcap,
        "ancestors": attending.ancestors is not None,
    }  # fmt: skip
    return Signature(dims, {"x": q.dtype}, ((tuple(q.shape), q.dtype),), group=pages.group)


def first_visible(num_queries: int, num_keys: int, window: int) -> int:
    """The first key that any row of a request sees."""
    return max(0, num_keys - num_queries - window + 1) if window else 0


def visible(
    num_queries: int, first: int, num_keys: int, window: int, tree: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """[N, C - first] bool: which of the keys `[first, C)` each row of one request sees."""
    row = torch.arange(num_queries, device=device)[:, None] + num_keys - num_queries
    key = torch.arange(first, num_keys, device=device)
    seen = key <= row
    if window:
        seen &= key > row - window
    if tree is not None:
        seen[:, num_keys - num_queries - first :] &= tree[:, :num_queries]
    return seen


def gathered(
    pages: Pages, table: torch.Tensor, first: int, num_keys: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[first, C)` of one request, [C - first, G, D] each; `table` is its row of page numbers."""
    page, skipped = first // pages.page_size, first % pages.page_size
    owned = table[page : -(-num_keys // pages.page_size)].long()
    count = num_keys - first
    k, v = (pages.canonical(name)[owned].flatten(0, 1)[skipped : skipped + count].to(dtype) for name in ("k", "v"))
    return k, v


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float, softcap: float
) -> torch.Tensor:
    """One request: q [N, H, D], k and v [C, G, D], seen [N, C]."""
    repeats = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = scale * torch.einsum("nhd,chd->hnc", q, keys)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("hnc,chd->nhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)


def _reference(
    q: torch.Tensor, pages: Pages, attending: Attending, *, scale: float, softcap: float = 0.0
) -> torch.Tensor:
    wide = accumulator(q)
    out = torch.zeros_like(q)
    for index, (start, end) in enumerate(pairwise(attending.query_starts.tolist())):
        num_keys = int(attending.context_lengths[index])
        first = first_visible(end - start, num_keys, pages.group.window)
        k, v = gathered(pages, attending.page_tables[index], first, num_keys, wide)
        tree = None if attending.ancestors is None else attending.ancestors[start:end]
        seen = visible(end - start, first, num_keys, pages.group.window, tree, q.device)
        out[start:end] = _attend(q[start:end].to(wide), k, v, seen, scale, softcap).to(q.dtype)
    return out


def _cost(site: Site, work: Work) -> Cost:
    query = 2 * work.rows * site.dim("H") * site.dim("D")
    keys = 2 * work.context_tokens * site.dim("G") * site.dim("D")
    operations = 4 * work.pairs * site.dim("H") * site.dim("D")
    return Cost((query + keys) * site.dtypes["x"].itemsize, operations, site.dtypes["x"])


def _inputs(dims: Mapping[str, Any], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Arguments:
    queries, contexts, page_size = dims["queries"], dims["contexts"], dims["page_size"]
    pages_of = [-(-context // page_size) for context in contexts]
    window = dims.get("window", 0)
    pages = random_pages(dims["G"], dims["D"], sum(pages_of) + 1, page_size, dtype, device, generator, window)
    order = torch.randperm(sum(pages_of) + 1, generator=generator).int()
    tables = torch.zeros((len(queries), max(pages_of)), dtype=torch.int32)
    for index, count in enumerate(pages_of):
        tables[index, :count] = order[sum(pages_of[:index]) :][:count]
    _evict(tables, order[-1], queries, contexts, page_size, window)
    _poison_unused(pages, tables, contexts, order[-1])
    starts = torch.tensor([0, *queries], dtype=torch.int32, device=device).cumsum(0).int()
    lengths = torch.tensor(contexts, dtype=torch.int32, device=device)
    num_rows = sum(queries) + dims.get("padding", 0)
    q = random_tensor((num_rows, dims["H"], dims["D"]), dtype, device, generator)
    params = {"scale": dims["D"] ** -0.5, "softcap": dims.get("softcap", 0.0)}
    tree = _random_trees(queries, num_rows, generator).to(device) if dims.get("tree") else None
    return (q, pages, Attending(starts, lengths, tables.to(device), max(queries), tree)), params


def _random_trees(queries: tuple[int, ...], num_rows: int, generator: torch.Generator) -> torch.Tensor:
    """A tree over each request's span: a token sees itself, its parent (a token before it) and what that one sees."""
    seen = torch.zeros((num_rows, max(queries)), dtype=torch.bool)
    start = 0
    for count in queries:
        for token in range(count):
            if token:
                parent = int(torch.randint(token, (1,), generator=generator))
                seen[start + token] = seen[start + parent]
            seen[start + token, token] = True
        start += count
    return seen


def _evict(
    tables: torch.Tensor, spare: torch.Tensor, queries: tuple[int, ...], contexts: tuple[int, ...], page_size: int,
    window: int,
) -> None:  # fmt: skip
    """Table entries of pages before the window name the spare page."""
    for table, num_queries, context in zip(tables, queries, contexts, strict=True):
        table[: first_visible(num_queries, context, window) // page_size] = spare


def _poison_unused(pages: Pages, tables: torch.Tensor, contexts: tuple[int, ...], spare: torch.Tensor) -> None:
    """Slots that no request owns hold NaN: a kernel that lets one through shows it."""
    owned = torch.zeros(pages.canonical("k").shape[:2], dtype=torch.bool, device=tables.device)
    for index, context in enumerate(contexts):
        slot = torch.arange(context, device=tables.device)
        owned[tables[index, slot // pages.page_size].long(), slot % pages.page_size] = True
    owned[spare.long()] = False
    for name in ("k", "v"):
        plane = pages.canonical(name)
        plane.masked_fill_(~owned.to(plane.device)[:, :, None, None], torch.nan)


def _case(name: str, heads: tuple[int, int, int], full: tuple[Any, Any], twin: tuple[Any, Any], **more: Any) -> Case:
    shape = {"H": heads[0], "G": heads[1], "D": heads[2], "page_size": more.pop("page_size", 16), **more}
    dims = [{**shape, "queries": queries, "contexts": contexts} for queries, contexts in (full, twin)]
    return Case(name, *dims)


CASES = (
    _case("llama-3.1-8b-decode", (32, 8, 128), ((1,) * 8, (1024,) * 8), ((1, 1), (33, 17))),
    _case("llama-3.1-8b-prefill", (32, 8, 128), ((512,), (512,)), ((19,), (19,))),
    _case("qwen2.5-0.5b-mixture", (14, 2, 64), ((1, 130, 7, 1), (700, 130, 300, 16)), ((1, 9, 3), (40, 9, 21))),
    _case("mistral-window", (32, 8, 128), ((1, 100), (600, 300)), ((1, 12), (60, 40)), window=20),
    _case("gemma-softcap", (8, 4, 256), ((1, 65), (200, 65)), ((1, 5), (20, 5)), softcap=50.0),
    _case("long", (8, 2, 64), ((1, 1, 3), (9000, 300, 700)), ((1, 1, 2), (530, 257, 300))),
    _case("tree", (32, 8, 128), ((8, 8), (600, 300)), ((5, 3), (37, 21)), tree=True),
    _case("odd", (6, 3, 10), ((3, 1), (31, 9)), ((3, 1), (31, 9)), page_size=8, padding=2),
    _case("padded", (8, 2, 64), ((200, 1, 31, 0, 0), (512, 1000, 31, 0, 0)), ((5, 1, 0), (21, 17, 0)), padding=3),
    _case("llama-3.1-8b-decode-1x32k", (32, 8, 128), ((1,), (32768,)), ((1, 1), (33, 17))),
    _case("llama-3.1-8b-decode-8x8k", (32, 8, 128), ((1,) * 8, (8192,) * 8), ((1, 1), (33, 17))),
    _case("llama-3.1-8b-decode-32x8k", (32, 8, 128), ((1,) * 32, (8192,) * 32), ((1, 1), (33, 17))),
    _case("llama-3.1-8b-decode-mixed", (32, 8, 128), ((1,) * 32, (32768, *(512,) * 31)), ((1, 1), (33, 17))),
    _case("llama-3.1-8b-prefill-8k", (32, 8, 128), ((8192,), (8192,)), ((19,), (19,))),
    _case("llama-3.1-70b-tp4-decode-32x8k", (16, 2, 128), ((1,) * 32, (8192,) * 32), ((1, 1), (33, 17))),
    _case("llama-3.1-70b-tp4-prefill-8k", (16, 2, 128), ((8192,), (8192,)), ((19,), (19,))),
)

_DECODING_ROWS, _CONTEXT = 64, 1024


def _case_at(site: Site, rows: int) -> Mapping[str, Any]:
    """So many requests that decode behind 1,024 tokens; beyond 64 rows one prompt."""
    decoding = rows <= _DECODING_ROWS
    queries, contexts = ((1,) * rows, (_CONTEXT,) * rows) if decoding else ((rows,), (rows,))
    shape = {"page_size": 16, "tree": site.dims["ancestors"]}
    return {**site.dims, **shape, "queries": queries, "contexts": contexts}


OP = Op(
    "paged_attention", _label, _check, _cost, _inputs, CASES, COMPUTE_TOLERANCE,
    reference=_reference, determinism=Determinism.RUN, case_at=_case_at,
)  # fmt: skip
