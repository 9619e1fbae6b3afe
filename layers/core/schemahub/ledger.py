"""The one door to ``StreamsTable``: watermarks, segments, and what is still to be published.

An item of ``StreamsTable`` is (``stream``, ``item``): ``watermark``, ``segment#{first:020d}``, ``hole#{first:020d}``,
``islands`` (how often segments were committed below the watermark), ``last_run`` or ``last_backfill``. The sparse index
``pending`` holds the segments that no snapshot of the table names yet. What fills a hole later is a segment of the
stream's line ``…#fills``, which has no watermark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError

from schemahub.conditional import Rejected, update_if, whole
from schemahub.errors import CorruptState, TableAhead
from schemahub.holes import Hole, committed_holes
from schemahub.ledger_items import hole_item, hole_name, hole_of, integer, segment_item, segment_name, segment_of
from schemahub.locks import Lease, Locks
from schemahub.streams import TRADES, Segment, Stream

if TYPE_CHECKING:
    from boto3.dynamodb.conditions import Key

PENDING_INDEX = "pending"
RunKind = Literal["run", "backfill"]
"""A backfill notes its end beside that of the last ingest, which asks for its own."""
MAX_ITEMS_PER_TRANSACTION = 90
"""Segments and holes together. TransactWriteItems takes 100 actions; two are the lock's check and the watermark."""


@dataclass(frozen=True)
class Watermark:
    """The continuous committed run ``[low, high]`` at the head side, and the fence that last moved it."""

    low: int
    high: int
    fence: int
    updated_at: int


@dataclass(frozen=True)
class Trades:
    """Committed trades of a stream: those that the table has, and those that wait for the next transform."""

    published: int = 0
    pending: int = 0


