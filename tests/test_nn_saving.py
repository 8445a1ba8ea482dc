"""Saving and loading: nothing is lost, nothing is executed, and what is damaged is refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from impls.nn.initializers import Initializer
from impls.nn.network import Network, Options
from impls.nn.saving import FileError, load, save

TEXT = "8x8x1->C(3,4,r);M(2);F();D(5,sm)"
OPTIONS = {"c0": Options(l2_kernel=0.1, initializer=Initializer("normal"), implementations={"forward": "numpy_gemm"})}


@pytest.fixture
def saved(tmp_path):
    """A network and its file."""
    network = Network(TEXT, options=OPTIONS, seed=4)
    save(network, tmp_path / "n.safetensors")
    return network, tmp_path / "n.safetensors"


def with_header(path, change):
    """The same file with another header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_a_network_comes_back_whole(saved):
    """Structure, options, weights."""
    network, path = saved
    back = load(path)
    np.testing.assert_array_equal(back.weights, network.weights)
    assert (back.structure, back.options, back.image_shape) == (network.structure, network.options, network.image_shape)


def test_any_flipped_bit_is_refused(saved):
    """In the header, or in the weights: they have a checksum."""
    _, path = saved
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in (*rng.integers(0, len(content), 150), 0, 8, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            back = load(path)
        except FileError:
            continue
        # A flip within the text may leave another valid description, never other weights.
        np.testing.assert_array_equal(back.weights, Network(TEXT, options=OPTIONS, seed=4).weights)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_cut_file_is_refused(saved, kept):
    """Whatever is missing at its end."""
    _, path = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileError, match=str(path.name)):
        load(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "something else", "format is 'something else'"),
        ("structure", "F();D(1000000,r);D(5,sm)", "the file holds"),
        ("structure", "__import__('os')", "character 1"),
        ("image_shape", "[8, 8, 10000000000000]", "is for images of"),
        ("image_shape", "null", "does not describe"),
        ("options", '{"c0": {"made_up": 1}}', "made_up"),
        ("options", '{"c0": 7}', "does not describe"),
        ("options", '{"c9": {}}', "c9"),
    ],
)
def test_a_hostile_description_is_refused_before_anything_is_built(saved, key, value, words):
    """Sizes are compared with the file's first."""
    _, path = saved
    with_header(path, lambda header: header["__metadata__"].update({key: value}))
    with pytest.raises(FileError, match=words):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    """As any reader expects."""
    with pytest.raises(FileError, match="there is no file"):
        load(tmp_path / "nothing.safetensors")


def test_an_older_file_survives_a_save_that_fails(saved, monkeypatch):
    """The new one is written beside it first."""
    network, path = saved
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    network.weights[...] = 0
    with pytest.raises(OSError, match="disk full"):
        save(network, path)
    assert load(path).weights.any()
