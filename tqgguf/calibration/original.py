"""The original's pass through a layer, and what it says its quantized matrices should aim at."""

import numpy as np

from tqgguf.calibration.bench import Bench, Weights, context
from tqgguf.calibration.kept import Arrays
from tqgguf.kernels.arrays import namespace
from tqgguf.network import forward
from tqgguf.network.forward import Layer, Projection
from tqgguf.network.layer import linear
from tqgguf.network.ops import Array


def through_original(bench: Bench, chunk: int) -> tuple[Array, list[Array]]:
    """The original's stream after a layer, and what the layer's steps aim at; one may be the other.

    Computed where it is not kept. Kept are the arrays, and which of them each step aims at.
    """

    def find() -> Arrays:
        after, aims = _aims(bench, chunk)
        places, arrays = [], [after]
        for aim in aims:
            places.append(0 if aim is after else len(arrays))
            arrays += [] if aim is after else [aim]
        return [np.array(places, np.int64), *arrays]

    name = f"{bench.layer}.{chunk}"
    places, *arrays = bench.kept.once(name, find) if bench.kept else find()
    return arrays[0], [arrays[place] for place in places]


def _aims(bench: Bench, chunk: int) -> tuple[Array, list[Array]]:
    """The stream after a layer of the original, and what its steps aim at, empty for nothing.

    A matrix whose product is added to the stream aims at the stream after that, so that it makes up
    for whatever the network has lost before. Where a layer has none, for norms come after them, its
    matrices aim at what they would have been given.
    """
    stream, shared = bench.desk.get(f"o.{bench.layer % 2}.{chunk}"), context(bench)
    weights = Weights(bench, original=True)
    steps, sums, after = _summed(forward.layer(stream, weights, shared, bench.layer), weights)
    nothing = namespace(after).empty((0, after.shape[-1]), dtype=after.dtype, device=after.device)
    if not any(total is not None for total in sums):
        return after, [s.inputs[0] if len(s.inputs) == 1 else nothing for s in steps]
    if sums[-1] is not None and shared.graph.residual_scale == 1:
        sums[-1] = after
    return after, [nothing if total is None else total for total in sums]


def _summed(layer: Layer, weights: Weights) -> tuple[list[Projection], list[Array | None], Array]:
    """The steps of a layer, the stream after each that adds to it, and that after the layer."""
    steps: list[Projection] = []
    sums: list[Array | None] = []
    product: Array | None = None
    while True:
        try:
            step = layer.send(product)
        except StopIteration as end:
            return steps, sums, end.value
        steps.append(step)
        if step.stream is None:
            product = None
            sums.append(None)
        else:
            product = linear(step.inputs[0], weights, step.matrices[0])
            sums.append(step.stream + product)
