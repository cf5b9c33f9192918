"""Which tensors are matrices that may be quantized, and the types that options name for them.

Rules mean what llama-quantize's mean: they reach matrices alone, letters' case does not count, the
first that matches wins, and an option that names a table is stronger than a rule.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from tqgguf.formats import find_format
from tqgguf.models import INTEGERS, Tensor
from tqgguf.models.roles import role
from tqgguf.rotation.ends import EMBEDDING, HEAD

_LAYER_TABLE = "per_layer_token_embd.weight"

# What llama.cpp's graphs use element by element, look up by number, or hand to a convolution, and
# what is too small to be worth it: the list of llama-quantize's `tensor_allows_quantization`.
_ELEMENTWISE = r"_norm\.weight$|^rope_freqs|token_types|ssm_conv1d|shortconv\.conv"
_KEPT = re.compile(
    rf"{_ELEMENTWISE}|ffn_gate_inp\.weight$|tid2eid|altup|laurel|per_layer_model_proj"
    r"|position_embd|indexer\.[kq]_proj|attn_rel_b|\.rel_pos|sam\.(?:pos_embd|neck\.|net_)"
    r"|patch_embd|patch_merger|rvq\.codebook|code_embd"
    r"|time_mix_(?:first|lerp_fused|(?:decay_)?[wvag]\d)"
)
_NEEDS_F32 = re.compile(_ELEMENTWISE)
# What recipes leave alone besides, though a rule may name it.
_SENSITIVE = re.compile(r"norm|ffn_gate_inp|ssm_(?:dt|x|a|d)\b|time_mix|^cls\b")
_CONVOLUTION = re.compile(r"conv")


def may_be_quantized(tensor: Tensor) -> bool:
    """Whether llama.cpp can compute with this tensor in a block type; experts have three axes."""
    name, axes = tensor.name, len(tensor.shape)
    if axes not in (2, 3) or tensor.type in INTEGERS or not name.endswith("weight"):
        return False
    return not (_KEPT.search(name) or (axes == 3 and _CONVOLUTION.search(name)))


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor holds matrix weights that recipes quantize."""
    return may_be_quantized(tensor) and not _SENSITIVE.search(role(tensor.name)[0])


def needs_f32(tensor: Tensor) -> bool:
    """Whether llama.cpp adds or multiplies this tensor element by element, as norms and biases."""
    return len(tensor.shape) == 1 or bool(_NEEDS_F32.search(tensor.name))


@dataclass(frozen=True)
class NamedTypes:
    """The types that options name: rules of regular expressions, the head's, the embedding's."""

    rules: Sequence[tuple[str, str]] = ()
    head: str | None = None
    embedding: str | None = None

    def __post_init__(self) -> None:
        for type in (*(type for _, type in self.rules), self.head, self.embedding):
            if type is not None:
                find_format(type)

    def type_of(self, name: str, *, tied: bool) -> str | None:
        """The type named for a matrix, before its row length is looked at.

        tied: the embedding is the head as well.
        """
        chosen = next((t for kind, t in self._offers(name, tied=tied) if t), None)
        return find_format(chosen).name if chosen else None

    def idle(self, sources: Mapping[str, Tensor]) -> list[str]:
        """What to say of the options that change nothing: the output's tensors by name."""
        tied = HEAD not in sources
        names = [name for name, tensor in sources.items() if may_be_quantized(tensor)]
        used = {kind for name in names for kind in self._winner(name, tied=tied)}
        lines = [
            f"--tensor-type {pattern}={type} {_why(pattern, sources, names)}"
            for i, (pattern, type) in enumerate(self.rules)
            if f"rule {i}" not in used
        ]
        for kind, type in (("output", self.head), ("token-embedding", self.embedding)):
            if type is not None and kind not in used:
                lines.append(f"--{kind}-type {type} has no effect: no matrix takes it")
        return lines

    def _winner(self, name: str, *, tied: bool) -> list[str]:
        return [kind for kind, type in self._offers(name, tied=tied) if type][:1]

    def _offers(self, name: str, *, tied: bool) -> list[tuple[str, str | None]]:
        """The options that may name this tensor's type, the strongest first."""
        rules: list[tuple[str, str | None]] = [
            (f"rule {i}", type)
            for i, (pattern, type) in enumerate(self.rules)
            if re.search(pattern, name, re.IGNORECASE)
        ]
        head, embedding = ("output", self.head), ("token-embedding", self.embedding)
        if name == HEAD:
            return [head, *rules]
        if name == EMBEDDING:
            return [embedding, *rules, *([head] if tied else [])]
        return [*rules, embedding] if name == _LAYER_TABLE else rules


def _why(pattern: str, sources: Collection[str], matrices: Sequence[str]) -> str:
    """Why a rule changed nothing."""
    found = [name for name in sources if re.search(pattern, name, re.IGNORECASE)]
    if any(name in matrices for name in found):
        return "has no effect: other options name the types of all that it matches"
    if found:
        return f"matches no matrix: {found[0]} keeps its type, as in llama-quantize"
    if "=" in pattern:
        return "matches no tensor; give each rule a --tensor-type of its own"
    roles = dict.fromkeys(role(name)[0] for name in matrices)
    close = get_close_matches(pattern.lower(), roles, n=1)
    return f"matches no tensor{f'; is {close[0]} meant?' if close else ''}"
