"""TurboQuantMSE and TurboQuantProd against the paper's theorems."""

import math

import numpy as np
import pytest

from tests.clock import effort
from tests.turboquant.vectors import unit_vectors
from tqgguf.errors import ShapeError, WeightError
from tqgguf.turboquant import TurboQuantMSE, TurboQuantProd, gaussian_codebook, sphere_codebook

KINDS = ("hadamard", "dense")
SKETCHES = ("gaussian", "rademacher")


def squared_error(quantizer, x):
    return np.sum((x - quantizer.decompress(quantizer.compress(x))) ** 2, axis=1, dtype=np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_d_mse_on_unit_vectors_is_the_codebooks(bits, kind):
    errors = squared_error(TurboQuantMSE(256, bits, rotation=kind), unit_vectors(20_000, 256, 1))
    stderr = errors.std() / math.sqrt(len(errors))
    assert abs(errors.mean() - 256 * sphere_codebook(bits, 256).mse) < 4 * stderr
    gaussian = gaussian_codebook(bits).mse  # at 4 bits the exact law lies 0.97 % below it
    assert abs(errors.mean() - gaussian) < 0.01 * gaussian + 4 * stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_rotation_brings_sparse_vectors_to_the_same_error(kind):
    """The promise holds for every vector, in expectation over the rotation."""
    x = np.zeros((2, 64), np.float32)
    x[0, 5], x[1, [3, 40]] = 1, math.sqrt(0.5)
    errors = [squared_error(TurboQuantMSE(64, 2, seed=s, rotation=kind), x) for s in range(150)]
    assert np.mean(errors) == pytest.approx(64 * sphere_codebook(2, 64).mse, rel=0.06)


def test_the_norm_is_stored():
    x = unit_vectors(50, 64, 2)
    scales = np.float32(10.0) ** np.linspace(-6, 6, 50, dtype=np.float32)[:, None]
    quantizer = TurboQuantMSE(64, 4)
    scaled = quantizer.decompress(quantizer.compress(x * scales)) / scales
    np.testing.assert_allclose(scaled, quantizer.decompress(quantizer.compress(x)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_prod_is_unbiased_over_100_000_pairs(bits, sketch):
    mean, stderr = bias(TurboQuantProd(64, bits, seed=bits, sketch=sketch))
    assert abs(mean) < 3 * stderr


@pytest.mark.slow
def test_mse_codes_shrink_inner_products():
    mean, stderr = bias(TurboQuantMSE(64, 3))
    assert mean < -10 * stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["magnitudes of S q", "no residual norm"])
def test_the_circulating_estimators_are_biased(fault):
    """What copies of the algorithm do: |S q| in place of S q, or no |r| before the sketch."""
    quantizer = TurboQuantProd(64, 3)
    x, y = unit_vectors(40_000, 64, 3), unit_vectors(40_000, 64, 4)
    compressed = quantizer.compress(x)
    sketch, scales = quantizer._sketch(compressed)
    projected = quantizer.base.rotate.forward(y) @ quantizer.projection
    if fault == "magnitudes of S q":
        projected = np.abs(projected)
    else:
        scales = scales / compressed.residual_norms
    base = quantizer.base.decompress(compressed)
    estimate = np.sum(base * y, axis=1) + np.sum(projected * sketch, axis=1) * scales
    true = np.sum(x * y, axis=1)
    errors = ((estimate - true) * np.sign(true)).astype(np.float64)
    assert abs(errors.mean()) > 10 * errors.std() / math.sqrt(len(errors))


def bias(quantizer):
    """Mean error and its standard error, signed by the true product: shrinking it is a bias."""
    x, y = unit_vectors(100_000, 64, 3), unit_vectors(100_000, 64, 4)
    true = np.sum(x * y, axis=1, dtype=np.float64)
    estimate = np.sum(quantizer.decompress(quantizer.compress(x)) * y, axis=1, dtype=np.float64)
    errors = (estimate - true) * np.sign(true)
    return errors.mean(), errors.std() / math.sqrt(len(errors))


@pytest.mark.slow
@pytest.mark.parametrize("sketch", SKETCHES)
def test_prod_is_unbiased_for_one_pair_over_many_seeds(sketch):
    """The theorem itself: the expectation is over the randomness of the quantizer."""
    x, noise = unit_vectors(1, 64, 5), unit_vectors(1, 64, 6)
    y = (x + noise) / np.linalg.norm(x + noise)
    quantizers = (TurboQuantProd(64, 2, seed=s, sketch=sketch) for s in range(2000))
    errors = [float(q.inner_product(y, q.compress(x))[0, 0] - (x @ y.T)[0, 0]) for q in quantizers]
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(len(errors))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "expected"), [(1, math.pi / 2), (2, 0.571), (3, 0.1845), (4, 0.0543)]
)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_d_prod_is_half_pi_times_the_error_at_one_bit_less(bits, expected, sketch):
    x, y = unit_vectors(20_000, 256, 7), unit_vectors(20_000, 256, 8)
    quantizer = TurboQuantProd(256, bits, sketch=sketch)
    errors = np.sum((quantizer.decompress(quantizer.compress(x)) - x) * y, axis=1, dtype=np.float64)
    assert 256 * np.mean(errors**2) == pytest.approx(expected, rel=0.05)
    assert expected == pytest.approx(math.pi / 2 * gaussian_codebook(bits - 1).mse, rel=2e-3)


