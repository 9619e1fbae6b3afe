"""Puts the project's own template on the embedded AWS with the real `sam build` and `sam deploy`.

Nothing is done when nothing changed: a fingerprint covers every file and parameter that goes into the deployment.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from local import ministack
from local.ministack import REGION, REPOSITORY, ROOT_CREDENTIALS, Daemon, Progress, StackError

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_s3 import S3Client

STACK_NAME = "schemahub-local"
STAGE = "local"
ARTIFACT_BUCKET = "schemahub-local-artifacts"
SOURCES = ("template.yaml", "statemachines", "functions", "layers", "mappings")
# Not the directories of `make build`: SAM's cache does not know that these layers are for another platform.
BUILD = REPOSITORY / ".aws-sam" / "local"
CACHE = REPOSITORY / ".aws-sam" / "local-cache"
READY = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
# States of a stack that was never whole: it can only be deleted.
UNUSABLE = ("CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS")


class DeployFailed(StackError):
    """`sam build` or `sam deploy` failed; the message has the end of what it printed."""


def client(daemon: Daemon, service: str) -> Any:
    """A boto3 client of the embedded AWS with the rights of the account's root."""
    import boto3

    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=daemon.endpoint,
        region_name=REGION,
        aws_access_key_id=ROOT_CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ROOT_CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def deploy(home: Path, daemon: Daemon, parameters: Mapping[str, str], progress: Progress) -> Daemon:
    """Build and deploy if needed; returns the MiniStack, which is another process if a bucket had to be put back.

    Raises DeployFailed.
    """
    fingerprint = _fingerprint(parameters)
    status = stack_status(daemon)
    if status in READY and _deployed(home) == fingerprint:
        progress("the stack is up to date")
        return daemon
    with _build_lock():
        _build(home, progress)
        aside = None
        if status is None:
            daemon, aside = _set_buckets_aside(home, daemon, progress)
        elif status in UNUSABLE:
            _delete_stack(daemon)
        progress("deploying the template (sam deploy)")
        _sam_deploy(home, daemon, parameters)
    if aside is not None:
        daemon = _put_buckets_back(home, daemon, aside)
    _record(home).write_text(json.dumps({"fingerprint": fingerprint, "parameters": dict(parameters)}, indent=1))
    ministack.checkpoint(daemon)
    return daemon


def build(home: Path, progress: Progress) -> None:
    """Build functions and layers if their sources changed; needs no embedded AWS. Raises DeployFailed."""
    with _build_lock():
        _build(home, progress)


def _build(home: Path, progress: Progress) -> None:
    built, sources = BUILD.parent / "local-built", _fingerprint({})
    if BUILD.exists() and built.exists() and built.read_text() == sources:
        return
    built.unlink(missing_ok=True)
    progress("building functions and layers (sam build)")
    _sam_build(home)
    built.write_text(sources)


def _record(home: Path) -> Path:
    return home / "deployed.json"


def _deployed(home: Path) -> str | None:
    try:
        return str(json.loads(_record(home).read_text())["fingerprint"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def deployed_parameters(home: Path) -> dict[str, str]:
    """The parameters of the last deployment from this home."""
    try:
        return dict(json.loads(_record(home).read_text())["parameters"])
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _fingerprint(parameters: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([sorted(parameters.items()), platform.python_version()]).encode())
    for source in SOURCES:
        root = REPOSITORY / source
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(REPOSITORY)}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def _build_lock() -> Iterator[None]:
    """One build at a time in this clone: tests and a person's stack share the build directory."""
    BUILD.parent.mkdir(exist_ok=True)
    with (BUILD.parent / "local.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sam_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The shell's environment without its AWS settings (a profile, say, would win over our credentials)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAM_"))}
    binaries = Path(sys.executable).parent
    return kept | {
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "0.5",
        **extra,
    }


def _run_sam(home: Path, arguments: list[str], extra: Mapping[str, str]) -> None:
    log = home / "deploy.log"
    command = [
        str(Path(sys.executable).with_name("sam")),
        *arguments,
        "--config-file",
        str(_empty_config(home)),
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=_sam_environment(extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-30:])
        raise DeployFailed(f"sam {arguments[0]} failed ({log} has all of it):\n{last}")


