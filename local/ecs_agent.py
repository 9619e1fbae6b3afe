"""ECS's agent on this machine: each task of the embedded AWS becomes a process, started and stopped as ECS does it.

The image is this checkout: `python` is the project's own interpreter and the working directory is `functions/backfill`.
A task gets the environment of its definition and its overrides, the rights of its role and nobody else's, a directory
for each mount point, and its memory limit; past that it is killed, as a container is. It ends by itself, or is asked
by SIGTERM (StopTask, `schemahub local down`) and killed `stopTimeout` seconds later.

What ended stands in `ecs-tasks.jsonl` of the home: task, exit code, reason, seconds, peak of memory (MiB).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from botocore.exceptions import BotoCoreError, ClientError

from local.ministack import PASSED_ON, REGION, REPOSITORY, ROOT_CREDENTIALS

WORKDIR = REPOSITORY / "functions" / "backfill"
POLL_SECONDS = 0.5
WATCH_SECONDS = 0.1
STOP_SECONDS = 30
"""`stopTimeout` where a definition says none."""
ENVIRONMENT = {
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",
    "POWERTOOLS_TRACE_DISABLED": "true",
}
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
KILLED = 137


def log_path(home: Path) -> Path:
    """What the tasks write."""
    return home / "ecs-tasks.log"


def ended_path(home: Path) -> Path:
    """One JSON line for each task that ended."""
    return home / "ecs-tasks.jsonl"


@dataclass
class Running:
    """One task and its process."""

    arn: str
    container: str
    process: subprocess.Popen[bytes]
    folder: Path
    memory_mib: int
    stop_seconds: float
    began: float = field(default_factory=time.monotonic)
    peak_mib: float = 0.0
    asked_to_stop: float | None = None
    reason: str = ""

    def watch(self) -> None:
        """Note the memory, kill past the limit or past the patience after a SIGTERM."""
        with contextlib.suppress(psutil.Error):
            tree = psutil.Process(self.process.pid)
            used = sum(p.memory_info().rss for p in [tree, *tree.children(recursive=True)]) / 2**20
            self.peak_mib = max(self.peak_mib, used)
            if used > self.memory_mib:
                self.reason = OUT_OF_MEMORY
                self.kill()
        if self.asked_to_stop is not None and time.monotonic() - self.asked_to_stop > self.stop_seconds:
            self.kill()

    def ask_to_stop(self) -> None:
        if self.asked_to_stop is None:
            self.asked_to_stop = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def report(self) -> dict[str, Any]:
        """How it ended; a signal counts as 128 + its number, as in a container."""
        code = self.process.returncode
        return {
            "task": self.arn,
            "exit_code": 128 - code if code < 0 else code,
            "reason": self.reason,
            "seconds": round(time.monotonic() - self.began, 2),
            "peak_mib": round(self.peak_mib, 1),
        }


class Agent:
    """Looks at one cluster again and again; ``look`` and ``watch`` are its two steps."""

    def __init__(self, home: Path, endpoint: str, cluster: str, ecs: Any = None) -> None:
        import boto3  # the agent's process needs it; `schemahub local status`, which imports this module, does not

        self.home, self.endpoint, self.cluster = home, endpoint, cluster
        self.ecs: Any = ecs or boto3.client(
            "ecs",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=ROOT_CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ROOT_CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )
        self.tasks: dict[str, Running] = {}

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``; then every task is stopped in order."""
        self.bury()
        looked = 0.0
        while not stop.wait(WATCH_SECONDS):
            self.watch()
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                with contextlib.suppress(BotoCoreError, ClientError, OSError):  # the AWS is being restarted
                    self.look()
        for task in self.tasks.values():
            task.ask_to_stop()
        while self.tasks:
            time.sleep(WATCH_SECONDS)
            self.watch()

    def look(self) -> None:
        """Start what nobody runs, ask to stop what is no longer wanted."""
        wanted = self.ecs.list_tasks(cluster=self.cluster, desiredStatus="RUNNING")["taskArns"]
        arns = sorted({*wanted, *self.tasks})
        found = self.ecs.describe_tasks(cluster=self.cluster, tasks=arns)["tasks"] if arns else []
        stay = {
            task["taskArn"]: task
            for task in found
            if task["desiredStatus"] == "RUNNING" and task["lastStatus"] != "STOPPED"
        }
        for arn, running in self.tasks.items():
            if arn not in stay:
                running.ask_to_stop()
        for arn, task in stay.items():
            if arn not in self.tasks:
                try:
                    self.start(task)
                except (OSError, KeyError, ValueError) as error:
                    reason = f"CannotStartContainerError: {error!r}"[:200]
                    self.submit(arn, task["containers"][0]["name"], KILLED, reason)

    def watch(self) -> None:
        """Look after the processes, and report those that ended."""
        for arn, task in list(self.tasks.items()):
            task.watch()
            if task.process.poll() is not None:
                del self.tasks[arn]
                task.kill()  # what it started must not outlive it
                shutil.rmtree(task.folder, ignore_errors=True)
                report = task.report()
                with ended_path(self.home).open("a") as file:
                    file.write(json.dumps(report) + "\n")
                self.submit(arn, task.container, report["exit_code"], task.reason)

    def submit(self, arn: str, container: str, exit_code: int, reason: str) -> None:
        """Tell ECS the end of a task; without an answer it stays for whoever stops or restarts the AWS."""
        with contextlib.suppress(BotoCoreError, ClientError):
            self.ecs.submit_task_state_change(
                cluster=self.cluster,
                task=arn,
                status="STOPPED",
                containers=[{"containerName": container, "exitCode": exit_code, "reason": reason, "status": "STOPPED"}],
            )

    def start(self, task: Any) -> None:
        """Make the task's command a process."""
        arn = task["taskArn"]
        definition = self.ecs.describe_task_definition(taskDefinition=task["taskDefinitionArn"])["taskDefinition"]
        [container] = definition["containerDefinitions"]
        folder = self.folder(arn)
        folder.mkdir(parents=True)
        (folder / "container").write_text(container["name"])
        environment = self.environment(task, container, folder)
        command = [*container.get("entryPoint", []), *container["command"]]
        with log_path(self.home).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable if word == "python" else word for word in command],
                cwd=WORKDIR,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (folder / "pid").write_text(json.dumps([process.pid, psutil.Process(process.pid).create_time()]))
        patience = float(container.get("stopTimeout", STOP_SECONDS))
        self.tasks[arn] = Running(arn, container["name"], process, folder, int(task["memory"]), patience)

    def environment(self, task: Any, container: Any, folder: Path) -> dict[str, str]:
        """The task's variables. A process has no mounts: one that names a mount point gets its directory here."""
        given = {e["name"]: e["value"] for e in container.get("environment", [])}
        for override in task.get("overrides", {}).get("containerOverrides", []):
            given |= {e["name"]: e["value"] for e in override.get("environment", [])}
        mounts = {mount["containerPath"] for mount in container.get("mountPoints", [])}
        given = {name: str(folder) if value in mounts else value for name, value in given.items()}
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        own = {"AWS_ENDPOINT_URL": self.endpoint, "TMPDIR": str(folder)}
        return passed | given | self.credentials(task["taskArn"]) | ENVIRONMENT | own

    def credentials(self, arn: str) -> dict[str, str]:
        """Variables with the rights of the task's role (see `task_credentials` of ministack_daemon)."""
        with urllib.request.urlopen(f"{self.endpoint}/_schemahub/task-credentials?task={arn}", timeout=30) as answer:
            return dict(json.load(answer))

    def folder(self, arn: str) -> Path:
        """The task's own directory; that it exists says that an agent has started the task."""
        return self.home / "tasks" / arn.rsplit("/", 1)[-1]

    def bury(self) -> None:
        """End and report what an agent before this one had started: it was killed, and nobody looks after these."""
        for folder in (self.home / "tasks").glob("*"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                pid, created = json.loads((folder / "pid").read_text())
                if abs(psutil.Process(pid).create_time() - created) < 1:
                    os.killpg(pid, signal.SIGKILL)
            name = folder / "container"
            self.submit(folder.name, name.read_text() if name.exists() else "", KILLED, "the agent was killed")
            shutil.rmtree(folder, ignore_errors=True)


# --- the agent as a process of the local stack ------------------------------------------------------------------


def _record(home: Path) -> Path:
    return home / "ecs-agent.json"


def running(home: Path) -> dict[str, Any] | None:
    """Record (`pid`, `created`, `endpoint`, `cluster`) of this home's agent, if it runs."""
    try:
        record = json.loads(_record(home).read_text())
        process = psutil.Process(record["pid"])
        alive = abs(process.create_time() - record["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return dict(record) if alive else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def ensure(home: Path, endpoint: str, cluster: str) -> None:
    """Make an agent look after this cluster, unless one does."""
    found = running(home)
    if found and (found["endpoint"], found["cluster"]) == (endpoint, cluster):
        return
    stop(home)
    with (home / "ecs-agent.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "local.ecs_agent", str(home), endpoint, cluster],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    record = {"pid": process.pid, "created": created, "endpoint": endpoint, "cluster": cluster}
    _record(home).write_text(json.dumps(record))


def stop(home: Path) -> bool:
    """End this home's agent and its tasks, in order; False if none ran."""
    found = running(home)
    if found:
        process = psutil.Process(found["pid"])
        process.terminate()
        try:
            process.wait(STOP_SECONDS + 10)
        except psutil.TimeoutExpired:
            process.kill()
    _record(home).unlink(missing_ok=True)
    return found is not None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local.ecs_agent")
    parser.add_argument("home", type=Path)
    parser.add_argument("endpoint")
    parser.add_argument("cluster")
    options = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    Agent(options.home, options.endpoint, options.cluster).run(stopping)
    return 0


if __name__ == "__main__":
    sys.exit(main())
