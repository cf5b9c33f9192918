"""Rotate, quantize and write GGUF models that stock llama.cpp runs.

The whole public library is here; docs/api.md shows it at work. What a name needs is imported when
the name is first used, so that `import tqgguf` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tqgguf.version import __version__

if TYPE_CHECKING:
    from tqgguf.api import Converted, convert, open_model, plan
    from tqgguf.errors import TqggufError
    from tqgguf.formats import FORMATS, dequantize, quantize
    from tqgguf.models import Model, Tensor
    from tqgguf.output.layout import Split
    from tqgguf.pipeline import Report
    from tqgguf.planning.plan import Options, Plan

__all__ = [
    "FORMATS",
    "Converted",
    "Machine",
    "Model",
    "Options",
    "Plan",
    "Report",
    "Split",
    "Tensor",
    "TqggufError",
    "__version__",
    "convert",
    "dequantize",
    "open_model",
    "plan",
    "quantize",
]

_HOMES = {
    "api": ("Converted", "convert", "open_model", "plan"),
    "errors": ("TqggufError",),
    "formats": ("FORMATS", "dequantize", "quantize"),
    "machine.machine": ("Machine",),
    "models": ("Model", "Tensor"),
    "output.layout": ("Split",),
    "pipeline": ("Report",),
    "planning.plan": ("Options", "Plan"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
