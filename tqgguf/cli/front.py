"""Pictures of `tqgguf eval` and `tqgguf bench`: quality, size and speed against each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqgguf.cli.plots import PLAIN, ROTATED, as_label, new_figure, save
from tqgguf.measure.bench import SpeedRow
from tqgguf.measure.eval import QualityRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_front(rows: Sequence[QualityRow], path: Path) -> None:
    """Draw KL divergence against bits per weight and, where measured, against decode speed."""
    speeds = [row.tg for row in rows if row.tg is not None]
    timed = len(speeds) == len(rows)
    figure = new_figure(width=11 if timed else 6)
    axes = figure.subplots(1, 1 + timed, squeeze=False, sharey=True)[0]
    _scatter(axes[0], rows, [row.bpw for row in rows], "bits per weight")
    axes[0].set_ylabel("mean KL divergence, nats")
    if timed:
        _scatter(axes[1], rows, speeds, "decode speed, tokens per second")
    best = "as small, as close to the original and as fast" if timed else "as small and as close"
    figure.suptitle(f"blue: tqgguf; filled: no other file here is {best}")
    save(figure, path)


def _scatter(axes: "Axes", rows: Sequence[QualityRow], x: Sequence[float], label: str) -> None:
    """Named points, ours in one colour, other quantizers' in another, those on the front filled."""
    for row, at in zip(rows, x, strict=True):
        color = ROTATED if "TQ-" in Path(row.model).name else PLAIN
        face = color if row.pareto else "none"
        axes.scatter([at], [row.kld_mean], s=40, facecolors=face, edgecolors=color, zorder=2)
        name, place = as_label(Path(row.model).stem), (at, row.kld_mean)
        axes.annotate(name, place, (5, 4), textcoords="offset points", fontsize=8)
    if all(row.kld_mean > 0 for row in rows):
        axes.set_yscale("log")
    axes.margins(0.2)
    axes.set_xlabel(label)
    axes.grid(visible=True, which="both", linewidth=0.3)


def draw_speeds(rows: Sequence[SpeedRow], path: Path) -> None:
    """Draw decode speed (prompt speed where only that was measured) with its range."""
    figure = new_figure(width=9, height=1 + 0.4 * len(rows))
    axes = figure.subplots()
    decode = all(row.tg is not None for row in rows)
    for place, row in enumerate(rows):
        speed, extent = (row.tg, row.tg_range) if decode else (row.pp, row.pp_range)
        axes.barh(place, speed or 0.0, color=ROTATED if "TQ-" in row.model else PLAIN)
        axes.plot(extent or (), [place] * len(extent or ()), color="black", marker="|")
    names = [f"{as_label(Path(row.model).stem)} ({row.bpw:.2f} bits)" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    what = "decode" if decode else "prompt"
    axes.set_xlabel(f"{what} speed, tokens per second: median, slowest and fastest round")
    axes.grid(visible=True, axis="x", linewidth=0.3)
    save(figure, path)
