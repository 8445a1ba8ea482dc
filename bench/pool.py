"""The workers of a run, from the parent's side: start, ask, pause, replace.

While one worker measures, the others are stopped, so that idle thread pools which spin take no core away.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine, timing
from bench.results import Failure
from bench.tail import Tail

ROOT = Path(__file__).resolve().parent.parent

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

START_SECONDS = 120.0
"""A new process answers within this time, where nobody says how long it may take."""
PLAN_SECONDS = 180.0
"""Set-up: importing a framework and compiling."""
CALL_SECONDS = 60.0
"""One call at the least; more where the caller predicts more."""
END_SECONDS = 2.0
"""A process that has closed the pipe through which it answers ends within this time, or is ended."""
LAST_LINES = 3
"""Of a worker's output, kept with the reason why it gave no answer."""
LOAD_ATTEMPTS = 2
"""Workers that may fail to load an implementation, one after the other, before it is given up for as long as the pool
lives: an import that hangs would be waited for at every case."""


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    """Send a signal to a process unless it has ended: its number may be another's by now.

    Where the system has no signal to stop one, it goes on.
    """
    if hasattr(signal, name):
        process.send_signal(getattr(signal, name))


def raise_if_crashed(answer: Mapping[str, Any]) -> None:
    """Raises Failure where a worker answers that its device is gone."""
    if answer.get("status") == "CRASHED":
        raise Failure("CRASHED", f"{answer['reason']}; the worker is replaced")


