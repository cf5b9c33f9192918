"""Whole tensors: cut rows into chunks of element-major blocks and encode them on threads."""

import numpy as np

from tqgguf import ggml
from tqgguf.errors import ShapeError, WeightError
from tqgguf.formats._format import Direct, Format
from tqgguf.kernels.dtypes import F32, U8, Blocks
from tqgguf.machine.threads import default_threads, run_all

CHUNK = 5 << 17  # weights: calls must outlast the hand-over of the interpreter's lock (LOG.md)
_CHUNK_ALONE = 1 << 18  # of a single thread, which waits for no lock and keeps more in its cache
_CHUNK_DIRECT = 5 << 20  # the same, where what is encoded needs no room of its size
_LANES = 16  # a chunk is padded to whole vectors, so that sums do not depend on where it was cut
_STRIP = 1 << 13  # weights transposed at a time: a fifth of the time that all at once take
_STRIP_OF_ROWS = 1 << 15  # weights whose importance is scaled at a time, in a core's cache
_LIMIT = np.float32(1e15)  # squares of anything larger overflow float32; no block type reaches it
_FLOOR = np.float32(1e-6)  # importance of a column never seen, relative to the mean


def quantize_rows(
    fmt: Format,
    x: F32,
    importance: F32 | None = None,
    *,
    quick: bool = False,
    threads: int | None = None,
    chunk: int | None = None,
) -> U8:
    """Encode rows: (n_rows, n_in) float32 -> (n_rows, n_bytes) uint8.

    importance: (n_in,) >= 0 weighs the squared error of each column, (n_rows, n_in) that of each
    weight. quick: without importance, by the encoder of few candidates of a type that has one. The
    bytes do not depend on the number of threads nor on the chunk (weights encoded at a time).
    """
    if x.ndim != 2:
        raise ShapeError(f"an array of shape {x.shape} is no matrix; expected (n_rows, n_in)")
    n_rows, n_in = x.shape
    check_row(fmt, n_in)
    per_row = n_in // fmt.block_size
    weight = None if importance is None else _normalized(importance, x.shape)
    blocks = None if weight is None else weight.reshape(-1, fmt.block_size).T
    out = np.empty(n_rows * per_row, fmt.layout)
    rows = np.ascontiguousarray(x).reshape(-1, fmt.block_size)
    direct = None if importance is not None else (quick and fmt.quick) or fmt.plain
    alone = _CHUNK_DIRECT if direct else _CHUNK_ALONE
    chunk = chunk or (alone if threads == 1 else CHUNK)
    size = _even_share(len(rows), max(1, chunk // fmt.block_size), threads or default_threads())

    def encode(start: int) -> None:
        part = rows[start : start + size]
        if direct:
            _encode_directly(fmt, direct, part, out[start : start + len(part)])
            return
        columns = np.arange(start, start + len(part))
        local = None if blocks is None else blocks[:, columns % blocks.shape[1]]
        out[start : start + len(part)] = _encode_chunk(fmt, part, local)

    run_all(encode, list(range(0, len(rows), size)), threads=threads)
    return out.view(np.uint8).reshape(n_rows, per_row * fmt.type_size)


def _even_share(n_blocks: int, most: int, threads: int) -> int:
    """How many blocks to a chunk, at most `most`, so that no thread works while others wait."""
    if n_blocks <= most:
        return most
    count = -(-n_blocks // (most * threads)) * threads
    return -(-n_blocks // count)


def dequantize_rows(fmt: Format, data: U8, n_in: int) -> F32:
    """Decode rows: (n_rows, n_bytes) uint8 -> (n_rows, n_in) float32, as ggml does."""
    check_row(fmt, n_in)
    rows = data.reshape(-1, n_in // fmt.block_size * fmt.type_size)
    return ggml.dequantize(rows, fmt.name).reshape(-1, n_in)


def check_row(fmt: Format, n_in: int) -> None:
    """Raise ShapeError unless a row of n_in weights is a whole number of blocks."""
    if n_in % fmt.block_size:
        raise ShapeError(
            f"{fmt.name} packs {fmt.block_size} weights per block, but the row length is {n_in}, "
            "which is not a multiple"
        )


def _encode_chunk(fmt: Format, part: F32, weight: F32 | None) -> Blocks:
    """Transpose, check and encode a run of blocks: (n, block_size) float32 -> (n,) blocks."""
    n = len(part)
    _check_weights(fmt, part)
    x = element_major(part)
    if weight is not None:
        weight = np.pad(weight, ((0, 0), (0, x.shape[1] - n)), constant_values=1)
    try:
        return fmt.encode(x, weight)[:n]
    except WeightError as error:
        raise WeightError(f"{fmt.name}: {error}") from None


def _encode_directly(fmt: Format, encode: Direct, part: F32, blocks: Blocks) -> None:
    """Encode a run of blocks that is only looked at closely where a scale is out of bounds."""
    try:
        encode(part, blocks)
    except WeightError:
        blocks[:] = _encode_chunk(fmt, part, None)  # says what is wrong


def element_major(rows: F32) -> F32:
    """A column per block, zeros in some more: (n, block_size) -> (block_size, n or more)."""
    n, size = rows.shape
    x = np.empty((size, _padded(n)), np.float32)
    step = max(1, _STRIP // size)
    for at in range(0, n, step):  # the lines of a cache that a strip is written to stay in it
        x[:, at : min(at + step, n)] = rows[at : at + step].T
    x[:, n:] = 0
    return x


def _padded(n: int) -> int:
    """Columns of a chunk of n blocks: an odd number of vectors.

    Rows a power of two apart share a few lines of a cache; Q8_0 took 1.6 times as long.
    """
    return (-(-n // _LANES) | 1) * _LANES


def _check_weights(fmt: Format, part: F32) -> None:
    """Refuse NaN, Inf and what would overflow the encoder's sums."""
    peak = max(part.max(), -part.min())  # NaN if any weight is
    if not np.isfinite(peak):
        nan, inf = int(np.isnan(part).sum()), int(np.isinf(part).sum())
        raise WeightError(f"{nan} weights are NaN and {inf} are infinite")
    if fmt.block_size > 1 and peak > _LIMIT:
        raise WeightError(
            f"{fmt.name} cannot hold a weight of {peak:.4g}: float16 scales end at 65504; "
            "use BF16 or F32"
        )


def _normalized(importance: F32, shape: tuple[int, int]) -> F32:
    """Check importance, of columns or of all weights, and scale rows to a mean of 1, float32."""
    values = np.asarray(importance)
    if values.shape not in (shape, shape[1:]):
        raise ShapeError(
            f"importance has shape {values.shape}, but the rows have {shape[1]} columns"
        )
    if not (values.min(initial=0) >= 0 and values.max(initial=0) < np.inf):
        raise WeightError(f"importance: {_what_is_wrong(values)}")
    rows = values.reshape(-1, shape[1])
    normalized = np.empty(rows.shape, np.float32)
    step = max(1, _STRIP_OF_ROWS // max(1, shape[1]))
    for at in range(0, len(rows), step):
        part = rows[at : at + step].astype(np.float64)
        mean = part.mean(axis=1, keepdims=True)
        known = mean > 0  # else nothing is known about any column
        part /= np.where(known, mean, 1)
        np.maximum(part, _FLOOR, out=part)
        np.copyto(part, 1, where=~known)
        normalized[at : at + step] = part
    return normalized.reshape(values.shape)


def _what_is_wrong(importance: F32) -> str:
    beyond = int((~np.isfinite(importance)).sum())
    if beyond:
        return f"{beyond} columns are NaN or Inf"
    return f"{int((importance < 0).sum())} columns are negative"
