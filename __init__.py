"""Ambidex: large language models on every vendor's devices, explained and checked.

The face of the package. Names are imported on first use, so that `import ambidex` costs little and does not load torch.
The imports are absolute on purpose: pytest imports this file a second time under another name, and a relative import
would then look for a package that does not exist.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ambidex.runtime.async_llm import AsyncLLM
    from ambidex.runtime.llm import LLM
    from ambidex.runtime.request import CompletionOutput, RequestOutput, SamplingParams

__version__ = "0.1.0"

__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "ambidex.runtime.llm",
    "AsyncLLM": "ambidex.runtime.async_llm",
    "CompletionOutput": "ambidex.runtime.request",
    "RequestOutput": "ambidex.runtime.request",
    "SamplingParams": "ambidex.runtime.request",
}


if not TYPE_CHECKING:  # a checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'ambidex' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return __all__
