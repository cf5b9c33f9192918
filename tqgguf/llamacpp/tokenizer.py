"""Tokenize a text as llama.cpp does: by llama.cpp, from a file that has little but the vocabulary.

By llama-tokenize if it is installed, else by the llama.cpp inside the wheel of xllamacpp, which
needs no compiler. That one too runs in a process of its own: llama.cpp ends its process over a
broken vocabulary, and it writes to stderr.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from tqgguf.errors import FileFormatError, ToolError
from tqgguf.llamacpp import programs
from tqgguf.llamacpp.tools import find, run_module
from tqgguf.machine.folders import own_folder
from tqgguf.models.metadata import Value, encode
from tqgguf.output.layout import TensorInfo, lay_out

_TOKENS = "tokenizer.ggml.tokens"
_NAME = "general.name"  # llama.cpp treats some vocabularies by it
_TEMPLATE = "tokenizer.chat_template"
_WIDTH = 32  # of one layer of zeros, which stands in for the weights
_NUMBERS = {
    "block_count": 1,
    "context_length": _WIDTH,
    "embedding_length": _WIDTH,
    "feed_forward_length": _WIDTH,
    "attention.head_count": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
_VECTORS = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
_MATRICES = tuple(
    f"blk.0.{name}"
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
)


def tokenize(
    metadata: Mapping[str, Value],
    text: Path,
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[list[int], str]:
    """The text's token ids, with a beginning if the model has one, and the name of who made them.

    metadata: of a model with a vocabulary. meanwhile: called while the program works. Raises
    FileFormatError where there is none, ToolError where neither program is installed or llama.cpp
    refuses the vocabulary.
    """
    with own_folder() as folder:
        vocabulary = folder / "vocabulary.gguf"
        write_vocabulary(vocabulary, metadata)
        try:
            find("llama-tokenize")
        except ToolError as error:
            if find_spec("xllamacpp") is None:
                cure = "install xllamacpp: pip install 'tqgguf[llama]'"
                raise ToolError(f"{error}, or {cure}") from None
            return by_wheel(vocabulary, text, meanwhile=meanwhile), "xllamacpp"
        return programs.tokenize(vocabulary, text, meanwhile=meanwhile), "llama-tokenize"


def by_wheel(
    vocabulary: Path, text: Path, *, meanwhile: Callable[[], object] = lambda: None
) -> list[int]:
    """The text's token ids by xllamacpp, written to a file beside the vocabulary's on the way."""
    ids = vocabulary.with_suffix(".json")
    run_module("tqgguf.llamacpp.wheel", vocabulary, text, ids, meanwhile=meanwhile)
    found: list[int] = json.loads(ids.read_text())
    return found


def write_vocabulary(path: Path, metadata: Mapping[str, Value]) -> None:
    """Write a model of the same vocabulary whose few weights are all zero."""
    count = metadata[_TOKENS].count if _TOKENS in metadata else 0
    if not count:
        raise FileFormatError(f"the model has no vocabulary ({_TOKENS}) to tokenize a text with")
    kept = {k: v for k, v in metadata.items() if k.startswith("tokenizer.") or k == _NAME}
    kept = {k: v for k, v in kept.items() if not k.startswith(_TEMPLATE)}
    numbers = {f"llama.{key}": encode(number) for key, number in _NUMBERS.items()}
    tensors = [TensorInfo("token_embd.weight", (count, _WIDTH), "Q4_0")]
    tensors += [TensorInfo(f"{name}.weight", (_WIDTH,), "F32") for name in _VECTORS]
    tensors += [TensorInfo(f"{name}.weight", (_WIDTH, _WIDTH), "F32") for name in _MATRICES]
    layout = lay_out({"general.architecture": encode("llama")} | numbers | kept, tensors)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
