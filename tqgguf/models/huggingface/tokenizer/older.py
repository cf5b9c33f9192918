"""vocab.json and merges.txt, the older files of byte-level BPE, as the tokenizer.json they became.

They do not say how text is split into words; the tokenizer's class does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.huggingface.folder import read_json, read_utf8
from tqgguf.models.huggingface.tokenizer.pretokenizer import QWEN2_WORDS
from tqgguf.models.huggingface.tokenizer.vocabulary import CURE

FILES = ("vocab.json", "merges.txt")
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_QWEN2 = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": QWEN2_WORDS},
            "behavior": "Isolated",
            "invert": False,
        },
        {**_GPT2, "use_regex": False},
    ],
}
# The class in tokenizer_config.json, or model_type in config.json -> normalizer, pre-tokenizer.
_BY_CLASS: Mapping[str, tuple[Any, Any]] = {
    "GPT2Tokenizer": (None, _GPT2),
    "gpt2": (None, _GPT2),
    "Qwen2Tokenizer": ({"type": "NFC"}, _QWEN2),
    "qwen2": ({"type": "NFC"}, _QWEN2),
    "qwen3": ({"type": "NFC"}, _QWEN2),
}


def from_files(folder: Path) -> dict[str, Any]:
    """The description that tokenizer.json would hold.

    Raises FileFormatError for a missing or broken file, UnsupportedModelError for a class that
    does not say how it splits text.
    """
    normalizer, steps = _steps(folder)
    merges = [line for line in read_utf8(folder / "merges.txt").splitlines() if line.strip()]
    merges = [line for i, line in enumerate(merges) if i or not line.startswith("#version")]
    vocabulary = read_json(folder / "vocab.json")
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    if any(not isinstance(n, int) or isinstance(n, bool) for n in vocabulary.values()):
        raise FileFormatError(f"{folder / 'vocab.json'}: expected an id for each token")
    return {"normalizer": normalizer, "pre_tokenizer": steps, "model": model}


def _steps(folder: Path) -> tuple[Any, Any]:
    names = []
    for file, key in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "model_type")):
        path = folder / file
        name = read_json(path).get(key) if path.is_file() else None
        names += [name.removesuffix("Fast")] if isinstance(name, str) else []
    if names and names[0] in _BY_CLASS:
        return _BY_CLASS[names[0]]
    raise UnsupportedModelError(
        f"{folder}: vocab.json and merges.txt of a {names[0] if names else 'tokenizer'} do not say "
        f"how text is split; save the tokenizer again with transformers (tokenizer.json), or {CURE}"
    )
