"""The slot table takes a step's deltas, and nothing else changes in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ambidex.kernels.cpu.levels import LEVELS
from ambidex.kernels.cpu.library import load
from ambidex.kernels.cpu.sample import sample_cpu
from ambidex.ops.sample import OP
from ambidex.runtime.execute.slots import SlotTable
from ambidex.runtime.step import SlotAdded, Step
from hypothesis import given
from hypothesis import strategies as st

assert OP.reference is not None
REFERENCE = OP.reference
LEVEL = [name for name, code in LEVELS.items() if code <= load().cpu_level][-1]


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
    slots.append(torch.tensor([2]), torch.tensor([42]))
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


def test_a_slot_taken_again_forgets_who_had_it() -> None:
    slots = table()
    slots.apply(Step(added=(added(1, [5] * 9),)))
    slots.apply(Step(freed=np.array([1]), added=(added(1, [6], 0.0),)))
    assert slots.lengths[1] == 1
    assert slots.sampling(torch.tensor([1]), Step(logits=np.array([[0, 0]]))).temperature.tolist() == [0.0]


def test_only_rows_with_penalties_bring_their_tokens() -> None:
    """C follows the longest context among them, whatever the others have and however long a request may become."""
    slots = SlotTable(4, 41, {"kv": 2}, 64, torch.device("cpu"))
    plain = replace(added(0, [3] * 40), repetition=1.0, presence=0.0, frequency=0.0)
    slots.apply(Step(added=(plain, added(1, [7, 8]), added(2, [5] * 20))))
    spans = np.array([[1, 1, 1], [0, 39, 1], [2, 19, 1]])
    step = Step(spans=spans, logits=np.array([[0, 0], [1, 0], [2, 0]]), penalized=True)
    sampling = slots.sampling(torch.tensor([1, 0, 2]), step)
    assert sampling.tokens.tolist() == [[7, 8] + [0] * 30, [0] * 32, [5] * 20 + [0] * 12]
    assert sampling.lengths.tolist() == [2, 0, 20]
    assert sampling.positions.tolist() == [2, 40, 20], "the draw still knows where it is"
    nobody = slots.sampling(torch.tensor([0]), replace(step, spans=spans[[1]], logits=np.array([[0, 0]])))
    assert (nobody.tokens.shape, nobody.lengths.tolist()) == ((1, 16), [0])
    slots.apply(Step(added=(added(0, [9] * 41),)))
    longest = slots.sampling(torch.tensor([0]), replace(step, spans=np.array([[0, 40, 1]]), logits=np.array([[0, 0]])))
    assert longest.tokens.tolist() == [[9] * 41 + [0] * 7]


@given(st.data())
def test_a_sampler_sees_no_difference(data: st.DataObject) -> None:
    """Ids and log-probabilities are those of rows that bring all their tokens, as the op's meaning has them."""
    slots, width = table(), 16
    ids = st.lists(st.integers(0, 63), min_size=1, max_size=14)
    requests = []
    for slot in range(4):
        tokens, is_plain = data.draw(ids), data.draw(st.booleans())
        request = added(slot, tokens, data.draw(st.sampled_from([0.0, 0.8])))
        request = replace(request, prompt_length=data.draw(st.integers(1, len(tokens))), top_k=0, top_p=1.0, min_p=0.0)
        requests.append(replace(request, repetition=1.0, presence=0.0, frequency=0.0) if is_plain else request)
    slots.apply(Step(added=tuple(requests)))
    order = data.draw(st.permutations(range(4)))
    spans = np.array([[slot, len(requests[slot].tokens) - 1, 1] for slot in order])
    step = Step(spans=spans, logits=np.array([[row, 0] for row in range(4)]), penalized=True, random=True)
    sampling = slots.sampling(torch.tensor(order), step)
    whole = replace(sampling, tokens=slots.tokens[order][:, :width], lengths=slots.lengths[order])
    logits = torch.randn(4, 64, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    for found, wanted in zip(REFERENCE(logits, sampling), REFERENCE(logits, whole), strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(sample_cpu(logits, sampling, level=LEVEL), REFERENCE(logits, whole), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_masks_fill_the_rows_that_have_none() -> None:
    mask = np.array([5, 0], dtype=np.int32)
    words = table().sampling(torch.tensor([0, 1]), Step(logits=np.array([[0, 0], [1, 0]]), masks={1: mask})).mask
    assert words is not None
    assert words.tolist() == [[-1, -1], [5, 0]]
