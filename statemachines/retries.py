"""The Retry block of every Task, from one table. `make retries` writes them into the machines' files.

The files are what is deployed and read, so their blocks are committed; tests/deploy/test_retries.py fails when one
differs from the table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDTH = 120
LAMBDA = "arn:aws:states:::lambda:invoke"
ECS = "arn:aws:states:::ecs:runTask.sync"
NESTED = "arn:aws:states:::states:startExecution.sync:2"


@dataclass(frozen=True)
class Retrier:
    """One entry of a Retry block; the wait doubles, with full jitter. Seconds."""

    errors: tuple[str, ...]
    interval: int
    attempts: int
    longest: int

    def to_json(self) -> dict[str, Any]:
        return {
            "ErrorEquals": list(self.errors),
            "IntervalSeconds": self.interval,
            "BackoffRate": 2,
            "MaxAttempts": self.attempts,
            "MaxDelaySeconds": self.longest,
            "JitterStrategy": "FULL",
        }


# An account may run 10 functions at a time in all. Waiting for a free one is no failure: eight minutes on average,
# where the five attempts of other errors give up after half a minute.
THROTTLED = Retrier(("Lambda.TooManyRequestsException",), 2, 20, 60)
EXCHANGE = (
    Retrier(("EmptyPage", "IncompletePage"), 5, 2, 30),
    Retrier(("SlotRefused", "CircuitOpen"), 5, 8, 120),
    Retrier(("ExchangeUnavailable", "RateLimited", "MalformedResponse", "ResponseInterrupted"), 2, 6, 60),
)
TABLE_TAKEN = Retrier(("CommitConflict", "LockBusy"), 10, 8, 180)
STORE = Retrier(("StoreUnavailable",), 5, 5, 60)
# The service's own errors and a function that ended without an answer (out of memory, killed, timed out).
FUNCTION = Retrier(
    (
        "Lambda.ServiceException",
        "Lambda.AWSLambdaException",
        "Lambda.SdkClientException",
        "Lambda.ClientExecutionTimeoutException",
        "Lambda.Unknown",
        "Runtime.ExitError",
        "Sandbox.Timedout",
        "States.Timeout",
    ),
    2,
    5,
    60,
)
TASK = Retrier(("ECS.AmazonECSException", "ECS.ServerException", "ECS.SdkClientException"), 5, 5, 120)
EXECUTION = Retrier(
    (
        "StepFunctions.ExecutionLimitExceededException",
        "StepFunctions.AWSStepFunctionsException",
        "StepFunctions.SdkClientException",
    ),
    5,
    5,
    120,
)
ASKS_EXCHANGE = ("PlanStreamFunctionArn", "PlanBackfillFunctionArn", "FetchChunkFunctionArn")


def retriers(task: dict[str, Any]) -> tuple[Retrier, ...]:
    """What a Task retries, from the most specific error to the rest."""
    if task["Resource"] == ECS:
        return (TASK,)
    if task["Resource"] == NESTED:
        return (EXECUTION,)
    assert task["Resource"] == LAMBDA, task["Resource"]
    name = task["Parameters"]["FunctionName"].strip("${}")
    repairs = name == "MaintainFunctionArn" and task["Parameters"]["Payload"]["action"] == "repair"
    specific: tuple[Retrier, ...] = EXCHANGE if name in ASKS_EXCHANGE or repairs else ()
    if name == "PublishFunctionArn":
        specific = (TABLE_TAKEN,)
    return (THROTTLED, *specific, STORE, FUNCTION)


def tasks(machine: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Task, those of Maps included."""
    for name, state in machine["States"].items():
        if state["Type"] == "Task":
            yield name, state
        elif state["Type"] == "Map":
            yield from tasks(state["ItemProcessor"])


def rewritten(text: str) -> str:
    """A machine's file with the Retry blocks of the table in it; nothing else changes."""
    wanted = {name: retriers(task) for name, task in tasks(json.loads(text))}
    lines: list[str] = []
    state, until = "", None
    for line in text.splitlines():
        if until is not None:
            if line.rstrip(",") == until:
                lines.append(line)
                until = None
            continue
        if named := re.fullmatch(r' *"(\w+)": \{', line):
            state = named[1] if named[1] in wanted else state
        lines.append(line)
        if block := re.fullmatch(r'( *)"Retry": \[', line):
            until = f"{block[1]}]"
            lines += _entries(wanted[state], block[1] + "  ")
    return "\n".join(lines) + "\n"


def _entries(block: tuple[Retrier, ...], indent: str) -> Iterator[str]:
    for number, retrier in enumerate(block):
        how = json.dumps({k: v for k, v in retrier.to_json().items() if k != "ErrorEquals"})[1:-1]
        yield indent + "{"
        yield from _names(retrier.errors, indent + "  ")
        yield f"{indent}  {how}"
        yield indent + ("}," if number < len(block) - 1 else "}")


def _names(errors: tuple[str, ...], indent: str) -> Iterator[str]:
    """``ErrorEquals``, with as many names in a line as fit."""
    line = f'{indent}"ErrorEquals": ['
    further = " " * len(line)
    for number, error in enumerate(errors):
        item = f'"{error}"' + ("," if number < len(errors) - 1 else "],")
        if line.endswith("["):
            line += item
        elif len(line) + 1 + len(item) <= WIDTH:
            line += f" {item}"
        else:
            yield line
            line = further + item
    yield line


def main() -> int:
    for path in sorted(FOLDER.glob("*.asl.json")):
        text = path.read_text()
        if (new := rewritten(text)) != text:
            path.write_text(new)
            print(f"{path.name}: Retry blocks written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
