"""AsyncLLM on the embedded model: streams, thousands of requests, and an engine that is killed under them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ambidex import LLM, AsyncLLM, RequestOutput, SamplingParams
from ambidex.runtime.errors import ConfigError, EngineDied, QueueFull, RequestError

OPTIONS: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 256}
PROMPTS = ["def read(path):\n", "import os\n\n\nclass Reader:\n", "x", "for index, value in enumerate("]
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **more)


def process_id(llm: AsyncLLM) -> int:
    assert llm._client is not None
    return llm._client.process_id


async def whole(llm: AsyncLLM, *arguments: Any, **more: Any) -> RequestOutput:
    return [output async for output in llm.generate(*arguments, **more)][-1]


async def settled(llm: AsyncLLM) -> None:
    """Waits until the engine runs nothing, and sees that nobody holds a page (those of the prefix cache are free)."""
    async with asyncio.timeout(20):
        while (counters := await llm.counters()).running + counters.waiting:
            await asyncio.sleep(0.01)
    assert counters.free_pages == counters.num_pages


@pytest.fixture(scope="module")
def run() -> Any:
    """Runs a body on an AsyncLLM that all tests of the module share, unless they end it."""
    with asyncio.Runner() as runner:
        shared: list[AsyncLLM] = []

        def on(body: Callable[[AsyncLLM], Awaitable[None]], timeout_s: float = 120) -> None:
            async def main() -> None:
                if not shared:
                    shared.append(await AsyncLLM.start(**OPTIONS))
                async with asyncio.timeout(timeout_s):
                    await body(shared[0])
                    await settled(shared[0])

            runner.run(main())

        yield on
        if shared:
            runner.run(shared[0].close())


Run = Callable[..., None]


def test_tokens_and_texts_are_those_of_llm(run: Run) -> None:
    here = LLM(determinism="batch", progress=False, **OPTIONS)
    params = [greedy(20, logprobs=2), SamplingParams(seed=4, max_tokens=20, n=2), greedy(30, stop="\n"), greedy(9)]
    wanted = here.generate(PROMPTS, params)

    async def body(llm: AsyncLLM) -> None:
        async with AsyncLLM(determinism="batch", **OPTIONS) as other:
            outputs = await asyncio.gather(*(whole(other, *each) for each in zip(PROMPTS, params, strict=True)))
            _, facts, decisions = await other.facts()
        for output, expected in zip(outputs, wanted, strict=True):
            assert output.outputs == expected.outputs
            assert (output.prompt, output.prompt_token_ids) == (expected.prompt, expected.prompt_token_ids)
        assert facts.fingerprint == here.fingerprint
        assert any("KV cache" in line for line in decisions)

    run(body)


def test_a_stream_grows_and_its_times_are_in_order(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        texts = []
        async for output in llm.generate("import ", greedy(24), request_id="mine"):
            texts.append(output.outputs[0].text)
        assert len(texts) > 5
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        times = output.metrics
        assert output.request_id == "mine"
        assert None not in (times.first_scheduled_time, times.first_token_time, times.finished_time)
        assert times.arrival_time <= times.first_scheduled_time <= times.first_token_time <= times.finished_time  # type: ignore[operator]

    run(body)


def test_leaving_a_stream_aborts_its_request(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        async for _ in llm.generate("import ", LONG):
            break
        await settled(llm)
        task = asyncio.create_task(whole(llm, "import ", LONG))
        while not (await llm.counters()).running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled(llm)
        assert (await llm.counters()).sampled_tokens < 10**6

    run(body)


def test_abort_ends_a_stream_with_what_there_is(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        outputs = []
        async for output in llm.generate("import ", LONG, request_id="one"):
            outputs.append(output)
            if len(outputs) == 3:
                await llm.abort("one")
        assert outputs[-1].finished
        assert outputs[-1].outputs[0].finish_reason == "abort"
        assert 1 <= len(outputs[-1].outputs[0].token_ids) < 200
        await llm.abort("one")

    run(body)


def test_a_deadline_ends_a_request(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        output = await whole(llm, "import ", LONG, timeout_s=0.05)
        (completion,) = output.outputs
        assert (completion.finish_reason, completion.stop_reason) == ("abort", "timeout")

    run(body)


def test_what_cannot_be_served_is_refused_at_submission(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        for prompt, said in (("", "empty"), ([1] * 300, "the context holds 256"), ([1, "a"], "whole numbers")):
            with pytest.raises(RequestError, match=said):
                await llm.submit(prompt, greedy(3))
        running = await llm.submit("import ", LONG, request_id="twice")
        with pytest.raises(RequestError, match="'twice' is running"):
            await llm.submit("import ", LONG, request_id="twice")
        running.close()
        assert (await whole(llm, "x", greedy(3))).finished

    run(body)


def test_a_slow_consumer_holds_nobody_up_and_misses_no_end(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        slow = await llm.submit("import ", greedy(60, ignore_eos=True))
        await anext(slow)
        for _ in range(3):
            assert (await whole(llm, "def ", greedy(40, ignore_eos=True))).finished
        rest = [output async for output in slow]
        assert len(rest) == 1
        assert rest[0].finished
        assert len(rest[0].outputs[0].token_ids) == 60

    run(body)


def test_two_thousand_requests_at_once_all_end(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        params = [greedy(4, ignore_eos=True), SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False)]
        outputs = await asyncio.gather(*(whole(llm, f"value_{each} = ", params[each % 2]) for each in range(2000)))
        assert all(output.finished for output in outputs)
        assert [output.prompt for output in outputs] == [f"value_{each} = " for each in range(2000)]
        assert [len(output.outputs[0].token_ids) for output in outputs] == [4, 3] * 1000
        assert llm._running is not None
        assert len(llm._running.front) == len(llm._running.streams) == 0

    run(body, timeout_s=240)


def test_health_tells_what_the_engine_is_at(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        assert (await llm.health()).state == "idle"
        stream = await llm.submit("import ", LONG)
        await anext(stream)
        assert (await llm.health()).state == "stepping"
        stream.close()

    run(body)


def test_a_conversation_is_rendered_off_the_loop(run: Run) -> None:
    async def body(llm: AsyncLLM) -> None:
        prompt = await llm.render([{"role": "user", "content": "Write a loop."}])
        output = await whole(llm, prompt, greedy(3))
        assert output.prompt is not None
        assert "Write a loop." in output.prompt

    run(body)


def test_a_killed_engine_is_told_and_replaced(run: Run) -> None:
    """SIGKILL in mid-stream: who waits gets EngineDied at once, who has an answer keeps it, who asks next is served."""

    async def body(llm: AsyncLLM) -> None:
        before = process_id(llm)
        done = await llm.submit("x", greedy(2))
        while not done.output.finished:
            await asyncio.sleep(0.01)
        streams = [await llm.submit(f"import {each}", LONG) for each in range(8)]
        await anext(streams[0])
        begun = time.monotonic()
        os.kill(before, signal.SIGKILL)

        async def rest(stream: Any) -> None:
            async for _ in stream:
                pass

        errors = await asyncio.gather(*map(rest, streams), return_exceptions=True)
        assert time.monotonic() - begun < 2
        for error in errors:
            assert isinstance(error, EngineDied)
            assert "killed" in str(error)
            assert "\n" not in str(error)
        assert [output.finished async for output in done] == [True]
        with pytest.raises(EngineDied, match="no engine runs"):
            await llm.health()
        outputs = await asyncio.gather(*(whole(llm, prompt, greedy(5)) for prompt in PROMPTS))
        assert all(output.finished for output in outputs)
        assert process_id(llm) != before

    run(body)


def test_draining_finishes_what_runs_and_refuses_the_rest() -> None:
    async def main() -> None:
        async with AsyncLLM(**OPTIONS) as llm:
            stream = await llm.submit("import ", greedy(40, ignore_eos=True))
            drained = asyncio.create_task(llm.drain())
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="draining"):
                await llm.submit("x", greedy(2))
            outputs = [output async for output in stream]
            assert len(outputs[-1].outputs[0].token_ids) == 40
            await drained

    asyncio.run(main())


@pytest.mark.parametrize(("end", "said"), [("close", "this AsyncLLM is closed"), ("drain", "the engine is draining")])
@pytest.mark.parametrize("pause_s", [0.0, 0.3], ids=["at once", "in the middle"])
def test_ending_while_it_loads_tells_those_who_wait_why(end: str, said: str, pause_s: float) -> None:
    """No cancellation that they did not ask for, no engine that ended 'with exit status 0', no wait for the weights."""

    async def main() -> None:
        llm = AsyncLLM(**OPTIONS)
        asked = [asyncio.create_task(llm.submit("x", greedy(2))), asyncio.create_task(llm.counters())]
        left = asyncio.create_task(llm.submit("x", greedy(2)))
        await asyncio.sleep(pause_s)
        left.cancel()
        await asyncio.sleep(0)
        begun = time.monotonic()
        async with asyncio.timeout(20):
            await getattr(llm, end)()
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, QueueFull), repr(error)
            assert said in str(error)
        assert left.cancelled()
        assert llm._client is None or llm._client.ended.done()
        assert time.monotonic() - begun < 8
        with pytest.raises(QueueFull, match=said):
            await llm.health()
        await llm.close()

    asyncio.run(main())


def test_ending_while_prompts_are_encoded_refuses_them() -> None:
    async def main() -> None:
        async with AsyncLLM(**OPTIONS) as llm:
            asked = [asyncio.create_task(llm.submit("word " * 40_000, greedy(2))) for _ in range(6)]
            await asyncio.sleep(0.01)
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, QueueFull), repr(error)
            assert "closed" in str(error)

    asyncio.run(main())


@pytest.mark.parametrize("option", [{"grace_s": "30"}, {"grace_s": -1}, {"hang_timeout_s": float("nan")},
                                    {"hang_timeout_s": None}, {"hang_timeout_s": True}], ids=str)  # fmt: skip
def test_what_is_no_number_of_seconds_is_refused_at_once(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(option))} is .*: it must be a number of seconds above 0$"):
        AsyncLLM(**option)


def test_a_model_that_cannot_be_loaded_says_why_each_time(tmp_path: Path) -> None:
    async def main() -> None:
        llm = AsyncLLM(wrong=3)
        for _ in range(2):
            with pytest.raises(ConfigError, match="there is no option wrong"):
                await whole(llm, "x")
        await llm.close()
        with pytest.raises(QueueFull, match="closed"):
            await whole(llm, "x")

    asyncio.run(main())


def test_this_side_does_not_load_torch() -> None:
    code = """if True:
        import asyncio, sys
        from ambidex import AsyncLLM, SamplingParams
        async def main():
            async with AsyncLLM(max_model_len=64) as llm:
                async for output in llm.generate("x", SamplingParams(max_tokens=2)):
                    pass
            print(output.finished, "torch" in sys.modules)
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout.strip(), done.stderr) == ("True False", "")
