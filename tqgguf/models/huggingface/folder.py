"""The files of a Hugging Face folder, and its config.json with typed access."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from gguf import Metadata
from yaml import YAMLError

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.content import what_it_is

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TIED = "tie_word_embeddings"
_MAX_COUNT = 2**31  # GGUF's counts are uint32, llama.cpp's often int32


def load_optional(module: str) -> Any:
    """A package of the extra tqgguf[hf]; UnsupportedModelError if it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise UnsupportedModelError(
            f"Hugging Face folders need the Python package {module}; pip install 'tqgguf[hf]'"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; FileFormatError if it is anything else."""
    try:
        text = path.read_text("utf-8")
        value = json.loads(text)
        if _SURROGATE.search(text):  # half a character, which no UTF-8 file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise FileFormatError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        fact = what_it_is(path) or f"not JSON: {error}"
        raise FileFormatError(f"{path}: {fact}") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def read_utf8(path: Path) -> str:
    """A file as UTF-8; FileFormatError if it is anything else."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise FileFormatError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise FileFormatError(f"{path}: {what_it_is(path) or 'not UTF-8 text'}") from None


def base_model(folder: Path) -> str:
    """The model that the card says this one was made from; empty if it does not."""
    try:
        card = Metadata.load_model_card(folder)
    except (YAMLError, OSError, ValueError, TypeError, AttributeError):
        return ""
    base = card.get("base_model")
    names = base if isinstance(base, list) else [base]
    return next((name for name in names if isinstance(name, str)), "")[:80]


@dataclass(frozen=True)
class Config:
    """The values of config.json; of a multimodal model, those of its language model."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read config.json; the keys under text_config take precedence.

        Whether the head is tied is open where the two say different things: whoever saved the
        model knew, and did or did not save a head.
        """
        values = read_json(path)
        text = values.get("text_config")
        if isinstance(text, dict):
            merged = {**values, **{k: v for k, v in text.items() if k != "architectures"}}
            if values.get(_TIED) not in (None, merged.get(_TIED)):
                merged[_TIED] = None
            values = merged
        return cls(path, values)

    def get(self, *names: str) -> Any:
        """The first of these keys that is there and not null, or None."""
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def count(self, *names: str) -> int:
        """A positive integer under one of these keys; FileFormatError if missing or wrong."""
        value = self._required(names)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MAX_COUNT:
            raise self._wrong(names, value, "a positive integer")
        return value

    def number(self, *names: str) -> float:
        """A finite number under one of these keys; FileFormatError if missing or wrong."""
        value = self._required(names)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
            raise self._wrong(names, value, "a number")
        return float(value)

    def positive(self, *names: str) -> float:
        """A number above zero under one of these keys; FileFormatError if missing or wrong."""
        value = self.number(*names)
        if value <= 0:
            raise self._wrong(names, value, "a number above 0")
        return value

    def section(self, *names: str) -> "Config":
        """An object under one of these keys as a Config of its own; empty if it is not there."""
        value = self.get(*names)
        if not isinstance(value, dict | None):
            raise self._wrong(names, value, "an object")
        return Config(self.path, value or {})

    def _required(self, names: Iterable[str]) -> Any:
        value = self.get(*names)
        if value is None:
            raise FileFormatError(f"{self.path}: has no {' or '.join(names)}")
        return value

    def _wrong(self, names: Iterable[str], value: Any, expected: str) -> FileFormatError:
        name = next(n for n in names if self.values.get(n) is not None)
        return FileFormatError(f"{self.path}: {name} is {str(value)[:60]!r}, expected {expected}")

    @cached_property
    def n_head(self) -> int:
        """Query heads."""
        return self.count("num_attention_heads", "n_head")

    @cached_property
    def n_head_kv(self) -> int:
        """Key and value heads; as many as query heads where the config does not say."""
        names = ("num_key_value_heads", "n_head_kv")
        return self.n_head if self.get(*names) is None else self.count(*names)

    @cached_property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        return self.count("hidden_size", "n_embd")

    @cached_property
    def head_dim(self) -> int:
        """Width of a head."""
        if self.get("head_dim") is not None:
            return self.count("head_dim")
        return self.n_embd // self.n_head

    @cached_property
    def full_head_dim(self) -> int:
        """Width of a head in layers without a window, where it is another there."""
        return self._of_full_layers("global_head_dim", "head_dim") or self.head_dim

    @cached_property
    def full_n_head_kv(self) -> int:
        """Key and value heads in layers without a window, where there are others there."""
        name = "num_global_key_value_heads"
        return self._of_full_layers(name, "num_key_value_heads") or self.n_head_kv

    def _of_full_layers(self, name: str, in_layer: str) -> int | None:
        """What Gemma 4 says of layers without a window, in older files once, then of each layer."""
        if self.get(name) is not None:
            return self.count(name)
        rows, kinds = self.section("per_layer_config"), self.get("layer_types")
        kinds = kinds if isinstance(kinds, list) else []
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        found = rows.section(str(full[0])) if full else Config(self.path, {})
        if any(rows.get(str(i)) != rows.get(str(full[0])) for i in full):
            raise UnsupportedModelError(f"{self.path}: per_layer_config differs among full layers")
        return None if found.get(in_layer) is None else found.count(in_layer)

    @cached_property
    def n_layer(self) -> int:
        """Transformer blocks."""
        return self.count("num_hidden_layers", "n_layer")

    @cached_property
    def n_ff(self) -> int:
        """Width of the feed-forward layer; GPT-2 leaves it out where it is 4 x n_embd."""
        names = ("intermediate_size", "n_inner")
        if self.get(*names) is None and self.get("n_embd") is not None:
            return 4 * self.n_embd
        return self.count(*names)
