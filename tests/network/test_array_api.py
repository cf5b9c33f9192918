"""The forward pass in arrays of array_api_strict, which knows the standard and nothing else."""

import numpy as np
import pytest

from tests.card import CardArray, xp
from tests.network.graphs import write_graph
from tqgguf.kernels.arrays import to_numpy
from tqgguf.models import open_model
from tqgguf.network import forward

TOKENS = np.random.default_rng(3).integers(3, 2048, (2, 70)).astype(np.int32)  # beyond a chunk
KINDS = (
    "llama",
    "gpt2",
    "gemma3-windowed",
    "mpt-six-heads",
    "apertus",
    "nemotron",
    "gpt-oss",
    "bailingmoe2-groups",
    "qwen35moe",
    "qwen3next-joined",
    "deepseek2",
    "deepseek2-unsplit",
)


@pytest.mark.parametrize("name", KINDS)
def test_a_pass_in_another_library_computes_the_same(tmp_path, name):
    model = open_model(write_graph(tmp_path / "model.gguf", name))
    expected = forward.logits(model, TOKENS)
    found = forward.logits(model, TOKENS, put=xp.asarray)
    assert isinstance(found, CardArray)
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-4 * np.abs(expected).max())
