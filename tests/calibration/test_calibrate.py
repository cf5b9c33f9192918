"""Calibration lowers what quantization does to the outputs, for every architecture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.network.small_models import N_VOCAB, RECIPES, write_model
from tqgguf.calibration import original
from tqgguf.calibration.calibrate import calibrate
from tqgguf.calibration.kept import Kept
from tqgguf.calibration.settings import Feedback
from tqgguf.formats import dequantize, quantize
from tqgguf.machine import crew as crews
from tqgguf.models.gguf import read_gguf
from tqgguf.models.roles import layer_index
from tqgguf.network import forward, ops
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation import folding
from tqgguf.rotation.folded import fold

ONE_SWEEP = Feedback(sweeps=1)  # bytes are compared, not errors
NOVELS = Path(__file__).parent.parent / "data" / "novels-5m-f16.gguf"


def sequences(seed, count=24, size=32):
    return np.random.default_rng(seed).integers(3, N_VOCAB, (count, size)).astype(np.int32)


def types_of(model, type):
    plan = make_plan(model, Options(type=type, rotate="none"))
    return {t.name: t.type for t in plan.tensors if len(t.shape) > 1}


def with_rows(model, rows, types):
    """The model with these tensors replaced by what their rows decode to."""

    def decoded(name, tensor):
        values = dequantize(rows[name], types[name], tensor.n_in)
        return replace(tensor, rows=lambda a, b: values[a:b], raw=None, tile=None)

    changed = {n: decoded(n, t) if n in rows else t for n, t in model.tensors.items()}
    return replace(model, tensors=changed)


def divergence(model, other, tokens):
    p, q = (ops.log_softmax(forward.logits(m, tokens, dtype=np.float64)) for m in (model, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_divergence_falls_below_plain_rounding(tmp_path, name):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    types = types_of(model, "q4_0")
    rows = dict(calibrate(model, types, sequences(1)))
    quantized = {n for n, t in types.items() if t == "Q4_0"}
    assert set(rows) == quantized
    plain = {
        n: quantize(model.tensors[n].read().reshape(-1, model.tensors[n].n_in), "Q4_0")
        for n in quantized
    }
    held_out = sequences(2, 8)
    ours = divergence(model, with_rows(model, rows, types), held_out)
    theirs = divergence(model, with_rows(model, plain, types), held_out)
    assert ours < 0.9 * theirs


@pytest.mark.slow
def test_the_divergence_falls_with_a_lattice_type():
    model = read_gguf(NOVELS)
    chosen = ["blk.0.attn_output.weight", "blk.1.ffn_down.weight"]
    types = dict.fromkeys(chosen, "IQ2_XXS")
    rows = dict(calibrate(model, types, sequences(4, 16), Feedback(sweeps=1)))
    plain = {n: quantize(model.tensors[n].read(), "IQ2_XXS") for n in chosen}
    held_out = sequences(5, 2)
    ours = divergence(model, with_rows(model, rows, types), held_out)
    theirs = divergence(model, with_rows(model, plain, types), held_out)
    assert ours < 0.9 * theirs


@pytest.mark.usefixtures("two_blas_threads")
def test_the_bytes_do_not_depend_on_threads(tmp_path):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES["qwen3"]))
    types, tokens = types_of(model, "q4_0"), sequences(1, 48)
    with crews.threads(1) as alone, crews.threads(3) as together:
        one, three = (
            dict(calibrate(model, types, tokens, ONE_SWEEP, crew=c)) for c in (alone, together)
        )
    assert all(np.array_equal(one[name], three[name]) for name in types if name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama-moe"])
def test_activations_that_do_not_fit_are_computed_anew(tmp_path, name):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    types, tokens = types_of(model, "q4_0"), sequences(1, 48)
    settings = (Feedback(memory=m, sweeps=1) for m in (1 << 30, 0))
    kept, anew = (dict(calibrate(model, types, tokens, each)) for each in settings)
    assert list(kept) == list(anew)
    assert all(np.array_equal(kept[name], anew[name]) for name in kept)


@pytest.mark.parametrize(("name", "same"), [("llama", 1.0), ("granite", 0.9)])
def test_a_layer_ends_as_the_network_would_end_it(tmp_path, monkeypatch, name, same):
    """Whoever takes over a chunk adds the last product; in granite both are scaled."""
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    types, tokens = types_of(model, "q4_0"), sequences(1, 16)
    taken_over = dict(calibrate(model, types, tokens, ONE_SWEEP))
    monkeypatch.setattr(original, "replace", lambda step, **_: step)  # no step ends a layer
    held = dict(calibrate(model, types, tokens, ONE_SWEEP))
    later = [n for n in held if n.startswith("blk.1.ffn_down")]
    assert later
    assert all(np.mean(held[n] == taken_over[n]) >= same for n in later)


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES["llama-tied-llama3-rope"]))
    types, tokens = types_of(model, "iq4_nl"), sequences(1)
    whole = dict(calibrate(model, types, tokens, ONE_SWEEP))
    kept = dict(list(whole.items())[:6])
    resumed = dict(calibrate(model, types, tokens, ONE_SWEEP, known=kept))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def counted(monkeypatch):
    """Counts the passes of a chunk of tokens through a layer."""
    passes, layer = [], forward.layer

    def counting(*args):
        passes.append(1)
        return layer(*args)

    monkeypatch.setattr(forward, "layer", counting)
    return passes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama", "llama-tied-llama3-rope", "llama-moe", "qwen2moe", "gpt2", "granite"]
)
@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_another_type_does_not_run_the_original_again(tmp_path, monkeypatch, name, memory):
    """The same bytes as without what was kept, from the quantized network's passes alone."""
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    tokens, settings = sequences(1, 24), Feedback(memory=memory, sweeps=1)
    passes = counted(monkeypatch)
    alone = dict(calibrate(model, types_of(model, "q4_0"), tokens, settings))
    in_all = len(passes)
    kept = Kept(tmp_path)
    for _ in calibrate(model, types_of(model, "iq4_nl"), tokens, settings, kept=kept):
        pass
    passes.clear()
    again = dict(calibrate(model, types_of(model, "q4_0"), tokens, settings, kept=kept))
    assert all(np.array_equal(alone[name], again[name]) for name in alone)
    chunks = -(-tokens.size // 512)
    head = min(chunks, -(-64 * model.tensors["token_embd.weight"].n_in // 512))
    original = 2 * (chunks + head * RECIPES[name].tied)  # 2 layers; a tied head's pass
    assert len(passes) == in_all - original


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-tied-llama3-rope", "llama-moe"])
def test_damaged_or_lost_statistics_are_computed_again(tmp_path, name):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    types, tokens, kept = types_of(model, "q4_0"), sequences(1, 48), Kept(tmp_path)
    whole = dict(calibrate(model, types, tokens, ONE_SWEEP, kept=kept))
    entries = sorted(tmp_path.glob("*.kept"))
    random = np.random.default_rng(0)
    for entry in entries:
        data = bytearray(entry.read_bytes())
        data[random.integers(len(data))] ^= 1
        fate = random.integers(4)
        entry.write_bytes(data[: len(data) // 2] if fate == 1 else data)
        if fate == 2:
            entry.unlink()
    again = dict(calibrate(model, types, tokens, ONE_SWEEP, kept=kept))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert sorted(tmp_path.glob("*.kept")) == entries
    assert all(kept.read(entry.stem) for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("room", [2_000_000, 5_000_000])
def test_statistics_that_do_not_fit_are_computed_again(tmp_path, room):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES["llama"]))
    types, tokens = types_of(model, "q4_0"), sequences(1, 48)
    whole = dict(calibrate(model, types, tokens, ONE_SWEEP))
    for _ in range(2):
        found = dict(calibrate(model, types, tokens, ONE_SWEEP, kept=Kept(tmp_path, room=room)))
        assert all(np.array_equal(whole[name], found[name]) for name in whole)
        assert 0 < sum(f.stat().st_size for f in tmp_path.glob("*.kept")) < 1.1 * room


def test_a_finished_calibration_runs_nothing(tmp_path, monkeypatch):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES["llama"]))
    types, tokens = types_of(model, "q4_0"), sequences(1)
    whole = dict(calibrate(model, types, tokens, ONE_SWEEP))
    passes, others = counted(monkeypatch), dict(reversed(types.items()))
    found = dict(calibrate(model, others, tokens, ONE_SWEEP, known=whole))
    assert found == whole
    assert list(map(layer_index, found)) == list(map(layer_index, whole))
    assert not passes


@pytest.mark.parametrize("name", ["llama", "llama-tied-llama3-rope", "qwen2", "qwen3", "gpt2"])
def test_a_folded_model_computes_the_same(tmp_path, name):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    folded = fold(model, folding.fused(model, seed=3).with_vectors_of(model))
    tokens = sequences(3, 2)
    before, after = forward.logits(model, tokens), forward.logits(folded, tokens)
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()


def test_float_types_and_vectors_are_left_alone(tmp_path):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES["llama"]))
    types = {name: "F16" for name in types_of(model, "q4_0")}
    types["blk.1.ffn_down.weight"] = "Q4_0"
    assert [name for name, _ in calibrate(model, types, sequences(1, 2))] == [
        "blk.1.ffn_down.weight"
    ]
