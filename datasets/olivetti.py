"""Olivetti faces: 400 images of 64 x 64 pixels, 40 people, ten images each, as scikit-learn prepares them.

Source: AT&T Laboratories Cambridge ("ORL" faces, 1992-1994), in the version of S. Roweis; F. Samaria, A. Harter,
Parameterisation of a stochastic model for human face identification, 1994. "When using these images, please give
credit to AT&T Laboratories Cambridge."

Split s, 0 .. 9, is the one that seed s gave in P. Klęsk, Applied Sciences 14(21), 9972, 2024: seven training and three
test images per person, the test part ordered by person. The indices lie beside this file.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from datasets.contract import Dataset, DatasetError, File, Form, Found, Part

SPLITS_FILE = Path(__file__).with_name("olivetti_klesk2024_splits.npz")
_SIDE = 64
_PEOPLE = 40
_IMAGES = 400

FORM = Form(
    "MATLAB file",
    (
        File(
            name="olivettifaces.mat",
            hashes={
                "b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794": "original",
                "b1988d02c72fe5b8ee82b5ef3bb7982eafc74f1e1ff0ae0ade35061ad0af534d": "saved again",
            },
            max_bytes=1 << 24,
            addresses=(
                "https://ndownloader.figshare.com/files/5976027",
                "https://cs.nyu.edu/~roweis/data/olivettifaces.mat",
            ),
        ),
    ),
)


def read(found: Found, split: int) -> tuple[Part, Part]:
    """Images (N, 64, 64, 1), values 0 .. 1; the label is the person."""
    images = normalise(parse_mat(found.read("olivettifaces.mat"), (_SIDE * _SIDE, _IMAGES)))
    labels = np.arange(_IMAGES) // (_IMAGES // _PEOPLE)
    train, test = split_indices(split)
    return Part.of(images[train], labels[train]), Part.of(images[test], labels[test])


def split_indices(split: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images, in which order, are the training (280) and the test part (120)."""
    with np.load(SPLITS_FILE, allow_pickle=False) as splits:
        return splits["train_indices"][split], splits["test_indices"][split]


def normalise(faces: np.ndarray) -> np.ndarray:
    """(pixels, images), an image in column-major order -> (images, 64, 64, 1), float32, 0 .. 1 over all images.

    The convention of scikit-learn's fetch_olivetti_faces.
    """
    values = faces.T.astype(np.float32)
    values -= values.min()
    values /= values.max()
    return values.reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1)[..., np.newaxis]


def parse_mat(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The variable ``faces`` of a MATLAB file. Raises DatasetError unless it holds numbers and has this shape."""
    from scipy.io import loadmat, whosmat

    try:
        kinds = {name: (size, kind) for name, size, kind in whosmat(io.BytesIO(data))}
        size, kind = kinds.get("faces", ((), "missing"))
        if size == shape and kind in ("double", "uint8"):
            faces: np.ndarray = loadmat(io.BytesIO(data), variable_names=["faces"])["faces"]
            return faces
    except Exception as error:  # damage surfaces in scipy as almost anything
        raise DatasetError(f"olivetti: olivettifaces.mat cannot be parsed: {error}") from error
    raise DatasetError(f"olivetti: olivettifaces.mat: faces is {kind} {size}, expected numbers {shape}")


DATASET = Dataset(forms=(FORM,), read=read, classes=tuple(f"person {i}" for i in range(_PEOPLE)), splits=10)
