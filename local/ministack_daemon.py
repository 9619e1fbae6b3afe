"""Starts MiniStack in its own environment (.venv-aws), with what AWS does and MiniStack 1.5.33 does not.

Run by `local.ministack` with the interpreter of .venv-aws; imports nothing of SchemaHub. MiniStack's files stay as they
were installed. Five of its functions are wrapped in this process, each to restore a behaviour of AWS that the pipeline
relies on and that is described at its function below:

- an error raised by a Python handler keeps its class name, and the worker lives on;
- a child of a Distributed Map sees itself in `$$.Execution`;
- IAM judges GetDatabase of Glue on the database's ARN;
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
from pathlib import Path
from typing import Any

TESTED_VERSION = "1.5.33"
CHECKPOINT_PATH = "/_schemahub/checkpoint"
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

    MiniStack itself writes its state only at an orderly stop. Saving happens on the event loop, so no request that
    runs there is half done; the services named in CHANGING_SERVICES are saved at one moment.
    """

    def __init__(self, app: Any, save_all: Any, states: Any) -> None:
        self.app = app
        self.save_all = save_all
        self.states = states
        self.dirty = False
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Record, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self.task = asyncio.create_task(self.run())
        elif scope["type"] == "http":
            if scope["path"] == CHECKPOINT_PATH:
                await self.answer(send)
                return
            self.dirty = self.dirty or scope["method"] != "GET"
        await self.app(scope, receive, send)

    async def answer(self, send: Any) -> None:
        """POST /_schemahub/checkpoint: answers when everything is on disk."""
        self.save_all(self.states())
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

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

    app.app = Checkpoints(app.app, persistence.save_all, app._build_persistence_save_dict)


def _require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"MiniStack has changed ({what}): local/ministack_daemon.py fits {TESTED_VERSION}")


def main() -> None:
    version = importlib.metadata.version("ministack")
    _require(version == TESTED_VERSION, f"version {version}")
    keep_error_names()
    show_map_children_themselves()
    name_glue_databases()
    share_extracted_layers(Path(os.environ["SCHEMAHUB_LAYER_CACHE"]))
    add_checkpoints()
    from ministack import app

    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    main()
