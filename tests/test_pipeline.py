"""The main job on the real model, judged by real llama.cpp."""

import hashlib

import gguf
import llama
import numpy as np
import pytest
from tiny_models import write_tensors, write_tiny

from tqgguf import pipeline
from tqgguf.calibration.calibrated import Calibrated
from tqgguf.errors import MismatchError, OutputError, WeightError
from tqgguf.machine.machine import Machine
from tqgguf.measure.verify import require, verify
from tqgguf.models import open_model
from tqgguf.output.files import partial_path
from tqgguf.planning.plan import Options
from tqgguf.planning.planner import make_plan
from tqgguf.rotation.recorded import read_rotation
from tqgguf.rotation.restored import restored

TEXT = (
    "The old man looked at the sea and said nothing for a long time. At last he turned to the"
    " boy, who had been waiting by the boat with the lamp in his hand, and asked him whether "
    "his mother knew where he was. The boy shook his head. It was getting dark, and the wind "
    "had begun to rise from the west; one could hear the water under the planks of the pier, "
    "and far away, in the village, a dog was barking. They went up the hill together without "
    "another word, until they saw the light in the window of the little house, and a woman "
    "standing in the door. She did not scold him. She only took the lamp out of his hand, put"
    " her arm about his shoulders, and drew him into the warm room, where the table had been "
    "laid for three. Nobody spoke during the meal."
)


def convert(source, path, *, threads=2, force=False, **options):
    model = open_model(source)
    return list(
        pipeline.convert(
            model,
            make_plan(model, Options(**{"rotate": "fused"} | options)),
            path,
            machine=Machine(threads),
            force=force,
        )
    )


def check(quant, original):
    checks = list(verify(open_model(quant), open_model(original)))
    require(checks, quant)
    return checks


@pytest.mark.slow
def test_folding_the_trained_model_is_exact_in_llama_cpp(novels, tmp_path):
    folded = tmp_path / "folded.gguf"
    convert(novels, folded, type="f32", rotate="fused")
    plain = tmp_path / "plain.gguf"
    convert(novels, plain, type="f32", rotate="none")
    want, got = llama.logprobs(plain, TEXT), llama.logprobs(folded, TEXT)
    assert len(want) >= 200
    top = np.argsort(want, axis=1)[:, -5:]
    difference = np.take_along_axis(got - want, top, axis=1)
    assert np.abs(difference).max() <= 1e-3
    assert llama.kl_divergence(want, got).max() <= 1e-5
    prompt = "The old man looked at the sea and"
    assert llama.generate(folded, prompt, 60) == llama.generate(plain, prompt, 60)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_folding_random_models_is_exact_in_llama_cpp(tmp_path, name, tied):
    source = write_tiny(tmp_path / "source.gguf", name, tied=tied)
    convert(source, tmp_path / "folded.gguf", type="f32")
    tokens = np.random.default_rng(5).integers(3, 2048, 220).tolist()
    want = llama.logprobs(source, tokens)
    got = llama.logprobs(tmp_path / "folded.gguf", tokens)
    assert want.std(axis=1).mean() > 0.5  # the model says something
    assert np.abs(got - want).max() <= 1e-2
    check(tmp_path / "folded.gguf", source)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tq-q4", "tq-q3", "tq-q2"])
def test_recipes_load_generate_and_verify(novels, tmp_path, recipe):
    path = tmp_path / "q.gguf"
    reports = convert(novels, path, type=recipe)
    check(path, novels)
    text = llama.generate(path, "The old man looked at the sea and", 24)
    assert len(text.split()) >= 10
    losses = [r for r in reports if r.rel_mse_unrotated is not None]
    assert len(losses) == 6 * 7 + 2  # seven matrices a layer, the embedding and the untied head
    assert all(0 < r.rel_mse < 0.2 for r in losses)


