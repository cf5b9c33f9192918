"""Every row of the table against real llama.cpp: folded, the network computes the same.

And the other way round: for every role of every row, a table that forgets it gives another network,
so no entry is there by luck.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_models
from tests.llama import NotFiniteError, kl_divergence, logprobs
from tests.tiny_models import ODD, TINY, write_tensors
from tqgguf.errors import UnsupportedModelError
from tqgguf.machine.machine import Machine
from tqgguf.models import Model, open_model
from tqgguf.models.roles import role
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation import folding
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.folded import fold
from tqgguf.rotation.restored import restored
from tqgguf.rotation.stream import Stream

TOKENS = np.random.default_rng(1).integers(3, 512, 64).tolist()
TIED = [name for name in TINY if "output V D" in TINY[name].outside]
# llama.cpp refuses these without output.weight
HEAD_REQUIRED = {"apertus", "bailingmoe2", "dots1", "gpt-oss", "gptneox", "internlm2", "nemotron"}
HEAD_REQUIRED |= {"olmo2", "olmoe", "phi2", "phimoe", "qwen", "qwen2moe", "stablelm"}


def write_tiny(path: Path, name: str, *, sizes: Mapping[str, int] = {}, **more: bool) -> Path:
    """With few tokens and no words for them."""
    few = {"V": 512, **sizes}
    return tiny_models.write_tiny(path, name, sizes=few, words=False, **more)


def folded(source: Path, target: Path) -> Path:
    """The model with everything folded that its row allows, in F32."""
    model = open_model(source)
    plan = make_plan(model, Options(type="F32", rotate=rotation_mode(model)))
    assert plan.rotation.sides
    list(convert(model, plan, target, machine=Machine(threads=1)))
    return target


def rotation_mode(model: Model) -> str:
    """The most that the row allows."""
    return "values" if STREAMS[model.architecture].refusal else "fused"


def folded_unchecked(source: Path, target: Path) -> Path:
    """The same without `quantize`, which refuses folds that change what it can compute itself."""
    model = open_model(source)
    rotate = folding.values if rotation_mode(model) == "values" else folding.fused
    tensors = fold(model, rotate(model).with_vectors_of(model)).tensors
    return write_tensors(target, source, {name: t.read() for name, t in tensors.items()})


def difference(reference: np.ndarray, other: Path) -> float:
    """How far any log-probability moves from the reference; infinite where the network broke."""
    try:
        return np.abs(reference - logprobs(other, TOKENS)).max()
    except NotFiniteError:
        return np.inf


def prove(source: Path, target: Path) -> None:
    """Folding computes the same network, and undoing it gives the same tensors."""
    assert difference(logprobs(source, TOKENS), folded(source, target)) < 1e-2
    back = restored(open_model(target)).tensors
    for name, tensor in open_model(source).tensors.items():
        expected = tensor.read()
        assert np.allclose(back[name].read(), expected, atol=1e-5 * np.abs(expected).max()), name


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_folded_model_computes_the_same(tmp_path, name):
    prove(write_tiny(tmp_path / "a.gguf", name), tmp_path / "b.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_width_with_an_odd_factor(tmp_path, name):
    prove(write_tiny(tmp_path / "a.gguf", name, sizes=ODD), tmp_path / "b.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TIED if TINY[n].arch not in HEAD_REQUIRED])
def test_a_tied_head_is_untied(tmp_path, name):
    prove(write_tiny(tmp_path / "a.gguf", name, tied=True), tmp_path / "b.gguf")


def test_all_rows_are_proven():
    assert {model.arch for model in TINY.values()} == set(STREAMS)


def forgetful(row: Stream, forgotten: str) -> Stream:
    """The row with one role taken for a tensor beside the stream."""
    without = tuple(r for r in row.writers if r != forgotten)
    return dataclasses.replace(
        row,
        norms={
            "" if norm == forgotten else norm: tuple(r for r in readers if r != forgotten)
            for norm, readers in row.norms.items()
        },
        head_norm=row.head_norm if row.head_norm != forgotten else "",
        embedding_norm=row.embedding_norm if row.embedding_norm != forgotten else "",
        writers=without,
        embeddings=tuple(r for r in row.embeddings if r != forgotten),
        values=None if row.values is None else tuple(r.replace(forgotten, "") for r in row.values),
        untouched=(*row.untouched, forgotten),
    )


def roles(name: str) -> list[str]:
    """The roles of a tiny model that its row gives something to do."""
    row = STREAMS[TINY[name].arch]
    model = TINY[name]
    text = f"{model.layer}\n{model.first}\n{model.outside.replace(';', chr(10))}"
    present = {line.split()[0] for line in text.splitlines() if line.strip()}
    if row.refusal:
        return sorted(present & set(row.values or ()))
    working = {*row.norms, row.head_norm, *row.readers, *row.writers, *row.embeddings}
    working.add(row.embedding_norm)
    return sorted(present & working)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_role_of_a_row_matters(tmp_path, monkeypatch, name):
    source = write_tiny(tmp_path / "a.gguf", name)
    row = STREAMS[TINY[name].arch]
    reference = logprobs(source, TOKENS)
    assert difference(reference, folded_unchecked(source, tmp_path / "a2.gguf")) < 1e-2
    for forgotten in roles(name):
        monkeypatch.setitem(STREAMS, row.name, forgetful(row, forgotten))
        target = folded_unchecked(source, tmp_path / "b.gguf")
        assert difference(reference, target) > 1e-2, forgotten


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_missing_role_is_refused(tmp_path, monkeypatch, name):
    model = open_model(write_tiny(tmp_path / "a.gguf", name))
    row = STREAMS[model.architecture]
    last = roles(name)[-1]
    known = forgetful(row, last)
    monkeypatch.setitem(STREAMS, row.name, dataclasses.replace(known, untouched=row.untouched))
    with pytest.raises(UnsupportedModelError, match=rf"{last}\..* is not in the table of"):
        folding.values(model) if row.refusal else folding.fused(model)


def test_the_divergence_is_negligible(tmp_path):
    source = write_tiny(tmp_path / "a.gguf", "llama")
    target = folded(source, tmp_path / "b.gguf")
    assert kl_divergence(logprobs(source, TOKENS), logprobs(target, TOKENS)).max() < 1e-8


def test_roles_are_parts_of_names():
    assert role("blk.12.attn_q.weight") == ("attn_q", "weight")
    assert role("output_norm.bias") == ("output_norm", "bias")
