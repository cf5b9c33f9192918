"""Weights to compare encoders on: Gaussian, heavy-tailed, and a real model's with its imatrix."""

from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

from tqgguf.kernels.metrics import heavy_tailed

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "novels-5m-f16.gguf"
IMATRIX = DATA / "novels-5m.imatrix.gguf"  # llama-imatrix, 40 chunks of 256 calibration tokens
KINDS = ("gaussian", "heavy-tailed", "real")


# ggml makes a table when a process first encodes to one of these, which takes it seconds
TABLES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")


def encoded_by_ggml(names):
    """Parameters of a test that encodes to these types by ggml."""
    return [pytest.param(n, marks=pytest.mark.slow if n in TABLES else ()) for n in names]


@cache
def rows(kind):
    """(n_rows, n_in) float32, rows a multiple of 256."""
    if kind == "gaussian":
        return np.random.default_rng(11).standard_normal((32, 4096), dtype=np.float32)
    if kind == "heavy-tailed":
        return heavy_tailed(32, 4096, seed=12)
    return _tensor(MODEL, "blk.2.ffn_down.weight").astype(np.float32)


@cache
def real_importance():
    """The mean square of each input of blk.2.ffn_down, (768,) float32."""
    sums, counts = (_tensor(IMATRIX, f"blk.2.ffn_down.weight.{s}") for s in ("in_sum2", "counts"))
    return (sums / counts).reshape(-1).astype(np.float32)


def error(x, y, importance=None):
    """Relative squared error, weighted by column."""
    weight = 1 if importance is None else importance.astype(np.float64)
    return float((weight * (x - y) ** 2).sum() / (weight * x.astype(np.float64) ** 2).sum())


def _tensor(path, name):
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return np.array(tensor.data)
