"""Sums of squares of inputs, with llama-imatrix's own file as the oracle."""

import numpy as np
import pytest

from tests.llama import tokenize
from tqgguf.calibration.imatrix import read_imatrix
from tqgguf.calibration.statistics import input_energies
from tqgguf.machine.threads import single_threaded_blas
from tqgguf.models.gguf import read_gguf

CHUNKS, CONTEXT = 40, 256  # that llama-imatrix was given


@pytest.mark.slow
def test_energies_are_those_of_llama_imatrix(novels):
    """Windows of a text, each begun by BOS, cut through documents and not padded."""
    theirs = read_imatrix(novels.with_name("novels-5m.imatrix.gguf"))
    text = novels.with_name("novels-calib.txt").read_text()
    ids = tokenize(novels, text[:60_000])[: CHUNKS * CONTEXT]
    tokens = np.array(ids, np.int32).reshape(CHUNKS, CONTEXT)
    tokens[:, 0] = ids[0]
    with single_threaded_blas():
        ours = input_energies(read_gguf(novels), tokens, threads=1)
    assert theirs.sums.keys() <= ours.sums.keys()
    for name in theirs.sums:
        np.testing.assert_allclose(ours.importance(name), theirs.importance(name), rtol=1e-3)
        assert ours.counts[name] == CHUNKS * CONTEXT
