"""Pictures of errors: `report mse --plot` by layer and role, `compare --plot` of several files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tqgguf.cli.front import is_ours
from tqgguf.cli.plots import COLORS, INK, PLAIN, ROTATED, as_label, caption, picture
from tqgguf.kernels.dtypes import F64, I64
from tqgguf.measure.compare import FileReport, TensorError
from tqgguf.measure.gains import MatrixReport, totals
from tqgguf.measure.matrix import BINS, LIMIT
from tqgguf.measure.synthetic import SyntheticRow
from tqgguf.models.roles import layer_index, role

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Named = TypeVar("Named", MatrixReport, TensorError)
Groups = dict[Any, list[Named]]
_GAP = "relative MSE above 4^-bits, dB"


def draw_weights(reports: Sequence[MatrixReport], path: Path, *, title: str) -> None:
    """Histogram of the weights before and after rotation, and the error by layer and by role."""
    with picture(path, width=16) as figure:
        left, middle, right = figure.subplots(1, 3)
        before = np.sum([r.histogram for r in reports], axis=0)
        after = np.sum([r.histogram_rotated for r in reports], axis=0)
        _draw_histogram(left, before, after)
        _draw_gaps(middle, _by_layer(reports))
        middle.locator_params(axis="x", integer=True)
        caption(middle, "error by layer (dashed: without rotation)", "layer", _GAP)
        roles = _by_role(reports)
        _draw_gaps(right, {place: group for place, group in enumerate(roles.values())}, line="")
        _name_roles(right, list(roles))
        caption(right, "error by role (hollow: without rotation)", "", _GAP)
        figure.suptitle(as_label(title))


def draw_files(reports: Sequence[FileReport], path: Path, *, title: str) -> None:
    """The error of several files by layer and by role, as the network sees it."""
    with picture(path, width=13, height=4.8) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        roles = list(_by_role([t for r in reports for t in _inexact(r)]))
        for number, report in enumerate(reports):
            style = _file_style(number, report)
            layers = _means(_by_layer(_inexact(report)))
            left.plot(layers.keys(), layers.values(), label=as_label(report.path.stem), **style)
            found = _means(_by_role(_inexact(report)))
            places = [place for place, name in enumerate(roles) if name in found]
            values = [found[name] for name in roles if name in found]
            right.plot(places, values, **style | {"linestyle": ""})
        left.set_yscale("log")
        left.locator_params(axis="x", integer=True)
        _name_roles(right, roles)
        caption(left, "error by layer (round: tqgguf's files)", "layer", "relative MSE, as seen")
        caption(right, "error by role", "", "")
        figure.suptitle(as_label(title))


def _file_style(number: int, report: FileReport) -> dict[str, Any]:
    ours = is_ours(str(report.path))
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": "o" if ours else "s",
        "markersize": 4,
        "linestyle": "-" if ours else "--",
        "linewidth": 1.2,
    }


def _inexact(report: FileReport) -> list[TensorError]:
    return [t for t in report.tensors if t.rel_mse_seen > 0]


def _means(groups: "Groups[TensorError]") -> dict[Any, float]:
    """The mean error of each group, over its weights."""
    return {
        key: float(np.average([t.rel_mse_seen for t in g], weights=[t.size for t in g]))
        for key, g in groups.items()
    }


def _by_layer(reports: Sequence[Named]) -> "Groups[Named]":
    """Reports by their layer's number, in order; those outside the layers are left out."""
    found = _grouped([r for r in reports if layer_index(r.name) is not None], layer_index)
    return dict(sorted(found.items()))


def _by_role(reports: Sequence[Named]) -> "Groups[Named]":
    return _grouped(reports, lambda name: role(name)[0])


def _grouped(reports: Sequence[Named], key: Callable[[str], Any]) -> "Groups[Named]":
    groups: Groups[Named] = {}
    for report in reports:
        groups.setdefault(key(report.name), []).append(report)
    return groups


def _draw_gaps(axes: "Axes", groups: "Groups[MatrixReport]", *, line: str = "-") -> None:
    """The mean error of every group's matrices, without rotation and with it, in dB."""
    for i, type in enumerate(dict.fromkeys(n for g in groups.values() for r in g for n in r.types)):
        places, plain, rotated = _gaps(groups, type)
        color = COLORS[i % len(COLORS)]
        style: dict[str, Any] = {"color": color, "linewidth": 1.2, "markersize": 5}
        hollow: dict[str, Any] = (
            {"marker": "o", "markerfacecolor": "none"} if not line else {"marker": "."}
        )
        filled: dict[str, Any] = {"marker": "o" if not line else "."}
        axes.plot(places, plain, linestyle=line and "--", **style, **hollow)
        axes.plot(places, rotated, linestyle=line, label=type, **style, **filled)


def _gaps(groups: "Groups[MatrixReport]", type: str) -> tuple[list[int], F64, F64]:
    """Places, and the mean errors of the groups' matrices in dB above the limit 4^-bits."""
    found = [
        (place, total.gap_db, total.gap_db_rotated)
        for place, members in groups.items()
        for total in totals(members)
        if total.type == type
    ]
    places, plain, rotated = np.array(found, np.float64).reshape(-1, 3).T
    return places.astype(int).tolist(), plain, rotated


def _name_roles(axes: "Axes", roles: Sequence[str]) -> None:
    axes.set_xticks(range(len(roles)), roles, rotation=40, ha="right", fontsize=8)


def draw_synthetic(rows: Sequence[SyntheticRow], before: I64, after: I64, path: Path) -> None:
    """Histogram of the synthetic weights before and after rotation, and the error by format."""
    with picture(path) as figure:
        left, right = figure.subplots(1, 2)
        _draw_histogram(left, before, after)
        plain = [r for r in rows if not r.rotated]
        rotated = [r for r in rows if r.rotated]
        places = np.arange(len(plain))
        right.bar(places - 0.2, [r.mse for r in plain], 0.4, color=PLAIN, label="as it is")
        right.bar(places + 0.2, [r.mse for r in rotated], 0.4, color=ROTATED, label="rotated")
        right.axhline(rows[0].mse, color=INK, linewidth=0.8, linestyle=":", label="baseline Q4")
        right.set_xticks(places, [r.format for r in plain])
        right.set_yscale("log")
        caption(right, "mean squared error by format", "", "MSE")
        figure.suptitle("Synthetic heavy-tailed weights")


def _draw_histogram(axes: "Axes", before: I64, after: I64) -> None:
    """Densities on a logarithmic scale, where a Gaussian is a parabola."""
    edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, 2 * LIMIT / BINS
    gaussian = np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(middle, gaussian, color=INK, linewidth=0.8, linestyle=":", label="Gaussian")
    for counts, color, label in ((before, PLAIN, "as it is"), (after, ROTATED, "rotated")):
        density = counts / (max(1, counts.sum()) * width)
        axes.stairs(np.where(density > 0, density, np.nan), edges, color=color, label=label)
    reach = max(6.0, np.abs(middle[(before + after) > 0]).max(initial=0) + width)
    axes.set(xlim=(-reach, reach), ylim=(1e-7, None), yscale="log")
    caption(axes, "distribution of the weights", "weight / standard deviation", "density")
