"""Downloads that break off, change under way, never come or are too large: a server that says so, step by step."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemahub import archive_download
from schemahub.archive_download import MAX_TRIES, Downloads, Opened, sha256_of
from schemahub.archives import file_of
from schemahub.clock import FakeClock
from schemahub.errors import (
    ArchiveAbsent,
    ArchiveBomb,
    ArchiveUnreadable,
    ChecksumMismatch,
    ExchangeRefused,
    ExchangeUnavailable,
    ResponseInterrupted,
)
from tests.unit.archive_worlds import MAPPING, OLD
from tests.unit.pipelines import BINANCE

FILE = file_of(MAPPING, BINANCE, "daily", OLD)
BODY = bytes(range(256)) * 40
SUM = f"{hashlib.sha256(BODY).hexdigest()}  {FILE.name}\n".encode()
Step = tuple[int, dict[str, str], bytes, Exception | None]


def whole(
    body: bytes = BODY, etag: str | None = '"one"', error: Exception | None = None, say: int | None = None
) -> Step:
    headers = {"content-length": str(len(BODY) if say is None else say)} | ({"etag": etag} if etag else {})
    return 200, headers, body, error


def rest(begin: int, body: bytes, etag: str = '"one"') -> Step:
    said = {"etag": etag, "content-range": f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}"}
    return 206, said, body, None


class Server:
    """Answers the requests for the file with ``steps``, one after the other, and for its checksum with ``sums``."""

    def __init__(self, *steps: Step, sums: list[bytes | int] | None = None) -> None:
        self.steps, self.sums, self.asked = list(steps), sums or [SUM], list[dict[str, str]]()

    @contextlib.contextmanager
    def open(self, url: str, headers: dict[str, str]) -> Iterator[Opened]:
        assert url.startswith("https://archive.example/data/")
        if url.endswith(".CHECKSUM"):
            said = self.sums.pop(0) if len(self.sums) > 1 else self.sums[0]
            yield Opened(200, {}, iter([said])) if isinstance(said, bytes) else Opened(said, {}, iter(()))
            return
        self.asked.append(headers)
        status, said_headers, body, error = self.steps.pop(0)

        def blocks() -> Iterator[bytes]:
            for at in range(0, len(body), 1_000):
                yield body[at : at + 1_000]
            if error is not None:
                raise error

        yield Opened(status, said_headers, blocks())


def obtain(server: Server, folder: Path, clock: FakeClock | None = None) -> archive_download.Issue:
    downloads = Downloads(server, "https://archive.example", ".CHECKSUM", clock or FakeClock())
    return downloads.obtain(FILE, folder)


BROKEN = ResponseInterrupted("broke off")


def test_a_part_is_continued_from_its_end_if_the_issue_is_the_same(tmp_path: Path) -> None:
    server = Server(whole(BODY[:4_000], error=BROKEN), rest(4_000, BODY[4_000:]))
    issue = obtain(server, tmp_path)
    assert (issue.path.read_bytes(), issue.checksum, issue.resumed) == (BODY, "verified", 1)
    assert server.asked == [{}, {"Range": "bytes=4000-", "If-Range": '"one"'}]


def test_another_process_continues_what_the_last_one_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtain(Server(whole(BODY[:3_000], error=KeyboardInterrupt())), tmp_path)  # type: ignore[arg-type]
    server = Server(rest(3_000, BODY[3_000:]))
    assert obtain(server, tmp_path).path.read_bytes() == BODY
    assert server.asked[0]["Range"] == "bytes=3000-"


def test_an_issue_that_changed_meanwhile_begins_again(tmp_path: Path) -> None:
    """binance-public-data#405: two issues in one file would be neither."""
    server = Server(whole(b"x" * 4_000, etag='"old"', error=BROKEN), whole(etag='"new"'))
    assert obtain(server, tmp_path).path.read_bytes() == BODY
    assert server.asked[1] == {"Range": "bytes=4000-", "If-Range": '"old"'}


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_mark_nothing_is_continued(tmp_path: Path, etag: str | None) -> None:
    server = Server(whole(BODY[:4_000], etag=etag, error=BROKEN), whole())
    assert obtain(server, tmp_path).path.read_bytes() == BODY
    assert server.asked == [{}, {}]


