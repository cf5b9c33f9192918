"""Calibration reaches every matrix of every architecture, and llama.cpp runs what comes out."""

from pathlib import Path

import numpy as np
import pytest

from tests.llama import kl_divergence, logprobs
from tests.network.graphs import write_graph
from tests.tiny_models import TINY, write_tensors
from tqgguf.calibration.calibrate import calibrate
from tqgguf.calibration.statistics import input_energies
from tqgguf.formats import dequantize, quantize
from tqgguf.machine.threads import single_threaded_blas
from tqgguf.models import Model, open_model

TOKENS = np.random.default_rng(1).integers(3, 2048, (8, 64)).astype(np.int32)
TYPE, BLOCK = "Q4_0", 32
BESIDE = ("norm", "conv1d", "embd", "ffn_gate_inp_shexp")
NAMES = [*TINY, "gemma3-windowed", "deepseek2-unsplit", "deepseek2-joined", "granitemoe-shared"]


def matrices(model: Model) -> dict[str, str]:
    """Every matrix of the layers, and the head, with the type that it becomes."""
    chosen = (
        name
        for name, tensor in model.tensors.items()
        if len(tensor.shape) > 1 and name.endswith(".weight") and tensor.n_in % BLOCK == 0
    )
    return {name: TYPE for name in chosen if not any(word in name for word in BESIDE)}


def rounded(model: Model, data: dict, path: Path) -> Path:
    """The model with these rows in place of its own."""
    tensors = {
        name: dequantize(data[name], TYPE, t.n_in).reshape(t.shape) if name in data else t.read()
        for name, t in model.tensors.items()
    }
    return write_tensors(path, model.path, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_calibrated_model_is_nearer_than_a_rounded_one(tmp_path, name):
    model = open_model(write_graph(tmp_path / "model.gguf", name))
    types = matrices(model)
    found = dict(calibrate(model, types, TOKENS))
    assert found.keys() == types.keys()
    plain = {
        n: quantize(model.tensors[n].read().reshape(-1, model.tensors[n].n_in), TYPE) for n in types
    }
    texts = TOKENS[:3].tolist()  # of one alone the mean is a matter of luck
    references = [logprobs(model.path, ids) for ids in texts]
    calibrated, uncalibrated = (
        np.mean(
            [
                kl_divergence(reference, logprobs(path, ids)).mean()
                for reference, ids in zip(references, texts, strict=True)
            ]
        )
        for path in (rounded(model, data, tmp_path / "q.gguf") for data in (found, plain))
    )
    assert calibrated < uncalibrated


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_energies_of_every_matrix_are_measured(tmp_path, name):
    model = open_model(write_graph(tmp_path / "model.gguf", name))
    with single_threaded_blas():
        energies = input_energies(model, TOKENS[:2], threads=1)
    for matrix in matrices(model):
        importance, tensor = energies.importance(matrix), model.tensors[matrix]
        assert importance.shape[-1] == tensor.n_in
        assert np.isfinite(importance).all()
        assert tensor.size % importance.size == 0