class Ledger:
    """Reads are strongly consistent, except sums for people, and the pending index, which is only ever a hint."""

    def __init__(self, table: Any, client: Any) -> None:
        """``table`` is boto3's Table, ``client`` its plain client: transactions exist only there."""
        self.table = table
        self.client = client

    def watermark(self, stream: Stream) -> Watermark | None:
        """Raises CorruptState for an item that lacks a number or runs backwards."""
        item = self._get(stream, "watermark")
        if item is None:
            return None
        try:
            mark = Watermark(*(integer(item[name]) for name in ("low", "high", "fence", "updated_at")))
        except (KeyError, TypeError) as error:
            raise CorruptState(f"the watermark item is not readable: {error!r}", stream=stream) from error
        if not 0 <= mark.low <= mark.high:
            raise CorruptState(f"the watermark runs from {mark.low} to {mark.high}", stream=stream)
        return mark

    def segments(self, stream: Stream, first: int = 0, last: int | None = None) -> Iterator[Segment]:
        """Committed segments by position: those that begin in ``first``..``last`` (or anywhere above)."""
        end = "segment#~" if last is None else segment_name(last)
        condition = _key("stream").eq(str(stream)) & _key("item").between(segment_name(first), end)
        for item in self._query(KeyConditionExpression=condition, ConsistentRead=True):
            yield segment_of(item)

    def newest_segments(self, stream: Stream, last: int | None = None) -> Iterator[Segment]:
        """Committed segments, the newest first; only those that begin at ``last`` or below."""
        end = "segment#~" if last is None else segment_name(last)
        condition = _key("stream").eq(str(stream)) & _key("item").between("segment#", end)
        for item in self._query(KeyConditionExpression=condition, ConsistentRead=True, ScanIndexForward=False):
            yield segment_of(item)

    def lowest(self, stream: Stream) -> int | None:
        """The first committed position; below the watermark where a backfill has left islands. One small read."""
        condition = _key("stream").eq(str(stream)) & _key("item").between("segment#", "segment#~")
        page = self.table.query(KeyConditionExpression=condition, ConsistentRead=True, Limit=1)
        return next((segment_of(item).first for item in page["Items"]), None)

    def trades(self, stream: Stream) -> Trades:
        """How many trades are committed: one pass over all segments that reads two fields of each."""
        condition = _key("stream").eq(str(stream)) & _key("item").between("segment#", "segment#~")
        only = {"ProjectionExpression": "#count, published_in", "ExpressionAttributeNames": {"#count": "count"}}
        published = pending = 0
        for item in self._query(KeyConditionExpression=condition, **only):
            if item.get("published_in"):
                published += whole(item, "count")
            else:
                pending += whole(item, "count")
        return Trades(published, pending)

    def segment(self, stream: Stream, first: int) -> Segment | None:
        item = self._get(stream, segment_name(first))
        return segment_of(item) if item else None

    def segment_at(self, stream: Stream, position: int) -> Segment | None:
        """The committed segment that holds a position."""
        condition = _key("stream").eq(str(stream)) & _key("item").between("segment#", segment_name(position))
        newest = {"ScanIndexForward": False, "Limit": 1}
        for item in self._query(KeyConditionExpression=condition, ConsistentRead=True, **newest):
            segment = segment_of(item)
            return segment if segment.last >= position else None
        return None

    def pending(self) -> Iterator[Segment]:
        """Segments that are not marked as published, by stream and position.

        An index lags: they are read again from the table, so that one published meanwhile does not come back. Those
        that follow each other without a hole, as a backfill's do, are read together: nothing else lies between them.
        """
        hints = self._query(IndexName=PENDING_INDEX, KeyConditionExpression=_key("pending").eq(TRADES))
        for first, last in _rows_of_neighbours(hints):
            condition = _key("stream").eq(first["stream"]) & _key("item").between(first["item"], last["item"])
            for item in self._query(KeyConditionExpression=condition, ConsistentRead=True):
                if "pending" in item:
                    yield segment_of(item)

    def commit(self, locks: Locks, lease: Lease, segments: Sequence[Segment], base: int | None, now_ms: int) -> None:
        """Move the watermark from ``base`` over ``segments`` and put them, all or nothing, while the lease holds.

        ``base`` is the ``high`` that was planned from, None for a stream without a watermark.

        Raises:
            ClientError: TransactionCanceledException; ``commit.commit_segments`` finds out what it means.
        """
        low, last = segments[0].first, segments[-1].last
        values = {":new": last, ":fence": lease.fence, ":now": now_ms}
        if base is None:
            move = self._action(
                "Update",
                Key={"stream": str(segments[0].stream), "item": "watermark"},
                UpdateExpression="SET low = :low, high = :new, fence = :fence, updated_at = :now",
                values={**values, ":low": low},
            )
        else:
            move = self._action(
                "Update",
                Key={"stream": str(segments[0].stream), "item": "watermark"},
                UpdateExpression="SET high = :new, fence = :fence, updated_at = :now",
                ConditionExpression="high = :base AND fence <= :fence",
                values={**values, ":base": base},
            )
        items = [*map(segment_item, segments), *map(hole_item, committed_holes(segments))]
        puts = [self._action("Put", Item=item) for item in items]
        self.client.transact_write_items(TransactItems=[locks.condition_check(lease), move, *puts])

    def islands(self, stream: Stream) -> int:
        """How often segments were committed below the watermark: each such commit is made from the number it saw."""
        item = self._get(stream, "islands")
        if item is None:
            return 0
        try:
            return integer(item["revision"])
        except (KeyError, TypeError) as error:
            raise CorruptState(f"the islands item is not readable: {error!r}", stream=stream) from error

    def commit_below(self, locks: Locks, lease: Lease, segments: Sequence[Segment], seen: int) -> None:
        """Put ``segments``, all below ``low``, all or nothing, while the lease holds and ``islands`` is as ``seen``.

        Raises:
            ClientError: TransactionCanceledException; ``commit_below.commit_islands`` finds out what it means.
        """
        stream = segments[0].stream
        below = self._action(
            "ConditionCheck",
            Key={"stream": str(stream), "item": "watermark"},
            ConditionExpression="low > :last",
            values={":last": max(s.last for s in segments)},
        )
        count = self._action(
            "Update",
            Key={"stream": str(stream), "item": "islands"},
            UpdateExpression="SET revision = :next",
            ConditionExpression="revision = :seen" if seen else "attribute_not_exists(revision)",
            values={":next": seen + 1} | ({":seen": seen} if seen else {}),
        )
        items = [*map(segment_item, segments), *map(hole_item, committed_holes(segments))]
        puts = [self._action("Put", Item=item) for item in items]
        self.client.transact_write_items(TransactItems=[locks.condition_check(lease), below, count, *puts])

    def lower(self, locks: Locks, lease: Lease, stream: Stream, base: int, low: int) -> None:
        """Move ``low`` from ``base`` to ``low`` while the lease holds; segments must hold all in between.

        Raises:
            ClientError: TransactionCanceledException; ``commit_below.lower`` finds out what it means.
        """
        move = self._action(
            "Update",
            Key={"stream": str(stream), "item": "watermark"},
            UpdateExpression="SET low = :new",
            ConditionExpression="low = :base AND low > :new",
            values={":new": low, ":base": base},
        )
        self.client.transact_write_items(TransactItems=[locks.condition_check(lease), move])

    def holes(self, stream: Stream) -> Iterator[Hole]:
        """The holes of a stream as they are known by now, by position."""
        condition = _key("stream").eq(str(stream)) & _key("item").begins_with("hole#")
        for item in self._query(KeyConditionExpression=condition, ConsistentRead=True):
            if "gone" not in item:
                yield hole_of(item)

    def hole(self, stream: Stream, first: int) -> Hole | None:
        item = self._get(stream, hole_name(first))
        return hole_of(item) if item and "gone" not in item else None

    def add_hole(self, hole: Hole) -> None:
        """Put what a segment says of a hole, unless more is known already."""
        self._put_new(hole_item(hole))

    def settle(self, locks: Locks, lease: Lease, seen: Hole, now: Hole, fills: Sequence[Segment]) -> None:
        """Replace the hole that was ``seen`` by what is known ``now`` and put its ``fills``, while the lease holds.

        Raises:
            ClientError: TransactionCanceledException; ``commit.settle_hole`` finds out what it means.
        """
        change = self._action(
            "Put",
            Item=hole_item(now),
            ConditionExpression="revision = :seen",
            values={":seen": seen.revision},
        )
        puts = [self._action("Put", Item=segment_item(fill)) for fill in fills]
        self.client.transact_write_items(TransactItems=[locks.condition_check(lease), change, *puts])

    def correct(
        self,
        locks: Locks,
        lease: Lease,
        changes: Sequence[tuple[Segment, Segment]],
        holes: Sequence[tuple[Hole | None, Hole | None]],
    ) -> None:
        """Put new segments in the place of old ones and settle their holes, all or nothing, while the lease holds.

        A hole is (as it was seen, as it is now), None where there is none: what the new segment holds is no hole. Its
        item stays, marked ``gone``: nobody has the right to delete one.

        Raises:
            ClientError: TransactionCanceledException; ``archive_correct`` finds out what it means.
        """
        puts = [
            self._action(
                "Put", Item=segment_item(new), ConditionExpression="commit_id = :old", values={":old": old.commit_id}
            )
            for old, new in changes
        ]
        for seen, now in holes:
            as_seen: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(revision)"}
            if seen is not None:
                as_seen = {"ConditionExpression": "revision = :seen", "values": {":seen": seen.revision}}
            if now is not None:
                puts.append(self._action("Put", Item=hole_item(now), **as_seen))
            elif seen is not None:
                gone = {"stream": str(seen.stream), "item": hole_name(seen.first), "gone": True}
                puts.append(self._action("Put", Item=gone, **as_seen))
        self.client.transact_write_items(TransactItems=[locks.condition_check(lease), *puts])

    def _action(self, kind: str, values: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
        """One action of a transaction; without a condition of its own it demands that nothing is there yet."""
        from boto3.dynamodb.types import TypeSerializer

        typed = TypeSerializer().serialize
        for name in ("Key", "Item"):
            if name in parts:
                parts[name] = {k: typed(v) for k, v in parts[name].items()}
        if values:
            parts["ExpressionAttributeValues"] = {k: typed(v) for k, v in values.items()}
        if "ConditionExpression" not in parts:
            parts |= {
                "ConditionExpression": "attribute_not_exists(#stream)",
                "ExpressionAttributeNames": {"#stream": "stream"},
            }
        return {kind: {"TableName": self.table.name, **parts}}

    def put_back(self, segments: Iterable[Segment], holes: Iterable[Hole]) -> None:
        """Items that a lost or older table held; those that are there stay as they are."""
        for item in [*map(segment_item, segments), *map(hole_item, holes)]:
            self._put_new(item)

    def restore(
        self,
        stream: Stream,
        low: int,
        high: int,
        segments: Sequence[Segment],
        now_ms: int,
        *,
        fence: int = 0,
        holes: Iterable[Hole] | None = None,
    ) -> None:
        """Put back what a lost or older table held. Existing items stay; the watermark comes last and only grows.

        ``holes`` are those of the segments as they were committed, unless more is known. The fence begins again at 0
        where the lock's own was lost with it: a smaller one than the watermark's could commit nothing.

        Raises:
            TableAhead: the watermark reaches further than ``low``..``high``.
        """
        self.put_back(segments, committed_holes(segments) if holes is None else holes)
        moved = update_if(
            self.table,
            {"stream": str(stream), "item": "watermark"},
            "SET low = :low, high = :high, fence = :fence, updated_at = :now",
            "attribute_not_exists(high) OR (high <= :high AND low >= :low)",
            {":low": low, ":high": high, ":fence": fence, ":now": now_ms},
        )
        if isinstance(moved, Rejected):
            raise TableAhead("the watermark reaches further already", stream=stream, span=(low, high))

    def mark_published(self, segments: Sequence[Segment], published_in: str) -> None:
        """Take segments out of the pending index, naming the snapshot. Repeating it changes nothing."""
        for segment in segments:
            marked = update_if(
                self.table,
                {"stream": str(segment.stream), "item": segment_name(segment.first)},
                "SET published_in = if_not_exists(published_in, :ref) REMOVE #p, pending_key",
                "commit_id = :commit",
                {":ref": published_in, ":commit": segment.commit_id},
                {"#p": "pending"},
            )
            if isinstance(marked, Rejected):
                raise CorruptState(
                    "the ledger holds another segment than the one that was published",
                    stream=segment.stream,
                    span=segment.interval,
                )

    def finish_run(self, stream: Stream, run: str, outcome: str, now_ms: int, kind: RunKind = "run") -> None:
        """Record that ``run`` came to the end of the stream's work, so that the run can tell who failed."""
        self.table.put_item(
            Item={"stream": str(stream), "item": f"last_{kind}", "run": run, "outcome": outcome, "finished_at": now_ms}
        )

    def last_run(self, stream: Stream, kind: RunKind = "run") -> dict[str, Any] | None:
        return self._get(stream, f"last_{kind}")

    def _put_new(self, item: dict[str, Any]) -> None:
        try:
            self.table.put_item(
                Item=item,
                ConditionExpression="attribute_not_exists(#stream)",
                ExpressionAttributeNames={"#stream": "stream"},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise

    def _get(self, stream: Stream, item: str) -> dict[str, Any] | None:
        found = self.table.get_item(Key={"stream": str(stream), "item": item}, ConsistentRead=True).get("Item")
        return dict(found) if found is not None else None

    def _query(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self.table.query(**arguments)
            yield from page["Items"]
            if "LastEvaluatedKey" not in page:
                return
            arguments["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _rows_of_neighbours(hints: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """First and last of the items that follow each other on their stream's line."""
    first: dict[str, Any] | None = None
    last: dict[str, Any] = {}
    for hint in hints:
        end = last.get("last")
        follows = hint["stream"] == last.get("stream") and isinstance(end, Decimal) and hint.get("first") == end + 1
        if first is not None and not follows:
            yield first, last
        first, last = (first, hint) if first is not None and follows else (hint, hint)
    if first is not None:
        yield first, last


def _key(name: str) -> Key:
    """A part of the key in a condition. boto3 is imported with the first one: `schemahub --help` has none."""
    from boto3.dynamodb.conditions import Key

    return Key(name)
