"""Balancing an FFN's channels: exact, undone, and worth it where a channel stands out."""

import numpy as np
import pytest

from tests.llama import kl_divergence, logprobs
from tests.tiny_models import DATA, write_tensors, write_tiny
from tqgguf.models import balance, folding, open_model
from tqgguf.models.balance import ffn_balance
from tqgguf.models.model import Tensor
from tqgguf.models.rotation import Sides, read_rotation
from tqgguf.pipeline import quantize
from tqgguf.plan import Options, make_plan
from tqgguf.runtime.folded import fold

TOKENS = np.random.default_rng(1).integers(3, 2048, 64).tolist()
NOVELS = DATA / "novels-5m-f16.gguf"


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


def test_the_factors_do_not_depend_on_chunks(rng, monkeypatch):
    up = tensor(rng.standard_normal((2, 24, 40)).astype(np.float32))
    down = tensor((rng.standard_normal((2, 56, 24)) ** 3).astype(np.float32))
    whole = ffn_balance(up, down)
    monkeypatch.setattr(balance, "CHUNK", 100)
    assert np.array_equal(ffn_balance(up, down), whole)
    assert len(set(whole)) > 1


@pytest.mark.parametrize("name", ["llama-biased", "qwen2moe", "gemma"])
def test_half_a_balance_breaks_the_network(tmp_path, monkeypatch, name):
    source = write_tiny(tmp_path / "a.gguf", name)
    whole = folding._balance

    def half(model, row, tensor):
        return whole(model, row, tensor) if "ffn_up" in tensor else Sides()

    monkeypatch.setattr(folding, "_balance", half)
    model = open_model(source)
    rotate = folding.values if name == "gemma" else folding.fused
    tensors = fold(model, rotate(model).with_vectors_of(model)).tensors
    write_tensors(tmp_path / "b.gguf", source, {n: t.read() for n, t in tensors.items()})
    assert np.abs(logprobs(source, TOKENS) - logprobs(tmp_path / "b.gguf", TOKENS)).max() > 1e-2


def test_the_record_survives_the_file(tmp_path):
    model = open_model(write_tiny(tmp_path / "a.gguf", "qwen2moe"))
    plan = make_plan(model, Options(type="F32"))
    list(quantize(model, plan, tmp_path / "b.gguf"))
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


def test_outlier_channels_cost_nothing(tmp_path, rng):
    tensors = {name: t.read() for name, t in open_model(NOVELS).tensors.items()}
    source = write_tensors(tmp_path / "a.gguf", NOVELS, plant_channels(tensors, rng))
    model, reference = open_model(source), logprobs(NOVELS, TOKENS)
    divergence = {}
    for balanced in (False, True):
        plan = make_plan(model, Options(type="Q4_0", balance=balanced))
        list(quantize(model, plan, tmp_path / "q.gguf", force=True))
        divergence[balanced] = kl_divergence(
            reference, logprobs(tmp_path / "q.gguf", TOKENS)
        ).mean()
    assert divergence[True] < divergence[False] / 3
