"""The options that several commands share, each described once. No heavy imports: `--help` reads this file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", show_default=False, help="Folder or hub id; the embedded model where none is."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "--model-path", "-m", metavar="M", help="The same, as an option.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what was decided, and why.")]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="`cpu`, `cuda:0`, …; the best device found where none is named.")
]
Dtype = Annotated[str, typer.Option(metavar="D", help="float32, bfloat16, float16, or auto: the checkpoint's.")]
MaxModelLen = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of one request; the model's own length where not given.")
]
Determinism = Annotated[
    str, typer.Option(metavar="LEVEL", help="none, run (same batch, same bits) or batch (bits whatever the batch).")
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="For all that the engine allocates: 12GiB, 800MB, or a share of what is free, 0.5."
    ),
]
GpuMemoryUtilization = Annotated[
    float | None, typer.Option(metavar="SHARE", help="The same as a share, under vLLM's name: above 0 to 1.")
]
MaxNumSeqs = Annotated[int | None, typer.Option(metavar="N", help="Requests that run at once; 64 where not given.")]
MaxNumBatchedTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of one step; what suits the device where not given.")
]
KvCacheTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of KV cache; what the memory leaves where not given.")
]
StepBudgetMs = Annotated[
    float | None, typer.Option(metavar="MS", help="Read prompts in chunks so long that a step takes about this time.")
]
MaxQueued = Annotated[int | None, typer.Option(metavar="N", help="Requests that may wait; more are refused.")]
PrefixCaching = Annotated[
    bool | None,
    typer.Option(
        "--prefix-caching/--no-prefix-caching", help="Find again what requests that begin alike have computed."
    ),
]
Overlap = Annotated[
    bool | None,
    typer.Option("--overlap/--no-overlap", help="Plan a step while the one before runs; by default where that gains."),
]
Graphs = Annotated[
    bool | None,
    # The space keeps the slash from being read as part of the name: a second way to say no, vLLM's.
    typer.Option(
        "--graphs/--no-graphs", " /--enforce-eager", help="Replay recorded decode steps; by default if it can."
    ),
]
PromptGraphs = Annotated[
    bool | None,
    typer.Option(
        "--prompt-graphs/--no-prompt-graphs",
        help="Replay steps that read up to 1,024 tokens, too, where a device works by itself: the default.",
    ),
]
Kernels = Annotated[
    list[str] | None,
    typer.Option("--kernel", metavar="SITE=NAME", help="Serve this site or op by this kernel, or fail. Repeatable."),
]
Fallback = Annotated[
    str, typer.Option(metavar="POLICY", help="May an op's reference stand in for a kernel: allow, warn or forbid.")
]
Jit = Annotated[
    str, typer.Option(metavar="POLICY", help="May a kernel be compiled here: allow or forbid (see build-kernels).")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "--max-new-tokens", metavar="N", help="At most so many new tokens.")
]
_OWN = "the model's own where not given"
Temperature = Annotated[float | None, typer.Option(metavar="T", help=f"0 takes the likeliest token; {_OWN}.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help=f"Draw from the likeliest that sum to P; {_OWN}.")]
TopK = Annotated[int | None, typer.Option(metavar="K", help=f"Draw from the K likeliest, 0 is off; {_OWN}.")]
MinP = Annotated[float | None, typer.Option(metavar="P", help=f"Leave out what is below P of the likeliest; {_OWN}.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Same seed, same prompt: same tokens.")]


def one_model(argument: str | None, option: str | None) -> str | None:
    """The model that is named, either way."""
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter(f"two models are named, {argument} and {option}: name one")
    return option if argument is None else argument


def kernel_choices(given: list[str] | None) -> dict[str, str]:
    """`site=kernel` pairs as the policy's choices."""
    choices: dict[str, str] = {}
    for pair in given or ():
        site, equals, kernel = pair.partition("=")
        if not (site and equals and kernel):
            raise typer.BadParameter(f"{pair!r} is not SITE=NAME, as in linear=reference", param_hint="--kernel")
        choices[site] = kernel
    return choices


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


ENGINE: dict[str, tuple[Any, Any]] = {
    "device": (Device, None),
    "dtype": (Dtype, "auto"),
    "memory": (Memory, None),
    "gpu_memory_utilization": (GpuMemoryUtilization, None),
    "max_model_len": (MaxModelLen, None),
    "max_num_seqs": (MaxNumSeqs, None),
    "max_num_batched_tokens": (MaxNumBatchedTokens, None),
    "kv_cache_tokens": (KvCacheTokens, None),
    "step_budget_ms": (StepBudgetMs, None),
    "max_queued": (MaxQueued, None),
    "prefix_caching": (PrefixCaching, None),
    "overlap": (Overlap, None),
    "graphs": (Graphs, None),
    "prompt_graphs": (PromptGraphs, None),
    "determinism": (Determinism, "run"),
    "kernel": (Kernels, None),
    "fallback": (Fallback, "allow"),
    "jit": (Jit, "allow"),
}
"""The options of every command that starts an engine: type and default, by name."""


def with_engine(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `ENGINE`; its argument `engine` gets those that were given, under LLM's names."""
    own = inspect.signature(command, eval_str=True).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=default, annotation=kind) for name, (kind, default) in ENGINE.items()
    ]
    before = [each.replace(kind=keyword) for name, each in own.items() if name != "engine"]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        asked = {name: arguments.pop(name) for name in ENGINE}
        engine = {name: value for name, value in asked.items() if value != ENGINE[name][1]}
        if kernels := kernel_choices(engine.pop("kernel", None)):
            engine["kernels"] = kernels
        command(**arguments, engine=engine)

    run.__signature__ = inspect.Signature([*before, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*before, *added)}
    return run
