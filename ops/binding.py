"""The binding: which kernel serves which site, decided once, before anything is allocated, and printable.

`bind(sites, profile, policy)` asks every kernel of every site's op whether it serves, bucket by bucket. Who does not
says why. Weights of one role and pages of one group can lie in one layout only, so layouts are settled first (the one
under which the sites that share the tensor are served best), then each site takes its best kernel under them.

Best is the highest priority, unless several were measured: then the fastest of those takes the first one's place. A
composite takes a kernel for the whole where one serves, unless its parts were measured to be faster; else its parts are
bound. An explicit choice is a promise: it is met, or `BindingError` says why it cannot be. At `Determinism.BATCH` one
kernel with one launch serves all buckets of a site, because two kernels rarely agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..hwprofiles.schema import Profile
from . import discovery
from .bound import BoundOps, BoundSite, Choice, unreached_line
from .contract import Kernel, Launch, Op, Policy
from .launches import Launches, Pick, launch_reason, parse_choice
from .layouts import PAGES_PHSD, ROW_MAJOR
from .ranking import Ranking, Times, parts_reason, summed
from .support import UNBOUNDED, Demand, PageDemand, layout_refusal, refusal
from .tuned import Tuned, found
from .types import Determinism, Layout, Reason, Site

__all__ = ["UNBOUNDED", "Binding", "BindingError", "BoundOps", "BoundSite", "Choice", "PageDemand", "bind"]

_REFERENCE_PENALTY = -1_000
_BROKEN_PROMISE_PENALTY = -1_000_000


class BindingError(ValueError):
    """A promise that cannot be kept: an explicit choice, a level of determinism, or `fallback: forbid`."""

    exit_code = 9


@dataclass(frozen=True)
class Binding:
    """The frozen outcome: who serves what, the layouts to allocate, and the functions to call.

    warnings: with `fallback: warn`, a line for each site that runs on its reference unasked; and one for a choice that
        reaches only some sites of its op. For the engine to print.
    """

    profile: Profile
    policy: Policy
    sites: tuple[BoundSite, ...]
    weight_layouts: Mapping[str, Layout]
    page_demands: Mapping[str, PageDemand]
    ops: BoundOps
    warnings: tuple[str, ...] = ()


class _Binder:
    """The state of one `bind`: verdicts of kernels, then settled layouts, then choices."""

    def __init__(
        self,
        profile: Profile,
        policy: Policy,
        ops: Mapping[str, Op],
        kernels: Mapping[str, Kernel],
        missing: Mapping[str, str],
        tuned: Tuned,
    ) -> None:
        self.profile, self.policy, self.ops, self.kernels, self.missing = profile, policy, ops, kernels, missing
        self.buckets = (*policy.buckets, UNBOUNDED)
        self.choices = {key: _parsed(key, text) for key, text in policy.choices.items()}
        self.launches = Launches(profile, tuned, self.buckets, single=policy.determinism is Determinism.BATCH)
        self.ranking = Ranking(self.launches)
        self.met: set[str] = set()
        self.warnings: dict[str, str] = {}
        self.refusals: dict[tuple[str, tuple[object, ...], int], Reason | None] = {}

    def candidates(self, site: Site) -> list[Kernel]:
        serving = [kernel for kernel in self.kernels.values() if kernel.op == site.op]
        return sorted(serving, key=lambda kernel: (-kernel.priority, kernel.name))

    def wanted(self, site: Site) -> str | None:
        """What the user chose for this site, if anything."""
        key = self.choice_key(site)
        return None if key is None else self.choices[key][0]

    def choice_key(self, site: Site) -> str | None:
        return next((key for key in (site.name, site.op) if key in self.choices), None)

    def static_reason(self, kernel: Kernel, site: Site, bucket: int) -> Reason | None:
        """Why `kernel` cannot serve rows up to `bucket` of `site`, layouts apart; None if it can."""
        key = self.choice_key(site)
        if key is not None and self.choices[key][0] != kernel.name:
            return Reason("policy", f"{self.choices[key][0]} was chosen for {key}")
        asked = (kernel.name, site.signature, bucket)
        if asked not in self.refusals:
            self.refusals[asked] = refusal(kernel, site, bucket, self.profile, self.policy, self.missing)
        return self.refusals[asked]

    def settle(self, sites: tuple[Site, ...]) -> dict[str, Demand]:
        """One layout for each weight role and each group: the candidate under which its sites are served best."""
        demands: dict[str, Demand] = {}
        for name, sharing in _sharing(sites).items():
            options = self._options(name, sharing)
            scores = [sum(self._score(site, {**demands, name: option}) for site in sharing) for option in options]
            demands[name] = options[scores.index(max(scores))]
        return demands

    def _options(self, name: str, sharing: list[Site]) -> list[Demand]:
        involved = [kernel for site in _with_parts(sharing) for kernel in self.candidates(site)]
        if any(site.group is not None and site.group.name == name for site in sharing):
            orders = dict.fromkeys(order for kernel in involved for order in kernel.page_layouts) or {PAGES_PHSD: None}
            return [PageDemand(order, size) for size in self.policy.page_sizes for order in orders]
        return list(dict.fromkeys([ROW_MAJOR, *(kernel.layout for kernel in involved)]))

    def _score(self, site: Site, demands: Mapping[str, Demand]) -> float:
        return sum(self._bucket_score(site, bucket, demands) for bucket in self.buckets)

    def _bucket_score(self, site: Site, bucket: int, demands: Mapping[str, Demand]) -> float:
        kernel = self._best(site, bucket, demands)[0]
        if kernel is not None:
            return float(self.ranking.dealt(self._able(site, bucket), site, bucket)[kernel.name])
        if self.wanted(site) not in (None, "parts", "reference"):
            return _BROKEN_PROMISE_PENALTY
        if not site.parts:
            return _REFERENCE_PENALTY
        inner = [self._bucket_score(part, bucket, demands) for part in site.parts]
        return sum(inner) / len(inner)

    def _best(self, site: Site, bucket: int, demands: Mapping[str, Demand]) -> tuple[Kernel | None, dict[str, Reason]]:
        reasons = {each.name: self._reason(each, site, bucket, demands) for each in self.candidates(site)}
        refused = {name: reason for name, reason in reasons.items() if reason is not None}
        serving = [each for each in self.candidates(site) if each.name not in refused]
        if not serving:
            return None, refused
        best = self.ranking.ordered(serving, site, bucket)[0]
        refused |= self.ranking.beaten(serving, best, site, bucket)
        slower = self._behind_parts(best, site, bucket, demands)
        return (best, refused) if slower is None else (None, {**refused, best.name: slower})

    def _able(self, site: Site, bucket: int) -> list[Kernel]:
        """Kernels that serve if the layouts suit them."""
        return [each for each in self.candidates(site) if self.static_reason(each, site, bucket) is None]

    def _behind_parts(self, kernel: Kernel, site: Site, bucket: int, demands: Mapping[str, Demand]) -> Reason | None:
        if not site.parts or self.ops[site.op].has_glue or self.wanted(site) is not None:
            return None
        whole = self.launches.times_us(kernel, site, bucket)
        parts = [self._served_us(part, bucket, demands) for part in site.parts]
        if whole and all(parts):
            return parts_reason(whole, parts)
        scores = [self._bucket_score(part, bucket, demands) for part in site.parts]
        if sum(scores) / len(scores) > self.ranking.dealt(self._able(site, bucket), site, bucket)[kernel.name]:
            return Reason("policy", "kernels of its parts come before it")
        return None

    def _served_us(self, site: Site, bucket: int, demands: Mapping[str, Demand]) -> Times:
        """What the site took when it was measured, as it would be served."""
        kernel = self._best(site, bucket, demands)[0]
        if kernel is not None:
            return self.launches.times_us(kernel, site, bucket)
        summable = () if self.ops[site.op].has_glue else site.parts
        return summed([self._served_us(part, bucket, demands) for part in summable])

    def _reason(self, kernel: Kernel, site: Site, bucket: int, demands: Mapping[str, Demand]) -> Reason | None:
        reason = self.static_reason(kernel, site, bucket) or layout_refusal(kernel, site, demands)
        if reason is not None or self.policy.determinism is not Determinism.BATCH:
            return reason
        for other in self.buckets:
            elsewhere = self.static_reason(kernel, site, other)
            if elsewhere is not None:
                return Reason("determinism", f"serves not every bucket ({elsewhere}); batch needs one kernel for all")
        return None

    def place(self, site: Site, demands: Mapping[str, Demand]) -> BoundSite:
        choices = tuple(self._choose(site, bucket, demands) for bucket in self.buckets)
        whole = all(choice.chosen != "parts" for choice in choices)
        parts = () if whole else tuple(self.place(part, demands) for part in site.parts)
        return BoundSite(site, choices, parts)

    def _choose(self, site: Site, bucket: int, demands: Mapping[str, Demand]) -> Choice:
        kernel, refused = self._best(site, bucket, demands)
        chosen = kernel.name if kernel else "parts" if site.parts else "reference"
        self._keep_choice(site, chosen, refused)
        if chosen == "reference":
            self._allow_reference(site, refused)
        pick = self._pick(kernel, site, bucket)
        return Choice(bucket, chosen, pick.launch, refused, pick.source)

    def _pick(self, kernel: Kernel | None, site: Site, bucket: int) -> Pick:
        """The launch, with the parameters that were asked for: a promise like the kernel itself."""
        pick = self.launches.pick(kernel, site, bucket) if kernel else Pick({}, None)
        key = self.choice_key(site)
        asked = self.choices[key][1] if key else {}
        if not asked:
            return pick
        launch = {**pick.launch, **asked}
        reason = launch_reason(kernel, site, self.profile, bucket, launch) if kernel else "has no launch parameters"
        if reason is not None:
            raise BindingError(f"{self.wanted(site)} cannot be launched for {site.name} as asked: {reason}")
        return Pick(launch, "explicit")

    def _keep_choice(self, site: Site, chosen: str, refused: Mapping[str, Reason]) -> None:
        key = self.choice_key(site)
        if key is None:
            return
        wanted = self.choices[key][0]
        if chosen != wanted:
            raise BindingError(f"{wanted} cannot serve {site.name}: {self._why_not(wanted, site, refused)}")
        self.met.add(key)

    def _why_not(self, wanted: str, site: Site, refused: Mapping[str, Reason]) -> str:
        if wanted in refused:
            return str(refused[wanted])
        known = [*(kernel.name for kernel in self.candidates(site)), "parts" if site.parts else "reference"]
        return f"it is not one of its implementations ({', '.join(known)})"

    def _allow_reference(self, site: Site, refused: Mapping[str, Reason]) -> None:
        tried = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "no kernel of this op exists"
        if not self.ops[site.op].determinism.covers(self.policy.determinism):
            raise BindingError(f"{site.name} cannot promise determinism={self.policy.determinism}: {tried}")
        if self.wanted(site) == "reference" or self.policy.fallback == "allow":
            return
        if self.policy.fallback == "forbid":
            raise BindingError(f"fallback is forbid and only the reference serves {site.name}: {tried}")
        self.warnings.setdefault(site.name, f"{site.name} runs on its reference: {tried}")

    def check_choices(self, sites: tuple[Site, ...]) -> None:
        for key in sorted(set(self.choices) - self.met):
            known = {name for site in _with_parts(sites) for name in (site.name, site.op)}
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
                raise BindingError(f"no site or op is called {key}{hint}")
            wanted = self.choices[key][0]
            if wanted not in (*self.kernels, "reference", "parts"):
                raise BindingError(f"no kernel is called {wanted}: `ambidex explain` lists those of {key}")
            raise BindingError(
                f"{key} is never bound on its own: a composite around it is served whole, or all its sites have "
                f"choices of their own (choose `parts` for the composite to bind {key})"
            )


def _parsed(key: str, text: str) -> tuple[str, Launch]:
    try:
        return parse_choice(text)
    except ValueError as error:
        raise BindingError(f"the choice for {key} cannot be read: {error}") from None


def _with_parts(sites: Iterable[Site]) -> list[Site]:
    return [each for site in sites for each in (site, *_with_parts(site.parts))]


def _sharing(sites: tuple[Site, ...]) -> dict[str, list[Site]]:
    """The outermost sites that touch each weight role and each state group."""
    sharing: dict[str, list[Site]] = {}
    for site in sites:
        names = [weight.role for weight in site.weights] + ([site.group.name] if site.group else [])
        for name in names:
            sharing.setdefault(name, []).append(site)
    return sharing


def bind(
    sites: tuple[Site, ...],
    profile: Profile,
    policy: Policy | None = None,
    *,
    missing: Mapping[str, str] | None = None,
    ops: Mapping[str, Op] | None = None,
    kernels: Mapping[str, Kernel] | None = None,
    tuned: Tuned | None = None,
) -> Binding:
    """Decide who serves each site on `profile`.

    missing: languages that cannot run in this environment, with the reason (empty for a profile that is elsewhere).
    ops, kernels, tuned: what there is to choose from and what was measured; by default everything that is found.
    Errors: BindingError where an explicit choice, the determinism or `fallback: forbid` cannot be met; TunedError.
    """
    found_ops = ops if ops is not None else discovery.ops()
    found_kernels = kernels if kernels is not None else discovery.kernels()
    rows = tuned if tuned is not None else found()
    binder = _Binder(profile, policy or Policy(), found_ops, found_kernels, missing or {}, rows)
    demands = binder.settle(sites)
    bound = tuple(binder.place(site, demands) for site in sites)
    binder.check_choices(sites)
    unreached = [line for key in sorted(binder.met & found_ops.keys()) if (line := unreached_line(key, bound))]
    return Binding(
        profile,
        binder.policy,
        bound,
        {name: demand for name, demand in demands.items() if isinstance(demand, Layout)},
        {name: demand for name, demand in demands.items() if isinstance(demand, PageDemand)},
        BoundOps(bound, found_ops, found_kernels),
        (*binder.warnings.values(), *unreached),
    )
