"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels, values 0 .. 255, ten classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, University of Toronto,
2009. One split, the published one, in file order. Two forms are read:

* the binary version as published, ``cifar-10-binary.tar.gz``;
* lossless WebP strips of 500 images one below the other, ``train_00.webp`` .. ``train_99.webp`` and ``test_00.webp``
  .. ``test_19.webp``, with one byte per label in ``train_labels.u8`` and ``test_labels.u8``. Their training images are
  exact; of their test images the 20 in INEXACT_TEST_IMAGES come from JPEG copies.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from datasets.cache import gunzip
from datasets.contract import ALTERED, INEXACT, OK, Check, Dataset, DatasetError, File, Form, Found, Part

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BATCHES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
"""The files of the binary version and their published SHA-256, the test part last."""

INEXACT_TEST_BATCH = "123ca0dad8f960344d9149742165d4215093c84c8c4bdc5922af93b614bdb501"
"""SHA-256 of test_batch.bin as it is rebuilt from the strips."""

INEXACT_TEST_IMAGES = (
    *(1259, 1369, 1422, 2245, 2737, 2935, 3695, 3718, 4085, 4496),
    *(5791, 5896, 6286, 7580, 7707, 7724, 7832, 8117, 8551, 9254),
)
"""Numbers of the test images whose pixels are not exact in the strips."""

_SIDE = 32
_CHANNELS = 3
_PIXELS = _SIDE * _SIDE * _CHANNELS
_BATCH_IMAGES = 10_000
_BATCH_BYTES = _BATCH_IMAGES * (1 + _PIXELS)
_TAR_OVERHEAD = 1 << 20
"""Bytes: more than the headers, padding and small text files of the archive take."""
_STRIP_IMAGES = 500

