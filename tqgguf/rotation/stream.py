"""A row of the table of architectures: who reads and who writes the residual stream."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stream:
    """One row: roles are tensor names without `blk.N.` and `.weight`.

    norms maps every norm on the residual stream to the matrices that read its output. A matrix may
    stand under several norms: the last one that its layer has feeds it. The norm "" has no gain.
    writers add to the stream; values are the pair (value projection, attention output) between
    which nothing element-wise stands, or None; head_norm feeds the output head,
    embedding_norm stands behind the token embedding. untouched lists
    what lives beside the stream (q/k norms, rotary factors, and in rows that are refused the norms
    that forbid it). refusal says why the stream cannot be rotated, why_no_values why the value
    heads cannot, no_padding why it cannot be wider,
    balanced whether the FFN is linear in ffn_up, note what is remarkable.
    """

    name: str
    norms: dict[str, tuple[str, ...]]
    writers: tuple[str, ...] = ("attn_output", "ffn_down")
    values: tuple[str, str] | None = ("attn_v", "attn_output")
    head_norm: str = "output_norm"
    embeddings: tuple[str, ...] = ("token_embd",)
    embedding_norm: str = ""
    untouched: tuple[str, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    refusal: str = ""
    why_no_values: str = ""
    no_padding: str = ""
    balanced: bool = True
    note: str = ""
    graph: str = ""  # llama.cpp's file, where it is not named like the architecture

    @property
    def readers(self) -> dict[str, str]:
        """Reader role -> the norm whose output it reads (the last, if a layer may lack some)."""
        return {reader: norm for norm, readers in self.norms.items() for reader in readers}
