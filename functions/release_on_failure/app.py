"""The rule on failed, timed-out and stopped executions: release their locks, alert."""

from __future__ import annotations

import os
from typing import Any

import boto3

from schemahub.failures import release_failed
from schemahub.runtime import deps_from_env, logger

sns = boto3.client("sns")


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    result = release_failed(event, deps_from_env(), sns, os.environ["SCHEMAHUB_ALARM_TOPIC_ARN"])
    logger.warning("execution failed", extra={"execution": event["detail"]["executionArn"], "result": result})
    return result
