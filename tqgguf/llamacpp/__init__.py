"""llama.cpp's command-line programs: found, run, and their output read."""

from tqgguf.llamacpp.bench import Sample, Speed, Workload, measure, rounds, summarize
from tqgguf.llamacpp.perplexity import (
    Divergence,
    NoResultError,
    Settings,
    divergence,
    write_base,
)
from tqgguf.llamacpp.programs import generate, imatrix, quantize, tokenize
from tqgguf.llamacpp.tools import Output, built_tools, find, run, version

__all__ = [
    "Divergence",
    "NoResultError",
    "Output",
    "Sample",
    "Settings",
    "Speed",
    "Workload",
    "built_tools",
    "divergence",
    "find",
    "generate",
    "imatrix",
    "measure",
    "quantize",
    "rounds",
    "run",
    "summarize",
    "tokenize",
    "version",
    "write_base",
]
