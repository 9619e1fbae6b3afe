"""docs/adding-an-exchange.md is followed: its exchange is added, simulated and ingested, and no Python is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from typer.testing import CliRunner

from local.exchange_sim.generator import UNIT, trades
from local.exchange_sim.server import running
from local.exchange_sim.sources import Generated
from schemahub.exchanges import Answer, Exchange
from schemahub.mapping_file import SCHEMA
from schemahub.mappings import exchanges, load_mapping, mappings_dir
from schemahub.streams import Segment, Stream
from schemahub_cli.kit.pages import SavedAnswer, newest_page, readings
from schemahub_cli.main import app
from tests.unit.pages import ROOT, blocks, rows_under, text_of
from tests.unit.worlds import Shifted, World, make_world

PAGE = "docs/adding-an-exchange.md"
STREAM = Stream("examplex", "BTC-USD")
COMMITTED_MS = 1_732_200_000_000
EDITOR_LINE = "# yaml-language-server: $schema=../layers/core/schemahub/mapping.schema.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mappings' folder that holds nothing but the page's example."""
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "examplex.yaml").write_text(blocks(PAGE, "yaml")[0])
    monkeypatch.setenv("SCHEMAHUB_MAPPINGS", str(tmp_path / "mappings"))
    return tmp_path


# --- the example ------------------------------------------------------------------------------------------------


def test_the_example_is_linted(folder: Path) -> None:
    result = CliRunner().invoke(app, ["exchange", "lint", "examplex"])
    assert (result.exit_code, result.output.split()) == (0, ["good", "examplex.yaml"])


def test_the_example_answer_becomes_the_rows_shown(folder: Path) -> None:
    mapping = load_mapping("examplex")
    page = newest_page(mapping, "BTC-USD", SavedAnswer(blocks(PAGE, "json")[0].encode()))
    rows = [reading.unified for reading in readings(mapping, "BTC-USD", page.rows, COMMITTED_MS)]
    shown = [[str(value) for value in row.values()] for row in rows if row]
    for row in shown:
        row[-1] = row[-1].replace("T", " ").rstrip("Z")
    assert shown == rows_under(PAGE, "A complete example")


def test_the_example_asks_as_the_page_says(folder: Path) -> None:
    asked: list[str] = []

    class Recorded:
        def get(self, url: str, params: dict[str, str]) -> Answer:
            asked.append(f"{url}?{'&'.join(f'{k}={v}' for k, v in params.items())}")
            return Answer(200, {}, blocks(PAGE, "json")[0].encode())

    Exchange(load_mapping("examplex"), Recorded()).page(STREAM, 1000, 1002)
    (told,) = re.findall(r"answers `GET (\S+)`", text_of(PAGE))
    assert asked == [f"https://api.examplex.example{told}"]


def test_the_example_is_ingested_from_its_simulator_as_the_oracle_says(folder: Path, aws: boto3.Session) -> None:
    config = {"latency_ms": {"mean": 0, "jitter": 0}, "examplex": {"products": ["BTC-USD"], "limit": "none"}}
    with running(config) as server:
        endpoints = {"examplex": f"{server.url}/examplex"}
        world = make_world(aws, server.url, Shifted(), endpoints=endpoints, cold_start_trades=3_000)
        outcome = world.ingest(STREAM)
        source = server.simulator.listing("examplex", "BTC-USD").source
    assert outcome["status"] == "covered"
    assert isinstance(source, Generated)
    segments = list(world.deps.ledger.segments(STREAM))
    first, last = segments[0].first, segments[-1].last
    assert last - first > 2_000
    got = [row for segment in segments for row in unified(world, segment, folder)]
    assert got == [
        {
            "exchange": "EXAMPLEX",
            "symbol": "BTC-USD",
            "trade_id": str(trade.id),
            "side": "SELL" if trade.buyer_is_maker else "BUY",
            "price": trade.price / UNIT,
            "quantity": trade.size / UNIT,
            "trade_us": trade.time_us,
        }
        for trade in trades(source.product, first, last)
    ]


def unified(world: World, segment: Segment, folder: Path) -> list[dict[str, Any]]:
    """What the transform makes of a committed segment, by trade id."""
    import pyarrow.parquet as pq

    from schemahub.transform import transform_files, verify_raw

    home = folder / str(segment.first)
    home.mkdir()
    path = home / "raw.jsonl.zst"
    assert world.deps.objects.get_to_file(segment.raw_key, path)
    verify_raw(segment, path)
    result = transform_files(load_mapping("examplex"), [(segment, path)], home / "out")
    assert result.quarantined == 0
    rows = [row for file in result.files for row in pq.ParquetFile(file.path).read().to_pylist()]
    for row in rows:
        del row["ingest_ts"]
        row["trade_us"] = round(row.pop("trade_ts").timestamp() * 1e6)
    return sorted(rows, key=lambda row: int(row["trade_id"]))


# --- every key --------------------------------------------------------------------------------------------------


def keys(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool, str]]:
    """Every key of the language as a dotted path, whether it may be left out, and its description."""
    for name, child in schema.get("properties", {}).items():
        there = SCHEMA["$defs"][child["$ref"].rsplit("/", 1)[1]] if "$ref" in child else child
        yield f"{path}{name}", name not in schema.get("required", ()), child.get("description", "")
        yield from keys(there, f"{path}{name}.")


def test_every_key_is_described_in_the_schemas_words() -> None:
    described = [(row[0].removesuffix(" *"), row[0].endswith(" *"), row[1]) for row in rows_under(PAGE, "Every key")]
    assert described == list(keys(SCHEMA))
    assert all(text for *_, text in described)


def test_every_key_is_used_by_a_mapping() -> None:
    def paths(value: Any, path: str = "") -> Iterator[str]:
        for name, child in value.items() if isinstance(value, dict) else ():
            yield f"{path}{name}"
            yield from paths(child, f"{path}{name}.")

    texts = [blocks(PAGE, "yaml")[0], *(path.read_text() for path in mappings_dir().glob("*.yaml"))]
    used = {path for text in texts for path in paths(yaml.safe_load(text))}
    assert {path for path, *_ in keys(SCHEMA)} <= used


@pytest.mark.parametrize("exchange", exchanges())
def test_an_editor_finds_the_schema_of_a_mapping(exchange: str) -> None:
    path = mappings_dir() / f"{exchange}.yaml"
    first = path.read_text().splitlines()[0]
    assert first == EDITOR_LINE
    assert json.loads((path.parent / first.partition("$schema=")[2]).read_text()) == SCHEMA


def test_the_page_shows_the_editors_line() -> None:
    assert f"`{EDITOR_LINE}`" in text_of(PAGE)
    assert blocks(PAGE, "yaml")[0].startswith(EDITOR_LINE)
    assert (ROOT / "mappings" / EDITOR_LINE.partition("$schema=")[2]).exists()
