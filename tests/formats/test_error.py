"""Our encoders' error against ggml's own in the same run."""

import ggml
import numpy as np
import pytest
from formats import weights

import tqgguf
from tqgguf.formats import FORMATS, quantize

BLOCKS = [name for name, fmt in FORMATS.items() if fmt.block_size > 1]
# relative MSE on Gaussian rows that must be reached, where a sketch had already beaten ggml
BAR = {
    "Q4_K": 0.00496,
    "Q2_K": 0.0690,
    "Q3_K": 0.0208,
    "IQ3_S": 0.0172,
    "IQ3_XXS": 0.0318,
    "IQ2_S": 0.0585,
    "IQ2_XS": 0.0830,
    "IQ2_XXS": 0.1095,
    "IQ1_M": 0.174,
    "IQ1_S": 0.204,
    "NVFP4": 0.0074,
    "TQ1_0": 0.190,
    "TQ2_0": 0.190,
    "Q2_0": 0.126,
}


def ours(x, name, importance=None):
    return tqgguf.dequantize(tqgguf.quantize(x, name, importance), name, x.shape[1])


def rows(kind, name):
    """Fewer of them for a type that ggml encodes slowly."""
    return weights.rows(kind)[: 4 if name == "IQ1_S" else None]


def theirs(x, name, importance):
    return ggml.dequantize(ggml.quantize(x, name, importance), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", weights.encoded_by_ggml(BLOCKS))
@pytest.mark.parametrize("kind", weights.KINDS)
def test_the_error_is_at_most_ggmls_with_an_imatrix_of_ones(name, kind):
    x = rows(kind, name)
    reference = theirs(x, name, np.ones(x.shape[1], np.float32))
    assert weights.error(x, ours(x, name)) <= weights.error(x, reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", weights.encoded_by_ggml(BLOCKS))
def test_the_weighted_error_is_at_most_ggmls(name):
    x, importance = rows("real", name), weights.real_importance()
    reference = weights.error(x, theirs(x, name, importance), importance)
    assert weights.error(x, ours(x, name, importance), importance) <= reference


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "Q8_0"])
def test_importance_lowers_the_weighted_error(name):
    x, importance = weights.rows("real"), weights.real_importance()
    weighted = weights.error(x, ours(x, name, importance), importance)
    assert weighted < weights.error(x, ours(x, name), importance)


@pytest.mark.parametrize("name", BAR)
def test_gaussian_error_reaches_the_bar(name):
    x = weights.rows("gaussian")
    assert weights.error(x, ours(x, name)) <= BAR[name]


QUICK = [name for name, fmt in FORMATS.items() if fmt.quick]


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("kind", weights.KINDS)
def test_the_quick_encoders_error_is_at_most_that_of_ggmls_default(name, kind):
    x = weights.rows(kind)
    quick = tqgguf.dequantize(quantize(x, name, quick=True), name, x.shape[1])
    default = ggml.dequantize(ggml.quantize(x, name), name)
    ties = 1 + 1e-4  # where ggml's fused multiply-add rounds the other way
    assert weights.error(x, quick) <= weights.error(x, default) * ties
    assert weights.error(x, ours(x, name)) <= weights.error(x, quick)


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.plain])
@pytest.mark.parametrize("kind", weights.KINDS)
def test_the_encoders_without_importance_are_as_good_as_those_with(name, kind):
    x = weights.rows(kind)
    searched = ours(x, name, np.ones(x.shape[1], np.float32))
    assert weights.error(x, ours(x, name)) <= weights.error(x, searched) * 1.002


@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"])
def test_importance_shrinks_weights_of_few_bits_less(name):
    x = weights.rows("gaussian")
    ones = np.ones(x.shape[1], np.float32)
    assert (x * ours(x, name, ones)).sum() > 1.01 * (x * ours(x, name)).sum()
