"""The forward pass against real llama.cpp, and against itself in float64."""

from pathlib import Path

import numpy as np
import pytest

from tests.llama import logprobs, tokenize
from tests.network.small_models import RECIPES, Recipe, llama_cpp_steps, write_model
from tqgguf.errors import UnsupportedModelError
from tqgguf.models.gguf import read_gguf
from tqgguf.network import forward, ops

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-5m-f16.gguf"
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


@pytest.fixture(scope="module")
def prose():
    """256 tokens of a novel."""
    text = (DATA / "novels-eval.txt").read_text()[20_000:22_000]
    return np.array([tokenize(NOVELS, text)[:256]], np.int32)


@pytest.mark.slow
def test_a_trained_model_matches_llama_cpp_on_prose(prose):
    """At every position, over the whole vocabulary, computed in float32 by both."""
    ours = ops.log_softmax(forward.logits(read_gguf(NOVELS), prose))[0]
    assert np.abs(ours - logprobs(NOVELS, prose[0].tolist())).max() < 1e-2


@pytest.mark.slow
def test_a_trained_model_in_float32_is_near_float64(prose):
    """Rounding activations to float32 costs this much, however exact each step (docs/LOG.md)."""
    model = read_gguf(NOVELS)
    single = ops.log_softmax(forward.logits(model, prose))
    double = ops.log_softmax(forward.logits(model, prose, dtype=np.float64))
    error = np.abs(single - double)
    assert np.sqrt(np.square(error).mean()) < 3e-6
    assert np.median(error.max(axis=-1)) < 1e-5
    assert error.max() < 3e-5


def test_an_unknown_architecture_is_refused(tmp_path):
    path = write_model(tmp_path / "model.gguf", Recipe("mamba"))
    with pytest.raises(UnsupportedModelError, match=r"no forward pass for architecture 'mamba'"):
        forward.logits(read_gguf(path), np.array([PROMPT], np.int32))
