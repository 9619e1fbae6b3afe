"""Starts MiniStack in its own environment (.venv-aws), with what AWS does and MiniStack 1.5.33 does not.

Run by `local.ministack` with the interpreter of .venv-aws; imports nothing of SchemaHub. MiniStack's files stay as they
were installed. Some of its functions are wrapped in this process, each to restore a behaviour of AWS that the pipeline
relies on and that is described at its function below:

- an error raised by a Python handler keeps its class name, and the worker lives on;
- a function that the account's limit keeps out fails its Task as `Lambda.TooManyRequestsException`;
- a child of a Distributed Map sees itself in `$$.Execution`;
- IAM judges GetDatabase of Glue on the database's ARN;
- a task of ECS ends when its agent (local/ecs_agent.py) says so, and `runTask.sync` judges how it ended;
- the workers of a layer share one extracted copy of it, as processes on one machine can;
- state is also written while MiniStack runs, so that a killed process loses seconds, not everything.

Every wrapped place is checked before the start: another MiniStack version makes this program stop and say so.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

TESTED_VERSION = "1.5.33"
CHECKPOINT_PATH = "/_schemahub/checkpoint"
TASK_CREDENTIALS_PATH = "/_schemahub/task-credentials"
TASK_POLL_SECONDS = 0.5
CHECKPOINT_SECONDS = 20.0
# What changes while the pipeline runs; the rest (functions, layers, roles, stacks) changes in a deploy, after which
# `local.deploy` asks for a whole checkpoint.
CHANGING_SERVICES = ("dynamodb", "glue", "s3", "stepfunctions")

Record = dict[str, Any]

ERROR_MARK = "__handler_error__"
WORKER_REPORTS = '{"status": "error", "error": str(e), "trace": traceback.format_exc()}'
WORKER_REPORTS_NAMED = (
    '{"status": "ok", "result": {"' + ERROR_MARK + '": {"errorMessage": str(e), "errorType": type(e).__name__, '
    '"stackTrace": traceback.format_exc().splitlines(True)}}}'
)


def keep_error_names() -> None:
    """A handler's exception reaches the state machine by its class name, and its process serves the next call.

    AWS Lambda: `errorType` is the class name (docs: Lambda function errors in Python), which is what `Retry` and
    `Catch` of Step Functions match; the execution environment is kept. MiniStack reports every Python exception as
    `Runtime.HandlerError` and ends the worker.
    """
    from ministack.core import lambda_runtime
    from ministack.services import lambda_svc

    script = lambda_runtime._PYTHON_WORKER_SCRIPT
    _require(script.count(WORKER_REPORTS) == 1, "the worker's error report")
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(WORKER_REPORTS, WORKER_REPORTS_NAMED)
    run = lambda_svc._execute_function_warm

    @functools.wraps(run)
    def run_with_error_names(func: Record, event: Any, request_id: str) -> Record:
        outcome: Record = run(func, event, request_id)
        body = outcome.get("body")
        if not (isinstance(body, dict) and ERROR_MARK in body):
            return outcome
        error = body[ERROR_MARK]
        log = "\n".join(filter(None, [outcome.get("log"), "".join(error["stackTrace"])]))
        return {"body": error, "error": True, "log": log}

    lambda_svc._execute_function_warm = run_with_error_names


def name_throttling() -> None:
    """A Task whose function may not run because the account is at its limit fails as `Lambda.TooManyRequestsException`
    (AWS: Handling transient Lambda service exceptions). MiniStack's state machines see `Lambda.Unknown`."""
    from ministack.services import stepfunctions

    call = stepfunctions._call_lambda
    failed = stepfunctions._ExecutionError

    @functools.wraps(call)
    def call_and_name(func_ref: str, event: Any) -> Any:
        try:
            return call(func_ref, event)
        except failed as error:
            if error.error == "Lambda.Unknown" and '"__type": "TooManyRequestsException"' in str(error.cause):
                raise failed("Lambda.TooManyRequestsException", error.cause) from error
            raise

    stepfunctions._call_lambda = call_and_name


