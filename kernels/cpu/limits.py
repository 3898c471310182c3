"""What the C functions cannot serve, as predicates of a site: `refuses` of this folder's kernels is made of these."""

from __future__ import annotations

from ...hwprofiles.schema import Profile
from ...ops.types import Reason, Site, dtype_name
from .arguments import DTYPES

FLOATS = frozenset(DTYPES)
PAGE_SIZES = (8, 16, 32, 64, 128, 256, 512)
MAX_HEAD_SIZE = 512
PANEL_ROWS = 16


def dtype_reason(site: Site, *operands: str) -> Reason | None:
    """An operand (of those that the site has) that is neither float32 nor bfloat16."""
    for name in operands:
        dtype = site.dtypes.get(name)
        if dtype is not None and dtype not in FLOATS:
            return Reason("dtype", f"takes {name} in bfloat16 or float32, not {dtype_name(dtype)}")
    return None


def product_reason(site: Site, profile: Profile, bucket: int) -> Reason | None:
    """Of the products: the weight has x's dtype, and y has it too or is float32."""
    x, weight, y = (site.dtypes[name] for name in ("x", "weight", "y"))
    if weight != x:
        return Reason("dtype", f"takes a weight of x's dtype {dtype_name(x)}, not {dtype_name(weight)}")
    if y != x and dtype_name(y) != "float32":
        return Reason("dtype", f"writes {dtype_name(x)} or float32, not {dtype_name(y)}")
    return dtype_reason(site, "bias", "norm")


def gated_reason(site: Site, profile: Profile, bucket: int) -> Reason | None:
    """Of the gated product: a panel holds rows of the gate alone or of `up` alone."""
    if site.dim("I") % PANEL_ROWS:
        return Reason("shape", f"takes a width that is a multiple of {PANEL_ROWS}, not {site.dim('I')}")
    return product_reason(site, profile, bucket)


def norm_reason(site: Site, profile: Profile, bucket: int) -> Reason | None:
    return dtype_reason(site, "norm")


def _pages_reason(site: Site) -> Reason | None:
    """Planes k and v, alike, in x's dtype: no scales, no compressed keys."""
    assert site.group is not None
    planes, x = site.group.planes, site.dtypes["x"]
    if [plane.name for plane in planes] != ["k", "v"] or planes[0].shape != planes[1].shape:
        names = ", ".join(f"{plane.name} {list(plane.shape)}" for plane in planes)
        return Reason("format", f"reads planes k and v of one shape, not {names}")
    other = next((plane for plane in planes if plane.dtype != x), None)
    if other is not None:
        return Reason("dtype", f"takes pages of x's dtype {dtype_name(x)}, not {dtype_name(other.dtype)}")
    return None


def qkv_reason(site: Site, profile: Profile, bucket: int) -> Reason | None:
    if site.dim("D") > MAX_HEAD_SIZE:
        return Reason("shape", f"takes heads of at most {MAX_HEAD_SIZE}, not {site.dim('D')}")
    if site.dtypes.get("q_norm") != site.dtypes.get("k_norm"):
        return Reason("dtype", "takes q_norm and k_norm of one dtype")
    return dtype_reason(site, "q_norm", "k_norm") or _pages_reason(site)


def attention_reason(site: Site, profile: Profile, bucket: int) -> Reason | None:
    if site.dims["ancestors"]:
        return Reason("shape", "serves the causal rule, not ancestor masks")
    if site.dim("D") % 2 or site.dim("D") > MAX_HEAD_SIZE:
        return Reason("shape", f"takes an even head size of at most {MAX_HEAD_SIZE}, not {site.dim('D')}")
    return _pages_reason(site)
