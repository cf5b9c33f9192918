"""Decisions of the fold from a header alone: orders, refusals, what becomes of each side."""

import numpy as np
import pytest

from tests.llama import kl_divergence, logprobs
from tests.tiny_models import write_tensors, write_tiny
from tqgguf.errors import FileFormatError, PlanError, UnsupportedModelError
from tqgguf.measure.verify import verify
from tqgguf.models import open_model
from tqgguf.models.metadata import encode
from tqgguf.models.model import Model
from tqgguf.pipeline import convert
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation import folding
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.restored import restored
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import Sides, Step

TOKENS = np.random.default_rng(1).integers(3, 2048, 64).tolist()


def tiny(tmp_path, name, **kwargs):
    return open_model(write_tiny(tmp_path / "a.gguf", name, **kwargs))


@pytest.mark.parametrize(
    ("arch", "width", "order"),
    [
        *(("llama", 768, 256), ("llama", 896, 128), ("llama", 2560, 512), ("llama", 5120, 1024)),
        *(("gpt2", 768, 256), ("gpt2", 896, 64), ("gpt2", 2560, 256), ("gpt2", 5120, 1024)),
        ("llama", 1023, 1),
    ],
)
def test_an_odd_width_gets_the_largest_order_and_says_so(tmp_path, arch, width, order):
    sizes = {"D": width, "V": 32, "F": 32, "C": 8}
    model = tiny(tmp_path, arch, sizes=sizes, layers=1)
    plan = make_plan(model, Options(type="F32", rotate="fused"))
    assert plan.rotation.block == order
    blocks = f"blocks of {order}, {width // order} of them"
    assert any(f"stream of {width}" in note and blocks in note for note in plan.notes)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "olmo2", "qwen2vl", "cohere2"])
def test_a_refusal_gives_the_reason_and_the_alternatives(tmp_path, name):
    with pytest.raises(UnsupportedModelError) as error:
        folding.fused(tiny(tmp_path, name))
    message = str(error.value)
    assert f"the residual stream of {name} cannot be rotated: " in message
    assert "--rotate values (the value heads alone), --rotate none" in message
    assert "\n" not in message


def test_what_cannot_rotate_value_heads_says_why(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"latent shared with the keys \(MLA\); use"):
        folding.values(tiny(tmp_path, "deepseek2"))


def test_a_clamp_on_values_forbids_their_rotation(tmp_path):
    model = tiny(tmp_path, "olmo")
    metadata = {**model.metadata, "olmo.attention.clamp_kqv": encode(8.0)}
    clamped = Model(model.path, metadata, model.tensors)
    rotation = folding.fused(clamped)
    assert rotation.value_block == 0
    assert not any("value" in str(step) for sides in rotation.sides.values() for step in sides)
    with pytest.raises(UnsupportedModelError, match="clamp_kqv clamps each value"):
        folding.values(clamped)


def test_an_unknown_architecture_is_quantized_unrotated(tmp_path):
    model = tiny(tmp_path, "llama")
    unknown = Model(
        model.path, {**model.metadata, "general.architecture": encode("new")}, model.tensors
    )
    with pytest.raises(
        UnsupportedModelError, match=r"'new' \(known: apertus, arcee, .*--rotate none"
    ):
        folding.fused(unknown)
    list(convert(unknown, make_plan(unknown, Options(rotate="none")), tmp_path / "b.gguf"))
    assert open_model(tmp_path / "b.gguf").tensors["blk.0.attn_q.weight"].type != "F32"


def test_an_unknown_tensor_is_refused(tmp_path):
    path = write_tiny(tmp_path / "a.gguf", "llama")
    tensors = {n: t.read() for n, t in open_model(path).tensors.items()}
    tensors["blk.0.attn_sub_norm.weight"] = np.ones(64, np.float32)
    model = open_model(write_tensors(tmp_path / "b.gguf", path, tensors))
    for fold in (folding.fused, folding.values):
        with pytest.raises(
            UnsupportedModelError, match=r"attn_sub_norm\.weight is not in the table"
        ):
            fold(model)


