"""Every key and tensor beside those of llama.cpp's official converter, for every folder we have.

What differs is listed with its reason; a difference that is not listed fails, and so does a listed
one that no folder shows any more. Needs the converter (scripts/build_llama_cpp.sh converter).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken

from tests.models.huggingface.bpe import train_byte_level
from tests.models.huggingface.folders import write_folder, write_json
from tests.models.huggingface.test_byte_level_bpe import folder_with
from tests.models.huggingface.test_embedding import (
    QWEN3,
    embedding_gemma,
    pooled,
    qwen3_weights,
    reranker,
)
from tests.models.huggingface.test_gpt_oss import gpt_oss
from tests.models.huggingface.test_quantized import (
    METHOD,
    Codes,
    compressed,
    gptq,
)
from tests.models.huggingface.test_quantized import folder_with as quantized
from tests.models.huggingface.test_sentencepiece_json import as_json
from tests.models.huggingface.test_sentencepiece_json import folder_with as folder_with_pieces
from tests.models.huggingface.test_tokenizer_rules import RULES, SIZE, ending
from tests.oracle.cases import CASES
from tqgguf.llamacpp.converter import find_converter
from tqgguf.models import Model, open_model
from tqgguf.models.huggingface.architectures import official_classes

pytestmark = pytest.mark.oracle

DRIVER = Path(__file__).with_name("convert_all.py")
RULED = {"vocab_size": SIZE + len(RULES)}


def ruled_bytes(path: Path) -> Path:
    tokenizer = train_byte_level("qwen2", SIZE)
    tokenizer = tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_tokens([AddedToken(text, special=False) for text in RULES])
    return folder_with(path, tokenizer, config=RULED)


def ruled_pieces(path: Path) -> Path:
    rows = {str(SIZE + i): {"content": t, "special": False} for i, t in enumerate(RULES)}
    folder = write_folder(path, config=RULED)
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": rows})
    return folder


def embedding(path: Path) -> Path:
    """As Qwen3-Embedding: no head, the last token's vector, a token put behind every text."""
    bare = {n.removeprefix("model."): w for n, w in qwen3_weights().items()}
    folder = write_folder(path, bare, config={**QWEN3, "architectures": ["Qwen3Model"]})
    (folder / "tokenizer.model").unlink()
    tokenizer = train_byte_level("qwen2", SIZE)
    tokenizer = tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = ending(last="<|endoftext|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return pooled(folder, {"pooling_mode_lasttoken": True})


def without_prefix(path: Path) -> Path:
    folder = write_folder(path)
    write_json(folder / "tokenizer_config.json", {"add_prefix_space": False})
    return folder


def packed(path: Path) -> Path:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    method["config_groups"] = {"group_0": {"weights": weights}}
    return quantized(path, compressed(Codes(4, 16), zero=True), **{METHOD: method})


def by_gptq(path: Path) -> Path:
    codes = Codes(4, 16)
    codes.zero = np.maximum(codes.zero, 1)  # of a zero of 0 the converter makes 16
    method = {"quant_method": "gptq", "bits": 4}
    return quantized(path, gptq(codes, 1), **{METHOD: method})


# Folders that need no transformers to be written: tokenizers and quantizers.
OTHERS: dict[str, Callable[[Path], Path]] = {
    "rules-bytes": ruled_bytes,
    "rules-pieces": ruled_pieces,
    "pieces-as-json": lambda path: folder_with_pieces(path, as_json("prepend")),
    "qwen3-embedding": embedding,
    "embedding-gemma": embedding_gemma,
    "qwen3-reranker-tied": lambda path: reranker(path, tied=True),
    "qwen3-reranker": lambda path: reranker(path, tied=False),
    "without-prefix": without_prefix,
    "gptq": by_gptq,
    "compressed-tensors": packed,
    "gpt-oss-mxfp4": gpt_oss,
}


@dataclass(frozen=True)
class Difference:
    """Keys or tensors that differ, in which folders, and why ours stays as it is."""

    name: str
    why: str
    folders: str = ".*"


DIFFERENCES = (
    Difference("general.quantization_version", "written when a file is, not when it is read"),
    Difference("general.file_type", "ours says what the folder holds, theirs what was asked for"),
    Difference("tokenizer.ggml.add_space_prefix", "said, where theirs relies on the default"),
    Difference("tokenizer.ggml.remove_extra_whitespaces", "SentencePiece's own flag; they drop it"),
    Difference("tokenizer.ggml.unknown_token_id", "found in the vocabulary, not only in settings"),
    Difference("tokenizer.ggml.add_bos_token", "said, where theirs relies on the default"),
    Difference(r".*\.vocab_size", "written for every architecture"),
    Difference(r".*\.attention\.(key|value)_length", "said, where theirs relies on the default"),
    Difference("rope_freqs.weight", "the same within float32's rounding", "llama-llama3|exaone4"),
    Difference(
        r"blk\.\d+\.ssm_a", "the same within float32's rounding of exp", "qwen3_5.*|qwen3-next"
    ),
    Difference(
        r".*\.rope\.scaling\.(yarn_)?attn_factor",
        "theirs writes a key that no graph of llama.cpp reads; test_transformers proves ours",
        ".*-(yarn|longrope).*",
    ),
    Difference(
        r"mistral3\.rope\.scaling\.(attn_factor|yarn_log_multiplier)",
        "ours puts both mscales into the one factor, theirs one of them into another key",
        "ministral3",
    ),
    Difference(
        r".*rope.*(type|original_context_length|factors_(long|short)\.weight)",
        "theirs knows longrope for Phi-3 only, and there not its name",
        "llama-longrope|phi3.*",
    ),
    Difference(
        r"tokenizer\.ggml\.(bos|eos|eot|padding)_token_id",
        "ours takes the tokenizer's own files first, and no id beyond the vocabulary",
        "starcoder2|gemma.*|phi3.*|smollm3.*|granite|olmo.*|ernie.*|ministral3|arcee|qwen2_5-vl|nemotron",
    ),
    Difference(
        r"tokenizer\.ggml\.(model|pre|scores|token_type|merges)",
        "theirs takes SentencePiece saved as tokenizer.json for bytes, and splits text elsewhere",
        "pieces-as-json",
    ),
    Difference(
        r".*\.rope\.scaling\.yarn_beta_(fast|slow)",
        "written for the one graph that reads them; elsewhere another value is refused",
        "gpt-oss",
    ),
    Difference(
        "(deepseek2|dots1).expert_gating_func",
        "said, where theirs leaves it to the graph",
        "deepseek.*|dots1",
    ),
    Difference(
        r"phi2\.(attention\.head_count_kv|feed_forward_length)",
        "what config.json says, where theirs takes what is usual of that width",
        "phi2",
    ),
    Difference(
        r"nemotron\.(attention\.layer_norm_rms_epsilon|rope\.scaling\.type)",
        "keys that its graph does not read, or that say nothing",
        "nemotron",
    ),
    Difference(
        r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight",
        "theirs takes experts for turned around, which transformers 5 no longer writes",
        "qwen3-vl-moe",
    ),
    Difference(
        ".*",
        "theirs takes transformers 5's full_attention for Mamba, and llama.cpp refuses its file",
        "granite4-dense",
    ),
    Difference("tokenizer.ggml.pre", "said, where theirs relies on the model's", "gemma4.*"),
    Difference(
        "tokenizer.ggml.token_type",
        "what tokenizer.json marks as special is control, not only what the settings name",
        "gemma4.*",
    ),
    Difference(
        "deepseek2.attention.q_lora_rank",
        "0 said: without the key llama.cpp refuses all but two sizes of such models",
        "deepseek2-lite|deepseek3-plain-queries",
    ),
    Difference(
        r"blk\.\d+\.(exp_probs_b\.bias|ffn_gate_inp_shexp\.weight)",
        "a row written as a vector; to ggml they are the same",
        "ernie4_5-moe|qwen2-moe|qwen3_5-moe|qwen3-next",
    ),
    Difference(
        "ernie4_5-moe.expert_shared_feed_forward_length",
        "theirs divides by the number of heads, which is that of the experts in released models",
        "ernie4_5-moe",
    ),
    Difference(
        r"(gemma2?|phi2|stablelm)\.rope\.freq_base", "said, where theirs relies on the default"
    ),
    Difference(
        "gemma3.attention.sliding_window_pattern",
        "theirs drops another pattern of layers than every sixth",
        "gemma3-other-pattern",
    ),
)
# classes of which the converter knows such layers
WITH_MTP = ("glm4-moe", "qwen3_5", "qwen3_5-moe", "qwen3_5-vl", "qwen3-next")
UNCONVERTED = {
    "gpt2": "it wants n_ctx, which transformers 5 no longer writes",
    "gpt-neox": "it wants rotary_pct, which transformers 5 no longer writes",
    "gpt-neox-in-turn": "it wants rotary_pct, which transformers 5 no longer writes",
    "cohere2": "it wants rotary_pct, which transformers 5 no longer writes",
    "command-r": "transformers gives such a tokenizer tokens beyond a small vocabulary",
    "gpt2-wide": "it wants n_ctx, which transformers 5 no longer writes",
}


@pytest.fixture(scope="session")
def official(folders, tmp_path_factory) -> dict[str, tuple[Path, Path, str | None]]:
    """By a case's name: its folder, the official converter's file, and its error."""
    root = tmp_path_factory.mktemp("official")
    written = {name: folders(name)[0] for name in CASES}
    written |= {name: write(root / name) for name, write in OTHERS.items()}
    jobs = [
        {
            "folder": str(folder),
            "output": str(root / f"{name}.gguf"),
            "pre": "qwen2",
            "drops_mtp": name in WITH_MTP,
            "dense": name == "embedding-gemma",
        }
        for name, folder in written.items()
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(DRIVER), str(find_converter()), str(root / "jobs.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    outputs = {name: root / f"{name}.gguf" for name in written}
    return {name: (written[name], out, errors[str(out)]) for name, out in outputs.items()}


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_keys_and_tensors_are_the_official_converters(name, official):
    folder, path, error = official[name]
    if name in UNCONVERTED:
        assert error is not None
        return
    assert error is None, error
    found = set(differing(open_model(folder), open_model(path)))
    known = {key for key in found if any(_covers(row, key, name) for row in DIFFERENCES)}
    assert found - known == set()


def test_every_listed_difference_is_still_there(official):
    shown = {
        (key, name)
        for name, (folder, path, error) in official.items()
        if error is None
        for key in differing(open_model(folder), open_model(path))
    }
    stale = [row for row in DIFFERENCES if not any(_covers(row, *pair) for pair in shown)]
    assert stale == []


def test_the_list_of_its_classes_is_the_converters():
    """Error texts promise the converter for these and for no others."""
    code = "from conversion import TEXT_MODEL_MAP as m; print(*m)"
    converter = find_converter()
    environment = {**os.environ, "PYTHONPATH": f"{converter.parent}:{converter.parent / 'gguf-py'}"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert set(printed.stdout.split()) == official_classes()


def differing(ours: Model, theirs: Model) -> Iterator[str]:
    """Names of keys and tensors that are not the same, to the bit, in both."""
    for key in {*ours.metadata, *theirs.metadata}:
        if ours.get(key) != theirs.get(key):
            yield key
    for name in {*ours.tensors, *theirs.tensors}:
        both = ours.tensors.get(name), theirs.tensors.get(name)
        if None in both or not np.array_equal(*(tensor.read() for tensor in both)):
            yield name


def _covers(row: Difference, key: str, folder: str) -> bool:
    return bool(re.fullmatch(row.name, key) and re.fullmatch(row.folders, folder))
