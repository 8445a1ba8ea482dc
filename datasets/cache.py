"""Where the files of a data set live: find them, check them, download what is missing.

A file is looked for in the folder that $LAYERBENCH_DATA names, there in the sub-folder named like the data set, then
in the user's cache. Nothing is parsed before its SHA-256 holds, nothing is unpacked onto the disk, nothing is
unpickled. A wrong file is refused: in the cache it is renamed, so that the next call downloads it again; in
$LAYERBENCH_DATA, which is the user's, it is left as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from datasets.contract import ALTERED, MISSING, OK, Check, DatasetError, File, Form

VARIABLE = "LAYERBENCH_DATA"
_TIMEOUT_S = 30
"""Longest silence of a server."""
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Local:
    """The files of one form of a data set that are on this machine."""

    dataset: str
    form: Form
    paths: Mapping[str, Path]

    @property
    def missing(self) -> tuple[File, ...]:
        """Files of the form that are not there."""
        return tuple(file for file in self.form.files if file.name not in self.paths)

    def read(self, name: str) -> bytes:
        """The content of one file (of a gzip file: what it holds). Raises DatasetError unless its hash holds."""
        file = next(file for file in self.form.files if file.name == name)
        path = self.paths[name]
        try:
            examined = _examine(file, path)
        except OSError as error:
            raise DatasetError(f"{self.dataset}: {path} cannot be read: {error.strerror or error}") from error
        if examined.content is None:
            raise _refuse(self.dataset, file, path, examined)
        return examined.content

    def check(self, file: File) -> Check:
        """Judge one file, and touch nothing."""
        path = self.paths.get(file.name)
        if path is None:
            return Check(self.dataset, file.name, None, "", file.expected, "", MISSING)
        try:
            examined = _examine(file, path)
        except OSError as error:
            examined = _Examined(None, "", "", f"cannot be read: {error.strerror or error}")
        status = ALTERED if examined.content is None else OK
        expected = examined.sha256 if status == OK else file.expected
        return Check(self.dataset, file.name, path, examined.form, expected, examined.sha256, status, examined.note)


@dataclass(frozen=True, slots=True)
class _Examined:
    """What is in a file: its content (None: refused), the hash that decides, what the file is called, what is wrong."""

    content: bytes | None
    sha256: str
    form: str
    note: str = ""


def user_cache(dataset: str) -> Path:
    """The folder of a data set in the user's cache: XDG on Linux, what is usual on macOS and Windows."""
    import pooch

    return Path(pooch.os_cache("layerbench")) / "datasets" / dataset


def locate(dataset: str, forms: tuple[Form, ...]) -> Local:
    """The first complete form; of incomplete ones that with the most files, the first of equals.

    Raises DatasetError if $LAYERBENCH_DATA is set and names no folder.
    """
    folders = (*_own_folders(dataset), user_cache(dataset))
    found = [Local(dataset, form, _paths(form, folders)) for form in forms]
    complete = [local for local in found if not local.missing]
    return complete[0] if complete else max(found, key=lambda local: len(local.paths))


def obtain(dataset: str, forms: tuple[Form, ...]) -> Local:
    """A complete form, downloaded if there is none. Raises DatasetError if that fails too."""
    local = locate(dataset, forms)
    if not local.missing:
        return local
    wanted = locate(dataset, forms[:1])
    try:
        downloaded = {file.name: download(dataset, file) for file in wanted.missing}
    except DatasetError as error:
        if not local.paths or local.form is forms[0]:
            raise
        first, count = local.missing[0].name, len(local.missing)
        raise DatasetError(f"{error}; of the {local.form.name} {count} are missing, first {first}") from error
    return Local(dataset, forms[0], {**wanted.paths, **downloaded})


