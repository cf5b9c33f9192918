"""Whether a model's rows are padded to whole blocks: where that was measured to win.

At 4 bits and more the types of 32 weights serve any row. Below their 4.25 bits padded K- and
IQ-types diverge less than anything else of the same bytes, as long as little has to be added
(docs/decisions/0040). An FFN's inner width is padded for any type that makes the file smaller than
the one that ffn_down would fall back to.
"""

from collections.abc import Collection, Iterator
from typing import Any

from tqgguf.errors import PlanError, UnsupportedModelError
from tqgguf.formats import FORMATS, is_float
from tqgguf.models import Model
from tqgguf.models.roles import role
from tqgguf.planning.matrices import NamedTypes, is_matrix
from tqgguf.planning.plan import Options
from tqgguf.planning.recipes import fitting, recipe
from tqgguf.rotation import ends
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.padded_axes import BLOCK, FFNS, padding, whole_blocks
from tqgguf.rotation.padding import Padding, read_padding
from tqgguf.rotation.recorded import read_rotation

PADS = ("auto", "none")
MOST = 1.07  # as many times the width
FEWEST = 4.25  # bits of the smallest type of 32 weights that holds 16 levels
_LOW_BITS = "Q3_K"  # what a budget of fewer bits stands for
_NOTHING = Padding()


def choose_padding(model: Model, options: Options) -> tuple[Padding, tuple[str, ...]]:
    """The padding of a model's FFNs and residual stream that its types need; what to say of it.

    Raises PlanError for a value of --pad that is unknown.
    """
    if options.pad not in PADS:
        raise PlanError(f"--pad {options.pad} is unknown; known: {', '.join(PADS)}")
    if options.pad == "none" or _is_settled(model):
        return _NOTHING, ()
    names = set(_ragged(model, options))
    inner = {kind for kind in FFNS for name in names if role(name)[0] == f"ffn_down{kind}"}
    sizes = _stream_sizes(model)
    stream = 2 * sum(sizes[name] for name in names & sizes.keys()) > sum(sizes.values())
    return _possible(model, inner=inner, stream=stream)


def _stream_sizes(model: Model) -> dict[str, int]:
    """Weights of the matrices whose rows are the residual stream, if the architecture is known."""
    row = STREAMS.get(model.architecture)
    roles = {*row.readers, *row.embeddings, *ends.HEADS} if row else set()
    tensors = model.tensors.items()
    return {n: t.size for n, t in tensors if is_matrix(t) and role(n)[0] in roles}


def _is_settled(model: Model) -> bool:
    """Whether a model is padded or rotated already, or holds weights that are not to be moved."""
    return (
        bool(read_padding(model))
        or read_rotation(model).mode != "none"
        or not all(is_float(t.type) for t in model.tensors.values() if is_matrix(t))
    )


def _ragged(model: Model, options: Options) -> Iterator[str]:
    """The matrices whose types need whole blocks, and which lack little of these."""
    chosen = recipe(_LOW_BITS if _few_bits(model, options) else options.type)
    named = NamedTypes(options.tensor_type, options.output_type, options.token_embedding_type)
    tied = ends.tied_head(model)
    for name, tensor in model.tensors.items():
        if not is_matrix(tensor) or not tensor.n_in % BLOCK:
            continue
        kind = "output" if tied and name == ends.EMBEDDING else role(name)[0]
        type = named.type_of(name, tied=tied) or chosen.type_of(kind)
        if FORMATS[type].block_size == BLOCK and _pays(type, tensor.n_in, _is_down(name)):
            yield name


def _is_down(name: str) -> bool:
    """Whether the rows of a matrix are an FFN's inner width."""
    return role(name)[0].startswith("ffn_down")


def _pays(type: str, n_in: int, inner: bool) -> bool:
    """Whether rows are padded for a type that does not fit them."""
    grown, bits = whole_blocks(n_in) / n_in, FORMATS[type].bits_per_weight
    if inner:  # ffn_gate and ffn_up grow as well
        bits *= 3 - 2 / grown
        return grown <= MOST and bits * grown < FORMATS[fitting(type, n_in)[0]].bits_per_weight
    return grown <= MOST and bits < FEWEST


def _few_bits(model: Model, options: Options) -> bool:
    """Whether a budget asks for fewer bits than the types of 32 weights have."""
    bits = options.target_bpw
    if options.target_size is not None:
        bits = 8 * options.target_size / sum(t.size for t in model.tensors.values())
    return bits is not None and bits < FEWEST


def _possible(
    model: Model, *, inner: Collection[str], stream: bool
) -> tuple[Padding, tuple[str, ...]]:
    """As much of it as is exact, and why the rest is not."""
    notes = []
    wanted: dict[str, Any] = {"inner": inner, "stream": stream}
    for part in [part for part, is_wanted in wanted.items() if is_wanted]:
        try:
            padding(model, **{part: wanted[part]})
        except UnsupportedModelError as error:
            wanted[part] = ()
            notes.append(f"rows are not padded: {str(error).removeprefix(f'{model.path}: ')}")
    return padding(model, **wanted), tuple(notes)
