"""Weights that another tool quantized: a module for each family of layouts, one table of all."""

from tqgguf.models.huggingface.quantized.layouts import decoded

__all__ = ["decoded"]
