"""`ambidex bench latency`: prefill and decode speed, next to the roofline and to transformers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .failures import missing_package
from .table import fields, table

if TYPE_CHECKING:
    from ..bench.latency import Plan

GIB = 2**30
_COMPARABLE = ("transformers",)


def latency(
    more: Annotated[list[int] | None, typer.Argument(metavar="N", hidden=True)] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="M", help="Folder or hub id; the embedded model by default.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="S", help="A random checkpoint of this shape instead: 0.5b, 1b or tiny.")
    ] = None,
    input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Prompt of the prefill, in tokens.")] = 512,
    output_len: Annotated[int, typer.Option(min=2, metavar="N", help="New tokens of a decode run.")] = 128,
    decode_input_len: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts of a decode run.")] = 128,
    batch_size: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Batch sizes of decode, as in 1 8 or 1,8. [default: 1 8]")
    ] = None,
    num_iters_warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Repetitions that do not count.")] = 1,
    num_iters: Annotated[int, typer.Option(min=1, metavar="N", help="Repetitions that count.")] = 5,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    compare: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure this one in turn with ours: transformers.")
    ] = None,
    output_json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole result there.")] = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure prefill and decode, one batch at a time.

    Medians over the repetitions with their spread, the share of the memory roofline that was measured in the same run,
    and the peak of resident memory beside what weights and KV cache take.
    """
    from ..bench.latency import Plan, measure

    _check(model, shape, compare)
    with _checkpoint(shape) as made:
        plan = Plan(
            model=made or model, device=device, dtype=dtype, input_len=input_len, output_len=output_len,
            decode_input_len=decode_input_len, batch_sizes=_sizes(batch_size, more), num_iters_warmup=num_iters_warmup,
            num_iters=num_iters, compare=tuple(compare or ()),
        )  # fmt: skip
        result = {"model": shape or model or "embedded", **measure(plan), "machine": machine()}
    if output_json is not None:
        output_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result) if as_object else shown(result, plan))


def _check(model: str | None, shape: str | None, compare: list[str] | None) -> None:
    from ..bench.shapes import SHAPES

    if model is not None and shape is not None:
        raise typer.BadParameter("a model and a shape are given: give one", param_hint="--shape")
    if shape is not None and shape not in SHAPES:
        raise typer.BadParameter(f"{shape} is not known: there are {', '.join(SHAPES)}", param_hint="--shape")
    for name in compare or ():
        if name not in _COMPARABLE:
            raise typer.BadParameter(f"{name} is not known: there is {', '.join(_COMPARABLE)}", param_hint="--compare")
        if importlib.util.find_spec(name) is None:
            raise missing_package(name)


def _sizes(given: list[str] | None, more: list[int] | None) -> tuple[int, ...]:
    """`--batch-size 1 8` leaves the 8 to the arguments; `1,8` and a repeated option are taken as well."""
    if more and not given:
        raise typer.BadParameter(f"what is {more[0]}? Batch sizes follow --batch-size")
    words = [word for each in given or ("1", "8") for word in each.replace(",", " ").split()]
    if not all(word.isdigit() and 0 < int(word) <= 1024 for word in words):
        raise typer.BadParameter("whole numbers from 1 to 1,024, as in 1 8", param_hint="--batch-size")
    return tuple(dict.fromkeys([*map(int, words), *(more or ())]))


@contextmanager
def _checkpoint(shape: str | None) -> Iterator[str | None]:
    """The folder of a random checkpoint, as long as it is needed. Another process writes it: this one stays small."""
    if shape is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ambidex-") as folder:
        package = (__package__ or "").rpartition(".")[0]
        subprocess.run([sys.executable, "-m", f"{package}.bench.shapes", shape, folder], check=True)
        yield folder


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures, besides what the contenders say of themselves."""
    from .. import __version__

    return {
        "ambidex": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": {name: _version(name) for name in ("torch", "transformers", "tokenizers", "triton")},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def shown(result: dict[str, Any], plan: Plan) -> str:
    """The result as a table with its conditions."""
    names = list(result["contenders"])
    header = ["tokens/s: median (min–max)", *names, *(f"× {name}" for name in names[1:]), "of roofline"]
    rows = [header, *(_line(result, case.name, names) for case in plan.cases())]
    columns = range(1, len(header))
    return "\n".join([table(rows, numbers=columns), "", _memory_table(result), "", _conditions(result, plan)])


def _line(result: dict[str, Any], case: str, names: list[str]) -> list[str]:
    rows = {row["contender"]: row for row in result["measurements"] if row["case"] == case}
    ratios = [f"{result['ratios'][case][name]:.2f}" for name in names[1:]]
    share = "" if rows["ambidex"]["kind"] == "prefill" else f"{rows['ambidex']['share_of_bandwidth']:.0%}"
    return [case, *(_rate(rows[name]["tokens_per_s"]) for name in names), *ratios, share]


def _rate(rate: dict[str, float]) -> str:
    return " ".join([_figure(rate["median"]), f"({_figure(rate['min'])}–{_figure(rate['max'])})"])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _memory_table(result: dict[str, Any]) -> str:
    rows = [["peak memory above import torch", "GiB", "× (weights + KV cache)", "weights", "KV cache"]]
    rows += [
        [name, *(f"{value:.3f}" for value in (each["peak_bytes"] / GIB, each["times_held"])),
         f"{each['weight_bytes'] / GIB:.3f}", f"{each['kv_cache_bytes'] / GIB:.3f}"]
        for name, each in result["memory"].items()
    ]  # fmt: skip
    return table(rows, numbers=range(1, 5))


def _conditions(result: dict[str, Any], plan: Plan) -> str:
    ours, packages = result["contenders"]["ambidex"], result["machine"]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return fields(
        [
            ("model", f"{result['model']}, {ours['dtype']}; decode from {plan.decode_input_len} to "
                      f"{plan.decode_input_len + plan.output_len} tokens, greedy"),
            ("device", f"{ours['device']}, profile {ours['profile']}, {ours['threads']} threads, "
                       f"{result['read_bandwidth_gb_per_s']:.1f} GB/s read in this run"),
            ("kernels", f"{ours['fingerprint']}; by the reference: {', '.join(ours['reference_sites']) or 'none'}"),
            ("software", f"ambidex {result['machine']['ambidex']}, python {result['machine']['python']}, {versions}"),
            ("method", f"{plan.num_iters} repetitions after {plan.num_iters_warmup} to warm up, contenders in turn, "
                       "each in its own process"),
        ]
    )  # fmt: skip
