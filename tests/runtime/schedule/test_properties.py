"""Planning against a simulated device: whatever arrives, ends, is preempted or shared, every completion has the tokens
of an unbatched run, pages are conserved, and nobody waits for ever.

The device obeys steps alone, as a worker does, and is a model of two layers in miniature: what it stores of a token is
a digest of all that the layer below holds of the context, read back through the page tables; what it samples is a
digest of all of the last layer. A wrong page, a missing copy, stale content, a wrong order, position or mask: each
changes the tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ambidex.runtime.engine import Engine
from ambidex.runtime.errors import QueueFull
from ambidex.runtime.execute.sampled import Sampled
from ambidex.runtime.intake import Intake
from ambidex.runtime.messages import TIMEOUT, Ended, Limits, Progress, Submission
from ambidex.runtime.request import SamplingParams
from ambidex.runtime.schedule.pace import Pace
from ambidex.runtime.schedule.pages import PagePool
from ambidex.runtime.schedule.prefix import page_key, root_key
from ambidex.runtime.schedule.request import Scheduled
from ambidex.runtime.schedule.scheduler import Scheduler
from ambidex.runtime.step import Step
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

VOCABULARY, EOS, POISON = 40, 3, 39
LONGEST = 36
NOT_A_NUMBER = 0
"""The content that spreads: of the token POISON, and of everything that has seen it."""


def digest(*values: int) -> int:
    return NOT_A_NUMBER if NOT_A_NUMBER in values else hash(values) | 1


def stored(position: int, token: int) -> int:
    """What the first layer stores of a token."""
    return NOT_A_NUMBER if token == POISON else digest(position + 1, token + 1)


def drawn(cells: Sequence[int], seed: int, allowed: Sequence[int]) -> int | None:
    """The token behind a context of which the last layer holds these cells; None if that is not a number."""
    value = digest(*cells, seed or 1)
    return None if value == NOT_A_NUMBER else allowed[value % 1_000_003 % len(allowed)]


@dataclass(frozen=True)
class World:
    """Groups by name with the size of a page; the first layer lies in the first group, the second in the last."""

    page_sizes: Mapping[str, int]
    num_tokens: int
    num_slots: int
    token_budget: int
    prefix_caching: bool = True
    overlap: bool = False
    lazy: bool = False
    step_budget: int | None = None
    max_queued: int = 1000

    @property
    def num_pages(self) -> dict[str, int]:
        return {group: self.num_tokens // size for group, size in self.page_sizes.items()}


class Device:
    """Memory by layer, page and offset; tables by group and slot. Steps are run in order: at once, or when `lazy` as
    late as their results are asked for (then a plan that is changed after it was launched shows)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.layers = (next(iter(world.page_sizes)), list(world.page_sizes)[-1])
        self.memory: list[list[list[int | None]]] = [
            [[None] * world.page_sizes[group] for _ in range(world.num_pages[group])] for group in self.layers
        ]
        self.tables = {group: [dict[int, int]() for _ in range(world.num_slots)] for group in world.page_sizes}
        self.tokens: list[list[int] | None] = [None] * world.num_slots
        self.seeds = [0] * world.num_slots
        self.num_copies = 0
        self._pending: list[tuple[Step, list[Sampled]]] = []

    @property
    def is_idle(self) -> bool:
        return not self._pending

    def launch(self, step: Step) -> Callable[[], Sampled]:
        result: list[Sampled] = []
        self._pending.append((step, result))
        if not self.world.lazy:
            self._run_until(result)
        return lambda: self._run_until(result)

    def _run_until(self, result: list[Sampled]) -> Sampled:
        while not result:
            step, place = self._pending.pop(0)
            place.append(self._run(step))
        return result[0]

    def _run(self, step: Step) -> Sampled:
        assert step.num_tokens <= self.world.token_budget
        self._apply(step)
        spans = [(int(slot), int(first), int(count)) for slot, first, count in step.spans]
        assert len({slot for slot, _, _ in spans}) == len(spans), "a slot has one span a step"
        assert all(count > 0 for _, _, count in spans)
        for slot, first, count in spans:
            known = self.tokens[slot]
            assert known is not None, "a slot that nobody has"
            for position in range(first, first + count):
                self._write(0, slot, position, stored(position, known[position]))
        for slot, first, count in spans:
            for position in range(first, first + count):
                self._write(1, slot, position, digest(*self._read(0, slot, position + 1)))
        return self._sample(step, spans)

    def _apply(self, step: Step) -> None:
        copied = []
        for layer, group in enumerate(self.layers):
            for source, target in step.copies.get(group, np.empty((0, 2), np.int64)).tolist():
                copied.append((layer, target, list(self.memory[layer][source])))
        self.num_copies += len(copied)
        for layer, target, cells in copied:
            self.memory[layer][target] = cells
        for slot in step.freed.tolist():
            assert self.tokens[slot] is not None, "a slot was given back twice"
            self.tokens[slot] = None
        for each in step.added:
            assert self.tokens[each.slot] is None, "a slot was given to two"
            self.tokens[each.slot], self.seeds[each.slot] = each.tokens.tolist(), each.seed
            for tables in self.tables.values():
                tables[each.slot].clear()
        for group, rows in step.pages.items():
            for slot, index, page in rows.tolist():
                self.tables[group][slot][index] = page

    def _cell(self, layer: int, slot: int, position: int) -> tuple[list[int | None], int]:
        group = self.layers[layer]
        size = self.world.page_sizes[group]
        return self.memory[layer][self.tables[group][slot][position // size]], position % size

    def _write(self, layer: int, slot: int, position: int, value: int) -> None:
        page, offset = self._cell(layer, slot, position)
        page[offset] = value

    def _read(self, layer: int, slot: int, count: int) -> list[int]:
        cells: list[int] = []
        for position in range(count):
            page, offset = self._cell(layer, slot, position)
            value = page[offset]
            assert value is not None, "memory was read that nobody has written"
            cells.append(value)
        return cells

    def _sample(self, step: Step, spans: Sequence[tuple[int, int, int]]) -> Sampled:
        ids: list[int | None] = []
        for row, (span, offset) in enumerate(step.logits.tolist()):
            slot, first, count = spans[span]
            assert offset < count
            known = self.tokens[slot]
            assert known is not None
            assert first + offset + 1 == len(known), "only behind the last token is something to be drawn"
            words = step.masks.get(row)
            bits = -1 if words is None else int.from_bytes(words.tobytes(), "little")
            allowed = [token for token in range(VOCABULARY) if bits >> token & 1]
            ids.append(drawn(self._read(1, slot, len(known)), self.seeds[slot], allowed))
        for (span, _), token in zip(step.logits.tolist(), ids, strict=True):
            known = self.tokens[spans[span][0]]
            assert known is not None
            known.append(0 if token is None else token)
        logprobs = np.array([np.nan if token is None else -1.0 for token in ids], dtype=np.float32)
        empty = np.empty((len(ids), 0))
        return Sampled(np.array([token or 0 for token in ids], np.int64), logprobs, empty.astype(np.int64), empty)


def alone(prompt: Sequence[int], params: SamplingParams, seed: int, max_length: int) -> tuple[list[int], str]:
    """Tokens and end of a completion that has the device for itself: no pages, no batch, no scheduler."""
    tokens, below, above = list(prompt), list[int](), list[int]()
    stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else {EOS})
    while True:
        for position in range(len(above), len(tokens)):
            below.append(stored(position, tokens[position]))
            above.append(digest(*below))
        num_outputs = len(tokens) - len(prompt)
        allowed = set(range(VOCABULARY) if params.allowed_token_ids is None else params.allowed_token_ids)
        allowed -= stops if num_outputs < params.min_tokens else set()
        token = drawn(above, seed, sorted(allowed))
        if token is None:
            return tokens[len(prompt) :], "error"
        tokens.append(token)
        if token in stops and num_outputs + 1 >= params.min_tokens:
            return tokens[len(prompt) :], "stop"
        if len(tokens) >= max_length:
            return tokens[len(prompt) :], "length"


@dataclass
class Asked:
    """A completion that was admitted, and what is to come of it."""

    salt: str
    prompt: list[int]
    wanted: tuple[list[int], str]
    max_length: int
    tokens: list[int] = field(default_factory=list[int])
    ended: Ended | None = None
    chains: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])

    @property
    def context(self) -> list[int]:
        return self.prompt + self.tokens


