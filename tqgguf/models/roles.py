"""What the name of a tensor tells: its layer, its role there, weight or bias."""

import re
from functools import lru_cache

_LAYER = re.compile(r"^blk\.(?P<layer>\d+)\.(?P<role>.+?)(?:\.(?P<part>weight|bias))?$")


def role(name: str) -> tuple[str, str]:
    """A tensor's role and part: blk.3.attn_q.weight -> ("attn_q", "weight")."""
    match = _match(name)
    if match:
        return match["role"], match["part"] or ""
    stem, _, part = name.rpartition(".")
    return stem, part


def layer_prefix(name: str) -> str:
    """`blk.3.` of blk.3.attn_q.weight; empty for tensors outside the layers."""
    match = _match(name)
    return f"blk.{match['layer']}." if match else ""


def layer_index(name: str) -> int | None:
    """3 of blk.3.attn_q.weight; None for tensors outside the layers."""
    match = _match(name)
    return int(match["layer"]) if match else None


@lru_cache(maxsize=1 << 16)  # of every name it is asked some thirty times
def _match(name: str) -> re.Match[str] | None:
    return _LAYER.match(name)