def _empty_config(home: Path) -> Path:
    """samconfig.toml is for deployments to AWS; here every option is on the command line."""
    path = home / "samconfig.toml"
    path.write_text("version = 0.1\n")
    return path


def _sam_build(home: Path) -> None:
    _run_sam(
        home,
        [
            "build",
            *("--parallel", "--cached", "--cache-dir", str(CACHE)),
            *("--build-dir", str(BUILD)),
            *("--template-file", str(REPOSITORY / "template.yaml")),
        ],
        {"SCHEMAHUB_LAYER_TARGET": "local"},
    )


def _sam_deploy(home: Path, daemon: Daemon, parameters: Mapping[str, str]) -> None:
    s3: S3Client = client(daemon, "s3")
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=ARTIFACT_BUCKET)
    _run_sam(
        home,
        [
            "deploy",
            *("--template-file", str(BUILD / "template.yaml")),
            *("--stack-name", STACK_NAME),
            *("--s3-bucket", ARTIFACT_BUCKET),
            *("--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"),
            *("--region", REGION),
            *("--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar"),
            *("--parameter-overrides", *(f"{name}={_quoted(value)}" for name, value in parameters.items())),
        ],
        {"AWS_ENDPOINT_URL": daemon.endpoint, **ROOT_CREDENTIALS},
    )


def _quoted(value: str) -> str:
    """A parameter's value as SAM's own parser of `--parameter-overrides` reads it back."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def stack_status(daemon: Daemon) -> str | None:
    """CloudFormation's word for the stack; None if there is no stack."""
    stack = _describe(daemon)
    return None if stack is None or stack["StackStatus"] == "DELETE_COMPLETE" else str(stack["StackStatus"])


def outputs(daemon: Daemon) -> dict[str, str]:
    """The stack's outputs (BucketName, IngestStateMachineArn, ...); empty without a stack."""
    stack = _describe(daemon)
    return {entry["OutputKey"]: entry["OutputValue"] for entry in (stack or {}).get("Outputs", [])}


def _describe(daemon: Daemon) -> Any:
    cloudformation: CloudFormationClient = client(daemon, "cloudformation")
    try:
        return cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise


def _delete_stack(daemon: Daemon) -> None:
    cloudformation: CloudFormationClient = client(daemon, "cloudformation")
    cloudformation.delete_stack(StackName=STACK_NAME)
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=STACK_NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )


# --- a lost state: the stack is gone, its bucket is not ---------------------------------------------------------
# CloudFormation refuses to create a bucket that exists, on AWS too (there one would import it). The objects are files:
# they wait beside the data directory while the stack is made, and MiniStack reads them again at a start.


def _bucket_directories(s3: Path) -> list[Path]:
    roots = [s3 / ministack.ACCOUNT, s3 / ".versions" / ministack.ACCOUNT]
    found = [bucket for root in roots if root.is_dir() for bucket in root.iterdir() if bucket.is_dir()]
    return [path for path in found if path.name.startswith(f"{STACK_NAME}-") and path.name != ARTIFACT_BUCKET]


def _set_buckets_aside(home: Path, daemon: Daemon, progress: Progress) -> tuple[Daemon, Path | None]:
    aside = home / "s3-aside"
    s3 = ministack.s3_directory(home)
    found = _bucket_directories(s3)
    if not found and not aside.exists():
        return daemon, None
    progress("the stack's state was lost, its objects were not: deploying around them")
    ministack.stop(home)
    for path in found:
        target = aside / path.relative_to(s3)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    # What MiniStack knows of the buckets would let it refuse their names.
    (ministack.state_directory(home) / "s3.json").unlink(missing_ok=True)
    return ministack.start(home, port=daemon.port, auth=daemon.auth), aside


def _put_buckets_back(home: Path, daemon: Daemon, aside: Path) -> Daemon:
    ministack.stop(home)
    s3 = ministack.s3_directory(home)
    for path in _bucket_directories(aside):
        target = s3 / path.relative_to(aside)
        if target.exists():  # made a moment ago by the deployment, so it is empty
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(aside)
    return ministack.start(home, port=daemon.port, auth=daemon.auth)
