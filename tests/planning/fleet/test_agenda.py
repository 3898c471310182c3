"""The agenda: by time, then by order, then as noted; what is cancelled does not happen and takes no time."""

from __future__ import annotations

from functools import partial

from ambidex.planning.fleet.agenda import Agenda


def test_actions_of_one_time_follow_their_order_then_their_noting() -> None:
    agenda, done = Agenda(), list[str]()
    first, second = agenda.new_order(), agenda.new_order()
    for name, order in (("c", second), ("b", first), ("d", second), ("a", 0)):
        agenda.at(1.0, partial(lambda name, now_s: done.append(name), name), order)
    while agenda.next():
        pass
    assert done == ["a", "b", "c", "d"]


def test_what_was_reached_stays_so_when_something_else_comes_at_that_time() -> None:
    """A worker whose order is between has ended its step by then, and another one behind has not."""
    agenda, reached = Agenda(), list[tuple[float, int]]()

    def look(now_s: float) -> None:
        reached.append(agenda.reached)

    def note(now_s: float) -> None:
        agenda.at(now_s, look)

    agenda.at(1.0, note, 2)
    agenda.at(2.0, look, 1)
    while agenda.next():
        pass
    assert reached == [(1.0, 2), (2.0, 1)]


def test_what_is_cancelled_does_not_happen() -> None:
    agenda, done = Agenda(), list[float]()
    agenda.at(1.0, done.append)
    agenda.cancel(agenda.at(2.0, done.append))
    assert [agenda.next(), agenda.next(), done, agenda.now_s] == [True, False, [1.0], 1.0]
