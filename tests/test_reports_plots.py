"""Figures: the right panels, every implementation in the legend, a readable file."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from bench.results import Row, Run
from impls.specs import ConvSpec, DenseSpec
from reports import plots

RUN = Run("c", "paper", seed=0, threads=2, started="2025-01-02", machine={"id": "box", "commit": "abc"}, id=1)
SIDES = (2, 4, 8)


def row(name, op, spec, seconds, status="OK"):
    """A row with five equal rounds."""
    return Row(
        op=op,
        direction="forward",
        spec=str(spec),
        implementation=name,
        device="cpu",
        competitor=name == "keras",
        algorithm="gemm",
        arithmetic="float32",
        status=status,
        samples_s=(seconds,) * 5,
        median_s=seconds,
        low_s=0.9 * seconds,
        high_s=1.2 * seconds,
    )


GRID = [ConvSpec(32, side, side, 16, f, (k, k)) for k, f, side in product((3, 5), (16, 32, 64), SIDES)]
ROWS = [
    row(name, "conv2d", spec, 1e-9 * spec.flops * factor)
    for spec in GRID
    for name, factor in (("cv2", 3.0), ("numpy_gemm", 1.0), ("keras", 1.5))
]
DENSE = [row(name, "dense", DenseSpec(32, 64, units), 1e-3) for units in (10, 20) for name in ("numpy", "keras")]


def labels(figure):
    """The names in the legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_grid_is_drawn_as_a_panel_per_kernel_and_sizes():
    figure = plots.times(RUN, ROWS, "conv2d", "forward")
    assert len(figure.axes) == 2 * 3
    assert [axis.get_title() for axis in figure.axes[:3]] == [f"16 channels, {f} filters" for f in (16, 32, 64)]
    assert labels(figure) == ["cv2", "numpy_gemm", "keras"]


def test_a_curve_shows_the_median_in_milliseconds_against_the_side():
    curve = plots.times(RUN, ROWS, "conv2d", "forward").axes[0].get_lines()[0]
    np.testing.assert_array_equal(curve.get_xdata(), SIDES)
    np.testing.assert_allclose(curve.get_ydata(), [3e-6 * spec.flops for spec in GRID[:3]])


def test_published_times_of_what_is_shown_are_dotted_and_explained():
    figure = plots.times(RUN, ROWS, "conv2d", "forward", with_published=True)
    assert labels(figure)[3:] == ["cv2 *", "numpy_gemm *", "keras *"]
    assert "40 ms" in figure.get_suptitle()


def test_what_is_no_grid_is_drawn_case_by_case():
    figure = plots.times(RUN, DENSE, "dense", "forward")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["32x64,u10", "32x64,u20"]


def test_the_map_of_winners_has_a_cell_per_case_and_counts_wins():
    figure = plots.winners(RUN, ROWS, "conv2d", "forward")
    assert [axis.get_title() for axis in figure.axes] == ["kernel 3x3", "kernel 5x5"]
    assert {text.get_text() for axis in figure.axes for text in axis.texts} == {"1.50"}
    assert sum(len(axis.patches) for axis in figure.axes) == len(GRID)
    assert labels(figure) == [f"numpy_gemm: {len(GRID)} of {len(GRID)}"]


def test_a_tie_is_marked_as_one_and_a_lone_implementation_with_nothing():
    tied = [row(name, "conv2d", spec, 1e-3) for spec in GRID[:3] for name in ("a", "b")]
    alone = [row("a", "conv2d", spec, 1e-3) for spec in GRID[:3]]
    for rows, mark in ((tied, "="), (alone, "")):
        assert {text.get_text() for text in plots.winners(RUN, rows, "conv2d", "forward").axes[0].texts} == {mark}


def test_there_is_a_figure_of_times_for_each_op_and_a_map_where_there_is_a_grid():
    assert list(plots.figures(RUN, ROWS + DENSE)) == [
        "conv2d-forward-times",
        "conv2d-forward-winners",
        "dense-forward-times",
    ]


def test_what_carries_no_time_is_not_drawn():
    wrong = row("scipy", "dense", DenseSpec(32, 64, 10), 1e-3, status="WRONG")
    assert "scipy" not in labels(plots.times(RUN, [*DENSE, wrong], "dense", "forward"))
    with pytest.raises(ValueError, match="nothing was timed"):
        plots.times(RUN, [wrong], "dense", "forward")


def test_a_saved_figure_is_a_small_picture(tmp_path):
    path = tmp_path / "times.png"
    plots.save(plots.times(RUN, DENSE, "dense", "forward"), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 500
    assert path.stat().st_size < 50_000
