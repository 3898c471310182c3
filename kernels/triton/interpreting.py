"""Triton's interpreter, mended: a row of `tl.dot` has the same bits wherever it stands in its tile.

The interpreter multiplies by BLAS, which sums some rows of a matrix in another order than others; on a device a row's
sums follow from the instruction alone. A kernel that promises `batch` could not be proved otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def install() -> None:
    """Mends this process; again, nothing."""
    before = InterpreterBuilder.create_dot
    if getattr(before, "is_mended", False):
        return

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        kinds = {operand.data.dtype for operand in (a, b)}
        if not kinds <= {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}:
            return before(self, a, b, d, *options)
        products = np.einsum("...mk,...kn->...mn", a.data, b.data, dtype=d.data.dtype, optimize=False)
        return TensorHandle(products + d.data, d.dtype.scalar)

    create_dot.is_mended = True  # type: ignore[attr-defined]
    InterpreterBuilder.create_dot = create_dot
