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
    """The same network to a reader of its first layer: every stream begins ten thousandfold."""
    return tensors | {"token_embd.weight": tensors["token_embd.weight"] * np.float32(10_000)}


def said(model, **options):
    return prepare(model, Options(**DEALT | options)).plan.notes


def embedding_beside_layers(model):
    prepared = prepare(model, Options(**DEALT))
    given = model, prepared.plan, prepared.inputs, prepared.importance
    found, _ = find_sensitivity(*given, Machine())
    return found["token_embd.weight"] / found["blk.3.ffn_up.weight"]


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
def test_an_embedding_that_layers_hardly_move_matters_more(tmp_path, monkeypatch):
    """What layers add to a stream ten thousand times as large, and lose, is next to nothing.

    Nothing can be kept here, and nobody minds.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    plain = embedding_beside_layers(untied(tmp_path))
    assert embedding_beside_layers(untied(tmp_path, louder)) > 10 * plain
