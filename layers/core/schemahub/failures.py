"""What happens after an execution failed, timed out or was stopped: its locks are released and people are told.

A Catch inside the machine could see neither a time-out nor an abort, and would spoil the console's redrive
(docs/decisions); a rule on the execution's change of status sees all three.
"""

from __future__ import annotations

import json
from typing import Any

from schemahub.deps import Deps
from schemahub.errors import BadStateInput

MAX_SUBJECT = 100
"""SNS allows no longer subject."""


def release_failed(event: dict[str, Any], deps: Deps, sns: Any, topic_arn: str) -> dict[str, Any]:
    """Release the failed execution's locks and publish one message that names it, the error and the remedy.

    Args:
        event: EventBridge's "Step Functions Execution Status Change".
    """
    detail = event.get("detail") if isinstance(event, dict) else None
    if not isinstance(detail, dict) or not all(isinstance(detail.get(n), str) for n in ("executionArn", "status")):
        raise BadStateInput(f"{str(event)[:80]!r} is not an execution's change of status")
    arn, status, ended = detail["executionArn"], detail["status"], detail.get("stopDate")
    released = deps.locks.release_run(arn, ended_ms=ended if type(ended) is int else None)
    message = {
        "execution": arn,
        "status": status,
        "error": detail.get("error"),
        "cause": str(detail.get("cause") or "")[:1000],
        "released": released,
        "remedy": "Look at the failed state in the Step Functions console and redrive the execution; "
        "finished chunks are not fetched again.",
    }
    subject = f"SchemaHub: {detail.get('name', 'execution')} {status}"[:MAX_SUBJECT]
    sns.publish(TopicArn=topic_arn, Subject=subject, Message=json.dumps(message, indent=1))
    return {"released": released, "status": status}
