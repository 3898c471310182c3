"""The conformance suite as a pytest plugin: every kernel × every case × every dtype against the op's reference.

The plugin is inert until a test asks for its fixture `conformance`; that test then becomes one item per trial. A
package that brings kernels (entry point `ambidex.kernels`) runs it as it is:

    pytest --pyargs ambidex.bench.conformance_suite --ambidex-kernels 'linear_*'

or has a test of its own: `def test_conformance(conformance): conformance()`. Four modes, `--ambidex-mode=…`:

test     errors within the op's tolerance, outputs poisoned with NaN first, promised determinism kept; a kernel that
         cannot serve the profile is skipped with its coded reason, which is neither a pass nor a failure
perf     the time of each kernel by pytest-benchmark, on the cases themselves; bytes/s, FLOP/s and the share of the
         roofline beside it. A kernel that is not right on the twin is not timed
support  no kernel runs: the matrix op × kernel × dtype of who serves which case on the profile, and why not
trace    no kernel runs: the sites of each case's call, and who a binding would choose for them

    --ambidex-profile NAME     the profile that decides who serves (the device's own where not given)
    --ambidex-device DEVICE    where tensors lie: `cpu` (the default), `cuda:0`, …, or `gpu`, the best one here
    --ambidex-kernels PATTERN  of kernels' names; references are called <op>.reference and <op>.parts
    --ambidex-language NAME    only kernels of this language
    --ambidex-cases KIND       `twins` (small, the default) or `full`
    --ambidex-programs N       cut grids of a fixed size to N programs: an interpreter pays for those without work, too

Errors: an unknown profile, a pattern that fits no kernel, `perf` without pytest-benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .trials import Place, Trial

MODES = ("test", "perf", "support", "trace")
_PROPERTY = "ambidex"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ambidex", "conformance of Ambidex's kernels")
    group.addoption("--ambidex-mode", choices=MODES, default="test", help="what the fixture `conformance` does")
    group.addoption("--ambidex-profile", metavar="NAME", help="profile that decides who serves (the device's own)")
    group.addoption("--ambidex-device", metavar="DEVICE", default="cpu", help="device of the tensors, or gpu (cpu)")
    group.addoption("--ambidex-kernels", metavar="PATTERN", default="*", help="kernels to try, e.g. 'linear_*'")
    group.addoption("--ambidex-language", metavar="NAME", help="only kernels of this language, as in triton")
    group.addoption("--ambidex-programs", metavar="N", type=int, help="cut grids of a fixed size to N programs")
    group.addoption("--ambidex-cases", choices=("twins", "full"), default="twins", help="the cases or their twins")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "conformance" in metafunc.fixturenames:
        found = _trials(metafunc.config)
        metafunc.parametrize("conformance", found, ids=[str(trial) for trial in found], indirect=True)


def _trials(config: pytest.Config) -> list[Trial]:
    from .trials import trials

    mode, pattern = config.getoption("--ambidex-mode"), config.getoption("--ambidex-kernels")
    full = mode == "perf" or config.getoption("--ambidex-cases") == "full"
    if mode == "perf" and not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--ambidex-mode=perf times with pytest-benchmark: pip install 'ambidex[bench]'")
    found = trials("*.parts" if mode == "trace" and pattern == "*" else pattern, full=full)
    if mode == "trace" and pattern == "*":
        found += trials("*.reference", full=full)
    language = config.getoption("--ambidex-language")
    found = [trial for trial in found if language in (None, trial.kernel.language)]
    if not found:
        raise pytest.UsageError(f"no kernel is called {pattern!r}: --ambidex-mode=support lists them")
    return found


@pytest.fixture(scope="session")
def ambidex_place(pytestconfig: pytest.Config) -> Place:
    """The profile and the device of this run. UsageError: a profile that is not there."""
    return _place(pytestconfig)


def _place(config: pytest.Config) -> Place:
    from ..backends.choosing import best
    from ..hwprofiles.reader import load
    from ..ops.discovery import missing_languages
    from .trials import Place

    name, device = config.getoption("--ambidex-profile"), config.getoption("--ambidex-device")
    most_programs = config.getoption("--ambidex-programs")
    if most_programs is not None and most_programs < 1:
        raise pytest.UsageError(f"--ambidex-programs is {most_programs}: a launch has at least one program")
    elsewhere = name is not None and config.getoption("--ambidex-mode") in ("support", "trace")
    try:
        found = _gpu() if device == "gpu" else best(device)
        profile = load(name) if name else found.match.profile
        assert profile is not None
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    missing = {} if elsewhere else missing_languages()
    return Place(profile, found.backend.device(found.report), missing, most_programs)


def _gpu() -> Any:
    """The best device here that works by itself. ValueError: there is none."""
    from ..backends.choosing import places

    found = [place for place in places() if place.backend.is_asynchronous and place.match.profile is not None]
    if not found:
        raise ValueError("there is no GPU here: `ambidex doctor` says what is missing")
    return found[0]


@pytest.fixture
def conformance(request: pytest.FixtureRequest, ambidex_place: Place) -> Callable[[], None]:
    """Runs one trial in the mode that was asked for. The test has only to call it."""
    trial: Trial = request.param
    return _Run(trial, ambidex_place, request)


@dataclass
class _Run:
    trial: Trial
    place: Place
    request: pytest.FixtureRequest

    def __call__(self) -> None:
        mode: str = self.request.config.getoption("--ambidex-mode")
        if mode == "trace":
            self._trace()
            return
        reason = self.trial.refusal(self.place)
        if mode == "support":
            self._note(_Verdict.of(self.trial, str(reason) if reason else "ok").plain())
        if reason is not None:
            pytest.skip(f"not supported: {reason}")
        if mode == "test":
            self.trial.check(self.place)
        if mode == "perf":
            self._time()

    def _note(self, entry: list[str]) -> None:
        self.request.node.user_properties.append((_PROPERTY, entry))

    def _trace(self) -> None:
        from .traces import traced

        self._note([str(self.trial), *traced(self.trial, self.place)])

    def _time(self) -> None:
        from .timing import facts, prepared

        benchmark: Any = self.request.getfixturevalue("benchmark")
        benchmark.group = f"{self.trial.op.name}: {self.trial.case.name}"
        benchmark(prepared(self.trial, self.place))
        benchmark.extra_info.update(facts(self.trial, self.place, benchmark.stats.stats.median))


@dataclass(frozen=True)
class _Verdict:
    """A line of the support matrix before it is joined: one case of a kernel and dtype."""

    op: str
    kernel: str
    dtype: str
    case: str
    outcome: str

    @classmethod
    def of(cls, trial: Trial, outcome: str) -> _Verdict:
        dtype = str(trial.dtype).removeprefix("torch.")
        return cls(trial.op.name, trial.kernel.name, dtype, trial.case.name, outcome)

    def plain(self) -> list[str]:
        return [self.op, self.kernel, self.dtype, self.case, self.outcome]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    mode = config.getoption("--ambidex-mode")
    entries = list(_entries(terminalreporter))
    if not entries:
        return
    terminalreporter.section(f"ambidex {mode}")
    for line in matrix(entries) if mode == "support" else (line for entry in entries for line in entry[1:]):
        terminalreporter.write_line(line)


def _entries(terminalreporter: pytest.TerminalReporter) -> Iterator[list[str]]:
    for outcome in ("passed", "skipped"):
        for report in terminalreporter.getreports(outcome):
            found = [value for name, value in report.user_properties if name == _PROPERTY]
            yield from found if report.when == "call" else ()


def matrix(entries: list[list[str]]) -> list[str]:
    """The support matrix: a line for each op, kernel and dtype; cases are named where they do not agree."""
    cells: dict[tuple[str, str, str], list[_Verdict]] = {}
    for verdict in sorted((_Verdict(*entry) for entry in entries), key=lambda v: (v.op, v.kernel, v.dtype)):
        cells.setdefault((verdict.op, verdict.kernel, verdict.dtype), []).append(verdict)
    return [f"{op:<20} {kernel:<28} {dtype:<9} {_joined(found)}" for (op, kernel, dtype), found in cells.items()]


def _joined(verdicts: list[_Verdict]) -> str:
    outcomes = {verdict.outcome for verdict in verdicts}
    if len(outcomes) == 1:
        return outcomes.pop()
    return "; ".join(f"{verdict.case}: {verdict.outcome}" for verdict in verdicts)
