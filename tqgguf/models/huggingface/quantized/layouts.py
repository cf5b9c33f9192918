"""Weights that another tool quantized, decoded exactly as their rows are read.

A quantizer stores a matrix as several tensors: codes, scales, zero points. Which belong together is
one row of a table of layouts; a row without a decoder names what cannot be read here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tqgguf.errors import UnsupportedModelError
from tqgguf.models.huggingface.folder import Config, base_model, read_json
from tqgguf.models.huggingface.quantized.compressed_tensors import (
    bytewise_integers,
    packed_integers,
)
from tqgguf.models.huggingface.quantized.fp4 import fp4_packed, fp4_rows
from tqgguf.models.huggingface.quantized.fp8 import DTYPES, fp8
from tqgguf.models.huggingface.quantized.gptq import gptq_or_awq
from tqgguf.models.huggingface.quantized.parts import Parts
from tqgguf.models.huggingface.stored import Packed, RowReader, Stored

# Methods whose layouts are found by their tensors, or, of the first five, whose tensors are plain.
_MAY_BE_PLAIN = ("mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
_METHODS = (*_MAY_BE_PLAIN, "gptq", "awq", "auto-round")


@dataclass(frozen=True)
class Packing:
    """How a quantizer stores a matrix: a codes tensor `stem + codes` and others beside it."""

    title: str
    codes: str
    dtypes: tuple[str, ...]
    beside: tuple[str, ...]
    decode: Callable[[Parts], tuple[tuple[int, ...], RowReader]] | None = None
    optional: tuple[str, ...] = ()
    pack: Callable[[Parts], Packed | None] = lambda _: None

    def stem(self, stored: Stored, weights: Mapping[str, Stored]) -> str | None:
        """What the names of its tensors begin with, if this is a codes tensor of this layout."""
        if stored.dtype not in self.dtypes or not stored.name.endswith(self.codes):
            return None
        stem = stored.name.removesuffix(self.codes)
        return stem if all(stem + end in weights for end in self.beside) else None


def decoded(
    weights: Mapping[str, Stored], config: Config, note: Callable[[str], None]
) -> dict[str, Stored]:
    """The weights with every quantized matrix as one tensor, in their order.

    note is told which layouts were decoded. Raises FileFormatError for parts that do not fit,
    UnsupportedModelError for a layout that cannot be decoded.
    """
    settings = _settings(config)
    found = dict(_found(weights))
    foreign = next(chain(_undecodable(found), _unknown(settings, found)), None)
    if foreign:
        raise _refusal(foreign, config)
    used = {stem + end for stem, x in found.values() for end in (*x.beside, *x.optional)}
    found = {name: x for name, x in found.items() if name not in used}  # scales may be FP8
    result: dict[str, Stored] = {}
    for name, stored in weights.items():
        if name in found:
            joined = _joined(weights, *found[name], settings)
            result[joined.name] = joined
        elif name not in used:
            result[name] = stored
    for title, count in Counter(layout.title for _, layout in found.values()).items():
        note(
            f"{config.path.parent}: {count} matrices are quantized already ({title}); decoded "
            "exactly, so they are as good as that and no better"
        )
    return result


def _found(weights: Mapping[str, Stored]) -> Iterator[tuple[str, tuple[str, Packing]]]:
    """Codes tensor -> the stem of its matrix's names and their layout."""
    for name, stored in weights.items():
        for layout in LAYOUTS:
            stem = layout.stem(stored, weights)
            if stem is not None:
                yield name, (stem, layout)
                break


def _undecodable(found: Mapping[str, tuple[str, Packing]]) -> Iterator[str]:
    return (layout.title for _, layout in found.values() if layout.decode is None)


def _unknown(settings: Config, found: Mapping[str, Any]) -> Iterator[str]:
    """What the quantizer says it did, where that is more than the layouts here undo."""
    method, transform = settings.get("quant_method"), settings.get("transform_config")
    sparse = settings.section("sparsity_config").get("format")
    if method not in (None, *(_METHODS if found else _MAY_BE_PLAIN)):
        yield str(method)[:40]
    if sparse not in (None, "dense"):
        yield f"{method} (sparse: {str(sparse)[:40]})"
    if isinstance(transform, dict) and transform.get("config_groups"):
        yield f"{method} (with transforms of its own)"


def _joined(weights: Mapping[str, Stored], stem: str, layout: Packing, settings: Config) -> Stored:
    ends = (layout.codes, *layout.beside, *layout.optional)
    name = f"{stem}.weight" if layout.codes else stem
    tensors = {end: weights[stem + end] for end in ends if stem + end in weights}
    assert layout.decode is not None
    parts = Parts(name, tensors, settings)
    shape, rows = layout.decode(parts)
    packed = layout.pack(parts)
    return replace(tensors[layout.codes], name=name, decoded=rows, shape=shape, packed=packed)


def _settings(config: Config) -> Config:
    """What the quantizer says of itself: in config.json, or in a file of its own."""
    section = config.section("quantization_config", "compression_config")
    for file in ("quantize_config.json", "quant_config.json"):
        path = config.path.with_name(file)
        if not section.values and path.is_file():
            section = Config(path, read_json(path))
    return section


def _refusal(title: str, config: Config) -> UnsupportedModelError:
    base = base_model(config.path.parent)
    return UnsupportedModelError(
        f"{config.path.parent}: the weights are quantized by {title}, which cannot be undone here; "
        f"give the folder of the model that was quantized{f', {base}' if base else ''}"
    )


_FP4 = "4-bit floats"
_FP4_OPTIONAL = (".weight_scale_2", ".weight_global_scale")
LAYOUTS = (
    Packing("bitsandbytes, 4 bits", ".weight", ("U8",), (".weight.absmax",)),
    Packing("bitsandbytes, 8 bits", ".weight", ("I8",), (".SCB",)),
    Packing("MLX", ".weight", ("U32",), (".scales",)),
    *(
        Packing(_FP4, end, ("U8",), (".weight_scale",), fp4_rows, _FP4_OPTIONAL, fp4_packed)
        for end in (".weight_packed", ".weight")
    ),
    Packing("HQQ", ".W_q", ("U8", "I32", "I8"), ()),
    Packing("AQLM", ".codes", ("I8", "I16", "I32"), (".codebooks",)),
    Packing("GPTQ or AWQ", ".qweight", ("I32",), (".qzeros", ".scales"), gptq_or_awq, (".g_idx",)),
    Packing(
        "compressed-tensors, packed integers",
        ".weight_packed",
        ("I32",),
        (".weight_scale", ".weight_shape"),
        packed_integers,
        (".weight_zero_point", ".weight_g_idx"),
    ),
    Packing(
        "8-bit integers",
        ".weight",
        ("I8",),
        (".weight_scale",),
        bytewise_integers,
        (".weight_zero_point", ".weight_g_idx"),
    ),
    Packing("FP8", "", DTYPES, (), fp8, ("_scale_inv", "_scale")),
)
