"""How fast is the forward pass? One layer's processor time beside the same products alone.

python scripts/measure_pass.py model.gguf
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tqgguf.machine.threads import single_threaded_blas
from tqgguf.models import open_model
from tqgguf.network import forward


def main() -> None:
    """Print seconds, speed and the share that goes into products of matrices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512, help="of a sequence")
    args = parser.parse_args()
    model = open_model(args.model)
    n_vocab = model.tensors["token_embd.weight"].n_rows
    shape = (args.sequences, args.tokens)
    tokens = np.random.default_rng(0).integers(0, n_vocab, shape).astype(np.int32)
    ctx, weights = forward.context(model, args.tokens), forward.layer_weights(model, 0)
    with single_threaded_blas():
        x = forward.embed(model, tokens)
        steps = list(forward.layer(x, weights, ctx, 0))
        whole = seconds(lambda: forward.drain(forward.layer(x, weights, ctx, 0)))
        alone = seconds(lambda: products(steps, weights))
    work = 2 * sum(len(a) * b.size for a, b in pairs(steps, weights))
    print(
        f"a layer of {args.model.name} on {tokens.size:,} tokens: {whole:.3f} s, "
        f"{work / whole / 1e9:.0f} GFLOP/s; its products alone {alone:.3f} s, "
        f"{work / alone / 1e9:.0f} GFLOP/s, {alone / whole:.0%}"
    )


def pairs(
    steps: list[forward.Projection], weights: forward.Weights
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every input with the matrix that it is multiplied with."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for step in steps:
        for name in step.matrices:
            stacked = weights[f"{name}.weight"].reshape(
                len(step.inputs), -1, step.inputs[0].shape[-1]
            )
            found += zip(step.inputs, stacked, strict=True)
    return found


def products(steps: list[forward.Projection], weights: forward.Weights) -> None:
    """Multiply them, and throw the results away."""
    for x, matrix in pairs(steps, weights):
        x @ matrix.T


def seconds(work: Callable[[], object], times: int = 7) -> float:
    """The least processor time of some runs."""
    took = []
    for _ in range(times):
        begin = time.process_time()
        work()
        took.append(time.process_time() - begin)
    return min(took)


if __name__ == "__main__":
    main()
