"""Rotate, quantize and write GGUF models that stock llama.cpp runs."""

__version__ = "0.1.0"
