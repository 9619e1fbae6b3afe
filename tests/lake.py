"""A small lake for tests: raw segments, batches and the table, on whatever AWS the session points at."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import zstandard
from moto.glue.exceptions import GlueClientError
from moto.glue.responses import GlueResponse

from schemahub.batches import Batch, Manifest
from schemahub.catalog import LakeCatalog, load_table
from schemahub.clock import FakeClock
from schemahub.mappings import load_mapping
from schemahub.objects import ObjectStore
from schemahub.publish import Published, publish
from schemahub.raw import raw_key
from schemahub.streams import Absent, Segment, Stream
from schemahub.transform import transform_batch


def make_glue_check_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teach moto what AWS does: UpdateTable with a VersionId that is not the current one is refused."""
    original = GlueResponse.update_table

    def update_table(this: Any) -> Any:
        database, wanted = this.parameters["DatabaseName"], this.parameters.get("VersionId")
        table = this.glue_backend.get_table(database, this.parameters["TableInput"]["Name"])
        if wanted is not None and wanted != table.as_dict()["VersionId"]:
            raise GlueClientError("ConcurrentModificationException", f"the table is not at version {wanted}")
        return original(this)

    monkeypatch.setattr(GlueResponse, "update_table", update_table)


BUCKET = "schemahub-test-lake"
DATABASE = "schemahub_test"
BTC = Stream("coinbase", "BTC-USD")
COMMITTED_MS = 1_710_400_000_000
"""2024-03-14 07:06:40 UTC."""


def coinbase_row(trade_id: int, /, **changes: Any) -> dict[str, Any]:
    """A trade as Coinbase sends it; one every 100 s, so that 864 make a day."""
    second = trade_id * 100 % 86_400
    row = {
        "trade_id": trade_id,
        "side": "sell" if trade_id % 3 else "buy",
        "size": f"0.{trade_id % 1000 + 1:08d}",
        "price": f"{60_000 + trade_id % 500}.25000000",
        "time": f"2024-03-{1 + trade_id * 100 // 86_400 % 13:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:"
        f"{second % 60:02d}.{trade_id % 1_000_000:06d}Z",
    }
    return {**row, **changes}


def packed(rows: Iterable[dict[str, Any] | str]) -> tuple[bytes, bytes]:
    """(compressed, plain) content of a raw object; text goes in as it is."""
    plain = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows).encode()
    return zstandard.ZstdCompressor(level=3).compress(plain), plain


def segment_of(stream: Stream, first: int, last: int, rows: Sequence[Any], plain: bytes,
               absent: tuple[Absent, ...] = (), committed_at: int = COMMITTED_MS) -> Segment:  # fmt: skip
    return Segment(
        stream, first, last, len(rows), absent, raw_key(stream, first, last, len(rows)),
        hashlib.sha256(plain).hexdigest(), "lambda", "run-1", f"commit-{stream}-{first}", committed_at,
    )  # fmt: skip


@dataclass
class Lake:
    """A bucket with raw objects and the unified table over it."""

    session: Any
    workdir: Path
    clock: FakeClock = field(default_factory=FakeClock)
    marked: dict[tuple[Stream, int], str] = field(default_factory=dict)
    mapping: Callable[[str], Any] = load_mapping

    def __post_init__(self) -> None:
        self.session.client("s3").create_bucket(Bucket=BUCKET)
        self.session.client("glue").create_database(DatabaseInput={"Name": DATABASE})
        self.objects = ObjectStore(BUCKET, self.session.client("s3"))
        self.catalog = LakeCatalog(self.session)

    def table(self) -> Any:
        return load_table(self.catalog, self.objects, DATABASE, "unified_trades")

    def commit(self, first: int, last: int, *, stream: Stream = BTC, rows: Sequence[Any] | None = None,
               absent: tuple[Absent, ...] = ()) -> Segment:  # fmt: skip
        """A durable raw object and its segment."""
        gone = {i for a in absent for i in range(a.first, a.last + 1)}
        if rows is None:
            rows = [coinbase_row(i) for i in range(first, last + 1) if i not in gone]
        body, plain = packed(rows)
        segment = segment_of(stream, first, last, rows, plain, absent)
        self.objects.put_new(segment.raw_key, body)
        return segment

    def transform(self, *segments: Segment, run: str = "run-1", rederive: bool = False) -> Manifest:
        batch = Batch.of(segments)
        folder = self.workdir / f"{run}-{batch.batch_id}"
        return transform_batch(self.objects, self.mapping, batch, run, folder, rederive=rederive, threads=1)

    def publish(self, *manifests: Manifest, run: str = "run-1", load: Callable[[], Any] | None = None) -> Published:
        return publish(load or self.table, self.objects, manifests, run, self.mark, self.clock)

    def mark(self, segments: Sequence[Segment], reference: str) -> None:
        for segment in segments:
            self.marked.setdefault((segment.stream, segment.first), reference)

    def files(self) -> list[str]:
        """Keys of the data files that the table's current snapshot names."""
        return sorted(t.file.file_path.removeprefix(f"s3://{BUCKET}/") for t in self.table().scan().plan_files())

    def rows(self) -> list[dict[str, Any]]:
        """Every row of the table, read by DuckDB from copies of the files that it names."""
        import duckdb

        folder = self.workdir / "read"
        folder.mkdir(exist_ok=True)
        local = []
        for number, key in enumerate(self.files()):
            path = folder / f"{number}.parquet"
            assert self.objects.get_to_file(key, path)
            local.append(str(path))
        if not local:
            return []
        answer = duckdb.execute(
            "SELECT *, epoch_us(trade_ts) AS trade_us, epoch_us(ingest_ts) AS ingest_us "
            "FROM read_parquet(?, union_by_name = true) "
            "ORDER BY exchange, symbol, trade_us, trade_id::BIGINT", [local])  # fmt: skip
        names = [d[0] for d in answer.description]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def ids(self, stream: Stream = BTC) -> list[int]:
        return [int(r["trade_id"]) for r in self.rows() if r["symbol"] == stream.product]


class S3Door:
    """Reads of the in-process S3 over HTTP, for DuckDB, which brings its own client. Records what was asked for."""

    def __init__(self, objects: ObjectStore) -> None:
        self.asked: list[str] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                key = unquote(urlsplit(self.path).path).removeprefix(f"/{objects.bucket}/")
                door.asked.append(key)
                body = objects.get(key)
                if body is None:
                    self.send_error(404)
                    return
                found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                part = body[int(found[1]) : int(found[2] or len(body)) + 1] if found else body
                self.send_response(206 if found else 200)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                if found:
                    end = int(found[1]) + len(part) - 1
                    self.send_header("Content-Range", f"bytes {found[1]}-{end}/{len(body)}")
                self.end_headers()
                if with_body:
                    self.wfile.write(part)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
