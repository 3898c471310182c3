"""Layouts: what is packed comes back, in pieces as at once; padding is zero."""

import pytest
import torch
from ambidex.ops.layouts import PAGES_PHSD, PAGES_PSHD, PANEL16, ROW_MAJOR, dense
from ambidex.ops.state import Plane
from ambidex.ops.types import Layout
from hypothesis import given, settings
from hypothesis import strategies as st

LAYOUTS = st.sampled_from([ROW_MAJOR, PANEL16])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
ROWS, WIDTHS = st.integers(1, 70), st.integers(1, 70)


def numbered(num_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn((num_rows, width), generator=torch.Generator().manual_seed(num_rows * 71 + width)).to(dtype)


def empty(layout: Layout, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(layout.storage_shape(tuple(values.shape), values.dtype), dtype=values.dtype)


@given(LAYOUTS, DTYPES, ROWS, WIDTHS)
@settings(max_examples=100, deadline=None)
def test_what_is_packed_comes_back(layout: Layout, dtype: torch.dtype, num_rows: int, width: int) -> None:
    values = numbered(num_rows, width, dtype)
    weight = dense("w", values, layout)
    assert torch.equal(weight.logical(), values)
    assert weight.shape == (num_rows, width)


@given(LAYOUTS, DTYPES, ROWS, WIDTHS, st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_packing_in_pieces_is_packing_at_once(
    layout: Layout, dtype: torch.dtype, num_rows: int, width: int, pieces: int
) -> None:
    values = numbered(num_rows, width, dtype)
    whole, streamed = empty(layout, values), empty(layout, values)
    layout.pack(whole, 0, values)
    step = pieces * 16
    for row in range(0, num_rows, step):
        layout.pack(streamed, row, values[row : row + step])
    assert torch.equal(whole, streamed)


@given(DTYPES, ROWS, WIDTHS)
@settings(max_examples=60, deadline=None)
def test_panels_hold_sixteen_rows_side_by_side_and_zeros_beyond(dtype: torch.dtype, num_rows: int, width: int) -> None:
    values = numbered(num_rows, width, dtype)
    storage = dense("w", values, PANEL16).values
    pair = 1 if dtype == torch.float32 else 2
    row, k = num_rows - 1, width - 1
    element = storage.view(storage.shape[0], storage.shape[1], 16, pair)[row // 16, k // pair, row % 16, k % pair]
    assert element == values[row, k]
    assert torch.isclose(storage.float().abs().sum(), values.float().abs().sum(), rtol=1e-4)
    assert storage.shape[1] * pair % (1 if pair == 1 else 32) == 0


def test_panels_refuse_what_they_do_not_hold() -> None:
    with pytest.raises(ValueError, match=r"panel16 holds float32 and bfloat16, not torch\.float16"):
        PANEL16.storage_shape((16, 16), torch.float16)


def test_a_vector_stays_as_it_is() -> None:
    values = torch.arange(5.0)
    assert dense("norm", values, PANEL16).layout is ROW_MAJOR


@pytest.mark.parametrize(("layout", "shape"), [(PAGES_PHSD, (7, 3, 16, 8)), (PAGES_PSHD, (7, 16, 3, 8))])
def test_page_orders_have_one_canonical_view(layout: object, shape: tuple[int, ...]) -> None:
    assert layout in (PAGES_PHSD, PAGES_PSHD)
    order = PAGES_PHSD if layout is PAGES_PHSD else PAGES_PSHD
    plane = Plane("k", (3, 8), torch.float32)
    assert order.shape(plane, num_pages=7, page_size=16) == shape
    tensor = torch.zeros(shape)
    view = order.canonical(tensor)
    assert tuple(view.shape) == (7, 16, 3, 8)
    view[4, 5, 2, 1] = 9.0
    assert tensor.sum() == 9.0
    assert plane.token_bytes == 96
