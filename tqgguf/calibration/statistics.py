"""What goes into every matrix of a model on some text: sums of squares, as an importance matrix."""

from functools import partial

import numpy as np

from tqgguf.calibration.imatrix import Imatrix
from tqgguf.kernels.arrays import namespace, to_numpy
from tqgguf.kernels.dtypes import F32
from tqgguf.machine.devices import CPU, Device
from tqgguf.machine.threads import default_threads, map_in_order
from tqgguf.models import Model
from tqgguf.network import forward
from tqgguf.network.forward import Context, Tokens, Weights
from tqgguf.network.layer import rows
from tqgguf.network.ops import Array
from tqgguf.rotation.ends import HEAD

_CHUNK = 256  # tokens at a time: enough for a matrix product, few enough for all threads
EnergySums = dict[str, tuple[F32, F32]]  # matrix -> sums (n_mat, n_in), counts (n_mat,)


def input_energies(
    model: Model,
    tokens: Tokens,
    *,
    basis: str = "none",
    dataset: str = "",
    threads: int | None = None,
    device: Device = CPU,
) -> Imatrix:
    """Sums of squares of every matrix's inputs, the head's included.

    tokens: (n_seq, n_tokens) int32. basis: of the model's stored matrices, for the record. Raises
    UnsupportedModelError where the architecture has no forward pass.
    """
    ctx = forward.context(model, tokens.shape[1])
    per_chunk = max(1, _CHUNK // tokens.shape[1])
    states = [
        device.put(forward.embed(model, tokens[at : at + per_chunk]))
        for at in range(0, len(tokens), per_chunk)
    ]
    threads = (threads or default_threads()) if device.is_cpu else 1
    total: EnergySums = {}
    for index, weights in enumerate(forward.layers(model, ctx.graph, put=device.put)):
        work = partial(_through, weights, ctx, index)
        results = list(map_in_order(work, states, threads=threads))
        states = [x for x, _ in results]
        for _, energies in results:
            _add(total, {f"blk.{index}.{name}.weight": e for name, e in energies.items()})
    for x in states:
        flat = rows(forward.final_norm(model, x))
        _add(total, {HEAD: _energy((flat,))})
    sums, counts = ({n: e[i] for n, e in total.items()} for i in (0, 1))
    return Imatrix(sums, counts, basis, (dataset,), tokens.shape[1])


def _through(weights: Weights, ctx: Context, index: int, x: Array) -> tuple[Array, EnergySums]:
    """Run a layer and sum up what each of its matrices is given."""
    generator, energies = forward.layer(x, weights, ctx, index), EnergySums()
    while True:
        try:
            step = next(generator)
        except StopIteration as end:
            return end.value, energies
        energy = _energy(step.inputs)
        energies.update(dict.fromkeys(step.matrices, energy))


def _energy(inputs: tuple[Array, ...]) -> tuple[F32, F32]:
    xp = namespace(inputs[0])
    sums = [to_numpy(xp.sum(xp.square(x), axis=0, dtype=xp.float64)) for x in inputs]
    counts = [x.shape[0] for x in inputs]
    return np.stack(sums).astype(np.float32), np.array(counts, np.float32)


def _add(total: EnergySums, more: EnergySums) -> None:
    for name, (sums, counts) in more.items():
        if name in total:
            sums, counts = total[name][0] + sums, total[name][1] + counts
        total[name] = (sums, counts)