def show_map_children_themselves() -> None:
    """`$$.Execution` in a child workflow of a Distributed Map is the child's own (AWS: context object); SchemaHub's
    locks are owned by it. MiniStack hands down the parent's. RedriveCount is there on AWS too."""
    from ministack.services import stepfunctions

    run = stepfunctions._run_sub_machine

    @functools.wraps(run)
    def run_as_itself(states: Record, start_at: str, input_data: Any, execution: Record, ctx: Record) -> Any:
        outer = ctx["Execution"]
        if execution.get("mapRunArn") and outer["Id"] != execution["executionArn"]:
            ctx["Execution"] = {
                "Id": execution["executionArn"],
                "Input": json.loads(execution["input"]),
                "Name": execution["name"],
                "StartTime": execution["startDate"],
                "RedriveCount": 0,
            }
        return run(states, start_at, input_data, execution, ctx)

    stepfunctions._run_sub_machine = run_as_itself


def bound_maps_by_path() -> None:
    """`MaxConcurrencyPath` of a Distributed Map bounds it as `MaxConcurrency` does. MiniStack does not know it."""
    from ministack.services import stepfunctions

    run = stepfunctions._run_distributed_map

    @functools.wraps(run)
    def run_bounded(state: Record, raw_input: Any, effective: Any, *rest: Any) -> Any:
        if path := state.get("MaxConcurrencyPath"):
            state = {**state, "MaxConcurrency": stepfunctions._resolve_path(path, effective)}
        return run(state, raw_input, effective, *rest)

    stepfunctions._run_distributed_map = run_bounded


def name_glue_databases() -> None:
    """IAM judges `glue:GetDatabase` on the database's ARN (AWS: Service Authorization Reference, Glue). MiniStack takes
    the call's `Name` for a table's."""
    from ministack.core import iam_actions

    name_resource = iam_actions.extract_resource_arn

    @functools.wraps(name_resource)
    def name_database(service: str, method: str, path: str, headers: Record, *rest: Any) -> Any:
        arn = name_resource(service, method, path, headers, *rest)
        if service == "glue" and headers.get("x-amz-target", "").endswith(".GetDatabase"):
            return arn.replace(":table/", ":database/")
        return arn

    iam_actions.extract_resource_arn = name_database


def leave_ecs_tasks_to_their_agent() -> None:
    """A task lives as long as the process that the agent started for it.

    AWS: StopTask asks for the end, and the task is STOPPED once its containers are (SIGTERM, `stopTimeout`, SIGKILL);
    the agent reports by SubmitTaskStateChange. MiniStack without Docker calls every task RUNNING, forgets it at
    StopTask and takes no reports.
    """
    from ministack.core.responses import json_response
    from ministack.services import ecs

    stop_at_once = ecs._stop_task

    @functools.wraps(stop_at_once)
    def ask_to_stop(data: Record) -> Any:
        task = ecs._resolve_task(data.get("task", ""), ecs._resolve_cluster_name(data.get("cluster", "default")))
        if not task or task["lastStatus"] == "STOPPED":
            return stop_at_once(data)
        ecs._bump_task_version(task)
        reason = data.get("reason", "Task stopped by user")
        task |= {"desiredStatus": "STOPPED", "stopCode": "UserInitiated", "stoppedReason": reason}
        return json_response({"task": ecs._sanitize(task)})

    def take_report(data: Record) -> Any:
        """SubmitTaskStateChange, the agent's word that all containers of a task have ended, and how."""
        task = ecs._resolve_task(data["task"], ecs._resolve_cluster_name(data["cluster"]))
        if task and data.get("status") == "STOPPED" and task["lastStatus"] != "STOPPED":
            ended = {c["containerName"]: c for c in data.get("containers", [])}
            for container in task["containers"]:
                report = ended.get(container["name"], {})
                container |= {"exitCode": report.get("exitCode"), "reason": report.get("reason", "")}
            task["desiredStatus"] = "RUNNING"  # MiniStack takes a task with another wish for one that is stopped
            reason = task["stoppedReason"] or data.get("reason", "Essential container in task exited")
            ecs._mark_task_stopped(task["taskArn"], task, reason, task["stopCode"] or "EssentialContainerExited")
        return json_response({"acknowledgment": "ACCEPT"})

    for action, handler in (("StopTask", ask_to_stop), ("SubmitTaskStateChange", take_report)):
        _require(action in ecs._ACTION_MAP, f"the action {action}")
        ecs._ACTION_MAP[action] = handler
    ecs._stop_task = ask_to_stop


