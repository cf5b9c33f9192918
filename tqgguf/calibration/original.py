"""The original's pass through a layer: what its matrices read, and what quantized ones aim at."""

from dataclasses import dataclass, replace

import numpy as np

from tqgguf.calibration.bench import Bench, Step, Weights, context
from tqgguf.calibration.kept import Arrays
from tqgguf.network import forward
from tqgguf.network.forward import Layer, Projection
from tqgguf.network.layer import linear
from tqgguf.network.ops import Array

_NOTHING = -1  # where a step's aim is among the kept arrays if it has none


@dataclass(frozen=True)
class Passed:
    """A chunk after a layer of the original.

    after: the stream. aims: of every step, None for nothing; one may be the stream. steps and their
    inputs: unless these were kept.
    """

    after: Array
    aims: list[Array | None]
    steps: tuple[Step, ...] = ()
    inputs: tuple[tuple[Array, ...], ...] = ()

    def arrays(self) -> Arrays:
        """What is kept: arrays, and before them which of them each step aims at."""
        places, arrays = [], [self.after]
        for aim in self.aims:
            if aim is None or aim is self.after:
                places.append(_NOTHING if aim is None else 0)
            else:
                places.append(len(arrays))
                arrays.append(aim)
        return [np.array(places, np.int64), *arrays]

    @classmethod
    def of(cls, kept: Arrays) -> "Passed":
        """From what was kept."""
        places, *arrays = kept
        return cls(arrays[0], [None if at == _NOTHING else arrays[at] for at in places])


def through_original(bench: Bench, chunk: int) -> Passed:
    """Run a chunk through a layer of the original.

    Of the matrices whose product is added to the stream, the last one aims at the stream after
    that, so that it makes up for whatever the network has lost before. Where a layer has none, for
    norms come after them, its matrices aim at what they would have been given.
    """
    stream, shared = bench.desk.get(f"o.{bench.layer % 2}.{chunk}"), context(bench)
    weights = Weights(bench, original=True)
    steps, total, after = _summed(forward.layer(stream, weights, shared, bench.layer), weights)
    last = max((i for i, step in enumerate(steps) if step.stream is not None), default=None)
    if last is None:
        aims = [step.inputs[0] if len(step.inputs) == 1 else None for step in steps]
    else:
        is_after = last == len(steps) - 1 and shared.graph.residual_scale == 1
        aims = [None] * len(steps)
        aims[last] = after if is_after else total
    said = tuple(_step(*each) for each in zip(range(len(steps)), steps, aims, strict=True))
    ends = replace(said[-1], ends=last == len(steps) - 1)
    return Passed(after, aims, (*said[:-1], ends), tuple(step.inputs for step in steps))


def _step(number: int, step: Projection, aim: Array | None) -> Step:
    counts = tuple(x.shape[0] for x in step.inputs)
    reads = len(counts) == 1, aim is not None, step.stream is not None
    return Step(number, step.matrices, counts, *reads)


def _summed(layer: Layer, weights: Weights) -> tuple[list[Projection], Array | None, Array]:
    """The steps of a layer, the stream after the last that adds to it, and that after the layer."""
    steps: list[Projection] = []
    total: Array | None = None
    product: Array | None = None
    while True:
        try:
            step = layer.send(product)
        except StopIteration as end:
            return steps, total, end.value
        steps.append(step)
        product = None
        if step.stream is not None:
            product = linear(step.inputs[0], weights, step.matrices[0])
            total = step.stream + product
