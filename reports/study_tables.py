"""Tables of the studies: an arm a line, judged by the validation part; and what signals do before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from bench.signals import Signals, Stack
from bench.studies import Outcome, best_rate
from reports.formats import MISSING, Line, Report, Section, Table, number

_HEADINGS = (
    *("arm", "epochs", "best epoch", "lowest val. loss", "val. loss", "val. accuracy"),
    *("training loss", "largest norm", "note"),
)
_NOTES = (
    "val. loss, val. accuracy: of the weights that are left, with a patience those of the best epoch",
    "best epoch: of the lowest validation loss. steepest: the learning rate where the training loss falls fastest",
    "training loss: of the last epoch, while the weights moved. largest norm: of a step's gradient, before clipping",
)


def report(question: str, heading: Sequence[tuple[str, str]], outcomes: Sequence[Outcome]) -> Report:
    """A study's table, and every epoch as a frame."""
    groups: dict[str, list[Line]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm.group, []).append(Line(_cells(outcome)))
    sections = tuple(Section(group, tuple(lines)) for group, lines in groups.items())
    frame = pd.DataFrame([record for outcome in outcomes for record in _records(outcome)])
    table = Table(question, _HEADINGS, sections, frame, left=("arm", "note"), notes=_NOTES)
    return Report(tuple(heading), (table,), frame)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    losses = [record["val_loss"] for record in outcome.history]
    last = outcome.history[-1]["loss"] if outcome.history else None
    return (
        outcome.arm.label,
        str(len(outcome.history)),
        str(outcome.best_epoch) if losses else MISSING,
        number(min(losses, default=None)),
        number(outcome.kept["loss"]),
        f"{outcome.kept['accuracy']:.2%}",
        number(last),
        number(max(outcome.norms, default=None)),
        _note(outcome),
    )


def _note(outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.failure.partition(";")[0]
    if outcome.arm.is_range_test and len(outcome.history) > 1:
        return f"steepest at {number(best_rate(outcome))}"
    if outcome.arm.settings.early_stopping and len(outcome.history) < outcome.arm.settings.epochs:
        return "stopped early"
    return ""


def _records(outcome: Outcome) -> Iterable[dict[str, object]]:
    """Every epoch; norms and rates are those of its last step."""
    for epoch, (record, end) in enumerate(zip(outcome.history, outcome.ends, strict=True), start=1):
        yield {
            "group": outcome.arm.group,
            "arm": outcome.arm.label,
            "epoch": epoch,
            **record,
            "learning_rate": outcome.rates[end - 1],
            "gradient_norm": outcome.norms[end - 1],
            "clipped_norm": outcome.clipped[end - 1],
        }


def signals_report(heading: Sequence[tuple[str, str]], probed: Sequence[Signals], stacks: Sequence[Stack]) -> Report:
    """Variances in the first and the last hidden layer, and the three stacks of products."""
    frame = pd.DataFrame(
        {
            "activation": each.activation,
            "initializer": each.initializer,
            "layer": layer,
            "output_variance": each.outputs[layer - 1],
            "gradient_variance": each.gradients[layer - 1],
        }
        for each in probed
        for layer in range(1, len(each.outputs) + 1)
    )
    sections: dict[str, list[Line]] = {}
    for each in probed:
        ends = (each.outputs[0], each.outputs[-1], each.gradients[0], each.gradients[-1])
        sections.setdefault(each.activation, []).append(Line((each.initializer, *map(_power, ends))))
    variances = Table(
        f"Variances before the first step, in {len(probed[0].outputs)} hidden layers",
        ("weights", "output, first", "output, last", "gradient, first", "gradient, last"),
        tuple(Section(activation, tuple(lines)) for activation, lines in sections.items()),
        frame,
        left=("weights",),
    )
    lines = tuple(
        Line(
            (
                each.label,
                number(each.stddev),
                _power(each.deviations[9] if len(each.deviations) > 9 else each.deviations[-1]),
                _power(each.deviations[-1]),
                *(MISSING if at is None else str(at) for at in (each.not_finite, each.not_a_number, each.vanished)),
            )
        )
        for each in stacks
    )
    headings = (
        "weights",
        "deviation",
        "values, after 10",
        "values, at the end",
        "infinite after",
        "NaN after",
        "0 after",
    )
    products = Table(
        f"{len(stacks[0].deviations)} products with 512 x 512 matrices in float32, on standard normal vectors",
        headings,
        (Section("", lines),),
        pd.DataFrame([each.deviations for each in stacks], index=[each.label for each in stacks]).T,
        left=("weights",),
        notes=("values: their standard deviation. after: the first product after which that is so",),
    )
    return Report(tuple(heading), (variances, products), frame)


def _power(value: float) -> str:
    """Three significant digits, with an exponent where the number is far from 1."""
    return f"{value:.3g}"
