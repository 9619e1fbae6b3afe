"""Asking exchanges from where the stack runs: one invocation of its function ``probe-exchange`` each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from schemahub import SCHEMA_VERSION, outages, probe
from schemahub.errors import ExchangeRefused, ExchangeUnavailable, SchemaHubError
from schemahub_cli.target import Target

AT_A_TIME = 8
OLD_STACK = "This stack has no function probe-exchange (an older release): exchanges are not asked from its region."


class NoProbe(Exception):
    """The stack is of a release without the function."""


def ask_all(target: Target, exchanges: Sequence[str]) -> dict[str, probe.Outcome | SchemaHubError] | None:
    """What came of each probe, or why there is no outcome; None for a stack that has no such function."""

    def ask(exchange: str) -> probe.Outcome | SchemaHubError:
        try:
            return _ask(target, exchange)
        except SchemaHubError as error:
            return error

    target.client("lambda")  # made once, before threads ask for it
    with ThreadPoolExecutor(min(AT_A_TIME, max(1, len(exchanges)))) as pool:
        try:
            return dict(zip(exchanges, pool.map(ask, exchanges), strict=True))
        except NoProbe:
            return None


def _ask(target: Target, exchange: str) -> probe.Outcome:
    from botocore.exceptions import BotoCoreError, ClientError

    payload = json.dumps({"schema_version": SCHEMA_VERSION, "exchange": exchange}).encode()
    try:
        answer = target.client("lambda").invoke(
            FunctionName=f"schemahub-{target.stage}-probe-exchange", Payload=payload
        )
        body = answer["Payload"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            raise NoProbe from error
        raise outages.store_error(error) from error
    except BotoCoreError as error:
        raise outages.store_error(error) from error
    if answer.get("FunctionError"):
        said = body[:200].decode("utf-8", "replace")
        raise ExchangeUnavailable(f"the stack's probe failed: {said}", stream=exchange)
    return probe.parse(body, exchange)


def failure(found: probe.Outcome | SchemaHubError) -> SchemaHubError | None:
    """Why the exchange is left out; None for one that the stack reaches."""
    if isinstance(found, SchemaHubError):
        return found
    if isinstance(found, probe.Refused):
        return ExchangeRefused(
            f"it refuses the stack's region {found.region}: {found.message}"
            if found.by_region
            else f"it refuses the stack in {found.region}: {found.message}",
            status=found.status,
            stream=found.exchange,
            remedy=found.remedy,
        )
    if isinstance(found, probe.Unavailable):
        said = f"no usable answer from the stack's region {found.region}: {found.error}, {found.message}"
        return ExchangeUnavailable(said, stream=found.exchange, remedy=found.remedy)
    return None


def line(probed: dict[str, probe.Outcome | SchemaHubError] | None) -> str:
    """For people, in one line."""
    if probed is None:
        return OLD_STACK
    said = [f"{name} {x.outcome if not isinstance(x, SchemaHubError) else 'not probed'}" for name, x in probed.items()]
    return "from the stack's region: " + ", ".join(said)
