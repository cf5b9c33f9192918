"""Write a twin of a model: the same function by other weights, to see what a quantizer makes of it.

--plant gives one channel in forty of every norm a gain that is 8 to 32 times weaker and columns of
all that reads it that are as much stronger, as outlier channels are. --untie copies the embedding
to a head of its own. Factors are powers of two, so F16 weights stay what they were.

    python scripts/make_twin.py model-f16.gguf twin-f16.gguf --plant --untie
"""

import argparse
from pathlib import Path

import numpy as np

from tqgguf.kernels.dtypes import F32
from tqgguf.models import Model, open_model
from tqgguf.output.layout import TensorInfo, lay_out
from tqgguf.rotation.folding import EMBEDDING, HEAD, norm_above

_SHARE = 40  # one channel in so many is an outlier
Factors = dict[str, F32]


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description="the same model by other weights")
    parser.add_argument("model", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--plant", action="store_true", help="outlier channels under every norm")
    parser.add_argument("--untie", action="store_true", help="a head of its own")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    model = open_model(args.model)
    factors = plant(model, np.random.default_rng(args.seed)) if args.plant else {}
    write(model, args.twin, factors, untie=args.untie)


def plant(model: Model, rng: np.random.Generator) -> Factors:
    """What the columns of each matrix of a layer gain, and the norm above loses: (n_in,) each."""
    factors: Factors = {}
    for name, tensor in model.tensors.items():
        norm = f"{norm_above(model, name)}.weight"
        if norm not in model.tensors or not name.startswith("blk."):
            continue
        if norm not in factors:
            drawn = np.ones(tensor.n_in, np.float32)
            chosen = rng.choice(tensor.n_in, max(1, tensor.n_in // _SHARE), replace=False)
            drawn[chosen] = np.exp2(rng.integers(3, 6, len(chosen)))
            factors[norm] = np.reciprocal(drawn)
        factors[name] = np.reciprocal(factors[norm])
    return factors


def write(model: Model, path: Path, factors: Factors, *, untie: bool) -> None:
    """The model with its columns multiplied, in the types that it has."""
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
            values = model.tensors[sources[info.name]].read() * factors.get(
                info.name, np.float32(1)
            )
            file.seek(layout.offsets[info.name])
            file.write(values.astype({"F32": "<f4", "F16": "<f2"}[info.type]).tobytes())
        file.truncate(layout.size)


if __name__ == "__main__":
    main()
