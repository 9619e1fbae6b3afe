"""``verify`` over a lake in which nothing is wrong, and over one in which exactly one thing is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from schemahub.audit import audit
from schemahub.verify import bucket_span
from tests.lake import DATABASE, coinbase_row
from tests.proofs import BTC, ETH, SOL, World, healing

FIRST, MIDDLE, LAST = "segment#" + f"{1:020d}", "segment#" + f"{11:020d}", "segment#" + f"{21:020d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Callable[[], None]]]:
    with healing(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture
def world(made: tuple[World, Callable[[], None]]) -> Iterator[World]:
    yield made[0]
    made[1]()


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_lake_is_found_whole(world: World, deep: bool) -> None:
    verdicts = world.audit(deep=deep, quick=False)
    assert [f for v in verdicts for f in v.findings] == []
    counted = {v.stream: (v.range, v.trades, v.rows, v.absent, v.quarantined, v.pending) for v in verdicts if v.stream}
    assert counted == {
        BTC: ((1, 30), 28, 28, 2, 0, 0),
        ETH: ((1, 10), 10, 10, 0, 0, 0),
        SOL: ((1, 10), 10, 9, 0, 1, 0),
    }


def test_what_is_committed_and_not_yet_published_is_no_finding(world: World) -> None:
    world.commit(31, 40)
    [btc, _] = world.audit(BTC, deep=True)
    assert (btc.findings, btc.pending, btc.range) == ((), 10, (1, 40))


def key(first: int, last: int, count: int) -> str:
    return f"{BTC.raw_prefix}{first:020d}_{last:020d}_{count}.jsonl.zst"


def moved(**changes: int) -> Callable[[World], None]:
    return lambda world: world.put_item({**world.item(BTC, "watermark"), **changes})


def edited(name: str, **changes: Any) -> Callable[[World], None]:
    return lambda world: world.put_item({**world.item(BTC, name), **changes})


def mirrored(body: bytes) -> Callable[[World], None]:
    return lambda world: world.replace_object(BTC.mirror_key, body)


def old_mirror(low: int, high: int) -> bytes:
    return f'{{"stream": "{BTC}", "low": {low}, "high": {high}, "fence": 1, "updated_at": 1}}'.encode()


def other_segment(world: World) -> None:
    world.put_item({**world.item(BTC, FIRST), "item": f"segment#{5:020d}", "first": 5, "last": 14})


def unpublish(world: World) -> None:
    """The table is set back to the snapshot before its last one."""
    table = world.lake.table()
    glue = world.lake.session.client("glue")
    found = glue.get_table(DatabaseName=DATABASE, Name="unified_trades")["Table"]
    kept = {k: found[k] for k in ("Name", "StorageDescriptor", "TableType") if k in found}
    older = table.metadata.metadata_log[-1].metadata_file
    parameters = {**found["Parameters"], "metadata_location": older}
    glue.update_table(DatabaseName=DATABASE, TableInput={**kept, "Parameters": parameters})


def drop_table(world: World) -> None:
    world.lake.session.client("glue").delete_table(DatabaseName=DATABASE, Name="unified_trades")


def data_file(world: World, product: str) -> str:
    return next(k for k in world.lake.files() if product in k)


Seen = tuple[str, str, tuple[int, int] | None]
B, FILLS = str(BTC), str(BTC.fills)
DAMAGE: dict[str, tuple[Callable[[World], None], set[Seen]]] = {
    "raw object deleted": (lambda w: w.replace_object(key(1, 10, 10)), {("raw_missing", B, (1, 10))}),
    "raw metadata: another hash": (
        lambda w: w.replace_object(key(1, 10, 10), metadata={"sha256": "0" * 64}), {("raw_metadata", B, (1, 10))}),
    "raw metadata: another count": (
        lambda w: w.replace_object(key(1, 10, 10), metadata={"count": "9"}), {("raw_metadata", B, (1, 10))}),
    "raw metadata: no hole": (
        lambda w: w.replace_object(key(11, 20, 7), metadata={"absent": "[]"}), {("raw_metadata", B, (11, 20))}),
    "segment removed in the middle": (
        lambda w: w.drop_item(BTC, MIDDLE),
        {("segment_missing", B, (11, 20)), ("published_unknown", B, (11, 20)), ("fill_wrong", FILLS, (12, 12)),
         ("hole_wrong", B, (11, 13)), ("rows_stray", B, (14, 20))}),
    "segment removed at the end": (
        lambda w: w.drop_item(BTC, LAST),
        {("segment_missing", B, (21, 30)), ("published_unknown", B, (21, 30)), ("rows_stray", B, (21, 30))}),
    "segment overlapping two": (
        other_segment,
        {("segment_overlap", B, (5, 10)), ("segment_overlap", B, (11, 14)), ("segment_wrong", B, (5, 14)),
                        ("raw_metadata", B, (5, 14)), ("rows_missing", B, (11, 11)), ("rows_missing", B, (13, 13))}),
    "segment widened, with its count": (
        edited(LAST, last=35, count=15),
        {("segment_beyond", B, (21, 35)), ("segment_wrong", B, (21, 35)), ("raw_metadata", B, (21, 35)),
         ("published_partly", B, (21, 35)), ("rows_stray", B, (21, 30))}),
    "segment with another hash": (edited(FIRST, sha256="1" * 64), {("raw_metadata", B, (1, 10))}),
    "item without a hash": (
        lambda w: w.put_item({k: v for k, v in w.item(BTC, FIRST).items() if k != "sha256"}),
        {("ledger_unreadable", B, None)}),
    "watermark lost": (lambda w: w.drop_item(BTC, "watermark"),
                       {("watermark_missing", B, None), ("mirror_ahead", B, None)}),
    "watermark ahead": (moved(high=40), {("segment_missing", B, (31, 40)), ("mirror_behind", B, None)}),
    "watermark back": (moved(high=20), {("segment_beyond", B, (21, 30)), ("mirror_ahead", B, None)}),
    "watermark lower": (moved(low=0), {("segment_missing", B, (0, 0)), ("mirror_behind", B, None)}),
    "fill lost": (lambda w: w.drop_item(BTC.fills, f"segment#{12:020d}"),
                  {("hole_wrong", B, (11, 13)), ("published_unknown", FILLS, (12, 12)), ("rows_stray", B, (12, 12))}),
    "hole changed": (edited(f"hole#{11:020d}", filled_by=[]), {("hole_wrong", B, (11, 13))}),
    "mirror older": (mirrored(old_mirror(1, 20)), {("mirror_behind", B, None)}),
    "mirror newer": (mirrored(old_mirror(1, 40)), {("mirror_ahead", B, None)}),
    "mirror of a wider past": (mirrored(old_mirror(0, 30)), {("mirror_ahead", B, None)}),
    "mirror garbled": (mirrored(b"{"), {("mirror_unreadable", B, None)}),
    "mirror of another stream": (
        lambda w: w.replace_object(BTC.mirror_key, w.deps.objects.get(ETH.mirror_key)),
        {("mirror_unreadable", B, None)}),
    "row doubled": (lambda w: w.append(BTC, [coinbase_row(5)]), {("rows_doubled", B, (5, 5))}),
    "file doubled": (lambda w: w.append(ETH, [coinbase_row(i) for i in range(1, 11)]),
                     {("rows_doubled", str(ETH), (1, 10))}),
    "row missing": (
        lambda w: w.exchange_file(ETH, [coinbase_row(i) for i in range(1, 11) if i != 4]),
        {("rows_missing", str(ETH), (4, 4))}),
    "one row for another": (
        lambda w: w.exchange_file(ETH, [coinbase_row(i) for i in (*range(1, 10), 11)]),
        {("rows_missing", str(ETH), (10, 10)), ("rows_stray", str(ETH), (11, 11))}),
    "absent row there": (lambda w: w.append(BTC, [coinbase_row(13)]), {("rows_stray", B, (13, 13))}),
    "row far away": (lambda w: w.append(BTC, [coinbase_row(9_000_000)]), {("rows_stray", B, (9_000_000, 9_000_000))}),
    "quarantined row there": (lambda w: w.append(SOL, [coinbase_row(3)]), {("rows_stray", str(SOL), None)}),
    "row missing beside a quarantined one": (
        lambda w: w.exchange_file(SOL, [coinbase_row(i) for i in range(1, 11) if i not in (3, 4)]),
        {("rows_missing", str(SOL), (4, 4))}),
    "row of another stream": (lambda w: w.append(replace_stream(ETH, "DOGE-USD"), [coinbase_row(1)]),
                              {("rows_unknown", "COINBASE DOGE-USD", None)}),
    "table set back": (
        unpublish, {("published_lost", B, (21, 30)), ("published_lost", FILLS, (12, 12))}),
    "table lost": (drop_table, {("table_unregistered", "", None)}),
}  # fmt: skip


def replace_stream(stream: Any, product: str) -> Any:
    return type(stream)(stream.exchange, product)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_place(world: World, damage: str) -> None:
    harm, expected = DAMAGE[damage]
    harm(world)
    found = world.kinds()
    assert set(found) == expected
    assert len(found) == len(expected), "each thing once"


def test_a_widened_segment_is_named(world: World) -> None:
    """It contradicts itself: the ledger refuses to read it, or each check names what it sees."""
    edited(LAST, last=35)(world)
    assert {kind for kind, stream, _ in world.kinds() if stream == B} & {"ledger_unreadable", "segment_wrong"}


def test_a_lost_data_file_is_named(world: World) -> None:
    world.replace_object(data_file(world, "ETH"))
    assert {kind for kind, _, _ in world.kinds(quick=False)} == {"file_missing", "table_unreadable"}


def test_a_shortened_data_file_is_named(world: World) -> None:
    name = data_file(world, "ETH")
    world.replace_object(name, (world.deps.objects.get(name) or b"")[:-10])
    assert "file_missing" in {kind for kind, _, _ in world.kinds(quick=False)}


def deep_only(world: World) -> set[Seen]:
    """What only the deep checks see."""
    fast = set(world.kinds())
    assert fast == set(), "then this belongs to the damage that the aggregate checks see"
    return set(world.kinds(deep=True))


def test_a_corrupted_raw_object_is_seen_by_the_deep_checks(world: World) -> None:
    body = bytearray(world.deps.objects.get(key(1, 10, 10)) or b"")
    body[len(body) // 2] ^= 0xFF
    world.replace_object(key(1, 10, 10), bytes(body))
    assert deep_only(world) == {("raw_corrupt", B, (1, 10))}


def test_an_emptied_raw_object_is_named(world: World) -> None:
    world.replace_object(key(1, 10, 10), b"")
    found = {seen for seen in world.kinds(deep=True) if seen[2] == (1, 10)}
    assert found & {("raw_missing", B, (1, 10)), ("raw_corrupt", B, (1, 10))}


@pytest.mark.parametrize("left", [20, -5])
def test_a_truncated_raw_object_is_seen_by_the_deep_checks(world: World, left: int) -> None:
    world.replace_object(key(1, 10, 10), (world.deps.objects.get(key(1, 10, 10)) or b"")[:left])
    assert deep_only(world) == {("raw_corrupt", B, (1, 10))}


def test_another_segments_content_is_seen_by_the_deep_checks(world: World) -> None:
    """Hash, count, metadata and item agree with each other, and not with the ids."""
    world.replace_object(
        key(1, 10, 10), world.deps.objects.get(key(21, 30, 10)),
        {"sha256": world.item(BTC, LAST)["sha256"]},
    )  # fmt: skip
    edited(FIRST, sha256=world.item(BTC, LAST)["sha256"])(world)
    assert ("raw_corrupt", B, (1, 10)) in deep_only(world)


@pytest.mark.parametrize(
    "change",
    [{"price": "1.0"}, {"size": "1.0"}, {"side": "buy"}, {"time": "2024-03-01T00:05:00.000009Z"}],
    ids=lambda change: next(iter(change)),
)
def test_another_value_in_a_row_is_seen_by_the_deep_checks(world: World, change: dict[str, str]) -> None:
    world.exchange_file(ETH, [coinbase_row(i, **(change if i == 4 else {})) for i in range(1, 11)])
    assert deep_only(world) == {("rows_changed", str(ETH), tuple(bucket_span(0)))}


def test_only_the_streams_that_were_asked_for_are_judged(world: World) -> None:
    world.append(BTC, [coinbase_row(5)])
    verdicts = world.audit(ETH)
    assert [v.stream for v in verdicts] == [ETH, None]
    assert not any(v.findings for v in verdicts)


def test_a_run_that_publishes_while_it_is_verified_makes_no_finding(world: World) -> None:
    pending = world.commit(31, 40)
    before = world.quick_table()
    world.publish(pending)
    answers = iter([before])
    verdicts = list(audit(world.deps, lambda: next(answers, None) or world.quick_table(), [BTC]))
    assert not any(v.findings for v in verdicts)
    assert verdicts[0].pending == 10, "as of the snapshot that was verified"
