"""Sensitivities predict what rounding does, one matrix at a time and by roles and layers."""

from dataclasses import replace

import numpy as np
import pytest

from tqgguf.calibration import sensitivity
from tqgguf.calibration.sensitivity import measure_sensitivity
from tqgguf.calibration.statistics import input_energies
from tqgguf.formats import dequantize, quantize
from tqgguf.kernels.metrics import relative_mse
from tqgguf.models import open_model
from tqgguf.network.equivalence import measure_difference
from tqgguf.planning.matrices import is_matrix

NAMES = ["token_embd.weight", "blk.0.ffn_down.weight", "blk.3.attn_v.weight", "blk.5.ffn_up.weight"]


@pytest.fixture(scope="module")
def model(novels):
    return open_model(novels)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 2048, (2, 128)).astype(np.int32)


def rounded(model, name, type, energy=None):
    tensor = model.tensors[name]
    x = tensor.read()
    values = dequantize(quantize(x, type, energy), type, tensor.n_in)
    changed = tensor.derived(lambda a, b: values[a:b])
    root = 1 if energy is None else np.sqrt(energy)
    error = relative_mse(x * root, (values * root).astype(np.float32))
    return replace(model, tensors={**model.tensors, name: changed}), error


@pytest.mark.slow
@pytest.mark.parametrize("weighed", [False, True])
def test_a_sensitivity_predicts_what_another_type_loses(model, tokens, weighed):
    energies = input_energies(model, tokens).importance if weighed else None
    found = measure_sensitivity(model, NAMES, tokens, energies=energies)
    for name in NAMES:
        energy = sensitivity.energy_of(model, energies, name)
        other, error = rounded(model, name, "Q5_0", energy)
        assert found[name] * error == pytest.approx(
            measure_difference(model, other, tokens).divergence, rel=0.3
        )


@pytest.mark.slow
def test_roles_and_layers_together_are_near_every_matrix_alone(model, tokens, monkeypatch):
    names = [n for n, t in model.tensors.items() if is_matrix(t)]
    alone = measure_sensitivity(model, names, tokens)
    monkeypatch.setattr(sensitivity, "_ONE_BY_ONE", 0)
    together = measure_sensitivity(model, names, tokens)
    assert together.keys() == alone.keys() == set(names)
    assert together["token_embd.weight"] == alone["token_embd.weight"]
    counting = [n for n in names if alone[n] > 0.1 * np.median(list(alone.values()))]
    assert len(counting) > 0.8 * len(names)
    ours, exact = (np.log([found[n] for n in counting]) for found in (together, alone))
    assert np.corrcoef(ours, exact)[0, 1] > 0.7
    assert np.std(ours - exact) < np.std(exact)
    assert abs(np.mean(ours - exact)) < np.log(1.5)


@pytest.mark.slow
def test_what_is_known_of_layers_is_scaled_beside_measured_ends(model, tokens):
    """The embedding, tied to the head, is measured; layers keep their proportions."""
    names = [n for n, t in model.tensors.items() if is_matrix(t)]
    known = {name: 1.0 + i % 3 for i, name in enumerate(names)}
    found, tenfold = (
        measure_sensitivity(model, names, tokens, known={n: by * known[n] for n in names})
        for by in (1, 10)
    )
    factors = [found[n] / known[n] for n in names if n != "token_embd.weight"]
    assert factors == pytest.approx([factors[0]] * len(factors))
    assert found == pytest.approx(tenfold)
    alone = measure_sensitivity(model, names, tokens)
    inside = (sum(a[n] for n in names if n != "token_embd.weight") for a in (found, alone))
    assert next(inside) == pytest.approx(next(inside), rel=0.5)
    assert found["token_embd.weight"] == pytest.approx(alone["token_embd.weight"], rel=0.5)


def test_a_shortened_weight_keeps_two_bits():
    x = np.random.default_rng(0).standard_normal(1 << 12).astype(np.float32)
    short = sensitivity.shortened(x)
    assert set(np.frexp(np.abs(short))[0].tolist()) == {0.5, 0.75}
    assert np.abs(short - x).max() <= np.abs(x).max() / 4
    assert np.all(np.abs(short - x) <= 0.2 * np.abs(x) * (1 + 1e-6))


@pytest.mark.usefixtures("two_blas_threads")
def test_the_numbers_do_not_depend_on_threads(model, tokens):
    one, three = (measure_sensitivity(model, NAMES, tokens[:1], threads=n) for n in (1, 3))
    assert one == three
    assert all(value > 0 for value in one.values())
