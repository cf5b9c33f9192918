"""The synthetic benchmark against the issue's figures and against its formula in float64."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

from tqgguf.errors import PlanError
from tqgguf.formats import quantize
from tqgguf.kernels import hadamard
from tqgguf.measure import synthetic
from tqgguf.turboquant import gaussian_codebook


@pytest.fixture(scope="module")
def weights():
    return synthetic.make_weights(seed=0)


@pytest.fixture(scope="module")
def rows(weights):
    return {
        r.format: r
        for r in synthetic.measure_synthetic(weights, types=["Q4_0", "q2_k"], gguf_rows=128)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mse"),
    [
        ("Q4", 4.56e-5),
        ("TQ-Q4", 1.00e-5),
        ("Q3", 7.4e-5),
        ("TQ-Q3", 5.5e-5),
        ("Q2", 2.1e-4),
        ("TQ-Q2", 5.4e-4),
    ],
)
def test_the_plain_format_has_the_published_errors(rows, name, mse):
    assert rows[name].mse == pytest.approx(mse, rel=0.02)


def test_rows_come_in_pairs_with_their_bits(rows):
    assert list(rows) == [
        *("Q4", "TQ-Q4", "Q3", "TQ-Q3", "Q2", "TQ-Q2"),
        *("Q4_0", "TQ-Q4_0", "Q2_K", "TQ-Q2_K"),
    ]
    assert [rows[n].bpw for n in ("Q4", "TQ-Q3", "Q2", "Q4_0", "Q2_K")] == [5, 4, 3, 4.5, 2.625]
    assert rows["Q4"].speed_hint == pytest.approx(4.625 / 5)
    assert rows["Q4"].gain is None
    assert rows["TQ-Q4"].gain == pytest.approx(rows["Q4"].mse / rows["TQ-Q4"].mse)


def test_the_verdicts_are_against_the_unrotated_four_bit_format(rows):
    for name, row in rows.items():
        baseline = rows["Q4_0" if "_" in name else "Q4"]
        assert row.verdict.startswith("matches" if row.mse <= baseline.mse else "exceeds")
    assert rows["TQ-Q4"].verdict == "matches baseline-Q4 quality"
    assert rows["TQ-Q2"].verdict == "exceeds baseline-Q4 error"


def dense_rotation(n_in):
    return np.kron(np.eye(n_in // 128), hadamard.matrix(128).astype(np.float64))


def rounded(x, bits):
    """The script's formula, one block after the other."""
    levels = (1 << bits) - 1
    half = levels // 2
    out = np.empty_like(x)
    for start in range(0, x.shape[1], 32):
        block = x[:, start : start + 32]
        d = np.abs(block).max(axis=1, keepdims=True) / half
        d = np.where(d == 0, 1, d)
        out[:, start : start + 32] = (np.clip(np.round(block / d) + half, 0, levels) - half) * d
    return out


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_plain_row_is_the_scripts_formula(weights, bits, rotated):
    part = weights[:64]
    found = synthetic.measure_synthetic(part, types=[], gguf_rows=1)
    row = next(r for r in found if r.format == f"{'TQ-' if rotated else ''}Q{bits}")
    x, q = part.astype(np.float64), dense_rotation(part.shape[1])
    error = rounded(x @ q, bits) @ q - x if rotated else rounded(x, bits) - x
    assert row.mse == pytest.approx(np.mean(error**2), rel=1e-4)
    assert row.rel_mse == pytest.approx(np.sum(error**2) / np.sum(x**2), rel=1e-4)
    assert row.max_abs_err == pytest.approx(np.abs(error).max(), rel=1e-4)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_gguf_row_is_the_readers_error_in_the_original_frame(weights, rows, rotated):
    x, q = weights[:128], dense_rotation(weights.shape[1]).astype(np.float32)
    turned = hadamard.apply(x, order=128) if rotated else x
    data = quantize(turned, "Q2_K")
    decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q2_K)
    error = (decoded @ q if rotated else decoded) - x
    row = rows["TQ-Q2_K" if rotated else "Q2_K"]
    assert row.mse == pytest.approx(np.mean(error.astype(np.float64) ** 2), rel=1e-4)
    assert row.max_abs_err == pytest.approx(np.abs(error).max(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("two_blas_threads")
def test_the_seed_decides_and_the_threads_do_not(weights):
    assert (weights[:640] == synthetic.make_weights(seed=0, threads=1)[:640]).all()
    assert np.any(weights[:64] != synthetic.make_weights(seed=1)[:64])
    assert synthetic.measure_synthetic(
        weights[:128], types=["Q4_0"], threads=1
    ) == synthetic.measure_synthetic(weights[:128], types=["Q4_0"], threads=2)


def test_the_histograms_show_the_tails_before_and_not_after(weights):
    before, after = synthetic.histograms(weights, limit=20, bins=40)  # one bin a deviation
    assert before.sum() == after.sum() == synthetic.GGUF_ROWS * synthetic.SIZE
    assert before[:10].sum() > 1000  # beyond ten deviations
    assert after[:10].sum() == 0


def test_an_unknown_type_is_refused():
    with pytest.raises(PlanError, match="Q9"):
        synthetic.measure_synthetic(np.zeros((1, 256), np.float32), types=["Q9"])


@pytest.mark.slow
def test_the_pages_figures_are_what_the_command_prints(weights):
    """Better encoders may move them by 5 % before the page must follow."""
    page = (Path(__file__).parents[2] / "docs" / "measure.md").read_text()
    table = re.findall(
        r"^\| (\w+) \| ([\d.]+) \| ([\d.e-]+) \| ([\d.e-]+) \| ([\d.]+)x \|$", page, re.M
    )
    rows = {
        r.format: r
        for r in synthetic.measure_synthetic(weights, types=[name for name, *_ in table])
    }
    assert len(table) == 4
    for name, bpw, mse, rotated, gain in table:
        assert rows[name].bpw == float(bpw)
        assert rows[name].mse == pytest.approx(float(mse), rel=0.05)
        assert rows[f"TQ-{name}"].mse == pytest.approx(float(rotated), rel=0.05)
        assert rows[f"TQ-{name}"].gain == pytest.approx(float(gain), rel=0.05)


def test_a_private_type_would_gain_nothing():
    """Lloyd-Max codes of 4 bits with the best float16 scale per 32 weights, against Q4_K."""
    x = np.random.default_rng(0).standard_normal((128, 4096)).astype(np.float32)
    groups, book = x.reshape(-1, 32), gaussian_codebook(4)
    largest = np.abs(groups).max(axis=1, keepdims=True) / np.float32(book.levels[-1])
    best = np.full(len(groups), np.inf)
    for candidate in np.linspace(0.7, 1.2, 21, dtype=np.float32):
        scale = largest * candidate
        for _ in range(2):  # codes for a scale, then the best scale for the codes
            levels = book.decode(book.encode(groups / scale))
            scale = np.sum(groups * levels, axis=1, keepdims=True) / np.sum(
                levels**2, axis=1, keepdims=True
            )
        scale = scale.astype(np.float16).astype(np.float32)
        errors = book.decode(book.encode(groups / scale)) * scale - groups
        best = np.minimum(best, np.sum(errors**2, axis=1))
    assert best.sum() / x.size == pytest.approx(0.0058, abs=0.0001)
    assert np.mean((synthetic.round_trip(x, "Q4_K") - x) ** 2) < 0.0050