_ARCHIVE_FILE = File(
    name="cifar-10-binary.tar.gz",
    hashes={"c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "original"},
    max_bytes=170_052_171,
    addresses=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)


def _strip_files() -> Iterator[File]:
    """The files of the strips, by the list of their SHA-256 beside this file."""
    for line in Path(__file__).with_name("cifar10_strips.sha256").read_text(encoding="ascii").splitlines():
        sha256, name = line.split()
        kind = "WebP strip" if name.endswith(".webp") else "labels, one per byte"
        yield File(name, {sha256: kind}, max_bytes=1 << 20)


ARCHIVE = Form("binary archive", (_ARCHIVE_FILE,))
STRIPS = Form("WebP strips", tuple(_strip_files()))


def read(found: Found, _split: int) -> tuple[Part, Part]:
    """Images (N, 32, 32, 3). Of the strips, only those are decoded that hold a row asked for."""
    if found.form.name == STRIPS.name:
        return _strip_part(found, "train"), _strip_part(found, "test")
    batches = list(_archive_batches(found).values())
    return _batch_part(batches[:-1]), _batch_part(batches[-1:])


def rebuilt(found: Found) -> Iterator[Check]:
    """Judge the six files of the binary version: as they stand in the archive, or remade from the strips."""
    if found.form.name == STRIPS.name:
        batches, form = _remade_batches(found), "rebuilt from the strips"
    else:
        batches, form = iter(_archive_batches(found).items()), "in the archive"
    for name, data in batches:
        sha256, status, note = hashlib.sha256(data).hexdigest(), ALTERED, ""
        if sha256 == BATCHES[name]:
            status = OK
        elif name == "test_batch.bin" and sha256 == INEXACT_TEST_BATCH:
            status, note = INEXACT, f"pixels of test images {', '.join(map(str, INEXACT_TEST_IMAGES))} come from JPEG"
        yield Check("cifar10", name, None, form, BATCHES[name], sha256, status, note)


def read_members(data: bytes, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Members of a .tar.gz by their full names, in memory: nothing is ever written under a name of the archive.

    Raises DatasetError if one is missing, doubled, not a plain file or of another size, or if the archive unpacks to
    more than ``sizes`` account for.
    """
    members: dict[str, bytes] = {}
    try:
        unpacked = io.BytesIO(gunzip(data, sum(sizes.values()) + _TAR_OVERHEAD))
        with tarfile.open(fileobj=unpacked, mode="r:") as archive:
            for member in archive:
                if member.name not in sizes:
                    continue
                if not member.isreg() or member.size != sizes[member.name] or member.name in members:
                    raise ValueError(f"{member.name} is not one plain file of {sizes[member.name]} bytes")
                stream = archive.extractfile(member)
                members[member.name] = stream.read() if stream else b""
    except (tarfile.TarError, ValueError, OSError) as error:
        raise DatasetError(f"cifar10: the archive cannot be read: {error}") from error
    missing = [name for name in sizes if len(members.get(name, b"")) != sizes[name]]
    if missing:
        raise DatasetError(f"cifar10: the archive lacks {', '.join(missing)}, or part of it")
    return {name: members[name] for name in sizes}


def decode_strip(data: bytes) -> np.ndarray:
    """The (500, 32, 32, 3) uint8 images of a lossless WebP strip.

    Raises DatasetError unless the header says lossless and 32 x 16,000 pixels; it is read before any pixel is
    (WebP lossless bitstream: a signature, then 14 bits each of width - 1 and height - 1).
    """
    from PIL import Image

    if len(data) < 25 or data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or data[20] != 0x2F:
        raise DatasetError("cifar10: a strip is no lossless WebP file")
    (bits,) = struct.unpack("<I", data[21:25])
    size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if size != (_SIDE, _SIDE * _STRIP_IMAGES):
        raise DatasetError(f"cifar10: a strip has {size[0]} x {size[1]} pixels, not {_SIDE} x {_SIDE * _STRIP_IMAGES}")
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cifar10: a strip cannot be decoded: {error}") from error
    return pixels.reshape(_STRIP_IMAGES, _SIDE, _SIDE, _CHANNELS)


def _archive_batches(found: Found) -> dict[str, bytes]:
    folder = "cifar-10-batches-bin"
    sizes = {f"{folder}/{name}": _BATCH_BYTES for name in BATCHES}
    members = read_members(found.read(_ARCHIVE_FILE.name), sizes)
    return {name: members[f"{folder}/{name}"] for name in BATCHES}


def _batch_part(batches: list[bytes]) -> Part:
    """Records of the binary version: a label, then the planes red, green, blue, row by row."""
    records = np.concatenate([np.frombuffer(batch, np.uint8) for batch in batches]).reshape(-1, 1 + _PIXELS)
    images = records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Part.of(images, records[:, 0])


def _strip_part(found: Found, part: str) -> Part:
    labels = np.frombuffer(found.read(f"{part}_labels.u8"), np.uint8)
    return Part(labels, _strip_reader(found, part))


def _strip_reader(found: Found, part: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives the images of some rows and decodes every strip it needs once."""

    def take(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), _SIDE, _SIDE, _CHANNELS), np.uint8)
        for strip in np.unique(rows // _STRIP_IMAGES):
            here = rows // _STRIP_IMAGES == strip
            images[here] = decode_strip(found.read(f"{part}_{strip:02d}.webp"))[rows[here] % _STRIP_IMAGES]
        return images

    return take


def _remade_batches(found: Found) -> Iterator[tuple[str, bytes]]:
    """The six files of the binary version, made from the strips one at a time."""
    train, test = _strip_part(found, "train"), _strip_part(found, "test")
    for number, name in enumerate(BATCHES):
        part, first = (test, 0) if name == "test_batch.bin" else (train, number * _BATCH_IMAGES)
        rows = np.arange(first, first + _BATCH_IMAGES)
        planes = part.take(rows).transpose(0, 3, 1, 2).reshape(-1, _PIXELS)
        yield name, np.concatenate([part.y[rows, np.newaxis], planes], axis=1).tobytes()


DATASET = Dataset(forms=(ARCHIVE, STRIPS), read=read, classes=CLASSES, rebuilt=rebuilt)