def judge_ecs_tasks() -> None:
    """`ecs:runTask.sync` fails when the task does, waits as long as its state may, and ends the task after that.

    AWS: the state's output is the Task with its names in capitals; a container that exits with another code than 0
    fails it with States.TaskFailed and the Task as the cause; at the state's time-out the task is stopped. MiniStack
    succeeds whatever the exit code, gives up after 600 looks, and leaves the task running.
    """
    from ministack.services import ecs, stepfunctions

    run_task = stepfunctions._invoke_ecs_run_task
    run_with_timeout = stepfunctions._invoke_resource_with_timeout

    def capitals(value: Any) -> Any:
        if isinstance(value, dict):
            return {name[:1].upper() + name[1:]: capitals(part) for name, part in value.items()}
        return [capitals(part) for part in value] if isinstance(value, list) else value

    def wait(cluster: str, started: Record, timeout: float) -> Record:
        deadline = time.monotonic() + timeout
        [arn] = [task["taskArn"] for task in started["tasks"]]
        while True:
            [task] = json.loads(ecs._describe_tasks({"cluster": cluster, "tasks": [arn]})[2])["tasks"]
            if task["lastStatus"] == "STOPPED":
                break
            if time.monotonic() > deadline:
                ecs._stop_task({"cluster": cluster, "task": arn, "reason": "the state timed out"})
                raise stepfunctions._ExecutionError("States.Timeout", f"{arn} ran longer than {timeout} seconds")
            time.sleep(TASK_POLL_SECONDS)
        result: Record = capitals(task)
        if any(container.get("exitCode") != 0 for container in task["containers"]):
            raise stepfunctions._ExecutionError("States.TaskFailed", json.dumps(result, default=str))
        return result

    @functools.wraps(run_with_timeout)
    def run_and_wait(resource: str, data: Record, timeout: float) -> Any:
        if resource != "arn:aws:states:::ecs:runTask.sync":
            return run_with_timeout(resource, data, timeout)
        return wait(data.get("Cluster", "default"), run_task(resource.removesuffix(".sync"), data), timeout)

    stepfunctions._invoke_resource_with_timeout = run_and_wait


def task_credentials(query: str) -> Record:
    """GET /_schemahub/task-credentials?task=ARN: environment variables with the rights of the task's role.

    AWS: the agent hands a task the credentials that ECS, and nobody else, gets for its role.
    """
    from ministack.core.arn import parse_arn
    from ministack.core.lambda_runtime import execution_credentials
    from ministack.services import ecs

    [arn] = parse_qs(query)["task"]
    place = parse_arn(arn)
    scope = (place.account_id, place.region)
    definition_arn = ecs._tasks.get_scoped(*scope, arn)["taskDefinitionArn"]
    role = ecs._task_defs.get_scoped(*scope, definition_arn.rsplit("/", 1)[-1])["taskRoleArn"]
    name = "ecs-task-" + arn.rsplit("/", 1)[-1]
    function = f"arn:aws:lambda:{place.region}:{place.account_id}:function:{name}"
    credentials: Record = execution_credentials({"FunctionArn": function, "Role": role, "FunctionName": name})
    return credentials


