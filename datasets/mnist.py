"""MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels, values 0 .. 255, in four gzipped IDX files.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits; Y. LeCun, L. Bottou,
Y. Bengio, P. Haffner, Proc. IEEE 86(11), 1998; CC BY-SA 3.0. One split, the published one, in file order.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from datasets.contract import Content, Dataset, DatasetError, File, Form, Found, Part

ADDRESSES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
_UNSIGNED_BYTES = 0x08
_GZIP_OVERHEAD = 1 << 16
"""Bytes: more than gzip ever adds to what it cannot compress."""


def _file(name: str, size: int, content_sha256: str, sha256: str) -> File:
    return File(
        name=f"{name}.gz",
        hashes={sha256: "original"},
        max_bytes=size + _GZIP_OVERHEAD,
        content=Content(content_sha256, size),
        addresses=tuple(f"{address}{name}.gz" for address in ADDRESSES),
    )


FORM = Form(
    "gzipped IDX files",
    (
        _file(
            "train-images-idx3-ubyte",
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        _file(
            "train-labels-idx1-ubyte",
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        _file(
            "t10k-images-idx3-ubyte",
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        _file(
            "t10k-labels-idx1-ubyte",
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
)


def read(found: Found, _split: int) -> tuple[Part, Part]:
    """Images (N, 28, 28, 1)."""
    return _part(found, "train"), _part(found, "t10k")


def parse_idx(data: bytes, sides: int) -> np.ndarray:
    """The uint8 array of an IDX file: a magic number that names type and sides, big-endian sizes, the values.

    Raises DatasetError if type, number of sides or the file's size differ from what the header says; the array is a
    view, so that a header cannot ask for memory.
    """
    start = 4 * (1 + sides)
    if len(data) < start or data[:4] != bytes((0, 0, _UNSIGNED_BYTES, sides)):
        raise DatasetError(f"mnist: {data[:4].hex()!r} begins no IDX file of bytes in {sides} dimensions")
    shape = struct.unpack(f">{sides}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DatasetError(f"mnist: the IDX header says {shape}, but {len(data) - start} values follow")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _part(found: Found, name: str) -> Part:
    images = parse_idx(found.read(f"{name}-images-idx3-ubyte.gz"), 3)
    labels = parse_idx(found.read(f"{name}-labels-idx1-ubyte.gz"), 1)
    return Part.of(images[..., np.newaxis], labels)


DATASET = Dataset(forms=(FORM,), read=read, classes=tuple("0123456789"))
