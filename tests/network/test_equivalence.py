"""The fold check and `verify --forward` tell a right file from a wrong one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.cli.story import fails, succeeds
from tests.network.graphs import write_graph
from tests.network.small_models import RECIPES, write_model
from tests.tiny_models import TINY, write_tiny
from tqgguf.errors import MismatchError
from tqgguf.models.gguf import read_gguf
from tqgguf.models.metadata import encode
from tqgguf.network import equivalence, lazy
from tqgguf.network.equivalence import check_fold, measure_difference
from tqgguf.output.tiles import tiles
from tqgguf.rotation import folding
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.folded import fold
from tqgguf.rotation.rotation import NO_ROTATION
from tqgguf.rotation.steps import Sides

FOLDED = ["llama", "llama-tied-llama3-rope", "llama-moe", "qwen2", "qwen3", "gpt2", "starcoder2"]
PLENTY = 1 << 30


def folded(tmp_path, name):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES[name]))
    return model, folding.fused(model).with_vectors_of(model)


@pytest.mark.parametrize("name", FOLDED)
def test_a_right_fold_passes(tmp_path, name):
    model, rotation = folded(tmp_path, name)
    assert check_fold(model, rotation, memory=PLENTY) < 1e-5


def test_parts_read_by_several_threads_are_the_same_check(tmp_path, monkeypatch):
    model, rotation = folded(tmp_path, "llama-tied-llama3-rope")
    alone = check_fold(model, rotation, memory=PLENTY)
    monkeypatch.setattr(lazy, "TILE", 512)
    monkeypatch.setattr(equivalence, "TILE", 512)
    shapes = [t.shape for t in fold(model, rotation).tensors.values()]
    granules = [rotation.granule(name) for name in fold(model, rotation).tensors]
    assert any(
        len({tile.columns for tile in tiles(shape, granule=granule, weights=512)}) > 1
        for shape, granule in zip(shapes, granules, strict=True)
    )
    assert check_fold(model, rotation, memory=50_000, threads=3) == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("name", FOLDED)
def test_a_fold_that_forgets_a_tensor_is_refused(tmp_path, name):
    model, rotation = folded(tmp_path, name)
    for forgotten in [n for n in rotation.sides if n.startswith("blk.1.") and "weight" in n]:
        sides = {n: Sides() if n == forgotten else s for n, s in rotation.sides.items()}
        with pytest.raises(MismatchError, match="the fold changes the network's output"):
            check_fold(model, replace(rotation, sides=sides), memory=PLENTY)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TINY if not STREAMS[TINY[n].arch].refusal])
def test_every_architecture_is_checked(tmp_path, name):
    model = read_gguf(write_tiny(tmp_path / "model.gguf", name))
    rotation = folding.fused(model).with_vectors_of(model)
    assert check_fold(model, rotation, memory=PLENTY) < 3e-5
    for forgotten in [n for n in rotation.sides if n.startswith("blk.1.") and "weight" in n]:
        sides = {**rotation.sides, forgotten: Sides()}
        with pytest.raises(MismatchError, match="the fold changes the network's output"):
            check_fold(model, replace(rotation, sides=sides), memory=PLENTY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3-windowed", "gpt-oss", "deepseek2", "qwen35", "bloom"])
def test_verify_forward_knows_other_graphs(tmp_path, name):
    original, ours = write_graph(tmp_path / "model.gguf", name, 512), tmp_path / "ours.gguf"
    mode = "values" if name == "gemma3-windowed" else "fused"
    succeeds("quantize", original, "-t", "q8_0", "--rotate", mode, "--quiet", "-o", ours)
    told = json.loads(succeeds("verify", ours, original, "--forward", "--json"))
    assert 0 < told["forward"]["divergence"] < 0.2
    model = read_gguf(ours)
    norm = model.tensors["output_norm.weight"]
    negative = replace(norm, rows=lambda a, b: -norm.rows(a, b), raw=None)
    wrong = replace(model, tensors={**model.tensors, norm.name: negative})
    assert not measure_difference(read_gguf(original), wrong).passed


def test_nothing_folded_or_no_memory_is_no_check(tmp_path):
    model, rotation = folded(tmp_path, "llama")
    assert check_fold(model, NO_ROTATION, memory=PLENTY) is None
    assert check_fold(model, rotation, memory=1000) is None


def test_a_rotary_scaling_without_forward_pass_is_no_check(tmp_path):
    model = read_gguf(write_model(tmp_path / "model.gguf", RECIPES["llama"]))
    scaled = {**model.metadata, "llama.rope.scaling.type": encode("dynamic")}
    assert check_fold(replace(model, metadata=scaled), folding.fused(model), memory=PLENTY) is None


@pytest.mark.slow
def test_verify_forward_accepts_ours_and_refuses_another_function(novels, tmp_path):
    ours = tmp_path / "ours.gguf"
    succeeds("quantize", novels, "-t", "q4_0", "--quiet", "-o", ours)
    told = json.loads(succeeds("verify", ours, novels, "--forward", "--json"))
    assert told["passed"]
    assert 0 < told["forward"]["divergence"] < 0.1
    model = read_gguf(ours)
    norm = model.tensors["blk.3.ffn_norm.weight"]
    changed = replace(norm, rows=lambda a, b: np.full((b - a, norm.n_in), 40, np.float32))
    wrong = replace(model, tensors={**model.tensors, norm.name: changed})
    assert not measure_difference(read_gguf(novels), wrong).passed


def test_verify_forward_needs_a_forward_pass(novels, tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(novels.read_bytes().replace(b"llama", b"mamba"))
    fails("verify", model, model, "--forward", "--quiet", says="no forward pass for architecture")
