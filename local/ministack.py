"""The embedded AWS as a process: start it, wait for it, stop it in order, find it again after a crash.

MiniStack runs detached in a session of its own: closing the terminal does not touch it, a shutdown of the machine sends
it SIGTERM, and SIGTERM makes it write its state. Only `kill -9` or a power cut skip that; then S3 is complete (objects
are files at once) and the rest is as of the last checkpoint (see ministack_daemon).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
DAEMON = Path(__file__).with_name("ministack_daemon.py")
REGION = "us-east-1"
ACCOUNT = "000000000000"
# MiniStack's account root: its rights are not limited under AUTH=true, those of the Lambdas' roles are.
ROOT_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
START_SECONDS = 60.0
STOP_SECONDS = 60.0
# A laptop's share of the 1,000 concurrent Lambdas of an AWS account; past it Lambda throttles, as on AWS.
ACCOUNT_CONCURRENCY = 64
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
)

Progress = Callable[[str], None]


class StackError(RuntimeError):
    """The local stack could not do what was asked; the message says what to do."""


class PortInUse(StackError):
    """Another program listens on the port."""


class NotInstalled(StackError):
    """MiniStack's environment is missing."""


class NotRunning(StackError):
    """There is no running stack in this home."""


class StartFailed(StackError):
    """MiniStack ended, or did not answer in time; the log has the reason."""


@dataclass(frozen=True)
class Daemon:
    """A running MiniStack. `created` (epoch s) tells it from another process that got the same pid later."""

    pid: int
    port: int
    auth: bool
    created: float

    @property
    def endpoint(self) -> str:
        # An address, not a name: SDKs then put the bucket in the path, which needs no wildcard DNS.
        return f"http://127.0.0.1:{self.port}"


def log_path(home: Path) -> Path:
    """Where MiniStack and the Lambdas write."""
    return home / "ministack.log"


def _record(home: Path) -> Path:
    return home / "ministack.json"


def state_directory(home: Path) -> Path:
    return home / "state"


def s3_directory(home: Path) -> Path:
    """`<account>/<bucket>/<key>` below it, and `.versions/<account>/<bucket>` for versioned buckets."""
    return home / "s3"


