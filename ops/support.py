"""Whether a kernel serves a site on a profile; and if not, why. What binding, conformance and `explain` all ask.

A verdict has two halves: `refusal` reads the site, the profile and the policy; `layout_refusal` reads how the tensors
that the site shares with others are to lie, which is known later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..hwprofiles.schema import Profile
from .contract import Kernel, Launch, Policy
from .state import PageLayout
from .types import Layout, Reason, Site, dtype_name

UNBOUNDED = 1 << 62
"""The bucket that holds any number of rows."""


@dataclass(frozen=True)
class PageDemand:
    """How the pages of a state group are to lie: the order of their axes and the tokens in a page."""

    layout: PageLayout
    page_size: int


Demand = Layout | PageDemand


def bucket_of(rows: int, policy: Policy) -> int:
    """The bucket that a call with so many rows falls into."""
    return next((bound for bound in policy.buckets if rows <= bound), UNBOUNDED)


def refusal(
    kernel: Kernel, site: Site, bucket: int, profile: Profile, policy: Policy, missing: Mapping[str, str]
) -> Reason | None:
    """Why `kernel` cannot serve rows up to `bucket` of `site`, layouts apart; None if it can.

    missing: languages that cannot run in this environment, each with the sentence that says why.
    """
    return (
        _environment_reason(kernel, profile, policy, missing)
        or _operand_reason(kernel, site)
        or _rows_reason(kernel, bucket)
        or (kernel.refuses(site, profile, bucket) if kernel.refuses else None)
        or _launch_reason(kernel, site, profile, bucket)
    )


def layout_refusal(kernel: Kernel, site: Site, demands: Mapping[str, Demand]) -> Reason | None:
    """Why `kernel` cannot read the site's weights and pages as `demands` (by role and group name) has them lie."""
    for weight in site.weights:
        demand = demands.get(weight.role)
        if isinstance(demand, Layout) and demand is not kernel.layout:
            return Reason("layout", f"reads {kernel.layout.name}, {weight.role} lies in {demand.name}")
    page = demands.get(site.group.name) if site.group else None
    if not isinstance(page, PageDemand):
        return None
    if page.layout not in kernel.page_layouts:
        return Reason("layout", f"reads {_list(order.name for order in kernel.page_layouts)} pages")
    if kernel.page_sizes and page.page_size not in kernel.page_sizes:
        return Reason("page_size", f"takes {_list(kernel.page_sizes)} tokens a page, not {page.page_size}")
    return None


def _environment_reason(kernel: Kernel, profile: Profile, policy: Policy, missing: Mapping[str, str]) -> Reason | None:
    if kernel.language not in profile.languages:
        runs = _list(profile.languages) or "no language that kernels are written in"
        return Reason("language_missing", f"is written in {kernel.language}; {profile.name} runs {runs}")
    if kernel.language in missing:
        return Reason("language_missing", missing[kernel.language])
    lacking = sorted(kernel.needs - profile.capabilities)
    if lacking:
        return Reason("arch", f"{profile.name} has no {_list(lacking)}")
    if not kernel.determinism.covers(policy.determinism):
        return Reason("determinism", f"promises {kernel.determinism}, not {policy.determinism}")
    return None


def _operand_reason(kernel: Kernel, site: Site) -> Reason | None:
    dtype = site.dtypes["x"]
    if dtype not in kernel.dtypes:
        takes = _list(sorted(dtype_name(taken) for taken in kernel.dtypes))
        return Reason("dtype", f"takes {takes}, not {dtype_name(dtype)}")
    for weight in site.weights:
        if weight.format not in kernel.formats:
            return Reason("format", f"reads {_list(sorted(kernel.formats))}; {weight.role} is {weight.format}")
    return None


def _rows_reason(kernel: Kernel, bucket: int) -> Reason | None:
    if kernel.max_rows is None or bucket <= kernel.max_rows:
        return None
    return Reason("rows", f"is made for at most {kernel.max_rows} rows")


def _launch_reason(kernel: Kernel, site: Site, profile: Profile, bucket: int) -> Reason | None:
    if kernel.on_chip_bytes is None or kernel.launch is None:
        return None
    return on_chip_reason(kernel, profile, kernel.launch(site, profile, bucket))


def on_chip_reason(kernel: Kernel, profile: Profile, launch: Launch) -> Reason | None:
    """Why a block of the kernel, launched so, does not fit the memory that the profile has for one; None if it does."""
    limit = profile.on_chip.shared_memory_per_block_kib
    if kernel.on_chip_bytes is None or limit is None:
        return None
    needed = kernel.on_chip_bytes(launch)
    if needed <= limit * 1024:
        return None
    return Reason("on_chip_bytes", f"needs {needed:,} bytes a block, {profile.name} has {limit * 1024:,.0f}")


def _list(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
