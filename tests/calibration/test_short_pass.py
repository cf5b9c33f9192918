"""A short pass tells the energies of a model's inputs, whoever does it."""

import numpy as np
import pytest

from tests.tiny_models import write_tensors
from tqgguf.calibration.imatrix import Imatrix, read_imatrix
from tqgguf.calibration.short_pass import measure_inputs, shrunk
from tqgguf.calibration.tokens import read_text
from tqgguf.errors import TqggufError, WeightError
from tqgguf.models import open_model


@pytest.fixture(scope="module")
def model(novels):
    return open_model(novels)


@pytest.fixture(scope="module")
def inputs(model):
    return measure_inputs(model, read_text(model, None), threads=1)


@pytest.mark.slow
@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("threads", [2, 3])
def test_the_numbers_do_not_depend_on_the_threads(model, inputs, threads):
    again = measure_inputs(model, read_text(model, None), threads=threads)
    assert again.sums.keys() == inputs.sums.keys()
    for name, sums in inputs.sums.items():
        np.testing.assert_array_equal(again.sums[name], sums, name)


@pytest.mark.slow
def test_it_says_what_llama_imatrix_says_of_many_more_tokens(novels, model, calibration):
    theirs = read_imatrix(novels.with_name("novels-5m.imatrix.gguf"))
    inputs = measure_inputs(model, read_text(model, calibration))
    alike = {
        name: np.corrcoef(
            np.log(inputs.importance(name).ravel()), np.log(theirs.importance(name).ravel() + 1e-9)
        )[0, 1]
        for name in theirs.sums
    }
    assert min(alike.values()) > 0.6
    assert np.median(list(alike.values())) > 0.95


def test_what_few_tokens_saw_is_drawn_towards_the_rest():
    sums = np.array([[800.0, 1600.0], [0, 0], [0, 8]], np.float32)
    counts = np.array([800, 0, 1], np.float32)
    many, none, one = shrunk(Imatrix({"e": sums}, {"e": counts}, "none")).importance("e")
    np.testing.assert_allclose(many, [1, 2], rtol=0.02)
    np.testing.assert_allclose(none, [1, 2], rtol=0.02)
    assert 0.9 < one[0] < 1
    assert 2 < one[1] < 2.5
    (dense,) = shrunk(Imatrix({"d": sums[:1]}, {"d": counts[:1]}, "none")).importance("d")
    assert 1 < dense[0] < 1.05
    assert 1.95 < dense[1] < 2


@pytest.mark.filterwarnings("ignore:(overflow|invalid value)")
def test_a_model_that_overflows_is_named(novels, tmp_path):
    tensors = {n: t.read().copy() for n, t in open_model(novels).tensors.items()}
    tensors["blk.3.ffn_up.weight"] *= np.float32(1e38)
    broken = open_model(write_tensors(tmp_path / "broken.gguf", novels, tensors))
    with pytest.raises(WeightError, match=r"ffn_down.* are not finite"):
        measure_inputs(broken, read_text(broken, None))


@pytest.mark.parametrize(("fault", "error"), [(ValueError, ValueError), (MemoryError, TqggufError)])
def test_a_fault_of_ours_is_not_the_models(model, tmp_path, monkeypatch, fault, error):
    def wrong(*_, **__):
        raise fault("ours")

    text = read_text(model, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tqgguf.calibration.short_pass.input_energies", wrong)
    with pytest.raises(error, match="ours"):
        measure_inputs(model, text)