class Run:
    """A real engine over the simulated device, everything it does checked."""

    def __init__(self, world: World) -> None:
        self.world, self.now_s, self.device = world, 0.0, Device(world)
        self.scheduler = Scheduler(
            {group: PagePool(count) for group, count in world.num_pages.items()},
            world.page_sizes,
            num_slots=world.num_slots,
            max_length=LONGEST,
            token_budget=world.token_budget,
            max_queued=world.max_queued,
            prefix_caching=world.prefix_caching,
            pace=None if world.step_budget is None else pace_of(world.step_budget),
        )
        limits = Limits(LONGEST, VOCABULARY, frozenset({EOS}), world.num_tokens, world.max_queued)
        self._intake = Intake(limits, model="m", seed=1, ageing_s=10.0, longest=dict.fromkeys("ab", world.num_tokens))
        self.engine = Engine(self.scheduler, self, self, limits, overlap=world.overlap, clock=lambda: self.now_s)  # type: ignore[arg-type]
        self.asked: dict[int, Asked] = {}
        self.contents: dict[str, dict[bytes, tuple[int, list[int]]]] = {group: {} for group in world.page_sizes}
        self.num_parked = 0
        self._next_number = 0

    def take(self, submission: Submission, now_s: float) -> list[Scheduled]:
        """The engine's intake; the seeds that it draws are needed for the unbatched runs."""
        self.taken = self._intake.take(submission, now_s)
        return self.taken

    def launch(self, step: Step) -> Callable[[], Sampled]:
        """The engine's worker: nobody writes what somebody else reads."""
        for group, size in self.world.page_sizes.items():
            written = step.copies.get(group, np.empty((0, 2), np.int64))[:, 1].tolist()
            for slot, first, count in step.spans.tolist():
                written += self.scheduler.running.at(slot).pages[group][first // size : (first + count - 1) // size + 1]
            assert all(self.scheduler.pools[group].holders(page) == 1 for page in written)
        return self.device.launch(step)

    def submit(self, prompt: Sequence[int], params: SamplingParams, **more: object) -> bool:
        number, before = self._next_number, self.scheduler.waiting.num_requests
        submission = Submission(number=number, prompt_ids=np.array(prompt), params=params, **more)
        try:
            self.engine.submit(submission)
        except QueueFull:
            assert before >= self.world.max_queued
            assert self.scheduler.waiting.num_requests == before
            return False
        assert before < self.world.max_queued
        self._next_number += params.n
        for each in self.taken:
            self.asked[each.number] = Asked(
                submission.salt, list(prompt), alone(prompt, params, each.seed, each.max_length), each.max_length
            )
        return True

    def step(self) -> Progress:
        progress = self.engine.step()
        running = {each.number for each in self.scheduler.running.requests if each}
        ended = {each.number: each for each in progress.ended}
        assert len(ended) == len(progress.ended)
        for number, token in zip(progress.numbers.tolist(), progress.ids.tolist(), strict=True):
            each = self.asked[number]
            assert each.ended is None, "a token behind the end"
            each.tokens.append(token)
            self.num_parked += number not in running and number not in ended
        for number, end in ended.items():
            assert self.asked[number].ended is None, "it ended twice"
            self.asked[number].ended = end
            self.check_end(self.asked[number])
        return progress

    def check_end(self, each: Asked) -> None:
        assert each.ended is not None
        tokens, reason = each.wanted
        if each.ended.reason == "abort":
            assert each.tokens == tokens[: len(each.tokens)]
        else:
            assert (each.tokens, each.ended.reason) == (tokens, reason)
        assert each.ended.stop_id == (tokens[-1] if each.ended.reason == "stop" else None)
        assert (each.ended.message is not None) == (each.ended.reason == "error" or each.ended.message == TIMEOUT)

    @property
    def live(self) -> list[int]:
        return [number for number, each in self.asked.items() if each.ended is None]

    def check_pages(self) -> None:
        """Each page is free or held by as many as have it in their tables; what is found is what was computed."""
        running = [each for each in self.scheduler.running.requests if each]
        for group, pool in self.scheduler.pools.items():
            named = [page for each in running for page in each.pages[group]]
            assert all(len(set(each.pages[group])) == len(each.pages[group]) for each in running)
            assert [named.count(page) for page in range(pool.num_pages)] == list(
                map(pool.holders, range(pool.num_pages))
            )
            assert pool.num_free + len(set(named)) == pool.num_pages
            self._note_contents(group)
            found = {key: pool.find([key])[0] for key in self.contents[group] if pool.find([key])}
            assert len(found) == len(set(found.values())) == pool.num_kept
            for key, page in found.items():
                self._check_content(group, page, *self.contents[group][key])
        for each in running if self.device.is_idle else ():
            for group, tables in self.device.tables.items():
                table = tables[each.slot]
                assert [table[index] for index in range(len(each.pages[group]))] == each.pages[group]

    def _note_contents(self, group: str) -> None:
        """Every key that can be known by now, with its place and the tokens from the first to its last."""
        size = self.world.page_sizes[group]
        for each in self.asked.values():
            chain = each.chains.setdefault(group, [root_key("m", "", each.salt)])
            for index in range(len(chain) - 1, len(each.context) // size):
                tokens = each.context[: (index + 1) * size]
                chain.append(page_key(chain[-1], np.array(tokens[index * size :], dtype=np.int32)))
                self.contents[group][chain[-1]] = (index * size, tokens)

    def _check_content(self, group: str, page: int, first: int, tokens: list[int]) -> None:
        if not self.device.is_idle:
            return
        below = [stored(position, token) for position, token in enumerate(tokens)]
        cells = (below[first:], [digest(*below[: place + 1]) for place in range(first, len(tokens))])
        for layer, owner in enumerate(self.device.layers):
            assert owner != group or self.device.memory[layer][page] == cells[layer]

    def step_bound(self) -> int:
        """Steps in which all that live end if nobody else comes, L the sum of their longest contexts.

        Take the first ranked. Waiting at the head of the queue it lets nobody past; in each step the first of those
        that run computes a token of its own or, while it waits for the budget, others yield one that they never lose;
        and it is preempted for nobody but the head of the queue: after at most 2 L steps the first ranked runs. Then
        nobody takes its pages, and after L steps more it has ended. Overlap doubles the number: a step may find nothing
        to do but to commit the one before.
        """
        total = sum(self.asked[number].max_length for number in self.live)
        return 2 * len(self.live) * 3 * total + 2

    def drain(self) -> None:
        for _ in range(self.step_bound()):
            if not self.engine.has_work:
                break
            self.step()
            self.check_pages()
        assert not self.engine.has_work
        assert not self.live
        for pool in self.scheduler.pools.values():
            assert sorted(pool.take(pool.num_pages)) == list(range(pool.num_pages)), "all pages are free again"


def pace_of(budget: int) -> Pace:
    """A device that takes a second for each token of a step."""
    rows = np.array([[0.0, 1, 0, 0, 0, 0]])
    return Pace(rows, rows, bytes_per_s=1.0, operations_per_s=1.0, budget_s=float(budget), adapts=True)


WORLDS = st.builds(
    World,
    page_sizes=st.sampled_from([{"a": 4}, {"a": 4, "b": 2}, {"a": 2, "b": 3}]),
    num_tokens=st.sampled_from([36, 48, 72]),
    num_slots=st.integers(1, 5),
    token_budget=st.sampled_from([1, 2, 5, 8, 24, 200]),
    prefix_caching=st.booleans(),
    overlap=st.booleans(),
    lazy=st.booleans(),
    step_budget=st.none() | st.integers(1, 40),
    max_queued=st.sampled_from([3, 1000]),
)
BEGINNINGS: tuple[list[int], ...] = (
    [],
    [5, 6, 7, 8],
    [5, 6, 7, 8, 9, 10, 11, 12],
    [5, 6, 7, 8, 9, 10, 13, 14, 15, 16, 17, 18],
    [4] * 13,
)
PARAMS = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    max_tokens=st.integers(2, 20),
    min_tokens=st.integers(0, 2),
    ignore_eos=st.booleans(),
    stop_token_ids=st.none() | st.just([11, 12]),
    allowed_token_ids=st.none() | st.just([1, 2, EOS, 11, 33, POISON]),
)


class Machine(RuleBasedStateMachine):
    @initialize(world=WORLDS)
    def start(self, world: World) -> None:
        self.run = Run(world)

    @rule(
        beginning=st.sampled_from(BEGINNINGS),
        rest=st.lists(st.integers(0, 38), max_size=6) | st.just([POISON]),
        params=PARAMS,
        priority=st.integers(-1, 2),
        salt=st.sampled_from(["", "", "other"]),
        timeout_s=st.none() | st.just(25.0),
    )
    def submit(self, beginning: list[int], rest: list[int], params: SamplingParams, **more: object) -> None:
        self.run.submit([*beginning, *rest] or [1], params, **more)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.run.step()
            self.run.check_pages()

    @precondition(lambda self: self.run.live)
    @rule(pick=st.integers(0, 50))
    def abort(self, pick: int) -> None:
        self.run.engine.abort([self.run.live[pick % len(self.run.live)], 10_000])

    @rule(seconds=st.floats(0.5, 20.0))
    def wait(self, seconds: float) -> None:
        self.run.now_s += seconds

    @invariant()
    def pages_are_conserved(self) -> None:
        if hasattr(self, "run"):
            self.run.check_pages()

    @invariant()
    def the_queue_counts_requests(self) -> None:
        if hasattr(self, "run"):
            waiting = [each for each in self.run.scheduler._requests.values() if each.is_waiting]
            queue = self.run.scheduler.waiting
            assert (len(queue), queue.num_requests) == (len(waiting), len({each.request for each in waiting}))

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.drain()


Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestScheduling = Machine.TestCase


def test_what_is_hard_does_happen() -> None:
    """Random work on tiny pools, and the proof that the machine above is about something."""
    happened: Counter[str] = Counter()
    for seed in range(24):
        random = np.random.default_rng(seed)
        overlap = bool(seed % 2)
        world = World({"a": 4, "b": 2}, 36, 4, token_budget=(8, 200)[seed // 2 % 2], overlap=overlap, lazy=overlap)
        run = Run(world)
        for _ in range(12):
            beginning = BEGINNINGS[int(random.integers(len(BEGINNINGS)))]
            rest = random.integers(0, 38, int(random.integers(0, 7))).tolist()
            params = SamplingParams(n=int(random.integers(1, 4)), max_tokens=int(random.integers(2, 20)))
            run.submit([*beginning, *rest] or [1], params, priority=int(random.integers(-1, 3)))
            run.step()
            run.check_pages()
        run.engine.abort([run.live[0]] if run.live else [])
        run.drain()
        counters = run.engine.counters()
        happened.update(
            preempted=counters.preemptions, hits=counters.cached_prompt_tokens, copies=run.device.num_copies,
            preempted_in_flight=run.num_parked, evicted=len(run.contents["b"]) - counters.cached_pages,
        )  # fmt: skip
        happened.update(each.ended.reason for each in run.asked.values() if each.ended)
    assert min(happened[name] for name in ("preempted", "copies", "error", "abort", "stop", "length")) > 10, happened
    assert happened["hits"] > 300
    assert happened["preempted_in_flight"] > 5
    assert happened["evicted"] > 100


def starts(run: Run, num_steps: int, number: int, arrivals: SamplingParams) -> list[int]:
    """Who starts, in order, until the numbered completion has ended; a request of priority 0 arrives with each step, a
    second after the one before."""
    started: list[int] = []
    for index in range(num_steps):
        run.submit([7, 8, 9, index % 30], arrivals)
        started += [each.number for each in run.step().started]
        run.check_pages()
        run.now_s += 1.0
        if run.asked[number].ended:
            return started
    raise AssertionError(f"{num_steps} steps were not enough")


def test_a_low_priority_is_overtaken_as_long_as_ageing_says_and_no_longer() -> None:
    """Twice as much arrives as can be served, for ever. Three steps of priority at ten seconds each: those that arrive
    in the next thirty seconds go first, in which nobody else is served; later ones do not."""
    run = Run(World({"a": 4}, 36, 2, token_budget=8, prefix_caching=False))
    params = SamplingParams(max_tokens=4, ignore_eos=True, allowed_token_ids=[1, 2])
    for index in range(3):
        run.submit([1, index, 2], params)
    run.submit([5, 5, 5], params, priority=3)
    low, overtakers = 3, 30
    # Each of the 3 + 30 ahead holds one of two slots for at most 2 steps of its prompt and 4 of its output.
    started = starts(run, (3 + overtakers) * 6 // 2 + 6, low, params)
    before = started[: started.index(low)]
    assert before == [0, 1, 2, *range(low + 1, low + 1 + overtakers)]


def test_one_that_runs_gives_way_to_a_better_priority_and_comes_back() -> None:
    run = Run(World({"a": 4}, 36, 2, token_budget=200, overlap=True))
    params = SamplingParams(max_tokens=12, ignore_eos=True, allowed_token_ids=[1, 2])
    run.submit([1] * 20, params, priority=1)
    run.submit([2] * 3, params)
    for _ in range(3):
        run.step()
    assert len(run.scheduler.running) == 2
    run.submit([3] * 16, params)
    started = [each.number for _ in range(4) for each in run.step().started]
    assert started == [2], "the low one has left, with its token in flight"
    assert run.engine.counters().preemptions == 1
    assert run.num_parked == 1
    run.drain()
    assert [each.ended.reason for each in run.asked.values() if each.ended] == ["length"] * 3


def test_equals_do_not_push_one_another_out() -> None:
    run = Run(World({"a": 4}, 36, 2, token_budget=200))
    params = SamplingParams(max_tokens=8, ignore_eos=True, allowed_token_ids=[1, 2])
    run.submit([1] * 20, params)
    run.step()
    run.submit([2] * 20, params)
    run.drain()
    assert run.engine.counters().preemptions == 0
    assert [each.tokens for each in run.asked.values()] == [each.wanted[0] for each in run.asked.values()]
