"""What each feature of the adaptive models does: studies on problems with known truth, as curves and findings.

A study gives what a figure is drawn from, and sentences with the figures that were found. Seeds are fixed: all but the
seconds come out the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import CLOCK, Clock, loops_for, sample
from datasets import synthetic
from impls.nn.adaptive.descent import Descent, Function, Rates, entropy, minimise
from impls.nn.adaptive.errors import error_of
from impls.nn.adaptive.estimator import AdaptiveRegressor
from impls.nn.adaptive.fitting import Fitted, Plan, fit
from impls.nn.adaptive.model import Fit, Model
from impls.nn.adaptive.scales import MAPS, Axis, Scales
from impls.nn.adaptive.tables import DIRECT, STEP, tabled
from impls.nn.adaptive.watermark import fewest_matches, tail

Array = npt.NDArray[Any]

SEEDS, FEW_SEEDS, ROUGH_LOSSES, ROUGH_PARTICLES = 8, 6, 40, 2
EPOCHS = 200
ROUNDS = 9
NOISE = 0.02
WRONG_KEYS, OFTEN = 5000, 0.05
"""Keys that did not mark a model, and a rate of false claims at which they can be counted."""
DIFFERENCE = Rates().difference
"""How far a parameter is moved for a difference quotient."""
LINE, DOTS, DASHES, BARS = "line", "dots", "dashes", "bars"
"""How a curve looks; bars are dots with their errors."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x, y) under a label; ``errors``: of y, for bars."""

    label: str
    x: Array
    y: Array
    look: str = LINE
    errors: Array | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves on one pair of axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A feature's figure, and what was found: lines of what, and how much."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    findings: tuple[tuple[str, str], ...]


def normalisation() -> Study:
    """Parameters between 0 and 1: one rate for axes whose natural units differ by a factor of 10^5."""
    target, sizes = np.array([0.003, 700.0]), np.array([0.01, 1000.0])

    def loss(natural: Array) -> Array:
        return np.asarray(np.square((natural - target) / sizes).sum(axis=1))

    def errors(scale: Array) -> Array:
        rates = Rates(rate=0.3, by_axis=False, normalised=False)
        start = np.full((1, 2), 0.5) * sizes / scale
        problem = Function(lambda points: loss(points * scale))
        return minimise(problem, start, rates, 60, np.random.default_rng(0)).values

    ours = errors(sizes)
    theirs = _natural_descent(loss, target, sizes, 60)
    epochs = np.arange(1, 61)
    curves = (Curve("between 0 and 1", epochs, ours), Curve("in natural units", epochs, theirs, DASHES))
    return Study(
        "normalisation",
        "Parameters between 0 and 1",
        (Panel("loss of two parameters, of 0.01 and of 1000", "epoch", "loss", curves, log_y=True),),
        (("loss after 60 epochs, between 0 and 1", f"{ours[-1]:.2g}"), ("in natural units", f"{theirs[-1]:.2g}")),
    )


def _natural_descent(loss: Callable[[Array], Array], target: Array, sizes: Array, epochs: int) -> Array:
    """Gradient descent in natural units, at the largest rate at which the small axis does not diverge."""
    point, values = sizes / 2, []
    for _ in range(epochs):
        slope = 2 * (point - target) / sizes**2
        point = point - 0.3 * sizes.min() ** 2 * slope
        values.append(float(loss(point[None])[0]))
    return np.array(values)


def reparameterisation() -> Study:
    """theta = t^2 and 1 / (1 - t) beside the straight line, for the widths of narrow kernels."""
    t = np.linspace(0, 1, 200)
    maps = tuple(Curve(name, t, Scales([Axis("width", 0.01, 10, name)]).natural(t[:, None])[:, 0]) for name in MAPS)
    x = np.sort(np.random.default_rng(3).uniform(size=(150, 1)), axis=0)
    clean = np.exp(-np.square((x[:, 0] - 0.4) / 0.05) / 2)
    problem = synthetic.Problem(x, clean + 0.02 * np.random.default_rng(1).standard_normal(150), clean)
    plan = Plan(epochs=EPOCHS, particles=8, rates=Rates(by_axis=False, decay=0.98))
    found = {name: _errors(problem, "kernel(1)", plan, name) for name in MAPS}
    return Study(
        "reparameterisation",
        "What [0, 1] stands for",
        (
            Panel("a width, by its parameter", "parameter", "width", maps, log_y=True),
            _by_epoch("a kernel of width 0.05, one rate for all axes", found),
        ),
        _final(found),
    )


