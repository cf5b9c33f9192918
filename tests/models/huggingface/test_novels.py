"""A real model: novels-5m from its Hugging Face folder and from its GGUF file."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from typer.testing import CliRunner

from tests.llama import logprobs, tokenize, tokenize_each
from tests.tiny_models import DATA
from tqgguf.cli import app
from tqgguf.models import open_model

FOLDER, GGUF = DATA / "novels-5m", DATA / "novels-5m-f16.gguf"


def quantize(*arguments: object) -> None:
    result = CliRunner().invoke(app, ["quantize", *map(str, arguments), "--quiet"])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("novels") / "novels.gguf"
    quantize(FOLDER, "-t", "f16", "--rotate", "none", "-o", path)
    return path


def test_the_folder_holds_the_tensors_of_its_gguf_file():
    ours, theirs = open_model(FOLDER), open_model(GGUF)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape
        # the GGUF file is float16, which rounds the smallest bfloat16 weights to its subnormals
        np.testing.assert_allclose(ours.tensors[name].read(), tensor.read(), rtol=0, atol=3e-8)


def test_the_folder_gives_the_metadata_of_its_gguf_file():
    ours, theirs = open_model(FOLDER), open_model(GGUF)
    different = {k for k, v in theirs.metadata.items() if ours.metadata.get(k) != v}
    assert different == {"general.file_type"}
    assert ours.get("general.file_type") == 32  # MOSTLY_BF16


def test_rows_can_be_read_in_any_pieces():
    for tensor in open_model(FOLDER).tensors.values():
        whole = tensor.rows(0, tensor.n_rows)
        for start, stop in [(0, 1), (tensor.n_rows // 3, tensor.n_rows), (0, 0)]:
            np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop])


def test_llama_cpp_computes_the_same_from_folder_and_gguf(converted, tmp_path):
    quantize(GGUF, "-t", "f16", "--rotate", "none", "-o", tmp_path / "other.gguf")
    ids = tokenize(GGUF, "It was a bright cold day, and she had been walking since the morning.")
    difference = logprobs(converted, ids) - logprobs(tmp_path / "other.gguf", ids)
    assert np.abs(difference).max() < 1e-2


def test_a_single_safetensors_file_is_a_model_too():
    folder, file = open_model(FOLDER), open_model(FOLDER / "model.safetensors")
    assert file.tensors.keys() == folder.tensors.keys()
    assert file.metadata == folder.metadata


@pytest.mark.slow
def test_a_quantized_folder_runs_in_llama_cpp(tmp_path):
    quantize(FOLDER, "-t", "tq-q4", "-o", tmp_path / "q4.gguf")
    ids = tokenize(GGUF, "She opened the letter with a trembling hand, and read it twice.")
    exact, ours = logprobs(GGUF, ids), logprobs(tmp_path / "q4.gguf", ids)
    divergence = (np.exp(exact) * (exact - ours)).sum(axis=1).mean()
    assert 0 < divergence < 0.1


def test_the_default_output_stands_beside_the_folder(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "novels-5m")
    quantize(tmp_path / "novels-5m", "-t", "q8_0", "--rotate", "none")
    assert (tmp_path / "novels-5m-Q8_0.gguf").is_file()


def test_tokens_equal_sentencepiece_on_2000_lines(converted):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    with (DATA / "novels-eval.txt").open(encoding="utf-8") as text:
        # This model's normalizer drops doubled and trailing spaces, which llama.cpp never does.
        lines = [" ".join(line.split()) for line in islice(text, 2000)]
    theirs = [[pieces.bos_id(), *pieces.encode(line)] for line in lines]
    assert tokenize_each(converted, lines) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("rotate", ["none", "fused"])
def test_every_command_takes_a_folder(rotate, tmp_path):
    path = tmp_path / "q.gguf"
    quantize(FOLDER, "-t", "q8_0", "--rotate", rotate, "-o", path)
    assert document("plan", FOLDER, "-t", "q8_0", "--rotate", rotate)["bpw"] > 8
    assert document("verify", path, FOLDER)
    assert document("report", "mse", FOLDER, "--types", "Q4_0")["tensors"]
    folder, gguf = (document("compare", original, path) for original in (FOLDER, GGUF))
    assert folder["models"][0]["rel_mse"] == pytest.approx(gguf["models"][0]["rel_mse"], rel=1e-3)
    assert document("inspect", FOLDER)["metadata"]["general.architecture"] == "llama"


def document(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_vocabulary_can_come_from_a_gguf_file(tmp_path):
    folder = tmp_path / "novels-5m"
    shutil.copytree(FOLDER, folder)
    (folder / "tokenizer.model").unlink()
    quantize(folder, "-t", "f16", "--rotate", "none", "--vocab-from", GGUF)
    text = "A tokenizer from elsewhere."
    assert tokenize(tmp_path / "novels-5m-F16.gguf", text) == tokenize(GGUF, text)


@pytest.mark.parametrize(
    ("model", "source", "fact"),
    [
        (FOLDER, DATA / "stories260K-f32.gguf", "has 512 tokens, but"),
        (FOLDER, FOLDER / "config.json", "not a GGUF file"),
        (GGUF, GGUF, "has its own vocabulary; leave out --vocab-from"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_one_line(model, source, fact):
    result = CliRunner().invoke(app, ["plan", str(model), "--vocab-from", str(source)])
    assert result.exit_code == 1
    assert fact in result.output
