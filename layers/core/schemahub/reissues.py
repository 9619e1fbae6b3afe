"""Files of archives that were issued again: found by the checksums that exchanges publish, a part of them each time.

An exchange says nothing of an issue but its new checksum, so every checksum of a file that was taken has to be asked
for again, now and then. Where the next look goes on is an object of its own in S3; what a look finds is listed as a
correction that is ``due`` until somebody has taken the issue. Needs no Arrow: a function can look.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from schemahub import corrections
from schemahub.archive_download import Downloads, Files, RequestsFiles
from schemahub.archives import (
    ArchiveFile,
    FileState,
    address_of,
    archive_of,
    folder_of,
    read_state,
    reissued,
    state_at,
    state_keys,
    states,
)
from schemahub.deps import Deps
from schemahub.errors import ArchiveUnreadable, CorruptState
from schemahub.mappings import Mapping, load_mapping
from schemahub.streams import Stream


@dataclass(frozen=True)
class Looked:
    """How far the checksums of a stream's files were looked at: the name of the last one, and when (ms)."""

    after: str = ""
    at: int = 0


def checksums_of(deps: Deps, mapping: Mapping, files: Files | None = None) -> Downloads | None:
    """The archive of an exchange that publishes checksums; None for any other."""
    archive = archive_of(mapping)
    if archive is None or archive.checksum is None:
        return None
    address = address_of(mapping, deps.settings.endpoints.get(mapping.exchange))
    return Downloads(files or RequestsFiles(), address, archive.checksum.removeprefix("{file}"), deps.clock)


def look_for_reissues(
    deps: Deps, stream: Stream, files: Files | None = None, only: Sequence[ArchiveFile] | None = None
) -> list[ArchiveFile]:
    """Files (all of the stream's that were taken, or ``only`` these) whose published checksum is another one now.

    Raises:
        ExchangeError: it cannot be asked now. ArchiveUnreadable: what it publishes is no checksum.
    """
    mapping = load_mapping(stream.exchange)
    downloads = checksums_of(deps, mapping, files)
    if downloads is None:
        return []
    every = states(deps.objects, stream, mapping) if only is None else _known(deps, mapping, only)
    known = [s for s in every if s.taken]
    published = {s.file.name: sha256 for s in known if (sha256 := downloads.checksum(s.file))}
    return reissued(known, published)


def _known(deps: Deps, mapping: Mapping, files: Iterable[ArchiveFile]) -> list[FileState]:
    return [state for file in files if (state := read_state(deps.objects, file, mapping))]


def look_on(
    deps: Deps, stream: Stream, most: int, going: Callable[[], bool], files: Files | None = None
) -> tuple[int, list[str]]:
    """Look at the next ``most`` files of a stream and list what was issued again as due.

    Args:
        going: whether there is time for another file.

    Returns:
        Files whose checksum was asked for, and names of those whose checksum cannot be read.

    Raises:
        ExchangeError: it cannot be asked now; the next look begins with the same file.
    """
    mapping = load_mapping(stream.exchange)
    downloads = checksums_of(deps, mapping, files)
    if downloads is None:
        return 0, []
    before = looked(deps, stream)
    keys = list(state_keys(deps.objects, stream))
    turn = [k for k in keys if k > before.after] + [k for k in keys if k <= before.after]
    asked, unreadable, last = 0, list[str](), before.after
    try:
        for key in turn[:most]:
            if not going():
                break
            state = state_at(deps.objects, key, mapping)
            if state is not None and state.taken:
                try:
                    published = downloads.checksum(state.file)
                except ArchiveUnreadable:
                    unreadable.append(state.file.name)
                else:
                    asked += 1
                    if published and published != state.taken:
                        corrections.note_due(deps.objects, stream, state.file.name, published, deps.clock.now_ms())
            last = key
    finally:
        note = {"schema_version": 1, "after": last, "at": deps.clock.now_ms()}
        deps.objects.put(_looked_key(stream), json.dumps(note).encode())
    return asked, unreadable


def looked(deps: Deps, stream: Stream) -> Looked:
    """Raises CorruptState for an object that is not one of ours."""
    key = _looked_key(stream)
    body = deps.objects.get(key)
    if body is None:
        return Looked()
    try:
        value = json.loads(body)
        if value["schema_version"] != 1 or not isinstance(value["after"], str):
            raise ValueError(f"schema_version {value['schema_version']!r}")
        return Looked(value["after"], int(value["at"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"{key} does not say how far was looked: {error!r}"[:300], stream=stream) from error


def due_files(deps: Deps, stream: Stream) -> list[ArchiveFile]:
    """Files whose corrections were begun or not, and are not in the ledger, the longest known first."""
    mapping = load_mapping(stream.exchange)
    names = dict.fromkeys(
        c.file for c in corrections.corrections(deps.objects, stream) if c.state in ("due", "prepared")
    )
    found = (state_at(deps.objects, f"{folder_of(stream)}{name}.json", mapping) for name in names)
    return [state.file for state in found if state is not None]


def _looked_key(stream: Stream) -> str:
    return f"{folder_of(stream)}looks/checksums.json"
