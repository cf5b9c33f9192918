"""What every format owes its callers."""

import ggml
import numpy as np
import pytest

import tqgguf
from tqgguf.errors import PlanError, ShapeError, WeightError
from tqgguf.formats import FORMATS, ScalarFormat
from tqgguf.formats._tensor import quantize_rows

SCALAR = [name for name, fmt in FORMATS.items() if isinstance(fmt, ScalarFormat)]
BLOCKS = [name for name, fmt in FORMATS.items() if fmt.block_size > 1]
HALF = [n for n in FORMATS if "<f2" in [FORMATS[n].layout[f].str for f in FORMATS[n].layout.names]]


def normal(rows, cols, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, cols), dtype=np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_is_ggmls(name):
    x = normal(3, 512)
    data = tqgguf.quantize(x, name)
    assert data.shape == (3, 512 // FORMATS[name].block_size * FORMATS[name].type_size)
    expected = ggml.dequantize(data, name)
    np.testing.assert_array_equal(tqgguf.dequantize(data, name, 512), expected)


@pytest.mark.parametrize("name", SCALAR)
def test_the_reader_sees_step_times_level_plus_offset(name):
    fmt = FORMATS[name]
    x = normal(fmt.block_size, 40, seed=1)
    blocks = fmt.fit(x, None)
    step, offset = fmt.grid(blocks)
    codes = fmt.codes(x, blocks)
    fmt.pack(blocks, codes)
    group = np.arange(fmt.block_size) // fmt.group_size
    ours = step[group] * fmt.levels[codes] + offset[group]
    theirs = ggml.dequantize(blocks.view(np.uint8).reshape(40, -1), name).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCALAR)
def test_codes_are_the_nearest(name):
    fmt = FORMATS[name]
    x = normal(fmt.block_size, 8, seed=2)
    blocks = fmt.fit(x, None)
    step, offset = fmt.grid(blocks)
    group = np.arange(fmt.block_size) // fmt.group_size
    grid = step[group][..., None] * fmt.levels + offset[group][..., None]
    distance = np.abs(grid - x[..., None])
    chosen = np.take_along_axis(distance, fmt.codes(x, blocks)[..., None].astype(int), -1)[..., 0]
    assert (chosen <= distance.min(axis=-1) + 1e-6).all()


@pytest.mark.slow
@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("importance", [None, "real"])
def test_bytes_do_not_depend_on_threads_or_chunks(name, importance):
    x = normal(9, 512, seed=3)
    weight = None if importance is None else normal(1, 512, seed=4)[0] ** 2
    expected = quantize_rows(FORMATS[name], x, weight, threads=1)
    for threads, chunk in [(2, 1 << 16), (1, 256), (1, 768), (3, 1280)]:
        got = quantize_rows(FORMATS[name], x, weight, threads=threads, chunk=chunk)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zero(name):
    x = np.zeros((2, 256), np.float32)
    assert not tqgguf.dequantize(tqgguf.quantize(x, name), name, 256).any()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_row_that_is_no_multiple_is_refused(name):
    fact = f"{name} packs {FORMATS[name].block_size} weights per block, but the row length is 100"
    with pytest.raises(ShapeError, match=fact):
        tqgguf.quantize(normal(2, 100), name)


@pytest.mark.parametrize("name", FORMATS)
def test_nan_and_inf_are_counted(name):
    x = normal(2, 512)
    x[0, 3], x[1, 5], x[1, 6] = np.nan, np.inf, -np.inf
    with pytest.raises(WeightError, match="1 weights are NaN and 2 are infinite"):
        tqgguf.quantize(x, name)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("size", [1e12, 1e30, 3e38])
def test_scales_beyond_float16_are_refused(name, size):
    x = normal(2, 512)
    x[1, 7] = size
    with pytest.raises(WeightError, match=r"(beyond|end at|ends at) 65504"):
        tqgguf.quantize(x, name)


@pytest.mark.parametrize(
    ("importance", "error", "fact"),
    [
        (np.full(256, -1.0), WeightError, "256 columns are negative"),
        (np.full(256, np.nan), WeightError, "256 columns are NaN"),
        (np.ones(255), ShapeError, "but the rows have 256 columns"),
    ],
)
def test_bad_importance_is_refused(importance, error, fact):
    with pytest.raises(error, match=fact):
        tqgguf.quantize(normal(2, 256), "Q4_K", importance)


def test_an_unknown_type_names_the_choices():
    with pytest.raises(PlanError, match=r"no tensor type 'Q9_9'; choose from .*Q4_K"):
        tqgguf.quantize(normal(1, 256), "Q9_9")
