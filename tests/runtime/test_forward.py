"""The forward pass against real llama.cpp, and against itself in float64."""

import numpy as np
import pytest

from tests.runtime.small_models import RECIPES, Recipe, llama_cpp_steps, write_model
from tqgguf.errors import UnsupportedModelError
from tqgguf.models.gguf import read_gguf
from tqgguf.runtime import forward, ops

PROMPT = [1, 5, 9, 30, 17, 42, 8, 3, 28, 11, 39, 6]


@pytest.mark.parametrize("name", RECIPES)
def test_log_probabilities_match_llama_cpp(tmp_path, name):
    path = write_model(tmp_path / "model.gguf", RECIPES[name])
    ids, expected = llama_cpp_steps(path, PROMPT, 12)
    tokens = np.array([PROMPT + ids[:-1]], np.int32)
    ours = ops.log_softmax(forward.logits(read_gguf(path), tokens))[0, len(PROMPT) - 1 :]
    seen = np.isfinite(expected)
    assert seen.sum() >= 40 * len(expected)
    assert np.abs(ours - expected)[seen].max() < 1e-2


@pytest.mark.parametrize("name", RECIPES)
def test_float32_agrees_with_float64(tmp_path, name):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    tokens = np.array([PROMPT, PROMPT[::-1]], np.int32)
    single = ops.log_softmax(forward.logits(model, tokens))
    double = ops.log_softmax(forward.logits(model, tokens, dtype=np.float64))
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    assert np.abs(single - double).max() < 1e-5


def test_an_unknown_architecture_is_refused(tmp_path):
    path = write_model(tmp_path / "model.gguf", Recipe("mamba"))
    with pytest.raises(UnsupportedModelError, match=r"no forward pass for architecture 'mamba'"):
        forward.logits(read_gguf(path), np.array([PROMPT], np.int32))
