"""How much the ends matter is measured where their types are open."""

import numpy as np
import pytest

from tests.planning.test_rotations import NOVELS, untied
from tqgguf.machine.machine import Machine
from tqgguf.models import open_model
from tqgguf.planning.choices import prepare
from tqgguf.planning.plan import Options
from tqgguf.planning.sensitivities import find_sensitivity

DEALT = {"type": "tq-q2", "rotate": "none"}
MEASURED = "sensitivity of embedding, head and layers"


def louder(tensors):
    """The same network to a reader of its first layer: every stream begins a hundredfold."""
    return tensors | {"token_embd.weight": tensors["token_embd.weight"] * np.float32(100)}


def said(model, **options):
    return prepare(model, Options(**DEALT | options)).plan.notes


def bits(model, name):
    plan = prepare(model, Options(**DEALT)).plan
    (found,) = (t for t in plan.tensors if t.name == name)
    return 8 * found.n_bytes / found.size


@pytest.mark.slow
def test_the_ends_are_measured_where_they_are_two(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    apart = untied(tmp_path)
    prepared = prepare(apart, Options(**DEALT))
    assert any(MEASURED in note for note in prepared.plan.notes)
    assert not any(MEASURED in note for note in said(apart, effort="fast"))
    assert not any(MEASURED in note for note in said(open_model(NOVELS)))
    given = apart, prepared.plan, prepared.inputs, prepared.importance
    found, (note,) = find_sensitivity(*given, Machine(max_memory=1 << 20))
    assert found is None
    assert note.startswith("--max-memory is too little")


@pytest.mark.slow
def test_an_embedding_that_layers_hardly_move_gets_more_bits(tmp_path, monkeypatch):
    """What layers add to a stream a hundred times as large, and lose, is next to nothing.

    Nothing can be kept here, and nobody minds.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    plain = bits(untied(tmp_path), "token_embd.weight")
    assert bits(untied(tmp_path, louder), "token_embd.weight") > plain
