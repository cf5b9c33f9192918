"""Pictures: their names and numbers, and that they can be read on white and on dark."""

import re

import pytest

from tests.cli.story import succeeds
from tqgguf.cli.error_plots import _by_layer, _by_role, _means
from tqgguf.cli.front import draw_front, is_ours
from tqgguf.measure.compare import compare
from tqgguf.measure.eval import QualityRow
from tqgguf.models import open_model

WHITE, DARK = "#ffffff", "#0d1117"


def luminance(color):
    """Relative luminance as WCAG defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def check_readable(svg):
    """Every colour stands out from both backgrounds, and nothing is left to be black."""
    colors = set(re.findall(r"#[0-9a-f]{6}", svg))
    assert len(colors) > 1
    for color in colors:
        assert min(contrast(color, WHITE), contrast(color, DARK)) > 3.3, color
    letters = re.findall(r"<text [^>]*>", svg)
    assert letters
    assert all("fill: #" in letter for letter in letters)


def test_several_files_by_layer_and_role(stories, tmp_path):
    files = [tmp_path / f"{type}.gguf" for type in ("q8_0", "q4_0")]
    for file in files:
        succeeds("quantize", stories, "-t", file.stem, "-o", file, "--effort", "fast", "-q")
    plot = tmp_path / "c.svg"
    succeeds("compare", stories, *files, "--plot", plot, "--json")
    svg = plot.read_text()
    check_readable(svg)
    assert all(f">{name}<" in svg for name in ("q8_0", "q4_0", "attn_q", "ffn_down", "layer"))
    report = compare(open_model(stories), open_model(files[1]))
    inexact = [t for t in report.tensors if t.rel_mse_seen]
    layers, roles = _means(_by_layer(inexact)), _means(_by_role(inexact))
    assert list(layers) == [0, 1, 2, 3, 4]
    assert 0.003 < min(layers.values()) <= max(roles.values()) < 0.03
    assert is_ours(str(files[0]))
    assert not is_ours(str(stories))


def test_weights_by_layer_and_role(stories, tmp_path):
    plot = tmp_path / "w.svg"
    rest = ("--types", "q8_0,q4_0", "--effort", "fast", "--json")
    succeeds("report", "mse", stories, *rest, "--plot", plot)
    svg = plot.read_text()
    check_readable(svg)
    assert all(f">{name}<" in svg for name in ("Q8_0", "Q4_0", "attn_output", "layer"))


@pytest.mark.parametrize("speed", [None, 20.0])
def test_names_in_a_front_cover_no_point_and_no_name(tmp_path, speed):
    places = [(5.0, 0.02), (5.02, 0.021), (5.3, 0.02), (5.32, 0.019), (8.0, 0.001)]
    rows = [
        QualityRow(f"{'TQ-' * (i % 2)}{i}-and-a-long-name", 1, bpw, 9, kld, 1, 1, 90, speed, speed)
        for i, (bpw, kld) in enumerate(places)
    ]
    path = tmp_path / "f.svg"
    draw_front(rows, path)
    svg = path.read_text()
    check_readable(svg)
    assert svg.count("-and-a-long-name<") == len(rows) * (2 if speed else 1)
    found = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>[^<]*-and-a-long-name<', svg)
    assert len({y for _, y in found}) >= len(rows) - 1
