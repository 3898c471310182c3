"""What a step needs, predicted from sites: the sampler's constant is looked at again, references cost more."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from ambidex.hwprofiles.reader import load
from ambidex.ops import discovery
from ambidex.ops.binding import BindingError, bind
from ambidex.ops.contract import Policy
from ambidex.ops.sample import Sampling
from ambidex.runtime.start import model_sites
from ambidex.runtime.workspace import PENALTY_TOKEN_BYTES, step_needs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROWS, VOCABULARY, CONTEXT = 8, 20_000, 512


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that somebody still holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


def everything() -> Sampling:
    """Rows that are drawn, filtered, penalized and masked."""
    index = torch.arange(ROWS)
    numbers = torch.full((ROWS,), 0.8)
    return Sampling(
        temperature=numbers, top_k=index * 0 + 40, top_p=numbers, min_p=numbers * 0.01, repetition=numbers + 0.4,
        presence=numbers, frequency=numbers, seeds=index, positions=index,
        tokens=torch.zeros((ROWS, CONTEXT), dtype=torch.int64), prompt_lengths=index, lengths=index + 400,
        mask=torch.full((ROWS, VOCABULARY // 32), -1, dtype=torch.int32), num_logprobs=5, random=True, filtered=True,
        penalized=True,
    )  # fmt: skip


SAMPLERS = ["reference", *(name for name, each in discovery.kernels().items() if each.op == "sample")]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_holds_no_more_than_is_reserved(name: str) -> None:
    """What torch allocates; a kernel's own scratch is not seen here."""
    profile = load("cpu-avx2")
    sites = [site for site in model_sites(None, "float32", profile) if site.op == "sample"]
    try:
        bound = bind(tuple(sites), profile, Policy(choices={"sample": name}), missing=discovery.missing_languages())
    except BindingError as reason:
        pytest.skip(str(reason))
    logits, sampling = torch.randn(ROWS, VOCABULARY), everything()
    with Live() as live:
        bound.ops.sample(logits, sampling)
    copies = step_needs(bound.sites, VOCABULARY).sampler_copies
    reserved = ROWS * (4 * VOCABULARY * copies + PENALTY_TOKEN_BYTES * CONTEXT)
    assert 0.4 * reserved < live.peak <= reserved


def test_a_row_takes_at_least_what_is_alive_at_the_widest_point() -> None:
    """Llama's: while `down` runs, the rows of x, the attention's result, the gate's and the sum."""
    profile = load("cpu-avx512")
    sites = model_sites(None, "bfloat16", profile)
    gated = next(site for site in sites if site.op == "gated_linear")
    hidden, middle = gated.dim("K"), gated.dim("I")
    whole = step_needs(bind(sites, profile).sites, 4096)
    assert 2 * (3 * hidden + middle) < whole.row_bytes < 40 * (hidden + middle)
    assert whole.logits_bytes == 4 * 4096


def test_references_count_their_float32() -> None:
    profile = load("cpu-avx512")
    sites = model_sites(None, "bfloat16", profile)
    everywhere = dict.fromkeys(("linear", "rms_norm", "embedding", "silu_and_mul", "paged_attention"), "reference")
    composites = dict.fromkeys(("norm_linear", "gated_linear", "linear_add", "qkv_rope_store"), "parts")
    by_reference = step_needs(bind(sites, profile, Policy(choices={**everywhere, **composites})).sites, 4096)
    by_kernels = step_needs(bind(sites, profile).sites, 4096)
    assert by_reference.row_bytes > 2 * by_kernels.row_bytes
    largest = max(weight.shape[0] * weight.shape[1] for site in sites for weight in site.weights)
    assert by_reference.fixed_bytes == 4 * largest
    assert by_kernels.fixed_bytes == 0


def test_what_a_level_widens_is_counted_once() -> None:
    """A level that multiplies bfloat16 keeps no row in float32; one that does not keeps the widest input of all."""
    sites = model_sites(None, "bfloat16", load("cpu-avx2"))
    avx2, amx = (step_needs(bind(sites, load(name)).sites, VOCABULARY) for name in ("cpu-avx2", "cpu-amx"))
    widest = max(site.dim("K") for site in sites if site.op in ("gated_linear", "linear_add", "norm_linear"))
    assert avx2.row_bytes - amx.row_bytes == 2 * widest
