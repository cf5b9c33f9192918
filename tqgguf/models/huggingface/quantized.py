"""Weights that another tool quantized, decoded exactly as their rows are read.

A quantizer stores a matrix as several tensors: codes, scales, zero points. Which belong together is
one row of a table of layouts; a row without a decoder names what cannot be read here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels.dtypes import F32, I64
from tqgguf.models.huggingface.folder import Config, base_model, read_json
from tqgguf.models.huggingface.fp4 import Fp4
from tqgguf.models.huggingface.stored import Packed, Rows, Stored

_FP8 = ("F8_E4M3", "F8_E5M2")
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where a word of AWQ keeps its first, second ... column
# Methods whose layouts are found by their tensors, or, of the first five, whose tensors are plain.
_MAY_BE_PLAIN = ("mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
_METHODS = (*_MAY_BE_PLAIN, "gptq", "awq", "auto-round")


@dataclass(frozen=True)
class Parts:
    """The tensors that hold one matrix, by the ends of their names, and the quantizer's settings.

    name: what the matrix is called once it is one tensor.
    """

    name: str
    tensors: Mapping[str, Stored]
    settings: Config

    def matrix(self, end: str) -> Stored:
        """A part with two axes; FileFormatError if it has others."""
        if self.tensors[end].array.ndim != 2:
            raise self.wrong(f"{end} has shape {self.tensors[end].shape}, expected a matrix")
        return self.tensors[end]

    def wrong(self, fact: str) -> FileFormatError:
        """An error about this matrix."""
        return FileFormatError(f"{self.name}: {fact}")


@dataclass(frozen=True)
class Packing:
    """How a quantizer stores a matrix: a codes tensor `stem + codes` and others beside it."""

    title: str
    codes: str
    dtypes: tuple[str, ...]
    beside: tuple[str, ...]
    decode: Callable[[Parts], tuple[tuple[int, ...], Rows]] | None = None
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


def _gptq_or_awq(parts: Parts) -> tuple[tuple[int, ...], Rows]:
    """Codes in 32-bit words along the inputs (GPTQ) or the outputs (AWQ): (q - zero) * scale."""
    codes, zeros, scales = (parts.matrix(end) for end in (".qweight", ".qzeros", ".scales"))
    n_groups, n_out = scales.shape
    bits = 32 * zeros.shape[1] // n_out if n_out else 0
    if bits not in (2, 4, 8) or zeros.shape != (n_groups, n_out * bits // 32):
        raise UnsupportedModelError(
            f"{parts.name}: GPTQ or AWQ codes with zeros of shape {zeros.shape} and scales of "
            f"shape {scales.shape}; expected 2, 4 or 8 bits"
        )
    if codes.shape[1] == n_out:
        return _gptq(parts, bits)
    if bits == 4 and codes.shape[1] * 8 == n_out:
        return _awq(parts)
    raise parts.wrong(f"codes of shape {codes.shape} do not fit scales of shape {scales.shape}")


def _gptq(parts: Parts, bits: int) -> tuple[tuple[int, ...], Rows]:
    """GPTQ: (n_in * bits / 32, n_out) words; its first format stores zeros less one."""
    form = parts.settings.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(
            f"{parts.name}: GPTQ weights in the layout {str(form)[:20]!r}; expected gptq or gptq_v2"
        )
    codes, zeros, scales = (parts.tensors[end] for end in (".qweight", ".qzeros", ".scales"))
    n_in, n_out = codes.shape[0] * 32 // bits, codes.shape[1]
    groups = _groups(parts, n_in, scales.shape[0], ".g_idx")
    offset, per_word = int(form == "gptq"), 32 // bits

    def rows(start: int, stop: int) -> F32:
        q = _unpacked(codes.integers((slice(None), slice(start, stop))).T, bits)
        first = start // per_word
        words = zeros.integers((slice(None), slice(first, -(-stop // per_word))))
        zero = _unpacked(words, bits)[:, start - first * per_word :][:, : stop - start]
        zero = (zero + offset) & ((1 << bits) - 1)
        scale = scales.values((slice(None), slice(start, stop)))
        weights: F32 = (q - zero.T[:, groups]) * scale.T[:, groups]
        return weights

    return (n_out, n_in), rows


def _awq(parts: Parts) -> tuple[tuple[int, ...], Rows]:
    """AWQ, 4 bits: (n_in, n_out / 8) words, whose columns are interleaved."""
    version = str(parts.settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise UnsupportedModelError(
            f"{parts.name}: AWQ weights in the layout {version[:20]!r}; expected gemm"
        )
    codes, zeros, scales = (parts.tensors[end] for end in (".qweight", ".qzeros", ".scales"))
    n_in, n_out = codes.shape[0], scales.shape[1]
    groups = _groups(parts, n_in, scales.shape[0], "")

    def columns(stored: Stored, start: int, stop: int) -> NDArray[Any]:
        first = start // 8
        words = stored.integers((slice(None), slice(first, -(-stop // 8))))
        nibbles = _unpacked(words, 4).reshape(*words.shape, 8)[:, :, _AWQ_ORDER]
        return nibbles.reshape(len(words), 8 * words.shape[1])[:, start - 8 * first :][
            :, : stop - start
        ]

    def rows(start: int, stop: int) -> F32:
        zero = columns(zeros, start, stop).T[:, groups]
        scale = scales.values((slice(None), slice(start, stop))).T[:, groups]
        weights: F32 = (columns(codes, start, stop).T - zero) * scale
        return weights

    return (n_out, n_in), rows


def _unpacked(words: NDArray[Any], bits: int) -> NDArray[Any]:
    """Unsigned numbers in 32-bit words, lowest first: (n, m) -> (n, m * 32 / bits) int16."""
    shifts = np.arange(0, 32 // bits * bits, bits, dtype=np.uint32)
    numbers = np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts
    flat = numbers.reshape(len(words), words.shape[1] * len(shifts))
    return (flat & np.uint32((1 << bits) - 1)).astype(np.int16)


def _groups(parts: Parts, n_in: int, n_groups: int, end: str) -> I64:
    """The group of each input: (n_in,); listed in the tensor `end` if there is one."""
    listed = parts.tensors.get(end)
    if listed is None or (listed.integers() < 0).all():
        if n_groups == 0 or n_in == 0:
            raise parts.wrong(f"{n_groups} groups of {n_in} inputs")
        return np.arange(n_in) // -(-n_in // n_groups)
    groups = listed.integers().astype(np.int64)
    if groups.shape != (n_in,) or groups.min() < 0 or groups.max() >= n_groups:
        raise parts.wrong(f"{end} does not give each of {n_in} inputs one of {n_groups} groups")
    return groups


def _packed(parts: Parts) -> tuple[tuple[int, ...], Rows]:
    """compressed-tensors: (n_out, n_words) words along the inputs, codes offset to be unsigned."""
    codes, listed = parts.matrix(".weight_packed"), parts.tensors[".weight_shape"].integers()
    if listed.shape != (2,) or listed[0] != codes.shape[0]:
        raise parts.wrong(f"weight_shape {listed.tolist()} does not fit {codes.shape} words")
    n_out, n_in = map(int, listed)
    fitting = [b for b in (2, 4, 8) if -(-n_in // (32 // b)) == codes.shape[1]]
    if not fitting:
        raise UnsupportedModelError(
            f"{parts.name}: {n_in} weights in {codes.shape[1]} words; expected 2, 4 or 8 bits"
        )
    bits = fitting[0]
    scale = _scale(parts, (n_out, n_in), ".weight_scale", grouped=True)
    zero = _zero(parts, (n_out, n_in), bits)

    def rows(start: int, stop: int) -> F32:
        q = _unpacked(codes.integers(slice(start, stop)), bits)[:, :n_in]
        return (q - zero(start, stop)) * scale(start, stop)

    return (n_out, n_in), rows


def _zero(parts: Parts, shape: tuple[int, int], bits: int) -> Rows:
    """Zero points of compressed-tensors' packed codes: the middle, or packed along the rows."""
    stored = parts.tensors.get(".weight_zero_point")
    if stored is None:
        return lambda *_: np.array([[1 << (bits - 1)]], np.float32)
    if stored.dtype == "I8":  # as older versions wrote them: signed, not packed
        plain = _scale(parts, shape, ".weight_zero_point", grouped=True)
        return lambda start, stop: plain(start, stop) + (1 << (bits - 1))
    per_word, groups = 32 // bits, _groups(parts, shape[1], stored.shape[-1], ".weight_g_idx")
    if stored.shape != (-(-shape[0] // per_word), stored.shape[-1]):
        raise parts.wrong(f"zero points of shape {stored.shape} for a matrix of shape {shape}")

    def rows(start: int, stop: int) -> F32:
        first = start // per_word
        words = stored.integers(slice(first, -(-stop // per_word)))
        lines = _unpacked(words.T, bits).T[start - first * per_word :][: stop - start]
        return lines[:, groups].astype(np.float32)

    return rows


def _int8(parts: Parts) -> tuple[tuple[int, ...], Rows]:
    """Signed codes in bytes: (q - zero) * scale."""
    codes = parts.matrix(".weight")
    shape = (codes.shape[0], codes.shape[1])
    scale = _scale(parts, shape, ".weight_scale", grouped=True)
    has_zero = ".weight_zero_point" in parts.tensors
    zero = _scale(parts, shape, ".weight_zero_point", grouped=True) if has_zero else _no_zero

    def rows(start: int, stop: int) -> F32:
        q = codes.integers(slice(start, stop)).astype(np.float32)
        return (q - zero(start, stop)) * scale(start, stop)

    return shape, rows


def _no_zero(*_: int) -> F32:
    return np.zeros((1, 1), np.float32)


def _fp8(parts: Parts) -> tuple[tuple[int, ...], Rows]:
    """FP8 weights with one scale a matrix, a row or a block; or with none."""
    codes = parts.tensors[""]
    end = next((end for end in ("_scale_inv", "_scale") if end in parts.tensors), None)
    if end is None or codes.array.ndim != 2:
        if end is None or parts.tensors[end].array.size == 1:
            return _fp8_vector(codes, 1.0 if end is None else parts.tensors[end].values())
        raise parts.wrong(
            f"has shape {codes.shape} and a scale of shape {parts.tensors[end].shape}; expected "
            "one number"
        )
    scale = _scale(parts, (codes.shape[0], codes.shape[1]), end, block=_block_size(parts.settings))
    return codes.shape, lambda start, stop: codes.rows(start, stop) * scale(start, stop)


def _fp8_vector(codes: Stored, scale: Any) -> tuple[tuple[int, ...], Rows]:
    matrix = codes.array.reshape(-1, codes.shape[-1]) if codes.shape else codes.array.reshape(1, 1)
    flat, factor = replace(codes, array=matrix), np.float32(np.asarray(scale).reshape(-1)[0])
    return codes.shape or (1,), lambda start, stop: flat.rows(start, stop) * factor


def _scale(
    parts: Parts,
    shape: tuple[int, int],
    end: str,
    *,
    block: tuple[int, int] | None = None,
    grouped: bool = False,
) -> Rows:
    """Scales (or zero points) of rows start..stop, broadcastable to (stop - start, n_in).

    They are one number, one a row, one a block of rows and columns, or, grouped, one for each of
    some runs of a row's inputs.
    """
    stored = parts.tensors[end]
    values = stored.array.reshape(-1, 1) if stored.array.ndim == 1 else stored.array
    stored = replace(stored, array=values)
    if values.size == 1:
        return lambda *_: _numbers(stored, ...).reshape(1, 1)
    blocks = {(1, shape[1])} | ({block} if block else set())
    grids = {(-(-shape[0] // b[0]), -(-shape[1] // b[1])): b for b in blocks}
    if grouped and values.ndim == 2 and values.shape[0] == shape[0] and values.shape[1] > 0:
        grids.setdefault(values.shape, (1, -(-shape[1] // values.shape[1])))
    if values.shape not in grids:
        raise parts.wrong(
            f"has shape {shape} and a scale of shape {values.shape}; expected one number"
            f"{''.join(f' or {grid}' for grid in sorted(grids))}"
        )
    height, width = grids[values.shape]
    columns = np.arange(shape[1]) // width
    if grouped and ".weight_g_idx" in parts.tensors:
        columns = _groups(parts, shape[1], values.shape[1], ".weight_g_idx")

    def rows(start: int, stop: int) -> F32:
        lines = _numbers(stored, slice(start // height, -(-stop // height)))
        return lines[np.arange(start, stop) // height - start // height][:, columns]

    return rows


def _numbers(stored: Stored, where: Any) -> F32:
    if stored.dtype.startswith("I"):
        return stored.integers(where).astype(np.float32)
    return stored.values(where)


def _block_size(settings: Config) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    block = settings.get("weight_block_size") or _block_structure(settings) or [128, 128]
    match block:
        case [int(rows), int(columns)] if min(block) > 0:
            return rows, columns
    raise FileFormatError(f"{settings.path}: weight_block_size is {block!r}, expected two sizes")


def _block_structure(settings: Config) -> Any:
    """compressed-tensors' name for it, in the first group of matrices."""
    match settings.get("config_groups"):
        case {**groups} if groups:
            match next(iter(groups.values())):
                case {"weights": {"block_structure": structure}}:
                    return structure
    return None


def _fp4(parts: Parts) -> Fp4:
    """4-bit floats: of ModelOpt, whose factor multiplies, or compressed-tensors, whose divides."""
    end = ".weight_packed" if ".weight_packed" in parts.tensors else ".weight"
    factor = np.float32(1)
    if ".weight_scale_2" in parts.tensors:
        factor = np.float32(_one_number(parts, ".weight_scale_2"))
    elif ".weight_global_scale" in parts.tensors:
        factor = np.float32(1) / np.float32(_one_number(parts, ".weight_global_scale"))
    found = Fp4(parts.name, parts.matrix(end), parts.tensors[".weight_scale"], factor)
    found.check()
    return found


def _one_number(parts: Parts, end: str) -> float:
    values = parts.tensors[end].values().reshape(-1)
    if values.size != 1 or not np.isfinite(values).all() or values[0] <= 0:
        raise parts.wrong(f"{end} is {values[:3].tolist()}, expected one positive number")
    return float(values[0])


def _fp4_rows(parts: Parts) -> tuple[tuple[int, ...], Rows]:
    found = _fp4(parts)
    return found.shape, found.rows()


def _fp4_packed(parts: Parts) -> Packed | None:
    return _fp4(parts).packed()


_FP4 = "4-bit floats"
_FP4_OPTIONAL = (".weight_scale_2", ".weight_global_scale")
LAYOUTS = (
    Packing("bitsandbytes, 4 bits", ".weight", ("U8",), (".weight.absmax",)),
    Packing("bitsandbytes, 8 bits", ".weight", ("I8",), (".SCB",)),
    Packing("MLX", ".weight", ("U32",), (".scales",)),
    *(
        Packing(_FP4, end, ("U8",), (".weight_scale",), _fp4_rows, _FP4_OPTIONAL, _fp4_packed)
        for end in (".weight_packed", ".weight")
    ),
    Packing("HQQ", ".W_q", ("U8", "I32", "I8"), ()),
    Packing("AQLM", ".codes", ("I8", "I16", "I32"), (".codebooks",)),
    Packing("GPTQ or AWQ", ".qweight", ("I32",), (".qzeros", ".scales"), _gptq_or_awq, (".g_idx",)),
    Packing(
        "compressed-tensors, packed integers",
        ".weight_packed",
        ("I32",),
        (".weight_scale", ".weight_shape"),
        _packed,
        (".weight_zero_point", ".weight_g_idx"),
    ),
    Packing(
        "8-bit integers",
        ".weight",
        ("I8",),
        (".weight_scale",),
        _int8,
        (".weight_zero_point", ".weight_g_idx"),
    ),
    Packing("FP8", "", _FP8, (), _fp8, ("_scale_inv", "_scale")),
)
