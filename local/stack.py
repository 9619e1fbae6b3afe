"""The whole local stack: MiniStack with the project's template deployed on it.

`up` is idempotent and quick when nothing changed; everything it keeps is in one directory (`.schemahub/`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local import deploy, ecs_agent, ministack
from local.ministack import (
    NotInstalled,
    NotRunning,
    PortInUse,
    Progress,
    StackError,
    StartFailed,
    log_path,
)

__all__ = [
    "NotInstalled",
    "NotRunning",
    "PortInUse",
    "Stack",
    "StackError",
    "StartFailed",
    "Status",
    "attach",
    "default_home",
    "default_port",
    "down",
    "log_path",
    "status",
    "up",
]


@dataclass(frozen=True)
class Stack:
    """A deployed local stack that answers."""

    home: Path
    daemon: ministack.Daemon
    outputs: Mapping[str, str]
    parameters: Mapping[str, str]
    # Whether the MiniStack before this one was killed: then S3 is complete, and everything else (DynamoDB, Glue,
    # executions) is as of its last checkpoint, or new if it had none.
    after_crash: bool = False
    # Whether the stack had to be made anew while its bucket still held objects.
    rebuilt: bool = False
    name: str = deploy.STACK_NAME
    stage: str = deploy.STAGE
    region: str = ministack.REGION

    @property
    def endpoint(self) -> str:
        return self.daemon.endpoint

    @property
    def port(self) -> int:
        return self.daemon.port

    @property
    def auth(self) -> bool:
        return self.daemon.auth

    @property
    def bucket(self) -> str:
        return self.outputs["BucketName"]

    @property
    def env(self) -> dict[str, str]:
        """The variables that point the AWS SDKs of another process at this stack."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            **ministack.ROOT_CREDENTIALS,
        }

    def client(self, service: str) -> Any:
        """A boto3 client with the rights of the account's root."""
        return deploy.client(self.daemon, service)

    def set_wait_scale(self, scale: float) -> None:
        """Multiply the waits and retry delays of state machines by `scale`."""
        ministack.set_wait_scale(self.daemon, scale)

    def checkpoint(self) -> None:
        """Write MiniStack's whole state to disk now."""
        ministack.checkpoint(self.daemon)


@dataclass(frozen=True)
class Status:
    """What `schemahub local status` shows. `crashed`: the last MiniStack ended without `down`."""

    home: Path
    running: bool
    crashed: bool = False
    pid: int | None = None
    endpoint: str | None = None
    auth: bool = False
    since: float | None = None  # epoch s
    memory_mib: float = 0.0
    workers: int = 0
    stack_status: str | None = None  # CloudFormation's, None: not deployed
    outputs: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


def default_home() -> Path:
    """SCHEMAHUB_HOME, or `.schemahub` in the repository."""
    return Path(os.environ.get("SCHEMAHUB_HOME", ministack.REPOSITORY / ".schemahub")).resolve()


def default_port() -> int:
    """SCHEMAHUB_AWS_PORT, or 4566."""
    return int(os.environ.get("SCHEMAHUB_AWS_PORT", "4566"))


def up(
    home: Path,
    *,
    port: int,
    auth: bool = False,
    products: str = "",
    endpoints: Mapping[str, str] | None = None,
    schedule: bool = False,
    parameters: Mapping[str, str] | None = None,
    wait_scale: float = 1.0,
    progress: Progress = lambda message: None,
) -> Stack:
    """Start MiniStack and deploy the template on it; both only if needed.

    `endpoints` maps an exchange to a base URL (the simulator), `products` and `parameters` are the template's;
    `auth` makes MiniStack enforce IAM; `schedule` lets the template's schedule start runs. A running stack with
    another port or `auth` is restarted with its state. Raises StackError (PortInUse, NotInstalled, StartFailed,
    DeployFailed), whose message names the remedy.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    crashed = ministack.died(home)
    daemon = ministack.running(home)
    if daemon and (daemon.port, daemon.auth) != (port, auth):
        progress("restarting MiniStack with other settings")
        ecs_agent.stop(home)
        ministack.stop(home)
        daemon = None
    if daemon is None:
        progress(f"starting the embedded AWS on port {port}")
        # The build does not need it: both take seconds of different kinds.
        with ThreadPoolExecutor(1) as beside:
            building = beside.submit(deploy.build, home, progress)
            daemon = ministack.start(home, port=port, auth=auth, wait_scale=wait_scale)
        building.result()
    else:
        ministack.set_wait_scale(daemon, wait_scale)
    wanted = {
        "Stage": deploy.STAGE,
        "SavedQueries": "false",  # MiniStack's CloudFormation has no AWS::Athena::NamedQuery
        "ScheduleState": "ENABLED" if schedule else "DISABLED",
        "Products": products,
        "ExchangeEndpoints": json.dumps(dict(endpoints), sort_keys=True) if endpoints else "",
        # The embedded AWS's own default network: nothing runs in it, tasks are processes of the agent.
        "BackfillSubnets": "subnet-00000001",
        "BackfillVpc": "vpc-00000001",
        **(parameters or {}),
    }
    started = daemon
    daemon = deploy.deploy(home, daemon, wanted, progress)
    outputs = deploy.outputs(daemon)
    if cluster := outputs.get("BackfillClusterName"):  # none without BackfillSubnets
        ecs_agent.ensure(home, daemon.endpoint, cluster)
    return Stack(
        home=home,
        daemon=daemon,
        outputs=outputs,
        parameters=wanted,
        after_crash=crashed,
        rebuilt=daemon != started,
    )


def attach(home: Path) -> Stack:
    """The running, deployed stack of this home. Raises NotRunning."""
    home = home.resolve()
    daemon = ministack.running(home)
    found = deploy.outputs(daemon) if daemon else {}
    if daemon is None or not found:
        raise NotRunning("the local stack is not up: run `schemahub local up` (or `make run`)")
    return Stack(home, daemon, found, deploy.deployed_parameters(home))


def down(home: Path) -> bool:
    """Stop the tasks of ECS, then MiniStack with its state on disk and its Lambda workers. False if it did not run."""
    home = home.resolve()
    ecs_agent.stop(home)
    return ministack.stop(home)


def status(home: Path) -> Status:
    """What runs, where, and what is deployed; starts nothing."""
    home = home.resolve()
    daemon = ministack.running(home)
    if daemon is None:
        return Status(home, running=False, crashed=ministack.died(home))
    memory, workers = ministack.memory_mib(daemon)
    return Status(
        home,
        running=True,
        pid=daemon.pid,
        endpoint=daemon.endpoint,
        auth=daemon.auth,
        since=daemon.created,
        memory_mib=memory,
        workers=workers,
        stack_status=deploy.stack_status(daemon),
        outputs=deploy.outputs(daemon),
        parameters=deploy.deployed_parameters(home),
    )


def main() -> int:
    """`python -m local.stack up|down|status`, for the Makefile; people use `schemahub local`."""
    parser = argparse.ArgumentParser(prog="python -m local.stack")
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--home", type=Path, default=default_home())
    parser.add_argument("--port", type=int, default=default_port())
    parser.add_argument("--auth", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    try:
        if options.action == "up":
            stack = up(options.home, port=options.port, auth=options.auth, progress=print)
            print(f"{stack.endpoint} is ready after {time.monotonic() - begin:.1f} s")
        elif options.action == "down":
            print("stopped" if down(options.home) else "not running")
        else:
            print(status(options.home))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
