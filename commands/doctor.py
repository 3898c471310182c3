"""`ambidex doctor`: what there is to run with, what is missing, and how to get it. Works without torch, too."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from typing import Annotated, Any

import typer

from . import options
from .failures import describe
from .table import fields

_PACKAGES = ("torch", "triton", "tokenizers", "safetensors", "huggingface_hub", "transformers")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "MKL_NUM_THREADS")


@options.with_engine
def doctor(
    engine: dict[str, Any],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model, run the largest steps, and measure what was predicted.")
    ] = False,
    as_object: options.AsJson = False,
) -> None:
    """Check the environment. Ends with 0 if a model can run here.

    With a MODEL or an engine's option: what that engine would take of the memory, part by part. It is not loaded; where
    it does not fit, what is short and which option cures it.
    """
    named = options.one_model(model, model_option)
    findings = examined()
    if findings["can_run"] and (named is not None or engine or measure):
        findings["engine"] = planned(named, engine, measure=measure)
    print(json.dumps(findings) if as_object else shown(findings))
    if not findings["can_run"]:
        raise typer.Exit(1)


def planned(model: str | None, engine: dict[str, Any], *, measure: bool) -> dict[str, Any]:
    """What was decided of an engine, predicted and, if wanted, measured. Errors: those of `LLM`."""
    from ..runtime.build import build_measured
    from ..runtime.describe import describe as decisions
    from ..runtime.holdings import run_and_measure
    from ..runtime.options import Options
    from ..runtime.phases import lines
    from ..runtime.start import decide

    decided = decide(Options(model=model, **engine))
    plan: dict[str, Any] = {"decisions": decisions(decided), "predicted_bytes": decided.ledger.predicted}
    if measure:
        built = build_measured(decided)
        plan["phase_seconds"] = dict(built.engine.phase_seconds)
        plan["decisions"] += lines(built.engine.phase_seconds)
        run_and_measure(built.engine, built.holdings)
        plan["measured"] = {name: found._asdict() for name, found in built.holdings.measured().items()}
        plan["comparison"] = built.holdings.lines()
    return plan


def examined() -> dict[str, Any]:
    """Every finding as plain values; `problems` says what keeps something from running, each with its cure."""
    from .. import __version__

    found: dict[str, Any] = {
        "ambidex": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": None,
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "languages": {},
        "embedded_model": None,
        "devices": [],
        "problems": {},
        "can_run": False,
    }
    try:
        found |= _with_torch()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is what the doctor has to report)
        found["problems"]["torch"] = describe(error)[0]
    return found


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def _with_torch() -> dict[str, Any]:
    import torch

    from ..ops.discovery import describe_language, languages, missing_languages
    from .devices import inventory

    inventoried, missing = inventory(), missing_languages()
    model = _embedded_model()
    return {
        "threads": torch.get_num_threads(),
        "languages": {name: missing.get(name) or describe_language(name) for name in languages()},
        "embedded_model": model,
        "devices": inventoried["devices"],
        "problems": {**inventoried["missing"], **{f"kernels/{name}": reason for name, reason in missing.items()}},
        "can_run": any(device["profile"] for device in inventoried["devices"]),
    }


def _embedded_model() -> str:
    from ..runtime.config import read_config
    from ..runtime.start import resolve_model

    try:
        config = read_config(resolve_model(None))
    except ValueError as error:
        return describe(error)[0]
    return f"{config.model_type}, {config.num_layers} layers of {config.hidden_size}"


def shown(findings: dict[str, Any]) -> str:
    """The findings as text."""
    packages = [f"{name} {version or '(not installed)'}" for name, version in findings["packages"].items()]
    variables = ", ".join(f"{name}={value}" for name, value in findings["thread_variables"].items())
    threads = f"{findings['threads'] or '–'} of torch on {findings['cores']} cores"
    lines = [
        ("ambidex", findings["ambidex"]),
        ("python", findings["python"]),
        ("system", findings["system"]),
        ("packages", ", ".join(packages)),
        ("threads", f"{threads} ({variables})" if variables else threads),
        ("model", f"embedded: {findings['embedded_model'] or '–'}"),
        *(
            (f"kernels/{name}", state)
            for name, state in findings["languages"].items()
            if f"kernels/{name}" not in findings["problems"]
        ),
        *(("device", _device(device)) for device in findings["devices"]),
    ]
    verdict = "a model can run here" if findings["can_run"] else "nothing can run here: see what is missing"
    problems = [("missing", f"{name}: {reason}") for name, reason in findings["problems"].items()]
    plan = findings.get("engine", {})
    engine = "".join(f"\n{line}" for line in [*plan.get("decisions", ()), *plan.get("comparison", ())])
    return fields([*lines, *problems, ("verdict", verdict)]) + ("\n" + engine if engine else "")


def _device(device: dict[str, Any]) -> str:
    profile = f"profile {device['profile']} ({device['match']})" if device["profile"] else device["reason"]
    return f"{device['device']}, {device['name']}, {profile}, {device['free_bytes'] / 2**30:.1f} GiB free"
