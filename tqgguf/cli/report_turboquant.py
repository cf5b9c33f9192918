"""`tqgguf report turboquant` and `kv`: the paper's own quantizers, and a cache that uses them."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from tqgguf.cli import options as o
from tqgguf.cli.console import say_json
from tqgguf.cli.report import choice, reports
from tqgguf.cli.tables import Printer, json_values, number, times
from tqgguf.errors import PlanError
from tqgguf.measure import kv, turboquant

Bits = Annotated[
    str, typer.Option(metavar="A,B,...", help="Bits per coordinate, separated by commas.")
]
Dim = Annotated[int, typer.Option(min=2, metavar="N", help="Coordinates of a vector.")]
RotationName = Annotated[
    str, typer.Option("--rotation", metavar="KIND", help="hadamard, or the paper's dense.")
]


@reports.command("turboquant")
def turboquant_command(
    bits: Bits = "1,2,3,4",
    dim: Dim = 256,
    vectors_: Annotated[
        int, typer.Option("--vectors", min=2, metavar="N", help="Random unit vectors.")
    ] = 20000,
    rotation: RotationName = "hadamard",
    sketch: Annotated[
        str, typer.Option(metavar="KIND", help="gaussian or rademacher.")
    ] = "gaussian",
    seed: o.Seed = 0,
    markdown: o.Markdown = False,
    json: o.Json = False,
) -> None:
    """The TurboQuant paper's quantizers on unit vectors against its values and the bounds.

    Example: tqgguf report turboquant --bits 2,3 --dim 128
    """
    rows = turboquant.distortions(
        bits=_bits(bits),
        dim=dim,
        vectors=vectors_,
        seed=seed,
        rotation=choice(rotation, turboquant.ROTATIONS, "--rotation"),
        sketch=choice(sketch, turboquant.SKETCHES, "--sketch"),
    )
    if json:
        scaled = [asdict(r) | {"dim_d_prod": r.dim * r.d_prod} for r in rows]
        say_json(
            json_values({"seed": seed, "rotation": rotation, "sketch": sketch, "rows": scaled})
        )
        return
    _say_distortions(rows, Printer(markdown))


@reports.command("kv")
def kv_command(
    bits: Bits = "2,3,4",
    dim: Dim = 128,
    length: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens in the cache.")] = 4096,
    queries: Annotated[int, typer.Option(min=1, metavar="N", help="Random queries.")] = 64,
    rotation: RotationName = "hadamard",
    seed: o.Seed = 0,
    markdown: o.Markdown = False,
    json: o.Json = False,
) -> None:
    """A simulated attention cache: accuracy of scores and output, and memory.

    Example: tqgguf report kv --bits 3,4 --dim 128
    """
    rows = kv.simulate_cache(
        bits=_bits(bits),
        dim=dim,
        length=length,
        queries=queries,
        seed=seed,
        rotation=choice(rotation, turboquant.ROTATIONS, "--rotation"),
    )
    if json:
        say_json(json_values({"dim": dim, "length": length, "rows": [asdict(r) for r in rows]}))
        return
    _say_caches(rows, Printer(markdown), length=length, dim=dim)


def _say_distortions(rows: Sequence[turboquant.DistortionRow], out: Printer) -> None:
    columns = ["bits", "D_mse", "theory", "paper", "4^-bits", "dim D_prod", "theory", "paper",
               "bias", "std. error", "bias of mse", "bits/value"]  # fmt: skip
    cells = [
        [
            str(r.bits),
            f"{r.d_mse:.5f}",
            f"{r.d_mse_theory:.5f}",
            number(r.d_mse_paper),
            f"{r.bound:.5f}",
            f"{r.dim * r.d_prod:.4f}",
            f"{r.dim * r.d_prod_theory:.4f}",
            number(None if r.d_prod_paper is None else r.dim * r.d_prod_paper),
            f"{r.bias:+.1e}",
            f"{r.bias_stderr:.1e}",
            f"{r.bias_mse:+.1e}",
            f"{r.bits_per_value:.4g} / {r.bits_per_value_prod:.4g}",
        ]
        for r in rows
    ]
    title = f"TurboQuant on {rows[0].vectors:,} random unit vectors of {rows[0].dim}"
    out.table(columns, cells, title=title)
    out.line(
        "dim D_prod in theory is pi/2 times D_mse at one bit less; the paper prints 0.047 at 4 "
        "bits, from D_mse rounded to 0.03. Bits per value count the float32 norms (mse / prod)."
    )
    out.line(
        "Bias: error of an inner product, signed by the true one. The prod estimate has none; the "
        "mse quantizer shrinks every product by the factor 1 - D_mse, at a far smaller variance."
    )


def _say_caches(rows: Sequence[kv.CacheRow], out: Printer, *, length: int, dim: int) -> None:
    columns = ["keys", "score correlation", "theory", "score bias", "output error", "bytes",
               "vs float16", "vs float32"]  # fmt: skip
    cells = [
        [
            f"{r.bits} bits" if r.keys == "mse" else f"{r.bits - 1} + 1 bits (QJL)",
            f"{r.score_correlation:.4f}",
            f"{r.correlation_theory:.4f}",
            f"{r.score_bias:+.2%}",
            f"{r.output_rel_error:.1%}",
            f"{r.n_bytes:,}",
            times(r.compression),
            times(r.compression_float32),
        ]
        for r in rows
    ]
    out.table(columns, cells, title=f"A cache of {length:,} random keys and values of {dim}")
    out.line(
        "Values are stored as MSE codes with as many bits as the keys' codebook. QJL buys "
        "unbiased scores, not accurate ones: the same bit spent on the codebook correlates better."
    )


def _bits(text: str) -> list[int]:
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise PlanError(f"--bits {text!r}: expected whole numbers from 1, such as 2,3,4")
    return [int(part) for part in parts]
