"""Judge implementations inside a Keras reference model on real images, each computing in its own worker."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import datasets
from bench.jobs import Selection
from bench.keras_model import ReferenceModel, trace
from bench.measure import Session
from bench.model_check import LayerRow, SwapRow, verify_model
from impls import OPS, names, registry
from impls.specs import Case


def verify_in_model(
    session: Session, model: ReferenceModel, selection: Selection, images: int, threads: int, seed: int
) -> list[LayerRow | SwapRow]:
    """All rows for one model on ``images`` real test images, drawn by ``seed``.

    Raises datasets.DatasetError if the images cannot be had, bench.keras_model.ModelError if Keras cannot run.
    """
    data = datasets.load(model.dataset)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(data.y_test), min(images, len(data.y_test)), replace=False)
    with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
        recorded = trace(model.structure, data.x_test[chosen], data.y_test[chosen], seed, threads, Path(folder))
    ours = {op: tuple(n for n in selection.names(op) if n in names(op)) for op in selection.ops or OPS}
    return list(verify_model(recorded, ours, session.compute, model.name, _declared))


def _declared(name: str, case: Case, direction: str) -> tuple[str, str]:
    """The algorithm and the arithmetic that an implementation declares."""
    record = registry.get(case.op, name)
    return record.algorithm_of(case.spec, direction), record.arithmetic_of(case.spec, direction)