def test_a_layer_that_predicts_further_tokens_keeps_the_stream(tmp_path):
    path = write_tiny(tmp_path / "a.gguf", "glm4moe")
    tensors = {n: t.read() for n, t in open_model(path).tensors.items()}
    tensors["blk.1.nextn.eh_proj.weight"] = np.ones((64, 128), np.float32)
    model = open_model(write_tensors(tmp_path / "b.gguf", path, tensors))
    with pytest.raises(UnsupportedModelError, match=r"nextn\.eh_proj.*a norm of its own.*values"):
        folding.fused(model)
    assert "blk.1.attn_v.weight" in folding.values(model).sides


def test_a_block_that_does_not_fit_names_the_one_that_does(tmp_path):
    model = tiny(tmp_path, "gpt2")
    with pytest.raises(PlanError, match=r"--block 32: this model's rotation needs a power of four"):
        folding.fused(model, block=32)
    with pytest.raises(PlanError, match=r"--block 256 does not divide .* 64; the largest .* is 64"):
        folding.fused(model, block=256)


def with_gain_of_zero(tmp_path, name, norm="blk.1.ffn_norm"):
    path = write_tiny(tmp_path / "a.gguf", name)
    tensors = {n: t.read() for n, t in open_model(path).tensors.items()}
    tensors[f"{norm}.weight"] = tensors[f"{norm}.weight"].copy()
    tensors[f"{norm}.weight"][7] = 0
    return open_model(write_tensors(tmp_path / "z.gguf", path, tensors))


def test_a_dead_channel_folds_and_comes_back(tmp_path):
    model = with_gain_of_zero(tmp_path, "llama")
    list(convert(model, make_plan(model, Options(type="F32", rotate="fused")), tmp_path / "f.gguf"))
    folded = open_model(tmp_path / "f.gguf")
    assert np.array_equal(folded.tensors["blk.1.ffn_norm.weight"].read(), np.ones(64))
    back = restored(folded).tensors
    assert back["blk.1.ffn_norm.weight"].read()[7] == 0
    expected = model.tensors["blk.1.ffn_up.weight"].read()
    alive = np.arange(64) != 7
    assert np.allclose(back["blk.1.ffn_up.weight"].read()[:, alive], expected[:, alive], atol=1e-5)


def test_a_gain_of_zero_behind_the_embedding_is_refused(tmp_path):
    model = with_gain_of_zero(tmp_path, "bloom", "token_embd_norm")
    with pytest.raises(
        UnsupportedModelError, match=r"token_embd_norm\.weight holds a gain of zero"
    ):
        folding.fused(model).with_vectors_of(model)


def test_rotation_helps_an_embedding_behind_which_a_norm_stands(tmp_path):
    model = tiny(tmp_path, "bloom")
    reference, divergence = logprobs(model.path, TOKENS), {}
    for rotate in ("none", "fused"):
        options = Options(type="F32", token_embedding_type="Q8_0", output_type="F32", rotate=rotate)
        list(convert(model, make_plan(model, options), tmp_path / "q.gguf", force=True))
        divergence[rotate] = kl_divergence(reference, logprobs(tmp_path / "q.gguf", TOKENS)).mean()
    assert divergence["fused"] < divergence["none"] / 3


def test_a_gain_of_zero_under_a_bias_is_refused(tmp_path):
    model = with_gain_of_zero(tmp_path, "falcon", "blk.1.attn_norm")
    plan = make_plan(model, Options(type="F32", rotate="fused"))
    says = r"blk\.1\.attn_norm\.weight holds a gain of zero, .* under blk\.1\.attn_norm\.bias"
    with pytest.raises(UnsupportedModelError, match=says):
        list(convert(model, plan, tmp_path / "f.gguf"))
    assert not (tmp_path / "f.gguf").exists()


def test_readers_with_a_bias_take_the_norms_bias(tmp_path):
    model = with_gain_of_zero(tmp_path, "gpt2")
    list(convert(model, make_plan(model, Options(type="F32", rotate="fused")), tmp_path / "f.gguf"))
    folded = open_model(tmp_path / "f.gguf").tensors
    assert not folded["blk.1.ffn_norm.bias"].read().any()
    assert folded["output_norm.bias"].read().any()  # the head has no bias that could take it
    difference = logprobs(model.path, TOKENS) - logprobs(tmp_path / "f.gguf", TOKENS)
    assert np.abs(difference).max() < 1e-2


