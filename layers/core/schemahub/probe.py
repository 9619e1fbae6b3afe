"""Whether an exchange answers where the functions run: one paced request for its product list, and what came of it.

A refusal is an answer: it never counts against the breaker, which other functions share.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from schemahub.deps import Deps
from schemahub.errors import BadInput, ExchangeError, ExchangeRefused, MalformedResponse, ThrottleError
from schemahub.events import ProbeExchange
from schemahub.pacing import PacedExchange

BY_REGION = (403, 451)
REGION_REMEDY = "Deploy in a region that the exchange serves, or name the other exchanges with --exchange."


class _Outcome(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    exchange: str
    region: str
    at: int
    """Epoch milliseconds."""


class Reachable(_Outcome):
    outcome: Literal["reachable"] = "reachable"
    products: int


class Refused(_Outcome):
    """``by_region``: the status is one by which exchanges turn a country or a network away."""

    outcome: Literal["refused"] = "refused"
    status: int | None
    by_region: bool
    message: str
    remedy: str


class Unavailable(_Outcome):
    outcome: Literal["unavailable"] = "unavailable"
    error: str
    message: str
    remedy: str


Outcome = Reachable | Refused | Unavailable
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Annotated[Outcome, Field(discriminator="outcome")])


def probe_step(event: ProbeExchange, deps: Deps, region: str) -> dict[str, Any]:
    """Send the one request. Errors of the exchange are outcomes; StoreError (the throttle table) is raised."""
    found = probe(event.exchange, deps, region)
    return {"schema_version": event.schema_version, **found.model_dump()}


def probe(exchange: str, deps: Deps, region: str) -> Outcome:
    about: dict[str, Any] = {"exchange": exchange, "region": region}
    try:
        products = PacedExchange.of(deps, exchange).products()
    except ExchangeRefused as error:
        by_region = error.status in BY_REGION
        return Refused(
            **about,
            at=deps.clock.now_ms(),
            status=error.status,
            by_region=by_region,
            message=error.reason,
            remedy=REGION_REMEDY if by_region else error.remedy,
        )
    except (BadInput, ExchangeError, ThrottleError) as error:
        name = type(error).__name__
        return Unavailable(**about, at=deps.clock.now_ms(), error=name, message=error.reason, remedy=error.remedy)
    return Reachable(**about, at=deps.clock.now_ms(), products=len(products))


def parse(answer: bytes, exchange: str) -> Outcome:
    """A function's answer. Raises MalformedResponse: it is not an outcome."""
    try:
        return _OUTCOME.validate_json(answer)
    except ValidationError as error:
        raise MalformedResponse(f"the probe's answer cannot be read: {answer[:120]!r}", stream=exchange) from error
