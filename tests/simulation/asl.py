"""The state machines' own files, interpreted one Task at a time, with redrive as AWS describes it.

It knows the subset of the States Language that statemachines/*.asl.json uses and refuses everything else. Nothing runs
in here: ``ready`` says which executions stand before a Task, ``invoke`` hands one out as an ``Invocation``, and
somebody says how it went. So a test decides who goes next, when an answer is lost, and when a state fails. ``run`` is
the plain way: one Task after the other, to the end.

Redrive (docs.aws.amazon.com/step-functions/latest/dg/redrive-executions.html, redrive-map-run.html): a state that was
entered and not exited runs again with its recorded input; of a Distributed Map the unsuccessful children do, from the
state where each of them failed; retries count from 0; ``RedriveCount`` grows; the Fail state fails again.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "statemachines"
MAX_PAYLOAD = 256 * 1024
MAX_EVENTS = 25_000
FAILED_CHILD_BYTES = 3_000
"""Of a failed child without a ResultWriter: its input, error and cause (a trace) come back whole, not its output."""
EVENTS_A_STATE = 7
"""Entered, scheduled, started, succeeded, exited, and what a retry adds: rather more than AWS writes."""
RUNNING, SUCCEEDED, FAILED, ABORTED = "RUNNING", "SUCCEEDED", "FAILED", "ABORTED"
LAMBDA = "arn:aws:states:::lambda:invoke"
ECS = "arn:aws:states:::ecs:runTask.sync"
NESTED = "arn:aws:states:::states:startExecution.sync:2"
_MATH_ADD = re.compile(r"States\.MathAdd\((\$[\w.]*), (\d+)\)")
_STATE_KEYS = {
    "Type", "Comment", "Resource", "Parameters", "ResultSelector", "ResultPath", "OutputPath", "InputPath",
    "TimeoutSeconds", "Retry", "Next", "End", "Choices", "Default", "Label", "ItemReader", "ItemSelector",
    "MaxConcurrency", "MaxConcurrencyPath", "ToleratedFailurePercentage", "ItemProcessor", "ResultWriter",
    "Error", "Cause", "Result", "Catch", "ErrorPath", "CausePath",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.asl.json").read_text())


def tasks(machine: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every Task of a machine (``load``), as the path of state names that leads to it."""
    for name, state in machine["States"].items():
        if state["Type"] == "Task":
            yield (name,)
        elif state["Type"] == "Map":
            yield from ((name, *path) for path in tasks(state["ItemProcessor"]))


class StateFailed(Exception):
    """How a caller of ``run`` says that a Task ended in an error: its name as the state machine sees it."""

    def __init__(self, error: str, cause: str = "") -> None:
        super().__init__(f"{error}: {cause}")
        self.error, self.cause = error, cause


@dataclass(eq=False)
class Invocation:
    """A Task that was handed out. Its answer counts only as long as the execution still waits for it."""

    execution: Execution
    function: str
    """Of functions/, as ``open_run``."""
    payload: dict[str, Any]

    @property
    def awaited(self) -> bool:
        return self.execution.busy is self

    def succeed(self, answer: Any) -> None:
        if self.awaited:
            self.execution._answered(answer)

    def fail(self, error: str, retry: bool = True) -> None:
        """``retry`` False: as if the state's retries were used up."""
        if self.awaited:
            self.execution._failed(error, retry)


@dataclass
class Service:
    """What the interpreter needs of the world: the time, S3 for item readers, and names for executions."""

    read: Callable[[str, str], bytes]
    """The object of a bucket and a key."""
    now_ms: Callable[[], int]
    machines: dict[str, dict[str, Any]] = field(default_factory=lambda: {n: load(n) for n in ("ingest", "transform")})
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    stopped: Callable[[Execution], None] = lambda execution: None
    """Told of each top execution that failed or was aborted: the event that the failure rule sees."""
    written: Callable[[str, str], None] = lambda bucket, key: None
    """Told of each manifest that a ResultWriter wrote: bucket and key."""
    closed: Callable[[Execution], None] = lambda execution: None
    """Told of each execution, child or not, that came to an end."""

    def start(self, machine: str, payload: Any, parent: Execution | None = None) -> Execution:
        number = next(self.numbers)
        return Execution(
            self, machine, self.machines[machine], f"arn:aws:states:us-east-1:1:execution:{machine}:x-{number}",
            payload, parent,
        )  # fmt: skip


