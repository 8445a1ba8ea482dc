"""Figures and tables of the adaptive models show what they are given, and the command names what it does not know."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.kernel_ridge import KernelRidge

from bench import adaptive_network, adaptive_studies
from bench.adaptive import ADAPTIVE, LARGE, PROBLEMS, Result, compete, contestants
from bench.adaptive_studies import BARS, DASHES, DOTS, LINE, Curve, Panel, Study
from bench.cli import main
from datasets import synthetic
from impls import registry
from impls.nn.adaptive.estimator import AdaptiveRegressor
from impls.nn.adaptive.watermark import Claim
from reports import adaptive_tables
from reports.adaptive_folder import STUDIES
from reports.adaptive_plots import figure
from reports.formats import markdown_table


def test_a_figure_has_every_curve_on_its_axes():
    x = np.arange(1.0, 5)
    curves = (Curve("a", x, x), Curve("b", x, 2 * x, DASHES), Curve("c", x, 3 * x, DOTS), Curve("d", x, x, BARS, x / 9))
    study = Study("s", "title", (Panel("one", "x", "y", curves, log_y=True), Panel("two", "x", "y", curves[:1])), ())
    one, two = figure(study).axes
    assert [text.get_text() for text in one.get_legend().get_texts()] == ["a", "b", "c", "d"]
    assert one.get_yscale() == "log"
    assert two.get_legend() is None
    np.testing.assert_array_equal(one.lines[1].get_ydata(), 2 * x)
    assert curves[0].look == LINE


def result(problem, contestant, error):
    """A line of the contest."""
    return Result(problem, contestant, error, 0.01, 10, None, 0.5)


def test_the_contest_says_where_the_adaptive_model_loses():
    results = [
        result("p", ADAPTIVE, 0.1),
        result("p", "keras", 0.2),
        result("q", ADAPTIVE, 0.4),
        result("q", "random forest", 0.2),
    ]
    text = markdown_table(adaptive_tables.contest(results))
    assert "loses on 1 of 2 problems: q (to random forest, 2.00 times its error)" in text
    assert "**random forest**" in text
    assert "**adaptive**" in text.split("**q, noise")[0]


@pytest.mark.parametrize(("least", "features"), [(9, 1), (10, 1), (36, 5)])
def test_the_contest_gives_the_network_at_least_as_many_parameters(monkeypatch, least, features):
    """Ours where Keras cannot compute; not a unit more than that takes."""
    monkeypatch.setattr(type(registry.get("dense", "keras")), "missing", lambda self: "it is not here")
    found = contestants("kernel(3)", least, features, 0)
    units, large = (int(name.split()[2]) for name in found if name.startswith("our network"))
    assert found[f"our network, {units} units"][-1].structure == f"D({units},t)"
    assert large == LARGE > units
    assert (units - 1) * (features + 2) + 1 < least <= units * (features + 2) + 1


def test_every_contestant_gets_its_figures(monkeypatch):
    """Timed by the clock that is given; the network is left out here."""
    monkeypatch.setattr("bench.adaptive.EPOCHS", 2)
    monkeypatch.setattr("bench.adaptive.FOLDS", 2)
    monkeypatch.setattr("bench.adaptive._networks", lambda sizes, seed: {"dummy": KernelRidge()})
    ticks = iter(range(100))
    found = {r.contestant: r for r in compete("bumps in 1 dimension", clock=lambda: float(next(ticks)))}
    assert found[ADAPTIVE].parameters == 3 * 3 + 2
    assert found["MLP"].parameters == 301
    assert found["MLP"].epochs == found[ADAPTIVE].epochs == 2
    assert found["kernel ridge"].epochs is None
    assert found["kernel ridge"].parameters == 280
    assert all(r.seconds == 1 and r.error > r.floor / 2 for r in found.values())
    assert found["random forest"].parameters > 1000


def test_kernel_ridge_finds_the_width_that_a_problem_needs(monkeypatch):
    """A slow wave and a fast one under noise: the same regressor finds either."""
    monkeypatch.setattr("bench.adaptive.FOLDS", 2)
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(size=(200, 1)), 0.2 * rng.standard_normal(200)
    for waves in (0.5, 8):
        truth = np.sin(2 * np.pi * waves * x[:, 0])
        ridge = contestants("kernel(3)", 9, 1, 0)["kernel ridge"].fit(x, truth + noise)
        assert ridge.score(x, truth) > 0.97


def test_every_problem_of_the_contest_can_be_made():
    for make, _ in PROBLEMS.values():
        assert len(make().y) >= 400


def test_false_claims_are_counted_by_verification(monkeypatch):
    """A verifier that takes every key for the owner's claims at any number of matches."""
    monkeypatch.setattr(adaptive_studies, "EPOCHS", 2)
    monkeypatch.setattr(adaptive_studies, "WRONG_KEYS", 20)
    monkeypatch.setattr(AdaptiveRegressor, "verify_watermark", lambda self, key: Claim(24, 24))
    exact, counted = adaptive_studies.ghosts().panels[1].curves
    np.testing.assert_array_equal(counted.y, np.ones(13))
    assert exact.y[-1] == 2.0**-24


def test_random_search_evaluates_its_loss_as_often_as_descent_at_any_temperature(monkeypatch):
    evaluations = []

    def counting(**options):
        loss, number = made(**options), len(evaluations)
        evaluations.append(0)

        def counted(points):
            evaluations[number] += len(points)
            return loss(points)

        return counted

    made = synthetic.brownian
    monkeypatch.setattr(synthetic, "brownian", counting)
    monkeypatch.setattr(adaptive_studies, "ROUGH_LOSSES", 1)
    adaptive_studies.temperature()
    assert len(evaluations) == 4
    assert len(set(evaluations)) == 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_figure_and_findings_of_different_names(monkeypatch, name):
    """In two epochs and over one seed: what a study is made of is there, whatever it finds."""
    for module in (adaptive_network, adaptive_studies):
        monkeypatch.setattr(module, "EPOCHS", 2)
        monkeypatch.setattr(module, "SEEDS", 1)
    monkeypatch.setattr(adaptive_studies, "FEW_SEEDS", 1)
    monkeypatch.setattr(adaptive_studies, "ROUGH_LOSSES", 2)
    study = STUDIES[name]()
    assert study.name == name
    assert len(figure(study).axes) == len(study.panels) > 0
    names = [what for what, _ in study.findings]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("name", ["normalisation"])
def test_the_command_writes_figure_and_table(tmp_path, name):
    run = CliRunner().invoke(main, ["adaptive", "--figure", name, "-o", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.md", f"{name}.png"]
    assert STUDIES[name]().findings[0][0] in (tmp_path / f"{name}.md").read_text("utf-8")


def test_an_unknown_figure_is_named_with_the_known_ones(tmp_path):
    run = CliRunner().invoke(main, ["adaptive", "--figure", "what", "-o", str(tmp_path / "new")])
    assert run.exit_code == 2
    assert "what" in run.output
    assert "contest" in run.output
    assert not (tmp_path / "new").exists()
