from dataclasses import replace

import pytest

from schemahub.cost import FARGATE_DISK_GB, Work, bill
from tests.unit.pages import ROOT

DAY = Work(streams=10, chunks=40, requests=400, trades=400_000, seconds=40.0)


def test_a_run_costs_the_sum_of_its_lines() -> None:
    found = bill(DAY)
    assert found.usd == pytest.approx(sum(line.usd for line in found.lines))
    assert sum(found.by_service().values()) == pytest.approx(found.usd)
    assert list(found.by_service().values()) == sorted(found.by_service().values(), reverse=True)


def test_a_day_of_ten_products_costs_about_a_cent() -> None:
    # By hand: 14 + 9*10 + 2*40 + 2 transitions = 186 at 25 $/M; 16 fetchers * 40 s * 0.5 GB = 320 GB-s.
    lines = {(line.service, line.what): line for line in bill(DAY).lines}
    assert lines["Step Functions", "state transitions"].quantity == 186
    assert lines["Step Functions", "state transitions"].usd == pytest.approx(186 * 25e-6)
    assert lines["Lambda", "GB-seconds (arm64)"].quantity > 320
    assert 0.005 < bill(DAY).usd < 0.03


def test_nothing_new_costs_only_the_look() -> None:
    idle = bill(Work(streams=10, chunks=0, requests=10, trades=0, seconds=0.0))
    assert 0 < idle.usd < bill(DAY).usd
    assert idle.storage_month_usd == 0
    assert all(line.quantity == 0 for line in idle.lines if line.service == "Athena")


@pytest.mark.parametrize("field", ["streams", "chunks", "requests", "trades", "seconds", "queries"])
def test_more_work_never_costs_less(field: str) -> None:
    more = replace(DAY, **{field: getattr(DAY, field) * 2 + 60})
    assert bill(more).usd > bill(DAY).usd


def test_storage_is_per_month_and_not_part_of_the_run() -> None:
    thousandfold = bill(replace(DAY, trades=10**9))
    assert thousandfold.storage_month_usd == pytest.approx(31 * 0.023, rel=0.01)


def test_athena_charges_at_least_ten_megabytes_a_query() -> None:
    one = bill(replace(DAY, queries=1, query_bytes=1000))
    line = next(line for line in one.lines if line.service == "Athena")
    assert line.usd == pytest.approx(10e6 / 1e12 * 5)


def test_the_json_names_its_prices() -> None:
    document = bill(DAY).to_json()
    assert document["usd"] > 0
    assert "us-east-1" in str(document["prices"])


def test_a_task_pays_for_its_disk_beyond_what_is_free() -> None:
    # By hand: an hour of half a virtual CPU and 1 GB, and the minute in which it starts; 40 GB of disk for both.
    hour = Work(1, 10, 100, 100_000, 3600.0, tasks=1, ecs_task_seconds=3600, ecs_vcpu_seconds=1800, ecs_gb_seconds=3600)
    fargate = [line for line in bill(hour).lines if line.service == "Fargate"]
    assert [line.quantity for line in fargate] == pytest.approx([0.5 * 61 / 60, 61 / 60, 40 * 61 / 60])
    assert sum(line.usd for line in fargate) == pytest.approx((0.01619 + 0.00356 + 0.00444) * 61 / 60)


def test_the_disk_of_the_model_is_that_of_the_template() -> None:
    text = (ROOT / "template.yaml").read_text()
    assert f"EphemeralStorage: {{SizeInGiB: {FARGATE_DISK_GB + 20:.0f}}}" in text
