"""The simulator's files of history: the API's trades, whole or from a byte on, and what is planted in them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from local.exchange_sim.archive_rows import KINDS
from local.exchange_sim.server import Server, running
from local.exchange_sim.world import build_world
from tests.unit.archive_worlds import WORLD

FOLDER = "/binance/archive/data/spot/daily/aggTrades/BTCUSDT/"
NAME = "BTCUSDT-aggTrades-2025-03-10.zip"


@pytest.fixture(scope="module")
def sim() -> Iterator[Server]:
    with running(WORLD) as server:
        yield server


def get(sim: Server, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(sim.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def control(sim: Server, method: str, body: Any = None) -> int:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{sim.url}/_sim/archives", data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def rows(body: bytes) -> list[list[str]]:
    with zipfile.ZipFile(io.BytesIO(body)) as packed:
        assert packed.namelist() == [NAME.replace(".zip", ".csv")]
        return list(csv.reader(io.StringIO(packed.read(packed.namelist()[0]).decode())))


def test_a_file_holds_what_the_api_has_and_its_checksum_is_right(sim: Server) -> None:
    status, _, body = get(sim, FOLDER + NAME)
    assert status == 200
    found = rows(body)
    first, last = int(found[0][0]), int(found[-1][0])
    shown = sim.simulator.trades("binance", "BTC-USDT", first, last)
    assert [(r[0], r[1], r[2], r[6]) for r in found] == [(str(t["a"]), t["p"], t["q"], str(t["m"])) for t in shown]
    assert [int(r[5]) // 1000 for r in found] == [t["T"] for t in shown]  # microseconds since 2025
    status, _, said = get(sim, FOLDER + NAME + ".CHECKSUM")
    assert said.decode() == f"{hashlib.sha256(body).hexdigest()}  {NAME}\n"


def test_a_part_is_served_from_its_byte_on_while_the_issue_is_the_same(sim: Server) -> None:
    _, headers, body = get(sim, FOLDER + NAME)
    status, said, part = get(sim, FOLDER + NAME, Range="bytes=100-", **{"If-Range": headers["ETag"]})
    assert (status, part) == (206, body[100:])
    assert said["Content-Range"] == f"bytes 100-{len(body) - 1}/{len(body)}"
    assert get(sim, FOLDER + NAME, Range="bytes=100-", **{"If-Range": '"other"'})[::2] == (200, body)
    assert get(sim, FOLDER + NAME, Range=f"bytes={len(body)}-")[0] == 416


@pytest.mark.parametrize(
    "path",
    [
        FOLDER + "BTCUSDT-aggTrades-2023-01-01.zip",  # before history
        FOLDER + "BTCUSDT-aggTrades-2099-01-01.zip",  # not yet
        FOLDER + "BTCUSDT-aggTrades-2025-02-30.zip",
        FOLDER.replace("BTCUSDT", "NONE") + "NONE-aggTrades-2025-03-10.zip",
        FOLDER + "ETHUSDT-aggTrades-2025-03-10.zip",  # two symbols in one path
        "/coinbase/archive/data/x.zip",
    ],
)
def test_what_is_not_there_is_404(sim: Server, path: str) -> None:
    assert get(sim, path)[0] == 404


def test_what_is_wrong_is_planted_and_healed_by_request(sim: Server) -> None:
    _, _, body = get(sim, FOLDER + NAME)
    plant = {"kind": "no_file", "exchange": "binance", "product": "BTC-USDT", "begin": "2025-03-10"}
    assert control(sim, "POST", [plant]) == 200
    assert get(sim, FOLDER + NAME)[0] == 404
    assert get(sim, FOLDER + NAME.replace("-10", "-11"))[0] == 200
    assert control(sim, "DELETE") == 200
    assert get(sim, FOLDER + NAME)[::2] == (200, body)
    for wrong in ({**plant, "kind": "unheard_of"}, {**plant, "rows": 3}, {"kind": "no_file"}):
        assert control(sim, "POST", [wrong]) == 400


def test_a_configuration_plants_too() -> None:
    plant = {"kind": "reverse", "exchange": "binance", "product": "BTC-USDT"}
    assert build_world({**WORLD, "archives": [plant]}).archives == [plant]
    with running({**WORLD, "archives": [plant]}) as server:
        found = rows(get(server, FOLDER + NAME)[2])
    assert int(found[0][0]) > int(found[-1][0])
    assert "reverse" in KINDS


def test_one_day_is_healed_and_issued_again_and_the_others_stay(sim: Server) -> None:
    other = NAME.replace("-10.", "-11.")
    try:
        for begin in ("2025-03-10", "2025-03-11"):
            planted = {"kind": "garbage", "exchange": "binance", "product": "BTC-USDT", "begin": begin}
            assert control(sim, "POST", [planted]) == 200
        spoilt = [get(sim, FOLDER + name)[2] for name in (NAME, other)]
        with urllib.request.urlopen(
            urllib.request.Request(f"{sim.url}/_sim/archives?begin=2025-03-10", method="DELETE"), timeout=10
        ) as answer:
            assert json.load(answer) == {"planted": 1}
        now = [get(sim, FOLDER + name)[2] for name in (NAME, other)]
        assert (now[0] != spoilt[0], now[1] == spoilt[1]) == (True, True)
    finally:
        control(sim, "DELETE")
