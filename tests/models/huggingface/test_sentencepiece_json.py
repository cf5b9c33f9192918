"""SentencePiece's BPE written as tokenizer.json, with no tokenizer.model beside it."""

import itertools
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.llama import tokenize_each
from tests.models.huggingface.bpe import TEXTS
from tests.models.huggingface.folders import NOVELS, write_folder
from tests.models.huggingface.test_byte_level_bpe import converted
from tests.tiny_models import DATA
from tqgguf.errors import UnsupportedModelError
from tqgguf.models import open_model


def as_json(normalizer: str) -> Tokenizer:
    """novels-5m's tokenizer.model as the tokenizers package runs it."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(NOVELS / "tokenizer.model"))
    vocab = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    merges = []
    for piece, i in vocab.items():
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += [(-pieces.get_score(i), pair) for pair in cuts if all(p in vocab for p in pair)]
    merges.sort(key=lambda row: row[0])
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            [pair for _, pair in merges],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    replace = normalizers.Replace(" ", "\u2581")
    if normalizer == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    elif normalizer == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def folder_with(path: Path, tokenizer: Tokenizer) -> Path:
    folder = write_folder(path)
    (folder / "tokenizer.model").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("normalizer", ["prepend", "metaspace", "none"])
def test_tokens_equal_the_tokenizers_packages(normalizer, tmp_path):
    tokenizer = as_json(normalizer)
    folder = folder_with(tmp_path, tokenizer)
    model = open_model(folder)
    assert model.get("tokenizer.ggml.model") == "llama"
    assert model.get("tokenizer.ggml.add_space_prefix") is (normalizer != "none")
    with (DATA / "novels-eval.txt").open(encoding="utf-8") as file:
        texts = [line.rstrip("\n") for line in itertools.islice(file, 300) if line.strip()]
    texts += [text for text in TEXTS if text]
    if normalizer == "metaspace":  # which adds no second space, as llama.cpp always does
        texts = [text for text in texts if not text.startswith(" ")]
    ours = tokenize_each(converted(folder), texts)
    assert ours == [[1, *tokenizer.encode(text).ids] for text in texts]


def test_another_normalizer_is_an_error(tmp_path):
    tokenizer = as_json("prepend")
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.Lowercase()])
    with pytest.raises(UnsupportedModelError, match=r"no normalizer like .*--vocab-from"):
        open_model(folder_with(tmp_path, tokenizer))