@pytest.mark.slow
def test_prod_vectors_are_half_pi_as_far_as_its_base():
    """Up to 1/dim, and on average over the sketch: one S moves the ratio by 1.7 %."""
    x = unit_vectors(1000, 128, 9)
    quantizers = [TurboQuantProd(128, 3, seed=s) for s in range(12)]
    far = np.mean([squared_error(q, x) for q in quantizers])
    base = np.mean([squared_error(q.base, x) for q in quantizers])
    assert far / base == pytest.approx(math.pi / 2 - 1 / 128, rel=0.02)


@pytest.mark.parametrize("make", [TurboQuantMSE, TurboQuantProd])
@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_those_with_the_decompressed_vectors(make, kind):
    quantizer = make(32, 3, rotation=kind)
    x, y = 5 * unit_vectors(40, 32, 10), unit_vectors(6, 32, 11)
    compressed = quantizer.compress(x)
    products = quantizer.inner_product(y, compressed)
    np.testing.assert_allclose(products, y @ quantizer.decompress(compressed).T, atol=1e-5)
    np.testing.assert_allclose(quantizer.inner_product(y[2], compressed), products[2], atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_sizes_are_those_of_the_arrays(bits):
    x = unit_vectors(10, 128, 12)
    for quantizer, expected in (
        (TurboQuantMSE(128, bits), 16 * bits + 4),
        (TurboQuantProd(128, bits), 16 * bits + 8),
    ):
        assert quantizer.bytes_per_vector == expected
        assert quantizer.compress(x).nbytes == 10 * expected
    assert TurboQuantMSE(128, 3).compression_ratio() == pytest.approx(512 / 52)
    assert TurboQuantMSE(128, 3).compression_ratio(bytes_per_number=2) == pytest.approx(256 / 52)


@pytest.mark.parametrize("make", [TurboQuantMSE, TurboQuantProd])
def test_zero_vectors_stay_zero_and_one_vector_is_a_batch_of_one(make):
    quantizer = make(16, 3)
    assert (quantizer.decompress(quantizer.compress(np.zeros((2, 16), np.float32))) == 0).all()
    assert len(quantizer.compress(np.ones(16, np.float32))) == 1
    assert quantizer.decompress(quantizer.compress(np.ones((0, 16), np.float32))).shape == (0, 16)


@pytest.mark.slow
def test_65_536_vectors_compress_without_delay():
    x = unit_vectors(65_536, 128, 13)
    quantizer = TurboQuantMSE(128, 3)
    quantizer.compress(x[:256])
    assert min(effort(lambda: quantizer.compress(x)) for _ in range(3)) < 30


@pytest.mark.parametrize("make", [TurboQuantMSE, TurboQuantProd])
def test_what_does_not_fit_is_refused_in_one_line(make):
    quantizer = make(64, 2)
    with pytest.raises(ShapeError, match=r"vectors of shape \(3, 65\): expected \(n, 64\)"):
        quantizer.compress(np.ones((3, 65), np.float32))
    bad = np.ones((3, 64), np.float32)
    bad[1, 1], bad[2, 2] = np.nan, np.inf
    with pytest.raises(WeightError, match="2 of 3 vectors have NaN, infinite"):
        quantizer.compress(bad)
    with pytest.raises(ShapeError, match="dim 65"):
        make(65, 2)


def test_prod_needs_a_bit_for_the_sketch():
    with pytest.raises(ShapeError, match="bits 0: the sketch alone takes 1 bit"):
        TurboQuantProd(64, 0)
    quantizer = TurboQuantProd(64, 2)
    x = unit_vectors(2, 64, 0)
    with pytest.raises(ValueError, match="without a sketch"):
        quantizer.inner_product(x, TurboQuantMSE(64, 1).compress(x))
