"""llama.cpp's command-line programs: found, run, and their output read."""

from tqgguf.llamacpp.bench import Sample, Speed, Workload, measure_speed, rounds, summarize
from tqgguf.llamacpp.perplexity import (
    Divergence,
    NoResultError,
    NotFiniteError,
    Settings,
    divergence,
    write_base,
)
from tqgguf.llamacpp.programs import generate, imatrix, quantize_file, tokenize
from tqgguf.llamacpp.tools import ToolOutput, built_tools, find, run, version

__all__ = [
    "Divergence",
    "NoResultError",
    "NotFiniteError",
    "Sample",
    "Settings",
    "Speed",
    "ToolOutput",
    "Workload",
    "built_tools",
    "divergence",
    "find",
    "generate",
    "imatrix",
    "measure_speed",
    "quantize_file",
    "rounds",
    "run",
    "summarize",
    "tokenize",
    "version",
    "write_base",
]