def test_tq_q4_continues_sentences_in_the_words_of_the_original(novels, tmp_path):
    path = tmp_path / "q.gguf"
    convert(novels, path, type="tq-q4")
    for prompt in ("Upon my word, sir,", "At the end of the street there was"):
        assert llama.generate(path, prompt, 16) == llama.generate(novels, prompt, 16)


@pytest.mark.slow
def test_tensor_mode_is_undone_by_dequantize(shallow, tmp_path):
    path, back = tmp_path / "t.gguf", tmp_path / "back.gguf"
    convert(shallow, path, type="q4_k", rotate="tensor")
    check(path, shallow)
    model = restored(open_model(path))
    plan = make_plan(model, Options(type="f32", rotate="none", allow_requantize=True))
    list(pipeline.convert(model, plan, back))
    assert read_rotation(open_model(back)).mode == "none"
    original = open_model(shallow)
    for name, tensor in open_model(back).tensors.items():
        w = original.tensors[name].read()
        assert np.square(tensor.read() - w).sum() <= 0.006 * np.square(w).sum(), name


@pytest.mark.slow
def test_fused_mode_is_undone_by_dequantize_to_the_original_gains(shallow, tmp_path):
    convert(shallow, tmp_path / "f.gguf", type="f32", rotate="fused")
    original, model = open_model(shallow), restored(open_model(tmp_path / "f.gguf"))
    for name, tensor in original.tensors.items():
        np.testing.assert_allclose(model.tensors[name].read(), tensor.read(), atol=2e-5)


@pytest.mark.slow
def test_verify_finds_the_damaged_blocks_of_one_row(shallow, tmp_path):
    path = tmp_path / "q.gguf"
    convert(shallow, path, type="tq-q2")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    data = bytearray(path.read_bytes())
    row_bytes = tensor.n_bytes // 768
    begin = tensor.data_offset + 17 * row_bytes
    noise = np.random.default_rng(0).integers(0, 256, row_bytes - 20, dtype=np.uint8)
    data[begin + 16 : begin + row_bytes - 4] = noise.tobytes()  # the codes; the scales stay
    path.write_bytes(data)
    with pytest.raises(MismatchError, match=r"blk\.1\.ffn_up\.weight, row 17: a block differs"):
        check(path, shallow)


def test_verify_knows_what_importance_gives_up(tmp_path):
    source, path = write_tiny(tmp_path / "a.gguf", "gemma3"), tmp_path / "q.gguf"
    model = open_model(source)

    spread = np.abs(model.tensors["token_embd.weight"].read()).max(axis=0)
    little = np.where(spread > 2 * np.median(spread), 1e-6, 1).astype(np.float32)
    plan = make_plan(model, Options(type="q4_0", rotate="none"))
    importance = {"token_embd.weight": little[None]}.get
    list(pipeline.convert(model, plan, path, importance=importance))
    assert any(c.worst_block > 0.125 for c in check(path, source))
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, 16, dtype=np.uint8)
    data[tensor.data_offset + 2 : tensor.data_offset + 18] = noise.tobytes()
    path.write_bytes(data)
    with pytest.raises(MismatchError, match=r"token_embd.weight, row 0: a block differs"):
        check(path, source)


def test_verify_refuses_another_model(shallow, stories, tmp_path):
    convert(stories, tmp_path / "s.gguf", type="q8_0")
    with pytest.raises(MismatchError):
        check(tmp_path / "s.gguf", shallow)


