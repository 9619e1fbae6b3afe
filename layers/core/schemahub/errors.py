"""Everything that can go wrong, by the names that the state machines retry or stop on.

    SchemaHubError
    ├── BadInput                  somebody wrote something that cannot be meant: nothing was done
    │   ├── UnknownExchange       no mapping of that name
    │   ├── UnknownProduct        the exchange does not list it
    │   ├── UnknownStream         no run has committed anything of it, and no list names it
    │   ├── BadProductId          not of the form BASE-QUOTE
    │   ├── BadMapping            a mapping file breaks its JSON Schema
    │   ├── BadStateInput         a payload of a state machine lacks or has too much
    │   ├── SchemaVersionMismatch a payload of another release: start a new execution
    │   ├── BadConfig             an environment variable or config/products.json is wrong
    │   ├── NoSeed                nothing was named and config/products.json was never written
    │   ├── NothingIngested       a backfill of a stream that has no watermark yet
    │   ├── NoHistory             the exchange shows its newest trades only: nothing to fill back from
    │   ├── BadQuery              the SQL of a query is not accepted
    │   ├── QueryRefused          a query wants files, hosts, settings: anything but the lake's tables
    │   ├── QueryTimeout          a query was not finished within its time
    │   ├── QueryOutOfMemory      a query needs more memory than it may have
    │   └── BadCertificate        not a coverage certificate of this release
    ├── ExchangeError             the exchange's answer is not usable
    │   ├── ExchangeUnavailable   5xx, time-out, no connection: retried, counted by the breaker
    │   ├── RateLimited           429 or 418: everybody was slowed, retried
    │   ├── ResponseInterrupted   the body broke off: retried
    │   ├── MalformedResponse     not the JSON that the mapping describes (HTML, NaN, a bomb)
    │   ├── EmptyPage             200 and no rows where rows must be
    │   ├── IncompletePage        rows are missing inside the page, confirmed by no second look
    │   ├── TieOverflow           more trades at one time than an answer holds: paging by time cannot pass
    │   ├── PageConflict          one id, two different trades
    │   ├── HeadBehindWatermark   the exchange's newest id is older than what we hold
    │   └── ExchangeRefused       4xx: our request is wrong, or we are not let in
    ├── ArchiveError              a file of the exchange's history is not usable: REST fills its range
    │   ├── ArchiveAbsent         the exchange has no such file, or not yet
    │   ├── ChecksumMismatch      its SHA-256 is not the published one: refused, asked for again later
    │   ├── ArchiveUnreadable     not a zip with one CSV of the mapping's columns
    │   └── ArchiveBomb           larger, or packed tighter, than any file of trades
    ├── ThrottleError
    │   ├── SlotRefused           the next free slot is further away than the caller can wait
    │   └── CircuitOpen           the breaker keeps everybody away from the exchange for a while
    ├── LockError
    │   ├── LockBusy              somebody else holds it
    │   └── LockLost              somebody else took it: this worker may write nothing more
    ├── StateError
    │   ├── MirrorAhead           S3 knows more than DynamoDB: a restored table, a human must look
    │   ├── TableAhead            DynamoDB knows more than what is to be put back: nothing is lowered
    │   ├── CorruptState          an item lacks what it must have
    │   ├── RawConflict           the same range with other content: an alarm, never an overwrite
    │   ├── RawMissing            a committed segment's raw object is gone or does not match its hash
    │   ├── IncompleteChunks      chunks of the plan are not there: the prefix is committed, replay
    │   └── Replan                the watermark is not where the plan began
    ├── StoreError                AWS itself did not do what was asked
    │   ├── StoreUnavailable      throttled, 5xx or no answer, after boto3's own retries: retried
    │   └── StoreRefused          AWS says no (permission, KMS, a bucket that is gone): never retried
    ├── TransformError
    │   ├── QuarantineExceeded    more rows do not map than the mapping tolerates
    │   └── UnmappedField         a field that the contract says to fail on
    └── PublishError
        ├── CommitConflict        the table moved or the answer was lost: retried after a look
        └── StaleBatch            batch and table do not fit together any more: list again

An error says which stream and range it is about, what happened, and what to do. Where that is to run it again, it names
`schemahub replay`: in an account that redrives the execution, on the local stack it starts one for what failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class SchemaHubError(Exception):
    """Root of the tree. ``remedy`` is one sentence that a person can act on."""

    remedy = "See docs/operations.md."
    permanent: ClassVar[bool] = False
    """Whether the same work fails in the same way until a person has changed something: nothing starts it again by
    itself, and ``schemahub replay`` does so only with ``--force``."""

    def __init__(
        self, message: str, *, stream: object = None, span: tuple[int, int] | None = None, remedy: str | None = None
    ) -> None:
        self.stream = str(stream) if stream is not None else None
        self.span = span
        self.reason = message
        if remedy:
            self.remedy = remedy
        super().__init__(self._text())

    def locate(self, stream: object, span: tuple[int, int] | None = None) -> None:
        """Fill in what the place that raised it did not know; what it did know stays."""
        self.stream = self.stream or (str(stream) if stream is not None else None)
        self.span = self.span or span
        self.args = (self._text(),)

    def _text(self) -> str:
        where = f"{self.stream}: " if self.stream else ""
        span = f" [{self.span[0]}..{self.span[1]}]" if self.span else ""
        return f"{where}{self.reason}{span}. {self.remedy}"


@contextmanager
def about(stream: object, span: tuple[int, int] | None = None) -> Iterator[None]:
    """Errors that leave here say which stream and range they are about, even if the place that raised them did not."""
    try:
        yield
    except SchemaHubError as error:
        error.locate(stream, span)
        raise


class BadInput(SchemaHubError):
    remedy = "Correct the input and start again; nothing was changed."
    permanent = True


class UnknownExchange(BadInput):
    remedy = "Use an exchange that has a file in mappings/, or add one (docs/adding-an-exchange.md)."


class UnknownProduct(BadInput):
    remedy = "Check the product with `schemahub update-seed --dry-run`; a delisted one has to be removed from the seed."


class UnknownStream(BadInput):
    remedy = "`schemahub status` lists the streams that there are; `schemahub run` pulls a new one."


class BadProductId(BadInput):
    remedy = "Write products as BASE-QUOTE in capitals and digits, for example BTC-USD."


class BadMapping(BadInput):
    remedy = "Correct the mapping file; docs/adding-an-exchange.md describes every key."


class BadStateInput(BadInput):
    remedy = 'Start the state machine with {"schema_version": 1} and only documented keys.'


class SchemaVersionMismatch(BadInput):
    remedy = "This execution was started by another release: start a new one with `schemahub run`."


class BadConfig(BadInput):
    remedy = "Correct the parameter or config/products.json (`schemahub update-seed` writes it)."


class NoSeed(BadInput):
    remedy = "Write the seed list with `schemahub update-seed`, or name products as exchange:PRODUCT."


class NothingIngested(BadInput):
    remedy = "Run `schemahub ingest` for the stream first: a backfill goes on below what that committed."


class NoHistory(BadInput):
    remedy = "Its history comes only from an archive, where the exchange publishes one."


class BadQuery(BadInput):
    remedy = "Write one SELECT over the table `trades`; `schemahub query --help` shows examples."


class QueryRefused(BadInput):
    remedy = "Query the tables `trades` and `instruments`; read other files with a DuckDB of your own."


class QueryTimeout(BadInput):
    remedy = "Give it more time with --timeout SECONDS, or bound the query by symbol and trade_ts."


class QueryOutOfMemory(BadInput):
    remedy = "Give it more memory, for example --memory 4GB, or bound the query by symbol and trade_ts."


class BadCertificate(BadInput):
    remedy = "Take the certificate as `schemahub verify` wrote it, from the lake's reports/certificates/."


class ExchangeError(SchemaHubError):
    remedy = "It is retried; if it stays, look at the exchange's status page, then run `schemahub replay`."


class ExchangeUnavailable(ExchangeError):
    pass


class RateLimited(ExchangeError):
    remedy = "Everybody was slowed down; if it repeats, lower the LimitShare parameter."

    def __init__(self, message: str, *, retry_after_s: float | None = None, **kwargs: object) -> None:
        super().__init__(message, **kwargs)  # type: ignore[arg-type]
        self.retry_after_s = retry_after_s


class ResponseInterrupted(ExchangeError):
    pass


class MalformedResponse(ExchangeError):
    remedy = "Nothing was stored. If it stays, compare the answer with the mapping (`schemahub exchange try`)."


class EmptyPage(ExchangeError):
    remedy = "An empty answer is never taken for an end; it is asked again. If it stays, run `schemahub replay` later."


class IncompletePage(ExchangeError):
    remedy = "The missing ids are asked for again; if the exchange lags, run `schemahub replay` later."


class TieOverflow(ExchangeError):
    remedy = "Time cannot page past it: ask this exchange by id, or raise page_size in the mapping if it allows more."
    permanent = True


class PageConflict(ExchangeError):
    remedy = (
        "Nothing was stored for this chunk. Ask the exchange which of the two is right, then run `schemahub replay`."
    )


class HeadBehindWatermark(ExchangeError):
    remedy = "The stream is halted: a stale node, a relisting with new ids, or a delisting. Check by hand first."


class ExchangeRefused(ExchangeError):
    remedy = "The exchange refuses the request itself; check the mapping and whether your region is served."
    permanent = True

    def __init__(self, message: str, *, status: int | None = None, **kwargs: object) -> None:
        """``status``: that of the answer; None where there was none (TLS)."""
        super().__init__(message, **kwargs)  # type: ignore[arg-type]
        self.status = status


class ArchiveError(SchemaHubError):
    remedy = "Nothing of the file was stored; its range is asked for from the exchange's API instead."


class ArchiveAbsent(ArchiveError):
    remedy = "Files appear a day or more after their end. The range is asked for from the exchange's API instead."


class ChecksumMismatch(ArchiveError):
    remedy = "Nothing of the file was stored. It is asked for again by the next backfill; exchanges re-issue files."


class ArchiveUnreadable(ArchiveError):
    remedy = "Nothing of the file was stored. Compare it with `archive` in the mapping; the API fills its range."


class ArchiveBomb(ArchiveError):
    remedy = "Nothing was unpacked. Look at the file by hand before you raise a limit in archive_read.py."


class ThrottleError(SchemaHubError):
    remedy = "It is retried with backoff; nothing was sent."


class SlotRefused(ThrottleError):
    pass


class CircuitOpen(ThrottleError):
    remedy = "The exchange failed repeatedly; one probe at a time tests whether it is back. Retried."


class LockError(SchemaHubError):
    remedy = "Another execution works on it; wait for it or for the lease to run out (90 s)."


class LockBusy(LockError):
    pass


class LockLost(LockError):
    remedy = "Another execution took over; this worker stopped without writing."


class StateError(SchemaHubError):
    pass


class MirrorAhead(StateError):
    remedy = "DynamoDB was probably restored from a backup. Compare the two and repair by hand before the next run."
    permanent = True


class TableAhead(StateError):
    remedy = "A run committed meanwhile, or the mirror is older than the table. Stop all runs, then rebuild again."
    permanent = True


class CorruptState(StateError):
    remedy = "Compare the item with its mirror in S3 and repair it; the stream is halted until then."
    permanent = True


class RawConflict(StateError):
    remedy = "The stored object was kept. Compare the two answers of the exchange before you go on."
    permanent = True


class RawMissing(StateError):
    remedy = "Restore the object's version in S3 (the bucket keeps old versions), then run `schemahub replay --force`."
    permanent = True


class IncompleteChunks(StateError):
    remedy = "What was complete is committed. Run `schemahub replay`: only the missing chunks run again."


class Replan(StateError):
    remedy = "Another run moved the watermark; the next execution plans from there."


class StoreError(SchemaHubError):
    pass


class StoreUnavailable(StoreError):
    remedy = "It is retried; if it stays, look at the AWS Health Dashboard, then run `schemahub replay`."


class StoreRefused(StoreError):
    remedy = (
        "Check the function's role, the KMS key and whether the stack is whole; then run `schemahub replay --force`."
    )
    permanent = True


class TransformError(SchemaHubError):
    permanent = True


class QuarantineExceeded(TransformError):
    remedy = "The rows are in quarantine/ with reasons. Correct the mapping or raise its contract.quarantine_max_share."


class UnmappedField(TransformError):
    remedy = "The exchange sends a new field: add it to the mapping or set on_new_field: keep."


class PublishError(SchemaHubError):
    pass


class CommitConflict(PublishError):
    remedy = "It is retried after a look at the table."


class StaleBatch(PublishError):
    remedy = "Start the transform (or the re-derivation) again: it looks anew at what there is to do."


def permanent(name: str | None) -> bool:
    """Whether the error of that name (a state machine knows no more of it) is a permanent one."""
    return name in _PERMANENT


def remedy_of(name: str | None) -> str | None:
    """What a person does about the error of that name; None for one that is not of this tree."""
    return _REMEDIES.get(name or "")


def _tree(root: type[SchemaHubError]) -> Iterator[type[SchemaHubError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_REMEDIES = {error.__name__: error.remedy for error in _tree(SchemaHubError)}
_PERMANENT = frozenset(error.__name__ for error in _tree(SchemaHubError) if error.permanent)
