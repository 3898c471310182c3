"""What an engine says when it starts: to the logger `ambidex`, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys

import pytest
from ambidex import LLM, AsyncLLM
from ambidex.runtime.errors import OutOfMemory

LINE = (
    r"cpu:0 \(.+\): 1,024 tokens of KV; 4 requests of 256 \(all that can run at once\); takes [\d.]+ MiB "
    r"\(weights [\d.]+ MiB, KV cache [\d.]+ MiB, requests .+, workspace .+, graphs .+\) of [\d.]+ [GM]iB, .+ free.*"
)


def test_an_engine_says_what_it_decided_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ambidex"):
        LLM(device="cpu", max_model_len=256, max_num_seqs=4, progress=False)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ambidex", logging.INFO)
    assert re.fullmatch(LINE, record.getMessage())


def test_an_engine_in_a_process_of_its_own_says_the_same_here(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with AsyncLLM(device="cpu", max_model_len=256, max_num_seqs=4):
            pass

    with caplog.at_level(logging.INFO, logger="ambidex"):
        asyncio.run(main())
    assert [bool(re.fullmatch(LINE, each.getMessage())) for each in caplog.records if each.name == "ambidex"] == [True]


def test_unasked_a_library_prints_nothing() -> None:
    program = "from ambidex import LLM; LLM(max_model_len=64, max_num_seqs=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_shortage_says_how_much_is_missing_and_which_option_cures_it() -> None:
    said = r"^[\d.]+ MiB of memory are missing: .* what cures it: --memory \d+MiB"
    with pytest.raises(OutOfMemory, match=said) as caught:
        LLM(device="cpu", max_model_len=256, max_num_seqs=4, memory="1MiB", progress=False)
    cure = re.search(r"--memory (\d+MiB)", str(caught.value))
    assert cure is not None
    LLM(device="cpu", max_model_len=256, max_num_seqs=4, memory=cure[1], progress=False)
