"""What a recipe gives to each role."""

from itertools import pairwise

import numpy as np
import pytest

from tqgguf.formats import FORMATS
from tqgguf.models import open_model, stored_bytes
from tqgguf.models.metadata import encode
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.planning.choices import prepare
from tqgguf.planning.header import output_metadata
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.planning.recipes import RECIPES, file_type, fitting, is_inner, recipe


def types(path, **options):
    plan = make_plan(open_model(path), Options(**{"rotate": "fused"} | options))
    return {t.name: t.type for t in plan.tensors}


@pytest.mark.parametrize("name", RECIPES)
def test_a_tied_embedding_is_the_head_and_gets_its_type(novels, name):
    tied = types(novels, type=name, rotate="none")
    assert "output.weight" not in tied
    assert tied["token_embd.weight"] == RECIPES[name].roles["output"]


@pytest.mark.parametrize("name", RECIPES)
def test_an_untied_embedding_has_a_type_of_its_own(novels, name):
    untied = types(novels, type=name, rotate="fused")
    assert untied["output.weight"] == RECIPES[name].roles["output"]
    assert untied["token_embd.weight"] == RECIPES[name].type_of("token_embd")
    assert untied["blk.0.attn_v.weight"] == RECIPES[name].type_of("attn_v")
    assert untied["blk.0.ffn_up.weight"] == RECIPES[name].matrix


def test_a_single_type_is_for_every_matrix(novels):
    assert set(types(novels, type="q3_k", rotate="none").values()) == {"Q3_K", "F32"}


def test_experts_get_what_their_role_gets():
    q3 = recipe("tq-q3")
    assert q3.type_of("ffn_down_exps") == q3.type_of("ffn_down_shexp") == q3.type_of("ffn_down")
    assert q3.type_of("ffn_down") != q3.type_of("ffn_up_exps") == q3.matrix


def test_experts_may_have_fewer_bits_than_what_every_token_takes():
    moe = recipe("tq-q2-moe")
    assert {moe.type_of(f"ffn_{part}_exps") for part in ("gate", "up", "down")} == {moe.experts}
    for role in ("attn_q", "ffn_gate_shexp", "ffn_down_shexp", "ffn_up"):
        bits = (FORMATS[type].bits_per_weight for type in (moe.type_of(role), moe.experts))
        assert next(bits) > 2 * next(bits)


@pytest.mark.parametrize("name", RECIPES)
def test_every_role_has_a_known_type_of_no_fewer_bits_than_the_body(name):
    body = FORMATS[RECIPES[name].matrix].bits_per_weight
    assert all(FORMATS[t].bits_per_weight >= body for t in RECIPES[name].roles.values())


