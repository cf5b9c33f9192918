"""Rotate, quantize and write GGUF models that stock llama.cpp runs."""

from tqgguf.formats import FORMATS, dequantize, quantize

__version__ = "0.1.0"
__all__ = ["FORMATS", "dequantize", "quantize"]