class Execution:
    """One execution or child execution: where it is, with which input, and how often it was redriven."""

    def __init__(
        self, service: Service, machine: str, definition: dict[str, Any], arn: str, payload: Any,
        parent: Execution | None = None,
    ) -> None:  # fmt: skip
        self.service, self.machine, self.definition = service, machine, definition
        self.arn, self.input, self.parent = arn, payload, parent
        self.status, self.output, self.error = RUNNING, None, ""
        self.redrives = 0
        self.due_ms = 0
        """Not before this time: a retry's backoff."""
        self.busy: Invocation | None = None
        """The invocation whose answer is awaited."""
        self.number: int | None = None
        """Which item of the parent's Map this child works on."""
        self.entered: list[str] = []
        self._enter(definition["StartAt"], payload)

    # --- what could run now -------------------------------------------------------------------------------------

    def ready(self) -> list[Execution]:
        """Executions of this tree that stand before a Task that may run, due or not."""
        if self.status != RUNNING:
            return []
        if self.nested is not None:
            return self.nested.ready()
        if self.children is None:
            return [] if self.busy is not None else [self]
        limit = self.at_a_time or len(self.children)
        running = [child for child in self.children if child.status == RUNNING][:limit]
        return [one for child in running for one in child.ready()]

    def waiting(self) -> Iterator[Execution]:
        """Executions of this tree whose Task has been invoked and has not answered."""
        if self.status == RUNNING and self.busy is not None:
            yield self
        for below in [*(self.children or []), *([self.nested] if self.nested else [])]:
            yield from below.waiting()

    @property
    def state(self) -> dict[str, Any]:
        return dict(self.definition["States"][self.at])

    @property
    def at_a_time(self) -> int:
        """Children of the Map that it is in which may run side by side; 0 for all."""
        state = self.state
        return int(_at(self.data, state["MaxConcurrencyPath"]) if "MaxConcurrencyPath" in state else
                   state.get("MaxConcurrency", 0))  # fmt: skip

    @property
    def path(self) -> tuple[str, ...]:
        """Names of the states that lead to where it is, from the top of its machine."""
        above = self.parent.path if self.parent is not None and self.parent.machine == self.machine else ()
        return (*above, self.at)

    @property
    def top(self) -> Execution:
        return self.parent.top if self.parent is not None else self

    @property
    def place(self) -> str:
        """As ``path``, with the number of each Map's item: ``IngestStreams[0]/FetchChunks[1]/FetchChunk``."""
        if self.parent is None or self.parent.machine != self.machine:
            return self.at
        return f"{self.parent.place}[{self.number}]/{self.at}"

    def invoke(self) -> Invocation:
        """Hand out the Task that it stands before."""
        assert self.status == RUNNING, self.status
        assert self.busy is None, "somebody works on it"
        parameters = self._filled(self.state["Parameters"], self.data)
        if self.state["Resource"] == ECS:
            [container] = parameters["Overrides"]["ContainerOverrides"]
            environment = {one["Name"]: one["Value"] for one in container["Environment"]}
            self.busy = Invocation(self, "ecs:RunTask", _sized({**parameters, "environment": environment}))
            return self.busy
        assert self.state["Resource"] == LAMBDA, self.state["Resource"]
        self.busy = Invocation(self, _function(parameters["FunctionName"]), _sized(parameters["Payload"]))
        return self.busy

    # --- how it went --------------------------------------------------------------------------------------------

    def _answered(self, payload: Any) -> None:
        self.busy = None
        self._leave({"Payload": _sized(json.loads(json.dumps(payload)))})

    def _failed(self, error: str, retry: bool) -> None:
        self.busy = None
        for number, retrier in enumerate(self.state.get("Retry", ()) if retry else ()):
            if error in retrier["ErrorEquals"]:
                done = self.retries.get(number, 0)
                if done >= retrier["MaxAttempts"]:
                    break
                self.retries[number] = done + 1
                wait_s = min(retrier["IntervalSeconds"] * retrier["BackoffRate"] ** done, retrier["MaxDelaySeconds"])
                # FULL jitter: anything up to the whole; the middle here.
                self.due_ms = self.service.now_ms() + round(wait_s * 500)
                return
        for catcher in self.state.get("Catch", ()):
            if error in catcher["ErrorEquals"] or catcher["ErrorEquals"] == ["States.ALL"]:
                self._enter(
                    catcher["Next"], _sized(_put(self.data, catcher["ResultPath"], {"Error": error, "Cause": ""}))
                )
                return
        self._close(FAILED, error=error)

    def abort(self) -> None:
        """StopExecution, or the machine's own time-out: everything below stops where it is."""
        if self.status == RUNNING:
            self._stop_below()
            self._close(ABORTED, error="States.Aborted")

    def redrive(self) -> None:
        """RedriveExecution on a failed or aborted execution; of a child only together with its parent."""
        assert self.status in (FAILED, ABORTED), self.status
        assert self.parent is None or self.parent.status == RUNNING, "redrive the parent"
        self.status, self.error, self.busy = RUNNING, "", None
        self.redrives += 1
        self.retries, self.due_ms = {}, 0
        self.nested = None
        kind = self.state["Type"]
        if kind == "Map" and self.children is not None:
            for child in [c for c in self.children if c.status in (FAILED, ABORTED)]:
                child.redrive()
            self._joined()
        elif kind == "Map" or self.state.get("Resource") == NESTED or kind == "Fail":
            self._enter(self.at, self.data)

    # --- moving on ----------------------------------------------------------------------------------------------

    def _enter(self, name: str, data: Any) -> None:
        self.at, self.data = name, deepcopy(data)
        self.children: list[Execution] | None = None
        self.nested: Execution | None = None
        self.retries: dict[int, int] = {}
        self.due_ms = 0
        self.entered.append(name)
        assert len(self.entered) * EVENTS_A_STATE < MAX_EVENTS, f"{self.arn}: the history is full"
        state = self.state
        assert not (unknown := state.keys() - _STATE_KEYS), f"{name}: {unknown} is not known to this interpreter"
        getattr(self, f"_enter_{state['Type'].lower()}")(state)

    def _enter_task(self, state: dict[str, Any]) -> None:
        if state["Resource"] == NESTED:
            parameters = self._filled(state["Parameters"], self.data)
            assert parameters["StateMachineArn"] == "${TransformStateMachineArn}"
            self.nested = self.service.start("transform", parameters["Input"], self)
            self._joined()

    def _enter_pass(self, state: dict[str, Any]) -> None:
        if "Parameters" in state:
            self._leave(self._filled(state["Parameters"], self.data))
        else:
            self._leave(state["Result"] if "Result" in state else _at(self.data, state.get("InputPath", "$")))

    def _enter_choice(self, state: dict[str, Any]) -> None:
        for choice in state["Choices"]:
            value = _at(self.data, choice["Variable"])
            tests = {
                "StringEquals": lambda wanted, v=value: isinstance(v, str) and v == wanted,
                "NumericEquals": lambda wanted, v=value: isinstance(v, int) and v == wanted,
                "NumericGreaterThan": lambda wanted, v=value: isinstance(v, int) and v > wanted,
                "NumericGreaterThanEquals": lambda wanted, v=value: isinstance(v, int) and v >= wanted,
            }
            (test,) = choice.keys() - {"Variable", "Next"}
            if tests[test](choice[test]):
                return self._enter(choice["Next"], self.data)
        return self._enter(state["Default"], self.data)

    def _enter_succeed(self, state: dict[str, Any]) -> None:
        self._close(SUCCEEDED, output=self.data)

    def _enter_fail(self, state: dict[str, Any]) -> None:
        self._close(FAILED, error=_at(self.data, state["ErrorPath"]) if "ErrorPath" in state else state["Error"])

    def _enter_map(self, state: dict[str, Any]) -> None:
        reader = state["ItemReader"]
        assert reader["ReaderConfig"] == {"InputType": "JSONL"}
        assert state["ItemProcessor"]["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}
        where = self._filled(reader["Parameters"], self.data)
        items = [json.loads(line) for line in self.service.read(where["Bucket"], where["Key"]).splitlines()]
        prefix = self.arn.rsplit(":", 1)[0]
        self.children = []
        for number, item in enumerate(items):
            payload = self._filled(state["ItemSelector"], self.data, item)
            arn = f"{prefix}/{state['Label']}:c-{next(self.service.numbers)}"
            child = Execution(self.service, self.machine, state["ItemProcessor"], arn, _sized(payload), self)
            child.number = number
            self.children.append(child)
        self._joined()

    def _joined(self) -> None:
        """Whether what runs below has come to an end."""
        if self.status != RUNNING:
            return
        if self.nested is not None:
            if self.nested.status == SUCCEEDED:
                self._leave({"ExecutionArn": self.nested.arn, "Status": "SUCCEEDED", "Output": self.nested.output})
            elif self.nested.status != RUNNING:
                self._close(FAILED, error="States.TaskFailed")
        elif self.children is not None:
            failed = any(child.status in (FAILED, ABORTED) for child in self.children)
            tolerant = self.state.get("ToleratedFailurePercentage", 0) == 100
            if failed and not tolerant:
                self._stop_below()
                self._close(FAILED, error="States.ExceedToleratedFailureThreshold")
            elif all(child.status != RUNNING for child in self.children):
                result = self._map_result(self.children)
                if _size(result) > MAX_PAYLOAD:
                    self._close(FAILED, error="States.DataLimitExceeded")
                else:
                    self._leave(result)

    def _map_result(self, children: list[Execution]) -> Any:
        """What a Distributed Map hands on: with a ResultWriter where the results are, without one all of them.

        docs.aws.amazon.com/step-functions/latest/dg/input-output-resultwriter.html. The limit is kept before
        ResultPath can drop the result, and no Catch of ``States.ALL`` sees it.
        """
        if writer := self.state.get("ResultWriter"):
            assert writer["Resource"] == "arn:aws:states:::s3:putObject"
            where = self._filled(writer["Parameters"], self.data)
            account, name = self.arn.split(":execution:")[0], self.arn.rsplit(":", 1)[1]
            run = f"{account}:mapRun:{self.machine}/{self.state['Label']}:{name}"
            key = f"{where['Prefix']}/{name}/manifest.json"
            self.service.written(where["Bucket"], key)
            return {"MapRunArn": run, "ResultWriterDetails": {"Bucket": where["Bucket"], "Key": key}}
        return [child.output if child.status == SUCCEEDED else _failed_child(child) for child in children]

    def _stop_below(self) -> None:
        for below in [*(self.children or []), *([self.nested] if self.nested else [])]:
            if below.status == RUNNING:
                below._stop_below()
                below.status, below.error, below.busy = ABORTED, "States.Aborted", None
                if below.machine != self.machine:
                    self.service.stopped(below)

    def _leave(self, result: Any) -> None:
        state = self.state
        if "ResultSelector" in state:
            result = self._filled(state["ResultSelector"], result)
        data = _put(self.data, state.get("ResultPath", "$"), result)
        output = _sized(_at(data, state.get("OutputPath", "$")))
        if state.get("End"):
            self._close(SUCCEEDED, output=output)
        else:
            self._enter(state["Next"], output)

    def _close(self, status: str, output: Any = None, error: str = "") -> None:
        self.status, self.output, self.error, self.busy = status, output, error, None
        self.service.closed(self)
        child = self.parent is not None and self.parent.machine == self.machine
        if status != SUCCEEDED and not child:
            self.service.stopped(self)
        # A constructor may come to its end before its parent knows it; the parent looks for itself then.
        if self.parent is not None and (self.parent.nested is self or self in (self.parent.children or ())):
            self.parent._joined()

    # --- data ---------------------------------------------------------------------------------------------------

    def _filled(self, template: Any, data: Any, item: Any = None) -> Any:
        """A payload template: keys that end in ``.$`` are paths into the data or the context object."""
        if isinstance(template, list):
            return [self._filled(one, data, item) for one in template]
        if not isinstance(template, dict):
            return template
        filled = {}
        for key, value in template.items():
            if key.endswith(".$") and (added := _MATH_ADD.fullmatch(value)):
                filled[key[:-2]] = _at(data, added[1]) + int(added[2])
            elif key.endswith(".$") and value.startswith("States."):
                filled[key[:-2]] = value
            elif key.endswith(".$"):
                root = self._context(item) if value.startswith("$$") else data
                filled[key[:-2]] = deepcopy(_at(root, value.removeprefix("$") if value.startswith("$$") else value))
            else:
                filled[key] = self._filled(value, data, item)
        return filled

    def _context(self, item: Any) -> dict[str, Any]:
        execution = {
            "Id": self.arn, "Input": self.input, "Name": self.arn.rsplit(":", 1)[-1], "RedriveCount": self.redrives,
        }  # fmt: skip
        return {"Execution": execution, "Map": {"Item": {"Value": item}}}


def run(execution: Execution, call: Callable[[Invocation], Any], wait: Callable[[float], None]) -> Execution:
    """Run it to its end, one Task at a time; ``call`` answers or raises StateFailed, ``wait`` lets seconds pass."""
    while execution.status == RUNNING:
        nearest = min(execution.ready(), key=lambda e: e.due_ms)
        wait(max(0, nearest.due_ms - execution.service.now_ms()) / 1000)
        invocation = nearest.invoke()
        try:
            answer = call(invocation)
        except StateFailed as failure:
            invocation.fail(failure.error)
        else:
            invocation.succeed(answer)
    return execution


def _function(name: str) -> str:
    """``${OpenRunFunctionArn}`` is ``open_run``."""
    found = re.fullmatch(r"\$\{(\w+)FunctionArn\}", name)
    assert found, name
    return re.sub(r"(?<!^)(?=[A-Z])", "_", found[1]).lower()


def _at(data: Any, path: str | None) -> Any:
    """A reference path: ``$`` or ``$.a.b``; None gives nothing at all."""
    if path is None:
        return {}
    first, *names = path.split(".")
    assert first == "$", path
    for name in names:
        data = data[name]
    return data


def _put(data: Any, path: str | None, result: Any) -> Any:
    if path is None:
        return data
    if path == "$":
        return result
    _, name = path.split(".")
    return {**data, name: result}


def _failed_child(child: Execution) -> dict[str, Any]:
    """A child's execution as a Map's result shows a failed one."""
    shown = {
        "ExecutionArn": child.arn, "Input": json.dumps(child.input), "InputDetails": {"Included": True},
        "Status": child.status, "Error": child.error, "Cause": "",
    }  # fmt: skip
    return {**shown, "Cause": "x" * max(0, FAILED_CHILD_BYTES - _size(shown))}


def _size(payload: Any) -> int:
    return len(json.dumps(payload).encode())


def _sized(payload: Any) -> Any:
    size = _size(payload)
    assert size <= MAX_PAYLOAD, f"States.DataLimitExceeded: {size} bytes"
    return payload
