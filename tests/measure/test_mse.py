"""`report mse MODEL`: every number recomputed from the definitions, and honest sampling."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.measure.models import head_rotation, model, residual_rotation
from tqgguf.errors import PlanError, WeightError
from tqgguf.formats import quantize
from tqgguf.kernels import hadamard
from tqgguf.measure import gains, matrix, mse
from tqgguf.models import Model, open_model
from tqgguf.models.metadata import encode
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan

HEADS = {"llama.attention.head_count": encode(8)}


def report(of, **options):
    rotation, _ = mse.studied_rotation(of)
    return {r.name: r for r in mse.measure_weights(of, rotation, **options)}


@pytest.fixture(scope="module")
def shallow_model(shallow):
    return open_model(shallow)


@pytest.fixture(scope="module")
def shallow_report(shallow_model):
    return report(shallow_model, types=["Q4_K", "Q2_K"])


def reader_error(x, type):
    """What gguf reads, as a fraction of the energy; and the mean square."""
    data = quantize(x.astype(np.float32), type)
    error = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type]) - x
    return np.sum(error**2) / np.sum(x**2), np.mean(error**2)


def kurtosis(x):
    return np.mean((x - x.mean()) ** 4) / np.var(x) ** 2


def folded(of, name):
    """The dense definition of the fold for three kinds of matrices."""
    w = of.tensors["token_embd.weight" if name == "output.weight" else name].read()
    w, q, heads = w.astype(np.float64), residual_rotation(256), head_rotation(w.shape[0], 64)
    if name == "token_embd.weight":
        return w @ q
    if name == "output.weight":
        return w * of.tensors["output_norm.weight"].read() @ q
    if name.endswith("ffn_down.weight"):
        return q.T @ w
    return heads @ (w * of.tensors["blk.1.attn_norm.weight"].read() @ q)  # attn_v


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["token_embd.weight", "output.weight", "blk.1.ffn_down.weight", "blk.1.attn_v.weight"],
)
def test_every_number_is_that_of_the_dense_fold(shallow_model, shallow_report, name):
    found = shallow_report[name]
    plain = shallow_model.tensors.get(name, shallow_model.tensors["token_embd.weight"]).read()
    plain, rotated = plain.astype(np.float64), folded(shallow_model, name)
    assert found.sampled == found.size == plain.size
    assert found.kurtosis == pytest.approx(kurtosis(plain), rel=1e-6)
    assert found.kurtosis_rotated == pytest.approx(kurtosis(rotated), rel=1e-4)
    for type, errors in found.types.items():
        rel, mse = reader_error(plain, type)
        rel_rotated, mse_rotated = reader_error(rotated, type)
        assert errors.rel_mse == pytest.approx(rel, rel=1e-4)
        assert errors.mse == pytest.approx(mse, rel=1e-4)
        assert errors.rel_mse_rotated == pytest.approx(rel_rotated, rel=2e-3)
        assert errors.mse_rotated == pytest.approx(mse_rotated, rel=2e-3)
        assert errors.gain == errors.rel_mse / errors.rel_mse_rotated
        limit = 10 * np.log10(errors.rel_mse * 4**errors.bpw)
        assert errors.gap_db == pytest.approx(limit)
        assert errors.standard_error == 0


def test_every_matrix_is_there_and_the_untied_head_too(shallow_model, shallow_report):
    matrices = {t.name for t in shallow_model.tensors.values() if len(t.shape) == 2}
    assert set(shallow_report) == matrices | {"output.weight"}


def test_totals_are_means_over_weights_and_count_the_matrices(shallow_report):
    reports = list(shallow_report.values())
    total = {t.type: t for t in gains.totals(reports)}["Q2_K"]
    sizes = [r.size for r in reports]
    mean = np.average([r.types["Q2_K"].rel_mse_rotated for r in reports], weights=sizes)
    gained = [r.types["Q2_K"].gain for r in reports]
    assert total.rel_mse_rotated == pytest.approx(mean)
    assert (total.lowered, total.rotated) == (sum(g > 1 for g in gained), 16)
    assert total.median_gain == pytest.approx(np.median(gained))
    expected = f"lowers the error of {total.lowered} of 16 matrices, median gain "
    assert expected in total.verdict


def test_the_most_important_comes_first(shallow_report):
    found = gains.by_importance(list(shallow_report.values()))
    importance = [r.types["Q4_K"].rel_mse_rotated * r.size for r in found]
    assert importance == sorted(importance, reverse=True)


@pytest.mark.parametrize(
    ("rotated", "ending"),
    [
        (0.06, "in total it raises it 1.20x: use --rotate none"),
        (0.0501, "in total it makes no difference"),
        (0.025, "in total it lowers it 2.00x"),
    ],
)
def test_the_verdict_says_what_to_do(rotated, ending):
    total = gains.TypeTotal("Q2_K", 2.625, 1.0, 1.0, 0.05, rotated, 1, 3, 0.9)
    assert total.verdict == (
        f"Q2_K: rotation lowers the error of 1 of 3 matrices, median gain 0.90x; {ending}"
    )
    assert replace(total, rotated=0).verdict == "Q2_K: no matrix is rotated"


@pytest.mark.parametrize(
    ("rotated", "ending"),
    [
        (0.6, "at the outputs it raises it 1.20x: use --rotate auto"),
        (0.501, "at the outputs it makes no difference"),
        (0.25, "at the outputs it lowers it 2.00x"),
    ],
)
def test_where_the_outputs_are_known_the_verdict_is_about_them(rotated, ending):
    total = gains.TypeTotal("Q2_K", 2.625, 1.0, 1.0, 0.05, 0.01, 1, 3, 0.9, 0.5, rotated)
    assert total.verdict.endswith(f"median gain 0.90x; {ending}")


@pytest.mark.slow
@pytest.mark.parametrize("sample_rows", [None, 512])
def test_errors_of_outputs_are_those_of_weights_times_energies(shallow_model, sample_rows):
    name, rng = "blk.1.attn_v.weight", np.random.default_rng(3)
    known = np.exp(rng.normal(0, 2, (1, 256))).astype(np.float32)
    one = Model(
        shallow_model.path,
        shallow_model.metadata,
        {n: t for n, t in shallow_model.tensors.items() if "blk.1." in n or "embd" in n},
    )
    norm = shallow_model.tensors["blk.1.attn_norm.weight"].read().astype(np.float64)
    known /= 2 * (known[0] / norm**2).mean()  # as a norm leaves them: a mean square up to 1
    energies = {name: known}.get
    rotation, _ = mse.studied_rotation(one, energies=energies)
    found = {
        r.name: r.types["Q4_0"]
        for r in mse.measure_weights(
            one, rotation, types=["Q4_0"], energies=energies, sample_rows=sample_rows
        )
    }
    x = one.tensors[name].read()
    turned = rotation.apply(name, x, shape=x.shape)
    power = np.square(x, dtype=np.float64) @ known[0]
    stored = np.full(256, 0.5)
    for values, weights, error in (
        (x, known[0], found[name].rel_output),
        (turned, stored, found[name].rel_output_rotated),
    ):
        rounded = gguf.quants.dequantize(quantize(values, "Q4_0"), gguf.GGMLQuantizationType.Q4_0)
        expected = np.square(rounded - values, dtype=np.float64) @ weights
        assert error == pytest.approx(expected.sum() / power.sum(), rel=1e-3)
    unknown = found["blk.1.ffn_down.weight"]
    assert unknown.rel_output == pytest.approx(unknown.rel_mse)


def heavy(rng, shape, outlier=30):
    x = rng.standard_normal(shape).astype(np.float32)
    x *= np.exp(rng.standard_normal((shape[0], 1)) / 2).astype(np.float32)
    x[:, 7] *= outlier
    return x


def test_a_model_without_a_fold_is_rotated_matrix_by_matrix_and_says_why():
    w = heavy(np.random.default_rng(0), (96, 384))
    of = model({"blk.0.proj.weight": w, "blk.0.odd.weight": w[:, :96]}, architecture="mamba")
    rotation, sentence = mse.studied_rotation(of)
    assert (rotation.mode, rotation.block) == ("tensor", 128)
    assert "each matrix rotated alone, in blocks of 128" in sentence
    assert "no fold is known for architecture 'mamba'" in sentence
    found = report(of, types=["Q4_0"])
    turned = hadamard.apply(w, order=128)
    first = found["blk.0.proj.weight"].types["Q4_0"]
    assert first.rel_mse_rotated == pytest.approx(reader_error(turned, "Q4_0")[0], rel=2e-3)
    assert first.gain > 1.5  # an outlier channel is what rotation is for
    unrotated = found["blk.0.odd.weight"]
    assert unrotated.rotation == ""
    assert unrotated.types["Q4_0"].gain == 1
    (total,) = gains.totals(list(found.values()))
    assert (total.lowered, total.rotated) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "outlier"), [("unknown", 30), ("llama", 2)])
def test_the_default_sample_is_as_accurate_as_it_says(architecture, outlier):
    """Rows for a matrix rotated on its input, strips of columns where rows are mixed too."""
    rng = np.random.default_rng(1)
    arrays = {
        "token_embd.weight": rng.standard_normal((2, 512)),
        "blk.0.ffn_down.weight": heavy(rng, (512, 8192), outlier),
    }
    of = model(arrays, architecture=architecture, metadata=HEADS)
    found = report(of, types=["Q4_0"])["blk.0.ffn_down.weight"]
    whole = report(of, types=["Q4_0"], sample_rows=512)["blk.0.ffn_down.weight"]
    assert whole.sampled == whole.size
    errors, exact = found.types["Q4_0"], whole.types["Q4_0"]
    assert exact.standard_error == 0
    assert 0 < errors.standard_error <= matrix.ACCURACY
    for basis in ("rel_mse", "rel_mse_rotated", "mse", "mse_rotated"):
        expected = pytest.approx(getattr(exact, basis), rel=4 * errors.standard_error)
        assert getattr(errors, basis) == expected
    assert found.kurtosis == pytest.approx(whole.kurtosis)


def test_where_tiles_differ_too_much_all_are_quantized():
    """One strip of 128 columns of 4096 holds an outlier channel with most of the energy."""
    rng = np.random.default_rng(1)
    arrays = {
        "token_embd.weight": rng.standard_normal((2, 512)),
        "blk.0.ffn_down.weight": heavy(rng, (512, 4096), 200),
    }
    of = model(arrays, architecture="llama", metadata=HEADS)
    found = report(of, types=["Q4_0"])["blk.0.ffn_down.weight"].types["Q4_0"]
    whole = report(of, types=["Q4_0"], sample_rows=512)["blk.0.ffn_down.weight"].types["Q4_0"]
    assert found.standard_error == 0
    assert found.rel_mse == pytest.approx(whole.rel_mse)
    assert found.rel_mse_rotated == pytest.approx(whole.rel_mse_rotated)


def test_the_standard_error_is_that_of_repeated_draws():
    """The estimator itself: errors drawn in proportion to energy, over many seeds."""
    rng = np.random.default_rng(3)
    energies = np.exp(2 * rng.standard_normal((200, 1)))
    errors = energies[..., None] * rng.uniform(0.5, 1.5, (200, 1, 1))
    chance = matrix._chances(energies)

    def estimates():
        drawn = rng.choice(200, 40, p=chance)
        return errors[drawn] / chance[drawn, None, None]

    samples = [estimates() for _ in range(1500)]
    means = np.array([s.mean(axis=0) for s in samples])
    np.testing.assert_allclose(means.mean(axis=0), errors.sum(axis=0), rtol=0.02)
    promised = np.mean([matrix._spread(s) for s in samples])
    assert promised == pytest.approx(means.std() / means.mean(), rel=0.06)


def test_sample_rows_is_what_is_read():
    of = model({"blk.0.proj.weight": np.random.default_rng(2).standard_normal((4096, 256))})
    found = report(of, types=["Q4_0"], sample_rows=300)["blk.0.proj.weight"]
    assert found.sampled == 512 * 256  # two tiles of 256 rows
    assert found.types["Q4_0"].standard_error > 0


@pytest.mark.usefixtures("two_blas_threads")
def test_the_threads_change_nothing(shallow_model):
    of, (rotation, _) = shallow_model, mse.studied_rotation(shallow_model)
    one, two = (next(mse.measure_weights(of, rotation, types=["Q4_0"], threads=n)) for n in (1, 2))
    assert one.types == two.types
    assert (one.histogram_rotated == two.histogram_rotated).all()


def test_histograms_count_every_sampled_weight(shallow_report):
    for found in shallow_report.values():
        assert found.histogram.sum() == found.histogram_rotated.sum() == found.sampled


def test_zeros_and_constants_are_measured_too():
    of = model({"blk.0.zero.weight": np.zeros((4, 128)), "blk.0.one.weight": np.ones((4, 128))})
    found = report(of, types=["Q8_0"])
    assert found["blk.0.zero.weight"].types["Q8_0"].rel_mse == 0
    assert found["blk.0.zero.weight"].types["Q8_0"].gain == 1
    assert np.isnan(found["blk.0.one.weight"].kurtosis)


def fails(of, error, says, **options):
    with pytest.raises(error, match=says):
        report(of, **options)


def test_what_cannot_be_measured_is_refused_in_one_line(stories, shallow_model, tmp_path):
    fails(shallow_model, PlanError, "Q9", types=["Q9"])
    fails(model({}), PlanError, "memory.gguf: no weight matrices to measure")
    fails(model({"blk.0.attn_norm.weight": np.ones(8)}), PlanError, "no weight matrices")
    fails(
        model({"blk.0.proj.weight": np.ones((2, 96))}),
        PlanError,
        "no row fits Q4_K's blocks of 256 .the longest is 96.; choose a type of smaller blocks",
        types=["Q4_K"],
    )
    nan = np.ones((2, 128), np.float32)
    nan[1, 5] = np.nan
    fails(
        model({"blk.0.proj.weight": nan}),
        WeightError,
        "blk.0.proj.weight: 1 weights in rows 0 to 1 are NaN or infinite",
        types=["Q4_0"],
    )
    for rotate, says in (
        ("none", "is already Q4_0; measure the F16"),
        ("fused", "already rotated"),
    ):
        path = Path(tmp_path / f"{rotate}.gguf")
        plan = make_plan(shallow_model, Options(type="q4_0", rotate=rotate))
        assert list(convert(shallow_model, plan, path))
        fails(open_model(path), PlanError, says)
    ragged = report(open_model(stories), types=["Q4_0"])["blk.0.ffn_down.weight"]
    assert (ragged.unfit, dict(ragged.types)) == (("Q4_0",), {})
