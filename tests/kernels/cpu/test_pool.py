"""The pool of threads: every task once, whoever calls, however often, in a forked child, beside a busy process.

Jobs here are reads of a buffer that return the xor of its words: a task left out, or done twice, changes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from ambidex.kernels.cpu import language
from ambidex.kernels.cpu.library import Library, load

pytestmark = pytest.mark.skipif(language.missing() is not None, reason=str(language.missing()))


@contextmanager
def threads(num_threads: int) -> Iterator[Library]:
    library = load()
    library.set_num_threads(num_threads)
    try:
        yield library
    finally:
        library.set_num_threads(torch.get_num_threads())


def buffer(num_bytes: int, seed: int) -> tuple[torch.Tensor, int]:
    """Words and their xor, folded by halves."""
    words = torch.randint(2**60, (num_bytes // 8,), generator=torch.Generator().manual_seed(seed))
    folded = words
    while len(folded) > 1:
        half = len(folded) // 2
        folded = torch.cat([folded[:half] ^ folded[half : 2 * half], folded[2 * half :]])
    return words, int(folded[0])


def read(library: Library, words: torch.Tensor) -> int:
    return library.read_bandwidth(0, words.data_ptr(), words.numel() * 8)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
def test_many_small_jobs(num_threads: int) -> None:
    """16 threads are more than this test's machines have: tasks of threads that do not run must not be waited for."""
    jobs = [buffer(size, seed) for seed, size in enumerate((64, 4096, 40_000, 200_000))]
    with threads(num_threads) as library:
        assert library.functions.ambidex_num_threads() == num_threads
        for _ in range(500):
            for words, expected in jobs:
                assert read(library, words) == expected


def test_callers_at_once_share_nothing() -> None:
    jobs = [buffer(64_000 + 64 * seed, seed) for seed in range(4)]

    def rounds(job: tuple[torch.Tensor, int]) -> bool:
        return all(read(library, job[0]) == job[1] for _ in range(400))

    with threads(3) as library, ThreadPoolExecutor(len(jobs)) as callers:
        assert all(callers.map(rounds, jobs))


def test_the_pool_starts_anew_in_a_forked_child() -> None:
    words, expected = buffer(96_000, 0)
    with threads(3) as library:
        assert read(library, words) == expected
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a child that waits for threads that it has not ends by this
            os._exit(0 if all(read(library, words) == expected for _ in range(50)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert read(library, words) == expected


KEEPS_OFF = """
import os, sys, torch
from ambidex.kernels.cpu.library import load

def own_threads():
    return set(os.listdir("/proc/self/task"))

library, words = load(), torch.zeros(1 << 16)
before, allowed = own_threads(), os.sched_getaffinity(0)
library.set_num_threads(int(sys.argv[1]))
for processor in sorted(allowed) * 2:
    os.sched_setaffinity(0, {processor})  # of the calling thread alone: it is moved there
    os.sched_setaffinity(0, allowed)
    library.read_bandwidth(0, words.data_ptr(), 1 << 18)
    masks = [os.sched_getaffinity(int(thread)) for thread in own_threads() - before]
    print(processor, len(allowed), *(len(mask) * (processor not in mask) for mask in masks))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not place threads")
def test_threads_keep_off_the_callers_processor_where_there_are_others() -> None:
    def answers(num_threads: int) -> list[list[int]]:
        command = [sys.executable, "-c", KEEPS_OFF, str(num_threads)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        return [[int(word) for word in line.split()[1:]] for line in done.stdout.splitlines()]

    processors = len(os.sched_getaffinity(0))
    if processors > 1:
        # The scheduler may move the caller between its placing and its call: most answers, not all.
        kept = [masks == [count - 1] for count, *masks in answers(2)]
        assert sum(kept) > len(kept) / 2
    assert all(masks == [0] * processors for _, *masks in answers(processors + 1))


def seconds_of(library: Library, words: torch.Tensor, num_jobs: int) -> float:
    start = time.perf_counter()
    for _ in range(num_jobs):
        read(library, words)
    return time.perf_counter() - start


def test_a_busy_process_beside_costs_its_share() -> None:
    """With a barrier that waits for threads each of these jobs takes a slice of the scheduler, some milliseconds."""
    num_threads = max(2, len(os.sched_getaffinity(0)))
    words, _ = buffer(4 << 20, 0)
    with threads(num_threads) as library:
        seconds_of(library, words, 100)
        alone_s = seconds_of(library, words, 1000)
        command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
        busy = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(num_threads)]
        try:
            for process in busy:
                assert process.stdout is not None
                process.stdout.readline()
            beside_s = seconds_of(library, words, 1000)
        finally:
            for process in busy:
                process.kill()
                process.communicate()
    assert beside_s < 10 * alone_s
