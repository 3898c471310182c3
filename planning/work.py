"""What the sites of a planned model move and compute: the ops' own costs, in the planned bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..ops.step_cost import load_coefficients
from ..ops.types import Site
from .precision import Precision

Reals = NDArray[np.float64]


def planned_coefficients(sites: Sequence[Site], precision: Precision) -> tuple[Reals, Reals]:
    """`ops.step_cost.load_coefficients`, [sites, 6] bytes and operations, with the layers' weights in the precision's
    bits, and its keys and values where attention reads them."""
    num_bytes, operations = load_coefficients(sites)
    num_bytes[[has_layer_weight(site) for site in sites], 0] *= precision.weight_share
    num_bytes[operations[:, 4] > 0, 3] *= precision.kv_share
    return num_bytes, operations


def has_layer_weight(site: Site) -> bool:
    """Whether it multiplies by a weight that a format stores; tables and the head stay in 16 bits."""
    return any(each.role.startswith("layers.") for each in site.weights)