def test_an_answer_for_another_place_is_thrown_away(tmp_path: Path) -> None:
    server = Server(whole(BODY[:4_000], error=BROKEN), rest(1_000, BODY[1_000:]), whole())
    assert obtain(server, tmp_path).path.read_bytes() == BODY


def test_a_whole_file_that_is_there_already_is_not_loaded_again(tmp_path: Path) -> None:
    obtain(Server(whole()), tmp_path)
    server = Server((416, {"content-range": f"bytes */{len(BODY)}"}, b"", None))
    assert obtain(server, tmp_path).path.read_bytes() == BODY


def test_a_file_of_another_length_begins_again(tmp_path: Path) -> None:
    obtain(Server(whole()), tmp_path)
    server = Server((416, {"content-range": "bytes */7"}, b"", None), whole())
    assert obtain(server, tmp_path).path.read_bytes() == BODY


def test_a_body_that_ends_early_without_an_error_is_not_whole(tmp_path: Path) -> None:
    server = Server(whole(BODY[:5_000]), rest(5_000, BODY[5_000:]))
    assert obtain(server, tmp_path).path.read_bytes() == BODY


def test_what_passes_is_waited_for_and_what_stays_is_named(tmp_path: Path) -> None:
    clock = FakeClock()
    begun = clock.now_ms()
    server = Server((503, {}, b"", None), (429, {}, b"", None), whole())
    assert obtain(server, tmp_path, clock).path.read_bytes() == BODY
    assert clock.now_ms() - begun >= 2_000
    with pytest.raises(ExchangeUnavailable):
        obtain(Server(*[(503, {}, b"", None)] * MAX_TRIES), tmp_path / "other")


def test_a_connection_that_always_brings_something_comes_to_its_end(tmp_path: Path) -> None:
    steps = [whole(BODY[:500], error=BROKEN)]
    steps += [(*rest(at, BODY[at : at + 500])[:3], BROKEN) for at in range(500, len(BODY) - 500, 500)]
    assert len(steps) > MAX_TRIES
    server = Server(*steps, rest(len(BODY) // 500 * 500, BODY[len(BODY) // 500 * 500 :]))
    assert obtain(server, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ((404, {}, b"", None), ArchiveAbsent),
        ((301, {}, b"", None), ExchangeRefused),
        ((403, {}, b"", None), ExchangeRefused),
    ],
)
def test_an_answer_that_is_none_is_named(tmp_path: Path, step: Step, error: type[Exception]) -> None:
    with pytest.raises(error):
        obtain(Server(step), tmp_path)


def test_a_file_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_download, "MAX_FILE_BYTES", 5_000)
    with pytest.raises(ArchiveBomb):
        obtain(Server(whole()), tmp_path)
    with pytest.raises(ArchiveBomb):
        obtain(Server((200, {}, BODY, None)), tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 5_100


def test_a_wrong_checksum_is_asked_for_twice_and_nothing_of_the_file_stays(tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch, match=FILE.name):
        obtain(Server(whole(b"other", say=5), whole(b"other", say=5), sums=[SUM]), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server = Server(whole(b"old", say=3), whole(), sums=[SUM])
    assert obtain(server, tmp_path).checksum == "verified"


def test_a_checksum_that_is_not_there_is_a_state_and_one_that_is_garbage_an_error(tmp_path: Path) -> None:
    issue = obtain(Server(whole(), sums=[404]), tmp_path)
    assert (issue.checksum, issue.upstream, issue.sha256) == ("missing", None, sha256_of(issue.path, lambda: None))
    with pytest.raises(ArchiveUnreadable):
        obtain(Server(whole(), sums=[b"<html>"]), tmp_path / "two")
    with pytest.raises(ExchangeUnavailable):
        obtain(Server(whole(), sums=[503]), tmp_path / "three")
