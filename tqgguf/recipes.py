"""Which type each role of tensor gets: the TQ recipes, and any single type."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf import LlamaFileType

from tqgguf.errors import PlanError
from tqgguf.formats import FORMATS


@dataclass(frozen=True)
class Recipe:
    """A type for matrices and the roles that get another one.

    file_type is what `general.file_type` says: the nearest of llama.cpp's own mixtures.
    """

    name: str
    matrix: str
    roles: Mapping[str, str] = field(default_factory=dict)
    file_type: LlamaFileType = LlamaFileType.GUESSED

    def type_of(self, role: str) -> str:
        """The type of a matrix with this role (attn_q, ffn_down, output ...)."""
        return self.roles.get(role, self.matrix)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("TQ-Q4", "Q4_K", {"output": "Q6_K"}, LlamaFileType.MOSTLY_Q4_K_S),
        Recipe("TQ-Q3", "Q3_K", {"output": "Q6_K"}, LlamaFileType.MOSTLY_Q3_K_S),
        Recipe("TQ-Q2", "Q2_K", {"output": "Q6_K"}, LlamaFileType.MOSTLY_Q2_K_S),
    )
}

_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    **{t.name.removeprefix("MOSTLY_"): t for t in LlamaFileType if t.name.startswith("MOSTLY_")},
    "Q4_K": LlamaFileType.MOSTLY_Q4_K_S,
    "Q5_K": LlamaFileType.MOSTLY_Q5_K_S,
    "Q3_K": LlamaFileType.MOSTLY_Q3_K_S,
    "Q2_K": LlamaFileType.MOSTLY_Q2_K,
}

# What holds a row that a 256-weight block does not divide: the nearest type of smaller blocks that
# is at least as good. F16 takes any row.
_SMALLER_BLOCKS = ("Q4_0", "IQ4_NL", "Q5_0", "Q8_0", "F16")


def recipe(name: str) -> Recipe:
    """The recipe, or the single type, of this name in any case.

    Raises PlanError for an unknown one and lists the known ones.
    """
    upper = name.upper()
    if upper in RECIPES:
        return RECIPES[upper]
    if upper not in FORMATS:
        known = ", ".join([*RECIPES, *FORMATS])
        raise PlanError(f"type {name!r} is unknown; known: {known}")
    return Recipe(upper, upper, {}, _FILE_TYPES.get(upper, LlamaFileType.GUESSED))


def fitting(name: str, n_in: int) -> tuple[str, str]:
    """The type for rows of n_in weights: the one asked for, or the nearest that fits, and why."""
    wanted = FORMATS[name]
    if n_in % wanted.block_size == 0:
        return name, ""
    for fallback in (FORMATS[n] for n in _SMALLER_BLOCKS if n in FORMATS):
        if fallback.bits_per_weight >= wanted.bits_per_weight and n_in % fallback.block_size == 0:
            return (
                fallback.name,
                f"rows of {n_in} do not fit {name}'s blocks of {wanted.block_size}",
            )
    raise PlanError(f"no type holds rows of {n_in} weights")
