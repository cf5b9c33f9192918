"""Write a twin of a model: the same function by other weights, to see what a quantizer makes of it.

--plant gives one channel in forty of every norm a gain that is 8 to 32 times weaker and columns of
all that reads it that are as much stronger, as outlier channels are. --untie copies the embedding
to a head of its own. Factors are powers of two, so F16 weights stay what they were. Folds that were
tried and are not in the tool (docs/LOG.md, "What else was called noise"): --order-ffn sorts the
FFN's channels by the energies of what ffn_down reads, --order-stream the stream's by theirs,
--scale-values moves factors between attn_v and attn_output as norms' gains are scaled.

    python scripts/make_twin.py model-f16.gguf twin-f16.gguf --plant --untie
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tqgguf.calibration.imatrix import Imatrix
from tqgguf.calibration.short_pass import measure_inputs
from tqgguf.calibration.tokens import read_text
from tqgguf.kernels.dtypes import F32
from tqgguf.models import Model, open_model
from tqgguf.models.roles import role
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.rotation.architectures import STREAMS
from tqgguf.rotation.ends import EMBEDDING, HEAD
from tqgguf.rotation.readers import norm_above

_SHARE = 40  # one channel in so many is an outlier
Change = Callable[[F32], F32]
Changes = dict[str, list[Change]]  # of tensors, by name, one after the other


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description="the same model by other weights")
    parser.add_argument("model", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--plant", action="store_true", help="outlier channels under every norm")
    parser.add_argument("--untie", action="store_true", help="a head of its own")
    parser.add_argument("--order-ffn", action="store_true", help="sort the FFN's channels")
    parser.add_argument("--order-stream", action="store_true", help="sort the stream's channels")
    parser.add_argument("--scale-values", action="store_true", help="scale the values' channels")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    model = open_model(args.model)
    changes: Changes = {}
    if args.plant:
        plant(model, changes, np.random.default_rng(args.seed))
    if args.order_ffn or args.order_stream or args.scale_values:
        known = measure_inputs(model, read_text(model, None))
        chosen = (args.order_ffn, order_ffn), (args.order_stream, order_stream)
        for wanted, rewrite in (*chosen, (args.scale_values, scale_values)):
            if wanted:
                rewrite(model, changes, known)
    write(model, args.twin, changes, untie=args.untie)


def plant(model: Model, changes: Changes, rng: np.random.Generator) -> None:
    """Columns of each matrix of a layer gain what the norm above loses."""
    drawn: dict[str, F32] = {}
    for name, tensor in model.tensors.items():
        norm = f"{norm_above(model, name)}.weight"
        if norm in model.tensors and name.startswith("blk."):
            if norm not in drawn:
                drawn[norm] = np.ones(tensor.n_in, np.float32)
                chosen = rng.choice(tensor.n_in, max(1, tensor.n_in // _SHARE), replace=False)
                drawn[norm][chosen] = np.exp2(rng.integers(3, 6, len(chosen)))
                changes.setdefault(norm, []).append(multiplied(np.reciprocal(drawn[norm])))
            changes.setdefault(name, []).append(multiplied(drawn[norm]))


def order_ffn(model: Model, changes: Changes, known: Imatrix) -> None:
    """Channels of each FFN from the weakest input of ffn_down to the strongest."""
    for name in [n for n in model.tensors if n.endswith("ffn_down.weight")]:
        energy = known.importance(name)
        if energy is not None:
            order = np.argsort(energy[0])
            changes.setdefault(name, []).append(taken(order, axis=-1))
            for other in ("ffn_gate", "ffn_up"):
                changes.setdefault(name.replace("ffn_down", other), []).append(taken(order, axis=0))


def order_stream(model: Model, changes: Changes, known: Imatrix) -> None:
    """Channels of the stream from the weakest to the strongest under the mean norm."""
    row = STREAMS[model.architecture]
    found = [known.importance(n) for n in model.tensors if role(n)[0] in ("attn_q", "ffn_up")]
    shares = [e[0] / e[0].sum() for e in found if e is not None]
    order = np.argsort(np.sum(shares, axis=0))
    for name in model.tensors:
        kind = role(name)[0]
        axis = 0 if kind in row.writers else -1
        if kind in (
            *row.writers,
            *row.readers,
            *row.embeddings,
            *row.norms,
            "output",
            row.head_norm,
        ):
            changes.setdefault(name, []).append(taken(order, axis=axis))


def scale_values(model: Model, changes: Changes, known: Imatrix) -> None:
    """Columns of attn_output gain E^(1/8) / |column|^(3/4), means over the heads that share one."""
    size = model.tensors["blk.0.attn_q.weight"].n_rows // model.get("{arch}.attention.head_count")
    for name in [n for n in model.tensors if n.endswith("attn_output.weight")]:
        energy, values = known.importance(name), name.replace("attn_output", "attn_v")
        if energy is None:
            continue
        columns = np.square(model.tensors[name].read()).sum(axis=0)
        logs = np.log(energy[0]) / 8 - 3 / 8 * np.log(columns)
        n_kv = model.tensors[values].n_rows // size
        shared = logs.reshape(n_kv, -1, size).mean(axis=1)
        factor = np.exp(shared - shared.mean()).astype(np.float32)
        repeated = np.repeat(factor[:, None], len(logs) // factor.size, axis=1).reshape(-1)
        changes.setdefault(name, []).append(multiplied(repeated))
        changes.setdefault(values, []).append(multiplied(1 / factor.reshape(-1, 1)))


def multiplied(factor: F32) -> Change:
    """Columns, or rows where the factor stands upright, times a factor."""
    return lambda x: x * factor


def taken(order: np.ndarray, *, axis: int) -> Change:
    """Channels in another order."""
    return lambda x: np.take(x, order, axis=axis)


def write(model: Model, path: Path, changes: Changes, *, untie: bool) -> None:
    """The model with its tensors changed, in the types that it has."""
    sources = {name: name for name in model.tensors}
    if untie:
        sources.setdefault(HEAD, EMBEDDING)
    infos = [
        TensorInfo(name, model.tensors[source].shape, model.tensors[source].type)
        for name, source in sources.items()
    ]
    layout = lay_out(model.metadata, infos)
    with path.open("wb") as file:
        file.write(layout.header)
        for info in infos:
            values = model.tensors[sources[info.name]].read()
            for change in changes.get(sources[info.name], ()):
                values = change(values)
            file.seek(layout.offsets[info.name])
            file.write(values.astype({"F32": "<f4", "F16": "<f2"}[info.type]).tobytes())
        file.truncate(layout.size)


if __name__ == "__main__":
    main()
