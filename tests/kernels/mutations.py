"""Kernels that are made wrong on purpose, and the proof that catches each: part of `make check-kernels`.

A mutation is an edit of a kernel's source as it stands today: one whose text is found no more fails, so that it cannot
rot. The mutated file lies in a copy of the package (links to everything else), which a process of its own proves:
`meaning` by the conformance suite in Triton's interpreter, `shares` by `interpreted_large.py` (only long K has any, and
no twin is that long), `machine code` by what the compiler makes of it. The proofs pass on the sources as they are.
Removed barriers are seen by none: an executor of the machine code has to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("kernels/triton")


@dataclass(frozen=True)
class Mutation:
    """what: the mistake. cases: of the conformance suite, as pytest's `-k`. seen: a word of what the proof says."""

    what: str
    file: str
    old: str
    new: str
    kernel: str
    cases: str
    proof: str = "meaning"
    seen: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}".replace(" ", "-")


MUTATIONS = [
    Mutation(
        "an unmasked edge of the outputs", "product_tile",
        "y_ptr.dtype.element_ty), mask=held)", "y_ptr.dtype.element_ty), mask=(row < num_rows)[:, None])",
        "linear_triton*", "odd and float32",
    ),
    Mutation(
        "a swapped stride", "product_tile",
        "tl.minimum(row, num_rows - 1)[:, None] * x_stride", "tl.minimum(row, num_rows - 1)[:, None] * y_stride",
        "linear_triton*", "odd and float32",
    ),
    Mutation(
        "a missing tail of K", "product_tile",
        "range(begin + EARLY, end, BLOCK_K)", "range(begin + EARLY, end - BLOCK_K + 1, BLOCK_K)",
        "linear_triton*", "odd and float32",
    ),
    Mutation(
        "a dropped scale", "product_tile",
        "y_NT, up_NT = y_NT * scale_T[None, :], up_NT * scale_T[None, :]", "y_NT, up_NT = y_NT, up_NT",
        "norm_linear_triton*", "odd and float32",
    ),
    Mutation(
        "a float32 product in TF32", "product_tile",
        "tl.dot(w_NK, tl.trans(x_TK), y_NT, input_precision=\"ieee\")",
        "tl.dot(w_NK, tl.trans(x_TK), y_NT, input_precision=\"tf32\")",
        "linear_triton_invariant", "", "machine code", "float32 is to be IEEE",
    ),
    Mutation(
        "a sum in half the precision", "rms_norm",
        "tl.sum(wide_TD * wide_TD, axis=1)", "tl.sum((wide_TD * wide_TD).to(tl.float16), axis=1).to(tl.float32)",
        "rms_norm_triton", "odd and float32",
    ),
    Mutation(
        "a causal mask that is off by one", "paged_prefill",
        "key[None, :] <= position_M[:, None]", "key[None, :] < position_M[:, None]",
        "paged_attention_triton*", "odd and float32",
    ),
    Mutation(
        "a wrong bound of the window", "paged_prefill",
        "(key[None, :] > position_M[:, None] - WINDOW)", "(key[None, :] >= position_M[:, None] - WINDOW)",
        "paged_attention_triton*", "window and float32",
    ),
    Mutation(
        "the page of the next key", "paged_decode",
        "tl.load(table_ptr + key // PAGE_SIZE,", "tl.load(table_ptr + (key + 1) // PAGE_SIZE,",
        "paged_attention_triton*", "odd and float32",
    ),
    Mutation(
        "splits that are combined unscaled", "paged_attention",
        "tl.sum(sums_SD * shrink_S[:, None], axis=0)", "tl.sum(sums_SD, axis=0)",
        "paged_attention_triton_invariant", "long and float32",
    ),
    Mutation(
        "a dropped soft cap", "paged_decode",
        "        if CAPPED:", "        if CAPPED and BLOCK_N < 0:",
        "paged_attention_triton", "softcap and float32",
    ),
    Mutation(
        "a rotation the other way", "qkv_rope_store",
        "cosine_R[None, :] + low_HR", "cosine_R[None, :] - low_HR",
        "qkv_rope_store_triton", "odd and float32",
    ),
    Mutation(
        "a row's last block left out", "product_row",
        "tl.static_range(1, TILES)", "tl.static_range(1, TILES - 1)",
        "linear_triton", "o-decode and bfloat16",
    ),
    Mutation(
        "a row's last block left out of the loop", "product_row",
        "range(BLOCK_K, width, BLOCK_K)", "range(BLOCK_K, width - BLOCK_K, BLOCK_K)",
        "linear_triton", "o-decode and float32",
    ),
    Mutation(
        "partners of a rotation exchanged", "turned",
        "high_TP * cosine_TP + low_TP * sine_TP", "high_TP * cosine_TP - low_TP * sine_TP",
        "norm_qkv_rope_store_triton", "odd and float32",
    ),
    Mutation(
        "a head of values that is not stored", "qkv_rope_store",
        "(kv_head < GROUPS), kv_head >= GROUPS", "(kv_head < GROUPS), kv_head > GROUPS",
        "qkv_rope_store_triton", "odd and float32",
    ),
    Mutation(
        "a share of K left out of the sum", "large_product",
        "for share in range(shares):", "for share in range(1, shares):",
        "", "", "shares",
    ),
    Mutation(
        "a last round that begins with the first tile", "large_product",
        "_tile_of(whole + waiting, heights", "_tile_of(waiting, heights",
        "", "", "shares",
    ),
    Mutation(
        "slices of a row that are listed on top of one another", "listing",
        "tl.cumsum(listed_S, axis=0)", "listed_S",
        "", "", "sample",
    ),
]  # fmt: skip


