"""The watermark's copy in S3: never newer than the table, healed when it lags, and a halt when it leads.

DynamoDB is the truth. The mirror exists so that the table can be rebuilt if it is lost (``rebuild``), and so that a
table restored from an old backup is noticed: then the mirror is ahead.
"""

from __future__ import annotations

import json

from botocore.exceptions import BotoCoreError, ClientError

from schemahub.errors import MirrorAhead
from schemahub.ledger import Ledger, Watermark
from schemahub.objects import ObjectStore
from schemahub.streams import MAX_POSITION, Stream


def body_of(stream: Stream, mark: Watermark) -> bytes:
    return json.dumps(
        {
            "schema_version": 1,
            "stream": str(stream),
            "low": mark.low,
            "high": mark.high,
            "fence": mark.fence,
            "updated_at": mark.updated_at,
        },
        sort_keys=True,
    ).encode()


def parse(stream: Stream, body: bytes) -> Watermark | None:
    """The mirrored watermark, or None for something that is not a mirror of this stream."""
    try:
        value = json.loads(body)
        numbers = [value[name] for name in ("low", "high", "fence", "updated_at")]
        if value["stream"] != str(stream) or any(type(n) is not int for n in numbers):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Watermark(*numbers) if 0 <= numbers[0] <= numbers[1] <= MAX_POSITION else None


def heal(objects: ObjectStore, ledger: Ledger, stream: Stream) -> str:
    """Bring the mirror up to the table: ``equal``, ``written``, or ``raced`` when a newer writer was quicker.

    Raises:
        MirrorAhead: the mirror knows positions that the table, read again, does not.
    """
    found = objects.get_with_etag(stream.mirror_key)
    mirrored = parse(stream, found[0]) if found else None
    mark = ledger.watermark(stream)
    if mirrored and (mark is None or _leads(mirrored, mark)):
        raise MirrorAhead(
            f"the mirror says {mirrored.low}..{mirrored.high}, the table "
            f"{f'{mark.low}..{mark.high}' if mark else 'nothing'}",
            stream=stream,
        )
    if mark is None or (mirrored and (mirrored.low, mirrored.high) == (mark.low, mark.high)):
        return "equal"
    body = body_of(stream, mark)
    done = objects.replace(stream.mirror_key, body, found[1]) if found else objects.put_new(stream.mirror_key, body)
    return "written" if done else "raced"


def _leads(mirrored: Watermark, mark: Watermark) -> bool:
    return mirrored.high > mark.high or mirrored.low < mark.low


def heal_quietly(objects: ObjectStore, ledger: Ledger, stream: Stream) -> str:
    """As ``heal``, after a commit: a mirror that cannot be written never fails the commit; the next plan heals it."""
    try:
        return heal(objects, ledger, stream)
    except (ClientError, BotoCoreError):
        return "failed"
