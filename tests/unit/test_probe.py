"""The probe of an exchange from the stack's region: every answer is an outcome, and a refusal harms nobody else."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from schemahub import events, probe
from schemahub.clock import FakeClock
from schemahub.deps import Deps
from schemahub.errors import ExchangeUnavailable, MalformedResponse
from schemahub.exchanges import Answer, Exchange
from schemahub.mappings import load_mapping
from schemahub.runtime import parse_event
from tests.dynamodb import open_tables

BINANCE = load_mapping("binance")


class Http:
    """One canned answer; counts."""

    def __init__(self, status: int, body: str = "{}") -> None:
        self.status, self.body, self.sent = status, body, 0

    def get(self, url: str, params: dict[str, str]) -> Answer:
        self.sent += 1
        if not self.status:
            raise ExchangeUnavailable("no answer: timed out")
        return Answer(self.status, {}, self.body.encode())


@pytest.fixture
def deps(aws: boto3.Session) -> Any:
    settings = SimpleNamespace(limit_share=1.0, endpoints={})
    made = SimpleNamespace(
        settings=settings,
        throttle_table=open_tables(aws).throttle,
        clock=FakeClock(),
        rng=random.Random(1),
        paced={},
        http=Http(200, BINANCE.products.example),
        call_attention=lambda *_: None,
    )
    made.exchange = lambda name: Exchange(load_mapping(name), made.http, None, made.clock)
    return made


def ask(deps: Any, status: int, body: str = "{}") -> dict[str, Any]:
    deps.http, deps.paced = Http(status, body), {}
    event = parse_event(events.ProbeExchange, {"schema_version": 1, "exchange": "binance"})
    said = probe.probe_step(event, deps, "us-east-1")
    assert deps.http.sent == 1
    assert (said["exchange"], said["region"], said["at"]) == ("binance", "us-east-1", deps.clock.now_ms())
    return said


def test_a_list_of_products_is_an_exchange_that_is_reachable(deps: Deps) -> None:
    said = ask(deps, 200, BINANCE.products.example)
    assert said["outcome"] == "reachable"
    assert said["products"] > 0


@pytest.mark.parametrize(("status", "by_region"), [(451, True), (403, True), (404, False), (301, False)])
def test_a_refusal_says_its_status_and_whether_the_region_is_why(deps: Deps, status: int, by_region: bool) -> None:
    said = ask(deps, status, "restricted location")
    assert (said["outcome"], said["status"], said["by_region"]) == ("refused", status, by_region)
    assert (said["remedy"] == probe.REGION_REMEDY) is by_region


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (503, "", "ExchangeUnavailable"),
        (0, "", "ExchangeUnavailable"),
        (429, "", "RateLimited"),
        (200, "<html>", "MalformedResponse"),
    ],
)
def test_no_usable_answer_is_unavailable_by_the_name_of_its_error(
    deps: Deps, status: int, body: str, error: str
) -> None:
    said = ask(deps, status, body)
    assert (said["outcome"], said["error"]) == ("unavailable", error)


def test_refusals_in_any_number_leave_the_breaker_closed_for_others(deps: Deps) -> None:
    for _ in range(8):
        ask(deps, 451)
    found = deps.throttle_table.get_item(Key={"exchange": "binance#breaker"}).get("Item", {})
    assert found.get("state", "closed") == "closed"
    assert not found.get("failures")
    assert ask(deps, 200, BINANCE.products.example)["outcome"] == "reachable"


def test_an_open_breaker_is_respected_and_nothing_is_sent(deps: Any) -> None:
    deps.throttle_table.put_item(
        Item={"exchange": "binance#breaker", "state": "open", "gen": 1, "open_until": deps.clock.now_ms() + 600_000}
    )
    event = events.ProbeExchange(schema_version=1, exchange="binance")
    assert probe.probe_step(event, deps, "us-east-1")["error"] == "CircuitOpen"
    assert deps.http.sent == 0


def test_an_exchange_that_the_release_does_not_know_is_an_outcome(deps: Deps) -> None:
    event = events.ProbeExchange(schema_version=1, exchange="nowhere")
    assert probe.probe_step(event, deps, "us-east-1")["error"] == "UnknownExchange"


def test_what_the_function_says_is_read_back_and_nothing_else(deps: Deps) -> None:
    found = probe.probe("binance", deps, "us-east-1")
    assert probe.parse(found.model_dump_json().encode(), "binance") == found
    for bad in (b"null", b"{", b'{"outcome": "new"}'):
        with pytest.raises(MalformedResponse):
            probe.parse(bad, "binance")
