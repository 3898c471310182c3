"""The slot table takes a step's deltas, and nothing else changes in it."""

from __future__ import annotations

import numpy as np
import torch
from ambidex.runtime.execute.slots import SlotTable
from ambidex.runtime.step import SlotAdded, Step


def added(slot: int, tokens: list[int], temperature: float = 0.5) -> SlotAdded:
    return SlotAdded(
        slot, np.array(tokens), prompt_length=len(tokens), temperature=temperature, top_k=3, top_p=0.9, min_p=0.1,
        repetition=1.1, presence=0.2, frequency=0.3, seed=-(1 << 62),
    )  # fmt: skip


def table() -> SlotTable:
    return SlotTable(4, 16, {"kv": 2, "kv_window": 4}, 64, torch.device("cpu"))


def test_added_slots_pages_and_sampled_tokens() -> None:
    slots = table()
    slots.apply(Step(added=(added(2, [7, 8, 9]),), pages={"kv": np.array([[2, 0, 11], [2, 1, 5]])}))
    assert slots.tokens[2, :3].tolist() == [7, 8, 9]
    assert slots.page_tables["kv"].tolist() == [[0, 0], [0, 0], [11, 5], [0, 0]]
    assert not slots.page_tables["kv_window"].any()
    slots.append(torch.tensor([2]), torch.tensor([3]), torch.tensor([42]))
    assert slots.tokens[2, :5].tolist() == [7, 8, 9, 42, 0]
    assert slots.lengths.tolist() == [0, 0, 4, 0]


def test_a_moved_slot_takes_everything_along() -> None:
    slots = table()
    slots.apply(Step(added=(added(3, [1, 2], 0.25),), pages={"kv_window": np.array([[3, 1, 6]])}))
    slots.apply(Step(moved=np.array([[3, 0]])))
    step = Step(spans=np.array([[0, 1, 1]]), logits=np.array([[0, 0]]), penalized=True)
    sampling = slots.sampling(torch.tensor([0]), step)
    assert sampling.tokens[0, :2].tolist() == [1, 2]
    assert slots.page_tables["kv_window"][0].tolist() == [0, 6, 0, 0]
    assert (sampling.lengths.tolist(), sampling.prompt_lengths.tolist()) == ([2], [2])
    assert (sampling.temperature.tolist(), sampling.seeds.tolist(), sampling.top_k.tolist()) == (
        [0.25],
        [-(1 << 62)],
        [3],
    )


def test_parameters_are_gathered_anew_for_other_slots_and_for_whoever_takes_or_moves_to_one() -> None:
    def temperatures(*rows: int) -> list[float]:
        spans = np.array([[row, 0, 1] for row in rows])
        logits = np.array([[index, 0] for index in range(len(rows))])
        sampling = slots.sampling(torch.tensor(rows), Step(spans=spans, logits=logits))
        return sampling.temperature.tolist()

    slots = table()
    slots.apply(Step(added=(added(0, [1], 0.25), added(1, [2], 0.5))))
    assert [temperatures(0, 1), temperatures(0, 1), temperatures(1, 0)] == [[0.25, 0.5], [0.25, 0.5], [0.5, 0.25]]
    slots.apply(Step(added=(added(1, [3], 0.75),)))
    assert temperatures(1, 0) == [0.75, 0.25]
    slots.apply(Step(moved=np.array([[1, 0]])))
    assert temperatures(1, 0) == [0.75, 0.75]


def test_a_slot_taken_again_forgets_who_had_it() -> None:
    slots = table()
    slots.apply(Step(added=(added(1, [5] * 9),)))
    slots.apply(Step(freed=np.array([1]), added=(added(1, [6], 0.0),)))
    assert slots.lengths[1] == 1
    step = Step(spans=np.array([[1, 0, 1]]), logits=np.array([[0, 0]]))
    assert slots.sampling(torch.tensor([1]), step).temperature.tolist() == [0.0]


def test_masks_fill_the_rows_that_have_none() -> None:
    mask = np.array([5, 0], dtype=np.int32)
    step = Step(spans=np.array([[0, 0, 1], [1, 0, 1]]), logits=np.array([[0, 0], [1, 0]]), masks={1: mask})
    words = table().sampling(torch.tensor([0, 1]), step).mask
    assert words is not None
    assert words.tolist() == [[-1, -1], [5, 0]]
