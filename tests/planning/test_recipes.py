"""What a recipe gives to each role."""

import pytest

from tqgguf.formats import FORMATS
from tqgguf.models import open_model
from tqgguf.planning.plan import Options, make_plan
from tqgguf.planning.recipes import RECIPES, recipe


def types(path, **options):
    plan = make_plan(open_model(path), Options(**options))
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


@pytest.mark.parametrize("name", RECIPES)
def test_every_role_has_a_known_type_of_no_fewer_bits_than_the_body(name):
    body = FORMATS[RECIPES[name].matrix].bits_per_weight
    assert all(FORMATS[t].bits_per_weight >= body for t in RECIPES[name].roles.values())
