"""Figures of trained networks show what they were given, and refuse what has nothing to show."""

from __future__ import annotations

import numpy as np
import pytest

from bench.profile_training import Lap, Profile
from impls.specs import FORWARD, GRAD_WEIGHTS
from reports import training_plots

HISTORY = [{"loss": 4.0, "val_loss": 5.0}, {"loss": 2.0, "val_loss": 3.0}, {"loss": 3.0, "val_loss": 4.0}]
NAMES = ("cat", "dog", "owl")


def texts(figure):
    """Every text inside the panels."""
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def captions(figure):
    """The captions of a gallery, empty places left out."""
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_a_learning_curve_shows_every_repetition_and_their_smoothed_mean():
    """The second repetition ended early: from there on the first one is the mean."""
    repetitions = [[{"loss": v} for v in values] for values in ((4.0, 1.0, 3.0), (2.0, 3.0))]
    first, second, strong = training_plots.learning_curves({"ours": repetitions}).axes[0].lines
    np.testing.assert_array_equal(first.get_ydata(), [4, 1, 3])
    np.testing.assert_array_equal(second.get_ydata(), [2, 3, np.nan])
    np.testing.assert_allclose(strong.get_ydata(), [3, 8 / 3, 3])
    np.testing.assert_array_equal(strong.get_xdata(), [1, 2, 3])


def test_every_contestant_has_a_colour_and_validation_is_dashed():
    figure = training_plots.learning_curves({"ours": [HISTORY], "keras": [HISTORY]})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "keras", "training", "validation"]
    lines = figure.axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--", "--"] * 2
    assert len({line.get_color() for line in lines}) == 2


def test_the_test_data_s_figure_is_a_dot_at_the_mean_of_the_repetitions():
    repetitions = [[{"accuracy": 0.5}, {"accuracy": 0.6, "test_accuracy": value}] for value in (0.25, 0.75)]
    figure = training_plots.learning_curves({"ours": repetitions}, "accuracy")
    dots = figure.axes[0].lines[-1]
    assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
    np.testing.assert_array_equal(dots.get_ydata(), [np.nan, 0.5])


def test_a_metric_that_nobody_recorded_is_refused():
    with pytest.raises(ValueError, match="'accuracy'"):
        training_plots.learning_curves({"ours": [HISTORY]}, "accuracy")


@pytest.mark.parametrize(
    ("window", "expected"),
    [(1, [1, 2, 6, 4, 5]), (3, [1, 3, 4, 5, 5]), (5, [1, 3, 3.6, 5, 5])],
    ids=["one changes nothing", "three", "shorter towards the ends"],
)
def test_smoothing_is_the_mean_around_each_value(window, expected):
    np.testing.assert_allclose(training_plots.smoothed(np.array([1.0, 2, 6, 4, 5]), window), expected)


def test_smoothing_leaves_a_straight_line_alone():
    """Nothing lags, not even at the ends."""
    np.testing.assert_allclose(training_plots.smoothed(np.arange(9.0), 5), np.arange(9.0))


def test_a_confusion_matrix_counts_true_classes_in_lines():
    figure = training_plots.confusion_matrix(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 0]), NAMES, "pets")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[2 / 3, 0, 1 / 3], [0.5, 0.5, 0], [0, 0, 0]])
    assert texts(figure) == ["2", "1", "1", "1"]
    assert figure.get_suptitle() == "pets: 3 of 5 right (60.00%)"


def test_the_heading_of_a_small_confusion_matrix_is_broken():
    figure = training_plots.confusion_matrix(np.array([0, 1]), np.array([0, 1]), NAMES[:2], "pets " * 20)
    lines = figure.get_suptitle().splitlines()
    assert max(map(len, lines)) <= training_plots.HEADING * figure.get_figwidth() / training_plots.WIDTH
    assert len(lines) > 1


