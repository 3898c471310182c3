"""`ambidex plan`: will it fit, how fast will it be, what will it cost, which device should one take?"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, plan_published
from .bench_options import check_file

if TYPE_CHECKING:
    from ..hwprofiles.schema import Profile
    from ..planning.calibration import Calibration
    from ..planning.question import Question
    from ..planning.rows import Row
    from ..planning.subject import Subject

Params = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Instead of a model: so many parameters, as 70B or 350M.")
]


def plan(
    context_of: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", show_default=False, help="Folder or hub id; config and headers are read."),
    ] = None,
    params: Params = None,
    family: Annotated[str, typer.Option(metavar="TYPE", help="Of --params: the model_type.")] = "llama",
    profile: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A profile or a YAML file; repeatable. [default: all]")
    ] = None,
    format_name: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="F", help="bf16, fp8, int8, int4 or fp4; repeatable. [default: all]"),
    ] = None,
    kv_format: Annotated[str, typer.Option(metavar="F", help="Of keys and values: bf16 or fp8.")] = "bf16",
    tensor_parallel: Annotated[
        int | None, typer.Option(metavar="N", help="Devices of a replica; the fewest that do where not given.")
    ] = None,
    input_len: Annotated[int, typer.Option(metavar="N", help="Tokens of each prompt.")] = 1000,
    output_len: Annotated[int, typer.Option(metavar="N", help="Tokens of each answer.")] = 200,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of the longest request; prompt and answer where not given.")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", help="Requests of that length to hold at once.")] = 32,
    max_num_seqs: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that run at most at once; 512 where not given.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of one step. [default: the engine's, 2048 or on a host 512]")
    ] = None,
    load_gb_per_s: Annotated[
        float, typer.Option(metavar="RATE", help="Of the disk or network that weights come from.")
    ] = 1.25,
    published: Annotated[
        bool, typer.Option("--published", help="Instead: figures that others published, beside what a plan says.")
    ] = False,
    as_object: options.AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report with plots: one file, nothing else.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of `ambidex calibrate`, in place of where it lies by default.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load and run the model here, and lay the plan beside what is measured.")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(metavar="NAME", help="To --check, instead of a model: random weights, 0.5b, 1b or 8b.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEV", help="To --check on: cpu, cuda:0, …")] = None,
) -> None:
    """Say what fits, how fast it is and what it costs, on devices that need not be here.

    Every profile and format where none is named, and the best for latency, throughput and cost.
    """
    if published:
        if left := _given(context_of, {"published", "as_object"}):
            raise typer.BadParameter(
                f"its models are those of the figures: leave out what else is asked ({left})", param_hint="--published"
            )
        plan_published.published(as_object)
        return
    if check:
        if left := _given(context_of, {"check", "model", "shape", "device", "calibration", "as_object"}):
            raise typer.BadParameter(
                f"it runs what is here: leave out what else is asked ({left})", param_hint="--check"
            )
        from .plan_check import check as checked

        checked(model, shape=shape, device=device, calibration=calibration, as_object=as_object)
        return
    if shape is not None or device is not None:
        raise typer.BadParameter("--shape and --device say what to --check: give that, too", param_hint="--check")
    from ..planning.calibration import find
    from ..planning.goals import best
    from ..planning.plan import plan as planned
    from ..planning.point import Load
    from ..planning.precision import FORMATS
    from ..planning.question import Question

    if params is None and "--family" in _given(context_of, set()):
        raise typer.BadParameter("it is that of --params: a model names its own", param_hint="--family")
    question = Question(
        Load(input_len, output_len), context, concurrency, kv_format, tensor_parallel, max_num_seqs, token_budget,
        load_gb_per_s,
    )  # fmt: skip
    check_file(html, "--html")
    profiles = _profiles(profile)
    subject = _subject(model, params, family)
    calibrations = {each.name: found for each in profiles if (found := find(each, calibration))}
    if calibration is not None and not calibrations:
        raise typer.BadParameter(f"{calibration} is of no profile that is asked for", param_hint="--calibration")
    rows = planned(subject, profiles, list(dict.fromkeys(format_name or FORMATS)), question, calibrations)
    goals = best(rows, [each.name for each in profiles if each.backend])
    if html is not None:
        html.write_text(_page(subject, question, rows, goals, profiles, calibrations), encoding="utf-8")
    if as_object:
        about = {"model": subject.name, "num_parameters": subject.num_parameters}
        print(json.dumps({**about, "rows": rows, "best": goals}))
        return
    from .plan_detail import detail
    from .plan_text import comparison, heading

    print(heading(subject, question) + "\n")
    print(detail(rows[0], question) if len(rows) == 1 else comparison(rows, goals, question))


def _given(context: typer.Context, allowed: Collection[str]) -> str:
    """What the command line names beside what is allowed, as it names it."""
    sources = {each: context.get_parameter_source(each.name or "") for each in context.command.params}
    return ", ".join(each.opts[-1] if each.opts[-1].startswith("-") else "MODEL" for each, source in sources.items()
                     if source is not None and source.name == "COMMANDLINE" and each.name not in allowed)  # fmt: skip


def _page(
    subject: Subject,
    question: Question,
    rows: list[dict[str, Any]],
    goals: Mapping[str, Row],
    profiles: list[Profile],
    calibrations: Mapping[str, Calibration],
) -> str:
    """The report. Its roofline is of the profile and format with the cheapest tokens, at the smallest degree that
    fits, else of the first that fits and is no chain."""
    from .. import __version__
    from ..planning.plan import deployed
    from ..planning.plan_report import sections
    from ..planning.report import page
    from .plan_text import goal_text

    drawn = goals.get("cost") or next((row for row in rows if row["fits"] and not row["is_bound"]), None)
    chosen = [each for each in profiles if drawn and each.name == drawn["profile"]]
    overlay = calibrations.get(drawn["profile"]) if drawn else None
    shown = deployed(subject, chosen[0], drawn["format"], question, overlay) if drawn and chosen else None
    words = {goal: goal_text(goal, row) for goal, row in goals.items()}
    about = f"ambidex {__version__} plan; predictions from the model's config and the profiles' numbers"
    return page(f"Plan: {subject.name}", sections(subject, question, rows, words, shown), about)


def _profiles(named: Sequence[str] | None) -> list[Profile]:
    from ..hwprofiles.reader import load, names

    return [load(each) for each in dict.fromkeys(named or names())]


def _subject(model: str | None, params: str | None, family: str) -> Subject:
    from ..planning.subject import read_subject, sized_subject

    if (model is None) == (params is None):
        raise typer.BadParameter("name a folder or a hub id, or give --params: one of them", param_hint="MODEL")
    return sized_subject(params, family) if params is not None else read_subject(model or "")
