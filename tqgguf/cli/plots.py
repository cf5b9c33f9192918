"""The pictures of --plot, drawn with matplotlib (extra `plot`) and written like every output."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tqgguf.cli.console import visible
from tqgguf.errors import OutputError, PlanError
from tqgguf.kernels.dtypes import F64, I64
from tqgguf.measure.mse import BINS, LIMIT, MatrixReport, totals
from tqgguf.measure.synthetic import SyntheticRow
from tqgguf.models import input_files
from tqgguf.output.targets import check_targets
from tqgguf.output.whole import whole_file
from tqgguf.rotation.architectures import LAYER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "tqgguf"}
PLAIN, ROTATED = "#c44e52", "#4c72b0"  # without and with rotation, everywhere


def check_plot(path: Path | None, *, inputs: Iterable[Path | None] = (), force: bool) -> None:
    """Refuse a picture that cannot be drawn before any work is done."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise PlanError(f"--plot {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    read = [file for given in inputs if given for file in input_files(given)]
    check_targets({"--plot": [path]}, inputs=read, force=force)
    new_figure()


def new_figure(width: float = 11, height: float = 4.2) -> "Figure":
    """An empty figure; PlanError with the cure where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlanError(
            "--plot needs matplotlib, which is not installed: pip install 'tqgguf[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def as_label(text: str) -> str:
    """A file's name in a picture: no control codes, and no dollar that would begin a formula."""
    return visible(text).replace("$", r"\$")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's ending; an SVG with text that can be read."""
    from matplotlib import rc_context

    kind = path.suffix[1:].lower()
    undated = {"Date": None} if kind == "svg" else None  # the same picture is the same file
    try:
        with whole_file(path) as scratch, rc_context(_SVG):
            figure.savefig(scratch, format=kind, dpi=130, metadata=undated)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def draw_weights(reports: Sequence[MatrixReport], path: Path, *, title: str) -> None:
    """Histogram of the weights before and after rotation, and the error by layer."""
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    before = np.sum([r.histogram for r in reports], axis=0)
    after = np.sum([r.histogram_rotated for r in reports], axis=0)
    _draw_histogram(left, before, after)
    _draw_layers(right, reports)
    figure.suptitle(as_label(title))
    save(figure, path)


def draw_synthetic(rows: Sequence[SyntheticRow], before: I64, after: I64, path: Path) -> None:
    """Histogram of the synthetic weights before and after rotation, and the error by format."""
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    _draw_histogram(left, before, after)
    plain = [r for r in rows if not r.rotated]
    rotated = [r for r in rows if r.rotated]
    places = np.arange(len(plain))
    right.bar(places - 0.2, [r.mse for r in plain], 0.4, color=PLAIN, label="as it is")
    right.bar(places + 0.2, [r.mse for r in rotated], 0.4, color=ROTATED, label="rotated")
    right.axhline(rows[0].mse, color="black", linewidth=0.8, linestyle=":", label="baseline Q4")
    right.set_xticks(places, [r.format for r in plain])
    right.set_yscale("log")
    _label(right, "mean squared error by format", "", "MSE")
    figure.suptitle("Synthetic heavy-tailed weights")
    save(figure, path)


def _draw_histogram(axes: "Axes", before: I64, after: I64) -> None:
    """Densities on a logarithmic scale, where a Gaussian is a parabola."""
    edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, 2 * LIMIT / BINS
    gaussian = np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(middle, gaussian, color="black", linewidth=0.8, linestyle=":", label="Gaussian")
    for counts, color, label in ((before, PLAIN, "as it is"), (after, ROTATED, "rotated")):
        density = counts / (max(1, counts.sum()) * width)
        axes.stairs(np.where(density > 0, density, np.nan), edges, color=color, label=label)
    reach = max(6.0, np.abs(middle[(before + after) > 0]).max(initial=0) + width)
    axes.set(xlim=(-reach, reach), ylim=(1e-7, None), yscale="log")
    _label(axes, "distribution of the weights", "weight / standard deviation", "density")


def _draw_layers(axes: "Axes", reports: Sequence[MatrixReport]) -> None:
    """The mean error of every layer's matrices, without rotation (dashed) and with it, in dB."""
    for i, type in enumerate(dict.fromkeys(name for r in reports for name in r.types)):
        layers, plain, rotated = _by_layer(reports, type)
        style: dict[str, Any] = {"color": f"C{i}", "marker": ".", "linewidth": 1.2}
        axes.plot(layers, plain, linestyle="--", **style)
        axes.plot(layers, rotated, linestyle="-", label=type, **style)
    axes.locator_params(axis="x", integer=True)
    title = "error by layer (dashed: without rotation)"
    _label(axes, title, "layer", "relative MSE above 4^-bits, dB")


def _by_layer(reports: Sequence[MatrixReport], type: str) -> tuple[list[int], F64, F64]:
    """Layers, and the mean relative errors of their matrices in dB above the limit 4^-bits."""
    layers: dict[int, list[MatrixReport]] = {}
    for r in reports:
        match = LAYER.match(r.name)
        if match and type in r.types:
            layers.setdefault(int(match["layer"]), []).append(r)
    gaps = [
        (total.gap_db, total.gap_db_rotated)
        for _, members in sorted(layers.items())
        for total in totals(members)
        if total.type == type
    ]
    plain, rotated = np.array(gaps, np.float64).reshape(-1, 2).T
    return sorted(layers), plain, rotated


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.legend(fontsize=8)
