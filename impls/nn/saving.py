"""A network in a file: safetensors, whose header carries the structure and the layers' options as JSON.

Nothing in such a file is ever executed. A file that is damaged, or that describes something else, is refused before
anything is built: sizes are checked against the file's own length first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.initializers import Initializer
from impls.nn.network import Network, Options
from impls.nn.structure import Structure, parse, steps
from impls.specs import SpecError

Array = npt.NDArray[Any]

FORMAT = "layerbench network 1"


class FileError(ValueError):
    """A file holds no network that can be read; the message names the file and what is wrong with it."""


def save(network: Network, path: str | Path) -> None:
    """Write structure, options and weights. An existing file is replaced whole, or not at all."""
    from safetensors.numpy import save as to_bytes

    arrays = network.named_weights()
    header = {
        "format": FORMAT,
        "sha256": _digest(arrays),
        "structure": str(network.structure),
        "image_shape": json.dumps(network.image_shape),
        "options": json.dumps({name: _plain(options) for name, options in network.options.items()}),
    }
    target = Path(path)
    beside = target.with_name(f"{target.name}.part")
    beside.write_bytes(to_bytes(arrays, metadata=header))
    beside.replace(target)


def load(path: str | Path) -> Network:
    """Read a network back. Raises FileError for anything but a file that ``save`` wrote."""
    header, arrays = _read(Path(path))
    if header.get("format") != FORMAT:
        raise FileError(f"{path} holds no network of this program: its format is {header.get('format')!r}")
    if header.get("sha256") != _digest(arrays):
        raise FileError(f"{path} is damaged: its weights do not have the checksum that was written with them")
    try:
        structure = parse(header["structure"])
        image_shape = tuple(int(side) for side in json.loads(header["image_shape"]))
        options = {str(name): _options(values) for name, values in json.loads(header["options"]).items()}
        needed = sum(a.size for a in arrays.values())
        _require_size(structure, image_shape, needed)
        network = Network(structure, image_shape, options=options)
        network.load_weights(arrays)
    except (SpecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} does not describe a network: {error}") from error
    return network


def _require_size(structure: Structure, image_shape: tuple[int, ...], values: int) -> None:
    """Refuse a description that would need more weights than the file has, before they are allocated."""
    needed = sum(step.parameters for step in steps(structure, image_shape))
    if needed != values:
        raise SpecError(f"its layers need {needed} weights, the file holds {values}")


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            header = dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is no safetensors file, or is damaged: {error}") from error
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise FileError(f"{path}: {name} is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise FileError(f"{path}: {name} holds NaN or infinity")
    return header, arrays


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 of all weights in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _plain(options: Options) -> dict[str, Any]:
    values = asdict(options)
    values["implementations"] = dict(options.implementations)
    return values


def _options(values: dict[str, Any]) -> Options:
    known = {field.name for field in fields(Options)}
    if set(values) - known:
        raise SpecError(f"unknown options {sorted(set(values) - known)}")
    initializer = values.get("initializer")
    return Options(**values | {"initializer": None if initializer is None else Initializer(**initializer)})
