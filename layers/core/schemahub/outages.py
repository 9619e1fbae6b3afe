"""AWS's own errors by the names that the state machines know: what passes by itself is retried, a refusal is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from schemahub.errors import StoreError, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from boto3.exceptions import Boto3Error

PASSING = {
    "ConditionalRequestConflict",
    "InternalError",
    "LimitExceededException",
    "OperationAborted",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "TooManyRequestsException",
    "TransactionConflictException",
    "TransactionInProgressException",
}
PASSING_REASONS = {"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
"""Why an action of a cancelled transaction failed."""


def store_error(error: ClientError | BotoCoreError | Boto3Error) -> StoreError:
    """What an error of boto3, which has already repeated the call a few times, means to a run."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, ClientError):
        return (StoreUnavailable if _passes(error) else StoreRefused)(said)
    # No answer, or a broken one. Everything else that botocore raises is wrong before anything is sent.
    gone = not isinstance(error, BotoCoreError) or isinstance(error, ConnectionError | HTTPClientError)
    return (StoreUnavailable if gone else StoreRefused)(f"{type(error).__name__}: {said}")


def _passes(error: ClientError) -> bool:
    code = error.response.get("Error", {}).get("Code", "")
    if code == "TransactionCanceledException":
        reasons = {str(r.get("Code")) for r in error.response.get("CancellationReasons", [])}
        return bool(reasons) and reasons <= PASSING_REASONS
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code in PASSING or "Throttl" in code or status >= 500


@contextmanager
def named() -> Iterator[None]:
    """Let AWS's errors out as StoreUnavailable or StoreRefused."""
    try:
        yield
    except Exception as error:
        from boto3.exceptions import Boto3Error  # boto3 takes 0.2 s to import, and plans need this module, not AWS

        if isinstance(error, ClientError | BotoCoreError | Boto3Error):
            raise store_error(error) from error
        raise