def share_extracted_layers(directory: Path) -> None:
    """Workers import a layer from one extracted copy a content hash.

    MiniStack unpacks every layer again for every worker (arrow and duckdb: 1-2 s and 200 MB each time), which on AWS
    the platform does outside the function's time. The worker's own zip becomes a `.pth` line that names the copy.
    """
    from ministack.core import lambda_runtime
    from ministack.services import lambda_svc

    resolve = lambda_svc._resolve_layer_zip
    spawn = lambda_runtime.Worker._spawn
    spawning = threading.local()
    extracting = threading.Lock()
    pointers: dict[int, tuple[bytes, bytes]] = {}

    def pointer_to(layer: bytes) -> bytes:
        with extracting:
            known = pointers.get(id(layer))
            if known is None or known[0] is not layer:
                known = (layer, _pointer_zip(_extract(layer, directory)))
                pointers[id(layer)] = known
            return known[1]

    @functools.wraps(resolve)
    def resolve_shared(attachment: str | Record) -> bytes | None:
        layer = resolve(attachment)
        return pointer_to(layer) if layer and getattr(spawning, "now", False) else layer

    @functools.wraps(spawn)
    def spawn_with_shared_layers(worker: Any) -> None:
        spawning.now = True
        try:
            spawn(worker)
        finally:
            spawning.now = False

    lambda_svc._resolve_layer_zip = resolve_shared
    lambda_runtime.Worker._spawn = spawn_with_shared_layers


def _extract(layer: bytes, directory: Path) -> Path:
    """The directory that holds the layer's content; extracted once, complete or absent (renamed into place)."""
    target = directory / hashlib.sha256(layer).hexdigest()[:32]
    if not target.exists():
        partial = target.with_suffix(".partial")
        with zipfile.ZipFile(io.BytesIO(layer)) as archive:
            archive.extractall(partial)
        partial.rename(target)
    return target


def _pointer_zip(extracted: Path) -> bytes:
    """A layer whose only content puts `extracted` on sys.path, before the interpreter's own packages."""
    paths = [str(extracted / "python"), str(extracted)]
    line = f"import sys; sys.path[0:0] = {paths!r}\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("python/lib/python3/site-packages/layer.pth", line)
    return buffer.getvalue()


class Checkpoints:
    """Wraps MiniStack's ASGI app: saves its state on request and, after writes, every CHECKPOINT_SECONDS.

    ``doors`` are further paths of ours: what each answers to a query string.

    MiniStack itself writes its state only at an orderly stop. Saving happens on the event loop, so no request that
    runs there is half done; the services named in CHANGING_SERVICES are saved at one moment.
    """

    def __init__(self, app: Any, save_all: Any, states: Any, doors: Mapping[str, Callable[[str], Record]]) -> None:
        self.app = app
        self.doors = doors
        self.save_all = save_all
        self.states = states
        self.dirty = False
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Record, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self.task = asyncio.create_task(self.run())
        elif scope["type"] == "http":
            if scope["path"] == CHECKPOINT_PATH:
                self.save_all(self.states())  # POST: answers when everything is on disk
                await self.answer(send, {})
                return
            if scope["path"] in self.doors:
                await self.answer(send, self.doors[scope["path"]](scope["query_string"].decode()))
                return
            self.dirty = self.dirty or scope["method"] != "GET"
        await self.app(scope, receive, send)

    async def answer(self, send: Any, body: Record) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    async def run(self) -> None:
        pause = CHECKPOINT_SECONDS
        while True:
            await asyncio.sleep(pause)
            if self.dirty:
                self.dirty = False
                start = time.monotonic()
                states = self.states()
                self.save_all({name: states[name] for name in CHANGING_SERVICES if name in states})
                pause = max(CHECKPOINT_SECONDS, 50 * (time.monotonic() - start))


def add_checkpoints() -> None:
    from ministack import app
    from ministack.core import persistence

    persistence.logger.setLevel(logging.WARNING)  # it names each of 70 files each time

    doors = {TASK_CREDENTIALS_PATH: task_credentials}
    app.app = Checkpoints(app.app, persistence.save_all, app._build_persistence_save_dict, doors)


def _require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"MiniStack has changed ({what}): local/ministack_daemon.py fits {TESTED_VERSION}")


def main() -> None:
    version = importlib.metadata.version("ministack")
    _require(version == TESTED_VERSION, f"version {version}")
    keep_error_names()
    name_throttling()
    show_map_children_themselves()
    bound_maps_by_path()
    name_glue_databases()
    leave_ecs_tasks_to_their_agent()
    judge_ecs_tasks()
    share_extracted_layers(Path(os.environ["SCHEMAHUB_LAYER_CACHE"]))
    add_checkpoints()
    from ministack import app

    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    main()
