"""Which stack a command works on, and how to reach its services.

A target is a CloudFormation stack: the local one on the embedded AWS, or a deployed one. Everything a command needs to
know is read from the stack itself (its outputs, and the environment of its own functions), so that there is one code
path and nothing to configure twice.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemahub_cli.output import StackUnreachable

if TYPE_CHECKING:
    import boto3

    from schemahub.deps import Deps

OUTPUTS = (
    "BucketName",
    "LocksTableName",
    "StreamsTableName",
    "ThrottleTableName",
    "IngestStateMachineArn",
    "TransformStateMachineArn",
    "GlueDatabaseName",
    "AthenaWorkgroupName",
)
REGION_REMEDY = "Set AWS_DEFAULT_REGION, or choose a profile with AWS_PROFILE."


@dataclass(frozen=True)
class Target:
    """A reachable stack: its clients and its outputs."""

    stack: str
    local: bool
    session: boto3.Session
    outputs: dict[str, str]

    def client(self, service: str) -> Any:
        """A boto3 client (one for each service; boto3 clients are thread-safe)."""
        return _client(self.session, service)

    @functools.cached_property
    def deps(self) -> Deps:
        """The core's adapters, with the settings that the stack's own functions have."""
        from schemahub.deps import Settings, build

        return build(Settings.from_env(self.environment()), self.session)

    @property
    def bucket(self) -> str:
        return self.outputs["BucketName"]

    @property
    def database(self) -> str:
        return self.outputs["GlueDatabaseName"]

    @property
    def ingest_arn(self) -> str:
        return self.outputs["IngestStateMachineArn"]

    @property
    def transform_arn(self) -> str:
        return self.outputs["TransformStateMachineArn"]

    def machine_arn(self, name: str) -> str | None:
        """A state machine's ARN by its name (``ingest``); None for one that an older stack does not have."""
        return self.outputs.get(f"{name.capitalize()}StateMachineArn")

    @property
    def stage(self) -> str:
        """``local`` of ``schemahub-local-ingest``."""
        return self.ingest_arn.rsplit(":", 1)[1].removeprefix("schemahub-").removesuffix("-ingest")

    @property
    def where(self) -> str:
        """For people: which stack, and where."""
        return f"{self.stack} ({'local' if self.local else self.session.region_name})"

    def environment(self) -> dict[str, str]:
        """The environment of the stack's own planner, so that a dry run plans with what a run would use."""
        answer = self.client("lambda").get_function_configuration(FunctionName=f"schemahub-{self.stage}-plan-stream")
        return dict(answer.get("Environment", {}).get("Variables", {}))


@functools.cache
def _client(session: boto3.Session, service: str) -> Any:
    from botocore.config import Config

    # Polling must notice a dead stack in seconds, and a transform may keep a small machine busy for some.
    config = Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"})
    return session.client(service, config=config)  # type: ignore[call-overload]


def resolve(stack: str | None) -> Target:
    """The stack of that name, or the local one.

    Raises:
        StackUnreachable: not deployed, not running, no credentials, or not a SchemaHub stack.
    """
    from local.stack import default_home

    if stack is None:
        return resolve_local(default_home())
    session = cloud_session()
    return Target(stack, False, session, stack_outputs(session, stack))


def resolve_local(home: Path) -> Target:
    """The running local stack of that home directory. Raises StackUnreachable."""
    from local import stack as local_stack
    from schemahub_cli.session import LocalSession

    try:
        found = local_stack.attach(home)
    except local_stack.StackError as error:
        raise StackUnreachable(str(error)) from error
    return Target(found.name, True, LocalSession(found.endpoint), dict(found.outputs))


def cloud_session() -> boto3.Session:
    """A session with the credentials and the region that the environment or a profile names.

    Raises:
        StackUnreachable: no region, one that cannot be, two that differ, or a profile that cannot be read.
    """
    import boto3
    from botocore.exceptions import BotoCoreError
    from botocore.utils import validate_region_name

    try:
        session = boto3.Session(region_name=_region_of_environment())
        if not session.region_name:
            raise StackUnreachable("no AWS region is set", remedy=REGION_REMEDY)
        validate_region_name(session.region_name)
    except BotoCoreError as error:
        raise StackUnreachable(str(error), remedy="Correct AWS_PROFILE, the region or ~/.aws/config.") from error
    return session


def _region_of_environment() -> str | None:
    """The region that somebody exported, which wins over a profile's; None leaves it to the profile.

    boto3, and so `sam deploy`, reads AWS_DEFAULT_REGION only; the AWS CLI and other SDKs read AWS_REGION first.
    """
    default, region = (os.environ.get(name, "").strip() for name in ("AWS_DEFAULT_REGION", "AWS_REGION"))
    if default and region and default != region:
        raise StackUnreachable(
            f"AWS_DEFAULT_REGION is {default}, AWS_REGION is {region}",
            remedy="Unset one: sam deploys to AWS_DEFAULT_REGION, the AWS CLI reads AWS_REGION first.",
        )
    return default or region or None


def stack_outputs(session: boto3.Session, name: str) -> dict[str, str]:
    """The outputs of a deployed stack.

    Raises:
        StackUnreachable: see ``resolve``.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = _client(session, "cloudformation").describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        where = f"stack {name!r} in {session.region_name}"
        raise StackUnreachable(f"{where}: {error.response['Error'].get('Message', error)}") from error
    except BotoCoreError as error:
        raise StackUnreachable(f"CloudFormation does not answer for {name!r} ({type(error).__name__})") from error
    outputs = {o["OutputKey"]: o["OutputValue"] for o in (found[0].get("Outputs", []) if found else [])}
    if missing := [o for o in OUTPUTS if o not in outputs]:
        raise StackUnreachable(
            f"stack {name!r} lacks the outputs {', '.join(missing)}: it is still being deployed, "
            f"or it is not a SchemaHub stack"
        )
    return outputs
