"""The story: read -> fold -> quantize -> write, one tile at a time, one Report per tensor."""

from tqgguf.pipeline.conversion import convert, output_files
from tqgguf.pipeline.report import Report
from tqgguf.pipeline.workers import is_worth_processes

__all__ = ["Report", "convert", "is_worth_processes", "output_files"]
