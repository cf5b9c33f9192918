"""Which type each role of tensor gets: the TQ recipes, and any single type."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from gguf import LlamaFileType

from tqgguf.errors import PlanError
from tqgguf.formats import FORMATS


@dataclass(frozen=True)
class Recipe:
    """A type for matrices and the roles that get another one.

    inner: what roles get in the layers in the middle, see `is_inner`; what else the file has to
    hold is taken out of the others' bytes. experts: what those of which
    a token takes a few get, whatever their role (None: what it gets elsewhere). dealt: where the
    inputs are known, the bytes that these types take are spent tensor by tensor
    (docs/decisions/0041). ragged: for models most of whose rows these types' blocks do not divide;
    its bytes are always spent so (0025). file_type is what `general.file_type` says: the nearest of
    llama.cpp's own mixtures.
    """

    name: str
    matrix: str
    roles: Mapping[str, str] = field(default_factory=dict)
    file_type: LlamaFileType = LlamaFileType.GUESSED
    ragged: "Recipe | None" = None
    inner: Mapping[str, str] = field(default_factory=dict)
    dealt: bool = False
    experts: str | None = None

    def of_layer(self, layer: int | None, n_layer: int, *, less: float = 0.0) -> "Recipe":
        """The recipe as it is for the tensors of a layer; None: for those outside all layers.

        less: how many layers' worth of bytes are spent otherwise.
        """
        if layer is None or not is_inner(layer, n_layer, less=less):
            return self
        return self._in_the_middle

    @cached_property
    def _in_the_middle(self) -> "Recipe":
        return replace(self, roles={**self.roles, **self.inner})

    def outer_bits(self, role: str) -> float:
        """How many bits more a weight of this role has outside of the inner layers."""
        types = (recipe.type_of(role) for recipe in (self, self._in_the_middle))
        outer, inner = (FORMATS[type].bits_per_weight for type in types)
        return outer - inner

    def type_of(self, role: str) -> str:
        """The type of a matrix with this role (attn_q, ffn_down, output ...), experts' alike."""
        if self.experts and role.endswith("_exps"):
            return self.experts
        return self.roles.get(_EXPERTS.sub("", role), self.matrix)


@lru_cache(maxsize=1 << 10)
def is_inner(layer: int, n_layer: int, *, less: float = 0.0) -> bool:
    """Whether a layer is so far from both ends that Q5_K would cost more than llama.cpp pays.

    Its Q4_K_M gives Q6_K to the first and the last eighth of the layers and to every third between,
    and Q4_K to the others. Q5_K loses less in the same bytes, which are enough for 33 layers where
    16 get Q6_K: for nearly all, the last and the first before those between. less: for how many
    fewer.
    """
    eighth = n_layer // 8
    more = sum(i < eighth or i >= 7 * n_layer // 8 or (i - eighth) % 3 == 2 for i in range(n_layer))
    rank = min(2 * (n_layer - 1 - layer), 2 * layer + 1)
    return rank >= math.floor(33 * more / 16 - less)


_EXPERTS = re.compile(r"_(exps|shexp|chexps)$")

# Roles that lose more than their share (docs/decisions/0006): the head two bits' worth, then the
# values and the second FFN matrix. A tied embedding counts as the head.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "TQ-Q4",
            "Q4_K",
            {"attn_v": "Q5_K", "attn_qkv": "Q5_K", "ffn_down": "Q5_K", "output": "Q6_K"},
            LlamaFileType.MOSTLY_Q4_K_M,
            Recipe(
                "TQ-Q4",
                "Q5_0",
                {"attn_v": "Q5_1", "attn_qkv": "Q5_1", "ffn_down": "Q5_K", "output": "Q8_0"},
            ),
            inner={"attn_v": "Q4_K", "ffn_down": "Q4_K"},
        ),
        Recipe(
            "TQ-Q4-FAST",
            "Q4_0",
            {"output": "Q6_K"},
            LlamaFileType.MOSTLY_Q4_0,
        ),
        Recipe(
            "TQ-Q4-SMALL",
            "IQ4_XS",
            {"attn_v": "Q5_K", "output": "Q6_K"},
            LlamaFileType.MOSTLY_IQ4_XS,
            Recipe("TQ-Q4-SMALL", "IQ4_NL", {"attn_v": "Q5_0", "output": "Q5_1"}),
        ),
        Recipe(
            "TQ-Q3",
            "Q3_K",
            {"attn_v": "Q5_K", "ffn_down": "Q4_K", "output": "Q6_K", "token_embd": "Q4_K"},
            LlamaFileType.MOSTLY_Q3_K_M,
            Recipe("TQ-Q3", "IQ4_NL", {"attn_v": "Q5_0", "ffn_down": "Q4_K", "output": "Q5_1"}),
        ),
        Recipe(
            "TQ-Q2",
            "Q2_K",
            {
                "attn_v": "Q4_K",
                "attn_output": "Q3_K",
                "ffn_down": "Q3_K",
                "output": "Q6_K",
                "token_embd": "Q3_K",
            },
            LlamaFileType.MOSTLY_Q2_K,
            Recipe("TQ-Q2", "IQ4_NL", {"ffn_down": "Q3_K", "output": "Q5_0"}),
            dealt=True,
        ),
        Recipe(
            "TQ-Q2-SMALL",
            "IQ2_S",
            {
                "attn_v": "Q4_K",
                "attn_output": "Q3_K",
                "ffn_down": "Q3_K",
                "output": "Q5_K",
                "token_embd": "Q3_K",
            },
            LlamaFileType.MOSTLY_IQ2_S,
            Recipe("TQ-Q2-SMALL", "IQ4_NL", {"ffn_down": "Q2_K", "output": "Q4_1"}),
        ),
        Recipe(
            "TQ-Q2-MOE",
            "Q5_K",
            {"output": "Q6_K"},
            LlamaFileType.MOSTLY_IQ2_S,
            Recipe("TQ-Q2-MOE", "Q5_0", {"ffn_down": "Q5_K", "output": "Q8_0"}, experts="IQ4_NL"),
            experts="IQ2_S",
        ),
        Recipe(
            "TQ-Q1",
            "IQ1_M",
            {"ffn_down": "IQ2_XXS", "output": "Q5_K", "token_embd": "Q3_K"},
            LlamaFileType.MOSTLY_IQ1_M,
            Recipe("TQ-Q1", "IQ4_NL", {"ffn_down": "IQ2_XXS", "output": "Q4_1"}),
            dealt=True,
        ),
    )
}