@pytest.mark.parametrize("n_layer", [1, 2, 6, 16, 18, 22, 30, 61, 126])
def test_q5_k_costs_no_more_than_q6_k_where_llama_cpp_has_it(n_layer):
    """Q4_K_M has Q6_K in the outer eighths and in every third layer between, else Q4_K."""
    eighth = n_layer // 8
    between = range(eighth, 7 * n_layer // 8)
    more = n_layer - len(between) + sum((i - eighth) % 3 == 2 for i in between)
    inner = [i for i in range(n_layer) if is_inner(i, n_layer)]
    bits = {n: FORMATS[n].bits_per_weight for n in ("Q4_K", "Q5_K", "Q6_K")}
    spent = (n_layer - len(inner)) * (bits["Q5_K"] - bits["Q4_K"])
    paid = more * (bits["Q6_K"] - bits["Q4_K"])
    assert spent <= paid
    assert not inner or spent > paid - 1
    assert all(b - a == 1 for a, b in pairwise(inner))


@pytest.mark.parametrize("mode", ["none", "scales", "values", "fused"])
def test_types_pay_for_what_a_rotation_records(novels, mode):
    """Outer layers are as many as leave the file no larger than llama.cpp's Q4_K_M."""
    model = open_model(novels)
    plan = make_plan(model, Options(rotate=mode))
    infos = [TensorInfo(t.name, t.shape, t.type) for t in plan.tensors]
    metadata = output_metadata(model, plan, plan.rotation.with_vectors_of(model))
    record = len(lay_out(metadata, infos).header) - len(lay_out(model.metadata, infos).header)
    assert plan.rotation.record_bytes(model) == pytest.approx(record, abs=256)
    theirs = sum(
        stored_bytes(of_q4_k_m(t.name, tied=mode != "fused"), t.size) for t in plan.tensors
    )
    left = theirs - plan.n_bytes - record
    roles = {t.name.removeprefix("blk.0."): t for t in plan.tensors if t.name.startswith("blk.0.")}
    layer = sum(roles[f"{r}.weight"].size for r in ("attn_v", "ffn_down")) / 8
    assert -256 < left < layer
    if mode != "none":
        assert left + record > layer, "an unrotated file has a layer more"


def of_q4_k_m(name, *, tied):
    """llama.cpp's type of a tensor of the embedded model, whose layers are six."""
    if "norm" in name:
        return "F32"
    fine = {"output.weight", *(["token_embd.weight"] if tied else [])}
    fine |= {f"blk.{i}.{role}.weight" for i in (2, 5) for role in ("attn_v", "ffn_down")}
    return "Q6_K" if name in fine else "Q4_K"


def write_ragged(path, *, width, ffn, vocabulary):
    """The header of a small tied model whose rows of `width` fit no K-type; weights are a hole."""
    shapes = {"attn_norm": (width,), "ffn_norm": (width,), "ffn_down": (width, ffn)}
    shapes |= {role: (width, width) for role in ("attn_q", "attn_output")}
    shapes |= {role: (width // 3, width) for role in ("attn_k", "attn_v")}
    shapes |= {role: (ffn, width) for role in ("ffn_gate", "ffn_up")}
    infos = [TensorInfo("token_embd.weight", (vocabulary, width), "F16")]
    infos += [
        TensorInfo(f"blk.{i}.{role}.weight", shape, "F16" if len(shape) == 2 else "F32")
        for i in range(3)
        for role, shape in shapes.items()
    ]
    layout = lay_out({"general.architecture": encode("llama")}, infos)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    return path


@pytest.fixture
def ragged(tmp_path):
    return write_ragged(tmp_path / "ragged.gguf", width=576, ffn=1536, vocabulary=8192)


def test_recipes_stay_apart_where_the_k_types_do_not_fit(ragged):
    model = open_model(ragged)
    q4, q3, q2 = (
        make_plan(model, Options(type=name, rotate="none")).n_bytes
        for name in ("tq-q4", "tq-q3", "tq-q2")
    )
    assert q3 < 0.9 * q4
    assert q2 < 0.95 * q3


@pytest.mark.parametrize("name", RECIPES)
def test_ragged_rows_get_small_blocks_and_others_may_have_k_types(ragged, name):
    found = types(ragged, type=name, rotate="none")
    other = RECIPES[name].ragged or RECIPES[name]
    assert found["blk.0.ffn_down.weight"] == other.type_of("ffn_down")
    small = {t for n, t in found.items() if "norm" not in n and "ffn_down" not in n}
    assert {FORMATS[t].block_size for t in small} == {32}


def test_one_ragged_matrix_changes_no_other(tmp_path):
    path = write_ragged(tmp_path / "m.gguf", width=768, ffn=576, vocabulary=512)
    found = types(path, rotate="none")
    assert found["blk.0.ffn_down.weight"] == fitting("Q5_K", 576)[0] == "Q5_1"
    assert found["blk.1.ffn_down.weight"] == fitting("Q4_K", 576)[0] == "IQ4_NL"
    assert found["blk.0.ffn_up.weight"] == RECIPES["TQ-Q4"].matrix


@pytest.fixture
def uneven(tmp_path):
    """A ragged model of random weights, those of layer 1 with a few columns that dominate."""
    path = write_ragged(tmp_path / "uneven.gguf", width=96, ffn=512, vocabulary=600)
    rng = np.random.default_rng(0)
    model, layout = open_model(path), path.read_bytes()
    values = rng.standard_normal((len(layout) - 4096) // 2).astype("<f2")
    path.write_bytes(layout[:4096] + values.tobytes() + layout[4096 + values.nbytes :])
    assert list(open_model(path).tensors) == list(model.tensors)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in RECIPES if n != "TQ-Q4-FAST"])
def test_a_ragged_models_bytes_are_spent_where_they_matter(uneven, name):
    model, options = open_model(uneven), Options(type=name, rotate="none")
    still, plan = make_plan(model, options), prepare(model, options).plan
    assert still.mostly_ragged
    assert 0.98 * still.n_bytes < plan.n_bytes <= still.n_bytes
    assert plan.recipe.name == name
    assert plan.matrix_types != still.matrix_types
    assert {t.reason for t in plan.fallbacks} == {t.reason for t in still.fallbacks}
    assert any(note.startswith("types chosen by the sensitivity") for note in plan.notes)
    most = max(set(plan.matrix_types.values()), key=lambda t: weights(plan, t))
    assert plan.recipe.file_type == file_type(most)


def weights(plan, type):
    return sum(t.size for t in plan.tensors if t.type == type)


@pytest.mark.parametrize("name", ["TQ-Q4-FAST", "Q4_K"])
def test_a_single_type_and_the_fast_recipe_are_not_mixed(uneven, name):
    model, options = open_model(uneven), Options(type=name, rotate="none")
    assert prepare(model, options).plan.matrix_types == make_plan(model, options).matrix_types


def test_a_named_type_says_nothing_of_the_rows(tmp_path):
    """A large head whose type an option names does not make the layers any less ragged."""
    path = write_ragged(tmp_path / "m.gguf", width=576, ffn=1536, vocabulary=40000)
    plan = make_plan(open_model(path), Options(rotate="none", output_type="q8_0"))
    assert plan.mostly_ragged
    assert plan.matrix_types["blk.0.ffn_up.weight"] == "Q5_0"


def test_the_fast_recipe_keeps_q4_0(ragged):
    assert types(ragged, type="tq-q4-fast", rotate="none")["blk.1.ffn_up.weight"] == "Q4_0"


def test_an_option_is_not_the_recipes_to_bend(ragged):
    chosen = types(ragged, rotate="none", tensor_type=[("ffn_up", "q6_k")])
    assert chosen["blk.0.ffn_up.weight"] == fitting("Q6_K", 576)[0] == "Q8_0"


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_fallback_has_no_fewer_bits_and_holds_the_row(name):
    for n_in in (576, 640, 896, 172):
        fallback, reason = fitting(name, n_in)
        assert n_in % FORMATS[fallback].block_size == 0
        assert FORMATS[fallback].bits_per_weight >= FORMATS[name].bits_per_weight
        assert bool(reason) == (fallback != name)
