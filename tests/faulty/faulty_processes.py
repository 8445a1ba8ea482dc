"""Implementations of convolution that harm the process they run in, each with the one fault in its name.

They are registered as another package's would be, by entry points, and run in workers like any other; tests/test_zoo.py
says which status each must get. Only the standard library and NumPy: what they do must not depend on what else is
installed.
"""

import contextlib
import ctypes
import os
import random
import sys
import time
import warnings
import zlib

import numpy as np

from impls import reference
from impls.contract import DIRECT, Implementation, Plan


class Right(Plan):
    """No fault."""

    offers = ("forward",)

    def forward(self, x, w, b, out):
        y = np.empty(self.spec.y_shape)
        reference("conv2d").plan(self.spec, ("forward",)).forward(x, w, b, y)
        out[...] = y


class Later(Right):
    """Right while it is checked. ``go_wrong`` happens in timed call number ``at``, where 1 is still a warm-up.

    A call is a timed one if an array has the contents that it had before.
    """

    at = 17

    def prepare(self):
        self.calls = 0
        self.seen = set()

    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        here = x.ctypes.data, zlib.crc32(x)
        self.calls += here in self.seen
        self.seen.add(here)
        if self.calls == self.at:
            self.go_wrong()


class SegmentationFault(Right):
    def forward(self, x, w, b, out):
        print("about to read address 0", flush=True)
        ctypes.string_at(0)


class Aborts(Right):
    def forward(self, x, w, b, out):
        os.abort()


class CrashesInSetUp(Right):
    def prepare(self):
        os._exit(7)


class CrashesInWarmUp(Later):
    at = 1

    def go_wrong(self):
        os._exit(6)


class CrashesWhenTimed(Later):
    def go_wrong(self):
        os._exit(8)


class LeavesTheInterpreter(Right):
    def forward(self, x, w, b, out):
        sys.exit("I am done here")


class HangsInSetUp(Right):
    def prepare(self):
        print("waiting for a licence", flush=True)
        time.sleep(3600)


class Spins(Right):
    def forward(self, x, w, b, out):
        while True:
            pass


class HangsWhenTimed(Later):
    def go_wrong(self):
        time.sleep(3600)


class ExceptionWithoutText(Right):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    def forward(self, x, w, b, out):
        raise self.Mute


class AllocatesTooMuch(Right):
    """Little by little, and without touching it: all of it is more than any machine has."""

    def forward(self, x, w, b, out):
        self.kept = []
        while True:
            self.kept.append(np.empty(2**30, np.uint8))


class NeedsTooMuchScratch(Right):
    @classmethod
    def scratch_bytes(cls, spec, directions):
        return 2**50


class FloodsTheOutput(Right):
    """Eight megabytes of words, and the end."""

    def forward(self, x, w, b, out):
        for _ in range(2**13):
            os.write(1, b"all work and no play " * 50 + b"\n")
        os._exit(9)


class AnswersForTheWorker(Right):
    """Writes into the pipe through which the worker answers."""

    def forward(self, x, w, b, out):
        for number in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(number, b"not an answer\n")


class ClosesThePipe(Right):
    """And works on: nobody will hear of it."""

    def forward(self, x, w, b, out):
        print("nobody listens", flush=True)
        for number in range(3, 64):
            with contextlib.suppress(OSError):
                os.close(number)
        time.sleep(3600)


class ClosesThePipeWhenTimed(Later):
    def go_wrong(self):
        ClosesThePipe.forward(self, None, None, None, None)


class LeaksMemory(Right):
    kept = ()

    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        self.kept = (*self.kept[-1:], np.ones(2**15), self.kept)


class SetsNumpysSeed(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        np.random.seed(0)


class DrawsARandomNumber(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        random.random()


class SilencesWarnings(Right):
    def prepare(self):
        warnings.simplefilter("ignore")


class ChangesTheFolder(Right):
    def prepare(self):
        os.chdir("/")


class ChangesTheEnvironment(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        os.environ["OMP_NUM_THREADS"] = "64"


class TakesMoreThreads(Right):
    def forward(self, x, w, b, out):
        from threadpoolctl import threadpool_limits

        super().forward(x, w, b, out)
        threadpool_limits(2)


class FlushesDenormals(Right):
    """Sets FTZ and DAZ in MXCSR, as code does that is compiled with -ffast-math."""

    def prepare(self):
        code = b"\x50\x0f\xae\x1c\x24\x81\x0c\x24\x40\x80\x00\x00\x0f\xae\x14\x24\x58\xc3"
        _run_machine_code(code)


class RoundsUp(Right):
    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        ctypes.CDLL(None).fesetround(0x800)


def _run_machine_code(code):
    """Call x86-64 instructions that take no argument and end with a return."""
    import mmap

    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


class MutatesItsInputWhenTimed(Later):
    """Never back to what it was."""

    def forward(self, x, w, b, out):
        super().forward(x, w, b, out)
        if self.calls >= self.at:
            x.flat[0] += 1

    def go_wrong(self):
        """Nothing more: it is in every call from then on."""


KINDS = {
    "right": Right,
    "segmentation_fault": SegmentationFault,
    "aborts": Aborts,
    "crashes_in_set_up": CrashesInSetUp,
    "crashes_in_warm_up": CrashesInWarmUp,
    "crashes_when_timed": CrashesWhenTimed,
    "leaves_the_interpreter": LeavesTheInterpreter,
    "hangs_in_set_up": HangsInSetUp,
    "spins": Spins,
    "hangs_when_timed": HangsWhenTimed,
    "exception_without_text": ExceptionWithoutText,
    "allocates_too_much": AllocatesTooMuch,
    "needs_too_much_scratch": NeedsTooMuchScratch,
    "floods_the_output": FloodsTheOutput,
    "answers_for_the_worker": AnswersForTheWorker,
    "closes_the_pipe": ClosesThePipe,
    "closes_the_pipe_when_timed": ClosesThePipeWhenTimed,
    "leaks_memory": LeaksMemory,
    "sets_numpys_seed": SetsNumpysSeed,
    "draws_a_random_number": DrawsARandomNumber,
    "silences_warnings": SilencesWarnings,
    "changes_the_folder": ChangesTheFolder,
    "changes_the_environment": ChangesTheEnvironment,
    "takes_more_threads": TakesMoreThreads,
    "flushes_denormals": FlushesDenormals,
    "rounds_up": RoundsUp,
    "mutates_its_input_when_timed": MutatesItsInputWhenTimed,
}

ON_X86 = ("flushes_denormals", "rounds_up")
"""What is written in the numbers of that processor."""

RECORDS = {name: Implementation(kind, algorithm=DIRECT) for name, kind in KINDS.items()}
"""The records, by name."""

globals().update(RECORDS)
