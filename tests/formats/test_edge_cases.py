"""Weights that are easy to get wrong; every block type, and no warning anywhere."""

import ggml
import numpy as np
import pytest

import tqgguf
from tqgguf.errors import WeightError
from tqgguf.formats import FORMATS, ScalarFormat, quantize

BLOCKS = [name for name, fmt in FORMATS.items() if fmt.block_size > 1]
SCALAR = [name for name in BLOCKS if isinstance(FORMATS[name], ScalarFormat)]


def round_trip(x, name, importance=None):
    return tqgguf.dequantize(tqgguf.quantize(x, name, importance), name, x.shape[1])


def relative_error(x, y):
    return float(((x - y) ** 2).sum() / (x**2).sum())


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("place", [0, 17, 255])
@pytest.mark.parametrize("value", [1.0, -0.03])
def test_one_nonzero_weight(name, place, value):
    x = np.zeros((1, 256), np.float32)
    x[0, place] = value
    if name == "Q1_0":
        pytest.skip("has no zero")
    y = round_trip(x, name)
    # scales that are 8-bit floats are coarse: powers of two in MXFP4
    tolerance = {"MXFP4": 0.17, "NVFP4": 0.1}.get(name, 0.01)
    assert y[0, place] == pytest.approx(value, rel=tolerance)
    y[0, place] = 0
    assert np.abs(y).max() <= abs(value) * 0.01  # IQ4's level nearest 0 is 1 of 127


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 1e-12])
def test_weights_too_small_for_float16_scales_become_small(name, size):
    x = np.random.default_rng(0).choice([-1, 1, 0.5], (2, 512)).astype(np.float32)
    x *= np.float32(size)
    y = round_trip(x, name)
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 2 * size + 1e-37


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("value", [1.0, -0.02, 300.0])
def test_constants(name, value):
    x = np.full((2, 256), value, np.float32)
    reference = relative_error(x, ggml.dequantize(ggml.quantize(x, name, np.ones(256)), name))
    # half a step of the coarsest scale of a group, 7 bits in Q6_K, squared
    assert relative_error(x, round_trip(x, name)) <= reference + (0.5 / 64) ** 2


@pytest.mark.parametrize("name", BLOCKS)
def test_a_row_of_one_block(name):
    x = np.random.default_rng(1).standard_normal((3, FORMATS[name].block_size), dtype=np.float32)
    alone = tqgguf.quantize(x[1:2], name)
    np.testing.assert_array_equal(tqgguf.quantize(x, name)[1:2], alone)


@pytest.mark.parametrize("name", BLOCKS)
def test_no_rows(name):
    data = tqgguf.quantize(np.zeros((0, 256), np.float32), name)
    assert data.shape == (0, 256 // FORMATS[name].block_size * FORMATS[name].type_size)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "Q3_K", "IQ4_XS"])
def test_the_largest_scale_float16_holds_works_and_the_next_does_not(name):
    x = np.random.default_rng(2).uniform(-1, 1, (1, 256)).astype(np.float32)
    x[0, ::8] = -1
    fmt = FORMATS[name]
    blocks = tqgguf.quantize(x, name).view(fmt.layout)
    scales = [
        blocks[field].astype(np.float32) for field in ("d", "dmin") if field in fmt.layout.names
    ]
    largest = np.float32(65504) / np.abs(scales).max()
    assert relative_error(x, round_trip(x * (largest * np.float32(0.98)), name) / largest) < 0.03
    with pytest.raises(WeightError, match=rf"^{name}: a block needs a scale of .* 65504"):
        tqgguf.quantize(x * (largest * np.float32(1.05)), name)


@pytest.mark.parametrize("name", BLOCKS)
def test_importance_of_zero_gives_a_column_up(name):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 512), dtype=np.float32)
    importance = np.ones(512, np.float32)
    importance[::7] = 0
    y = round_trip(x, name, importance)
    kept = importance > 0
    assert np.isfinite(y).all()
    assert relative_error(x[:, kept], y[:, kept]) <= relative_error(x, round_trip(x, name)) * 1.02


@pytest.mark.parametrize("name", BLOCKS)
def test_importance_of_zero_everywhere_is_no_importance(name):
    x = np.random.default_rng(4).standard_normal((2, 512), dtype=np.float32)
    zeros = tqgguf.quantize(x, name, np.zeros(512, np.float32))
    np.testing.assert_array_equal(zeros, tqgguf.quantize(x, name, np.ones(512, np.float32)))


@pytest.mark.parametrize("name", BLOCKS)
def test_only_ratios_of_importance_matter(name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 512), dtype=np.float32)
    importance = rng.exponential(1, 512).astype(np.float32)
    once = tqgguf.quantize(x, name, importance)
    np.testing.assert_array_equal(once, tqgguf.quantize(x, name, importance * np.float32(2**20)))


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_may_have_importance_of_their_own(name):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 512), dtype=np.float32)
    importance = np.repeat(rng.exponential(1, (2, 512)), [2, 1], axis=0).astype(np.float32)
    importance[2] = 0  # nothing is known of these
    apart = [tqgguf.quantize(x[i : i + 1], name, importance[i]) for i in range(3)]
    np.testing.assert_array_equal(tqgguf.quantize(x, name, importance), np.concatenate(apart))


@pytest.mark.parametrize("name", [name for name in BLOCKS if FORMATS[name].quick])
def test_quick_encoders_know_the_edges(name):
    size, rng = FORMATS[name].block_size, np.random.default_rng(8)
    x = rng.standard_normal((3, 5 * size), dtype=np.float32)
    x[1] = 0
    x[2, :size] = -1.5
    y = tqgguf.dequantize(quantize(x, name, quick=True), name, 5 * size)
    assert not y[1].any()
    np.testing.assert_allclose(y[2, :size], -1.5, rtol=0.01)
    for bad, fact in ((np.nan, "1 weights are NaN"), (1e30, f"{name} cannot hold a weight of 1e")):
        x[0, 7] = bad
        with pytest.raises(WeightError, match=fact):
            quantize(x, name, quick=True)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0"])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_ternary_weights_are_exact(name, share):
    rng = np.random.default_rng(9)
    x = rng.choice([-1, 1], (4, 512)) * (rng.random((4, 512)) < share) * np.float16(0.0371)
    x = x.astype(np.float32)
    importance = rng.exponential(1, 512).astype(np.float32)
    np.testing.assert_array_equal(round_trip(x, name), x)
    if name != "Q2_0":  # which has a level more
        np.testing.assert_array_equal(round_trip(x, name, importance), x)
