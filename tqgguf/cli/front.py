"""Pictures of `tqgguf eval` and `tqgguf bench`: quality, size and speed against each other."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqgguf.cli.plots import INK, PLAIN, ROTATED, as_label, picture
from tqgguf.measure.bench import SpeedRow
from tqgguf.measure.eval import QualityRow
from tqgguf.models import open_model
from tqgguf.rotation.rotation import PREFIX

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a label may stand: its offset in points and the side of it that is at the point.
_PLACES = (((6, 5), "left"), ((6, -11), "left"), ((-6, 5), "right"), ((-6, -11), "right"))
_POINT = 9  # pixels of a point


def draw_front(rows: Sequence[QualityRow], path: Path) -> None:
    """Draw KL divergence against bits per weight and, where measured, against decode speed."""
    speeds = [row.tg for row in rows if row.tg is not None]
    timed = len(speeds) == len(rows)
    with picture(path, width=13 if timed else 7.5, height=4.8) as figure:
        axes = figure.subplots(1, 1 + timed, squeeze=False, sharey=True)[0]
        sizes = [row.bpw for row in rows]
        best = (
            "as small, as close to the original and as fast" if timed else "as small and as close"
        )
        figure.suptitle(
            f"{_shapes(rows)}filled: no other file here is {best}",
            fontsize=9,
        )
        axes[0].set_ylabel("mean KL divergence, nats")
        for panel, x, label in (
            (axes[0], sizes, "bits per weight"),
            *([(axes[1], speeds, "decode speed, tokens per second")] if timed else []),
        ):
            _scatter(panel, rows, x, label)
        figure.draw_without_rendering()  # now points are where they will be
        for panel, x in zip(axes, (sizes, speeds), strict=False):
            _name(panel, rows, x)


def _shapes(rows: Sequence[QualityRow]) -> str:
    """What tells ours and theirs apart, if there are both."""
    both = len({is_ours(row.model) for row in rows}) > 1
    return "blue circles: tqgguf; orange squares: others; " if both else ""


def is_ours(model: str) -> bool:
    """Whether tqgguf made a file: by its header, or by its name where there is no such file."""
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        return f"{PREFIX}recipe" in open_model(path).metadata
    return "TQ-" in path.name


def _scatter(axes: "Axes", rows: Sequence[QualityRow], x: Sequence[float], label: str) -> None:
    """Points, ours and other quantizers' told apart by shape and colour, the front's filled."""
    for row, at in zip(rows, x, strict=True):
        ours = is_ours(row.model)
        color = ROTATED if ours else PLAIN
        face = color if row.pareto else "none"
        shape: dict[str, Any] = {"marker": "o" if ours else "s", "s": 40}
        axes.scatter([at], [row.kld_mean], **shape, facecolors=face, edgecolors=color, zorder=2)
    if all(row.kld_mean > 0 for row in rows):
        axes.set_yscale("log")
    axes.margins(0.2)
    axes.set_xlabel(label)
    axes.grid(visible=True, which="both")


def _name(axes: "Axes", rows: Sequence[QualityRow], x: Sequence[float]) -> None:
    """Name the points, each where its name covers no point and no other name, if it can be."""
    from matplotlib.transforms import Bbox

    places = axes.transData.transform([(at, row.kld_mean) for row, at in zip(rows, x, strict=True)])
    taken: list[Any] = [
        Bbox.from_bounds(u - _POINT / 2, v - _POINT / 2, _POINT, _POINT) for u, v in places
    ]
    frame = axes.get_window_extent()
    for row, at in zip(rows, x, strict=True):
        name = as_label(Path(row.model).stem)
        tried = list(_tried(axes, name, (at, row.kld_mean)))
        best = min(tried, key=partial(_clashes, taken, frame))
        for text, _ in tried:
            if text is not best[0]:
                text.remove()
        taken.append(best[1])


def _clashes(taken: Sequence[Any], frame: Any, tried: tuple[Any, Any]) -> int:
    """How much a label covers; to stand outside the frame counts as two."""
    box = tried[1]
    outside: bool = box.x0 < frame.x0 or box.x1 > frame.x1
    return sum(bool(box.overlaps(other)) for other in taken) + 2 * int(outside)


def _tried(axes: "Axes", name: str, point: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """The name at each of its places, and the box that it takes there."""
    for offset, side in _PLACES:
        text = axes.annotate(name, point, offset, textcoords="offset points", fontsize=8, ha=side)
        yield text, text.get_window_extent()


def draw_speeds(rows: Sequence[SpeedRow], path: Path) -> None:
    """Draw decode speed (prompt speed where only that was measured) with its range."""
    with picture(path, width=9, height=1 + 0.4 * len(rows)) as figure:
        axes = figure.subplots()
        decode = all(row.tg is not None for row in rows)
        for place, row in enumerate(rows):
            speed, extent = (row.tg, row.tg_range) if decode else (row.pp, row.pp_range)
            axes.barh(place, speed or 0.0, color=ROTATED if is_ours(row.model) else PLAIN)
            axes.plot(extent or (), [place] * len(extent or ()), color=INK, marker="|")
        names = [f"{as_label(Path(row.model).stem)} ({row.bpw:.2f} bits)" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        what = "decode" if decode else "prompt"
        axes.set_xlabel(f"{what} speed, tokens per second: median, slowest and fastest round")
        axes.grid(visible=True, axis="x")
