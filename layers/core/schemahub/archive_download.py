"""Downloading a file of an archive: to one bounded file on disk, continued where it broke off, proved by its SHA-256.

The packed file is all that ever lies on disk as a whole. A download is continued only if the server says that the file
is still the one that it was begun with (``If-Range``); otherwise it begins again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import requests

from schemahub.archives import ArchiveFile, Checksum, parse_checksum
from schemahub.clock import Clock
from schemahub.errors import (
    ArchiveAbsent,
    ArchiveBomb,
    ChecksumMismatch,
    ExchangeRefused,
    ExchangeUnavailable,
    ResponseInterrupted,
)
from schemahub.exchanges import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, USER_AGENT

MAX_FILE_BYTES = 12 * 2**30
"""Packed. The largest month of trades that Binance has published is a third of it; Fargate's disk has 20 GiB."""
MAX_TRIES = 8
"""Attempts in a row that bring no byte."""
LONGEST_PAUSE_S = 10.0
"""A worker that is told to stop has 20 seconds."""
BLOCK = 1 << 16
"""What a broken connection may cost."""
ABSENT = (404, 410)
PASSING = (408, 429)


@dataclass(frozen=True)
class Opened:
    """The beginning of an answer; ``blocks`` streams its body."""

    status: int
    headers: dict[str, str]
    blocks: Iterator[bytes]


class Files(Protocol):
    def open(self, url: str, headers: dict[str, str]) -> contextlib.AbstractContextManager[Opened]:
        """One GET, streamed. Raises ExchangeUnavailable (nothing came) or ResponseInterrupted (the body broke off)."""
        ...


class RequestsFiles:
    """``Files`` over requests: no redirects, verified TLS, the bytes as they are stored."""

    def __init__(self, session: requests.Session | None = None) -> None:
        self.session = session or requests.Session()
        self.session.headers["User-Agent"] = USER_AGENT

    @contextlib.contextmanager
    def open(self, url: str, headers: dict[str, str]) -> Iterator[Opened]:
        asked = {**headers, "Accept-Encoding": "identity"}
        try:
            with self.session.get(
                url, headers=asked, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S), allow_redirects=False, stream=True
            ) as answer:
                said = {k.lower(): v for k, v in answer.headers.items()}
                yield Opened(answer.status_code, said, answer.iter_content(BLOCK))
        except requests.exceptions.SSLError as error:
            raise ExchangeRefused(f"TLS failed: {str(error)[:200]}") from error
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
            raise ResponseInterrupted(f"the file broke off: {str(error)[:200]}") from error
        except requests.exceptions.RequestException as error:
            raise ExchangeUnavailable(f"no answer: {str(error)[:200]}") from error


@dataclass(frozen=True)
class Issue:
    """A file as it was read, and what the exchange says of it."""

    path: Path
    size: int
    sha256: str
    checksum: Checksum
    upstream: str | None
    resumed: int
    """How often the download was continued where it had broken off."""


