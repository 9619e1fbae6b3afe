"""Leases with a fence: who works on a stream, and the number by which its commits are told from a zombie's.

One item a lock: ``lock_id`` → ``owner`` (execution ARN), ``run`` (ARN of the top execution), ``attempt`` (redrive
count of the owner), ``fence``, ``lease_until``, ``acquired_at`` (both epoch ms). A released lock keeps its item and its
fence; were the item deleted, the fence would begin again and an old holder could pass for a new one. For the same
reason nothing here sets the TTL attribute: a lock is never litter.

The lease only spares work: correctness is the fence, which every commit checks in its own transaction. That is why an
expiry by wall clock, with ``skew_ms`` of allowance, is enough, and why an expired lease that nobody took is still ours.

    acquire, the item being …            becomes
    absent, or without an owner          mine, fence + 1
    another's, expired beyond the skew   mine, fence + 1
    another's, of my own run             mine, fence + 1 (the run's second pass over what failed in its first)
    another's, live                      LockBusy
    mine, of an older attempt            mine, fence + 1 (what the old attempt still does is a zombie's)
    mine, of this attempt                mine, the same fence (the answer had been lost, or the task runs again)
    mine, of a newer attempt             LockLost: I am the zombie
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from schemahub.clock import Clock
from schemahub.conditional import Applied, Item, read, update_if, whole
from schemahub.errors import BadConfig, CorruptState, LockBusy, LockLost

LEASE_MS = 90_000
SKEW_MS = 5_000
RENEW_MS = 30_000

# The names are aliased throughout: `owner` is a reserved word of DynamoDB's expressions.
_NAMES = {"#owner": "owner", "#fence": "fence", "#until": "lease_until"}
_ALL_NAMES = {**_NAMES, "#run": "run", "#attempt": "attempt", "#since": "acquired_at"}
_REMOVE = "REMOVE #owner, #until, #run, #attempt, #since"
_FREE = "attribute_not_exists(#owner)"
_SOUND = "(attribute_not_exists(lock_id) OR attribute_type(#fence, :number))"


@dataclass(frozen=True)
class Lease:
    """A held lock. ``fence`` goes with every commit."""

    lock_id: str
    owner: str
    run: str
    attempt: int
    fence: int


class Locks:
    """The one door to LocksTable."""

    def __init__(self, table: Any, clock: Clock, lease_ms: int = LEASE_MS, skew_ms: int = SKEW_MS) -> None:
        if lease_ms < 2 * RENEW_MS:
            raise BadConfig(f"a lease of {lease_ms} ms does not survive one missed renewal ({RENEW_MS} ms)")
        self.clock = clock
        self._table = table
        self._lease_ms = lease_ms
        self._skew_ms = skew_ms

    def acquire(self, lock_id: str, owner: str, run: str, attempt: int = 0) -> Lease:
        """Take the lock by the table of this module; ``attempt`` is the owner's redrive count.

        Raises:
            LockBusy: somebody else holds it.
            LockLost: a newer attempt of the same owner holds it.
            CorruptState: the item has no usable fence.
        """
        now = self.clock.now_ms()
        outcome = update_if(
            self._table,
            {"lock_id": lock_id},
            "SET #owner = :me, #run = :run, #attempt = :attempt, #until = :until, #since = :now, "
            "#fence = if_not_exists(#fence, :zero) + :one",
            f"{_SOUND} AND ({_FREE} OR (#owner <> :me AND (#until < :dead OR #run = :run)) "
            "OR (#owner = :me AND #attempt < :attempt))",
            {
                ":me": owner,
                ":run": run,
                ":attempt": attempt,
                ":until": now + self._lease_ms,
                ":now": now,
                ":zero": 0,
                ":one": 1,
                ":dead": now - self._skew_ms,
                ":number": "N",
            },
            _ALL_NAMES,
        )
        if isinstance(outcome, Applied):
            return Lease(lock_id, owner, run, attempt, whole(outcome.item, "fence"))
        return self._found(outcome.item, Lease(lock_id, owner, run, attempt, 0))

    def _found(self, item: Item, wanted: Lease) -> Lease:
        """What it means that the item was not free."""
        holder = _check(item, wanted.lock_id)
        if holder is None or holder.owner != wanted.owner:
            left = whole(item, "lease_until", 0) - self.clock.now_ms()
            raise LockBusy(
                f"held by {holder.owner if holder else 'somebody'} for another {left} ms", stream=wanted.lock_id
            )
        if holder.attempt > wanted.attempt:
            raise LockLost(
                f"attempt {holder.attempt} of the same execution holds it, this is attempt {wanted.attempt}",
                stream=wanted.lock_id,
            )
        lease = replace(wanted, fence=holder.fence)
        self.renew(lease)
        return lease

    def renew(self, lease: Lease) -> None:
        """Hold it for another ``lease_ms``; also after it ran out, as long as nobody took it.

        Raises:
            LockLost: somebody took it, or released it in our name.
        """
        outcome = self._extend(lease, "#owner = :me AND #fence = :fence", {":fence": lease.fence})
        if not isinstance(outcome, Applied):
            holder = _check(outcome.item, lease.lock_id)
            raise LockLost(
                f"fence {lease.fence} is over: "
                + (f"{holder.owner} holds fence {holder.fence}" if holder else "the lock was released"),
                stream=lease.lock_id,
            )

    def keep(self, lease: Lease) -> None:
        """Renewal by a helper of the owner (a chunk fetcher), which writes nothing that needs the fence.

        It extends the owner's lease whatever its fence or attempt, and never takes the lock: when it is free (released
        by the failure rule, then redriven), the work goes on and the commit decides.

        Raises:
            LockLost: another owner works on it now.
        """
        outcome = self._extend(lease, "#owner = :me", {})
        if isinstance(outcome, Applied):
            return
        holder = _check(outcome.item, lease.lock_id)
        if holder is not None and whole(outcome.item, "lease_until") >= self.clock.now_ms() - self._skew_ms:
            raise LockLost(f"{holder.owner} works on it now", stream=lease.lock_id)

    def _extend(self, lease: Lease, condition: str, values: Item) -> Any:
        names = {name: _NAMES[name] for name in ("#owner", "#until", "#fence") if name == "#until" or name in condition}
        return update_if(
            self._table,
            {"lock_id": lease.lock_id},
            "SET #until = :until",
            condition,
            {":me": lease.owner, ":until": self.clock.now_ms() + self._lease_ms, **values},
            names,
        )

    def advance(self, lease: Lease) -> Lease:
        """The owner's own next fence: whoever still works under an older one (a task of an earlier plan) is a zombie.

        A lost answer wastes a number, and no two calls ever get the same.

        Raises:
            LockLost: another owner, or another attempt, holds it.
        """
        outcome = update_if(
            self._table,
            {"lock_id": lease.lock_id},
            "SET #fence = #fence + :one, #until = :until",
            f"{_SOUND} AND #owner = :me AND #attempt = :attempt",
            {
                ":me": lease.owner,
                ":attempt": lease.attempt,
                ":one": 1,
                ":until": self.clock.now_ms() + self._lease_ms,
                ":number": "N",
            },
            {**_NAMES, "#attempt": "attempt"},
        )
        if not isinstance(outcome, Applied):
            holder = _check(outcome.item, lease.lock_id)
            raise LockLost(
                f"{holder.owner} holds fence {holder.fence}" if holder else "the lock was released",
                stream=lease.lock_id,
            )
        return replace(lease, fence=whole(outcome.item, "fence"))

    def ensure(self, lease: Lease, attempt: int | None = None) -> tuple[Lease, bool]:
        """Begin a guarded step: renew, or take the lost lock again under a new fence.

        ``attempt`` is the redrive count of the owner now (default: the lease's own). The second value says that the
        lease is another than before, so that what was planned under it must be read again.

        Raises:
            LockLost: another owner, or a newer attempt, holds it.
        """
        try:
            self.renew(lease)
            return lease, False
        except LockLost as lost:
            try:
                now_attempt = lease.attempt if attempt is None else attempt
                return self.acquire(lease.lock_id, lease.owner, lease.run, now_attempt), True
            except LockBusy as busy:
                raise LockLost(busy.reason, stream=lease.lock_id) from lost

    def release(self, lease: Lease, attempt: int | None = None) -> bool:
        """Give the lock back, under whatever fence this owner holds it; False if it was not held any more.

        A redriven step may have taken a newer fence than the ``lease`` that a later state still carries, so the owner
        and its attempt decide: an older attempt never releases a newer one's lock.
        """
        latest = max(lease.attempt, attempt or 0)
        outcome = update_if(
            self._table,
            {"lock_id": lease.lock_id},
            _REMOVE,
            "#owner = :me AND #attempt <= :attempt",
            {":me": lease.owner, ":attempt": latest},
            {n: v for n, v in _ALL_NAMES.items() if n != "#fence"},
        )
        return isinstance(outcome, Applied)

    def release_run(self, run: str, ended_ms: int | None = None) -> list[str]:
        """Release every lock of a failed run (the rule on its status change); returns the lock ids.

        Locks taken after ``ended_ms`` stay: they belong to a redrive that was faster than the event.
        """
        freed = []
        for item in self._held_by(run):
            lease = _check(item, item["lock_id"])
            if lease is None or (ended_ms is not None and whole(item, "acquired_at") > ended_ms):
                continue
            outcome = update_if(
                self._table,
                {"lock_id": lease.lock_id},
                _REMOVE,
                "#run = :run AND #fence = :fence",
                {":run": run, ":fence": lease.fence},
                _ALL_NAMES,
            )
            if isinstance(outcome, Applied):
                freed.append(lease.lock_id)
        return sorted(freed)

    def _held_by(self, run: str) -> list[Item]:
        """A scan: the table holds one small item a stream, and runs fail rarely."""
        found: list[Item] = []
        page: Item = {}
        while True:
            page = self._table.scan(
                ConsistentRead=True,
                FilterExpression="#run = :run",
                ExpressionAttributeNames={"#run": "run"},
                ExpressionAttributeValues={":run": run},
                **({"ExclusiveStartKey": page["LastEvaluatedKey"]} if page else {}),
            )
            found += page["Items"]
            if "LastEvaluatedKey" not in page:
                return found

    def holder(self, lock_id: str) -> Lease | None:
        """Who holds the lock now, expired or not (for ``status``)."""
        return _check(read(self._table, {"lock_id": lock_id}), lock_id)

    def fence(self, lock_id: str) -> int:
        """The newest fence that was given out, held or not; 0 where the lock was never taken, or its item is lost."""
        return whole(read(self._table, {"lock_id": lock_id}), "fence", 0)

    def condition_check(self, lease: Lease) -> dict[str, Any]:
        """The entry of ``TransactItems`` that makes a commit fail when the lease was taken.

        In the low-level client's types; the lease's expiry does not matter, as in ``renew``.
        """
        return {
            "ConditionCheck": {
                "TableName": self._table.name,
                "Key": {"lock_id": {"S": lease.lock_id}},
                "ConditionExpression": "#owner = :me AND #fence = :fence",
                "ExpressionAttributeNames": {"#owner": "owner", "#fence": "fence"},
                "ExpressionAttributeValues": {":me": {"S": lease.owner}, ":fence": {"N": str(lease.fence)}},
            }
        }


def _check(item: Item, lock_id: str) -> Lease | None:
    """The holder that an item names, None when it is free or absent.

    Raises:
        CorruptState: an item without a usable fence must not be taken: its fence would begin again.
    """
    if not item:
        return None
    if whole(item, "fence") < 1:
        raise CorruptState(f"{lock_id}: a fence of {item['fence']} was never given out")
    if "owner" not in item:
        return None
    if not all(isinstance(item.get(name), str) for name in ("owner", "run")):
        raise CorruptState(f"{lock_id}: owner or run is not text")
    whole(item, "lease_until")
    return Lease(lock_id, item["owner"], item["run"], whole(item, "attempt"), whole(item, "fence"))


class Renewer:
    """Called as often as the work likes, renews at most every ``every_ms``; the owner renewed just before."""

    def __init__(self, renew: Callable[[Lease], None], lease: Lease, clock: Clock, every_ms: int = RENEW_MS) -> None:
        self._renew = renew
        self._lease = lease
        self._clock = clock
        self._every_ms = every_ms
        self._last_ms = clock.now_ms()

    def tick(self) -> None:
        """Renew if it is time.

        Raises:
            LockLost: stop now and write nothing.
        """
        if self._clock.now_ms() - self._last_ms >= self._every_ms:
            self._renew(self._lease)
            self._last_ms = self._clock.now_ms()
