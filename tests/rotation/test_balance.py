"""Balancing channels, of FFNs and under norms: exact, undone, worth it where one stands out."""

from dataclasses import replace

import numpy as np
import pytest

from tests.llama import kl_divergence, logprobs
from tests.network.small_models import RECIPES, write_model
from tests.tiny_models import NOVELS, TINY, write_tensors, write_tiny, write_twin
from tqgguf.models import open_model
from tqgguf.models.model import Tensor
from tqgguf.network import forward
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation import balance, channels, folding, readers
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.balance import expected_energies, ffn_balance, norm_balance
from tqgguf.rotation.folded import fold
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.restored import restored
from tqgguf.rotation.steps import Sides
from tqgguf.rotation.vectors import NORM_BALANCE

TOKENS = np.random.default_rng(1).integers(3, 2048, 64).tolist()


def tensor(values):
    rows = values.reshape(-1, values.shape[-1])
    return Tensor("t", values.shape, "F32", lambda a, b: rows[a:b])


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_the_factors_make_rows_and_columns_alike(rng):
    up = rng.standard_normal((3, 32, 48)).astype(np.float32)
    down = rng.standard_normal((3, 64, 32)).astype(np.float32)
    planted = np.exp2(rng.integers(-6, 6, (3, 32))).astype(np.float32)
    factors = ffn_balance(tensor(up / planted[..., None]), tensor(down * planted[:, None, :]))
    ratio = factors.reshape(3, 32) / planted
    assert np.log2(ratio.max() / ratio.min()) <= 1
    assert np.array_equal(np.exp2(np.round(np.log2(factors))), factors)


def test_dead_channels_stay(rng):
    up = rng.standard_normal((8, 16)).astype(np.float32)
    down = rng.standard_normal((4, 8)).astype(np.float32)
    up[2], down[:, 5] = 0, 0
    factors = ffn_balance(tensor(up), tensor(down))
    assert factors[2] == factors[5] == 1
    assert np.array_equal(ffn_balance(tensor(0 * up), tensor(down)), np.ones(8))


def test_expected_inputs_do_not_depend_on_where_a_factor_stands(rng):
    """Outliers planted between gain and columns are inputs that are as much weaker."""
    gain = rng.uniform(0.5, 2, 64).astype(np.float32)
    q, k = (rng.standard_normal((n, 64)).astype(np.float32) for n in (48, 16))
    q[:, 3], k[:, 3] = 4 * q[:, 3], 4 * k[:, 3]
    planted = np.exp2(rng.integers(-5, 6, 64)).astype(np.float32)
    healthy = expected_energies(gain, [tensor(q), tensor(k)])
    twin = expected_energies(gain / planted, [tensor(q * planted), tensor(k * planted)])
    stream = healthy / np.square(gain)
    assert np.median(twin * np.square(planted) / healthy) == pytest.approx(1, rel=0.5)
    assert np.ptp(np.log(twin * np.square(planted) / healthy)) < 1.5
    assert stream[3] < 0.3 * np.median(stream)


def test_the_factors_do_not_depend_on_chunks(rng, monkeypatch):
    up = tensor(rng.standard_normal((2, 24, 40)).astype(np.float32))
    down = tensor((rng.standard_normal((2, 56, 24)) ** 3).astype(np.float32))
    whole = ffn_balance(up, down)
    monkeypatch.setattr(balance, "CHUNK", 100)
    assert np.array_equal(ffn_balance(up, down), whole)
    assert len(set(whole)) > 1


@pytest.mark.parametrize("name", ["llama-biased", "qwen2moe", "gemma"])
def test_half_a_balance_breaks_the_network(tmp_path, monkeypatch, name):
    source = write_tiny(tmp_path / "a.gguf", name, words=False)
    whole = channels.ffn_scaled

    def half(model, row, tensor):
        return whole(model, row, tensor) if "ffn_up" in tensor else Sides()

    monkeypatch.setattr(channels, "ffn_scaled", half)
    model = open_model(source)
    rotate = folding.values if name == "gemma" else folding.fused
    tensors = fold(model, rotate(model).with_vectors_of(model)).tensors
    write_tensors(tmp_path / "b.gguf", source, {n: t.read() for n, t in tensors.items()})
    assert np.abs(logprobs(source, TOKENS) - logprobs(tmp_path / "b.gguf", TOKENS)).max() > 1e-2


