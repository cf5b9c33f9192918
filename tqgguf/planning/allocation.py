"""Spend a budget of bytes where they matter: a type for every tensor.

By the linearity theorem (HIGGS, arXiv 2411.17525) the divergence that quantization causes is close
to a sum over tensors, sensitivity times relative squared error. What is chosen is the best such sum
that fits: types along the lower convex hull by a Lagrange multiplier, then single upgrades that
still fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from tqgguf.errors import PlanError
from tqgguf.formats import FORMATS, dequantize, quantize
from tqgguf.kernels import metrics
from tqgguf.models import stored_bytes
from tqgguf.models.roles import layer_index, role
from tqgguf.rotation.ends import HEAD

# Decoded fast by every backend; the lattice types join only where nothing else is small enough.
SCALAR_TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
SMALL_BLOCK_TYPES = ("MXFP4", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1")  # of 32: they fit almost any row
SLOW_TYPES = ("IQ4_XS",)  # on a CPU two thirds of Q4_K's speed, and dearer to round to
LATTICE_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")

# Divergence per relative error, of all of a role's matrices together: of the outputs, and of the
# weights where nothing is known of their inputs. Measured on SmolLM2-135M by
# scripts/measure_roles.py (docs/decisions/0025).
_ROLES = {
    "output": (31.0, 12.0),
    "token_embd": (1.4, 1.4),
    "attn_q": (2.8, 3.6),
    "attn_k": (3.0, 2.9),
    "attn_v": (4.8, 14.0),
    "attn_qkv": (11.0, 20.0),
    "attn_output": (3.9, 4.0),
    "ffn_gate": (5.7, 5.6),
    "ffn_up": (8.1, 10.0),
    "ffn_down": (25.0, 27.0),
}
_OTHER_ROLE = (4.0, 4.0)
# How much more than the others a layer matters, by its place from either end.
_OUTER = {0: 2.0, 1: 1.5, -2: 1.5, -1: 3.5}
_ROOMY = 1.15  # a budget above this many times the smallest scalar types needs no lattice types


@dataclass(frozen=True)
class Errors:
    """Relative squared errors of a matrix by type: of its outputs, or of its weights alone."""

    by_type: Mapping[str, float] = field(default_factory=dict)
    of_outputs: bool = False


@dataclass(frozen=True)
class Item:
    """A tensor that competes for bytes.

    sensitivity: divergence per relative error. errors: measured ones by type; where there is none,
    that of Gaussian weights counts. without: types that it must not become.
    """

    name: str
    weights: int
    n_in: int
    sensitivity: float
    errors: Mapping[str, float] = field(default_factory=dict)
    without: Sequence[str] = ()

    def cost(self, type: str) -> float:
        """The divergence that this type causes, in nats."""
        error = self.errors[type] if type in self.errors else relative_error(type)
        return self.sensitivity * error


def default_sensitivity(
    role: str, layer: int | None, n_layer: int, *, of_outputs: bool = False
) -> float:
    """The sensitivity of a tensor of which only the role and the layer are known.

    of_outputs: to relative errors of its outputs, not of its weights.
    """
    kind = role.removesuffix("_exps").removesuffix("_shexp")
    base = _ROLES.get(kind, _OTHER_ROLE)[0 if of_outputs else 1]
    if layer is None:
        return base
    outer = _OUTER.get(layer - n_layer, _OUTER.get(layer, 1.0))
    return base * outer / max(1, n_layer)


def known_sensitivity(name: str, n_layer: int, *, of_outputs: bool, head: str = HEAD) -> float:
    """What is known of a tensor by its name; head: the one that serves as it."""
    kind = "output" if name == head else role(name)[0]
    return default_sensitivity(kind, layer_index(name), n_layer, of_outputs=of_outputs)


def allocate(items: Sequence[Item], budget: int) -> dict[str, str]:
    """A type for every item so that all of them take at most `budget` bytes.

    Raises PlanError where even the smallest types take more.
    """
    choices = [_choices(i, types) for i, types in zip(items, offers(items, budget), strict=True)]
    smallest = sum(c[0].n_bytes for c in choices)
    if smallest > budget:
        raise PlanError(
            f"the target leaves {max(budget, 0):,} bytes for the matrices, and the smallest types "
            f"take {smallest:,}: {smallest - budget:,} bytes more are needed"
        )
    picked = _by_multiplier(choices, budget)
    _fill(choices, picked, budget - sum(c[p].n_bytes for c, p in zip(choices, picked, strict=True)))
    return {i.name: c[p].type for i, c, p in zip(items, choices, picked, strict=True)}


def offers(items: Sequence[Item], budget: int) -> list[list[str]]:
    """The types that every item may become within so many bytes: from shapes alone."""
    fitting = [[n for n in fitting_types(i.n_in) if n not in i.without] for i in items]
    scalar = [[n for n in types if n not in LATTICE_TYPES] or ["F16"] for types in fitting]
    smallest = (
        min(stored_bytes(n, i.weights) for n in types)
        for i, types in zip(items, scalar, strict=True)
    )
    if _ROOMY * sum(smallest) <= budget:
        return scalar
    return [types or ["F16"] for types in fitting]


def predicted(items: Sequence[Item], types: Mapping[str, str]) -> float:
    """The divergence that the linearity theorem predicts, in nats."""
    return sum(i.cost(types[i.name]) for i in items)


@cache
def relative_error(type: str) -> float:
    """Relative squared error of a type on Gaussian weights, measured on a seeded sample."""
    x = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
    return metrics.relative_mse(x, dequantize(quantize(x, type, threads=1), type, 256))


def fitting_types(n_in: int) -> list[str]:
    """The types that rows of n_in weights may become; none where only float types hold them."""
    types = (*SCALAR_TYPES, *SMALL_BLOCK_TYPES, *LATTICE_TYPES)
    return [n for n in types if n_in % FORMATS[n].block_size == 0]


@dataclass(frozen=True)
class _Choice:
    type: str
    n_bytes: int
    cost: float


def _choices(item: Item, types: Sequence[str]) -> list[_Choice]:
    """What an item may become, ascending in bytes and descending in cost."""
    sized = [_Choice(n, stored_bytes(n, item.weights), item.cost(n)) for n in types]
    sized.sort(key=lambda c: (c.n_bytes, c.cost))
    best: list[_Choice] = []
    for choice in sized:
        if not best or choice.cost < best[-1].cost:
            best.append(choice)
    return best


def _by_multiplier(choices: Sequence[list[_Choice]], budget: int) -> list[int]:
    """The best choice at the smallest price of a byte at which the sum fits."""

    def pick(price: float) -> list[int]:
        return [
            min(range(len(c)), key=lambda i, c=c: c[i].cost + price * c[i].n_bytes)  # type: ignore[misc]
            for c in choices
        ]

    def fits(picked: list[int]) -> bool:
        return sum(c[p].n_bytes for c, p in zip(choices, picked, strict=True)) <= budget

    low, high = -40.0, 10.0  # natural logarithms of the price
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(pick(float(np.exp(middle)))) else (middle, high)
    return pick(float(np.exp(high)))


def _fill(choices: Sequence[list[_Choice]], picked: list[int], left: int) -> None:
    """Spend what is left on the upgrades that gain most for a byte, as long as one fits."""
    while True:
        gains = [
            ((c[p].cost - d.cost) / (d.n_bytes - c[p].n_bytes), k, j)
            for k, (c, p) in enumerate(zip(choices, picked, strict=True))
            for j, d in enumerate(c)
            if j > p and d.n_bytes - c[p].n_bytes <= left
        ]
        if not gains:
            return
        _, k, j = max(gains)
        left -= choices[k][j].n_bytes - choices[k][picked[k]].n_bytes
        picked[k] = j
