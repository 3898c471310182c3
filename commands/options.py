"""The options that several commands share, each described once. No heavy imports: `--help` reads this file."""

from __future__ import annotations

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
Kernels = Annotated[
    list[str] | None,
    typer.Option("--kernel", metavar="SITE=NAME", help="Serve this site or op by this kernel, or fail. Repeatable."),
]
Fallback = Annotated[
    str, typer.Option(metavar="POLICY", help="May an op's reference stand in for a kernel: allow, warn or forbid.")
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
