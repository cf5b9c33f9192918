"""Types within a budget: never over, nearly all spent, and better than one type for all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tqgguf.errors import PlanError
from tqgguf.formats import FORMATS
from tqgguf.models import open_model
from tqgguf.planning.allocation import (
    LATTICE_TYPES,
    SCALAR_TYPES,
    SMALL_BLOCK_TYPES,
    Item,
    allocate,
    default_sensitivity,
    offers,
    predicted,
    relative_error,
)
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan


def items(seed, count=40):
    rng = np.random.default_rng(seed)
    sizes = 256 * rng.integers(64, 4096, count)
    costs = np.exp(rng.normal(-4, 1.5, count))
    return [
        Item(f"t{i}", int(n), 256, float(c))
        for i, (n, c) in enumerate(zip(sizes, costs, strict=True))
    ]


def size(chosen, types):
    return sum(i.weights * FORMATS[types[i.name]].bits_per_weight / 8 for i in chosen)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 50), st.floats(2.2, 8.4))
def test_the_budget_is_spent_and_never_exceeded(seed, bpw):
    chosen = items(seed)
    budget = int(sum(i.weights for i in chosen) * bpw / 8)
    spent = size(chosen, allocate(chosen, budget))
    assert 0.99 * budget <= spent <= budget


@pytest.mark.parametrize("type", SCALAR_TYPES[:-1])
def test_it_beats_one_type_for_all_at_the_same_bytes(type):
    chosen = items(1)
    same = {i.name: type for i in chosen}
    types = allocate(chosen, int(size(chosen, same)))
    assert predicted(chosen, types) < 0.95 * predicted(chosen, same)


def test_what_matters_more_gets_more_bits():
    chosen = [Item("little", 65536, 256, 1e-4), Item("much", 65536, 256, 1.0)]
    types = allocate(chosen, int(2 * 65536 * 4 / 8))
    assert FORMATS[types["much"]].bits_per_weight > FORMATS[types["little"]].bits_per_weight + 1


@pytest.mark.slow
def test_ragged_rows_get_small_blocks_beside_k_types():
    chosen = [Item("ragged", 576 * 64, 576, 1.0), Item("even", 512 * 64, 512, 1.0)]
    for bpw in (4.6, 5.2, 5.8):
        types = allocate(chosen, int(sum(i.weights for i in chosen) * bpw / 8))
        assert types["ragged"] in (*SMALL_BLOCK_TYPES, "Q8_0")
        assert types["even"] in SCALAR_TYPES


def test_measured_errors_count_where_there_are_some():
    chosen = Item("a", 65536, 256, 1.0)
    assert chosen.cost("Q5_1") == relative_error("Q5_1")
    flattered = replace(chosen, errors={"Q4_1": 1e-6})
    assert flattered.cost("Q4_1") == 1e-6
    types = [allocate([item], int(65536 * 5.6 / 8))["a"] for item in (chosen, flattered)]
    assert types == ["Q5_K", "Q4_1"]


@pytest.mark.parametrize("role", ["output", "ffn_down", "attn_v", "unheard_of"])
def test_layers_of_a_role_share_what_the_role_costs(role):
    for of_outputs in (False, True):
        shares = [default_sensitivity(role, i, 8, of_outputs=of_outputs) for i in range(2, 6)]
        assert len(set(shares)) == 1
        whole = default_sensitivity(role, None, 8, of_outputs=of_outputs)
        assert shares[0] == pytest.approx(whole / 8)


def test_lattice_types_are_offered_where_others_hardly_fit():
    item = Item("a", 65536, 256, 1.0, without=("IQ4_XS",))
    (tight,), (roomy,) = (offers([item], int(65536 * bpw / 8)) for bpw in (2.7, 3.1))
    assert {*tight} - {*roomy} == {*LATTICE_TYPES}
    assert {*roomy} == {*SCALAR_TYPES, *SMALL_BLOCK_TYPES} - {"IQ4_XS"}


def test_too_small_a_budget_says_what_is_needed():
    with pytest.raises(PlanError, match=r"leaves 1,000 bytes .* the smallest types take 16,896"):
        allocate([Item("a", 65536, 256, 1.0)], 1000)


def test_errors_fall_with_bits():
    errors = [relative_error(t) for t in SCALAR_TYPES]
    assert errors == sorted(errors, reverse=True)


def test_the_layers_share_falls_with_their_number():
    assert default_sensitivity("ffn_down", 5, 32) < default_sensitivity("ffn_down", 3, 6)
    assert default_sensitivity("ffn_down", 0, 32) > default_sensitivity("ffn_down", 5, 32)


@pytest.mark.parametrize("rotate", ["none", "fused"])
@pytest.mark.parametrize("bpw", [2.5, 3.5, 4.25, 6])
def test_a_plan_meets_its_target(novels, rotate, bpw):
    model = open_model(novels)
    weights = sum(t.size for t in model.tensors.values())
    plan = make_plan(model, Options(rotate=rotate), budget=int(bpw * weights / 8))
    assert 0.99 * bpw <= plan.bpw <= bpw
    assert any("predicted KL divergence" in note for note in plan.notes)


def test_a_named_type_is_kept(novels):
    model = open_model(novels)
    options = Options(rotate="none", tensor_type=[("attn_v", "q8_0")])
    types = {t.name: t.type for t in make_plan(model, options, budget=2_300_000).tensors}
    assert {t for n, t in types.items() if "attn_v" in n} == {"Q8_0"}


def test_the_outer_layers_matter_more_and_the_last_most():
    first, second, *inner, before, last = (default_sensitivity("attn_q", i, 9) for i in range(9))
    assert last > first > second == before > max(inner)
