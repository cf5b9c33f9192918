"""Memory-mapped weights of .safetensors files, FP8 dequantized on reading.

The `safetensors` package checks every header (lengths, dtypes, overlapping and missing bytes);
gguf-py's own reader then says where each tensor lies, so that rows can be mapped and never copied.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal
from numpy.typing import NDArray

from tqgguf.errors import FileFormatError, UnsupportedModelError
from tqgguf.kernels.dtypes import F32, U8
from tqgguf.kernels.halves import single_from_half
from tqgguf.models.huggingface.folder import Config, load_optional, read_json
from tqgguf.models.mapped import give_back, map_file
from tqgguf.models.model import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SCALES = ("_scale_inv", "_scale")  # of block-wise and of per-tensor or per-row FP8 weights


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in its file.

    array: mapped, of any shape: float32, float16, uint16 (bfloat16's bits) or an FP8 type of
    ml_dtypes; dtype: safetensors' name of it. scale: one float32, or one for each block of
    `block` rows and columns, to multiply FP8 weights with.
    """

    name: str
    dtype: str
    array: NDArray[Any] = field(repr=False)
    scale: F32 | None = field(default=None, repr=False)
    block: tuple[int, int] = (1, 1)

    def tensor(self) -> Tensor:
        """The weights as a Tensor under their Hugging Face name."""
        read = _READ.get(self.dtype)
        if read is None:
            raise FileFormatError(
                f"{self.name}: stored as {self.dtype}, expected one of {', '.join(_READ)}"
            )
        if self.array.ndim > 2:
            raise FileFormatError(f"{self.name}: has {self.array.ndim} axes, expected a matrix")
        matrix = self.array if self.array.ndim == 2 else self.array.reshape(1, -1)

        def rows(start: int, stop: int) -> F32:
            stored = np.asarray(matrix[start:stop])
            part = read(stored)
            give_back(stored)
            return part if self.scale is None else part * self.scale_rows(start, stop)

        def raw(start: int, stop: int) -> U8:
            stored = np.asarray(matrix[start:stop])
            copied = stored.view(np.uint8).copy()
            give_back(stored)
            return copied

        gguf_type = self.dtype if self.dtype in ("F32", "F16", "BF16") else "F32"
        is_gguf = self.dtype == gguf_type and matrix.flags.c_contiguous
        return Tensor(
            self.name, self.array.shape or (1,), gguf_type, rows, raw if is_gguf else None
        )

    def scale_rows(self, start: int, stop: int) -> F32:
        """The scale of each weight in rows start..stop: broadcastable to (stop - start, n_in)."""
        scale = self.scale
        assert scale is not None
        if scale.size == 1:
            return scale.reshape(1, 1)
        lines = scale[np.arange(start, stop) // self.block[0]]
        return np.repeat(lines, self.block[1], axis=1)[:, : self.array.shape[1]]


def _from_bf16(bits: NDArray[Any]) -> F32:
    floats: F32 = np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    return floats


def _to_float32(values: NDArray[Any]) -> F32:
    floats: F32 = values.astype(np.float32)
    return floats


_READ: dict[str, Callable[[NDArray[Any]], F32]] = {
    "F32": _to_float32,
    "F16": single_from_half,
    "BF16": _from_bf16,
    "F8_E4M3": _to_float32,
}
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_weights(path: Path, config: Config) -> dict[str, Stored]:
    """Every tensor of a folder, or of one .safetensors file; FileFormatError if they do not add up.

    The scale tensors of FP8 weights are joined to their weights.
    """
    weights: dict[str, Stored] = {}
    for shard, names in _shards(path).items():
        found = dict(_read_file(shard))
        for name in names if names is not None else found:
            if name not in found:
                raise FileFormatError(
                    f"{shard}: has no tensor {name!r}, which the index puts there"
                )
            weights[name] = found[name]
    _refuse_other_quantizers(config)
    return dict(_with_scales(weights, config))


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
        fact = str(error).splitlines()[0]
        raise FileFormatError(f"{path}: not a sound safetensors file: {fact}") from None
    if located:
        data = map_file(path)
        for name, where in located.items():
            yield name, Stored(name, where.dtype, _view(data, where))


def _view(data: U8, where: LocalTensor) -> NDArray[Any]:
    """A tensor's place in its mapped file; of a dtype we cannot read, an empty array."""
    dtype: Any = _DTYPES.get(where.dtype)
    if where.dtype == "F8_E4M3":
        dtype = load_optional("ml_dtypes").float8_e4m3fn
    if dtype is None:
        return np.empty(0, np.uint8)
    begin = where.data_range.offset
    array: NDArray[Any] = data[begin : begin + where.data_range.size].view(dtype)
    return array.reshape(where.shape)


def _refuse_other_quantizers(config: Config) -> None:
    method = config.section("quantization_config").get("quant_method")
    if method not in (None, "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"):
        raise UnsupportedModelError(
            f"{config.path}: the weights are quantized by {method}; give the unquantized model"
        )


def _with_scales(weights: Mapping[str, Stored], config: Config) -> Iterator[tuple[str, Stored]]:
    """FP8 weights joined to their scales, everything else as it is."""
    for name, stored in weights.items():
        if name.endswith(_SCALES) and _is_fp8(weights, name):
            continue
        if stored.dtype != "F8_E4M3":
            yield name, stored
            continue
        scales = [weights[name + suffix] for suffix in _SCALES if name + suffix in weights]
        yield name, _scaled(stored, scales[0], config) if scales else stored


def _is_fp8(weights: Mapping[str, Stored], scale: str) -> bool:
    owner = next(scale.removesuffix(s) for s in _SCALES if scale.endswith(s))
    return owner in weights and weights[owner].dtype == "F8_E4M3"


def _scaled(stored: Stored, scale: Stored, config: Config) -> Stored:
    """FP8 weights with their scale: one number, one a row, or one a block of the config's size."""
    shape, values = stored.array.shape, scale.tensor().read()
    values = values.reshape(-1, 1) if values.ndim == 1 else values
    blocks = {(1, shape[-1]), _block_size(config)} if len(shape) == 2 else set()
    grids = {
        tuple(-(-n // b) for n, b in zip(shape, block, strict=True)): block for block in blocks
    }
    if values.size != 1 and values.shape not in grids:
        raise FileFormatError(
            f"{stored.name}: has shape {shape} and a scale of shape {values.shape}; expected one "
            f"number{''.join(f' or {grid}' for grid in sorted(grids))}"
        )
    return Stored(stored.name, stored.dtype, stored.array, values, grids.get(values.shape, (1, 1)))


def _block_size(config: Config) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    block = config.section("quantization_config").get("weight_block_size") or [128, 128]
    match block:
        case [int(rows), int(columns)] if min(block) > 0:
            return rows, columns
    raise FileFormatError(f"{config.path}: weight_block_size is {block!r}, expected two sizes")