def test_the_most_certain_mistakes_come_first():
    images = np.random.default_rng(0).random((4, 5, 5, 3))
    probabilities = np.array([[0.9, 0.1, 0], [0.1, 0.7, 0.2], [0.2, 0, 0.8], [0.3, 0.6, 0.1]])
    figure = training_plots.misclassified(images, np.array([0, 0, 1, 2]), probabilities, NAMES, most=2)
    assert captions(figure) == ["dog > owl\n80%", "cat > dog\n70%"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), training_plots.as_picture(images[2]))
    assert figure.get_suptitle().startswith("3 of 4 misclassified")


def test_long_names_stand_on_two_lines():
    names = ("a cat with a hat", "a dog")
    figure = training_plots.misclassified(
        np.zeros((1, 4, 4, 1)), np.array([0]), np.array([[0.25, 0.75]]), names, "pets"
    )
    assert captions(figure) == ["a cat with a hat >\na dog\n75%"]
    assert figure.get_suptitle().startswith("pets\n1 of 1 misclassified; true")


def test_a_long_structure_is_broken_between_layers():
    structure = "C(3,16,r);" * 20
    figure = training_plots.learning_curves({"ours": [HISTORY]}, title=structure)
    *lines, _ = figure.get_suptitle().splitlines()
    assert max(map(len, lines)) <= training_plots.HEADING
    assert all(line.endswith(";") for line in lines)
    assert "".join(lines).replace(" ", "") == structure


@pytest.mark.parametrize(("last", "digits"), [(0.5, "56789"), (0.001, "25")], ids=["narrow", "decades"])
def test_only_so_many_losses_between_powers_of_ten_are_named_as_there_is_room_for(last, digits):
    axis = training_plots.learning_curves({"ours": [[{"loss": 1.5}, {"loss": last}]]}).axes[0]
    low, high = axis.get_ylim()
    assert {f"{tick:e}"[0] for tick in axis.yaxis.get_minorticklocs() if low < tick < high} == set(digits)


def test_a_network_without_mistakes_has_no_gallery_of_them():
    with pytest.raises(ValueError, match="no image"):
        training_plots.misclassified(np.zeros((3, 4, 4, 1)), np.arange(3), np.eye(3), NAMES)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, ["0", "1"]), (2, ["0, channel 0", "0, channel 1", "1, channel 0", "1, channel 1"]), (3, ["0", "1"])],
    ids=["grey", "channel by channel", "in colour"],
)
def test_filters_are_shown_one_by_one(channels, expected):
    kernel = np.random.default_rng(0).standard_normal((3, 5, channels, 2))
    figure = training_plots.filters(kernel)
    assert captions(figure) == expected
    shown = np.asarray(figure.axes[-1 if channels < 3 else 1].images[0].get_array())
    last = kernel[..., -1, 1] if channels < 3 else training_plots.as_picture(kernel[..., 1])
    np.testing.assert_array_equal(shown, last)


def test_an_image_without_contrast_is_a_picture_too():
    np.testing.assert_array_equal(training_plots.as_picture(np.full((2, 2, 1), 7.0)), np.zeros((2, 2)))


def test_a_profile_has_a_bar_for_each_part_and_says_its_share_of_the_step():
    laps = (
        Lap("c0", FORWARD, "numba_jit_gemm", "conv2d:...", 3e-3, 50.0),
        Lap("c0", GRAD_WEIGHTS, "numba_jit_direct", "conv2d:...", 5e-3, 40.0),
        Lap("", "loss", "", "", 1e-3, None),
    )
    figure = training_plots.profile(Profile("C(3,8);", 32, 10, laps, 10e-3, 0.2), "digits")
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([3, 5, 1])
    assert [text.strip() for text in texts(figure)] == [
        "30.0% numba_jit_gemm, 50.0 GFLOP/s",
        "50.0% numba_jit_direct, 40.0 GFLOP/s",
        "10.0% loss",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["c0", training_plots.AROUND]
    assert figure.get_suptitle().startswith("digits: 10.0 ms per step of 32 samples")
