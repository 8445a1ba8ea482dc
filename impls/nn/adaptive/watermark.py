"""A watermark in the ghosts of a model: a key's bits, in parameters that the response does not depend on.

Every ghost carries BITS bits as the leading binary digits of its value. Whoever has the key can show that they are
there; without it, they are fair coins: how often a wrong key matches as well is a binomial tail, computed in integers.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.nn.adaptive.model import Model
from impls.specs import SpecError

Array = npt.NDArray[Any]

BITS = 8
"""Of a ghost. A ghost that is moved by less than 2^-9 keeps them all."""
LEVEL = 1e-6
"""The largest rate of false claims at which a claim is made."""


@dataclass(frozen=True, slots=True)
class Claim:
    """How many of the bits are those of the key, and how likely at least as many are where the key had no part."""

    bits: int
    matches: int

    @property
    def false_claim_rate(self) -> float:
        """P(X >= matches), X binomial with bits trials of 1/2."""
        return tail(self.bits, self.matches)

    @property
    def holds(self) -> bool:
        """Whether it is as unlikely by chance as LEVEL asks."""
        return self.false_claim_rate <= LEVEL


def embed(model: Model, point: Array, key: bytes) -> Array:
    """The point (parameters,) with the key's bits in its ghosts, amplitudes changed with them: the same response.

    Raises SpecError for a model without ghosts, and for an amplitude that its interval has no room for.
    """
    ghosts = _ghosts(model)
    marked = point.copy()
    words = _words(key, len(ghosts))
    marked[ghosts] = (words + 0.5) / 2**BITS
    factor = (1 + point[ghosts]) / (1 + marked[ghosts])
    amplitudes = ghosts - 1
    # The amplitude's interval is symmetric: 1/2 stands for 0.
    marked[amplitudes] = 0.5 + (point[amplitudes] - 0.5) * factor
    beyond = np.abs(marked[amplitudes] - 0.5) > 0.5
    if beyond.any():
        largest = 2 * np.abs(marked[amplitudes] - 0.5).max()
        raise SpecError(f"an amplitude does not fit its interval any more; fit with {largest:.2g} times the amplitude")
    return marked


def verify(model: Model, point: Array, key: bytes) -> Claim:
    """How much of the key's bits is in the ghosts of a point. Raises SpecError for a model without ghosts."""
    ghosts = _ghosts(model)
    found = np.clip(np.floor(point[ghosts] * 2**BITS), 0, 2**BITS - 1).astype(np.uint8)
    differing = np.unpackbits(found ^ _words(key, len(ghosts))).sum()
    return Claim(BITS * len(ghosts), BITS * len(ghosts) - int(differing))


def tail(bits: int, matches: int) -> float:
    """P(X >= matches) for X binomial with ``bits`` trials of 1/2, exact until it is rounded once."""
    return sum(math.comb(bits, k) for k in range(matches, bits + 1)) / 2**bits


def fewest_matches(bits: int, level: float = LEVEL) -> int:
    """The least number of matches for which a claim is made; bits + 1 where none would do."""
    return next(k for k in range(bits + 2) if tail(bits, k) <= level)


def _ghosts(model: Model) -> Array:
    """Where the ghosts stand in a point."""
    if not model.ghosts:
        raise SpecError("the model has no ghosts to carry a watermark; fit it with ghosts=True")
    return np.array([k for k, (_, _, name) in enumerate(model.meaning()) if name == "ghost"])


def _words(key: bytes, count: int) -> Array:
    """BITS bits for every ghost: SHA-256 of the key and a counter, as often as is needed."""
    blocks = (hashlib.sha256(key + k.to_bytes(4, "big")).digest() for k in range(math.ceil(count / 32)))
    return np.frombuffer(b"".join(blocks), np.uint8)[:count]