class WorkerProcess:
    """One worker: a fresh interpreter, driven over a pipe by lines of JSON."""

    def __init__(self, module: str, threads: int, settings: Mapping[str, str], **load: Any) -> None:
        """Start a module that serves, with these environment variables, and have it ``load``; does not wait."""
        self._oom_kills = machine.oom_kills()
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | dict(settings)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stderr is not None
        self._said = Tail(self._process.stderr)
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._paused = False
        self._greeted: dict[str, Any] | None = None
        self._send({"do": "load", **load})

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def has_loaded(self) -> bool:
        """Whether it has answered for the first time."""
        return self._greeted is not None

    def ask(self, do: str, seconds: float, **values: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises Failure after ``seconds`` or when it is gone."""
        self.greet(seconds)
        self.send(do, **values)
        return self.receive(seconds)

    def send(self, do: str, **values: Any) -> None:
        """Send a request, once it has imported its implementation; whoever sends must receive. Raises Failure."""
        self.greet()
        self._send({"do": do, **values})

    def greet(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Wait until it has loaded what it computes with; its answer. Raises Failure."""
        if self._greeted is None:
            self._greeted = self.receive(seconds)
        return self._greeted

    def take_turn(self, do: str, seconds: float, **values: Any) -> dict[str, Any]:
        """Let it go on, ask it, and stop it again. Raises Failure, also where it answers that its device is gone."""
        self.resume()
        try:
            answer = self.ask(do, seconds, **values)
        finally:
            self.pause()
        raise_if_crashed(answer)
        return answer

    def pause(self) -> None:
        """Stop the process where it is."""
        if not self._paused and self.has_loaded:
            _signal(self._process, "SIGSTOP")
            self._paused = True

    def resume(self) -> None:
        """Let it go on."""
        if self._paused:
            _signal(self._process, "SIGCONT")
            self._paused = False

    def end(self) -> None:
        """End the process; does not wait."""
        self._process.kill()

    def kill(self) -> None:
        """End the process now."""
        self.end()
        self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def receive(self, seconds: float) -> dict[str, Any]:
        """The answer to the oldest request. Raises Failure after ``seconds`` or when it is gone."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            last = self._said.lines(LAST_LINES, has_ended=False)
            raise Failure("TIMEOUT", " | ".join([f"no answer in {round(seconds, 1):g} s", *last])) from None
        if not line:
            raise self._failure()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise Failure("ERROR", f"what it answered cannot be read: {line[:60]!r}") from None
        return answer

    def _read(self) -> None:
        """Hand on every line, and close the pipe at its end: a kernel's own child processes may hold it for longer."""
        assert self._process.stdout is not None
        with self._process.stdout as lines, contextlib.suppress(OSError):
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")

    def _failure(self) -> Failure:
        """Why there is no answer and none will come."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            last = self._said.lines(LAST_LINES, has_ended=False)
            self.kill()
            return Failure("CRASHED", " | ".join(["the worker closed its pipe", *last]))
        last = self._said.lines(LAST_LINES, has_ended=True)
        if code == -signal.SIGKILL and machine.oom_kills() > self._oom_kills:
            return Failure("OUT_OF_MEMORY", " | ".join(["the system ended the worker for want of memory", *last]))
        how = f"signal {-code} ({_signal_name(-code)})" if code < 0 else f"exit status {code}"
        return Failure("CRASHED", " | ".join([f"the worker ended with {how}", *last]))


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else "unknown"


class Pool:
    """All workers of a run, by implementation name. One that failed is replaced at the next request."""

    def __init__(self, threads: int, settings: Mapping[str, str] | None = None) -> None:
        """``settings``: environment variables of every worker, such as the device that it may see."""
        self.threads = threads
        self.settings = settings or {}
        self._workers: dict[str, WorkerProcess] = {}
        self._failed_loads: dict[tuple[str, str], list[Failure]] = {}
        """By what was to be loaded, an (op, name)."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *unused: object) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()

    def start(
        self, pairs: Sequence[tuple[str, str]], seconds: float = math.inf, each_seconds: float = START_SECONDS
    ) -> None:
        """Start the workers for these (op, name), so that they import side by side, and wait until all stand still.

        One that does not within ``each_seconds`` of the one before it, or within ``seconds`` of all, is started again
        at the next request.
        """
        end = timing.CLOCK() + seconds
        new: dict[str, str] = {}
        for op, name in pairs:
            if name not in self._workers:
                self._workers[name] = self._new(op, name)
                new[name] = op
        for name, op in new.items():
            left = max(end - timing.CLOCK(), 0)
            try:
                self._workers[name].greet(min(left, each_seconds))
            except Failure as failure:
                self._workers.pop(name).kill()
                if failure.status != "TIMEOUT" or left > each_seconds:
                    self._failed_loads.setdefault((op, name), []).append(failure)
            else:
                self._workers[name].pause()

    def compile(self, pairs: Sequence[tuple[str, str]], seconds: float) -> dict[str, dict[str, Any]]:
        """Have the workers of these (op, name), which were started, compile all their CUDA kernels side by side.

        The answers, by name. One that failed, or took longer than ``seconds``, is replaced at the next request.
        """
        answers: dict[str, dict[str, Any]] = {}

        def fail(name: str, failure: Failure) -> None:
            answers[name] = {"status": failure.status, "reason": failure.reason}
            self._workers.pop(name).kill()

        end = timing.CLOCK() + seconds
        for name in {name: None for _, name in pairs if name in self._workers}:
            self._workers[name].resume()
            answers[name] = {}
            try:
                self._workers[name].send("compile", pairs=[pair for pair in pairs if pair[1] == name])
            except Failure as failure:
                fail(name, failure)
        for name in [name for name, answer in answers.items() if not answer]:
            try:
                answers[name] = self._workers[name].receive(max(end - timing.CLOCK(), 0))
                raise_if_crashed(answers[name])
            except Failure as failure:
                fail(name, failure)
            else:
                self._workers[name].pause()
        return answers

    def kill(self) -> None:
        """End all worker processes, from whatever thread: who waits for one gets a Failure."""
        for worker in tuple(self._workers.values()):
            worker.end()

    def pids(self) -> frozenset[int]:
        """The numbers of all worker processes."""
        return frozenset(worker.pid for worker in self._workers.values())

    def release(self, seconds: float = CALL_SECONDS) -> None:
        """Have every worker drop its plan and arrays. One that cannot is replaced at the next request."""
        for name, worker in tuple(self._workers.items()):
            try:
                worker.take_turn("release", seconds)
            except Failure:
                self._workers.pop(name).kill()

    def ask(self, op: str, name: str, do: str, seconds: float, /, **values: Any) -> dict[str, Any]:
        """Ask one worker while all others stand still. Raises Failure; that worker is gone then, as after Ctrl-C.

        One that answers CRASHED has lost its device: whatever it was asked next would fail for the same reason. What
        LOAD_ATTEMPTS workers could not load is not tried again.
        """
        failed = self._failed_loads.get((op, name), [])
        if len(failed) >= LOAD_ATTEMPTS:
            raise failed[-1]
        worker = self._workers.get(name) or self._new(op, name)
        self._workers[name] = worker
        try:
            return worker.take_turn(do, seconds, **values)
        except BaseException as error:  # Ctrl-C too: its answer is still to come, and would be taken for the next one's
            self.replace(name)
            if isinstance(error, Failure) and not worker.has_loaded:
                self._failed_loads.setdefault((op, name), []).append(error)
            raise

    def replace(self, name: str) -> None:
        """End a worker; the next request starts a fresh one."""
        self._workers.pop(name).kill()

    def _new(self, op: str, name: str) -> WorkerProcess:
        return WorkerProcess("bench.worker", self.threads, self.settings, op=op, name=name)


def foreign_device(op: str, name: str) -> str:
    """The name of the device of another package's implementation; empty where it cannot be loaded."""
    process = WorkerProcess("bench.worker", 1, {}, op=op, name=name)
    try:
        return str(process.greet().get("device", ""))
    except Failure:
        return ""
    finally:
        process.kill()
