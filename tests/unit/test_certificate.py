"""Coverage certificates: what they hold, that a change shows, and that the lake alone is enough to check them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from schemahub import certificate
from schemahub.audit import recheck
from schemahub.catalog import LakeCatalog
from schemahub.certificate import hash_of, judge, judge_chain, parse, text_of
from schemahub.errors import BadCertificate, BadInput
from schemahub.folder import open_folder
from schemahub.lake import lake_at
from schemahub.streams import Absent, Interval
from schemahub_cli.main import app
from tests.lake import coinbase_row
from tests.proofs import BTC, ETH, SOL, World, healing

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Callable[[], None]]]:
    with healing(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture
def world(made: tuple[World, Callable[[], None]]) -> Iterator[World]:
    yield made[0]
    made[1]()


def issued(world: World, deep: bool = False) -> dict[Any, dict[str, Any]]:
    """Certificates of all streams, stored in the lake as ``verify`` does."""
    found = {v.stream: v.document for v in world.audit(deep=deep, sign=True) if v.document}
    for document in found.values():
        assert certificate.store(world.deps.objects, document)
    return found


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    """A copy of the lake with its certificates: no state table, no catalog, no metadata of objects."""
    issued(world)
    return world.copy_to(tmp_path / "copy")


def found_in(folder: Path, stream: Any = BTC, deep: bool = False) -> list[tuple[str, tuple[int, int] | None]]:
    lake = lake_at(str(folder), None)
    verdict = recheck(lake, certificate.chain_of(lake.objects, stream), deep=deep)
    return [(f.kind, f.span and tuple(f.span)) for f in verdict.findings]


def test_a_certificate_says_what_was_proved(world: World) -> None:
    document = issued(world, deep=True)[BTC]
    assert document["range"] == [1, 30]
    assert document["counts"] == {"ids": 30, "trades": 28, "absent": 2, "quarantined": 0, "rows": 28}
    assert [tile[:3] for tile in document["segments"]] == [[1, 10, 10], [11, 20, 7], [21, 30, 10]]
    assert document["fills"][0][:3] == [12, 12, 1]
    assert document["absent"] == [[11, 11, 13, "exchange_skipped"]]
    [hole] = document["holes"]
    assert (hole["first"], hole["last"], hole["kind"], hole["filled"], hole["proved"]) == (
        11, 13, "exchange_skipped", [[12, 12]], False
    )  # fmt: skip
    assert document["table"]["published"] == [[1, 30]]
    assert document["table"]["snapshot_id"] == world.lake.table().current_snapshot().snapshot_id
    assert document["signed_off"] == {
        "by": "arn:aws:iam::1:user/tester", "at": "2024-03-15T07:06:40.000+00:00", "program": "schemahub test",
        "deep": True,
    }  # fmt: skip


def test_quarantined_ids_are_named(world: World) -> None:
    assert issued(world)[SOL]["quarantined"] == [[3, 3]]


def test_a_stream_with_a_finding_gets_no_certificate_and_the_others_do(world: World) -> None:
    world.drop_item(BTC, "watermark")
    assert issued(world).keys() == {ETH, SOL}


def test_a_finding_in_the_table_itself_leaves_all_without(world: World) -> None:
    world.lake.session.client("glue").delete_table(DatabaseName="schemahub_test", Name="unified_trades")
    assert issued(world) == {}


def test_a_certificate_is_written_and_read_back(world: World) -> None:
    document = issued(world)[BTC]
    found = parse(text_of(document), "here")
    assert found.document == document
    assert judge(found) == []
    assert json.loads(text_of(document)) == document
    assert len(text_of(document).splitlines()) > len(document["segments"])


def test_certificates_of_a_stream_form_a_chain(world: World) -> None:
    first = issued(world)[BTC]
    world.clock.advance(60)
    second = issued(world)[BTC]
    assert (first["number"], first["previous"]) == (1, None)
    assert (second["number"], second["previous"]) == (2, first["sha256"])
    assert judge_chain(certificate.chain_of(world.deps.objects, BTC)) == []
    assert not certificate.store(world.deps.objects, second), "two verifications at once: one is told"


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "count": lambda d: d["counts"].update(trades=29),
    "range": lambda d: d.update(range=[0, 30]),
    "hash of a segment": lambda d: d["segments"][0].__setitem__(3, "0" * 64),
    "a segment left out": lambda d: d["segments"].pop(),
    "class of a hole": lambda d: d["absent"][0].__setitem__(3, "halted"),
    "what was learned of a hole": lambda d: d["holes"][0].update(looks=3),
    "published": lambda d: d["table"].update(published=[[1, 40]]),
    "who": lambda d: d["signed_off"].update(by="somebody"),
    "when": lambda d: d["signed_off"].update(at="2020-01-01T00:00:00.000+00:00"),
    "deep": lambda d: d["signed_off"].update(deep=True),
    "quarantined": lambda d: d.update(quarantined=[[5, 5]]),
    "number": lambda d: d.update(number=7),
    "previous": lambda d: d.update(previous="0" * 64),
    "a new key": lambda d: d.update(note="all is well"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_shows(world: World, edit: str) -> None:
    document = copy.deepcopy(issued(world)[BTC])
    EDITS[edit](document)
    assert [f.kind for f in judge(parse(text_of(document), "here"))] == ["certificate_edited"]


@pytest.mark.parametrize("edit", ["count", "range", "hash of a segment", "a segment left out", "published"])
def test_an_edit_with_a_new_hash_contradicts_the_certificate_itself(world: World, edit: str) -> None:
    document = copy.deepcopy(issued(world)[BTC])
    EDITS[edit](document)
    document["sha256"] = hash_of(document)
    assert {f.kind for f in judge(parse(text_of(document), "here"))} == {"certificate_wrong"}


def test_an_edit_with_a_new_hash_breaks_the_chain(world: World, tmp_path: Path) -> None:
    document = copy.deepcopy(issued(world)[BTC])
    world.clock.advance(60)
    issued(world)
    EDITS["what was learned of a hole"](document)
    document["sha256"] = hash_of(document)
    name = certificate.folder_of(BTC) + certificate.name_of(document)
    world.replace_object(name, text_of(document).encode())
    assert [kind for kind, _ in found_in(world.copy_to(tmp_path))] == ["certificate_chain"]


def test_a_certificate_that_is_missing_in_the_middle_shows(world: World, tmp_path: Path) -> None:
    for _ in range(3):
        issued(world)
        world.clock.advance(60)
    world.replace_object(certificate.folder_of(BTC) + "000002.json")
    assert ("certificate_chain", None) in found_in(world.copy_to(tmp_path))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"kind": "other"}', b'{"kind": "%s"}' % b"x" * 3])
def test_what_is_no_certificate_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(BadCertificate):
        parse(body, "here")


@pytest.mark.parametrize("deep", [False, True])
def test_the_lake_alone_is_enough(copied: Path, deep: bool) -> None:
    for stream in (BTC, ETH, SOL):
        assert found_in(copied, stream, deep) == []


def test_a_key_that_leads_out_of_the_folder_is_not_there(copied: Path) -> None:
    """A copied certificate may name any key; what lies beside the copy is none of its business."""
    (copied.parent / "secret").write_text("mine")
    objects = open_folder(copied)
    assert objects.get("../secret") is None
    assert objects.get(f"{BTC.raw_prefix}../../../secret") is None


def test_the_folder_itself_may_be_named(copied: Path) -> None:
    assert found_in(copied / "schemahub") == []
    with pytest.raises(BadInput):
        lake_at(str(copied.parent), None)


def test_a_table_that_has_grown_since_is_still_proved(world: World, tmp_path: Path) -> None:
    world.commit(31, 40, absent=[Absent(33, 34, "not_yet")])
    issued(world)
    segment = world.deps.ledger.segment(BTC, 31)
    assert segment is not None
    world.publish(segment, world.commit(41, 50))
    world.clock.advance(3600)
    world.publish(world.fill(33, 33))
    world.publish(world.fill(13, 13))
    assert found_in(world.copy_to(tmp_path)) == []


HARM: dict[str, tuple[Callable[[World], None], set[tuple[str, Interval | None]]]] = {
    "raw object gone": (
        lambda w: w.replace_object(f"{BTC.raw_prefix}{1:020d}_{10:020d}_10.jsonl.zst"),
        {("raw_missing", Interval(1, 10))}),
    "raw object changed": (
        lambda w: w.replace_object(f"{BTC.raw_prefix}{1:020d}_{10:020d}_10.jsonl.zst", b"x"),
        {("raw_corrupt", Interval(1, 10))}),
    "row doubled": (lambda w: w.append(BTC, [coinbase_row(5)]), {("rows_doubled", Interval(5, 5))}),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_later_damage_of_the_lake_shows(world: World, tmp_path: Path, harm: str) -> None:
    issued(world)
    HARM[harm][0](world)
    assert set(found_in(world.copy_to(tmp_path))) == {(k, s and tuple(s)) for k, s in HARM[harm][1]}


def test_later_loss_of_a_row_and_of_a_value_shows(world: World, tmp_path: Path) -> None:
    issued(world)
    rows = [coinbase_row(i, **({"price": "9"} if i == 5 else {})) for i in range(1, 11)]
    world.exchange_file(ETH, rows)
    folder = world.copy_to(tmp_path / "value")
    assert found_in(folder, ETH) == []
    assert [kind for kind, _ in found_in(folder, ETH, deep=True)] == ["rows_changed"]
    world.exchange_file(ETH, rows[:-1])
    assert found_in(world.copy_to(tmp_path / "row"), ETH) == [("rows_missing", (10, 10))]


def test_a_bucket_without_its_state_tables_is_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    issued(world)
    chain = certificate.chain_of(world.deps.objects, BTC)
    quick = world.quick_table()
    world.forget()
    monkeypatch.setattr(LakeCatalog, "load_table", lambda *_: pytest.fail("the catalog was asked"))
    lake = lake_at("s3://schemahub-test-lake", world.lake.session)
    assert lake.published[BTC] == [Interval(1, 30)]
    assert recheck(replace(lake, connect=quick.connect), chain).findings == ()
    with pytest.raises(BadInput, match="neither a folder"):
        lake_at("no-such-bucket-here", world.lake.session)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    from types import SimpleNamespace

    from schemahub import lake
    from schemahub_cli import executions, target

    caller = SimpleNamespace(get_caller_identity=lambda: {"Arn": "arn:aws:iam::1:user/tester"})
    found = SimpleNamespace(
        stack="schemahub-test", where="schemahub-test (local)", deps=world.deps, client=lambda service: caller,
        ingest_arn="a", transform_arn="b",
    )  # fmt: skip
    monkeypatch.setattr(target, "resolve", lambda name: found)
    monkeypatch.setattr(lake, "lake_of", lambda deps: world.quick_table())
    monkeypatch.setattr(executions, "find_running", lambda where, arn: None)
    return world


def document_of(result: Any) -> Any:
    return json.loads(result.stdout)


def test_verify_issues_certificates_that_offline_checks_again(stack: World, tmp_path: Path) -> None:
    signed = tmp_path / "signed"
    result = RUNNER.invoke(app, ["verify", "--json", "--certificate-dir", str(signed)])
    assert result.exit_code == 0, result.output
    said = document_of(result)
    assert said["whole"] is True
    assert [s["stream"] for s in said["streams"]] == ["coinbase:BTC-USD", "coinbase:ETH-USD", "coinbase:SOL-USD"]
    written = json.loads((signed / "coinbase/BTC-USD/000001.json").read_text())
    assert written["sha256"] == said["streams"][0]["certificate_sha256"]
    folder = stack.copy_to(tmp_path / "copy")
    again = RUNNER.invoke(app, ["verify", "--offline", str(folder), "--json"])
    assert again.exit_code == 0, again.output
    assert [s["certificate_sha256"] for s in document_of(again)["streams"]] == [
        s["certificate_sha256"] for s in said["streams"]
    ]
    (folder / BTC.raw_prefix / f"{1:020d}_{10:020d}_10.jsonl.zst").unlink()
    damaged = RUNNER.invoke(app, ["verify", "--offline", str(folder), "--certificate-dir", str(signed), "--deep"])
    assert damaged.exit_code == 1
    assert "raw_missing" in damaged.output
    assert "→" in damaged.output


def test_verify_with_findings_is_exit_code_1_and_says_what_to_do(stack: World) -> None:
    stack.replace_object(BTC.mirror_key, b"{")
    result = RUNNER.invoke(app, ["verify", "-s", "coinbase:BTC-USD", "--json"])
    assert result.exit_code == 1
    [found] = document_of(result)["streams"]
    assert [f["kind"] for f in found["findings"]] == ["mirror_unreadable"]
    assert found["findings"][0]["remedy"]
    assert found["certificate_sha256"] is None
    plain = RUNNER.invoke(app, ["verify"])
    assert plain.exit_code == 1
    assert "mirror_unreadable" in plain.output
    assert certificate.newest(stack.deps.objects, BTC) is None
    assert certificate.newest(stack.deps.objects, ETH) is not None


def test_a_dry_run_of_verify_writes_nothing(stack: World, tmp_path: Path) -> None:
    before = list(stack.deps.objects.list(""))
    result = RUNNER.invoke(app, ["verify", "--dry-run", "--certificate-dir", str(tmp_path)])
    assert result.exit_code == 0
    assert "whole" in result.output
    assert list(stack.deps.objects.list("")) == before
    assert list(tmp_path.iterdir()) == []


def test_offline_without_certificates_is_a_named_error(stack: World, tmp_path: Path) -> None:
    folder = stack.copy_to(tmp_path)
    for arguments in ([], ["-s", "coinbase:BTC-USD"]):
        result = RUNNER.invoke(app, ["verify", "--offline", str(folder), "--json", *arguments])
        assert result.exit_code == 1
        assert document_of(result)["error"] == "BadCertificate"


def test_state_rebuild_shows_and_then_does_it(stack: World) -> None:
    before = stack.items()
    stack.forget()
    dry = RUNNER.invoke(app, ["state", "rebuild", "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    assert document_of(dry)["buckets"] == ["coinbase"]
    assert document_of(dry)["streams"][0]["segments"] == 3
    assert stack.items() == []
    done = RUNNER.invoke(app, ["state", "rebuild"])
    assert done.exit_code == 0, done.output
    assert "3 of 3 streams were completed" in done.output
    assert [(i["stream"], i["item"]) for i in stack.items()] == [(i["stream"], i["item"]) for i in before]
    assert [i["exchange"] for i in stack.deps.throttle_table.scan()["Items"]] == ["coinbase"]


def test_a_stream_that_cannot_be_rebuilt_is_exit_code_1_and_the_others_are(stack: World) -> None:
    for key in list(stack.deps.objects.list("schemahub/plans/")):
        stack.replace_object(key)
    stack.replace_object(f"{ETH.raw_prefix}{1:020d}_{10:020d}_10.jsonl.zst")
    stack.forget()
    result = RUNNER.invoke(app, ["state", "rebuild", "--json"])
    assert result.exit_code == 1
    said = {s["stream"]: s for s in document_of(result)["streams"]}
    assert said["coinbase:ETH-USD"]["error"] == "CorruptState"
    assert said["coinbase:BTC-USD"]["segments"] == 3


def test_state_rebuild_refuses_while_a_run_goes_on(stack: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemahub_cli import executions

    monkeypatch.setattr(executions, "find_running", lambda where, arn: "arn:x")
    result = RUNNER.invoke(app, ["state", "rebuild", "--json"])
    assert result.exit_code == 1
    assert document_of(result)["error"] == "LockBusy"
