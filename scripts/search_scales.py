"""Find the exponent of decision 0021 again: predicted output error by exponent, type and mode.

Example: python scripts/search_scales.py model-f16.gguf Q4_0,IQ4_NL
"""

import argparse
from pathlib import Path

from tqgguf.models import open_model
from tqgguf.planning.inputs import find_inputs
from tqgguf.planning.plan import Options
from tqgguf.planning.rotations import candidates
from tqgguf.rotation import balance

EXPONENTS = (0, 1 / 16, 1 / 8, 5 / 32, 3 / 16, 1 / 4)


def main() -> None:
    """One line for each type and exponent: the error of every mode over the unrotated one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("types", nargs="?", default="tq-q4")
    parser.add_argument("--imatrix", type=Path, help="energies, instead of a short pass")
    arguments = parser.parse_args()
    model = open_model(arguments.model)
    energies = find_inputs(model, Options(imatrix=arguments.imatrix)).energies
    if energies is None:
        raise SystemExit(f"{arguments.model}: the energies of its inputs are unknown")
    for type in arguments.types.split(","):
        for exponent in EXPONENTS:
            balance._INPUTS = exponent
            none, *others = candidates(model, Options(type=type), energies)
            found = ", ".join(f"{c.mode} {c.error / none.error:.4f}" for c in others if c.plan)
            print(f"{type} a = {exponent:.4f}: {found}")


if __name__ == "__main__":
    main()