def download(dataset: str, file: File) -> Path:
    """Fetch a file into the user's cache. Raises DatasetError if no address gave it."""
    path = user_cache(dataset) / file.name
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for address in file.addresses:
            failure = _download_from(address, file, path)
            if not failure:
                return path
            failures.append(f"{address} ({failure})")
    except OSError as error:
        failures.append(f"the cache {path.parent} cannot be written: {error.strerror or error}")
    where = os.environ.get(VARIABLE) or "not set"
    raise DatasetError(
        f"{dataset}: {file.name} is neither in ${VARIABLE} ({where}) nor in {path.parent}, and no download worked: "
        f"{', '.join(failures)}; put the file into a folder and set {VARIABLE} to that folder"
    )


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """What a gzip file holds. Raises ValueError if that is damaged or more than ``max_bytes``, and unpacks no more."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"no sound gzip file: {error}") from error
    if len(unpacked) > max_bytes:
        raise ValueError(f"holds more than {max_bytes} bytes")
    return unpacked


def _own_folders(dataset: str) -> tuple[Path, ...]:
    """Where $LAYERBENCH_DATA says to look; nowhere if it is not set."""
    value = os.environ.get(VARIABLE)
    if not value:
        return ()
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DatasetError(f"{dataset}: ${VARIABLE} is {value}, which is no folder; correct it or unset it")
    return (folder, folder / dataset)


def _paths(form: Form, folders: tuple[Path, ...]) -> dict[str, Path]:
    """The files of a form that exist, each where it is first found."""
    candidates = ((file.name, folder / file.name) for folder in reversed(folders) for file in form.files)
    return {name: path for name, path in candidates if path.is_file()}


def _examine(file: File, path: Path) -> _Examined:
    """Read a file, never more than it may have, and compare its hash. Raises OSError."""
    with path.open("rb") as stream:
        data = stream.read(file.max_bytes + 1)
        if len(data) > file.max_bytes:
            stream.seek(0)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return _Examined(None, sha256, "", f"larger than the {file.max_bytes} bytes it may have")
    sha256 = hashlib.sha256(data).hexdigest()
    if file.content is None:
        if sha256 not in file.hashes:
            return _Examined(None, sha256, "", f"{len(data)} bytes")
        return _Examined(data, sha256, file.hashes[sha256])
    try:
        unpacked = gunzip(data, file.content.size)
    except ValueError as error:
        return _Examined(None, sha256, "", str(error))
    inner = hashlib.sha256(unpacked).hexdigest()
    if inner != file.content.sha256:
        return _Examined(None, inner, "", f"the hash of the {len(unpacked)} bytes that it holds")
    return _Examined(unpacked, inner, file.hashes.get(sha256, "compressed again"))


def _difference(file: File, examined: _Examined) -> str:
    return f"SHA-256 {examined.sha256} instead of {file.expected}, {examined.note}"


def _aside(path: Path, examined: _Examined) -> Path:
    """The name under which a refused file is kept."""
    return path.with_name(f"{path.name}.refused-{examined.sha256[:16]}")


def _refuse(dataset: str, file: File, path: Path, examined: _Examined) -> DatasetError:
    """The reason why a file is not used. One in the user's cache is renamed, any other left as it is."""
    what_now = "replace it"
    if path.parent == user_cache(dataset):
        aside = _aside(path, examined)
        try:
            path.replace(aside)
        except OSError as error:
            what_now = f"it cannot be renamed ({error.strerror or error}), delete it"
        else:
            what_now = f"it is kept as {aside.name}, ask again and it is downloaded"
    return DatasetError(f"{dataset}: {path} is altered or truncated ({_difference(file, examined)}); {what_now}")


def _download_from(address: str, file: File, path: Path) -> str:
    """Download to a temporary name, compare the hash, rename; why that failed, or an empty text. Raises OSError.

    A body with another hash is kept under a name that tells it.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            failure = _transfer(address, stream, file)
        if failure:
            return failure
        examined = _examine(file, part)
        if examined.content is None:
            aside = part.replace(_aside(path, examined))
            return f"altered or truncated: {_difference(file, examined)}; kept as {aside}"
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return ""


def _transfer(address: str, stream: IO[bytes], file: File) -> str:
    """Copy what an address sends into a stream; why that failed, or an empty text. Raises OSError of the stream."""
    import pooch
    import requests

    with _Bar(file.name) as bar:
        fetch = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S, headers={"Accept-Encoding": "identity"}
        )
        try:
            fetch(address, _Capped(stream, file.max_bytes), None)
        except requests.HTTPError as error:
            return str(error).partition(" for url")[0]
        except requests.exceptions.SSLError:
            return "its certificate is not trusted"
        except requests.ConnectionError:
            return "no connection"
        except (requests.RequestException, ValueError, _TooLarge) as error:
            return str(error)
    return ""


class _TooLarge(Exception):
    """A server sends more than the file may have."""


class _Capped:
    """A stream that takes a limited number of bytes."""

    def __init__(self, stream: IO[bytes], max_bytes: int) -> None:
        self._stream = stream
        self._left = self._max = max_bytes

    def write(self, data: bytes) -> int:
        """Write all of it. Raises _TooLarge once the limit is passed."""
        self._left -= len(data)
        if self._left < 0:
            raise _TooLarge(f"sends more than the {self._max} bytes the file may have")
        return self._stream.write(data)

    def flush(self) -> None:
        """Nothing is held back here."""


class _Bar:
    """Progress of one download as pooch reports it, drawn on the standard error stream if that is a terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total(self) -> float | None:
        """Bytes to come; None where the server does not say."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, count: int) -> None:
        self._progress.update(self._task, total=count or None)

    def update(self, count: int) -> None:
        """So many bytes more."""
        self._progress.advance(self._task, count)

    def reset(self) -> None:
        """Back to none; pooch then reports the total at once."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Leave the terminal as it is."""
        self._progress.stop()
