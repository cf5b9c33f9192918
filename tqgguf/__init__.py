"""Rotate, quantize and write GGUF models that stock llama.cpp runs."""

from tqgguf.formats import FORMATS, dequantize, quantize
from tqgguf.version import __version__

__all__ = ["FORMATS", "__version__", "dequantize", "quantize"]
