"""Titanic: 891 passengers, seven features, who survived; the first 600 rows train, the last 281 test.

Source: train.csv of the Kaggle competition "Titanic - Machine Learning from Disaster" (subject to its rules). One
split, in file order; rows 600 to 609 belong to neither part.

Encoding, one column each, see FEATURES: age in years; sex 1 female, 0 male; class 1, 2, 3; siblings and spouses
aboard; parents and children aboard; fare in pounds; port of embarkation S 0, C 1, Q 2. Imputation, from the training
rows alone: a missing age becomes their median age, a missing port their most common one.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

import numpy as np

from datasets.contract import Dataset, DatasetError, File, Form, Found, Part

TRAIN_ROWS = 600
TEST_ROWS = 281
FEATURES = ("Age", "Sex", "Pclass", "SibSp", "Parch", "Fare", "Embarked")
"""The columns of x, by their names in the file."""
_LABEL = "Survived"
_SEXES = ("male", "female")
_PORTS = ("S", "C", "Q")

FORM = Form(
    "CSV file",
    (
        File(
            name="titanic.csv",
            hashes={"4a437fde05fe5264e1701a7387ac6fb75393772ba38bb2c9c566405af5af4bd7": "original, LF line ends"},
            max_bytes=60_302,
            addresses=("https://raw.githubusercontent.com/datasciencedojo/datasets/master/titanic.csv",),
        ),
    ),
)


def read(found: Found, _split: int) -> tuple[Part, Part]:
    """Features (rows, 7); label 1 survived."""
    rows = parse(found.read("titanic.csv"))
    x = encode(rows, rows[:TRAIN_ROWS])
    y = np.array([int(row[_LABEL]) for row in rows])
    return Part.of(x[:TRAIN_ROWS], y[:TRAIN_ROWS]), Part.of(x[-TEST_ROWS:], y[-TEST_ROWS:])


def parse(data: bytes) -> list[dict[str, str]]:
    """The rows by column name. Raises DatasetError for bytes that are no UTF-8 and for a missing column."""
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"titanic: titanic.csv cannot be parsed: {error}") from error
    missing = [name for name in (_LABEL, *FEATURES) if name not in (table.fieldnames or ())]
    if missing:
        raise DatasetError(f"titanic: titanic.csv lacks the columns {', '.join(missing)}")
    return rows


def encode(rows: Sequence[dict[str, str]], train: Sequence[dict[str, str]]) -> np.ndarray:
    """(rows, 7) float64 in the order of FEATURES; the training rows say what replaces a missing value."""
    age = statistics.median(float(row["Age"]) for row in train if row["Age"])
    port = statistics.mode(row["Embarked"] for row in train if row["Embarked"])
    return np.array(
        [
            [
                float(row["Age"] or age),
                _SEXES.index(row["Sex"]),
                int(row["Pclass"]),
                int(row["SibSp"]),
                int(row["Parch"]),
                float(row["Fare"]),
                _PORTS.index(row["Embarked"] or port),
            ]
            for row in rows
        ]
    )


DATASET = Dataset(forms=(FORM,), read=read, classes=("died", "survived"))
