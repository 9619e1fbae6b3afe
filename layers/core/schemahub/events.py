"""The payloads of the state machines, typed: what is missing, unknown or wrong is refused before anything is done."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemahub.concurrency import MAX_FUNCTIONS
from schemahub.streams import MAX_POSITION, Chunk, Known, Stream

Position = Annotated[int, Field(strict=True, ge=0, le=MAX_POSITION)]
Counter = Annotated[int, Field(strict=True, ge=0, le=MAX_POSITION)]
Functions = Annotated[int, Field(strict=True, ge=1, le=MAX_FUNCTIONS)]
"""How many functions the Maps of an execution may run at once; the deployment's FunctionsAtATime by default."""
MAX_PAYLOAD_BYTES = 256 * 1024
"""Step Functions' hard limit on any input or output; emulators do not keep it."""


def _plan_key(value: str) -> str:
    if not re.fullmatch(r"schemahub/plans/[A-Za-z0-9_-]{1,80}(/[A-Za-z0-9_.-]{1,80}){1,3}", value) or ".." in value:
        raise ValueError("not a key below schemahub/plans/")
    return value


PlanKey = Annotated[str, AfterValidator(_plan_key)]


class Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Execution(BaseModel):
    """The context object ``$$.Execution``. RedriveCount is missing in emulators, and Input is nobody's business."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    Id: str = Field(min_length=1, max_length=2048)
    RedriveCount: Counter = 0

    @property
    def name(self) -> str:
        return re.sub(r"[^A-Za-z0-9_-]", "-", self.Id.rsplit(":", 1)[-1])[:80]


class Run(Payload):
    """The execution of the whole machine: name (in keys), ARN, beginning, and the fences of its process locks."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")
    arn: str = Field(min_length=1, max_length=2048)
    fences: dict[str, Counter] = {}
    opened_at: Counter | None = None
    """Epoch milliseconds; None in a payload of older code, which a redrive keeps."""
    functions_at_a_time: Functions | None = None


class StreamRef(Payload):
    exchange: str
    product: str
    dataset: str = "trades"

    def value(self) -> Stream:
        return Stream(self.exchange, self.product, self.dataset)

    def __str__(self) -> str:
        return f"{self.exchange}#{self.product}#{self.dataset}"


