"""`tqgguf report mse`: what rotation did to a model's weights, or to synthetic ones."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tqgguf.calibration.imatrix import check_basis
from tqgguf.cli import options as o
from tqgguf.cli.console import progress, say_json
from tqgguf.cli.error_plots import draw_synthetic, draw_weights
from tqgguf.cli.plots import check_plot
from tqgguf.cli.report import choice, reports
from tqgguf.cli.tables import Printer, json_values, number, times
from tqgguf.errors import PlanError
from tqgguf.formats import is_float
from tqgguf.machine.machine import Machine
from tqgguf.measure import gains, mse, synthetic
from tqgguf.measure.gains import MatrixReport, TypeTotal
from tqgguf.measure.matrix import BINS, LIMIT
from tqgguf.models import Model, open_model
from tqgguf.models.damage import naming_damage
from tqgguf.planning.inputs import Inputs, find_inputs
from tqgguf.planning.plan import Options
from tqgguf.planning.recipes import recipe
from tqgguf.planning.rotations import choose_rotation
from tqgguf.rotation.energies import Energies
from tqgguf.rotation.rotation import NO_ROTATION, Rotation

_TOP = 20  # matrices shown per type


@dataclass(frozen=True)
class Study:
    """Which weights are looked at, how, and what tells of their inputs."""

    types: Annotated[
        str | None,
        typer.Option(help="GGUF types or recipes, separated by commas.", metavar="A,B,..."),
    ] = None
    sample_rows: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Rows read of each matrix; enough for 1 % if unset."),
    ] = None
    block: o.Block = None
    seed: o.Seed = 0
    effort: Annotated[
        str,
        typer.Option(
            parser=str.lower,
            help="good: the outputs' errors too, by a short pass over a text; fast: weights alone.",
            metavar="LEVEL",
        ),
    ] = "good"
    imatrix: Annotated[
        Path | None, typer.Option(help="It tells the inputs instead of a text.", metavar="FILE")
    ] = None
    threads: o.Threads = None

    def types_or(self, usual: Sequence[str]) -> Sequence[str]:
        """The types that were asked for; a recipe stands for the type of its matrices."""
        names = [name for name in re.split(r"[,\s]+", self.types or "") if name]
        if self.types is not None and not names:
            raise PlanError("--types is empty; expected names such as q4_k,q2_k")
        found = list(dict.fromkeys(recipe(name).matrix for name in names))
        for float_type in filter(is_float, found):
            raise PlanError(
                f"--types: {float_type} has no blocks to round to, with or without a rotation; "
                "expected quantized types such as q4_k"
            )
        return found or usual

    def inputs(self, model: Model) -> Inputs:
        """What is known of what the matrices read."""
        effort = choice(self.effort, ("fast", "good"), "--effort")
        options = Options(effort=effort, imatrix=self.imatrix)
        known = find_inputs(model, options, Machine(threads=self.threads))
        if known.imatrix and self.imatrix:
            check_basis(known.imatrix, NO_ROTATION, self.imatrix)
        return known


@reports.command("mse")
@o.spread
def mse_command(
    *,
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="Without it: synthetic weights.")
    ] = None,
    study: Study,
    top: Annotated[
        int, typer.Option(min=0, metavar="N", help="Matrices shown per type; 0 for all.")
    ] = _TOP,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw a picture: .png, .svg or .pdf.", metavar="FILE")
    ] = None,
    force: o.Force = False,
    markdown: o.Markdown = False,
    json: o.Json = False,
) -> None:
    """Reconstruction error with and without rotation, of a model's or of synthetic weights.

    Example: tqgguf report mse model-f16.gguf --types q4_k,q2_k --plot errors.png
    """
    if model is None and (study.block is not None or study.imatrix is not None):
        raise typer.BadParameter("--block and --imatrix are about a MODEL; give one")
    check_plot(plot, inputs=[model, study.imatrix], force=force)
    out = None if json else Printer(markdown)
    if model is None:
        _synthetic(study, plot, out)
    else:
        _weights(model, study, plot, out, top)


def _synthetic(study: Study, plot: Path | None, out: Printer | None) -> None:
    seed, threads, size = study.seed, study.threads, study.sample_rows or synthetic.GGUF_ROWS
    types = study.types_or(synthetic.TYPES)
    data = synthetic.make_weights(seed=seed, threads=threads)
    rows = synthetic.measure_synthetic(data, types=types, gguf_rows=size, threads=threads)
    if out is None:
        extra = {"seed": seed, "gguf_rows": min(size, synthetic.SIZE)}
        say_json(json_values(extra | {"rows": [_synthetic_row(r) for r in rows]}))
    else:
        _say_synthetic(rows, size, out)
    if plot is not None:
        draw_synthetic(rows, *synthetic.histograms(data, limit=LIMIT, bins=BINS), plot)


def _synthetic_row(r: synthetic.SyntheticRow) -> dict[str, Any]:
    return asdict(r) | {"speed_hint": r.speed_hint, "verdict": r.verdict}


def _say_synthetic(rows: Sequence[synthetic.SyntheticRow], sample_rows: int, out: Printer) -> None:
    columns = ["format", "bpw", "MSE", "max |err|", "rel. MSE", "gain", "speed hint", "verdict"]
    cells = [
        [
            r.format,
            f"{r.bpw:.4g}",
            f"{r.mse:.2e}",
            number(r.max_abs_err),
            number(r.rel_mse),
            times(r.gain),
            times(r.speed_hint),
            r.verdict,
        ]
        for r in rows
    ]
    size = synthetic.SIZE
    out.table(columns, cells, title=f"Synthetic weights, {size} x {size}, heavy-tailed")
    out.line(
        "Qn: blocks of 32 with a float32 max-abs scale. TQ-: rotated by Hadamard blocks of 128 "
        "first. Baselines: Q4 for the Qn formats, Q4_0 for the GGUF types."
    )
    out.line(
        f"GGUF types were measured on {min(sample_rows, size)} of the {size} rows. "
        "The speed hint is 4.625 / bpw: memory traffic only; `tqgguf bench` measures."
    )


def _weights(path: Path, study: Study, plot: Path | None, out: Printer | None, top: int) -> None:
    types, model = study.types_or(mse.TYPES), open_model(path)
    known = study.inputs(model)
    rotation, sentence = mse.studied_rotation(
        model, block=study.block, seed=study.seed, energies=known.energies
    )
    found = _measure(model, rotation, types, study, known.energies)
    advice = list(_advice(model, study, known.energies, gains.totals(found)))
    if out is None:
        content = _weights_document(path, rotation.mode, sentence, found)
        say_json(json_values(content | {"inputs": known.notes, "advice": advice}))
    else:
        _say_weights(found, (sentence, *known.notes), advice, out, top)
    if plot is not None:
        draw_weights(found, plot, title=path.name)


def _measure(
    model: Model, rotation: Rotation, types: Sequence[str], study: Study, energies: Energies | None
) -> list[MatrixReport]:
    """Every matrix, those first whose error weighs most."""
    found = []
    total = sum(t.size for t in model.tensors.values())
    with naming_damage(model), progress(total, model.path.name, unit="w") as bar:
        for report in mse.measure_weights(
            *(model, rotation),
            types=types,
            sample_rows=study.sample_rows,
            energies=energies,
            threads=study.threads,
        ):
            found.append(report)
            bar.update(report.size)
    return gains.by_importance(found)


def _advice(
    model: Model, study: Study, energies: Energies | None, found: Sequence[TypeTotal]
) -> Iterator[str]:
    """What `--rotate auto` would choose for each type, where the inputs are known."""
    for total in found if energies else ():
        asked = Options(type=total.type, rotate="auto", seed=study.seed)
        chosen = choose_rotation(model, asked, energies, threads=study.threads)
        yield f"{asked.type}: {chosen[1]}"


def _weights_document(
    path: Path, mode: str, sentence: str, found: Sequence[MatrixReport]
) -> dict[str, Any]:
    return {
        "model": path,
        "rotation": {"mode": mode, "description": sentence},
        "tensors": [_matrix(r) for r in found],
        "totals": [asdict(t) | {"gain": t.gain, "verdict": t.verdict} for t in gains.totals(found)],
    }


def _matrix(r: MatrixReport) -> dict[str, Any]:
    return {
        "name": r.name,
        "shape": r.shape,
        "rotation": r.rotation,
        "sampled_weights": r.sampled,
        "kurtosis": r.kurtosis,
        "kurtosis_rotated": r.kurtosis_rotated,
        "types": {
            name: asdict(e)
            | {"gain": e.gain, "gap_db": e.gap_db, "gap_db_rotated": e.gap_db_rotated}
            for name, e in r.types.items()
        },
        "unfit": r.unfit,
    }


def _say_weights(
    found: Sequence[MatrixReport],
    notes: Sequence[str],
    advice: Sequence[str],
    out: Printer,
    top: int,
) -> None:
    rotation, *inputs = notes
    out.line(f"Rotation: {rotation}.")
    for note in inputs:
        out.line(note)
    for total in gains.totals(found):
        fitting = [r for r in found if total.type in r.types]
        shown = fitting[:top] if top else fitting
        _say_type(total, shown, out)
        if len(fitting) > len(shown):
            out.line(f"... and {len(fitting) - len(shown)} more matrices (--top 0 shows all)")
    for total in gains.totals(found):
        out.line(total.verdict)
    for line in advice:
        out.line(line)
    _say_footnotes(found, out)


def _say_type(total: TypeTotal, shown: Sequence[MatrixReport], out: Printer) -> None:
    columns = ["tensor", "kurtosis", "rotated", "MSE", "rotated", "rel. MSE", "rotated", "gain",
               "gap dB", "rotated"]  # fmt: skip
    of_outputs = total.predicted is not None
    if of_outputs:
        columns += ["output", "rotated"]
    cells = []
    for r in shown:
        e = r.types[total.type]
        cells.append(
            [
                r.name,
                f"{r.kurtosis:.2f}",
                f"{r.kurtosis_rotated:.2f}",
                f"{e.mse:.2e}",
                f"{e.mse_rotated:.2e}",
                f"{e.rel_mse:.5f}",
                f"{e.rel_mse_rotated:.5f}",
                times(e.gain),
                f"{e.gap_db:.2f}",
                f"{e.gap_db_rotated:.2f}",
                *(_error(x) for x in (e.rel_output, e.rel_output_rotated) if of_outputs),
            ]
        )
    t = total
    outputs = [_error(x) for x in (t.predicted, t.predicted_rotated) if of_outputs]
    cells.append(
        ["all matrices", "", "", f"{t.mse:.2e}", f"{t.mse_rotated:.2e}", f"{t.rel_mse:.5f}",
         f"{t.rel_mse_rotated:.5f}", times(t.gain), f"{t.gap_db:.2f}", f"{t.gap_db_rotated:.2f}",
         *outputs]
    )  # fmt: skip
    out.table(columns, cells, title=f"{t.type}, {t.bpw:.4g} bits per weight")


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _say_footnotes(found: Sequence[MatrixReport], out: Printer) -> None:
    sampled, size = sum(r.sampled for r in found), sum(r.size for r in found)
    worst = max((e.standard_error for r in found for e in r.types.values()), default=0.0)
    out.line(
        f"Read {sampled:,} of {size:,} weights; the standard error of a relative MSE is "
        f"at most {worst:.1%}. Sorted by error times size; kurtosis 3 is Gaussian."
    )
    if any("gain" in r.rotation for r in found):
        out.line(
            "A fold multiplies a norm's gain into the matrices that read it, which scales their "
            "MSE: compare relative MSE."
        )
    unfit = [r for r in found if r.unfit]
    if unfit:
        first = unfit[0]
        others = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
        out.line(
            f"Left out: {first.name}{others}, whose rows of {first.shape[-1]} do not fit "
            f"{', '.join(first.unfit)}."
        )
