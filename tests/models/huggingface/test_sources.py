"""Folders and files that are something else than they seem: what they are, and the cure."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tests.models.huggingface.bpe import train_byte_level
from tests.models.huggingface.folders import LLAMA, llama_weights, write_folder, write_json
from tests.models.huggingface.test_bad_folders import refusal
from tests.tiny_models import DATA
from tqgguf.cli import app
from tqgguf.models import open_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4976698672\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "model")


def test_a_lora_adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    save_file(
        {"a.lora_A.weight": np.ones((8, 4), np.float32)}, folder / "adapter_model.safetensors"
    )
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "org/base"})
    assert "a LoRA adapter, no whole model; merge it into its base model, org/base" in refusal(
        folder
    )
    assert "a LoRA adapter" in refusal(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "config.json", "tokenizer_config.json", "generation_config.json"],
)
def test_a_pointer_of_git_lfs(file, folder):
    (folder / file).write_text(POINTER)
    assert f"{file}: " in refusal(folder)
    assert "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`" in refusal(
        folder
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (POINTER.encode(), "a Git LFS pointer"),
        (b"PK\x03\x04", "a PyTorch checkpoint; save the model again"),
        (b"<!DOCTYPE html>", "a web page; download the file again"),
        (b"", "an empty file"),
        (b'\x10\0\0\0\0\0\0\0{"a":{"dtype":"F32"', "a safetensors file; give it a name"),
    ],
)
def test_what_a_gguf_file_is_instead(content, kind, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert kind in refusal(path)


def test_a_gguf_file_named_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"GGUF\3\0\0\0")
    assert "a GGUF file; give it a name that ends in .gguf" in refusal(folder)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.h5", "consolidated.00.pth"])
def test_weights_of_another_kind_only(file, folder):
    (folder / "model.safetensors").rename(folder / file)
    assert f"only {file}; save the model again with transformers' save_pretrained" in refusal(
        folder
    )


def test_a_folder_that_holds_gguf(folder):
    (folder / "model.safetensors").rename(folder / "m-f16.gguf")
    assert f"give the file, {folder / 'm-f16.gguf'}" in refusal(folder)
    (folder / "config.json").unlink()
    assert f"give the file, {folder / 'm-f16.gguf'}" in refusal(folder)


def test_one_shard_of_several(folder):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        save_file(llama_weights(), folder / name)
        assert f"of 2; give the folder, {folder}" in refusal(folder / name)


NO_SENTENCEPIECE = {
    "tiktoken's text format": b"IQ== 0\nIg== 1\n",
    "an empty file": b"",
    "a Git LFS pointer": POINTER.encode(),
    "not a SentencePiece model": b"\xff\xfe anything",
}


@pytest.mark.parametrize("kind", NO_SENTENCEPIECE)
def test_a_tokenizer_model_that_is_none_gives_way_to_tokenizer_json(kind, tmp_path):
    folder = write_folder(tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    train_byte_level("qwen2", LLAMA["vocab_size"]).save(str(folder / "tokenizer.json"))
    plain = open_model(folder)
    (folder / "tokenizer.model").write_bytes(NO_SENTENCEPIECE[kind])
    model = open_model(folder)
    assert model.metadata == plain.metadata
    assert [kind in note and "tokenizer.json is used" in note for note in model.notes] == [True]
    (folder / "tokenizer.json").unlink()
    assert f"{kind}" in refusal(folder)
    assert "there is no tokenizer.json; give --vocab-from" in refusal(folder)


@pytest.mark.parametrize("place", ["chat_template.jinja", "additional_chat_templates/a.jinja"])
def test_a_template_that_is_not_utf8(place, folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / place).write_bytes('{{ "caf\xe9" }}'.encode("latin-1"))
    assert f"{place}: not UTF-8 text" in refusal(folder)


def test_formats_of_others(folder):
    (folder / "config.json").unlink()
    write_json(folder / "model_index.json", {})
    assert "a diffusion pipeline" in refusal(folder)
    write_json(folder / "params.json", {})
    assert "in their author's own format (params.json)" in refusal(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A snapshot of a repository as the hub's cache keeps it; the current folder is elsewhere."""
    repository = tmp_path / "hub" / "models--org--Tiny-Model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, file in enumerate(sorted(write_folder(tmp_path / "plain").iterdir())):
        file.rename(repository / "blobs" / f"b{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/b{i}")
    os.link(DATA / "novels-5m-f16.gguf", repository / "blobs" / "aaa")
    (snapshot / "Novels-f16.gguf").symlink_to("../../blobs/aaa")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return snapshot


@pytest.mark.parametrize(
    ("given", "output"),
    [
        (".", "Tiny-Model-TQ-Q4.gguf"),
        ("model.safetensors", "Tiny-Model-TQ-Q4.gguf"),
        ("Novels-f16.gguf", "Novels-TQ-Q4.gguf"),
        ("../../blobs/aaa", "Tiny-Model-TQ-Q4.gguf"),
    ],
)
def test_the_output_of_a_cached_model_is_named_after_its_repository(given, output, cache, tmp_path):
    before = set((tmp_path / "hub").rglob("*"))
    arguments = ["quantize", str(cache / given), "-q", "-t", "tq-q4", "--rotate", "none"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [p.name for p in (tmp_path / "here").iterdir()] == [output]
    assert set((tmp_path / "hub").rglob("*")) == before


def test_a_cached_model_is_called_after_its_repository(cache):
    model = open_model(cache)
    assert model.get("general.name") == "Tiny Model"
    assert model.get("general.organization") == "Org"
    n_weights = sum(w.size for w in llama_weights().values())
    assert model.get("general.size_label") == f"{n_weights / 1000:.0f}K"
    assert f"give one of its snapshots, {cache}" in refusal(cache.parents[1])


@pytest.mark.parametrize("place", ["snapshots", "refs", "blobs", "."])
def test_another_part_of_a_cached_repository_names_the_snapshot(place, cache):
    repository = cache.parents[1]
    newer = cache.with_name("f" * 40)
    newer.mkdir()
    write_json(newer / "config.json", LLAMA)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert f"give one of its snapshots, {cache}" in refusal(repository / place)
    assert f"a cache of 1 models; give a snapshot of one, such as {cache}" in refusal(
        repository.parent
    )
    (repository / "refs" / "main").write_bytes(b"\xff\xfe nothing")
    assert f"give one of its snapshots, {newer}" in refusal(repository / place)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"]
)
def test_a_link_whose_blob_is_gone(file, cache):
    (cache / file).resolve().unlink()
    says = f"{cache / file}: a link to nothing; download the model again"
    assert says in refusal(cache)
    (cache / file).unlink()
    (cache / file).symlink_to(file)
    assert says in refusal(cache)


def test_a_snapshot_whose_weights_have_not_come(cache):
    blob = (cache / "model.safetensors").resolve()
    (cache / "model.safetensors").unlink()
    (cache / "Novels-f16.gguf").unlink()
    blob.rename(blob.with_name("b9.incomplete"))
    assert "its download is not complete (blobs/b9.incomplete); download the" in refusal(cache)
    (cache / "config.json").unlink()
    assert "a cached repository without a whole snapshot" in refusal(cache.parents[1])


def test_the_output_of_a_linked_file_is_beside_the_link(tmp_path):
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "my-f16.gguf"
    link.symlink_to(DATA / "novels-5m-f16.gguf")
    result = CliRunner().invoke(app, ["quantize", str(link), "-q", "--rotate", "none"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "here" / "my-TQ-Q4.gguf").is_file()
