"""`ambidex bench micro`: llama-bench's tests, options and table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from . import bench_options, options
from .progress import ticking

_MIB, _GIB = 1 << 20, 1 << 30
_OUTPUTS = ("md", "csv", "json", "jsonl", "sql")
# llama-bench's columns of a table: their widths, and whether they are aligned to the right.
_COLUMNS = {
    "model": (30, False), "size": (10, True), "params": (10, True), "backend": (10, False), "threads": (7, True),
    "test": (15, True), "t/s": (20, True),
}  # fmt: skip


def micro(
    model: bench_options.Model = None,
    shape: bench_options.ModelShape = None,
    n_prompt: Annotated[
        list[str] | None,
        typer.Option("--n-prompt", "-p", metavar="N", help="Prompts, as in 512,1024; 0: none. [default: 512]"),
    ] = None,
    n_gen: Annotated[
        list[str] | None,
        typer.Option("--n-gen", "-n", metavar="N", help="New tokens, as in 128; 0: none. [default: 128]"),
    ] = None,
    pg: Annotated[
        list[str] | None, typer.Option("-pg", metavar="P,N", help="A prompt and new tokens. Repeatable.")
    ] = None,
    n_depth: Annotated[
        list[str] | None, typer.Option("--n-depth", "-d", metavar="N", help="Tokens of context before. [default: 0]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, metavar="N", help="Tokens of one step.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, metavar="N", help="Threads of the CPU.")
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, metavar="N", help="Of each test.")] = 5,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FORMAT", help="md, csv, json, jsonl or sql.")
    ] = "md",
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    output_json: bench_options.OutputJson = None,
    as_object: options.AsJson = False,
) -> None:
    """Measure like llama-bench: prompts (pp), new tokens (tg) and both, at any depth of context."""
    from ..bench.micro import Plan, measure

    bench_options.check_outputs(None, output_json)
    if output not in _OUTPUTS:
        raise typer.BadParameter(f"{output} is not known: there are {', '.join(_OUTPUTS)}", param_hint="--output")
    with bench_options.checkpoint(model, shape) as folder:
        plan = Plan(
            model=folder, device=device, dtype=dtype, prompts=_numbers("-p", n_prompt, "512"),
            new=_numbers("-n", n_gen, "128"), both=_pairs(pg), depths=_numbers("-d", n_depth, "0"),
            batch_tokens=batch_size, threads=threads, repetitions=repetitions,
        )  # fmt: skip
        if not any(True for _ in plan.tests()):
            raise typer.BadParameter("nothing is left to measure: give -p, -n or -pg")
        with ticking("micro", len(list(plan.tests())) * (1 + repetitions)) as tick:
            result = {"model": shape or model or "embedded", **measure(plan, tick)}
    bench_options.give_out(result, written(result["measurements"], output), output_json, as_object)


def _numbers(option: str, given: Sequence[str] | None, default: str) -> tuple[int, ...]:
    words = [word for each in given or (default,) for word in each.split(",")]
    if not all(word.isdigit() for word in words):
        raise typer.BadParameter("whole numbers, as in 512 or 512,1024", param_hint=option)
    return tuple(dict.fromkeys(map(int, words)))


def _pairs(given: Sequence[str] | None) -> tuple[tuple[int, int], ...]:
    numbers = [_numbers("-pg", [each], "") for each in given or ()]
    if not all(len(each) == 2 for each in numbers):
        raise typer.BadParameter("a prompt and new tokens, as in 512,128", param_hint="-pg")
    return tuple((prompt, new) for prompt, new in numbers)


def written(rows: Sequence[Mapping[str, Any]], output: str) -> str:
    """The rows in one of llama-bench's formats."""
    if output == "md":
        return _markdown(rows)
    if output == "json":
        return json.dumps(rows, indent=2)
    if output == "jsonl":
        return "\n".join(map(json.dumps, rows))
    flat = [{name: _flat(value) for name, value in row.items()} for row in rows]
    return _csv(flat) if output == "csv" else _sql(flat)


def _flat(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, (width, right) in zip(cells, _COLUMNS.values(), strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rules = ["-" * (width - right) + ":" * right for width, right in _COLUMNS.values()]
    return "\n".join([line(list(_COLUMNS)), line(rules), *(line(_cells(row)) for row in rows)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    size, count = row["model_size"], row["model_n_params"]
    return [
        row["model_type"],
        f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / _MIB:.2f} MiB",
        f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M",
        row["backends"],
        str(row["n_threads"]),
        row["test"],
        f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _sql(rows: Sequence[Mapping[str, Any]]) -> str:
    def literal(value: object) -> str:
        return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"

    kinds = {str: "TEXT", float: "REAL"}
    columns = [f"  {name} {kinds.get(type(value), 'INTEGER')}" for name, value in rows[0].items()]
    table = "CREATE TABLE IF NOT EXISTS llama_bench (\n" + ",\n".join(columns) + "\n);\n"
    names = ", ".join(rows[0])
    return table + "\n".join(
        f"INSERT INTO llama_bench ({names}) VALUES ({', '.join(map(literal, row.values()))});" for row in rows
    )