def test_a_small_gain_under_a_bias_does_not_magnify_errors(tmp_path):
    path = write_tiny(tmp_path / "a.gguf", "gpt2")
    tensors = {n: t.read() for n, t in open_model(path).tensors.items()}
    for norm in [n for n in tensors if n.startswith("blk.") and n.endswith("norm.weight")]:
        tensors[norm] = tensors[norm].copy()
        tensors[norm][::8] /= 100
    model = open_model(write_tensors(tmp_path / "b.gguf", path, tensors))
    reference, divergence = logprobs(model.path, TOKENS), {}
    for rotate in ("none", "fused"):
        plan = make_plan(model, Options(type="Q4_0", output_type="F16", rotate=rotate))
        list(convert(model, plan, tmp_path / "q.gguf", force=True))
        divergence[rotate] = kl_divergence(reference, logprobs(tmp_path / "q.gguf", TOKENS)).mean()
    assert divergence["fused"] < divergence["none"]


def test_a_step_from_the_future_is_an_error():
    rotation = Rotation(mode="fused", sides={"t": Sides(columns=(Step("warp"),))})
    with pytest.raises(FileFormatError, match="rotation step 'warp' is unknown"):
        rotation.undo("t", np.ones((2, 4), np.float32), shape=(2, 4))


def test_tiles_rotate_like_the_whole(tmp_path):
    model = tiny(tmp_path, "phi3")
    rotation = folding.fused(model).with_vectors_of(model)
    name = "blk.1.attn_qkv.weight"
    x = model.tensors[name].read()
    whole = rotation.apply(name, x, shape=x.shape)
    rows, columns = rotation.granule(name)
    assert (rows, columns) == (16, 64)
    for first in range(0, len(x), rows):
        part = rotation.apply(name, x[first : first + rows], shape=x.shape, first=(first, 0))
        assert np.array_equal(part, whole[first : first + rows])
    assert np.allclose(rotation.undo(name, whole, shape=x.shape), x, atol=1e-6)


def test_the_record_is_the_rotation(tmp_path):
    model = tiny(tmp_path, "stablelm-parallel")
    rotation = folding.fused(model, seed=3).with_vectors_of(model)
    again = read_rotation(Model(model.path, rotation.metadata(), {}))
    assert again.sides == rotation.sides
    assert (again.mode, again.kind, again.seed) == ("fused", "regular", 3)
    steps = tuple(map(str, again.sides["blk.0.ffn_up.weight"].columns))
    assert steps == ("gain:blk.0.attn_norm.weight", "residual")


@pytest.mark.parametrize("type", ["Q8_0", "Q5_0", "Q4_0", "IQ4_NL"])
@pytest.mark.parametrize("rotate", ["none", "values"])
def test_outliers_in_every_block_pass_the_verification(tmp_path, type, rotate):
    model = tiny(tmp_path, "gemma")
    plan = make_plan(model, Options(type=type, rotate=rotate))
    list(convert(model, plan, tmp_path / "q.gguf"))
    checks = list(verify(open_model(tmp_path / "q.gguf"), model))
    assert all(check.passed for check in checks), max(checks, key=lambda c: c.rel_mse).complaint


def test_strips_of_columns_are_restored_too(tmp_path):
    model = tiny(tmp_path, "llama")
    list(
        convert(model, make_plan(model, Options(type="Q8_0", rotate="fused")), tmp_path / "q.gguf")
    )
    name = "blk.0.ffn_gate.weight"
    tensor = restored(open_model(tmp_path / "q.gguf")).tensors[name]
    strip = tensor.read_tile((8, 16), (32, 64))
    assert np.array_equal(strip, tensor.read()[8:16, 32:64])
    assert np.allclose(strip, model.tensors[name].read()[8:16, 32:64], atol=0.1)


@pytest.mark.parametrize("text", ["residual", "value@96", "gain:blk.0.attn_norm.weight", "plus:"])
def test_a_step_is_its_text(text):
    assert str(Step.parse(text)) == text


@pytest.mark.parametrize("text", ["value@", "value@-3", "value@x", "@"])
def test_a_step_without_its_index_is_an_error(text):
    with pytest.raises(FileFormatError, match=f"step '{text}' does not fit"):
        Step.parse(text)
