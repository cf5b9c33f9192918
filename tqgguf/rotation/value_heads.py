"""The rotation of the value heads (R2): where it can stand, and its steps."""

from dataclasses import dataclass

from tqgguf.errors import UnsupportedModelError
from tqgguf.kernels import hadamard
from tqgguf.models.model import Model
from tqgguf.models.roles import layer_prefix, role
from tqgguf.rotation.ends import embedding_width
from tqgguf.rotation.steps import VALUE, Sides, Step
from tqgguf.rotation.stream import Stream


@dataclass(frozen=True)
class ValueHeads:
    """What the rotation of the value heads does: H within each head, of the largest order.

    n_heads counts query heads, size is a value head's, key_size a key head's; order 0 where reason
    forbids the rotation.
    """

    model: Model
    order: int = 0
    n_heads: int = 0
    size: int = 0
    key_size: int = 0
    value: str = ""
    output: str = ""
    reason: str = ""

    def sides(self, name: str) -> Sides:
        """The steps of one tensor."""
        kind, part = role(name)
        if self.order <= 1 or kind not in (self.value, self.output, "attn_qkv"):
            return Sides()
        if kind == self.output:
            return Sides(columns=(VALUE,)) if part == "weight" else Sides()
        step = Step("value", start=self._first_value(name)) if kind == "attn_qkv" else VALUE
        return Sides(columns=(step,)) if part == "bias" else Sides(rows=(step,))

    def _first_value(self, name: str) -> int:
        """Where the value rows begin in q, k and v stacked: n_q + n_k + n_v rows."""
        rows = self.model.tensors[f"{layer_prefix(name)}attn_qkv.weight"].shape[0]
        kv_heads = (rows - self.n_heads * self.key_size) // (self.key_size + self.size)
        return rows - kv_heads * self.size


def value_heads(model: Model, row: Stream) -> ValueHeads:
    """The model's value heads. Raises UnsupportedModelError for numbers that make no sense."""
    if row.values is None:
        return ValueHeads(model, reason=row.why_no_values)
    if model.get("{arch}.attention.clamp_kqv"):
        return ValueHeads(model, reason=f"{row.name}.attention.clamp_kqv clamps each value")
    n_heads = model.get("{arch}.attention.head_count")
    if isinstance(n_heads, list) and n_heads and n_heads.count(n_heads[0]) == len(n_heads):
        n_heads = n_heads[0]
    if not isinstance(n_heads, int):
        reason = "the number of heads is missing" if n_heads is None else "layers differ in heads"
        return ValueHeads(model, reason=f"{model.path}: {reason}")
    of_width = embedding_width(model) // max(1, n_heads)
    size = model.get("{arch}.attention.value_length", of_width)
    key_size = model.get("{arch}.attention.key_length", of_width)
    if not all(isinstance(n, int) and 0 < n < 2**32 for n in (n_heads, size, key_size)):
        raise UnsupportedModelError(
            f"{model.path}: {n_heads!r} heads with keys of {key_size!r} and values of {size!r} "
            "make no sense; use --rotate none"
        )
    return ValueHeads(model, hadamard.largest_order(size), n_heads, size, key_size, *row.values)
