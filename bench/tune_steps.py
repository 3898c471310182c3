"""Tuning in company: launches by the time of a whole step.

What is fastest alone need not be among the kernels before and after it: how much on-chip memory a launch takes, for
one, decides where the next kernel's programs find room. So a step of so many requests with so much context is captured
on the model with random weights, and at each site, the one that moves most bytes first, every launch of every kernel
that can serve there is tried within it (of composites as they are bound: whole, or their parts). The fastest serves
there while the other sites are searched. Each kernel's best launch becomes its row, checked and timed alone like any
other: only times alone tell kernels of one site apart, so by them a binding chooses. Sites alike share one row, and are
searched as one. Those of logits are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

from ..ops import discovery
from ..ops.bound import BoundOps, BoundSite, Choice
from ..ops.contract import Kernel, Launch
from ..ops.launches import typical_rows
from ..ops.step_cost import site_work
from ..ops.support import UNBOUNDED, Demand, bucket_of, layout_refusal
from ..ops.tuned import dtype_names, formats, timed_dims
from ..ops.types import Site
from ..runtime.options import Options
from ..runtime.start import decide
from .ops import Selection
from .step import StepBench
from .trials import POLICY, Trial
from .tune import Note, Tuning, trial_at

Case = tuple[int, int]
"""Requests of a step, and the tokens of context of each."""

_Served = Mapping[str, tuple[Kernel, Launch]]
"""Who serves instead, and how launched, by the site's name."""


def bench_of(model: str, device: str | None, dtype: str, cases: Iterable[Case]) -> StepBench:
    """The model's steps, with room for all cases. Errors: those of `runtime.start.decide`."""
    sizes = list(cases)
    tokens = max(batch * (context + 128) for batch, context in sizes)
    options = Options(
        model=model, device=device, dtype=dtype, max_model_len=max(context for _, context in sizes),
        max_num_seqs=max(batch for batch, _ in sizes), kv_cache_tokens=tokens, graphs=False, progress=False,
    )  # fmt: skip
    return StepBench(decide(options))


@dataclass(frozen=True)
class _Tried:
    kernel: Kernel
    launch: Launch
    seconds: list[float] = field(default_factory=list[float])


def _key(site: Site) -> tuple[object, ...]:
    """Equal for sites that share their rows."""
    dims, dtypes = sorted(timed_dims(site).items()), sorted(dtype_names(site).items())
    return site.op, tuple(dims), tuple(dtypes), tuple(formats(site))


class Search:
    """One step's sites that are selected: who serves which, and how long the step takes if another does.

    before_s, after_s: what it took as it was bound, and takes with the best of all sites; None until that is known."""

    def __init__(self, bench: StepBench, case: Case, selection: Selection) -> None:
        self._bench, self.case, self._selection = bench, case, selection
        self._binding, self._bucket = bench.decided.binding, bucket_of(case[0], POLICY)
        self._rows = min(self._bucket, typical_rows(POLICY.buckets[-1], UNBOUNDED))
        self._served: _Served = {}
        self._tried: dict[tuple[object, ...], _Tried] = {}
        self._at: Site | None = None
        self.before_s: float | None = None
        self.after_s: float | None = None
        self.sites = self._ordered()

    def run(self, tuning: Tuning) -> Iterator[Note | None]:
        """A note for each kernel of each site; None after each site. tuning: one with `seconds` for its clock."""
        self.before_s = self._step_s({}, tuning.bench.watch.budget_s)
        for site in self.sites:
            self._at = site
            yield from tuning.run([trial_at(site, self._rows)], self._serving)
            self._settle(site)
        self.after_s = self._step_s(self._served, tuning.bench.watch.budget_s)

    def seconds(self, kernel: Kernel, launch: Launch, budget_s: float) -> float:
        """Of a step in which this serves the site at hand."""
        assert self._at is not None, "a search is under way"
        found = self._step_s(self._also(self._at, kernel, launch), budget_s)
        tried = self._tried.setdefault((kernel.name, *launch.items()), _Tried(kernel, launch))
        tried.seconds.append(found)
        return found

    def _step_s(self, served: _Served, budget_s: float) -> float:
        ops = BoundOps(self._changed(self._binding.sites, served), discovery.ops(), discovery.kernels())
        return self._bench.decode_s(*self.case, ops, budget_s)

    def _ordered(self) -> tuple[Site, ...]:
        """What moves most bytes first."""
        batch, context = self.case
        spans = [(context - 1, 1)] * batch

        def num_bytes(site: Site) -> int:
            return discovery.ops()[site.op].cost(site, site_work(site, spans)).num_bytes

        reached = sorted(self._reached(self._binding.sites), key=num_bytes, reverse=True)
        first = {_key(site): site for site in reversed(reached)}
        return tuple(site for site in reached if site is first[_key(site)] and self._is_selected(site))

    def _also(self, site: Site, kernel: Kernel, launch: Launch) -> _Served:
        """Who serves, with this at the site and at those alike."""
        alike = [each.name for each in self._reached(self._binding.sites) if _key(each) == _key(site)]
        return {**self._served, **dict.fromkeys(alike, (kernel, launch))}

    def _is_selected(self, site: Site) -> bool:
        name = trial_at(site, self._rows).case.name
        return fnmatch(site.op, self._selection.ops) and fnmatch(name, self._selection.cases)

    def _serving(self, base: Trial) -> list[Kernel]:
        """Kernels that take the weights and pages as they lie; all else their trials say."""
        assert self._at is not None, "a search is under way"
        demands: dict[str, Demand] = {**self._binding.weight_layouts, **self._binding.page_demands}
        return [each for each in self._selection.of(base.op) if layout_refusal(each, self._at, demands) is None]

    def _settle(self, site: Site) -> None:
        """What was fastest, of those that were timed again, serves the site from now on."""
        again = [each for each in self._tried.values() if len(each.seconds) > 1]
        if again:
            best = min(again, key=lambda each: each.seconds[-1])
            self._served = self._also(site, best.kernel, best.launch)
        self._tried = {}

    def _choice(self, bound: BoundSite) -> Choice:
        return next(choice for choice in bound.choices if choice.bucket == self._bucket)

    def _reached(self, bound: Iterable[BoundSite]) -> Iterator[Site]:
        for entry in bound:
            chosen = self._choice(entry).chosen
            if chosen == "parts":
                yield from self._reached(entry.parts)
            elif chosen != "reference" and entry.site.rows == "tokens":
                yield entry.site

    def _changed(
        self, bound: Iterable[BoundSite], served: Mapping[str, tuple[Kernel, Launch]]
    ) -> tuple[BoundSite, ...]:
        return tuple(
            replace(
                entry,
                parts=self._changed(entry.parts, served),
                choices=tuple(self._other(choice, served.get(entry.site.name)) for choice in entry.choices),
            )
            for entry in bound
        )

    def _other(self, choice: Choice, by: tuple[Kernel, Launch] | None) -> Choice:
        if by is None or choice.bucket != self._bucket:
            return choice
        return replace(choice, chosen=by[0].name, launch=by[1])