def test_the_record_survives_the_file(tmp_path):
    model = open_model(write_tiny(tmp_path / "a.gguf", "qwen2moe"))
    plan = make_plan(model, Options(type="F32", rotate="fused"))
    list(convert(model, plan, tmp_path / "b.gguf"))
    vectors = read_rotation(open_model(tmp_path / "b.gguf")).vectors
    expected = plan.rotation.with_vectors_of(model).vectors
    assert "blk.0.ffn_balance_exps" in expected
    assert set(expected["blk.0.ffn_balance_exps"]) > {1.0}
    assert vectors.keys() == expected.keys()
    assert all(np.array_equal(vectors[name], v) for name, v in expected.items())


def plant_channels(tensors, rng):
    """The same network with one FFN channel in forty weak in ffn_up and strong in ffn_down."""
    for name in [n for n in tensors if "ffn_up" in n]:
        n_ff = len(tensors[name])
        factors = np.ones(n_ff, np.float32)
        factors[rng.choice(n_ff, n_ff // 40, replace=False)] = rng.uniform(8, 30, n_ff // 40)
        down = name.replace("ffn_up", "ffn_down")
        tensors[name] = tensors[name] / factors[:, None]
        tensors[down] = tensors[down] * factors
    return tensors


@pytest.mark.slow
def test_outlier_channels_cost_nothing(tmp_path, rng):
    tensors = {name: t.read() for name, t in open_model(NOVELS).tensors.items()}
    source = write_tensors(tmp_path / "a.gguf", NOVELS, plant_channels(tensors, rng))
    model, reference = open_model(source), logprobs(NOVELS, TOKENS)
    divergence = {}
    for balanced in (False, True):
        plan = make_plan(model, Options(type="Q4_0", balance=balanced, rotate="fused"))
        list(convert(model, plan, tmp_path / "q.gguf", force=True))
        divergence[balanced] = kl_divergence(
            reference, logprobs(tmp_path / "q.gguf", TOKENS)
        ).mean()
    assert divergence[True] < divergence[False] / 3


def test_the_factors_make_columns_alike(rng):
    planted = np.exp2(rng.integers(-6, 6, 48)).astype(np.float32)
    q = rng.standard_normal((40, 48)).astype(np.float32) / planted
    experts = 100 * rng.standard_normal((3, 32, 48)).astype(np.float32) / planted
    gate = np.ones(48, np.float32) / planted
    factors = norm_balance([tensor(q), tensor(experts), tensor(gate)])
    ratio = factors / planted
    assert np.log2(ratio.max() / ratio.min()) <= 1
    assert np.array_equal(np.exp2(np.round(np.log2(factors))), factors)


def test_columns_without_weights_stay_and_no_factor_leaves_the_range(rng):
    q = rng.standard_normal((40, 48)).astype(np.float32)
    q[:, 5], q[:, 6] = 0, 1e-20
    factors = norm_balance([tensor(q)])
    assert (factors[5], factors[6]) == (1, 2**24)


def uneven(tensors):
    """Some columns of what reads the stream or an activation eight times as large as the others."""
    for name, x in tensors.items():
        if name.startswith("blk") and x.ndim > 1:
            x[..., 5::16] *= 8
    return tensors


def write_uneven(path, name):
    source = write_tiny(path.with_suffix(".even"), name, words=False)
    tensors = {n: t.read().copy() for n, t in open_model(source).tensors.items()}
    return write_tensors(path, source, uneven(tensors))


def difference(source, target):
    return np.abs(logprobs(source, TOKENS) - logprobs(target, TOKENS)).max()


LEFT_ALONE = [name for name, tiny in TINY.items() if STREAMS[tiny.arch].values]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_norms_and_their_readers_change_together(tmp_path, name):
    source = write_uneven(tmp_path / "a.gguf", name)
    model, target = open_model(source), tmp_path / "b.gguf"
    list(convert(model, make_plan(model, Options(type="F32", rotate="values")), target))
    assert difference(source, target) < 1e-2
    back = restored(open_model(target)).tensors
    for norm in (n for n in model.tensors if "attn_norm" in n):
        assert np.array_equal(back[norm].read(), model.tensors[norm].read())


SHARED = {  # norms that several matrices read, of rows that no rotation of the stream proves
    "gemma": {"attn_norm": 3, "ffn_norm": 2},
    "gemma2": {"attn_norm": 3, "ffn_norm": 2},
    "gemma3": {"attn_norm": 3, "ffn_norm": 2},
    "command-r": {"attn_norm": 5},
    "cohere2": {"attn_norm": 5},
    "qwen2vl": {"attn_norm": 3, "ffn_norm": 2},
    "qwen3vl": {"attn_norm": 3, "ffn_norm": 2},
    "glm4": {"attn_norm": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_a_forgotten_reader_breaks_the_network(tmp_path, monkeypatch, name):
    source = write_uneven(tmp_path / "a.gguf", name)
    model, row = open_model(source), STREAMS[TINY[name].arch]
    read_by = {norm: readers.reader_roles(model, row, f"blk.1.{norm}") for norm in SHARED[name]}
    assert {norm: len(found) for norm, found in read_by.items()} == SHARED[name]
    for forgotten in (reader for found in read_by.values() for reader in found):
        norms = {n: tuple(r for r in rs if r != forgotten) for n, rs in row.norms.items()}
        known = replace(row, norms=norms, untouched=(*row.untouched, forgotten))
        monkeypatch.setitem(STREAMS, row.name, known)
        tensors = fold(model, folding.values(model).with_vectors_of(model)).tensors
        target = write_tensors(
            tmp_path / "b.gguf", source, {n: t.read() for n, t in tensors.items()}
        )
        assert difference(source, target) > 1e-2, forgotten


@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen2moe", "qwen3", "gpt2", "starcoder2"])
def test_norms_balance_to_the_last_bit(tmp_path, name):
    source = write_model(tmp_path / "a.gguf", RECIPES[name])
    tensors = {n: t.read().copy() for n, t in open_model(source).tensors.items()}
    model = open_model(write_tensors(tmp_path / "b.gguf", source, uneven(tensors)))
    rotation = folding.values(model)
    steps = {
        n: Sides(columns=tuple(step for step in sides.columns if NORM_BALANCE in str(step)))
        for n, sides in rotation.sides.items()
    }
    balanced = replace(rotation, sides=steps).with_vectors_of(model)
    assert all(len(set(v)) > 1 for v in balanced.vectors.values())
    tokens = np.random.default_rng(3).integers(3, 48, (2, 16)).astype(np.int32)
    before, after = (
        forward.logits(m, tokens, dtype=np.float64) for m in (model, fold(model, balanced))
    )
    assert np.array_equal(before, after)


@pytest.mark.slow
def test_outlier_channels_of_norms_cost_nothing_without_a_rotation(tmp_path):
    source = write_twin(tmp_path / "a.gguf")
    reference, divergence = logprobs(NOVELS, TOKENS), {}
    for key, path, rotate in (
        *(("healthy", NOVELS, "values"), ("balanced", source, "values"), ("as is", source, "none")),
        ("healthy as is", NOVELS, "none"),
    ):
        model = open_model(path)
        plan = make_plan(model, Options(type="Q4_0", rotate=rotate))
        list(convert(model, plan, tmp_path / "q.gguf", force=True))
        divergence[key] = kl_divergence(reference, logprobs(tmp_path / "q.gguf", TOKENS)).mean()
    assert divergence["balanced"] < 1.1 * divergence["healthy"]
    assert divergence["healthy"] < 1.1 * divergence["healthy as is"]
    assert divergence["as is"] > 5 * divergence["balanced"]


def test_a_healthy_model_is_hardly_touched():
    model = open_model(NOVELS)
    vectors = folding.values(model).with_vectors_of(model).vectors
    factors = np.concatenate([v for name, v in vectors.items() if NORM_BALANCE in name])
    assert len(factors) == 12 * 256
    assert np.mean(factors != 1) < 0.01