_MIXTURE = re.compile(r"(?P<type>I?Q(?P<bits>\d)(?:_K)?)_(?:XXS|XS|S|M|L|XL)")
_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    **{t.name.removeprefix("MOSTLY_"): t for t in LlamaFileType if t.name.startswith("MOSTLY_")},
    "Q4_K": LlamaFileType.MOSTLY_Q4_K_S,
    "Q5_K": LlamaFileType.MOSTLY_Q5_K_S,
    "Q3_K": LlamaFileType.MOSTLY_Q3_K_S,
    "Q2_K": LlamaFileType.MOSTLY_Q2_K,
}

# What holds a row that a 256-weight block does not divide: the nearest type of smaller blocks that
# is at least as good (docs/decisions/0025). F16 takes any row.
_SMALLER_BLOCKS = ("IQ4_NL", "Q5_1", "Q8_0", "F16")


def recipe(name: str) -> Recipe:
    """The recipe, or the single type, of this name in any case.

    Raises PlanError for an unknown one and lists the known ones.
    """
    upper = name.upper()
    if upper in RECIPES:
        return RECIPES[upper]
    if upper not in FORMATS:
        known = ", ".join([*RECIPES, *FORMATS])
        raise PlanError(f"type {name!r} is unknown{_hint(upper)}; known: {known}")
    return Recipe(upper, upper, file_type=file_type(upper))


def file_type(type: str) -> LlamaFileType:
    """What `general.file_type` says of a file most of whose weights have this type."""
    return _FILE_TYPES.get(type, LlamaFileType.GUESSED)


def _hint(name: str) -> str:
    """What to use in place of a mixture that llama-quantize knows, Q4_K_M say."""
    match = _MIXTURE.fullmatch(name)
    if not match or not hasattr(LlamaFileType, f"MOSTLY_{name}"):
        return ""
    ours = [n for n in (f"TQ-Q{match['bits']}", match["type"]) if n in RECIPES or n in FORMATS]
    return f": that is a mixture of llama-quantize's; use {' or '.join(ours).lower()}"


def fitting(name: str, n_in: int) -> tuple[str, str]:
    """The type for rows of n_in weights: the one asked for, or the nearest that fits, and why.

    Raises PlanError where no type holds such rows.
    """
    wanted = FORMATS[name]
    if n_in % wanted.block_size == 0:
        return name, ""
    for fallback in (FORMATS[n] for n in _SMALLER_BLOCKS):
        if fallback.bits_per_weight >= wanted.bits_per_weight and n_in % fallback.block_size == 0:
            return (
                fallback.name,
                f"rows of {n_in} do not fit {name}'s blocks of {wanted.block_size}",
            )
    raise PlanError(f"no type holds rows of {n_in} weights")