def ghosts() -> Study:
    """Redundant parameters: the response is found, they are not; and a watermark in them."""
    problem = synthetic.bumps()
    fits = [
        AdaptiveRegressor("kernel(3)", epochs=2 * EPOCHS, ghosts=True, amplitude=8, particles=32, random_state=seed)
        for seed in (1, 2)
    ]
    first, second = (each.fit(problem.x, problem.y) for each in fits)
    apart = np.abs(first.predict(problem.x) - second.predict(problem.x)).max() / problem.y.std()
    values = [[p.value for p in each.parameters() if p.name == "ghost"] for each in (first, second)]
    before = first.predict(problem.x)
    change = np.abs(first.embed_watermark(b"owner").predict(problem.x) - before).max() / problem.y.std()
    claim, other = first.verify_watermark(b"owner"), first.verify_watermark(b"somebody else")
    bits, few = claim.bits, fewest_matches(claim.bits, OFTEN)
    matches = np.array([first.verify_watermark(f"wrong key {k}".encode()).matches for k in range(WRONG_KEYS)])
    counts = np.arange(bits // 2, bits + 1)
    exact = np.array([tail(bits, int(k)) for k in counts])
    claimed = np.array([(matches >= k).mean() for k in counts])
    seen = claimed > 0
    pairs = np.arange(1, 4)
    return Study(
        "ghosts",
        "Ghost parameters and their watermark",
        (
            Panel(
                "ghosts of two fits that agree",
                "function",
                "ghost",
                (
                    Curve("first fit", pairs, np.array(values[0]), DOTS),
                    Curve("second", pairs, np.array(values[1]), DOTS),
                ),
            ),
            Panel(
                f"claims by a wrong key, {bits} bits",
                "bits that match, at least",
                "rate of claims",
                (
                    Curve("binomial tail", counts, exact),
                    Curve(f"{WRONG_KEYS} keys, verified", counts[seen], claimed[seen], DOTS),
                ),
                log_y=True,
            ),
        ),
        (
            ("two fits: responses apart, of y's deviation", f"{apart:.1g}"),
            ("change of the response by the watermark, of y's deviation", f"{change:.1g}"),
            (f"bits of {bits} that match: owner, another", f"{claim.matches}, {other.matches}"),
            (
                "rate of false claims: owner's, another's match",
                f"{claim.false_claim_rate:.1g}, {other.false_claim_rate:.2g}",
            ),
            ("matches asked for", f"{fewest_matches(bits)} of {bits}"),
            (
                f"of {WRONG_KEYS} wrong keys, {few} matches or more: verified, by the binomial",
                f"{(matches >= few).sum()}, {WRONG_KEYS * tail(bits, few):.0f}",
            ),
        ),
    )


def flattening() -> Study:
    """All layers at once against layers in turns."""
    problem = synthetic.bumps(count=3, seed=4)
    layers = "kernel(1);kernel(1);kernel(1)"
    plans = {"all at once": Plan(epochs=EPOCHS), "in turns": Plan(epochs=EPOCHS, flat=False)}
    found = {name: _errors(problem, layers, plan) for name, plan in plans.items()}
    return Study(
        "flattening", "Flattening, or sub-layers", (_by_epoch("three layers of one kernel", found),), _final(found)
    )


def swarm() -> Study:
    """Particles, neighbours, and the rates."""
    problem = synthetic.bumps(count=4, seed=5)
    particles = {f"particles: {n}": _errors(problem, "kernel(4)", Plan(epochs=EPOCHS, particles=n)) for n in (1, 4, 16)}
    rates = {
        "by axis": Rates(),
        "one, falling": Rates(by_axis=False, decay=0.985),
        "one, constant": Rates(by_axis=False),
        "not normalised": Rates(by_axis=False, normalised=False),
    }
    found = {name: _errors(problem, "kernel(4)", Plan(epochs=EPOCHS, rates=own)) for name, own in rates.items()}
    drawn = {
        f"drawn to a neighbour: {chance:g}": _errors(
            problem, "kernel(4)", Plan(epochs=EPOCHS, particles=16, rates=Rates(neighbour=chance))
        )
        for chance in (0.0, 0.02, 0.2)
    }
    return Study(
        "swarm",
        "Swarms and their rates",
        (_by_epoch("particles", particles), _by_epoch("rates, 4 particles", found), _by_epoch("16 particles", drawn)),
        _final(particles) + _final(found) + _final(drawn),
    )


def temperature() -> Study:
    """Chaotic descent of a nowhere differentiable loss, and its entropy."""
    temperatures, epochs = (0.0, 1.0, 10.0), 300
    values, shares = {}, {}
    for own in temperatures:
        rates = Rates(rate=0.02, difference=0.02, by_axis=False, temperature=own, cooling=0.97)
        runs = [_rough(seed, rates, epochs) for seed in range(ROUGH_LOSSES)]
        values[own] = np.median([run.values for run in runs], axis=0)
        shares[own] = np.mean([run.uphill for run in runs], axis=0)
    guesses = np.median([_random_search(seed, epochs) for seed in range(ROUGH_LOSSES)], axis=0)
    turns = np.arange(1, epochs + 1)
    window = np.ones(15) / 15
    smooth = {own: np.convolve(share, window, "valid") for own, share in shares.items()}
    return Study(
        "temperature",
        "Decaying entropy",
        (
            Panel(
                f"median over {ROUGH_LOSSES} Brownian losses",
                "epoch",
                "best loss so far",
                (
                    *(Curve(f"temperature {own:g}", turns, value) for own, value in values.items()),
                    Curve("random search", turns, guesses, DASHES),
                ),
            ),
            Panel(
                "entropy of up or down, 15 epochs",
                "epoch",
                "bits",
                tuple(Curve(f"temperature {own:g}", turns[7:-7], entropy(share)) for own, share in smooth.items()),
            ),
        ),
        (
            *((f"best loss, temperature {own:g}", f"{value[-1]:.3f}") for own, value in values.items()),
            ("best loss, random search with as many evaluations", f"{guesses[-1]:.3f}"),
        ),
    )


def _rough(seed: int, rates: Rates, epochs: int) -> Descent:
    start = np.random.default_rng(seed).uniform(size=(ROUGH_PARTICLES, 2))
    return minimise(Function(_rough_loss(seed)), start, rates, epochs, np.random.default_rng(seed))


def _random_search(seed: int, epochs: int) -> Array:
    """The best loss so far (epochs,) of random points, as many an epoch as descent evaluates."""
    # A particle's epoch: where it is, a difference along either axis, and where its step leads.
    points = np.random.default_rng(seed).uniform(size=(epochs, 4 * ROUGH_PARTICLES, 2))
    losses = _rough_loss(seed)(points.reshape(-1, 2)).reshape(epochs, -1)
    return np.minimum.accumulate(losses.min(axis=1))


def _rough_loss(seed: int) -> Callable[[Array], Array]:
    return synthetic.brownian(seed=seed, depth=12)


def adaptive_loss() -> Study:
    """A sequence of losses that ends at the metric against the metric alone."""
    problem = synthetic.bumps(count=3, seed=0)
    panels: list[Panel] = []
    findings: list[tuple[str, str]] = []
    for metric, error in (("mae", "mean absolute error"), ("max", "largest error")):
        plans = {f"{metric} alone": (metric,), f"rmse, then {metric}": ("rmse", metric)}
        found = {
            name: _errors(problem, "kernel(3)", Plan(epochs=EPOCHS, losses=own), seeds=FEW_SEEDS)
            for name, own in plans.items()
        }
        panels.append(_by_epoch(f"judged by {metric}", found, error))
        findings += _final(found, error)
    return Study("adaptive-loss", "Adaptive loss", tuple(panels), tuple(findings))


def equalisation() -> Study:
    """The linear part is taken out of the fit: a response with an offset and another unit."""
    problem = synthetic.bumps(n=120, count=2, seed=8, signed=False)
    lifted = synthetic.Problem(problem.x, 1000 + 50 * problem.y, 1000 + 50 * problem.clean)
    found = {
        name: _errors(lifted, "kernel(2)", Plan(epochs=EPOCHS, particles=8, equalise=own), seeds=FEW_SEEDS)
        for name, own in (("equalised", True), ("fixed response", False))
    }
    smallest = ((f"smallest error, {name}", f"{errors[:, -1].min():.3f}") for name, errors in found.items())
    fitted = _fit(lifted, "kernel(2)", Plan(epochs=EPOCHS, particles=8), seed=0)
    maps = [epoch.response.inverse() for epoch in fitted.epochs]
    turns = np.arange(1, len(maps) + 1)
    locations = np.array([each.location for each in maps])
    return Study(
        "equalisation",
        "Equalisation",
        (
            _by_epoch("y = 1000 + 50 f, two kernels", found),
            Panel("what the model's 0 stands for", "epoch", "y", (Curve("location", turns, locations),)),
        ),
        (*_final(found), *smallest, ("location at the end (true: 1000)", f"{locations[-1]:.2f}")),
    )


def tables(clock: Clock = CLOCK) -> Study:
    """Functions from tables: accuracy by step, and the speed beside direct evaluation."""
    t = np.random.default_rng(0).uniform(0, 20, 20_000)
    steps = np.array([1e-1, 1e-2, 1e-3, STEP])
    names = DIRECT._fields
    errors = {
        name: np.array([np.abs(getattr(tabled(step), name)(t) - getattr(DIRECT, name)(t)).max() for step in steps])
        for name in names
    }
    bound = steps**2 / 8 * (2 * np.pi) ** 2
    findings = [(f"error of {name} at {STEP:g}", f"{error[-1]:.1e}") for name, error in errors.items()]
    for name in names:
        direct, table = _seconds([getattr(kind, name) for kind in (DIRECT, tabled())], t, clock)
        findings.append(
            (f"{name}: direct, table, ns a value", f"{direct / len(t) * 1e9:.1f}, {table / len(t) * 1e9:.1f}")
        )
    findings += _gradients(clock)
    curves = tuple(Curve(name, steps, error, DOTS) for name, error in errors.items())
    curves += (Curve("bound for wave", steps, bound, DASHES),)
    panel = Panel("linear interpolation", "step", "largest error", curves, log_x=True, log_y=True)
    return Study("tables", "Function tables", (panel,), tuple(findings))


def _gradients(clock: Clock) -> list[tuple[str, str]]:
    """Difference quotients of a model's loss: direct, from tables, and with the whole model for every parameter."""
    problem = synthetic.bumps()
    made = {name: Model("kernel(32)", np.zeros(1), np.ones(1), tables=name == "table") for name in ("direct", "table")}
    direct, table = (Fit(model, model.layers, problem.x, problem.y[None], error_of("rmse")) for model in made.values())
    whole = Function(direct.values)
    point = made["direct"].first_point(problem.x, problem.y, np.random.default_rng(0))[None]
    exact, read, same = (each.slopes(point, DIFFERENCE)[1] for each in (direct, table, whole))
    largest = np.abs(exact).max()
    times = _seconds([partial(each.slopes, step=DIFFERENCE) for each in (direct, table, whole)], point, clock)
    return [
        (
            "gradient of kernel(32): tables from direct, of its largest slope",
            f"{np.abs(read - exact).max() / largest:.1e}",
        ),
        ("the whole model for every parameter from direct", f"{np.abs(same - exact).max() / largest:.1e}"),
        ("direct, tables, whole model, ms", ", ".join(f"{seconds * 1e3:.2f}" for seconds in times)),
    ]


def _seconds(functions: Sequence[Callable[[Array], Any]], t: Array, clock: Clock) -> list[float]:
    """Of each function's calls the fastest of ROUNDS samples, taken in turns: other work is not in it."""
    calls = [[partial(function, t)] for function in functions]
    loops = [loops_for(sample(call, _done, 1, clock=clock).host) for call in calls]
    rounds = [
        [sample(call, _done, n, clock=clock).host for call, n in zip(calls, loops, strict=True)] for _ in range(ROUNDS)
    ]
    return [min(samples) for samples in zip(*rounds, strict=True)]


def _done() -> None:
    """There is nothing to wait for: calls return when they are done."""


def confidence() -> Study:
    """Recovered centres against true ones, with their errors, and how often the truth lies within."""
    true, values, errors, reached = [], [], [], []
    for seed in range(FEW_SEEDS):
        problem = synthetic.bumps(count=3, noise=NOISE, seed=seed)
        found = AdaptiveRegressor("kernel(3)", particles=24, epochs=EPOCHS, random_state=seed).fit(problem.x, problem.y)
        left = float(np.sqrt(np.square(found.predict(problem.x) - problem.y).mean()))
        centres = [p for p in found.parameters() if p.name.startswith("centre")]
        for centre in problem.truth["centres"][:, 0]:
            nearest = centres[int(np.abs([p.value - centre for p in centres]).argmin())]
            true.append(centre)
            values.append(nearest.value)
            errors.append(nearest.error)
            reached.append(left < 1.2 * NOISE)
    truth, value, error = np.array(true), np.array(values), np.array(errors)
    fits = np.array(reached)
    inside = np.abs(value - truth) <= 1.96 * error
    diagonal = np.array([0.0, 1.0])
    residuals = (value - truth) / error
    order = np.sort(np.abs(residuals))
    share = np.arange(1, len(order) + 1) / len(order)
    return Study(
        "confidence",
        "Parameters with errors",
        (
            Panel(
                f"centres of {FEW_SEEDS} problems",
                "true centre",
                "found",
                (Curve("exact", diagonal, diagonal, DASHES), Curve("found, 95 %", truth, value, BARS, 1.96 * error)),
            ),
            Panel(
                "distance from the truth",
                "standard errors",
                "share of centres within",
                (Curve("found", order, share), Curve("1.96", np.array([1.96, 1.96]), diagonal, DASHES)),
                log_x=True,
            ),
        ),
        (
            ("centres whose 95 % interval holds the truth", f"{inside.sum()} of {len(inside)}"),
            ("of these, in fits that came down to the noise", f"{(inside & fits).sum()} of {fits.sum()}"),
            ("median distance from the truth", f"{np.median(np.abs(value - truth)):.2g}"),
        ),
    )


def meaning() -> Study:
    """The terms of a Dirichlet polynomial, recovered as numbers."""
    problem = synthetic.dirichlet(terms=3)
    true = problem.truth["terms"]
    found = AdaptiveRegressor(f"zeta({len(true)})", particles=32, epochs=EPOCHS, random_state=0).fit(
        problem.x, problem.y
    )
    terms = sorted((p for p in found.parameters() if p.name == "n"), key=lambda p: p.value)
    order = np.arange(1, len(true) + 1)
    values, errors = (np.array([getattr(p, what) for p in terms]) for what in ("value", "error"))
    grid = np.linspace(0, 40, 500)
    return Study(
        "meaning",
        "What parameters mean",
        (
            Panel(
                "sum of k^-(1/2 + it)",
                "t",
                "y",
                (
                    Curve("samples", problem.x[:, 0], problem.y, DOTS),
                    Curve("model", grid, found.predict(grid[:, None])),
                ),
            ),
            Panel(
                "terms",
                "in order",
                "n",
                (Curve("true", order, true, DASHES), Curve("found, 95 %", order, values, BARS, 1.96 * errors)),
            ),
        ),
        tuple((f"term {k:.0f}", f"{p.value:.4f} ± {1.96 * p.error:.4f}") for k, p in zip(true, terms, strict=True)),
    )


def problems() -> Study:
    """The synthetic problems of one variable and what is fitted to them; of the others the errors."""
    panels, findings = [], []
    drawn = {
        "orbit": (synthetic.orbit(), "skewed(8)"),
        "zeta(1/2 + it)": (synthetic.zeta_line(), "zeta(16)"),
        "singularities": (synthetic.singular(), "kernel(10)"),
    }
    for name, (problem, layers) in drawn.items():
        fitted = AdaptiveRegressor(layers, epochs=EPOCHS, random_state=0).fit(problem.x, problem.y)
        grid = np.linspace(problem.x.min(), problem.x.max(), 600)
        curves = (
            Curve("samples", problem.x[:, 0], problem.y, DOTS),
            Curve(layers, grid, fitted.predict(grid[:, None])),
        )
        panels.append(Panel(name, "x", "y", curves))
        findings.append((f"{name}, {layers}", _score(fitted, problem)))
    others = {
        "clusters": (synthetic.clusters(), "mixture(3)"),
        "rare events": (synthetic.rare(n=1500), "kernel(4)"),
        "10 dimensions": (synthetic.bumps(n=600, d=10), "kernel(4)"),
    }
    for name, (problem, layers) in others.items():
        fitted = AdaptiveRegressor(layers, epochs=EPOCHS, random_state=0).fit(problem.x, problem.y)
        findings.append((f"{name}, {layers}", _score(fitted, problem)))
    return Study("problems", "Synthetic problems", tuple(panels), tuple(findings))


def _score(fitted: AdaptiveRegressor, problem: synthetic.Problem) -> str:
    """The error at the samples against the response without noise, in its deviations."""
    error = np.sqrt(np.square(fitted.predict(problem.x) - problem.clean).mean()) / problem.clean.std()
    return f"{error:.3f} of the deviation, {len(fitted.parameters())} parameters"


def _fit(problem: synthetic.Problem, text: str, plan: Plan, seed: int, widths: str = "reciprocal") -> Fitted:
    model = Model(text, problem.x.min(axis=0), problem.x.max(axis=0), widths=widths)
    return fit(model, problem.x, problem.y, plan, np.random.default_rng(seed))


def _errors(problem: synthetic.Problem, text: str, plan: Plan, widths: str = "reciprocal", seeds: int = SEEDS) -> Array:
    """The best metric so far, (seeds, epochs)."""
    runs = [_fit(problem, text, plan, seed, widths) for seed in range(seeds)]
    return np.minimum.accumulate([[epoch.metric for epoch in run.epochs] for run in runs], axis=1)


def _by_epoch(title: str, found: Mapping[str, Array], error: str = "error") -> Panel:
    seeds = len(next(iter(found.values())))
    curves = tuple(
        Curve(name, np.arange(1, errors.shape[1] + 1), np.median(errors, axis=0)) for name, errors in found.items()
    )
    return Panel(title, "epoch", f"{error} / deviation, median of {seeds}", curves, log_y=True)


def _final(found: Mapping[str, Array], error: str = "error") -> tuple[tuple[str, str], ...]:
    """Of every run the error at its end: the median and the quartiles over the seeds."""
    lines = []
    for name, errors in found.items():
        low, middle, high = np.quantile(errors[:, -1], (0.25, 0.5, 0.75))
        lines.append((f"{error}, {name}", f"{middle:.3f} [{low:.3f}, {high:.3f}]"))
    return tuple(lines)


STUDIES: Mapping[str, Callable[[], Study]] = MappingProxyType(
    {
        "normalisation": normalisation,
        "reparameterisation": reparameterisation,
        "ghosts": ghosts,
        "flattening": flattening,
        "swarm": swarm,
        "temperature": temperature,
        "adaptive-loss": adaptive_loss,
        "equalisation": equalisation,
        "tables": tables,
        "confidence": confidence,
        "meaning": meaning,
        "problems": problems,
    }
)
