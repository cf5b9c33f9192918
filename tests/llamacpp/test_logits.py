import struct

import numpy as np
import pytest

from tqgguf.errors import ToolError
from tqgguf.llamacpp.logits import distance, open_logits, perplexity

CONTEXT, CHUNKS = 64, 3
POSITIONS = CHUNKS * (CONTEXT - 1 - CONTEXT // 2)


def write(path, logits, tokens=None):
    """A file as llama-perplexity writes it: logits clamped 16 below their maximum, 16-bit codes."""
    vocabulary = logits.shape[1]
    body = struct.pack("<8s3i", b"_logits_", CONTEXT, vocabulary, CHUNKS)
    tokens = np.zeros((CHUNKS, CONTEXT)) if tokens is None else tokens
    body += tokens.astype("<i4").tobytes()
    for row in logits:
        low = max(row.min(), row.max() - 16)
        scale = (row.max() - low) / 65535
        codes = np.round((np.maximum(row, low) - low) / scale).astype("<u2")
        log_sum = row.max() + np.log(np.exp(row - row.max()).sum())
        body += struct.pack("<2f", scale, low - log_sum) + codes.tobytes()
        body += b"\xcd\xab" * (vocabulary % 2)
    path.write_bytes(body)
    return path


def exact(p, q):
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(axis=1)


@pytest.mark.parametrize("vocabulary", [100, 101])
@pytest.mark.parametrize("step", [1e-3, 1e-2, 1.0])
def test_the_distance_is_the_divergence_of_the_unrounded_distributions(tmp_path, vocabulary, step):
    random = np.random.default_rng(5)
    p = random.normal(scale=2, size=(POSITIONS, vocabulary))
    q = p + step * random.normal(size=p.shape)
    found = distance(write(tmp_path / "p", p), write(tmp_path / "q", q))
    wanted = exact(p, q)
    assert found.kld_mean == pytest.approx(wanted.mean(), rel=1e-2, abs=1e-7)
    assert found.kld_max == pytest.approx(wanted.max(), rel=1e-2, abs=2e-7)
    assert found.kld_p999 == pytest.approx(np.quantile(wanted, 0.999), rel=1e-2, abs=2e-7)
    assert found.same_top == 100 * np.mean(p.argmax(axis=1) == q.argmax(axis=1))


def test_the_perplexity_is_that_of_the_tokens(tmp_path):
    random = np.random.default_rng(9)
    logits = random.normal(size=(POSITIONS, 33))
    tokens = random.integers(0, 33, (CHUNKS, CONTEXT))
    path = write(tmp_path / "p", logits, tokens)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    predicted = tokens[:, CONTEXT // 2 + 1 :].ravel()  # the second half of each chunk, less one
    wanted = np.exp(-np.mean(log_p[np.arange(POSITIONS), predicted]))
    assert perplexity(path) == pytest.approx(wanted, rel=1e-5)


def test_a_file_against_itself_is_at_distance_0(tmp_path):
    logits = np.random.default_rng(6).normal(size=(POSITIONS, 32))
    found = distance(write(tmp_path / "p", logits), write(tmp_path / "q", logits))
    assert (found.kld_mean, found.kld_max, found.same_top) == (0.0, 0.0, 100.0)


def test_broken_files_are_refused(tmp_path):
    logits = np.random.default_rng(7).normal(size=(POSITIONS, 32))
    whole = write(tmp_path / "p", logits).read_bytes()
    other = tmp_path / "q"
    for broken, message in [
        (b"", "does not look like"),
        (b"_logits?" + whole[8:], "does not look like"),
        (whole[:-1], "do not hold 93 predictions"),
        (whole + b"\0", "do not hold 93 predictions"),
    ]:
        other.write_bytes(broken)
        with pytest.raises(ToolError, match=message):
            open_logits(other)


def test_predictions_of_another_vocabulary_are_refused(tmp_path):
    random = np.random.default_rng(8)
    one = write(tmp_path / "p", random.normal(size=(POSITIONS, 32)))
    other = write(tmp_path / "q", random.normal(size=(POSITIONS, 34)))
    with pytest.raises(ToolError, match=r"q: 34 entries in the vocabulary, but .*p has 32"):
        distance(one, other)
