"""The workers of one model, and what becomes of each request that is sent to them.

In one stage a worker computes prompt and answer. In two, one computes the prompt and the first token, its pages go over
the link to a second one, and that goes on as if it had computed them. What a worker that dies had begun begins again at
another: its prompt, and the answer as far as it had come.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ...runtime.errors import RequestError
from ...runtime.schedule.moves import Pages
from .agenda import Agenda
from .journal import Journal
from .record import NotNegative, Positive, Record
from .stage import Stage
from .worker import Integers, Worker
from .workload import Prompts, Workload

_MOST_ATTEMPTS = 100


class Link(Record):
    """What the pages of a prompt go over: a worker sends one request's after another's, and takes them in so."""

    gb_per_s: Positive
    latency_ms: NotNegative = 0.0


@dataclass(eq=False)
class Move:
    """Pages under way, or waiting at their source for room at the target. num_tokens: that they hold."""

    number: int
    source: Worker
    target: Worker
    pages: Pages
    num_tokens: int


class Fleet:
    """stages: one (serve), or two (prefill, decode). num_moved_tokens, num_moved_bytes: over the link."""

    def __init__(
        self, workload: Workload, prompts: Prompts, journal: Journal, agenda: Agenda, link: Link | None = None
    ) -> None:
        self._workload, self._prompts, self._journal, self._agenda = workload, prompts, journal, agenda
        self._link = link
        self.stages: list[Stage] = []
        self.backlog: list[int] = []  # while there is no worker
        self._moves: dict[int, Move] = {}
        self._longest = 0  # context that whoever answers can hold
        self._num_ended, self._num_answered = 0, 0
        self.num_moved_tokens = self.num_moved_bytes = 0

    def build(self, stages: list[Stage]) -> None:
        self.stages = stages
        self._longest = min(group.replica.max_model_len for group in stages[-1].groups)
        for stage in stages:
            stage.came.append(self._came)
            stage.begin()

    def arrive(self, now_s: float, number: int) -> None:
        """A request from outside, or one that begins again."""
        stage = self.stages[0]
        worker, num_known = stage.choose(int(self._workload.prefix[number]), self._workload.shared_tokens(number))
        if worker is None:
            self.backlog.append(number)
            return
        if self._journal.attempts[number] >= _MOST_ATTEMPTS:
            self._journal.lose(number)
            return
        generated = int(self._journal.generated[number])
        prompt = self._prompts.of(number, generated)
        wanted = 1 if self._is_split else int(self._workload.output_tokens[number]) - generated
        stage.interrupt(worker)
        try:
            worker.submit(number, prompt, wanted)
        except RequestError as error:
            self._journal.refuse(number, str(error))
            return
        self._journal.attempts[number] += 1
        stage.expect(number, worker, len(prompt) - num_known, 0.0 if self._is_split else self._expected)
        stage.wake(worker, now_s)

    def deliver(self, now_s: float, stage: Stage, worker: Worker) -> None:
        """What a step has brought, now that it has ended."""
        progress = worker.progress
        assert progress is not None
        for started in progress.started:
            number = started.number
            if stage.role != "decode":  # where what the cache holds was computed for this very request
                prompted = int(self._workload.input_tokens[number] + self._journal.generated[number])
                self._journal.start(number, started.time_s, prompted, started.num_cached_tokens)
            worker.unseen.add(number)
        for number in worker.unseen.intersection(progress.numbers.tolist()):
            self._journal.first(number, now_s)
            stage.has_begun(number)
            worker.unseen.discard(number)
        for ended in progress.ended:
            self._ended(now_s, stage, worker, ended.number)

    def fail(self, now_s: float, stage: Stage, worker: Worker) -> None:
        """A worker dies: what it had begun, and what comes from it or goes to it, begins again."""
        moving = [move for move in self._moves.values() if worker in (move.source, move.target)]
        for move in moving:
            del self._moves[move.number]
            self.stages[1].leave(move.number)
            move.target.send_away(move.number)
        for move in moving:
            if move.source is not worker:
                self._free(now_s, move)
            if move.target is not worker:
                self.stages[1].wake(move.target, now_s)
        stage.interrupt(worker)
        for number in worker.held:
            self._journal.generated[number] += worker.delivered(number)
        begun = list(worker.held)
        for number in begun:
            stage.leave(number)
        stage.remove(worker, now_s)
        stage.group_of[worker.slot].num_failures += 1
        for number in sorted([*begun, *(move.number for move in moving)]):
            self.arrive(now_s, number)

    @property
    def _is_split(self) -> bool:
        return len(self.stages) > 1

    @property
    def _expected(self) -> float:
        """Integers of an answer, as far as the router has seen any."""
        return self._num_answered / self._num_ended if self._num_ended else 0.0

    def _ended(self, now_s: float, stage: Stage, worker: Worker, number: int) -> None:
        before, num_new = int(self._journal.generated[number]), worker.held.pop(number)
        stage.leave(number)
        length = int(self._workload.input_tokens[number]) + before
        is_begun = stage.role == "prefill" and length + num_new < self._longest
        if is_begun and before + num_new < self._workload.output_tokens[number]:
            self._journal.generated[number] = before + num_new
            self._send(now_s, worker, number, self._prompts.of(number, before))
            return
        self._num_ended, self._num_answered = self._num_ended + 1, self._num_answered + before + num_new
        self._journal.end(number, now_s, before + num_new)

    def _send(self, now_s: float, source: Worker, number: int, prompt: Integers) -> None:
        """The prompt's pages leave for a worker that answers; they stay at the source until they have been read."""
        target, _ = self.stages[1].choose(int(self._workload.prefix[number]), self._workload.shared_tokens(number))
        if target is None:
            self.backlog.append(number)
            return
        assert self._link is not None
        pages, num_tokens = source.lend(prompt)
        num_bytes = num_tokens * source.replica.kv_bytes_per_token
        self.num_moved_tokens += num_tokens
        self.num_moved_bytes += num_bytes
        begins_s = max(now_s, source.link_free_s, target.link_free_s)
        source.link_free_s = target.link_free_s = begins_s + num_bytes / (1e9 * self._link.gb_per_s)
        move = Move(number, source, target, pages, num_tokens)
        self._moves[number] = move
        self.stages[1].expect(number, target, len(prompt) - num_tokens, self._expected)
        self._agenda.at(source.link_free_s + 1e-3 * self._link.latency_ms, partial(self._arrived, move))

    def _arrived(self, move: Move, now_s: float) -> None:
        number = move.number
        if self._moves.get(number) is not move:
            return
        generated = int(self._journal.generated[number])
        prompt = self._prompts.of(number, generated)
        left = int(self._workload.output_tokens[number]) - generated
        self.stages[1].interrupt(move.target)
        move.target.bring(number, prompt, left, move.num_tokens, partial(self._let_in, move))
        self.stages[1].wake(move.target, now_s)

    def _let_in(self, move: Move, now_s: float) -> None:
        del self._moves[move.number]
        self._free(now_s, move)

    def _free(self, now_s: float, move: Move) -> None:
        """The source may put something else where the pages lie."""
        if move.source.is_alive:
            move.source.take_back(move.pages)
            self.stages[0].wake(move.source, now_s)

    def _came(self, now_s: float, worker: Worker) -> None:
        waiting, self.backlog = self.backlog, []
        for number in waiting:
            self.arrive(now_s, number)
