"""The lattice types, IQ2_* and IQ3_*, against ggml's encoders and gguf-py's decoder."""

from functools import cache
from pathlib import Path

import ggml
import numpy as np
import pytest
from gguf import GGUFReader

import tqgguf
from tqgguf.formats import FORMATS
from tqgguf.kernels.lattice import LatticeCodes, decode, nearest

LATTICES = [name for name, fmt in FORMATS.items() if fmt.lattice is not None]
MODEL = Path(__file__).parent.parent / "data" / "novels-5m-f16.gguf"


@cache
def tensors():
    return {tensor.name: np.float32(tensor.data) for tensor in GGUFReader(MODEL).tensors}


def normal_rows():
    return np.random.default_rng(0).standard_normal((6, 4096), dtype=np.float32)


def heavy_tailed_rows():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.02, (6, 4096))
    far = rng.random(x.shape) < 0.005
    x[far] = rng.choice([-1, 1], far.sum()) * rng.uniform(0.3, 0.7, far.sum())
    return x.astype(np.float32)


def real_rows():
    rows = [w for name, w in tensors().items() if name.startswith("blk.") and w.ndim == 2]
    return np.concatenate([w.reshape(-1, 256)[::61] for w in rows])


def real_importance():
    """What reaches the first attention: mean squares of every token's normed embedding."""
    e = tensors()["token_embd.weight"]
    normed = e / np.sqrt((e**2).mean(axis=1, keepdims=True)) * tensors()["blk.0.attn_norm.weight"]
    return (normed**2).mean(axis=0)


def error(x, data, name, weight=1.0):
    return float((weight * (ggml.dequantize(data, name) - x.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize("rows", [normal_rows, heavy_tailed_rows, real_rows])
@pytest.mark.parametrize("name", LATTICES)
def test_error_is_below_ggmls_with_an_imatrix_of_ones(name, rows):
    x = rows()
    theirs = ggml.quantize(x, name, np.ones(x.shape[1]))
    assert error(x, tqgguf.quantize(x, name), name) < 0.97 * error(x, theirs, name)


@pytest.mark.parametrize("name", LATTICES)
def test_weighted_error_is_below_ggmls_with_a_real_importance(name):
    x, weight = tensors()["blk.0.attn_q.weight"], real_importance()
    ours = error(x, tqgguf.quantize(x, name, weight), name, weight)
    assert ours < 0.97 * error(x, ggml.quantize(x, name, weight), name, weight)
    assert ours < error(x, tqgguf.quantize(x, name), name, weight)


@pytest.mark.parametrize("name", LATTICES)
def test_weighted_error_is_below_ggmls_where_half_the_columns_do_not_matter(name):
    x = normal_rows()
    weight = (np.random.default_rng(2).random(4096) < 0.5).astype(np.float32)
    theirs = ggml.quantize(x, name, weight)
    ours = tqgguf.quantize(x, name, weight)
    assert error(x, ours, name, weight) < 0.97 * error(x, theirs, name, weight)


@pytest.mark.parametrize("name", LATTICES)
def test_any_codes_and_scales_are_what_the_reader_sees(name):
    fmt, rng = FORMATS[name], np.random.default_rng(3)
    blocks = rng.integers(0, 256, (50, fmt.type_size), np.uint8).view(fmt.layout)[:, 0]
    blocks["d"] = rng.normal(0, 1, 50)
    signs = rng.integers(0, 256, (32, 50), np.uint8)
    if fmt.lattice.shared_signs:
        signs ^= (np.bitwise_count(signs) & 1) << 7
    points = rng.integers(0, len(fmt.lattice.points), (256 // fmt.lattice.k, 50), np.uint16)
    codes = LatticeCodes(points, signs)
    scales = fmt.scales(blocks)
    fmt.pack(blocks, codes)
    np.testing.assert_array_equal(fmt.scales(blocks), scales)
    seen = ggml.dequantize(blocks.view(np.uint8).reshape(50, -1), name).T
    np.testing.assert_array_equal(decode(codes, scales, fmt.lattice), seen)


@pytest.mark.parametrize("name", LATTICES)
def test_octets_coded_on_their_own_make_the_same_block(name):
    fmt, rng = FORMATS[name], np.random.default_rng(4)
    x = rng.standard_normal((256, 32), dtype=np.float32)
    weight = rng.exponential(1, x.shape).astype(np.float32)
    blocks = fmt.fit(x, weight)
    scales, per_scale = fmt.scales(blocks), fmt.lattice.size // 8
    octets = []
    for i in range(32):
        rows = slice(8 * i, 8 * i + 8)
        octets.append(nearest(x[rows], scales[[i // per_scale]], weight[rows], fmt.lattice))
    joined, whole = LatticeCodes.join(octets), fmt.codes(x, blocks, weight)
    np.testing.assert_array_equal(joined.points, whole.points)
    np.testing.assert_array_equal(joined.signs, whole.signs)


def one_nonzero():
    x = np.zeros((1, 512), np.float32)
    x[0, 300] = -3.0
    return x


def constants():
    return np.full((1, 512), 0.25, np.float32)


def one_block_of_large_weights():
    return normal_rows()[:1, :256] * np.float32(2e5)


@pytest.mark.parametrize("rows", [one_nonzero, constants, one_block_of_large_weights])
@pytest.mark.parametrize("name", LATTICES)
def test_odd_blocks_are_no_worse_than_ggmls(name, rows):
    x = rows()
    theirs = ggml.quantize(x, name, np.ones(x.shape[1]))
    assert error(x, tqgguf.quantize(x, name), name) <= error(x, theirs, name)


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("size", [1e-6, 1e-20, 1e-42])
def test_tiny_weights_stay_tiny(name, size):
    x = normal_rows()[:1] * np.float32(size)
    decoded = tqgguf.dequantize(tqgguf.quantize(x, name), name, 4096)
    assert np.abs(decoded).max() <= 2 * np.abs(x).max() + 1e-7


@pytest.mark.parametrize("name", LATTICES)
def test_bytes_do_not_depend_on_the_memory_layout(name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((256, 2048), dtype=np.float32)
    weight = rng.exponential(1, x.shape).astype(np.float32)
    blocks = FORMATS[name].encode(x, weight)
    turned = FORMATS[name].encode(np.asfortranarray(x), np.asfortranarray(weight))
    np.testing.assert_array_equal(turned, blocks)
