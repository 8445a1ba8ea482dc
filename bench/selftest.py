"""Does the harness find what is there, and nothing else? Pairs whose difference is known, measured as in any run.

Equal pairs are one implementation in two workers; in unequal ones the second makes a share of its calls twice. Every
pair has fresh processes: what a process brings with it, such as where its memory lies, differs between implementations
in a run too, and must not be the same for all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from bench import timing
from bench.measure import PRECISION, Session
from bench.ranking import is_slower
from bench.results import Failure, Interval
from bench.statistics import LEVEL, POWER, detectable, share_interval, speedup
from bench.suites import SUITES
from impls import parse_case
from impls.variants import name_of

PAIRS = 200
"""Equal pairs."""
SHARES = (0.01, 0.02, 0.05, 0.2)
"""Of the calls that are made twice in unequal pairs."""
PAIRS_PER_SHARE = 40
BUDGET_S = SUITES["quick"]().budget_s
"""Seconds of timing for a pair: what a case of the quick suite has."""

PROBLEMS = (
    ("dense:32x256,u64,relu", "forward", "numpy"),
    ("maxpool2d:8x16x16x8,pool2x2", "forward", "numpy"),
    ("conv2d:8x12x12x4,k3x3,f8,relu", "forward", "numpy_gemm"),
    ("conv2d:8x12x12x4,k3x3,f8,relu", "grad_weights", "numpy_gemm"),
)
"""(case, direction, implementation): calls of some 20 us, so that a sample holds hundreds, of which 1 % are several."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One pair: what was injected, and what was found."""

    case: str
    direction: str
    implementation: str
    injected: float
    """The share of the second one's calls that were made twice."""
    ratio: Interval
    """The second one's time over the first's."""
    verdict: int
    """1 if the second was found slower, -1 if faster, 0 if they were not told apart."""
    rounds: int
    stop: str


@dataclass(frozen=True, slots=True)
class Finding:
    """All trials with the same injected slow-down."""

    injected: float
    trials: int
    found: Interval
    """The share in which the second was found slower, or for equal pairs different; with its exact interval."""
    reversed: int
    """Trials in which the second was found faster."""
    measured: float
    """The median of the ratios that were measured, less 1."""
    largest_false: float
    """The largest difference, as a share, among those that were found and are none, or have the wrong sign."""
    rounds: float
    detectable: float
    """The median over the trials of what each could detect, by its own interval."""


def plan(pairs: int = PAIRS, seed: int = 0) -> tuple[tuple[tuple[str, str, str], float], ...]:
    """(problem, injected share) of every trial, shuffled, so that a drift or an early end is shared by all kinds.

    A fifth as many pairs as equal ones have each injected share, at least one.
    """
    each = max(1, round(pairs * PAIRS_PER_SHARE / PAIRS))
    injected = [0.0] * pairs + [share for share in SHARES for _ in range(each)]
    wanted = [(PROBLEMS[i % len(PROBLEMS)], share) for i, share in enumerate(injected)]
    return tuple(wanted[i] for i in np.random.default_rng(seed).permutation(len(wanted)))


def run(
    wanted: Iterable[tuple[tuple[str, str, str], float]],
    threads: int,
    seed: int = 0,
    budget_s: float = BUDGET_S,
    precision: float = PRECISION,
    seconds: float = math.inf,
    clock: timing.Clock = timing.CLOCK,
) -> Iterator[Trial]:
    """Measure pairs until all are done or ``seconds`` are over. Raises Failure where one cannot be timed."""
    end = clock() + seconds
    for number, (problem, share) in enumerate(wanted):
        if clock() >= end:
            break
        yield _trial(problem, share, Session(threads, seed + number, precision), budget_s, number % 2 == 1)


def findings(trials: Sequence[Trial]) -> tuple[Finding, ...]:
    """One for every injected slow-down, the equal pairs first."""
    return tuple(
        _finding(share, [trial for trial in trials if trial.injected == share])
        for share in sorted({trial.injected for trial in trials})
    )


def keeps_its_word(found: Sequence[Finding]) -> bool:
    """Whether equal pairs were told apart no more often than LEVEL, as far as so many pairs can say."""
    return all(finding.found.low <= LEVEL for finding in found if not finding.injected)


def conclusions(found: Sequence[Finding], budget_s: float) -> tuple[str, ...]:
    """What the findings say, in sentences."""
    lines = []
    for finding in found:
        share = f"{_percent(finding.found.median)} [{_percent(finding.found.low)}, {_percent(finding.found.high)}]"
        if finding.injected:
            lines.append(
                f"on this machine a difference of {finding.injected:.0%} is found in {share} of the cases within a "
                f"budget of {budget_s:g} s for the two"
            )
        else:
            kept = "" if finding.found.low <= LEVEL else f", more than the {LEVEL:.0%} that it states"
            largest = f"; the largest such difference was {_percent(finding.largest_false)}"
            lines.append(
                f"what is equal is called different in {share} of the cases{kept}"
                + (largest if finding.found.median else "")
            )
    sure = [finding.injected for finding in found if finding.injected and finding.found.median >= POWER]
    unsure = [finding.injected for finding in found if finding.injected and finding.found.median < POWER]
    if sure:
        lines.append(f"differences of {min(sure):.0%} and more can be relied on to be found ({POWER:.0%} of the cases)")
    if unsure:
        lines.append(
            f"it cannot be relied on for {max(unsure):.0%}: where none is found, there may be one of this size"
        )
    return tuple(lines)


def _trial(problem: tuple[str, str, str], share: float, session: Session, budget_s: float, is_swapped: bool) -> Trial:
    """Measure one pair in workers of its own; ``is_swapped``: the second is started and checked before the first."""
    text, direction, base = problem
    names = name_of(base, "a"), name_of(base, "b", share)
    with session:
        rows = session.run(parse_case(text), direction, names[::-1] if is_swapped else names, budget_s)
    first, second = rows[::-1] if is_swapped else rows
    for row in rows:
        if not row.samples_s:
            raise Failure(row.status, f"{text} {direction} {row.implementation}: {row.reason}")
    samples = first.samples_s, second.samples_s
    return Trial(
        text,
        direction,
        base,
        share,
        ratio=speedup(*samples[::-1]),
        verdict=is_slower(*samples[::-1]) - is_slower(*samples),
        rounds=min(map(len, samples)),
        stop=second.stop,
    )


def _finding(share: float, trials: Sequence[Trial]) -> Finding:
    hits = sum(trial.verdict == 1 or (not share and trial.verdict == -1) for trial in trials)
    false = [trial for trial in trials if trial.verdict == -1 or (not share and trial.verdict)]
    return Finding(
        share,
        len(trials),
        share_interval(hits, len(trials)),
        sum(trial.verdict == -1 for trial in trials),
        median(trial.ratio.median for trial in trials) - 1,
        max((abs(trial.ratio.median - 1) for trial in false), default=0.0),
        median(trial.rounds for trial in trials),
        median(detectable(trial.ratio) for trial in trials),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
