"""What do gains and weights tell of the inputs that nobody has measured?

Finds again the exponent of tqgguf/rotation/balance.py's `expected_energies`. Under every norm of a
layer the energies of the stream, E[x_c^2] = E[(g x)_c^2] / g_c^2, are compared with what its
readers make of a channel, g_c^2 |column_c|^2: the slope of their logarithms, their correlation and
the standard deviation that remains; medians over the layers.

    python scripts/measure_energies.py model-f16.gguf...
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tqgguf.calibration.short_pass import measure_inputs
from tqgguf.calibration.tokens import read_text
from tqgguf.kernels.dtypes import F64
from tqgguf.models import Model, open_model
from tqgguf.rotation import readers
from tqgguf.rotation.balance import column_shares


def main() -> None:
    """Parse the arguments, print a table in Markdown."""
    parser = argparse.ArgumentParser(description="the inputs' energies by gains and weights")
    parser.add_argument("models", type=Path, nargs="+")
    print("| model | norm | exponent | correlation | deviation, of it unexplained |")
    print("|---|---|---:|---:|---:|")
    for path in parser.parse_args().models:
        found: dict[str, list[tuple[float, ...]]] = {}
        for norm, weight, energy in channels(open_model(path)):
            found.setdefault(norm.split(".")[-1], []).append(fit(weight, energy))
        for kind, fits in found.items():
            slope, corr, whole, rest = np.median(fits, axis=0)
            print(f"| {path.name} | {kind} | {slope:.2f} | {corr:.2f} | {whole:.2f}, {rest:.2f} |")


def channels(model: Model) -> Iterator[tuple[str, F64, F64]]:
    """The norms of all layers: g^2 |column|^2 and E[x^2] of every channel that is alive."""
    known = measure_inputs(model, read_text(model, None)).importance
    for name in model.tensors:
        norm = name.removesuffix(".weight")
        read_by = readers.readers(model, norm) if name.startswith("blk.") else []
        energy = known(read_by[0].name) if read_by else None
        if energy is None or energy.shape != (1, model.tensors[name].size):
            continue
        gain = np.square(model.tensors[name].read(), dtype=np.float64)
        weight = gain * column_shares(read_by)
        alive = (weight > 0) & (energy[0] > 0)
        yield norm, weight[alive], energy[0][alive] / gain[alive]


def fit(weight: F64, energy: F64) -> tuple[float, ...]:
    """Slope, correlation, and the standard deviation of the logarithms before and after."""
    x, y = np.log(weight), np.log(energy)
    slope = float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))
    return slope, float(np.corrcoef(x, y)[0, 1]), float(y.std()), float((y - slope * x).std())


if __name__ == "__main__":
    main()
