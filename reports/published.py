"""The figures of Klęsk 2024 (Applied Sciences 14(21), 9972), and of the presets' origin, as data frames.

What each figure contains is written in ``published/README.md``; read it before comparing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from impls.specs import FORWARD, ConvSpec

FOLDER = Path(__file__).with_suffix("")

CONTENTS = (
    "* published: Klęsk 2024, mean of 10 calls on a laptop (Xeon E3-1505M v5, Quadro M4000M), batch 32",
    "others *: hmdl, first call and a print included; numba_cuda: page-locking, allocation and copies both ways too",
    "keras *: model.predict on NumPy arrays, one thread, with a floor of about 40 ms whatever the size",
)
"""What the published times contain, to be shown wherever they are."""


@cache
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / name, dtype={"experiment": str})


def conv_forward() -> pd.DataFrame:
    """Published convolution timings, seconds per call, with the spec of each in ``case``: 2,754 rows."""
    frame = _read("conv_forward.csv").copy()
    sizes = frame[["batch", "side", "channels", "filters", "kernel"]].itertuples(index=False)
    frame["case"] = [str(ConvSpec(n, side, side, c, f, (k, k))) for n, side, c, f, k in sizes]
    return frame


def experiments() -> pd.DataFrame:
    """Published trainings of hmdl and Keras, 33 networks on two machines: 66 rows."""
    return _read("experiments.csv").copy()


def perceptron(preset: str) -> pd.DataFrame:
    """What was published of a preset, or of a group of presets: columns library, figure, epoch, value."""
    frame = _read("perceptron.csv")
    return frame[frame["preset"] == preset]


def conv_forward_ms() -> pd.DataFrame:
    """Published milliseconds per call, once per ``case`` and ``implementation``, in the column ``published_ms``.

    Where both published tests hold a case, the one that has every implementation counts.
    """
    frame = conv_forward().sort_values("suite").drop_duplicates(["case", "implementation"])
    return frame.assign(published_ms=frame["mean_s"] * 1e3)[["case", "implementation", "published_ms"]]


def join(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with columns op, direction and case, joined with columns ``published_<implementation>_ms``.

    Every row is kept; only forward convolutions find a published time.
    """
    wide = conv_forward_ms().pivot(index="case", columns="implementation", values="published_ms")
    wide = wide.rename(columns="published_{}_ms".format).reset_index().assign(op="conv2d", direction=FORWARD)
    return frame.merge(wide, on=["op", "direction", "case"], how="left")
