"""Wrong implementations of convolution, each with the one fault in its name, and a right one: the checker's own test.

They are registered as another package's would be, by entry points, and run in workers like any other; tests/test_zoo.py
says which status each must get.
"""

import os
import threading
import time
import zlib
from typing import ClassVar

import numpy as np

from impls import reference
from impls.contract import DIRECT, FLOAT32, Implementation, Plan


def exact(spec, x, w, b):
    """The right result in float64."""
    y = np.empty(spec.y_shape)
    reference("conv2d").plan(spec, ("forward",)).forward(x, w, b, y)
    return y


class Right(Plan):
    """No fault."""

    offers = ("forward",)

    def forward(self, x, w, b, out):
        out[...] = exact(self.spec, x, w, b)


class AllZeros(Right):
    def forward(self, x, w, b, out):
        out.fill(0)


class FlippedKernel(Right):
    def forward(self, x, w, b, out):
        out[...] = exact(self.spec, x, w[::-1, ::-1], b)


class DroppedTap(Right):
    def forward(self, x, w, b, out):
        w = w.copy()
        w[-1, -1] = 0
        out[...] = exact(self.spec, x, w, b)


class ForgotBias(Right):
    def forward(self, x, w, b, out):
        out[...] = exact(self.spec, x, w, None)


class WrapsAtTheBorder(Right):
    def forward(self, x, w, b, out):
        xp = np.pad(x, ((0, 0), *self.spec.pads, (0, 0)), mode="wrap")
        y = np.zeros(self.spec.y_shape)
        _, rows, columns, _ = self.spec.y_shape
        for i in range(self.spec.kernel[0]):
            for j in range(self.spec.kernel[1]):
                y += xp[:, i : i + rows, j : j + columns].astype(np.float64) @ w[i, j]
        out[...] = y + b


class HalfPrecision(Right):
    def forward(self, x, w, b, out):
        out[...] = exact(self.spec, x.astype(np.float16), w.astype(np.float16), b)


class OneBadPixel(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        out[-1, -1, -1, -1] *= 1.0001


class DropsTheLastSample(Right):
    def forward(self, x, w, b, out):
        y = exact(self.spec, x, w, b)
        out[:-1] = y[:-1]


class MutatesItsInput(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        x.flat[0] += 1


class WritesOutsideItsOutput(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        beyond = np.lib.stride_tricks.as_strided(out.reshape(-1)[-1:], (2,), out.strides[-1:])
        beyond[1] = 1


class ReturnsBeforeFinishing(Right):
    def forward(self, x, w, b, out):
        def later():
            time.sleep(0.05)
            Right.forward(self, x, w, b, out)

        threading.Thread(target=later, daemon=True).start()


class ReusesTheFirstResult(Right):
    """Right at its first call with any shape, and the same answer ever after."""

    def prepare(self):
        self.kept = None

    def forward(self, x, w, b, out):
        if self.kept is None:
            self.kept = exact(self.spec, x, w, b)
        out[...] = self.kept


class CachesByShape(Right):
    """One answer for every shape that it has seen, whoever asks."""

    known: ClassVar[dict] = {}

    def forward(self, x, w, b, out):
        out[...] = self.known.setdefault(x.shape, exact(self.spec, x, w, b))


class CachesByValue(Right):
    """Always right: it reads its inputs, and computes only what it has not computed before."""

    known: ClassVar[dict] = {}

    def forward(self, x, w, b, out):
        key = tuple(zlib.crc32(array) for array in (x, w, b))
        if key not in self.known:
            self.known[key] = exact(self.spec, x, w, b)
        out[...] = self.known[key]


class WorksOnlyOnce(Right):
    """Right at the first call of a plan; later ones leave the output as it is."""

    is_done = False

    def forward(self, x, w, b, out):
        if not self.is_done:
            super().forward(x, w, b, out)
        self.is_done = True


class NotANumberForOneInputSet(Right):
    """The third that it meets, by address."""

    def prepare(self):
        self.known = {}

    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        if self.known.setdefault(x.ctypes.data, len(self.known)) == 2:
            out[0, 0, 0, 0] = np.nan


class WrongAtALargerSize(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        out[:, :, 8:] = 0


class DropsSamplesOfALargeBatch(Right):
    def forward(self, x, w, b, out):
        y = exact(self.spec, x, w, b)
        out[:64] = y[:64]


class ClaimsSupportItLacks(Right):
    def forward(self, x, w, b, out):
        raise NotImplementedError("kernels of this size")


class CachesByPointer(Right):
    """Right wherever it is called for the first time; at an address that it knows it does nothing."""

    def prepare(self):
        self.known = set()

    def forward(self, x, w, b, out):
        if out.ctypes.data not in self.known:
            super().forward(x, w, b, out)
            self.known.add(out.ctypes.data)


class KeepsWeightsByAddress(Right):
    """Right at the first call with any weights; it never reads new ones at an address that it knows."""

    def prepare(self):
        self.kept = {}

    def forward(self, x, w, b, out):
        _, weights = self.kept.setdefault(w.ctypes.data, (w, w.copy()))
        super().forward(x, weights, b, out)


class SlowAtFirst(Right):
    """No fault: its first call compiles."""

    def prepare(self):
        self.is_compiled = False

    def forward(self, x, w, b, out):
        if not self.is_compiled:
            time.sleep(0.2)
            self.is_compiled = True
        super().forward(x, w, b, out)


class Raises(Right):
    def forward(self, x, w, b, out):
        raise ArithmeticError("no such luck")


class Exits(Right):
    def forward(self, x, w, b, out):
        print("last words", flush=True)
        os._exit(3)


KINDS = {
    "right": Right,
    "all_zeros": AllZeros,
    "flipped_kernel": FlippedKernel,
    "dropped_tap": DroppedTap,
    "forgot_bias": ForgotBias,
    "wraps_at_the_border": WrapsAtTheBorder,
    "half_precision": HalfPrecision,
    "one_bad_pixel": OneBadPixel,
    "drops_the_last_sample": DropsTheLastSample,
    "drops_samples_of_a_large_batch": DropsSamplesOfALargeBatch,
    "wrong_at_a_larger_size": WrongAtALargerSize,
    "not_a_number_for_one_input_set": NotANumberForOneInputSet,
    "mutates_its_input": MutatesItsInput,
    "writes_outside_its_output": WritesOutsideItsOutput,
    "returns_before_finishing": ReturnsBeforeFinishing,
    "works_only_once": WorksOnlyOnce,
    "reuses_the_first_result": ReusesTheFirstResult,
    "caches_by_pointer": CachesByPointer,
    "caches_by_shape": CachesByShape,
    "caches_by_value": CachesByValue,
    "keeps_weights_by_address": KeepsWeightsByAddress,
    "slow_at_first": SlowAtFirst,
    "has_no_bound": Right,
    "raises": Raises,
    "claims_support_it_lacks": ClaimsSupportItLacks,
    "exits": Exits,
}

RECORDS = {
    name: Implementation(kind, algorithm=DIRECT, arithmetic="bfloat16" if name == "has_no_bound" else FLOAT32)
    for name, kind in KINDS.items()
}
"""The records, by name."""

globals().update(RECORDS)
