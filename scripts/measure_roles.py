"""How much divergence does a relative error in each role of matrix cause?

Finds again the constants of tqgguf/planning/allocation.py. One role at a time is rounded in every
layer; the mean KL divergence that this causes is divided by the sum of the matrices' relative
errors, plain and weighted by the energies of their inputs. Then the same for all matrices of single
layers, and the mean relative error of every role's outputs in every type that fits its rows.

    python scripts/measure_roles.py model-f16.gguf text.txt
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tqgguf.calibration.imatrix import Imatrix
from tqgguf.calibration.statistics import input_energies
from tqgguf.calibration.tokens import read_text, sequences
from tqgguf.formats import dequantize, quantize
from tqgguf.kernels.dtypes import F32
from tqgguf.models import Model, open_model
from tqgguf.models.roles import layer_prefix, role
from tqgguf.network import forward
from tqgguf.network.forward import Tokens
from tqgguf.network.ops import Array, log_softmax
from tqgguf.planning.allocation import fitting_types
from tqgguf.planning.matrices import is_matrix
from tqgguf.planning.rounding import measure_errors
from tqgguf.rotation.ends import EMBEDDING, HEAD


class Loss(NamedTuple):
    """The mean divergence that rounding causes, and the sums of relative errors."""

    divergence: float
    plain: float
    weighted: float


def main() -> None:
    """Parse the arguments, measure, print the tables in Markdown."""
    parser = argparse.ArgumentParser(description="sensitivities of roles and layers")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--type", default="Q4_0", help="the type whose error is the probe")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--layers", default="", help="layers to measure one by one: 0,1,14,29")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    model = open_model(args.model)
    tokens = sequences(model, read_text(model, args.text), limit=args.tokens)
    energies = input_energies(model, tokens, threads=args.threads)
    probe = Probe(model, tokens, forward.logits(model, tokens), energies, args.type, args.threads)
    print("| role | matrices | divergence | per relative error | per weighted error |")
    print("|---|---:|---:|---:|---:|")
    for name, tensors in groups(model):
        print_row(name, len(tensors), probe.loss(tensors))
    for index in map(int, filter(None, args.layers.split(","))):
        prefix = f"blk.{index}."
        chosen = [n for _, tensors in groups(model) for n in tensors if n.startswith(prefix)]
        print_row(f"layer {index}", len(chosen), probe.loss(chosen))
    print_types(model, energies, args.threads)


def print_types(model: Model, energies: Imatrix, threads: int | None) -> None:
    """The mean relative error of each role's outputs by type."""
    for name, tensors in groups(model):
        types = dict.fromkeys(tensors, fitting_types(model.tensors[tensors[0]].n_in))
        found = measure_errors(model, types, energies.importance, threads=threads).values()
        means = {t: np.mean([e.by_type[t] for e in found]) for t in types[tensors[0]]}
        print(f"{name}: " + ", ".join(f"{t} {error:.5f}" for t, error in means.items()), flush=True)


def groups(model: Model) -> Iterator[tuple[str, list[str]]]:
    """The names of all matrices, by role; a tied embedding is the head."""
    found: dict[str, list[str]] = {}
    for name, tensor in model.tensors.items():
        if is_matrix(tensor):
            kind = role(name)[0] if layer_prefix(name) else name.split(".")[0]
            tied = kind == "token_embd" and "output.weight" not in model.tensors
            found.setdefault("output" if tied else kind, []).append(name)
    yield from found.items()


@dataclass(frozen=True)
class Probe:
    """A model, its logits on some tokens, the energies of its inputs, and the type to round to."""

    model: Model
    tokens: Tokens
    logits: Array
    energies: Imatrix
    type: str
    threads: int | None

    def loss(self, names: Sequence[str]) -> Loss:
        """Round these matrices, all else exact."""
        tensors, plain, weighted = dict(self.model.tensors), 0.0, 0.0
        for name in names:
            tensor = self.model.tensors[name]
            x = tensor.read().reshape(-1, tensor.n_in)
            data = quantize(x, self.type, threads=self.threads)
            rounded = dequantize(data, self.type, tensor.n_in)
            head = name == EMBEDDING and HEAD not in self.model.tensors
            energy = self.energies.importance(HEAD if head else name)
            plain += relative(rounded - x, x, np.ones((1, tensor.n_in), np.float32))
            weighted += relative(rounded - x, x, energy)
            tensors[name] = tensor.derived(rows=partial(cut, rounded))
        other = forward.logits(replace(self.model, tensors=tensors), self.tokens)
        return Loss(divergence(self.logits, other), plain, weighted)


def divergence(ours: Array, theirs: Array) -> float:
    """Mean KL divergence in nats, (..., n_vocab) logits each, a few tokens at a time."""
    total, flat = 0.0, [a.reshape(-1, a.shape[-1]) for a in (ours, theirs)]
    for at in range(0, len(flat[0]), 64):
        p, q = (log_softmax(a[at : at + 64].astype(np.float64)) for a in flat)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(flat[0])


def relative(error: F32, x: F32, energy: F32 | None) -> float:
    """Squared error over energy, each column counting as its input does."""
    if energy is None:
        return float("nan")
    rows = (len(energy), -1, energy.shape[1])
    lost, whole = (
        np.einsum("ern,en->", np.square(a.reshape(rows)), energy, dtype=np.float64)
        for a in (error, x)
    )
    return float(lost / max(whole, 1e-30))


def cut(values: F32, start: int, stop: int) -> F32:
    """Some of the rows."""
    return values[start:stop]


def print_row(name: str, count: int, loss: Loss) -> None:
    """One line, as soon as it is measured."""
    print(
        f"| {name} | {count} | {loss.divergence:.5f} | {loss.divergence / loss.plain:.4f} "
        f"| {loss.divergence / loss.weighted:.4f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
