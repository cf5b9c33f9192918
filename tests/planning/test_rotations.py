"""--rotate auto: by predicted output error and bytes, every obstacle a reason."""

from dataclasses import replace

import numpy as np
import pytest

from tests.tiny_models import NOVELS, write_tensors, write_tiny, write_twin
from tqgguf.calibration.statistics import input_energies
from tqgguf.errors import WeightError
from tqgguf.models import Model, open_model
from tqgguf.models.metadata import encode
from tqgguf.pipeline import convert
from tqgguf.planning import rotations
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.planning.rotations import MODES, candidates, choose_rotation

AUTO = Options(type="q4_0", rotate="auto")
TOKENS = np.random.default_rng(2).integers(3, 2048, (2, 64)).astype(np.int32)


def untied(tmp_path, change=lambda tensors: tensors, source=NOVELS):
    tensors = {name: t.read().copy() for name, t in open_model(source).tensors.items()}
    tensors["output.weight"] = tensors["token_embd.weight"]
    return open_model(write_tensors(tmp_path / "untied.gguf", source, change(tensors)))


def heavy_tailed(tensors):
    """One weight in 64 of every layer's matrices is twelve times as large as the others."""
    rng = np.random.default_rng(4)
    for name, x in tensors.items():
        if name.startswith("blk.") and x.ndim == 2:
            x[rng.random(x.shape) < 1 / 64] *= 12
    return tensors


def energies_of(model):
    return input_energies(model, TOKENS).importance


@pytest.mark.parametrize(
    ("costs", "known", "blind"),
    [
        ((1.0, 1.01, 0.99, 1.2), "none", "scales"),
        ((1.0, 0.9, 0.89, 1.2), "scales", "scales"),
        ((1.0, 0.9, 0.8, 1.2), "values", "values"),
        ((1.0, np.inf, 0.99, 0.9), "fused", "fused"),
        ((1.0, np.inf, 0.99, 1.2), "none", "none"),
    ],
)
def test_of_what_is_alike_the_simplest_is_taken(costs, known, blind):
    """A difference of 2 % is none; where the inputs are unknown scales are taken even so."""
    found = [rotations.Candidate(mode, cost=c) for mode, c in zip(MODES, costs, strict=True)]
    assert rotations._best(found, blind=False).mode == known
    assert rotations._best(found, blind=True).mode == blind


@pytest.mark.slow
@pytest.mark.parametrize("type", ["q4_0", "q3_k"])
@pytest.mark.parametrize("known", [False, True])
def test_planted_outliers_are_rotated_or_balanced_away(tmp_path, type, known):
    healthy, twin = open_model(NOVELS), open_model(write_twin(tmp_path / "twin.gguf"))
    options = replace(AUTO, type=type)
    for model, most, modes in (
        (healthy, 1.1, ("values", "scales", "none")),
        (twin, 0.7, ("values", "scales")),
    ):
        energies = energies_of(model) if known else None
        none, _, values, _ = found = candidates(model, options, energies)
        assert values.error < most * none.error
        assert min(found, key=lambda c: c.cost).mode in modes


@pytest.mark.slow
def test_an_untied_head_has_to_earn_its_bytes(tmp_path):
    tied = write_tensors(
        tmp_path / "tied.gguf",
        NOVELS,
        heavy_tailed({n: t.read().copy() for n, t in open_model(NOVELS).tensors.items()}),
    )
    apart = untied(tmp_path, heavy_tailed)
    assert choose_rotation(apart, AUTO, energies_of(apart))[0].rotate == "fused"
    *_, free = candidates(apart, AUTO, energies_of(apart))
    *_, dear = candidates(open_model(tied), AUTO, energies_of(open_model(tied)))
    assert free.cost == free.error
    assert dear.cost > 1.3 * dear.error


