"""The canvas of --plot: drawn with matplotlib (extra `plot`) and written like every output.

Pictures have no background, and their lines and letters are of one middle brightness, so that they
can be read on white paper and on a dark screen alike.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqgguf.cli.console import visible
from tqgguf.errors import OutputError, PlanError
from tqgguf.models import input_files
from tqgguf.output.targets import check_targets
from tqgguf.output.whole import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
PLAIN, ROTATED = "#c8552b", "#3b7dd8"  # without and with rotation, theirs and ours, everywhere
INK = "#787d85"  # as far from white as from the dark of a screen
COLORS = (ROTATED, PLAIN, "#2c9450", "#a35bc4", "#a87f12", "#168f9c")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tqgguf",
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
    "legend.framealpha": 0.0,
    "legend.edgecolor": "none",
    "grid.linewidth": 0.3,
    "axes.titlesize": "medium",
}


def check_plot(path: Path | None, *, inputs: Iterable[Path | None] = (), force: bool) -> None:
    """Refuse a picture that cannot be drawn before any work is done."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise PlanError(f"--plot {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    read = [file for given in inputs if given for file in input_files(given)]
    check_targets({"--plot": [path]}, inputs=read, force=force)
    check_matplotlib()


def check_matplotlib() -> None:
    """Raise PlanError with the cure where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PlanError(
            "a picture needs matplotlib, which is not installed: pip install 'tqgguf[plot]'"
        ) from None


@contextmanager
def picture(path: Path, *, width: float = 11, height: float = 4.2) -> Iterator["Figure"]:
    """An empty figure in inches, written to the path when it has been drawn.

    Raises OutputError where it cannot be written.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)  # which can measure a text
        yield figure
        _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    """Write in the format of the path's ending; an SVG with text that can be read."""
    kind = path.suffix[1:].lower()
    undated = {"Date": None} if kind == "svg" else None  # the same picture is the same file
    try:
        with whole_file(path) as scratch:
            figure.savefig(scratch, format=kind, dpi=130, metadata=undated)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def as_label(text: str) -> str:
    """A file's name in a picture: no control codes, and no dollar that would begin a formula."""
    return visible(text).replace("$", r"\$")


def caption(axes: "Axes", title: str, x: str, y: str) -> None:
    """Title, axes' names, a faint grid and, where anything is named, a legend."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, which="major")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
