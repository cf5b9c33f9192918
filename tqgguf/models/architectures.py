"""Who reads and who writes the residual stream, for every architecture that can be folded.

Each row was read from llama.cpp's graph of the architecture (src/models/*.cpp), never guessed from
tensor names: in some models `attn_post_norm` is the norm before the FFN.
"""

import re
from dataclasses import dataclass
from typing import Literal

LAYER = re.compile(r"^blk\.(?P<layer>\d+)\.(?P<role>.+)\.(?P<part>weight|bias)$")


@dataclass(frozen=True)
class Architecture:
    """One row: roles are tensor names without `blk.N.` and `.weight`.

    norms maps every norm on the residual stream to the matrices that read its output; writers add
    to the stream; values are the pair (value projection, attention output) between which nothing
    element-wise stands, or None; head_norm feeds the output head. untouched lists what lives
    beside the stream (q/k norms, rotary factors). refusal says why the stream cannot be rotated.
    """

    name: str
    norms: dict[str, tuple[str, ...]]
    writers: tuple[str, ...]
    values: tuple[str, str] | None = ("attn_v", "attn_output")
    head_norm: str = "output_norm"
    embeddings: tuple[str, ...] = ("token_embd",)
    untouched: tuple[str, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    refusal: str = ""

    @property
    def readers(self) -> dict[str, str]:
        """Reader role -> the norm whose output it reads."""
        return {reader: norm for norm, readers in self.norms.items() for reader in readers}


_ATTENTION = ("attn_q", "attn_k", "attn_v")
_FFN = ("ffn_gate", "ffn_up")
_EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps")

ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            "llama",  # Llama 1-3, Mistral, SmolLM, Mixtral
            norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN + _EXPERTS},
            writers=("attn_output", "ffn_down", "ffn_down_exps"),
            untouched=("rope_freqs",),
        ),
        Architecture(
            "qwen2",
            norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
            writers=("attn_output", "ffn_down"),
        ),
        Architecture(
            "qwen3",
            norms={"attn_norm": _ATTENTION, "ffn_norm": _FFN},
            writers=("attn_output", "ffn_down"),
            untouched=("attn_q_norm", "attn_k_norm"),
        ),
    )
}


def role(name: str) -> tuple[str, str]:
    """A tensor's role and part: blk.3.attn_q.weight -> ("attn_q", "weight")."""
    match = LAYER.match(name)
    if match:
        return match["role"], match["part"]
    stem, _, part = name.rpartition(".")
    return stem, part


def layer_prefix(name: str) -> str:
    """`blk.3.` of blk.3.attn_q.weight; empty for tensors outside the layers."""
    match = LAYER.match(name)
    return f"blk.{match['layer']}." if match else ""
