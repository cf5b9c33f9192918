"""What the converter can know of an architecture: how one row of the table is made."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.model import Tensor

Size = Callable[[Config], int]

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
SHARED_COUNTS = ("n_shared_experts", "moe_num_shared_experts")
# Letters for the widths of tensors.
SIZES: Mapping[str, Size] = {
    "V": lambda c: c.count("vocab_size"),
    "E": lambda c: c.n_embd,
    "P": lambda c: c.count("n_positions", "max_position_embeddings"),
    "D": lambda c: c.head_dim,
    "B": lambda c: c.n_head,
    "Q": lambda c: c.n_head * c.head_dim,
    "K": lambda c: c.n_head_kv * c.head_dim,
    "2M": lambda c: 2 * c.count("moe_intermediate_size"),
    "3E": lambda c: 3 * c.n_embd,
    "A": lambda c: (c.n_head + 2 * c.n_head_kv) * c.head_dim,
    "F": lambda c: c.n_ff,
    "G": lambda c: 2 * c.n_ff,
    "X": lambda c: c.count(*EXPERT_COUNTS),
    "M": lambda c: c.count("moe_intermediate_size", "intermediate_size"),
    "N": lambda c: c.count("moe_intermediate_size") * c.count(*SHARED_COUNTS),
    "T": lambda c: c.count("shared_expert_intermediate_size"),
    "R": lambda c: 2 * c.n_head * c.head_dim,
    "H": lambda c: c.count("linear_num_value_heads"),
    "2H": lambda c: 2 * c.count("linear_num_value_heads"),
    "Sh": lambda c: c.count("shared_intermediate_size"),
    "S": lambda c: c.count("linear_value_head_dim"),
    "Z": lambda c: c.count("linear_num_value_heads") * c.count("linear_value_head_dim"),
    "W": lambda c: (
        c.count("linear_num_value_heads") * c.count("linear_value_head_dim")
        + 2 * c.count("linear_num_key_heads") * c.count("linear_key_head_dim")
    ),
    "C": lambda c: c.count("linear_conv_kernel_dim"),
    "1": lambda _: 1,
    "Qg": lambda c: c.n_head * c.full_head_dim,
    "Kg": lambda c: c.full_n_head_kv * c.full_head_dim,
    "Dg": lambda c: c.full_head_dim,
    "Pl": lambda c: c.count("hidden_size_per_layer_input"),
    "PL": lambda c: c.n_layer * c.count("hidden_size_per_layer_input"),
    "Lq": lambda c: c.count("q_lora_rank"),
    "Lk": lambda c: c.count("kv_lora_rank"),
    "Ka": lambda c: c.count("kv_lora_rank") + c.count("qk_rope_head_dim"),
    "Qm": lambda c: c.n_head * (c.count("qk_nope_head_dim") + c.count("qk_rope_head_dim")),
    "Vm": lambda c: c.n_head * c.count("v_head_dim"),
    "Nk": lambda c: c.count("qk_nope_head_dim"),
    "Vv": lambda c: c.count("v_head_dim"),
}


@dataclass(frozen=True)
class Merging:
    """SentencePiece's pieces merged in the order of a list, under a name of llama.cpp's own.

    shown: texts of added tokens that a reader of the output gets to see, whatever marks them.
    """

    name: str
    shown: frozenset[str] = frozenset()


Plain = int | float | list[bool] | list[int]
Change = Callable[[Tensor, Config], Tensor]
Splitter = Callable[[Tensor, Config], list[Tensor]]


@dataclass(frozen=True)
class Key:
    """One GGUF key: where config.json has it, or how it follows from the rest."""

    name: str  # without the architecture's prefix
    value: Callable[
        [Config], int | float | list[bool] | list[int] | None
    ]  # None: leave the key out


@dataclass(frozen=True)
class Architecture:
    """One row: how a Hugging Face class becomes a GGUF graph.

    tensors: GGUF name -> letters of its shape, then "?" where the graph does without it, and
    "@kind" where only layers of that kind have it; layer_kind gives a layer's kinds, separated by
    spaces. "|" stands between what layers of different kinds have. assumes: config key -> the
    values that llama.cpp's graph computes; where the key is absent it has transformers' default,
    None unless defaults says otherwise. check: what else it cannot compute, in words, or None.
    """

    name: str
    tensors: Mapping[str, str]
    keys: tuple[Key, ...]
    assumes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    covers: Callable[[Config], bool] = lambda config: True  # noqa: ARG005 - else as without a row
    check: Callable[[Config], str | None] | None = None
    changes: tuple[tuple[re.Pattern[str], Change], ...] = ()  # of tensors with matching names
    experts_take_turns: bool = False  # fused: gate and up row by row, and turned
    experts_may_turn: bool = False  # fused: some files hold them turned, rows along the last axis
    experts_stay_fused: bool = False  # gate and up are one tensor in GGUF too
    remark: Callable[[Config], str | None] | None = None  # what is said of a model
    splits: tuple[tuple[re.Pattern[str], Splitter], ...] = ()  # one tensor that becomes several
    layer_kind: Callable[[Config, int], str] = lambda config, layer: ""  # noqa: ARG005
    transposed: re.Pattern[str] | None = None
    always_tied: bool = False  # the graph never loads output.weight
    space_prefix: bool | None = None  # what its SentencePiece tokenizers do; None: ask them
    merging: Merging | None = None  # of its tokenizers, where it is not SentencePiece's own
    special: Mapping[str, str] = field(default_factory=dict)  # roles of tokens that settings omit
    dense: bool = False  # the graph has matrices behind the pooling
    ranks: bool = False  # a reranker among its models has a head of its own
    rope: bool = True
    partial_rotary: bool = False  # the graph may rotate less than a whole head
    rope_reads: tuple[str, ...] = ()  # further keys of rope_parameters that become keys of ours
    latent_yarn: bool = False  # scores are scaled by mscale_all_dim, as DeepSeek's
    yarn_ramps: bool = False  # the graph takes beta_fast and beta_slow from the file
    rope_factors: tuple[str, ...] = ()  # rope types whose tensors of factors the graph loads


def rope_width(config: Config) -> int:
    """Rotated weights of a head; FileFormatError if there would be more than it has."""
    names = ("partial_rotary_factor", "rotary_pct")
    parameters = config.section("rope_parameters", "rope_scaling")
    for source in (parameters.section("full_attention"), parameters, config):
        if source.get(*names) is not None:
            if source.positive(*names) > 1:
                raise FileFormatError(f"{config.path}: {names[0]} is above 1")
            return int(source.positive(*names) * config.head_dim)
    return config.head_dim


def check_assumptions(config: Config, architecture: Architecture) -> None:
    """UnsupportedModelError where llama.cpp's graph computes something else than config.json."""
    for key, allowed in architecture.assumes.items():
        if config.get(key) not in allowed:
            raise UnsupportedModelError(
                f"{config.path}: {key} is {config.get(key)!r}, but llama.cpp's "
                f"{architecture.name} graph computes {' or '.join(map(repr, allowed))}"
            )
    problem = architecture.check(config) if architecture.check else None
    if problem:
        raise UnsupportedModelError(f"{config.path}: {problem}")
