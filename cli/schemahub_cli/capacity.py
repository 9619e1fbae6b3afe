"""How many functions the account lets run at once, and how many of them a run may therefore use.

A new account may run as few as 10. What is beyond waits (the state machines retry for minutes), but a run that stays
below the limit wastes no attempts and leaves functions to everything else in the account.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from schemahub_cli import executions
from schemahub_cli.output import Say
from schemahub_cli.target import Target

LEFT_TO_OTHERS = 2
"""Functions of the limit that a run leaves to the failure rule and to whatever else the account runs."""
QUOTA = "L-B99A9384"
"""Concurrent executions of Lambda, in Service Quotas."""


@dataclass(frozen=True)
class Capacity:
    """The account's limit as far as it can be read, and the stack's own parameter."""

    configured: int
    """FunctionsAtATime of the stack."""
    limit: int | None = None
    """Functions that the account runs at once, those that are not reserved for others; None: not to be read."""
    why_unknown: str = ""

    @classmethod
    def of(cls, where: Target) -> Capacity:
        """Ask the stack and `lambda get-account-settings`; a caller without that right is no reason to stop."""
        configured = where.deps.settings.functions_at_a_time
        try:
            found = where.client("lambda").get_account_settings()["AccountLimit"]
        except ClientError as error:
            return cls(configured, why_unknown=str(error.response["Error"].get("Code", "refused")))
        except BotoCoreError as error:
            return cls(configured, why_unknown=type(error).__name__)
        return cls(configured, int(found["UnreservedConcurrentExecutions"]))

    @property
    def functions_at_a_time(self) -> int:
        """What an execution that is started now may use."""
        if self.limit is None:
            return self.configured
        return min(self.configured, max(1, self.limit - LEFT_TO_OTHERS))

    @property
    def lowered(self) -> bool:
        return self.functions_at_a_time < self.configured

    def to_input(self) -> dict[str, int]:
        """Keys for an execution's input; none where the stack's parameter fits."""
        return {"functions_at_a_time": self.functions_at_a_time} if self.lowered else {}

    def to_json(self) -> dict[str, Any]:
        return {
            "account_limit": self.limit,
            "configured": self.configured,
            "functions_at_a_time": self.functions_at_a_time,
        }

    def words(self) -> str:
        """What was found, and what follows from it."""
        if self.limit is None:
            return (
                f"[yellow]the account's Lambda limit could not be read ({self.why_unknown}): "
                f"up to {self.configured} functions run at a time[/]"
            )
        if not self.lowered:
            return (
                f"the account runs {self.limit:,} functions at a time, an execution uses "
                f"{self.functions_at_a_time} at most"
            )
        return (
            f"[yellow]the account runs only {self.limit} functions at a time: this run uses "
            f"{self.functions_at_a_time} instead of {self.configured}[/]. For scheduled runs deploy with "
            f"[cyan]FunctionsAtATime={self.functions_at_a_time}[/], or ask for a higher quota "
            f"(Service Quotas, {QUOTA})"
        )


def announce(say: Say, where: Target, machine: str) -> Capacity:
    """Read the limit before a start; speak of it where it is too low or unknown, and before a first run."""
    capacity = Capacity.of(where)
    if capacity.lowered or capacity.limit is None or not executions.any_yet(where, machine):
        say.line(capacity.words())
    return capacity
