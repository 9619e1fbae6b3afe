"""A query's answer as CSV, JSON, NDJSON, Parquet or Arrow, batch by batch: memory does not grow with it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from schemahub.errors import BadInput, BadQuery
from schemahub_cli import cells
from schemahub_cli.formats import Format

ROW_GROUP_ROWS = 122_880
ROW_GROUP_BYTES = 32 << 20
SPOOL_BYTES = 8 << 20


@dataclass
class Answer:
    """The rows of a query as they come, and what the engine says of it.

    After the last batch ``truncated`` says whether there were more than ``max_rows``.
    """

    schema: pa.Schema
    source: Iterator[pa.RecordBatch]
    max_rows: int | None = None
    scanned_bytes: int | None = None
    rows: int = 0
    truncated: bool = False

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, up to ``max_rows``."""
        for batch in self.source:
            room = len(batch) if self.max_rows is None else self.max_rows - self.rows
            self.truncated = len(batch) > room
            taken = batch.slice(0, room)
            self.rows += len(taken)
            if len(taken):
                yield taken
            if self.truncated:
                return


def write(answer: Answer, form: Format, sink: IO[bytes], ended: Any = dict) -> None:
    """All of the answer. ``ended()`` gives what a JSON document says after the rows.

    Raises:
        BadQuery: the format cannot hold the answer: two columns of one name, or a type that it does not have.
    """
    names = answer.schema.names
    if form in (Format.NDJSON, Format.PARQUET, Format.ARROW) and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadQuery(f"two columns are called {twice!r}", remedy=f"Name them apart with AS; {form} needs it.")
    try:
        if form.binary:
            _binary(answer, form, sink)
        elif form is Format.JSON:
            _json(answer, sink, ended)
        else:
            if form is Format.CSV:
                sink.write(_lines([cells.csv_text(pa.array([name])) for name in names], "", ",", "\n"))
            for batch in answer.batches():
                sink.write(_csv(batch) if form is Format.CSV else _ndjson(batch))
    except pa.ArrowException as error:
        raise BadQuery(f"{form} cannot hold this answer: {str(error)[:300]}", remedy="Cast the column.") from error


def _csv(batch: pa.RecordBatch) -> bytes:
    alone = batch.num_columns == 1
    return _lines([cells.csv_text(column, alone=alone) for column in batch.columns], "", ",", "\n")


def _ndjson(batch: pa.RecordBatch) -> bytes:
    named = [
        pc.binary_join_element_wise(f"{json.dumps(name, ensure_ascii=False)}: ", cells.json_text(column), "")
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return _lines(named, "{", ", ", "}\n")


def _json(answer: Answer, sink: IO[bytes], ended: Any) -> None:
    """One document, whose rows are lines of it."""
    sink.write(f'{{\n  "columns": {json.dumps(answer.schema.names)},\n  "rows": ['.encode())
    for number, batch in enumerate(answer.batches()):
        rows = _lines([cells.json_text(column) for column in batch.columns], "    [", ", ", "],\n")
        sink.write((b",\n" if number else b"\n") + rows.removesuffix(b",\n"))
    tail = json.dumps({"row_count": answer.rows, "truncated": answer.truncated, **ended()})
    sink.write((b"\n  ],\n  " if answer.rows else b"],\n  ") + tail[1:-1].encode() + b"\n}\n")


def _lines(columns: list[pa.Array], begin: str, between: str, end: str) -> bytes:
    """A line of each row, by columns of text without nulls."""
    large = pa.large_string()  # a batch of long texts does not fit in 2 GiB
    joined = pc.binary_join_element_wise(*[column.cast(large) for column in columns], pa.scalar(between, large))
    whole = pc.binary_join_element_wise(*(pa.scalar(begin, large), joined, pa.scalar(end, large), pa.scalar("", large)))
    flat = pc.binary_join(pa.LargeListArray.from_arrays([0, len(whole)], whole), pa.scalar("", large))
    return flat[0].as_buffer().to_pybytes()  # type: ignore[no-any-return]


def _binary(answer: Answer, form: Format, sink: IO[bytes]) -> None:
    if form is Format.ARROW:
        with pa.ipc.new_file(sink, answer.schema) as arrow:
            for batch in answer.batches():
                arrow.write_batch(batch)
        return
    import pyarrow.parquet as pq  # only this format needs it

    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(sink, answer.schema, compression="zstd") as parquet:
        for batch in answer.batches():
            held.append(batch)
            if sum(map(len, held)) >= ROW_GROUP_ROWS or sum(b.nbytes for b in held) >= ROW_GROUP_BYTES:
                parquet.write_table(pa.Table.from_batches(held))
                held = []
        if held:
            parquet.write_table(pa.Table.from_batches(held))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there under its name when it is whole, and not before; what was there is replaced then.

    Raises:
        BadInput: nothing can be written there.
    """
    if path.exists() and not path.is_file():
        raise BadInput(f"{str(path)!r} is not a file", remedy="Name a file, or leave -o out to write to stdout.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(path)
    except OSError as error:
        raise BadInput(
            f"{str(path)!r} cannot be written: {error.strerror or error}", remedy="Name a file in a folder with room."
        ) from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_document(sink: IO[bytes]) -> Iterator[IO[bytes]]:
    """What is written gets to ``sink`` at the end or not at all: an error leaves no half document on stdout."""
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        yield spool
        spool.seek(0)
        while part := spool.read(1 << 20):
            sink.write(part)
