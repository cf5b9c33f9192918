"""Energies of inputs: what a rotation makes of them, and scales chosen from them."""

import numpy as np
import pytest

from tests.llama import logprobs
from tests.network.small_models import RECIPES, write_model
from tests.tiny_models import write_tiny
from tqgguf import formats, pipeline
from tqgguf.calibration.statistics import input_energies
from tqgguf.errors import PlanError
from tqgguf.models import open_model
from tqgguf.models.model import Tensor
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation import folding
from tqgguf.rotation.balance import STEPS, ffn_balance, norm_balance
from tqgguf.rotation.energies import rotated_energies
from tqgguf.rotation.folded import fold
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.restored import restored
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import RESIDUAL, Sides, Step

TOKENS = np.random.default_rng(1).integers(3, 2048, 64).tolist()


def tensor(values, name="t"):
    rows = values.reshape(-1, values.shape[-1])
    return Tensor(name, values.shape, "F32", lambda a, b: rows[a:b])


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def made_up(model, rng):
    """Energies over six orders of magnitude for every matrix, each expert's its own."""
    found = {}
    for name, t in model.tensors.items():
        if len(t.shape) > 1:
            n_mat = t.shape[0] if len(t.shape) == 3 else 1
            found[name] = np.exp(rng.uniform(-7, 7, (n_mat, t.n_in))).astype(np.float32)
    return found.get


@pytest.mark.parametrize("make", [norm_balance, ffn_balance])
def test_factors_moved_into_a_gain_come_back(rng, make):
    weights = rng.standard_normal((40, 48)).astype(np.float32)
    energies = np.exp(rng.normal(0, 2, (1, 48))).astype(np.float32)
    moved = np.exp2(rng.integers(-4, 4, 48)).astype(np.float32)

    def factors(columns, inputs):
        t = tensor(columns)
        return make([t], inputs) if make is norm_balance else 1 / make(None, t, inputs)

    ratio = factors(weights * moved, energies / moved**2) * moved / factors(weights, energies)
    assert np.log2(ratio.max() / ratio.min()) <= 1.01 / STEPS
    assert len(set(factors(weights, energies))) > 20


@pytest.mark.parametrize("bad", [0, np.nan, np.inf, -1])
def test_channels_of_no_energy_stay(rng, bad):
    weights = rng.standard_normal((40, 48)).astype(np.float32)
    weights[:, 7] = 0
    energies = np.exp(rng.normal(0, 1, (1, 48))).astype(np.float32)
    energies[0, 5] = bad
    factors = norm_balance([tensor(weights)], energies)
    assert factors[5] == factors[7] == 1
    assert np.isfinite(factors).all()
    assert np.array_equal(norm_balance([tensor(weights)], np.full((1, 48), bad)), np.ones(48))


def test_energies_of_any_size_give_factors_that_a_byte_holds(rng):
    weights = rng.standard_normal((40, 4)).astype(np.float32)
    energies = np.array([[1e-38, 1e38, 1, 1]], np.float32)
    factors = norm_balance([tensor(weights)], energies)
    assert np.abs(np.log2(factors)).max() <= 127 / STEPS


def test_an_expert_that_was_never_chosen_is_balanced_by_its_weights(rng):
    down = rng.standard_normal((2, 64, 32)).astype(np.float32)
    energies = np.ones((2, 32), np.float32)
    energies[0] = np.exp(rng.normal(0, 2, 32))
    factors = ffn_balance(tensor(down), tensor(down), energies).reshape(2, 32)
    assert np.abs(np.log2(factors[1])).max() < 0.5
    assert np.abs(np.log2(factors[0])).max() > 0.5


def test_energies_of_another_model_are_refused(tmp_path):
    model = open_model(write_tiny(tmp_path / "a.gguf", "llama"))
    wrong = {"blk.0.attn_q.weight": np.ones((1, 32), np.float32)}
    rotation = folding.values(model, energies=wrong.get)
    with pytest.raises(PlanError, match=r"attn_q.weight: 32 energies of inputs, but the tensor ne"):
        rotation.with_vectors_of(model)


