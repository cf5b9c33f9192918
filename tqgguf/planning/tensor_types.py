"""The type of each tensor: what options name, recipes want, rows fit and the graph can use."""

from collections.abc import Collection
from dataclasses import replace

from tqgguf.errors import UnsupportedModelError
from tqgguf.formats import FORMATS, is_float
from tqgguf.models import INTEGERS, Model, Tensor
from tqgguf.models.roles import role
from tqgguf.planning.matrices import NamedTypes, is_matrix, may_be_quantized, needs_f32
from tqgguf.planning.plan import Options, PlannedTensor
from tqgguf.planning.recipes import Recipe, fitting
from tqgguf.planning.scales import may_be_scaled
from tqgguf.rotation import ends
from tqgguf.rotation.rotation import Rotation
from tqgguf.rotation.steps import Sides

_RELEASED = ("MXFP4", "NVFP4")  # models are trained and released in them: stored as they are
_UNSCALED = "IQ4_NL"  # in place of NVFP4, of as many bits


def planned_tensor(
    source: Tensor, name: str, chosen: Recipe, options: Options, rotation: Rotation, head: str
) -> PlannedTensor:
    """A tensor of the output under its name there; head: that of the output head's tensor.

    Raises UnsupportedModelError where a rotation would round released weights again.
    """
    named = _named_type(source, name, options, head)
    sides = rotation.sides.get(name, Sides())
    if source.type in _RELEASED and sides and not options.allow_requantize:
        raise UnsupportedModelError(
            f"{name}: a rotation would round its {source.type} weights again; use --rotate none, "
            "or accept the loss with --allow-requantize"
        )
    if named is None and source.type in _RELEASED and not sides:
        type, reason = source.type, ""
    elif named is None and is_matrix(source):
        kind = "output" if name == head else role(name)[0]
        type, reason = fitting(chosen.type_of(kind), source.n_in)
    else:
        wanted = named or _kept_type(source, chosen)
        type, reason = fitting(wanted, source.n_in) if wanted in FORMATS else (wanted, "")
    is_named = named is not None
    return PlannedTensor(
        name, source.name, source.shape, source.type, type, sides, reason, is_named
    )


def with_scales(planned: PlannedTensor, model: Model, names: Collection[str]) -> PlannedTensor:
    """A tensor of a type that needs scales beside it: with them, or of the next best type."""
    if planned.type not in FORMATS or not FORMATS[planned.type].is_scaled:
        return planned
    if planned.is_copy and model.tensors[planned.source].scales is None:
        return planned
    if may_be_scaled(model.architecture, planned.name, names):
        return replace(planned, is_scaled=True)
    fact = f"no scale beside {planned.name} is used in llama.cpp's graph of {model.architecture}"
    return replace(planned, type=_UNSCALED, reason=fact)


def _named_type(source: Tensor, name: str, options: Options, head: str) -> str | None:
    """The type that an option gives to a tensor, before its row length is looked at."""
    if not may_be_quantized(source):
        return None
    return named_types(options).type_of(name, tied=head != ends.HEAD)


def named_types(options: Options) -> NamedTypes:
    """The types that options name."""
    return NamedTypes(options.tensor_type, options.output_type, options.token_embedding_type)


def _kept_type(source: Tensor, chosen: Recipe) -> str:
    """The type of what is no matrix: as it is, or as llama.cpp needs it."""
    if source.type in INTEGERS:
        return source.type
    if needs_f32(source) or source.type == "F64":
        return "F32"
    decoded = is_float(chosen.matrix) and not is_float(source.type)
    return chosen.matrix if decoded else source.type
