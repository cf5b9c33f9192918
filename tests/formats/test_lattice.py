"""The lattice types, IQ2_* and IQ3_*, against ggml's encoders and gguf-py's decoder."""

import ggml
import numpy as np
import pytest
from formats import weights

import tqgguf
from tqgguf.formats import FORMATS, LatticeFormat
from tqgguf.kernels.lattice import LatticeCodes
from tqgguf.kernels.ternary_lattice import TernaryGrid

LATTICES = [name for name, fmt in FORMATS.items() if isinstance(fmt, LatticeFormat)]


def normal_rows():
    return np.random.default_rng(0).standard_normal((6, 4096), dtype=np.float32)


def error(x, data, name, weight=1.0):
    return float((weight * (ggml.dequantize(data, name) - x.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize("name", weights.encoded_by_ggml(LATTICES))
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
    fmt.write_d(blocks, rng.uniform(0.1, 1, 50).astype(np.float16))
    points = rng.integers(0, len(fmt.lattice.points), (256 // fmt.lattice.k, 50), np.uint16)
    codes = LatticeCodes(*allowed(points, rng.integers(0, 256, (32, 50), np.uint8), fmt, blocks))
    scales = fmt.scales(blocks)
    fmt.pack(blocks, codes)
    np.testing.assert_array_equal(fmt.scales(blocks), scales)
    seen = ggml.dequantize(blocks.view(np.uint8).reshape(50, -1), name).T
    np.testing.assert_array_equal(fmt.lattice.decode(codes, scales), seen)


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
        octets.append(fmt.lattice.nearest(x[rows], scales[[i // per_scale]], weight[rows]))
    joined, whole = LatticeCodes.join(octets), fmt.codes(x, blocks, weight)
    np.testing.assert_array_equal(joined.points, whole.points)
    np.testing.assert_array_equal(joined.signs, whole.signs)


def allowed(points, signs, fmt, blocks):
    """The nearest codes that the type can store: signs of even parity, or shifts of whole runs."""
    if isinstance(fmt.lattice, TernaryGrid):
        if fmt.lattice.shared_shift:
            shift = np.repeat(fmt.multiples(blocks) < 0, 4, axis=0)
            points = points % 2048 + 2048 * shift.astype(np.uint16)
        return points, np.zeros_like(signs)
    odd = np.bitwise_count(signs) & 1 if fmt.lattice.shared_signs else np.uint8(0)
    return points, signs ^ odd << 7


def one_nonzero():
    x = np.zeros((1, 512), np.float32)
    x[0, 300] = -3.0
    return x


def constants():
    return np.full((1, 512), 0.25, np.float32)


def one_block_of_large_weights():
    return normal_rows()[:1, :256] * np.float32(2e5)


@pytest.mark.parametrize("rows", [one_nonzero, constants, one_block_of_large_weights])
@pytest.mark.parametrize("name", weights.encoded_by_ggml(LATTICES))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LATTICES)
def test_bytes_do_not_depend_on_the_memory_layout(name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((256, 2048), dtype=np.float32)
    weight = rng.exponential(1, x.shape).astype(np.float32)
    blocks = FORMATS[name].encode(x, weight)
    turned = FORMATS[name].encode(np.asfortranarray(x), np.asfortranarray(weight))
    np.testing.assert_array_equal(turned, blocks)
