"""The engine on the embedded model: endings, sampling, streaming, batches, and bits that do not depend on company."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from ambidex import LLM, RequestOutput, SamplingParams
from ambidex.runtime.errors import ConfigError, RequestError
from ambidex.runtime.fields import shown
from ambidex.runtime.options import Options

PROMPTS = [
    "def read(path):\n",
    "import os\n\n\nclass Reader:\n    def __init__(self, name, mode='r', encoding=None):\n",
    "x",
    "for index, value in enumerate(",
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(determinism="batch", max_model_len=256, max_num_seqs=8, progress=False)


def greedy(**more: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, **more)  # type: ignore[arg-type]


def record(output: RequestOutput) -> list[tuple[list[int], list[dict[int, float]]]]:
    return [
        (
            each.token_ids,
            [{token: value.logprob for token, value in entry.items()} for entry in each.logprobs or []],
        )
        for each in output.outputs
    ]


@pytest.mark.parametrize(
    "params", [greedy(max_tokens=20, logprobs=2), SamplingParams(seed=5, max_tokens=20, logprobs=2)]
)
def test_bits_do_not_depend_on_the_batch(llm: LLM, params: SamplingParams) -> None:
    alone = [record(llm.generate(prompt, params)[0]) for prompt in PROMPTS]
    together = [record(output) for output in llm.generate(PROMPTS, params)]
    backwards = [record(output) for output in llm.generate(PROMPTS[::-1], params)][::-1]
    assert alone == together == backwards


def test_bits_do_not_depend_on_chunks(llm: LLM) -> None:
    params = greedy(max_tokens=12, logprobs=1)
    small = LLM(determinism="batch", max_model_len=256, max_num_batched_tokens=5, progress=False)
    assert [record(each) for each in small.generate(PROMPTS, params)] == [
        record(each) for each in llm.generate(PROMPTS, params)
    ]


def test_more_requests_than_slots_all_end(llm: LLM) -> None:
    outputs = llm.generate([f"value_{index} = " for index in range(20)], greedy(max_tokens=6))
    assert [output.prompt for output in outputs] == [f"value_{index} = " for index in range(20)]
    assert all(output.finished for output in outputs)
    assert not llm.engine.has_work
    assert all(pool.num_free == pool.num_pages for pool in llm.engine.scheduler.pools.values())


def test_max_tokens_ends_with_length(llm: LLM) -> None:
    (completion,) = llm.generate("def f(", greedy(max_tokens=7))[0].outputs
    assert len(completion.token_ids) == 7
    assert completion.finish_reason == "length"


def test_the_context_ends_a_request(llm: LLM) -> None:
    prompt = [5] * 250
    (completion,) = llm.generate(prompt, greedy(max_tokens=100, ignore_eos=True))[0].outputs
    assert len(completion.token_ids) == 6
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("kept", [False, True])
def test_a_stop_string_ends_and_is_cut(llm: LLM, kept: bool) -> None:
    whole = llm.generate("import ", greedy(max_tokens=40, ignore_eos=True))[0].outputs[0].text
    stop = whole[12:15]
    params = greedy(max_tokens=40, ignore_eos=True, stop=[stop, "never there"], include_stop_str_in_output=kept)
    (completion,) = llm.generate("import ", params)[0].outputs
    end = whole.index(stop)
    assert completion.text == whole[: end + len(stop) * kept]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_stop_ids_and_min_tokens(llm: LLM) -> None:
    ids = llm.generate("import ", greedy(max_tokens=10, ignore_eos=True))[0].outputs[0].token_ids
    (stopped,) = llm.generate("import ", greedy(max_tokens=10, stop_token_ids=[ids[3]]))[0].outputs
    assert stopped.token_ids == ids[: ids.index(ids[3]) + 1]
    assert stopped.stop_reason == ids[3]
    (later,) = llm.generate("import ", greedy(max_tokens=10, min_tokens=9, stop_token_ids=[ids[3]]))[0].outputs
    assert len(later.token_ids) >= 9
    assert ids[3] not in later.token_ids[:8]


def test_allowed_token_ids_are_the_only_ones(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, allowed_token_ids=[40, 50, 300], seed=1, ignore_eos=True)
    (completion,) = llm.generate("import ", params)[0].outputs
    assert set(completion.token_ids) <= {40, 50, 300}


def test_seeds_repeat_and_differ(llm: LLM) -> None:
    def draw(seed: int | None) -> list[int]:
        return llm.generate("def ", SamplingParams(seed=seed, max_tokens=16))[0].outputs[0].token_ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_n_completions_differ_and_share_nothing(llm: LLM) -> None:
    output = llm.generate("def ", SamplingParams(n=3, seed=3, max_tokens=12))[0]
    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert len({tuple(each.token_ids) for each in output.outputs}) == 3


def test_logprobs_hold_the_chosen_token_and_the_likeliest(llm: LLM) -> None:
    (completion,) = llm.generate("def ", SamplingParams(seed=9, max_tokens=8, logprobs=3))[0].outputs
    assert completion.logprobs is not None
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert token in entry
        assert len(entry) in (3, 4)
        assert all(value.logprob <= 0 for value in entry.values())
    chosen = sum(entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(chosen)


def test_penalties_change_what_repeats(llm: LLM) -> None:
    plain = llm.generate("a a a a a a", greedy(max_tokens=24))[0].outputs[0].token_ids
    penal = llm.generate("a a a a a a", greedy(max_tokens=24, repetition_penalty=1.8))[0].outputs[0].token_ids
    assert len(set(penal)) > len(set(plain))


def test_streamed_text_grows_to_the_whole(llm: LLM) -> None:
    params = greedy(max_tokens=24, stop=["\n\n\n"])
    texts = [output.outputs[0].text for output in llm.stream("import ", params)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == llm.generate("import ", params)[0].outputs[0].text


def test_a_stream_never_shows_the_beginning_of_a_stop_string(llm: LLM) -> None:
    whole = llm.generate("import ", greedy(max_tokens=40, ignore_eos=True))[0].outputs[0].text
    stop = whole[8:30]
    texts = [
        output.outputs[0].text for output in llm.stream("import ", greedy(max_tokens=40, ignore_eos=True, stop=stop))
    ]
    end = whole.index(stop)
    assert texts[-1] == whole[:end]
    assert len(stop) > 3 * len(whole) / 40, "several tokens make the stop string"
    assert all(len(text) <= end for text in texts)


def test_leaving_a_stream_frees_everything(llm: LLM) -> None:
    stream: Iterator[RequestOutput] = llm.stream("import ", greedy(max_tokens=24))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not llm.engine.has_work
    assert all(pool.num_free == pool.num_pages for pool in llm.engine.scheduler.pools.values())


def test_chat_uses_the_template(llm: LLM) -> None:
    output = llm.chat([{"role": "user", "content": "Write a loop."}], greedy(max_tokens=4))[0]
    assert output.prompt is not None
    assert "Write a loop." in output.prompt
    assert len(output.outputs[0].token_ids) <= 4


def test_timings_are_in_order(llm: LLM) -> None:
    times = llm.generate("def ", greedy(max_tokens=4))[0].metrics
    assert times.first_scheduled_time is not None
    assert times.first_token_time is not None
    assert times.finished_time is not None
    assert times.arrival_time <= times.first_scheduled_time <= times.first_token_time <= times.finished_time


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ([1] * 256, "the context holds 256"),
        ([1, 10**6], "outside the vocabulary"),
        ([1, "a"], "whole numbers"),
        ({"text": "x"}, "prompt_token_ids"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_bad_prompt_is_one_clear_line(llm: LLM, prompt: object, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        llm.generate([prompt])  # type: ignore[list-item]
    assert "\n" not in str(caught.value)
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    "field",
    [
        {"n": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -2},
        {"min_p": 2.0}, {"max_tokens": 0}, {"max_tokens": True}, {"min_tokens": 17}, {"seed": 1 << 64},
        {"logprobs": 21}, {"stop": [""]}, {"stop": ["x"] * 17}, {"presence_penalty": 3}, {"repetition_penalty": 0},
        {"allowed_token_ids": []}, {"stop_token_ids": [-1]}, {"stop_token_ids": 5}, {"stop": 5}, {"stop": [5]},
        {"temperature": 10**400}, {"max_tokens": 10**5000},
    ],
    ids=lambda field: next(iter(field)),
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(field: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(field))):
        SamplingParams(**field)  # type: ignore[arg-type]


def test_a_request_that_could_draw_nothing_is_refused(llm: LLM) -> None:
    params = SamplingParams(allowed_token_ids=sorted(llm.engine.limits.eos_ids), min_tokens=2)
    with pytest.raises(RequestError, match="nothing could be drawn"):
        llm.generate("x", params)


@pytest.mark.parametrize(
    "option",
    [
        {"max_model_len": 0}, {"max_model_len": -1}, {"max_num_seqs": 0}, {"max_num_seqs": 1 << 40},
        {"kv_cache_tokens": -5}, {"max_num_batched_tokens": 0}, {"gpu_memory_utilization": 0.0},
        {"gpu_memory_utilization": 5.0}, {"gpu_memory_utilization": float("nan")}, {"gpu_memory_utilization": True},
        {"gpu_memory_utilization": "0.5"}, {"max_num_seqs": True}, {"max_num_seqs": 2.0}, {"max_queued": "8"},
        {"max_queued": None}, {"max_num_seqs": None}, {"step_budget_ms": "20"}, {"step_budget_ms": True},
        {"step_budget_ms": float("inf")}, {"step_budget_ms": 0}, {"ageing_s": None}, {"ageing_s": "1"},
        {"ageing_s": float("nan")}, {"ageing_s": 10**400}, {"seed": 1.5}, {"seed": None}, {"seed": True},
        {"seed": 1 << 63}, {"prefix_caching": 1}, {"prefix_caching": None}, {"overlap": "no"}, {"graphs": 0},
        {"progress": "yes"}, {"model": 5}, {"model": b"x"}, {"revision": 1}, {"device": 0}, {"dtype": None},
        {"dtype": ["float32"]}, {"quantization": 8}, {"determinism": None}, {"determinism": ["run"]},
        {"fallback": True}, {"jit": 1}, {"jit": "never"},
        {"kernels": "linear=reference"}, {"kernels": {"linear": 1}}, {"kernels": None},
        {"memory": True}, {"memory": [1]}, {"max_model_len": 10**5000},
    ],
    ids=lambda option: " ".join(map(shown, *option.items())),
)  # fmt: skip
def test_an_option_of_another_type_or_out_of_range_is_named(option: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(option))} is ") as caught:
        LLM(**option)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_whole_numbers_serve_where_numbers_are_asked_for() -> None:
    assert Options(gpu_memory_utilization=1, step_budget_ms=20, ageing_s=5).step_budget_ms == 20


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize"])
def test_template_arguments_are_not_those_of_chat(llm: LLM, name: str) -> None:
    with pytest.raises(RequestError, match=name):
        llm.chat([{"role": "user", "content": "x"}], chat_template_kwargs={name: True})


def test_streams_side_by_side_lose_nothing(llm: LLM) -> None:
    """While one loop steps the engine, the others' requests grow too, and may end."""
    params = [greedy(max_tokens=4, ignore_eos=True), greedy(max_tokens=12, ignore_eos=True)]
    alone = [llm.generate(prompt, each)[0].outputs[0].token_ids for prompt, each in zip(PROMPTS, params, strict=False)]
    short, long = (llm.stream(prompt, each) for prompt, each in zip(PROMPTS, params, strict=False))
    next(short)
    assert list(long)[-1].outputs[0].token_ids == alone[1]
    last = list(short)
    assert [output.finished for output in last] == [True]
    assert last[-1].outputs[0].token_ids == alone[0]
    again = llm.stream(PROMPTS[0], params[0])
    next(again)
    llm.generate(PROMPTS[1], params[1])
    assert list(again)[-1].outputs[0].token_ids == alone[0]
    assert not llm.engine.has_work


def test_one_bad_request_of_several_starts_none(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate(["fine", [1] * 400])
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    ("wanted", "profile", "budget"), [(None, "cpu-avx2", 512), (None, "nvidia-b200", 2048), (7, "cpu-avx2", 7)]
)
def test_the_token_budget_follows_the_device(wanted: int | None, profile: str, budget: int) -> None:
    from ambidex.hwprofiles.reader import load
    from ambidex.runtime.options import Options, token_budget

    assert token_budget(Options(max_num_batched_tokens=wanted), load(profile)) == budget
