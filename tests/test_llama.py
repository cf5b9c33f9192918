"""The helper that the proofs rest on: it must see what llama.cpp's own server sees."""

import numpy as np

from tests.llama import generate, kl_divergence, logprobs, tokenize
from tests.tiny_models import DATA, write_tiny

PROMPT = "The old man walked slowly down the road"


def test_logprobs_pick_the_text_that_the_server_generates():
    path = DATA / "novels-5m-f16.gguf"
    text = generate(path, PROMPT, 30)
    tokens = tokenize(path, PROMPT + text)
    first = len(tokenize(path, PROMPT))
    best = logprobs(path, tokens).argmax(axis=1)
    assert (best[first - 1 : -1] == tokens[first:]).mean() > 0.9  # ties in float16 may differ


def test_logprobs_are_normalised_and_tell_models_apart(tmp_path):
    tokens = list(range(3, 40))
    one = logprobs(write_tiny(tmp_path / "1.gguf", "llama"), tokens)
    two = logprobs(write_tiny(tmp_path / "2.gguf", "llama", seed=1), tokens)
    assert one.shape == (37, 2048)
    assert np.allclose(np.exp(one).sum(axis=1), 1)
    assert kl_divergence(one, one).max() == 0
    assert kl_divergence(one, two).min() > 0.1
