"""Padded models against real llama.cpp: wider, and the network computes the same."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.llama import NotFiniteError, logprobs
from tests.tiny_models import ODD, TINY, write_tiny
from tqgguf.errors import FileFormatError, MismatchError, UnsupportedModelError
from tqgguf.machine.machine import Machine
from tqgguf.models import Model, open_model
from tqgguf.models.metadata import encode
from tqgguf.models.model import Tensor
from tqgguf.pipeline import conversion, convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.padded_axes import FFNS, padding
from tqgguf.rotation.padding import Pad, Padding, padded, read_padding, unpadded
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.restored import restored

TOKENS = np.random.default_rng(1).integers(3, 2048, 48).tolist()
HEADS = {"internlm2", "qwen", "qwen2", "qwen2moe", "olmoe", "bailingmoe2", "deepseek", "phimoe"}
HEADS |= {"phi3"}
DELTA_NETS = {"qwen35", "qwen35moe", "qwen3next"}


def tiny(folder, name) -> Model:
    """A tiny model with a width of 96 and FFNs of 96."""
    return open_model(
        write_tiny(folder / "a.gguf", name, sizes={**ODD, **TINY[name].sizes}, words=False)
    )


def write(model: Model, path, rotate="none") -> Model:
    """The model in F32; what is refused on the way is refused."""
    plan = make_plan(model, Options(type="F32", rotate=rotate))
    list(convert(model, plan, path, machine=Machine(1), force=True))
    return open_model(path)


def moved(model: Model, made: Padding, reference: np.ndarray) -> float:
    """How far any log-probability moves from the reference; infinite where the network broke."""
    path = model.path.with_name("b.gguf")
    try:
        write(padded(model, made), path)
        return np.abs(reference - logprobs(path, TOKENS)).max()
    except NotFiniteError:
        return np.inf


def prove(model: Model, reference: np.ndarray, made: Padding) -> None:
    assert made
    assert moved(model, made, reference) < 1e-2
    wide = open_model(model.path.with_name("b.gguf"))
    back = unpadded(wide)
    assert {k: back.metadata[k] for k in model.metadata} == {**model.metadata}
    for name, tensor in model.tensors.items():
        assert back.tensors[name].shape == tensor.shape
        assert np.allclose(back.tensors[name].read(), tensor.read(), rtol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_padded_model_computes_the_same(tmp_path, name):
    model = tiny(tmp_path, name)
    reference = logprobs(model.path, TOKENS)
    made = padding(model, inner=FFNS)
    prove(model, reference, made)
    assert {p.after[2] % 256 for n, p in made.pads.items() if n.endswith("down.weight")} <= {0}
    row = STREAMS[model.architecture]
    if row.refusal or row.norm == "layer" or row.name in HEADS | DELTA_NETS:
        with pytest.raises(UnsupportedModelError, match="cannot be padded: "):
            padding(model, stream=True)
    else:
        prove(model, reference, padding(model, inner=FFNS, stream=True))


def test_matrices_that_are_stacked_grow_one_by_one(tmp_path, monkeypatch):
    model = tiny(tmp_path, "phi3")  # whose ffn_up holds the gate before its own rows
    made = padding(model, inner=FFNS)
    reference = logprobs(model.path, TOKENS)
    prove(model, reference, made)
    monkeypatch.setattr(conversion, "check_fold", lambda *_, **__: None)
    gathered = {n: at_the_end(pad) for n, pad in made.pads.items()}
    assert moved(model, dataclasses.replace(made, pads=gathered), reference) > 1e-2


def at_the_end(pad: Pad) -> Pad:
    """The same growth with all that was added behind the last matrix."""
    (n, *old), (_, *new) = pad.before, pad.after
    return Pad((1, n * old[0], old[1]), (1, n * new[0], new[1]))


def test_norms_make_up_for_the_width(tmp_path, monkeypatch):
    model = tiny(tmp_path, "llama")
    made = padding(model, stream=True)
    reference = logprobs(model.path, TOKENS)
    prove(model, reference, made)
    for name, pad in made.pads.items():
        if pad.gain == 1:
            continue
        left = {**made.pads, name: dataclasses.replace(pad, gain=1.0)}
        wrong = dataclasses.replace(made, pads=left)
        with pytest.raises(MismatchError, match=r"network's output by .* use --pad none"):
            write(padded(model, wrong), tmp_path / "c.gguf")
        with monkeypatch.context() as unchecked:
            unchecked.setattr(conversion, "check_fold", lambda *_, **__: None)
            assert moved(model, wrong, reference) > 1e-2, name


@pytest.mark.parametrize("rotate", ["fused", "values", "scales"])
def test_what_is_padded_can_be_rotated(tmp_path, rotate):
    model = tiny(tmp_path, "qwen3")
    rotated = write(padded(model, padding(model, inner=FFNS, stream=True)), tmp_path / "b", rotate)
    assert read_rotation(rotated).mode == rotate
    assert np.abs(logprobs(model.path, TOKENS) - logprobs(rotated.path, TOKENS)).max() < 1e-2
    back = restored(rotated)
    for name, tensor in model.tensors.items():
        expected = tensor.read()
        found = back.tensors[name].read()
        assert np.allclose(found, expected, atol=1e-5 * np.abs(expected).max()), name


SIZES = st.tuples(*[st.integers(1, 5)] * 2)


@given(st.integers(1, 3), SIZES, SIZES, st.integers(2, 3), st.data())
def test_padding_is_undone_and_any_rows_can_be_read(n_mat, before, added, axes, data):
    rows, columns = before
    x = np.random.default_rng(0).standard_normal((n_mat * rows, columns)).astype(np.float32)
    shape = (n_mat, rows, columns) if axes == 3 else x.shape
    tensor = Tensor("a", shape, "F32", lambda a, b: x[a:b])
    pad = Pad((n_mat, *before), (n_mat, rows + added[0], columns + added[1]), 0.5)
    larger = pad.apply(tensor)
    whole = larger.read().reshape(n_mat, rows + added[0], columns + added[1])
    assert np.array_equal(whole[:, :rows, :columns].reshape(x.shape), x / 2)
    assert not whole[:, rows:].any()
    assert not whole[:, :, columns:].any()
    first = data.draw(st.integers(0, larger.n_rows))
    last = data.draw(st.integers(first, larger.n_rows))
    assert np.array_equal(larger.rows(first, last), whole.reshape(-1, larger.n_in)[first:last])
    assert np.array_equal(pad.undo(larger).read(), tensor.read())
    assert pad.undo(larger).shape == shape


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gains", [0.0]),
        ("gains", "many"),
        ("gains", [float("inf")]),
        ("before_matrices", [2]),
        ("before_rows", [0]),
        ("before_columns", [1 << 20]),
        ("after_columns", [1]),
        ("keys", ["llama.nothing"]),
        ("tensors", []),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path, key, value):
    wide = padded(model := tiny(tmp_path, "llama"), padding(model, inner=FFNS))
    count = len(read_padding(wide).pads)
    many = value * count if isinstance(value, list) and key != "keys" else value
    broken = {**wide.metadata, f"tqgguf.padding.{key}": encode(many)}
    with pytest.raises(FileFormatError, match="padding metadata"):
        read_padding(dataclasses.replace(wide, metadata=broken))
