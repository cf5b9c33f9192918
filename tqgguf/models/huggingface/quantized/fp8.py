"""FP8 weights with their scales."""

from dataclasses import replace
from typing import Any

import numpy as np

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.folder import Config
from tqgguf.models.huggingface.quantized.parts import Parts, scale_rows
from tqgguf.models.huggingface.stored import RowReader, Stored

DTYPES = ("F8_E4M3", "F8_E5M2")


def fp8(parts: Parts) -> tuple[tuple[int, ...], RowReader]:
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
    scale = scale_rows(
        parts, (codes.shape[0], codes.shape[1]), end, block=_block_size(parts.settings)
    )
    return codes.shape, lambda start, stop: codes.rows(start, stop) * scale(start, stop)


def _fp8_vector(codes: Stored, scale: Any) -> tuple[tuple[int, ...], RowReader]:
    matrix = codes.array.reshape(-1, codes.shape[-1]) if codes.shape else codes.array.reshape(1, 1)
    flat, factor = replace(codes, array=matrix), np.float32(np.asarray(scale).reshape(-1)[0])
    return codes.shape or (1,), lambda start, stop: flat.rows(start, stop) * factor


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
