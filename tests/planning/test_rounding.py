"""Errors on a sample of rows: what the whole matrix has, and of outputs where inputs are known."""

import numpy as np
import pytest

from tqgguf.formats import dequantize, quantize
from tqgguf.kernels.metrics import relative_mse
from tqgguf.models import open_model
from tqgguf.planning.rounding import measure_errors
from tqgguf.rotation.ends import EMBEDDING, HEAD

NAME = "blk.1.ffn_down.weight"


def unknown(_name):
    return None


def test_a_samples_error_is_near_that_of_the_matrix(novels):
    model = open_model(novels)
    found = measure_errors(model, {NAME: ["Q4_K", "IQ4_NL", "Q8_0"]}, unknown, threads=1)[NAME]
    assert not found.of_outputs
    x = model.tensors[NAME].read()
    for type, error in found.by_type.items():
        exact = relative_mse(x, dequantize(quantize(x, type), type, x.shape[1]))
        assert error == pytest.approx(exact, rel=0.1)


def test_energies_of_inputs_make_it_the_outputs_error(novels):
    model = open_model(novels)
    x = model.tensors[NAME].read()
    energy = np.exp(2 * np.random.default_rng(0).standard_normal(x.shape[1])).astype(np.float32)
    inputs = np.random.default_rng(1).standard_normal((500, x.shape[1])) * np.sqrt(energy)
    found = measure_errors(model, {NAME: ["Q4_0"]}, lambda _: energy[None], threads=1)[NAME]
    assert found.of_outputs
    lost = dequantize(quantize(x, "Q4_0", energy), "Q4_0", x.shape[1]) - x
    exact = np.square(inputs @ lost.T).sum() / np.square(inputs @ x.T).sum()
    assert found.by_type["Q4_0"] == pytest.approx(exact, rel=0.2)
    assert found.by_type["Q4_0"] < 0.9 * relative_mse(x, x + lost)


def test_a_tied_table_is_judged_as_the_head(novels):
    model = open_model(novels)
    asked = []

    def energies(name):
        asked.append(name)
        return np.ones((1, 256), np.float32) if name == HEAD else None

    found = measure_errors(model, {EMBEDDING: ["Q4_0"]}, energies, threads=1)
    assert found[EMBEDDING].of_outputs
    assert asked == [EMBEDDING, HEAD]
