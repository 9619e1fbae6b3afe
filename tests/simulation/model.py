"""What must hold after every single call of every worker, judged from the stores alone.

It shares no code with the product's own decisions: it reads items, objects and Iceberg metadata as they lie there, and
remembers how they were before.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import zstandard
from pyiceberg.table.metadata import TableMetadataUtil

from local.exchange_sim.simulator import Simulator
from schemahub.catalog import S3FileIO
from schemahub.streams import Stream
from tests.simulation.stores import Item, Stores

Rows = dict[str, list[tuple[int, str, float, float, int]]]
"""Symbol → (id, taker's side, price, quantity, time in µs)."""


class Violation(AssertionError):
    """An invariant does not hold. The message begins with the name of the guarantee."""


def demand(holds: bool, guarantee: str, what: str) -> None:
    if not holds:
        raise Violation(f"{guarantee}: {what}")


class Model:
    def __init__(self, stores: Stores, simulator: Simulator, streams: Sequence[Stream], table: tuple[str, str]) -> None:
        self.stores, self.simulator, self.streams, self.table = stores, simulator, streams, table
        self.locks: dict[str, Item] = {}
        self.marks: dict[Stream, Item] = {}
        self.segments: dict[Stream, dict[int, Item]] = {s: {} for s in streams}
        self.mirrors: dict[Stream, Any] = {}
        self.raw: dict[str, str] = {}
        self.rows: Rows = {}
        self.files: set[str] = set()
        self.looked = (-1, -1, "")
        self.broken = False
        """A violation was found: what is looked at after it means nothing."""
        self._file_rows: dict[str, Rows] = {}
        self._manifests: dict[str, list[str]] = {}

    def check(self, actor: str) -> None:
        """Everything that changed since the last look; ``actor`` is the execution whose worker made the last call."""
        try:
            self._check(actor)
        except Violation:
            self.broken = True
            raise

    def _check(self, actor: str) -> None:
        found = self.stores.glue.tables.get(self.table, {}).get("VersionId", "")
        now = (self.stores.locks.writes, self.stores.streams.writes, found)
        keys, self.stores.s3.changed = self.stores.s3.changed, set()
        before, self.looked = self.looked, now
        for key in keys:
            if key.startswith("schemahub/raw_"):
                self._raw_stays(key)
        if now[0] != before[0]:
            self._locks()
        if now[1] != before[1]:
            for stream in self.streams:
                self._line(stream, actor)
        for stream in self.streams:
            if stream.mirror_key in keys:
                self._mirror(stream)
        if now[2] != before[2]:
            self._table()

    # --- locks --------------------------------------------------------------------------------------------------

    def _locks(self) -> None:
        items = {key[0]: item for key, item in self.stores.locks.items.items()}
        for lock_id, old in self.locks.items():
            demand(lock_id in items, "single writer", f"the item of {lock_id} is gone, and its fence with it")
            new = items[lock_id]
            demand(new["fence"] >= old["fence"], "single writer", f"{lock_id}: fence {old['fence']} → {new['fence']}")
            holder = [(i.get("owner"), i.get("attempt")) for i in (old, new)]
            taken = holder[1] != holder[0] and holder[1][0] is not None
            demand(
                not taken or new["fence"] > old["fence"], "single writer", f"{lock_id} was taken without a new fence"
            )
        self.locks = items

    # --- the ledger ---------------------------------------------------------------------------------------------

    def _line(self, stream: Stream, actor: str) -> None:
        items = [item for key, item in self.stores.streams.items.items() if key[0] == str(stream)]
        mark = next((i for i in items if i["item"] == "watermark"), None)
        segments = {int(i["first"]): i for i in items if i["item"].startswith("segment#")}
        old = self.marks.get(stream)
        if mark != old:
            self._moved(stream, old, mark, actor)
        for first, item in self.segments[stream].items():
            same = first in segments and segments[first]["commit_id"] == item["commit_id"]
            demand(same, "tiling", f"{stream}: the segment at {first} was changed")
        self._tiles(stream, mark, segments)
        for first in segments.keys() - self.segments[stream].keys():
            self._raw_first(stream, segments[first])
        self.segments[stream] = segments

    def _moved(self, stream: Stream, old: Item | None, mark: Item | None, actor: str) -> None:
        if mark is None:
            raise Violation(f"monotonic: {stream}: the watermark is gone")
        if old is not None:
            demand(mark["high"] > old["high"], "monotonic", f"{stream}: high {old['high']} → {mark['high']}")
            demand(mark["low"] <= old["low"], "monotonic", f"{stream}: low {old['low']} → {mark['low']}")
            demand(mark["fence"] >= old["fence"], "monotonic", f"{stream}: fence {old['fence']} → {mark['fence']}")
        lock = self.stores.locks.items.get((stream.lock_id,), {})
        demand(
            (lock.get("owner"), lock.get("fence")) == (actor, mark["fence"]),
            "single writer",
            f"{stream}: {actor} committed with fence {mark['fence']}, the lock has {lock.get('owner')}, "
            f"fence {lock.get('fence')}",
        )
        self.marks[stream] = mark

    @staticmethod
    def _tiles(stream: Stream, mark: Item | None, segments: dict[int, Item]) -> None:
        edge = None
        for first in sorted(segments):
            demand(edge is None or first == edge + 1, "tiling", f"{stream}: {edge} is followed by {first}")
            edge = int(segments[first]["last"])
        ends = (min(segments), edge) if segments else None
        said = (mark["low"], mark["high"]) if mark else None
        demand(ends == said, "tiling", f"{stream}: segments {ends}, watermark {said}")

    def _raw_first(self, stream: Stream, item: Item) -> None:
        """The object of a new segment holds exactly the exchange's trades of its range."""
        found = self.stores.s3.objects.get(item["raw_key"])
        demand(found is not None, "raw first", f"{item['raw_key']} is not there")
        assert found is not None
        content = zstandard.ZstdDecompressor().decompressobj().decompress(found[0])
        demand(hashlib.sha256(content).hexdigest() == item["sha256"], "raw first", f"{item['raw_key']}: other content")
        rows = [json.loads(line) for line in content.splitlines()]
        told = self.simulator.trades(stream.exchange, stream.product, int(item["first"]), int(item["last"]))
        demand(rows == told, "raw first", f"{item['raw_key']} is not what the exchange has")

    def _raw_stays(self, key: str) -> None:
        digest = hashlib.sha256(self.stores.s3.objects[key][0]).hexdigest()
        demand(self.raw.setdefault(key, digest) == digest, "raw first", f"{key} was overwritten")

    # --- the mirror ---------------------------------------------------------------------------------------------

    def _mirror(self, stream: Stream) -> None:
        body = json.loads(self.stores.s3.objects[stream.mirror_key][0])
        mark, old = self.marks.get(stream), self.mirrors.get(stream)
        if mark is None:
            raise Violation(f"mirror ≤ truth: {stream}: a mirror of nothing")
        here, truth = (body["low"], body["high"]), (int(mark["low"]), int(mark["high"]))
        demand(here[1] <= truth[1] and here[0] >= truth[0], "mirror ≤ truth", f"{stream}: {here}, the table {truth}")
        demand(
            old is None or old["high"] <= here[1], "mirror ≤ truth", f"{stream}: the mirror fell from {old} to {here}"
        )
        self.mirrors[stream] = body

    # --- the table ----------------------------------------------------------------------------------------------

    def _table(self) -> None:
        files = self._data_files()
        demand(len(files) == len(set(files)), "exactly once", "a data file stands in the table twice")
        demand(self.files <= set(files), "exactly once", "a data file left the table")
        rows: Rows = {}
        for key in files:
            for symbol, some in self._rows_of(key).items():
                rows.setdefault(symbol, []).extend(some)
        for stream in self.streams:
            self._once(stream, rows.get(stream.product, []))
        self.rows, self.files = rows, set(files)

    def _once(self, stream: Stream, rows: list[tuple[int, str, float, float, int]]) -> None:
        ids = sorted(row[0] for row in rows)
        demand(
            len(ids) == len(set(ids)), "exactly once", f"{stream}: {len(ids) - len(set(ids))} rows stand there twice"
        )
        if not rows:
            return
        committed = {i for s in self.segments[stream].values() for i in range(int(s["first"]), int(s["last"]) + 1)}
        strays = set(ids) - committed
        demand(
            not strays, "exactly once", f"{stream}: {len(strays)} rows of no committed segment, {min(strays or [0])}"
        )
        old = {row[0] for row in self.rows.get(stream.product, [])}
        demand(old <= set(ids), "exactly once", f"{stream}: {len(old - set(ids))} rows left the table")
        told = {row[0]: row for row in self._told(stream, ids[0], ids[-1])}
        wrong = [row[0] for row in rows if told[row[0]] != row]
        demand(not wrong, "exactly once", f"{stream}: {wrong[:3]} are not what the exchange has")

    def _told(self, stream: Stream, first: int, last: int) -> list[tuple[int, str, float, float, int]]:
        """The exchange's trades as rows, by rules written here once more, away from the mappings."""
        trades = self.simulator.trades(stream.exchange, stream.product, first, last)
        if stream.exchange == "coinbase":
            sides = {"buy": "SELL", "sell": "BUY"}
            return [
                (t["trade_id"], sides[t["side"]], float(t["price"]), float(t["size"]), _micros(t["time"]))
                for t in trades
            ]
        return [(t["a"], "SELL" if t["m"] else "BUY", float(t["p"]), float(t["q"]), t["T"] * 1000) for t in trades]

    def _data_files(self) -> list[str]:
        pointer = self.stores.glue.tables[self.table]["Parameters"]["metadata_location"]
        metadata = TableMetadataUtil.parse_raw(self._get(pointer).decode())
        snapshot = metadata.current_snapshot()
        if snapshot is None:
            return []
        files = S3FileIO(self.stores.s3, {})
        keys: list[str] = []
        for manifest in snapshot.manifests(files):
            if manifest.manifest_path not in self._manifests:
                entries = manifest.fetch_manifest_entry(files)
                self._manifests[manifest.manifest_path] = [entry.data_file.file_path for entry in entries]
            keys += self._manifests[manifest.manifest_path]
        return keys

    def _rows_of(self, location: str) -> Rows:
        if location not in self._file_rows:
            table = pq.ParquetFile(io.BytesIO(self._get(location))).read(use_threads=False)
            names = ("trade_id", "side", "price", "quantity")
            columns = [table.column(n).to_pylist() for n in names]
            times = table.column("trade_ts").cast("int64").to_pylist()
            rows: Rows = {}
            for symbol, number, *rest in zip(table.column("symbol").to_pylist(), *columns, times, strict=True):
                rows.setdefault(symbol, []).append((int(number), *rest))
            self._file_rows[location] = rows
        return self._file_rows[location]

    def _get(self, location: str) -> bytes:
        key = urlsplit(location).path.lstrip("/")
        demand(key in self.stores.s3.objects, "exactly once", f"the table names {key}, which is not there")
        return self.stores.s3.objects[key][0]

    # --- at rest ------------------------------------------------------------------------------------------------

    def check_all_is_there(self, now_ms: int) -> None:
        """After a run without faults: table, ledger and mirror hold all that the exchange has settled, once."""
        for stream in self.streams:
            mark = self.marks.get(stream)
            if mark is None:
                raise Violation(f"complete: {stream}: nothing was committed")
            low, high = int(mark["low"]), int(mark["high"])
            listing = self.simulator.listing(stream.exchange, stream.product)
            settled = listing.source.head((now_ms - 15 * 60_000) * 1000)
            demand(high >= settled, "complete", f"{stream}: high {high}, {settled} was settled long ago")
            rows = sorted(self.rows.get(stream.product, []))
            demand(rows == self._told(stream, low, high), "complete", f"{stream}: the table is not {low}..{high}")
            mirror = self.mirrors.get(stream) or {}
            demand((mirror.get("low"), mirror.get("high")) == (low, high), "complete", f"{stream}: mirror {mirror}")
        pending = [i["item"] for i in self.stores.streams.items.values() if "pending" in i]
        demand(not pending, "complete", f"{len(pending)} segments are still pending")


def _micros(text: str) -> int:
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // when.resolution