def test_scales_by_energies_lower_the_output_error(rng):
    weights = rng.standard_normal((64, 512)).astype(np.float32)
    energies = np.exp(rng.normal(0, 2, (1, 512))).astype(np.float32)
    factors = norm_balance([tensor(weights)], energies)

    def error(scale, importance):
        x = weights * scale
        data = formats.quantize(
            x, "Q4_0", (energies[0] / scale**2) if importance else None, threads=1
        )
        return float(
            (np.square((formats.dequantize(data, "Q4_0", 512) - x) / scale) * energies).sum()
        )

    for importance in (False, True):
        assert error(factors, importance) < 0.8 * error(np.ones(512, np.float32), importance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rotate"),
    [
        *((name, "values") for name in ("llama-biased", "qwen2moe", "starcoder2", "phi2", "gemma")),
        *((name, "fused") for name in ("llama-biased", "qwen2moe")),
        *((name, "scales") for name in ("deepseek2", "qwen35", "gpt-oss", "gemma3", "llama")),
    ],
)
def test_scales_by_energies_change_nothing_in_llama_cpp(tmp_path, rng, name, rotate):
    source, target = write_tiny(tmp_path / "a.gguf", name, words=False), tmp_path / "b.gguf"
    model = open_model(source)
    plan = make_plan(model, Options(type="F32", rotate=rotate), energies=made_up(model, rng))
    list(pipeline.convert(model, plan, target))
    assert np.abs(logprobs(source, TOKENS) - logprobs(target, TOKENS)).max() < 1e-2
    back, vectors = restored(open_model(target)), read_rotation(open_model(target)).vectors
    expected = plan.rotation.with_vectors_of(model).vectors
    assert all(np.array_equal(vectors[n], v) for n, v in expected.items())
    assert any(np.log2(v[v > 0]).max() > 1 for n, v in vectors.items() if "balance" in n)
    for key, t in model.tensors.items():
        expected = t.read()
        assert np.allclose(back.tensors[key].read(), expected, atol=1e-5 * np.abs(expected).max())


def test_a_head_is_left_alone(tmp_path):
    names = folding.scales(open_model(write_tiny(tmp_path / "a.gguf", "llama"))).vector_names()
    assert len(names) == 3 * 2  # two norms and an FFN in each of two layers


@pytest.mark.parametrize("rotate", [folding.values, folding.fused])
@pytest.mark.parametrize("name", ["llama", "qwen2moe"])
def test_rotated_energies_are_those_of_the_folded_model(tmp_path, rng, name, rotate):
    model = open_model(write_model(tmp_path / "a.gguf", RECIPES[name]))
    tokens = rng.integers(3, 48, (2, 16)).astype(np.int32)
    before = input_energies(model, tokens)
    rotation = rotate(model, energies=before.importance).with_vectors_of(model)
    after = input_energies(fold(model, rotation), tokens)
    assert set(before.sums) == set(after.sums)
    for key in before.sums:
        order = rotation.granule(key)[1]
        shape = fold(model, rotation).tensors[key].shape
        expected = rotated_energies(rotation, key, before.importance(key), shape)
        measured = after.importance(key).reshape(len(expected), -1, order)
        seen = after.counts[key] > 0
        means = np.broadcast_to(measured.mean(axis=-1, keepdims=True), measured.shape)
        assert np.allclose(means.reshape(expected.shape)[seen], expected[seen], rtol=1e-3), key


def test_a_channel_behind_a_gain_of_zero_counts_as_the_others():
    sides = {"w": Sides(columns=(Step("gain", "g"), RESIDUAL))}
    gain = np.array([1, 2, 0, 1, 1, 1, 1, 1], np.float32)
    rotation = Rotation("fused", block=4, sides=sides, vectors={"g": gain})
    energies = np.array([[1, 4, 0, 4, 8, 8, 8, 8]], np.float32) / 16
    assert rotated_energies(rotation, "w", energies, (3, 8)).tolist() == [[2 / 16] * 4 + [0.5] * 4]
    noisy = np.array([[4, 4, 4, 4, 1, 1, 1, 10**6]], np.float32) / 2
    assert rotated_energies(rotation, "w", noisy, (3, 8)).tolist() == [
        pytest.approx([23 / 18] * 4 + [19 / 24] * 4)  # 2, 2 and 10^6 / 2 become 5 / 3
    ]
    none = rotated_energies(rotation, "other", energies, (3, 8))
    assert np.array_equal(none, energies)
