"""The tables of ``layerbench verify``: bounds on designed inputs, layers inside a model, and layers swapped into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from statistics import median

import pandas as pd

from bench.agreement import Agreement
from bench.model_check import LayerRow, SwapRow
from bench.results import Row
from reports.formats import MISSING, Line, Section, Table, number

CHECKED = ("OK", "NOISY")


def bounds_table(rows: Iterable[Row]) -> Table:
    """Per operation, direction and implementation: cases right, and the worst error in units of its bound."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.op, row.direction, row.implementation), []).append(row)
    sections: dict[str, list[Line]] = {}
    records = []
    for (op, direction, name), own in groups.items():
        tried = [row for row in own if row.status not in ("UNAVAILABLE", "UNSUPPORTED")]
        right = sum(row.status in CHECKED for row in tried)
        worst = _largest(row.error_bounds for row in own)
        dense = _largest(row.dense_error for row in own)
        reasons = dict.fromkeys(f"{row.status} {row.reason}" for row in own if row.status not in CHECKED)
        label = name + (" †" if own[0].competitor else "")
        how = f"{own[0].algorithm} {own[0].arithmetic}"
        cells = (label, how, f"{right}/{len(tried)}", number(worst), number(dense), _first(list(reasons)))
        sections.setdefault(f"{op} {direction}", []).append(Line(cells))
        records.append(
            {"op": op, "direction": direction, "implementation": name, "right": right, "cases": len(tried)}
            | {"error_bounds": worst, "dense_error": dense}
        )
    return Table(
        "Against the float64 reference, on designed inputs",
        ("implementation", "declared", "right", "error", "dense", "what is not right, or not done"),
        tuple(Section(title, tuple(lines)) for title, lines in sections.items()),
        pd.DataFrame.from_records(records),
        left=("implementation", "declared", "what is not right, or not done"),
        notes=(
            "error: the largest, in units of its derived bound (above 1 is wrong); 0: exact",
            "dense: the largest on dense random inputs, in units of sqrt(terms) * roundoff * rms, for information",
            "† competitor: errors are reported, not judged",
        ),
    )


def layer_table(rows: Iterable[LayerRow | SwapRow]) -> Table:
    """Every implementation on what Keras had at each layer of a model, per direction."""
    found = [row for row in rows if isinstance(row, LayerRow)]
    sections: dict[str, list[Line]] = {}
    for row in found:
        figures = (row.to_keras, row.to_float64, row.keras_to_float64, row.of_bound, row.of_allowance)
        cells = (row.implementation, row.status, *map(number, figures), row.reason)
        sections.setdefault(f"{row.layer} {row.case} {row.direction}", []).append(Line(cells))
    return Table(
        f"{found[0].model if found else ''}: layer by layer on Keras' own activations and gradients, real images",
        ("implementation", "status", "to Keras", "to float64", "Keras to f64", "of bound", "of allowance", "reason"),
        tuple(Section(title, tuple(lines)) for title, lines in sections.items()),
        _frame(found),
        left=("implementation", "status", "reason"),
        notes=(
            "distances: largest, in units of sqrt(terms) * roundoff * rms of the factors",
            "of bound: largest error over the bound of the declared algorithm and arithmetic; of allowance: distance "
            "to float64 over 4 times Keras' own plus max(8, sqrt(k)) units in the last place (and what TF32 cuts off); "
            "above 1 is wrong",
        ),
    )


def swap_table(rows: Iterable[LayerRow | SwapRow]) -> Table:
    """Every implementation in Keras' place, one layer at a time and all at once."""
    found = [row for row in rows if isinstance(row, SwapRow)]
    sections: dict[str, list[Line]] = {}
    for row in found:
        worst = _worst_gradient(row)
        flips = MISSING if row.flips is None else f"{row.flips}" + (f" ({row.ties} ties)" if row.ties else "")
        cells = (
            row.implementation,
            row.status,
            number(row.logits),
            number(row.loss),
            f"{number(row.gradients.get(worst))} {worst}".strip(),
            flips,
            number(row.of_allowance),
            "; ".join(filter(None, [row.reason, _left(row.left_to_keras)])),
        )
        sections.setdefault(f"swapped: {row.swapped}", []).append(Line(cells))
    return Table(
        f"{found[0].model if found else ''}: swapped into the model",
        ("implementation", "status", "logits", "loss", "worst gradient", "flips", "of allowance", "note"),
        tuple(Section(title, tuple(lines)) for title, lines in sections.items()),
        _frame(found),
        left=("implementation", "status", "note"),
        notes=(
            "logits, loss: largest difference to Keras; worst gradient: |difference| / |Keras' gradient|, and whose",
            "flips: predictions that differ from Keras'; of allowance: above 1 is wrong",
        ),
    )


def training_table(agreement: Agreement) -> Table:
    """The gradients of every kernel and bias over a twin's training steps, then the optimizer's updates."""
    lines, records = [], []
    for row in agreement.gradients:
        ours, keras = median(row.ours), median(row.keras)
        figures = (ours, keras, row.of_allowance, max(row.ours))
        lines.append(Line((row.parameter, row.status, *map(number, figures), row.reason)))
        records.append(
            {"model": row.model, "parameter": row.parameter, "status": row.status, "ours": ours, "keras": keras}
            | {"of_allowance": row.of_allowance, "largest": max(row.ours)}
        )
    steps, ends = len(agreement.updates), (agreement.losses[-1], agreement.keras_losses[-1])
    return Table(
        f"{agreement.model}: {steps} training steps beside a twin in Keras ({agreement.backend})",
        ("gradient", "status", "ours", "Keras", "of allowance", "largest", "reason"),
        (Section(f"all together: {agreement.status} {agreement.reason}".rstrip(), tuple(lines)),),
        pd.DataFrame.from_records(records),
        left=("gradient", "status", "reason"),
        notes=(
            "ours, Keras: relative distance to the float64 gradient, median over the steps; largest: ours at any step",
            "of allowance: distance over 4 times Keras' own plus 8 units in the last place, median; above 1 is wrong",
            f"updates from Keras' state and gradient: at most {max(agreement.updates):.2g} units in the last place off",
            f"values where float64 had to change sides: {agreement.kinks}, by {agreement.tie:.2g} of the largest value",
            "loss of the last step, both running freely, not judged: ours {:.6f}, Keras {:.6f}".format(*ends),
        ),
    )


def _frame(rows: Sequence[LayerRow] | Sequence[SwapRow]) -> pd.DataFrame:
    """The rows' fields, as they are."""
    return pd.DataFrame.from_records([{f.name: getattr(row, f.name) for f in fields(row)} for row in rows])


def _worst_gradient(row: SwapRow) -> str:
    """Whose gradient differs most from Keras', or nothing."""
    return max(row.gradients, key=lambda name: row.gradients[name], default="")


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _first(reasons: Sequence[str]) -> str:
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else ""


def _left(names: Sequence[str]) -> str:
    return f"left to Keras: {', '.join(names)}" if names else ""