class Downloads:
    """The archive of one exchange at an address."""

    def __init__(
        self, files: Files, address: str, suffix: str | None, clock: Clock, tick: Callable[[], None] = lambda: None
    ) -> None:
        """``suffix`` is what the name of a checksum has behind that of its file; None where none are published."""
        self.files, self.address, self.suffix, self.clock, self.tick = files, address, suffix, clock, tick
        self.most_bytes = MAX_FILE_BYTES

    def checksum(self, file: ArchiveFile) -> str | None:
        """The SHA-256 that is published for a file, or None. Raises ArchiveUnreadable for what is none."""
        if self.suffix is None:
            return None
        body = self._small(self.address + file.path + self.suffix)
        return parse_checksum(body, file) if body is not None else None

    def obtain(self, file: ArchiveFile, folder: Path) -> Issue:
        """The file, whole, and as published.

        Raises:
            ArchiveAbsent: there is none. ChecksumMismatch: also a second download is not what is published.
            ArchiveBomb: it is larger than ``most_bytes``.
            ExchangeUnavailable, ResponseInterrupted, ExchangeRefused: it cannot be had now.
        """
        path = folder / file.name
        for last in (False, True):
            upstream = self.checksum(file)
            resumed = self._download(file, path)
            sha256 = sha256_of(path, self.tick)
            if upstream is None or upstream == sha256:
                state: Checksum = "verified" if upstream else "missing"
                return Issue(path, path.stat().st_size, sha256, state, upstream, resumed)
            # It may have been issued again between the two requests: once more from its beginning.
            discard(path)
            if last:
                raise ChecksumMismatch(
                    f"{file.name} has the SHA-256 {sha256[:16]}…, published is {upstream[:16]}…", stream=file.stream
                )
        raise AssertionError("unreachable")

    def _download(self, file: ArchiveFile, path: Path) -> int:
        resumed = failures = 0
        while True:
            before = _size(path)
            try:
                if self._continue(file, path):
                    return resumed
            except (ExchangeUnavailable, ResponseInterrupted):
                failures = 0 if _size(path) > before else failures + 1
                if failures >= MAX_TRIES:
                    raise
            resumed += _size(path) > 0
            self.tick()
            self.clock.sleep(min(LONGEST_PAUSE_S, 2.0**failures))

    def _continue(self, file: ArchiveFile, path: Path) -> bool:
        """One request for what is not there yet. True when the file is whole."""
        at, mark = _size(path), _mark_of(path)
        headers = {"Range": f"bytes={at}-", "If-Range": mark} if at and mark else {}
        with self.files.open(self.address + file.path, headers) as answer:
            if answer.status in ABSENT:
                raise ArchiveAbsent(f"{file.path} is not there (status {answer.status})", stream=file.stream)
            if answer.status >= 500 or answer.status in PASSING:
                raise ExchangeUnavailable(f"status {answer.status} for {file.path}", stream=file.stream)
            begin, total = _extent(answer)
            if answer.status == 416 or (answer.status == 206 and begin != at):
                if answer.status == 416 and total == at:
                    return True
                discard(path)
                return False
            if answer.status not in (200, 206):
                raise ExchangeRefused(f"status {answer.status} for {file.path}", stream=file.stream)
            if total is not None and total > self.most_bytes:
                raise ArchiveBomb(f"{file.name} has {total} bytes packed", stream=file.stream)
            _set_mark(path, answer.headers.get("etag") or answer.headers.get("last-modified"))
            with path.open("ab" if answer.status == 206 else "wb") as out:
                size = at if answer.status == 206 else 0
                for block in answer.blocks:
                    size += len(block)
                    if size > self.most_bytes:
                        raise ArchiveBomb(f"{file.name} has more than {self.most_bytes} bytes", stream=file.stream)
                    out.write(block)
                    self.tick()
        if total is not None and size < total:
            raise ResponseInterrupted(f"{file.name} broke off at {size} of {total} bytes", stream=file.stream)
        return True

    def _small(self, url: str) -> bytes | None:
        """A small file, with the same patience; None where there is none."""
        for failures in range(MAX_TRIES):
            try:
                with self.files.open(url, {}) as answer:
                    if answer.status in ABSENT:
                        return None
                    if answer.status == 200:
                        return next(iter(answer.blocks), b"")
                    if answer.status < 500 and answer.status not in PASSING:
                        raise ExchangeRefused(f"status {answer.status} for {url[:200]}")
            except (ExchangeUnavailable, ResponseInterrupted):
                pass
            self.tick()
            self.clock.sleep(min(LONGEST_PAUSE_S, 2.0**failures))
        raise ExchangeUnavailable(f"no answer for {url[:200]}")


def sha256_of(path: Path, tick: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as packed:
        while block := packed.read(1 << 20):
            digest.update(block)
            tick()
    return digest.hexdigest()


def discard(path: Path) -> None:
    """Forget a download, whole or in part."""
    path.unlink(missing_ok=True)
    _mark_path(path).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _extent(answer: Opened) -> tuple[int, int | None]:
    """(the first byte of the body, bytes of the whole file) as the answer says."""
    if answer.status in (206, 416):
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", answer.headers.get("content-range", ""))
        return (int(match[1] or 0), int(match[2])) if match else (-1, None)
    length = answer.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else None


def _mark_path(path: Path) -> Path:
    return path.with_name(path.name + ".issue")


def _mark_of(path: Path) -> str | None:
    """What the server called the issue that a part was taken of."""
    mark = _mark_path(path)
    return mark.read_text() or None if mark.exists() else None


def _set_mark(path: Path, mark: str | None) -> None:
    # A weak ETag promises no equal bytes: such a file is never continued.
    strong = mark is not None and not mark.startswith("W/")
    _mark_path(path).write_text(mark if strong and mark else "")