def copy_of_the_package(folder: Path, file: str, text: str | None) -> Path:
    """A folder that holds `ambidex`, in it links to everything but the Triton kernels, one of them with `text`."""
    package = folder / "ambidex"
    kernels = package / FOLDER
    kernels.mkdir(parents=True)
    _link(ROOT, package, leave_out={"kernels", ".dev", ".git"})
    _link(ROOT / "kernels", package / "kernels", leave_out={"triton"})
    _link(ROOT / FOLDER, kernels, leave_out={"__pycache__", f"{file}.py"})
    (kernels / f"{file}.py").write_text(
        text if text is not None else (ROOT / FOLDER / f"{file}.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    return folder


def _link(source: Path, target: Path, leave_out: set[str]) -> None:
    for path in source.iterdir():
        if path.name not in leave_out:
            (target / path.name).symlink_to(path)


def proved(place: Path, kernel: str, cases: str, proof: str) -> subprocess.CompletedProcess[str]:
    """The proof of one kernel in that package: ends with 0 where nothing is wrong."""
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    suite = str(ROOT / "tests" / "kernels" / "test_conformance.py")
    if proof == "shares":
        environment["TRITON_INTERPRET"] = "1"
        script = str(ROOT / "tests" / "kernels" / "interpreted_large.py")
        command = [script, "shares"]
    elif proof == "sample":
        environment["TRITON_INTERPRET"] = "1"
        script = str(ROOT / "tests" / "kernels" / "interpreted_sample.py")
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", script, "-k", "all_kinds"]
    elif proof == "meaning":
        environment["TRITON_INTERPRET"] = "1"
        command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", suite, "--ambidex-profile", "nvidia-h200-sxm",
                   "--ambidex-kernels", kernel, "--ambidex-programs", "16", "-k", cases]  # fmt: skip
    else:
        folder = str(ROOT / "tests" / "machine_code" / "budgets")
        command = ["-m", "ambidex.bench.machine_code", "check", folder, "sm_90", "--kernels", kernel]
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=place, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_wrong_kernel_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    source = (ROOT / FOLDER / f"{mutation.file}.py").read_text(encoding="utf-8")
    found = source.count(mutation.old)
    assert found == 1, f"{mutation.file}.py has changed: {mutation.old!r} is there {found} times"
    place = copy_of_the_package(tmp_path, mutation.file, source.replace(mutation.old, mutation.new))
    done = proved(place, mutation.kernel, mutation.cases, mutation.proof)
    caught, said = "WORSE" if mutation.proof == "machine code" else "AssertionError", done.stdout + done.stderr
    assert done.returncode != 0, f"not caught: {done.stdout}\n{done.stderr}"
    if done.returncode > 0:  # what writes out of bounds may end the process before it can say so
        assert caught in said, said
        assert mutation.seen in said, said


@pytest.mark.parametrize(("kernel", "cases", "proof"), sorted({(m.kernel, m.cases, m.proof) for m in MUTATIONS}))
def test_the_same_proof_passes_on_the_source(kernel: str, cases: str, proof: str, tmp_path: Path) -> None:
    done = proved(copy_of_the_package(tmp_path, "language", None), kernel, cases, proof)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