@pytest.mark.slow
@pytest.mark.usefixtures("two_blas_threads")
def test_bytes_do_not_depend_on_threads(shallow, tmp_path):
    digests = set()
    for threads in (1, 2, 3):
        path = tmp_path / f"{threads}.gguf"
        convert(shallow, path, type="tq-q3", threads=threads)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_metadata_is_carried_over_unchanged(shallow, tmp_path):
    convert(shallow, tmp_path / "q.gguf", type="tq-q4")
    before, after = open_model(shallow).metadata, open_model(tmp_path / "q.gguf").metadata
    ours = {k: v for k, v in after.items() if not k.startswith("tqgguf.")}
    changed = {"general.file_type", "general.quantization_version"}
    assert {k: v for k, v in ours.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert reader.fields["tqgguf.rotation.mode"].contents() == "fused"
    assert all(t.tensor_type != gguf.GGMLQuantizationType.F64 for t in reader.tensors)


@pytest.mark.parametrize("rotate", ["none", "values"])
def test_what_was_rounded_before_is_written_and_judged_by_a_sample(shallow, tmp_path, rotate):
    made = {r.name: r for r in convert(shallow, tmp_path / "a.gguf", type="q4_0", rotate=rotate)}
    written = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    rows = {name: written[name] for name, report in made.items() if report.type == "Q4_0"}
    model = open_model(shallow)
    plan = make_plan(model, Options(type="q4_0", rotate=rotate))
    calibrated = Calibrated(rows, "key")
    for r in pipeline.convert(model, plan, tmp_path / "b.gguf", calibrated=calibrated):
        for error in ("rel_mse", "rel_mse_unrotated"):
            expected = getattr(made[r.name], error)
            assert getattr(r, error) == (expected and pytest.approx(expected, rel=0.1))
    for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors:
        assert np.array_equal(tensor.data, written[tensor.name])


def test_rows_that_fit_no_block_stay_f16(stories, tmp_path):
    reports = {r.name: r for r in convert(stories, tmp_path / "s.gguf", type="tq-q4")}
    assert reports["blk.0.ffn_down.weight"].type == "F16"
    assert "rows of 172" in reports["blk.0.ffn_down.weight"].reason
    assert reports["blk.0.attn_q.weight"].type != "Q4_K"
    assert len(llama.generate(tmp_path / "s.gguf", "Once upon a time", 24)) > 30


def test_a_split_model_is_read_whole(shallow, tmp_path):
    model = open_model(shallow)
    tensors = {name: t.read() for name, t in model.tensors.items()}
    names, count = list(tensors), 3
    for i in range(count):
        part = {n: tensors[n] for n in names[i::count]}
        shard = tmp_path / f"m-{i + 1:05d}-of-{count:05d}.gguf"
        write_tensors(shard, shallow, part)
    first = tmp_path / "m-00001-of-00003.gguf"
    convert(first, tmp_path / "whole.gguf", type="f32", rotate="none")
    whole = open_model(tmp_path / "whole.gguf").tensors
    assert set(whole) == set(names)
    for name in names:
        np.testing.assert_array_equal(whole[name].read(), tensors[name])
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(Exception, match=r"shard m-00002-of-00003\.gguf is missing"):
        open_model(first)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_counted_and_nothing_is_left(stories, tmp_path, bad):
    tensors = {name: t.read() for name, t in open_model(stories).tensors.items()}
    tensors["blk.1.attn_q.weight"][3, 5:8] = bad
    source = write_tensors(tmp_path / "bad.gguf", stories, tensors)
    counts = "3 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 3 infinite"
    with pytest.raises(WeightError, match=rf"blk\.1\.attn_q\.weight: {counts} weights of 4,096"):
        convert(source, tmp_path / "out.gguf", type="q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


def test_an_output_is_never_overwritten_unasked(shallow, tmp_path):
    path = tmp_path / "q.gguf"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"exists already; overwrite it with --force"):
        convert(shallow, path, type="q4_0")
    assert path.read_text() == "precious"
    convert(shallow, path, type="q4_0", force=True)
    check(path, shallow)
    assert not partial_path(path).exists()


def test_the_input_is_never_the_output(shallow, tmp_path):
    source = tmp_path / "m.gguf"
    source.write_bytes(shallow.read_bytes())
    with pytest.raises(OutputError, match="the output is the input"):
        convert(source, source, type="q4_0", force=True)
    assert source.read_bytes() == shallow.read_bytes()