def _recorded(home: Path) -> Daemon | None:
    try:
        return Daemon(**json.loads(_record(home).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running(home: Path) -> Daemon | None:
    """The MiniStack of this home if it is alive."""
    daemon = _recorded(home)
    if daemon is None:
        return None
    try:
        process = psutil.Process(daemon.pid)
        same = abs(process.create_time() - daemon.created) < 1
        return daemon if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def died(home: Path) -> bool:
    """Whether the last MiniStack of this home ended without `stop` (killed, power cut)."""
    return _recorded(home) is not None and running(home) is None


def forget_crash(home: Path) -> None:
    _record(home).unlink(missing_ok=True)


def is_answering(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nothing uses at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interpreter() -> Path:
    """The Python of .venv-aws; SCHEMAHUB_AWS_PYTHON names another."""
    path = Path(os.environ.get("SCHEMAHUB_AWS_PYTHON", REPOSITORY / ".venv-aws" / "bin" / "python"))
    if not path.exists():
        raise NotInstalled(f"MiniStack is not installed ({path} is missing): run `make setup`")
    return path


def _environment(home: Path, port: int, auth: bool, wait_scale: float) -> dict[str, str]:
    """MiniStack's environment, which its Lambdas inherit: short, so that nothing of the shell leaks into them."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed | {
        "NO_PROXY": "127.0.0.1,localhost",
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_REGION": REGION,
        "AUTH": str(auth).lower(),
        "PERSIST_STATE": "1",
        "STATE_DIR": str(state_directory(home)),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(s3_directory(home)),
        "TMPDIR": str(home / "tmp"),
        "SCHEMAHUB_LAYER_CACHE": str(home / "layers"),
        "LAMBDA_EXECUTOR": "local",
        "LAMBDA_ACCOUNT_CONCURRENCY": os.environ.get("LAMBDA_ACCOUNT_CONCURRENCY", str(ACCOUNT_CONCURRENCY)),
        "SFN_WAIT_SCALE": str(wait_scale),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": "unix:///nonexistent",  # never reach for a Docker that happens to run here
        "PYTHONUNBUFFERED": "1",
        "POWERTOOLS_TRACE_DISABLED": "true",  # there is no X-Ray daemon
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def start(home: Path, *, port: int, auth: bool = False, wait_scale: float = 1.0) -> Daemon:
    """Start MiniStack with the state of `home` and wait until it answers.

    `wait_scale` multiplies the waits and retry delays of state machines. Raises PortInUse, NotInstalled, StartFailed.
    """
    home = home.resolve()
    python = interpreter()
    if is_answering(port):
        raise PortInUse(
            f"port {port} is in use by another program; choose one with --port or SCHEMAHUB_AWS_PORT, "
            f"or stop what listens there (ss -ltnp 'sport = :{port}')"
        )
    shutil.rmtree(home / "tmp", ignore_errors=True)  # what killed workers left
    for directory in (home / "tmp", home / "layers", state_directory(home), s3_directory(home)):
        directory.mkdir(parents=True, exist_ok=True)
    with log_path(home).open("ab") as log:
        process = subprocess.Popen(
            [str(python), "-P", str(DAEMON)],
            cwd=home,
            env=_environment(home, port, auth, wait_scale),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    daemon = Daemon(process.pid, port, auth, psutil.Process(process.pid).create_time())
    _record(home).write_text(json.dumps(asdict(daemon)))
    _wait_until_ready(home, daemon, process)
    return daemon


def _wait_until_ready(home: Path, daemon: Daemon, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            forget_crash(home)
            raise StartFailed(f"MiniStack ended at once (code {process.returncode}):\n{tail(log_path(home))}")
        try:
            with urllib.request.urlopen(f"{daemon.endpoint}/_ministack/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    _kill_group(daemon.pid)
    forget_crash(home)
    raise StartFailed(f"MiniStack did not answer within {START_SECONDS:.0f} s:\n{tail(log_path(home))}")


def stop(home: Path) -> bool:
    """Stop MiniStack so that its state is on disk, and end its Lambda workers. False if it did not run.

    An execution that is still running does not hold up the stop: it shows as FAILED after the next start.
    """
    daemon = running(home)
    if daemon is None:
        forget_crash(home)
        return False
    checkpoint(daemon)
    asked = time.time()
    process = psutil.Process(daemon.pid)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            process.wait(timeout=0.1)
            break
        except psutil.TimeoutExpired:
            # Threads of running executions would keep the process: once the state is written it may go.
            if _written_since(home, asked):
                time.sleep(0.5)
                break
    _kill_group(daemon.pid)
    forget_crash(home)
    shutil.rmtree(home / "tmp", ignore_errors=True)
    return True


def _written_since(home: Path, moment: float) -> bool:
    """Whether every state file is newer than `moment` (epoch s) and none is being written."""
    files = list(state_directory(home).glob("*.json"))
    partial = any(state_directory(home).glob("*.tmp"))
    return bool(files) and not partial and all(file.stat().st_mtime >= moment for file in files)


def _kill_group(group: int) -> None:
    """End MiniStack and every worker it started: all are in the session that `start` opened."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        psutil.Process(group).wait(timeout=5)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return


def checkpoint(daemon: Daemon) -> None:
    """Make MiniStack write its whole state now."""
    _post(f"{daemon.endpoint}/_schemahub/checkpoint", b"")


def set_wait_scale(daemon: Daemon, scale: float) -> None:
    """Multiply the waits and retry delays of state machines by `scale` from now on."""
    _post(f"{daemon.endpoint}/_ministack/config", json.dumps({"stepfunctions._SFN_WAIT_SCALE": scale}).encode())


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, data=body, method="POST")
    with urllib.request.urlopen(request, timeout=60):
        return


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def memory_mib(daemon: Daemon) -> tuple[float, int]:
    """Resident memory of MiniStack with its workers in MiB, and how many workers there are."""
    try:
        process = psutil.Process(daemon.pid)
        workers = process.children(recursive=True)
        total = process.memory_info().rss + sum(worker.memory_info().rss for worker in workers)
    except psutil.NoSuchProcess:
        return 0.0, 0
    return total / 2**20, len(workers)


if sys.platform == "win32":
    raise ImportError("the local stack needs a POSIX system (on Windows: WSL)")
