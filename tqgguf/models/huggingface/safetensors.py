"""Memory-mapped weights of .safetensors files.

The `safetensors` package checks every header (lengths, dtypes, overlapping and missing bytes);
gguf-py's own reader then says where each tensor lies, so that rows can be mapped and never copied.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError
from tqgguf.kernels.dtypes import U8
from tqgguf.models.content import what_it_is
from tqgguf.models.huggingface.folder import load_optional, read_json
from tqgguf.models.huggingface.stored import Stored
from tqgguf.models.mapped import map_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "U8": "u1",
    "I8": "i1",
    "U32": "<u4",
    "I32": "<i4",
    "I64": "<i8",
}
_FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # of ml_dtypes


def read_weights(path: Path) -> dict[str, Stored]:
    """Every tensor of a folder, or of one file; FileFormatError if they do not add up."""
    weights: dict[str, Stored] = {}
    for shard, names in _shards(path).items():
        found = dict(_read_file(shard))
        for name in names if names is not None else found:
            if name not in found:
                raise FileFormatError(
                    f"{shard}: has no tensor {name!r}, which the index puts there"
                )
            weights[name] = found[name]
    return weights


def _shards(path: Path) -> dict[Path, list[str] | None]:
    """The files to read, and the tensors that an index expects in each (None: all there are)."""
    if path.is_file():
        return {path: None}
    if (path / INDEX).is_file():
        return _indexed(path)
    files = sorted(path.glob("*.safetensors"))
    if (path / SINGLE).is_file():
        files = [path / SINGLE]
    if not files:
        raise FileFormatError(f"{path}: has no .safetensors file and no {INDEX}")
    if len(files) > 1:
        raise FileFormatError(
            f"{path}: has {len(files)} .safetensors files and no {INDEX} that says what is in each"
        )
    return {files[0]: None}


def _indexed(folder: Path) -> dict[Path, list[str] | None]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(f"{index}: has no weight_map from tensors to files")
    shards: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise FileFormatError(f"{index}: {name!r} is in {file!r}, expected a file's name")
        shards.setdefault(folder / file, []).append(name)
    missing = [p.name for p in shards if not p.is_file()]
    if missing:
        raise FileFormatError(
            f"{folder}: shard {missing[0]} is missing ({len(missing)} of {len(shards)})"
        )
    return {**shards}


def _read_file(path: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of one file, mapped, after the safetensors package has accepted its header."""
    package = load_optional("safetensors")
    try:
        with package.safe_open(str(path), framework="numpy"):
            located = SafetensorsLocal(path).tensors
    except (package.SafetensorError, OSError, ValueError, RecursionError) as error:
        fact = what_it_is(path) or str(error).splitlines()[0]
        raise FileFormatError(f"{path}: not a sound safetensors file: {fact}") from None
    if located:
        data = map_file(path)
        for name, where in located.items():
            yield name, Stored(name, where.dtype, _view(data, where))


def _view(data: U8, where: LocalTensor) -> NDArray[Any]:
    """A tensor's place in its mapped file; of a dtype we cannot read, an empty array."""
    dtype: Any = _DTYPES.get(where.dtype)
    if where.dtype in _FP8:
        dtype = getattr(load_optional("ml_dtypes"), _FP8[where.dtype])
    if dtype is None:
        return np.empty(0, np.uint8)
    begin = where.data_range.offset
    array: NDArray[Any] = data[begin : begin + where.data_range.size].view(dtype)
    return array.reshape(where.shape)
