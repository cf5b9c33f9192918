"""What a layer announces is true: every matrix once, with the input that it is multiplied with."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from tests.network.graphs import GRAPHS, VARIANTS, write_graph
from tqgguf.models import open_model
from tqgguf.network import forward

TOKENS = np.array([[5, 900, 17, 1203, 44, 8]], np.int32)  # fewer than any matrix has columns
SHALLOW = [n for n in GRAPHS if n not in VARIANTS or VARIANTS[n].layers <= 6]
NO_MATRIX = ("norm", "ssm_conv1d")


class Pass:
    """A layer's input, weights and steps, and what comes out with other weights."""

    def __init__(self, model, index: int, x: np.ndarray) -> None:
        self.x, self.index = x, index
        self.ctx = forward.context(model, TOKENS.shape[1], np.float64)
        self.weights = forward.layer_weights(model, index, dtype=np.float64)
        self.steps = []
        self.out = self.run({})

    def run(self, changed: dict[str, np.ndarray], product=lambda _: None) -> np.ndarray:
        """The output; product: of the matrices that add to the stream, sent to the layer."""
        layer = forward.layer(self.x, {**self.weights, **changed}, self.ctx, self.index)
        self.steps, sent = [], None
        while True:
            try:
                self.steps.append(layer.send(sent))
            except StopIteration as end:
                return end.value
            sent = None if self.steps[-1].stream is None else product(self.steps[-1])


def passes(tmp_path, name: str) -> Iterator[Pass]:
    model = open_model(write_graph(tmp_path / "model.gguf", name))
    x = forward.embed(model, TOKENS, dtype=np.float64)
    for index in range(forward.context(model, 1).graph.n_layer):
        went = Pass(model, index, x)
        yield went
        x = went.out


def unseen(rng: np.random.Generator, weight: np.ndarray, inputs: tuple) -> np.ndarray:
    """A change of a matrix, or of stacked ones, that products with these inputs cannot show."""
    parts = []
    for x in inputs:
        change = rng.standard_normal((weight.size // weight.shape[-1] // len(inputs), x.shape[1]))
        _, sizes, basis = np.linalg.svd(x, full_matrices=False)
        basis = basis[sizes > 1e-12 * sizes.max(initial=0)]
        parts.append(change - change @ basis.T @ basis)
    return np.concatenate(parts).reshape(weight.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_every_matrix_is_announced_once(tmp_path, name):
    for went in passes(tmp_path, name):
        announced = [f"{m}.weight" for step in went.steps for m in step.matrices]
        matrices = {
            n
            for n, w in went.weights.items()
            if w.ndim > 1 and n.endswith(".weight") and not any(word in n for word in NO_MATRIX)
        }
        assert len(set(announced)) == len(announced)
        assert set(announced) - {"ffn_gate_inp_shexp.weight"} == matrices


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_only_what_the_inputs_see_of_a_matrix_matters(tmp_path, name):
    rng = np.random.default_rng(3)
    for went in passes(tmp_path, name):
        for step in list(went.steps):
            for matrix in (f"{m}.weight" for m in step.matrices):
                weight = went.weights[matrix]
                change = unseen(rng, weight, step.inputs)
                assert np.allclose(went.run({matrix: weight + change}), went.out, atol=1e-9), matrix
                seen = rng.standard_normal(weight.shape)
                assert not np.allclose(went.run({matrix: weight + seen}), went.out, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_a_stream_is_what_the_product_is_added_to(tmp_path, name):
    for went in passes(tmp_path, name):
        scale = went.ctx.graph.residual_scale
        told = [step for step in went.steps if step.stream is not None]
        sums = [step.stream + product(went.weights, step) for step in told]
        later = [step.stream for step in told[1:]]
        if went.steps[-1].stream is not None:
            later.append(went.out.reshape(-1, went.out.shape[-1]) / scale)
        direct = [np.allclose(a, b, atol=1e-9) for a, b in zip(sums, later, strict=False)]
        routed = "ffn_down_exps.weight" in went.weights  # its experts are added between the two
        assert direct == [not (routed and i == 0 and len(later) > 1) for i in range(len(direct))]


def product(weights: dict[str, np.ndarray], step) -> np.ndarray:
    (matrix,) = step.matrices
    bias = weights.get(f"{matrix}.bias", 0.0)
    return step.inputs[0] @ weights[f"{matrix}.weight"].T + bias


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2moe", "granite"])
def test_a_product_that_is_sent_takes_the_place_of_the_layers_own(tmp_path, name):
    for went in passes(tmp_path, name):
        told = [step.matrices[0] for step in went.steps if step.stream is not None]
        tensors = (f"{matrix}.{kind}" for matrix in told for kind in ("weight", "bias"))
        doubled = {n: 2 * went.weights[n] for n in tensors if n in went.weights}
        sent = went.run({}, partial(product, doubled))
        assert told
        assert np.allclose(sent, went.run(doubled), atol=1e-9)
        assert not np.allclose(sent, went.out, atol=1e-6)