@pytest.mark.slow
def test_heavy_tails_are_seen_without_energies(tmp_path):
    options, why = choose_rotation(untied(tmp_path, heavy_tailed), AUTO)
    assert (options.rotate, "guessed from the norms' gains; none" in why) == ("fused", True)
    options, why = choose_rotation(untied(tmp_path), AUTO)
    assert options.rotate in ("values", "scales")
    assert "guessed from the norms' gains" in why


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "olmo2", "cohere2", "qwen2vl"])
def test_a_stream_that_cannot_be_rotated_is_a_reason(tmp_path, name):
    model = open_model(write_tiny(tmp_path / "a.gguf", name))
    options, why = choose_rotation(model, AUTO)
    assert options.rotate in ("values", "scales", "none")
    assert f"fused is impossible, the residual stream of {name} cannot be rotated: " in why
    assert "\n" not in why
    assert "use" not in why.partition("impossible")[2].split()


def test_value_heads_that_cannot_be_rotated_are_a_reason(tmp_path):
    options, why = choose_rotation(open_model(write_tiny(tmp_path / "a.gguf", "deepseek2")), AUTO)
    assert options.rotate in ("fused", "scales", "none")
    assert "values is impossible, the value heads of deepseek2 cannot be rotated" in why


def test_nothing_is_known_to_fold_of_an_unknown_architecture(tmp_path):
    model = open_model(write_tiny(tmp_path / "a.gguf", "llama"))
    strange = {**model.metadata, "general.architecture": encode("mamba")}
    options, why = choose_rotation(Model(model.path, strange, model.tensors), AUTO)
    assert options.rotate == "none"
    assert "rotated it would be: scales is impossible, no fold is known for" in why
    assert why.count("no fold is known") == 1


def test_what_is_rotated_already_stays_as_it_is(tmp_path):
    model = open_model(write_tiny(tmp_path / "a.gguf", "llama"))
    list(convert(model, make_plan(model, replace(AUTO, rotate="fused")), tmp_path / "b.gguf"))
    options, why = choose_rotation(open_model(tmp_path / "b.gguf"), AUTO)
    assert (options.rotate, "rotated already" in why) == ("none", True)


def test_bad_weights_are_named(tmp_path):
    def spoil(tensors):
        tensors["blk.0.attn_q.weight"][0, 3] = np.nan
        return tensors

    with pytest.raises(WeightError, match=r"^blk.0.attn_q.weight: "):
        choose_rotation(untied(tmp_path, spoil), AUTO)


def test_every_expert_has_its_energies(tmp_path):
    model = open_model(write_tiny(tmp_path / "a.gguf", "qwen2moe"))
    energies = energies_of(model)
    assert choose_rotation(model, AUTO, energies)[0].rotate in ("values", "scales", "fused")
    one = np.zeros_like(energies("blk.0.ffn_down_exps.weight"))
    one[0] = 1
    for found in candidates(model, AUTO, lambda name: one if "down_exps" in name else None):
        assert 0 < found.error < np.inf


def test_a_gain_of_another_length_tells_nothing(tmp_path):
    source = write_tiny(tmp_path / "m.gguf", "llama")
    tensors = {n: t.read() for n, t in open_model(source).tensors.items()}
    tensors["blk.0.ffn_norm.weight"] = np.ones(3, np.float32)
    damaged = open_model(write_tensors(tmp_path / "d.gguf", source, tensors))
    assert choose_rotation(damaged, AUTO)[0].rotate in MODES


def test_where_nothing_is_rounded_bytes_decide_nothing(tmp_path):
    model = open_model(write_tiny(tmp_path / "m.gguf", "llama", tied=True))
    for type in ("f32", "f16"):
        options, _ = choose_rotation(model, Options(type=type, rotate="auto"))
        assert options.rotate in MODES


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_an_uneven_stream_makes_spread_errors_weigh_more(share):
    """Channels with small gains hold what the others lack: E[(g x)^2] is a share of g^2."""
    model = open_model(NOVELS)
    gain = np.square(model.tensors["blk.0.attn_norm.weight"].read())[None] * np.float32(share)
    plan = make_plan(model, replace(AUTO, rotate="none"))
    inputs = rotations._Inputs(model, {"blk.0.attn_q.weight": gain}.get)
    assert inputs.spread(plan.tensors) == pytest.approx(1 / share, rel=1e-5)
