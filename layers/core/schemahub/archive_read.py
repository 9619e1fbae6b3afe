"""Reading a file of an archive: one CSV out of its zip, streamed, each row as the JSON line that raw keeps.

A zip is believed nothing before its declared sizes, its one member and that member's name were looked at. Rows are read
in blocks by pyarrow with every column as text, so that prices keep their digits. A row is refused, and counted by its
reason, if the mapping could not read its line: the API is asked for its id instead.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as csv

from schemahub.archive_layout import Layout
from schemahub.archives import ArchiveFile
from schemahub.errors import ArchiveBomb, ArchiveUnreadable

MAX_PLAIN_BYTES = 96 * 2**30
"""A month of the busiest pair has a tenth."""
MAX_RATIO = 60.0
"""Digits pack 3 to 12 times; a bomb of zeros 1,000 times."""
RATIO_FROM_BYTES = 2**20
MAX_DIRECTORY_BYTES = 64 * 1024
BLOCK_BYTES = 2**19
MAX_UNREADABLE = 10_000
"""Rows of the wrong width: more of them are another format."""
PLAIN = bytes(range(0x30, 0x3A)) + b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.,+-_:\r\n"
"""What needs no escape in JSON."""
SCHEMA = pa.schema([("id", pa.int64()), ("ts_us", pa.int64()), ("line", pa.string())])
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


@dataclass
class Read:
    """What was seen while a file was read. ``refused`` counts rows by reason."""

    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    """Rows by the unit that their time was in."""
    examples: list[str] = field(default_factory=list)
    header: bool = False


@contextlib.contextmanager
def member_of(path: Path, file: ArchiveFile) -> Iterator[IO[bytes]]:
    """The CSV in the zip at ``path``, as a stream.

    Raises:
        ArchiveUnreadable: not a zip, or not exactly this file's CSV in it. ArchiveBomb: it would unpack to too much.
    """
    _check_directory(path, file)
    try:
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
            if [m.filename for m in members] != [file.member]:
                said = ", ".join(repr(m.filename[:60]) for m in members[:3]) or "nothing"
                raise ArchiveUnreadable(
                    f"{file.name} holds {said} ({len(members)} files) instead of {file.member!r}", stream=file.stream
                )
            _check_member(members[0], file)
            with packed.open(members[0]) as plain:
                yield plain
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArchiveUnreadable(f"{file.name} cannot be unpacked: {str(error)[:200]}", stream=file.stream) from error


def _check_member(info: zipfile.ZipInfo, file: ArchiveFile) -> None:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveUnreadable(f"{file.name} is encrypted or packed in an unusual way", stream=file.stream)
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > MAX_PLAIN_BYTES or (info.file_size > RATIO_FROM_BYTES and ratio > MAX_RATIO):
        raise ArchiveBomb(
            f"{file.name} would unpack to {info.file_size} bytes, {ratio:.0f} times its size", stream=file.stream
        )


def _check_directory(path: Path, file: ArchiveFile) -> None:
    """``zipfile`` reads the whole directory of a zip into memory: first look how large it says it is."""
    size = path.stat().st_size
    with path.open("rb") as packed:
        packed.seek(max(0, size - 65_557))
        tail = packed.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise ArchiveUnreadable(f"{file.name} is not a zip", stream=file.stream)
    entries, directory = struct.unpack("<HI", tail[at + 10 : at + 16])
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (where,) = struct.unpack("<Q", tail[at - 12 : at - 4])
        with path.open("rb") as packed:
            packed.seek(min(where, size))
            record = packed.read(56)
        if len(record) < 56 or record[:4] != _END64:
            raise ArchiveUnreadable(f"{file.name} is not a zip", stream=file.stream)
        entries, directory = struct.unpack("<QQ", record[32:48])
    if directory > MAX_DIRECTORY_BYTES:
        raise ArchiveBomb(f"{file.name} lists {entries} files in {directory} bytes", stream=file.stream)


class _Watched(io.RawIOBase):
    """A stream that remembers whether anything passed that JSON would have to escape."""

    def __init__(self, head: bytes, plain: IO[bytes], tick: Callable[[], None]) -> None:
        self.head, self.plain, self.tick = head, plain, tick
        self.odd = bool(head.translate(None, PLAIN))

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.tick()
        if self.head:
            block, self.head = self.head[:size], self.head[size:]
            return block
        block = self.plain.read(size)
        self.odd = self.odd or bool(block.translate(None, PLAIN))
        return block


def read_rows(
    plain: IO[bytes], file: ArchiveFile, layout: Layout, read: Read, tick: Callable[[], None] = lambda: None
) -> Iterator[pa.RecordBatch]:
    """Every usable row as (id, microseconds since the epoch, JSON line), in the file's order.

    Raises:
        ArchiveUnreadable: the text is no CSV of the mapping's columns.
    """
    head = plain.read(BLOCK_BYTES)
    if not head.strip():
        return
    first, _, rest = head.partition(b"\n")
    names, read.header = layout.header(first.decode("utf-8", "replace").strip("\r\n"), file)
    watched = _Watched(rest if read.header else head, plain, tick)
    refused: list[str] = []

    def skip(row: Any) -> str:
        refused.append(str(row.text)[:120])
        return "skip" if len(refused) <= MAX_UNREADABLE else "error"

    try:
        reader = csv.open_csv(
            watched,
            csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names),
            csv.ParseOptions(quote_char=False, newlines_in_values=False, invalid_row_handler=skip),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
        while (batch := _next(reader)) is not None:
            read.rows += len(batch) + len(refused)
            _note(read, "not a row of the mapping's columns", refused)
            refused.clear()
            yield layout.rows(batch, read, odd=watched.odd)
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise ArchiveUnreadable(f"{file.member} cannot be read: {str(error)[:200]}", stream=file.stream) from error
    except pa.ArrowException as error:
        raise ArchiveUnreadable(f"{file.member} cannot be read: {str(error)[:200]}", stream=file.stream) from error


def _next(reader: Any) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None


def _note(read: Read, reason: str, texts: list[str]) -> None:
    if texts:
        read.refused[reason] += len(texts)
        read.examples += texts[: max(0, 20 - len(read.examples))]