class LockRef(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    status: Literal["held", "busy"]
    owner: str = ""
    fence: Counter = 0
    attempt: Counter = 0


class KnownRef(Payload):
    base: Position | None
    head: Position
    pace: Position


class ChunkRef(Payload):
    first: Position
    last: Position
    known: KnownRef | None = None

    def value(self) -> Chunk:
        known = Known(self.known.base, self.known.head, self.known.pace) if self.known else None
        return Chunk(self.first, self.last, known)

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"


class PlanRef(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    status: str
    chunks_key: PlanKey


class Step(Payload):
    schema_version: int


class IngestInput(Payload):
    """What a person or the schedule may say when starting ``ingest``. An empty list asks for nothing: refused."""

    schema_version: int = 1
    exchanges: list[str] | None = Field(default=None, min_length=1, max_length=100)
    products: list[str] | None = Field(default=None, min_length=1, max_length=10_000)
    functions_at_a_time: Functions | None = None


class OpenRun(Step):
    execution: Execution
    input: IngestInput


LockKind = Literal["ingest", "backfill"]
"""Whose lock of a stream is meant: of what grows above its watermark, or of what is filled in below."""


class LockStep(Step):
    kind: LockKind = "ingest"
    action: Literal["acquire", "release"]
    execution: Execution
    run: Run
    stream: StreamRef
    lock: LockRef | None = None
    outcome: str = "done"


class PlanStep(Step):
    execution: Execution
    run: Run
    stream: StreamRef
    lock: LockRef


class FetchStep(Step):
    kind: LockKind = "ingest"
    run: Run
    stream: StreamRef
    lock: LockRef
    chunk: ChunkRef


class CommitStep(Step):
    execution: Execution
    run: Run
    stream: StreamRef
    lock: LockRef
    plan: PlanRef
    final: bool


class CloseRun(Step):
    execution: Execution
    run: Run


def _iso(value: str) -> str:
    datetime.fromisoformat(value)
    return value


class Rederive(Payload):
    """Make what the table has of these streams anew from their originals, from a position or a moment (UTC) on, up to a
    position."""

    streams: list[str] = Field(min_length=1, max_length=1000)
    since: Position | Annotated[str, AfterValidator(_iso)] | None = None
    until: Position | None = None


class ParentRun(BaseModel):
    """Of the run that started ``transform``, what concerns it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    functions_at_a_time: Functions | None = None


class TransformInput(Payload):
    """Input of ``transform``: what is to be made anew, or nothing for what is pending; and the run that started it."""

    schema_version: int = 1
    rederive: Rederive | None = None
    functions_at_a_time: Functions | None = None
    run: ParentRun | None = None
    started_by: Any = Field(default=None, alias="AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID")


class ListPending(Step):
    """``round``: how often this execution lists; another one may publish a part of what was listed in between."""

    execution: Execution
    input: TransformInput
    round: int = Field(default=1, ge=1, le=100)


Mode = Literal["append", "replace"]
"""``replace`` for a re-derivation. Executions of earlier releases, redriven, do not say it."""


class BatchStep(Step):
    run: Run
    batch: dict[str, Any]
    mode: Mode = "append"


class PublishStep(Step):
    execution: Execution
    run: Run
    bucket: str
    batches_key: PlanKey
    mode: Mode = "append"


class BackfillInput(Payload):
    """Input of ``backfill``: which streams, which range of them (``backfill_plan.Wanted``), and by what means."""

    schema_version: int = 1
    exchanges: list[str] | None = Field(default=None, min_length=1, max_length=100)
    products: list[str] | None = Field(default=None, min_length=1, max_length=10_000)
    range: Any
    route: Literal["auto", "lambda", "ecs"] = "auto"
    preset: Literal["small", "medium", "large"] | None = None
    workers: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None
    chunk_concurrency: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None
    """Both instead of the preset's."""
    tasks: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None
    """Tasks of one stream at a time, at most."""
    threshold_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Work up to which functions do it; the deployment's by default."""
    functions_at_a_time: Functions | None = None
    archives: bool = True
    """Whether files of the exchange's archive are taken before it is asked."""


class OpenBackfill(Step):
    execution: Execution
    input: BackfillInput


class PlanBackfill(Step):
    kind: LockKind = "backfill"
    execution: Execution
    run: Run
    stream: StreamRef
    lock: LockRef
    request: BackfillInput
    source: Literal["auto", "rest"] = "auto"
    """``auto`` takes archive files where there are any; ``rest`` asks the exchange for all that is missing."""


class BackfillPlanRef(BaseModel):
    """What ``PlanBackfill`` answered, as far as ``CommitBackfill`` reads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    status: str
    chunks_key: Annotated[
        str,
        Field(
            pattern=r"^schemahub/plans/[A-Za-z0-9_-]{1,80}/backfill/[a-z0-9_]{1,32}/[A-Z0-9-]{1,41}/[0-9]{6,12}/chunks\.jsonl$"
        ),
    ]
    within: ChunkRef


class CommitBackfill(Step):
    kind: LockKind = "backfill"
    execution: Execution
    run: Run
    stream: StreamRef
    lock: LockRef
    plan: BackfillPlanRef
    final: bool


class CloseBackfill(Step):
    execution: Execution
    run: Run


class MaintainInput(Payload):
    """What a person or the schedule may say when starting ``maintain``: nothing but the version."""

    schema_version: int = 1


class ProbeExchange(Step):
    exchange: str = Field(pattern=r"^[a-z0-9_]{1,32}$")


CorrectionKey = Annotated[
    str,
    Field(
        pattern=r"^schemahub/archives/[a-z0-9_]{1,32}/[A-Z0-9-]{1,41}/corrections/[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\.json$"
    ),
]


class MaintainStep(Step):
    action: Literal["open", "repair", "look", "rederive", "published", "close"]
    execution: Execution
    input: MaintainInput | None = None
    run: Run | None = None
    stream: StreamRef | None = None
    holes: list[Position] = Field(default=[], max_length=10_000)
    """Where the holes to ask for begin."""
    correction: CorrectionKey | None = None
    """Of a re-issued file, whose rows of the table were made anew."""
    transform: str | None = Field(default=None, min_length=1, max_length=2048)
    """The execution that did it."""
