"""Worlds for the fast tests: AWS in this process (moto), an exchange on a loopback port, adapters between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.loaders import create_loader
from moto import mock_aws

REGION = "us-east-1"
LOADER = create_loader()


def quick_session() -> boto3.Session:
    """A session of its own, which does not read the descriptions of the services from disk once more."""
    core = botocore.session.get_session()
    core.register_component("data_loader", LOADER)
    return boto3.Session(botocore_session=core, region_name=REGION)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[boto3.Session]:
    """An empty account in this process."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "POWERTOOLS_TRACE_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield quick_session()


def create_tables(session: boto3.Session, stage: str = "test") -> dict[str, str]:
    """The three tables as template.yaml makes them."""
    client = session.client("dynamodb")

    def table(name: str, keys: list[str], index: list[str] | None = None) -> str:
        full = f"schemahub-{stage}-{name}"
        kinds = zip(keys, ("HASH", "RANGE"), strict=False)
        extra: dict[str, Any] = {}
        if index:
            extra["GlobalSecondaryIndexes"] = [
                {
                    "IndexName": "pending",
                    "Projection": {"ProjectionType": "ALL"},
                    "KeySchema": [
                        {"AttributeName": a, "KeyType": k} for a, k in zip(index, ("HASH", "RANGE"), strict=True)
                    ],
                }
            ]
        client.create_table(
            TableName=full,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": a, "KeyType": k} for a, k in kinds],
            AttributeDefinitions=[{"AttributeName": a, "AttributeType": "S"} for a in keys + (index or [])],
            **extra,
        )
        return full

    return {
        "locks": table("locks", ["lock_id"]),
        "streams": table("streams", ["stream", "item"], ["pending", "pending_key"]),
        "throttle": table("throttle", ["exchange"]),
    }


@pytest.fixture
def tables(aws: boto3.Session) -> dict[str, str]:
    return create_tables(aws)


@pytest.fixture
def recorded() -> Path:
    """The recorded Binance trades; they are never part of this repository (shared/data/README.md)."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "binance" / "XRPETH-aggTrades.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path
