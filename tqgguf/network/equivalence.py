"""Do two models compute the same? Measured on the logits of a few tokens."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from tqgguf.errors import MismatchError, UnsupportedModelError
from tqgguf.kernels.arrays import to_numpy
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.threads import single_threaded_blas
from tqgguf.models import Model
from tqgguf.network import forward, ops
from tqgguf.network.forward import Tokens
from tqgguf.network.graph import read_graph
from tqgguf.network.lazy import TILE, LazyWeights
from tqgguf.network.ops import Array
from tqgguf.network.rows import ARCHITECTURES
from tqgguf.rotation.folded import fold
from tqgguf.rotation.padding import read_padding, unpadded
from tqgguf.rotation.rotation import NO_ROTATION, Rotation

FOLD_TOLERANCE = 1e-4  # relative difference of logits that float32 explains
_SEQUENCES, _LENGTH = 2, 12
_HEAD_ROWS = 512
_LARGEST = 0.7
_BYTES_PER_WEIGHT = 28  # in memory: as read, as rotated, in float64, and a temporary
_READERS = 8  # more would keep the interpreter from feeding those who encode meanwhile


@dataclass(frozen=True)
class Difference:
    """How far apart two models are: relative difference of logits, and mean KL divergence."""

    logits: float  # root mean square, relative to the spread of the original's
    divergence: float  # nats

    @property
    def passed(self) -> bool:
        """Whether rounding to few bits explains it; another function differs by 1 or more."""
        return self.logits <= _LARGEST


def require_output(difference: Difference, path: object) -> None:
    """Raise MismatchError unless the difference is one that rounding explains."""
    if not difference.passed:
        raise MismatchError(
            f"{path}: its logits differ by {difference.logits:.3g} of their spread, and rounding "
            f"explains at most {_LARGEST:g}; it computes another function"
        )


def measure_difference(
    original: Model, other: Model, tokens: Tokens | None = None, *, device: Device = CPU
) -> Difference:
    """Run both models on some tokens (None: a few random ones).

    Raises UnsupportedModelError where an architecture has no forward pass.
    """
    chosen = some_tokens(original) if tokens is None else tokens
    ours, theirs = (to_numpy(forward.logits(m, chosen, put=device.put)) for m in (original, other))
    p, q = (ops.log_softmax(a.astype(np.float64)) for a in (ours, theirs))
    return Difference(_relative(ours, theirs), float((np.exp(p) * (p - q)).sum(-1).mean()))


def check_fold(model: Model, rotation: Rotation, *, memory: int, threads: int = 1) -> float | None:
    """Make sure that padding and a fold leave the function alone; logits' relative difference.

    Runs the embedding, the first and the last layer and a part of the head on a few tokens: what a
    fold does depends on a tensor's role, not on its layer. None where nothing was folded, where the
    architecture has no forward pass, and where stacked experts do not fit into `memory` bytes.
    rotation: with its vectors. Raises MismatchError beyond FOLD_TOLERANCE.
    """
    cures = ["--rotate none"] if rotation.mode in ("fused", "values", "scales") else []
    cures += ["--pad none"] if read_padding(model) else []
    if not cures or model.architecture not in ARCHITECTURES:
        return None
    try:
        n_layer = forward.context(model, 1, np.float64).graph.n_layer
    except UnsupportedModelError:  # a kind of rotary scaling, say, that the forward pass lacks
        return None
    layers = sorted({0, n_layer - 1})
    need = _at_a_time(model, layers, min(threads, _READERS)) * _BYTES_PER_WEIGHT
    if need > memory:
        return None
    at_once = 2 if threads > 1 and 2 * need <= memory else 1
    try:
        before, after = _both(model, rotation, layers, threads, at_once)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{model.path}: the fold cannot be checked, so the header must contradict itself "
            f"({type(error).__name__}: {error}); use {' '.join(cures)}"
        ) from error
    difference = _relative(before, after)
    if not difference <= FOLD_TOLERANCE:
        raise MismatchError(
            f"{model.path}: the fold changes the network's output by {difference:.2g} of its size, "
            f"expected at most {FOLD_TOLERANCE:g}; use {' '.join(cures)}"
        )
    return difference


def _both(
    model: Model, rotation: Rotation, layers: Iterable[int], threads: int, at_once: int
) -> Iterator[Array]:
    """What the model gives without and with the fold, `at_once` of them at a time."""
    pairs = (unpadded(model), NO_ROTATION), (fold(model, rotation), rotation)
    with (
        single_threaded_blas(),
        ThreadPoolExecutor(min(threads, _READERS)) as readers,
        ThreadPoolExecutor(at_once) as runners,
    ):
        run = partial(_shortened, layers, readers)
        yield from runners.map(run, *zip(*pairs, strict=True))


def some_tokens(model: Model) -> Tokens:
    """A few random tokens, the same for every model of a vocabulary's size."""
    n_vocab = model.tensors["token_embd.weight"].n_rows
    length = min(_LENGTH, read_graph(model).n_ctx)
    chosen = np.random.default_rng(0).integers(0, n_vocab, (_SEQUENCES, length))
    return chosen.astype(np.int32)


def _shortened(layers: Iterable[int], readers: Executor, model: Model, rotation: Rotation) -> Array:
    """The first rows of the head's logits, after these layers alone."""
    tokens = some_tokens(model)
    ctx = forward.context(model, tokens.shape[1], np.float64)
    x = forward.embed(model, tokens, dtype=np.float64)
    for index in layers:
        weights = LazyWeights(model, index, rotation, readers)
        x = forward.drain(forward.layer(x, weights, ctx, index))
    return forward.products(model, forward.final_norm(model, x), 0, _HEAD_ROWS)


def _at_a_time(model: Model, layers: Iterable[int], readers: int) -> int:
    """Weights of these layers that are in memory together: of experts, all that are stacked."""
    prefixes = tuple(f"blk.{index}." for index in layers)
    tensors = [t for n, t in model.tensors.items() if n.startswith(prefixes)]
    sizes = (t.size if len(t.shape) > 2 else min(t.size, TILE * readers) for t in tensors)
    return max(sizes, default=0)


def _relative(a: Array, b: Array) -> float:
    """Root mean square of a - b relative to the spread of a."""
    spread = float(np.std(a, dtype=np.float64))
    return float(np.sqrt(np.mean(np.square(a - b, dtype=np.float64)))) / max(spread, 1e-30)
