"""Random schedules as a hypothesis state machine: many executions and workers, wrong clocks, failing stores.

A rule that did one thing only would almost never bring an execution to its end, and a checker that sees nothing
finish sees nothing at all. So ``bustle`` does many, and ``REACHED`` counts what was come to.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from schemahub.streams import Stream
from tests.simulation.asl import ABORTED, FAILED, RUNNING, Execution
from tests.simulation.workers import FAULTS, Worker
from tests.simulation.world import BTC, BTCUSDT, World

REACHED: Counter[str] = Counter()
MAX_RUNNING = 3
MAX_WORKERS = 8
MAX_STALLED = 4
MAX_SKEW_MS = 180_000
TELLING = ("s3.put_object", "dynamodb.transact_write_items", "glue.update_table")
PRODUCTS = ((BTC,), (BTCUSDT,), (BTC, BTCUSDT))
SEEDS = st.integers(0, 2**32)
SICKNESS = st.sampled_from((0.0, 0.02, 0.05, 0.15))


class Bustle:
    """Chance lets somebody do something, again and again."""

    def __init__(self, world: World, seed: int, sickness: float = 0) -> None:
        self.world, self.chance, self.sickness = world, random.Random(seed), sickness

    def go(self, moves: int) -> None:
        for _ in range(moves):
            draw = self.chance.random()
            if draw < 0.48:
                self.hire()
            elif draw < 0.93:
                self.work()
            elif draw < 0.945:
                self.give_up()
            elif draw < 0.985:
                self.stall()
            elif draw < 0.995:
                self.wake()
            else:
                self.world.wait(self.chance.choice((1, 5, 30, 120)))

    def hire(self) -> None:
        """A Task that is due gets a worker; when none is, time passes."""
        world = self.world
        ready = [e for top in world.executions for e in top.ready()]
        if len(world.workers) >= MAX_WORKERS:
            self.work()
        elif ready:
            one = min(self.chance.sample(ready, min(2, len(ready))), key=lambda e: e.due_ms)
            world.wait(max(0, one.due_ms - world.clock.now_ms()) / 1000)
            skewed = self.chance.random() < 0.2
            world.hire(one, self.chance.randrange(-MAX_SKEW_MS, MAX_SKEW_MS) if skewed else 0)
        elif not self.running():
            self.go_on()

    def go_on(self) -> None:
        """Nothing runs: a new run, or an old one again."""
        if self.chance.random() < 0.5 or not self.redrive():
            self.world.wait(self.chance.choice((10, 100, 400)))
            self.world.start("ingest", *self.chance.choice(PRODUCTS))

    def work(self) -> None:
        """One worker makes some calls, perhaps all that it has left."""
        awake = [w for w in self.world.workers if not w.stalled]
        if not awake:
            return
        worker = self.chance.choice(awake)
        for _ in range(self.chance.choice((1, 2, 3, 5, 8, 1000, 1000, 1000))):
            if worker.over:
                return
            fault = self.chance.choice(FAULTS) if self.chance.random() < self.sickness else ""
            self.world.step(worker, fault)

    def give_up(self) -> None:
        """Step Functions does not wait any longer for a worker, who does not know it; sometimes for good."""
        if self.world.workers:
            self.world.give_up(self.chance.choice(self.world.workers), retry=self.chance.random() < 0.6)

    def stall(self) -> None:
        """A worker stops just before it would write, for long: others take over meanwhile."""
        awake = [w for w in self.world.workers if not w.stalled]
        if not awake or len(self.world.workers) - len(awake) >= MAX_STALLED:
            return
        deciding = [w for w in awake if w.invocation.function in ("commit_segments", "publish")]
        worker = self.chance.choice(deciding or awake)
        while not worker.over and not worker.call.endswith(TELLING):
            self.world.step(worker)
        if not worker.over and self.chance.random() < 0.3:
            self.world.step(worker)
            while not worker.over and not worker.call.endswith(TELLING):
                self.world.step(worker)
        if not worker.over and self.chance.random() < 0.4:
            self.replace(worker)
        elif not worker.over:
            worker.stalled = True
            self.world.counts["stalls"] += 1
            self.chance.choice((self.world.give_up, lambda w: w.invocation.execution.top.abort()))(worker)
            self.world.wait(self.chance.choice((0, 100)))

    def replace(self, zombie: Worker) -> None:
        """Its state is tried again, and it wakes as soon as that has been done."""
        self.world.give_up(zombie)
        state = zombie.invocation.execution
        if state in state.top.ready():
            self.world.wait(max(0, state.due_ms - self.world.clock.now_ms()) / 1000)
            self.world.finish(self.world.hire(state))
        self.world.counts["zombies that woke"] += 1
        self.world.finish(zombie)

    def stop(self) -> None:
        """StopExecution."""
        if running := self.running():
            self.chance.choice(running).abort()

    def redrive(self) -> bool:
        failed = [e for e in self.world.executions if e.status in (FAILED, ABORTED)]
        if not failed or len(self.running()) >= MAX_RUNNING:
            return False
        self.chance.choice(failed).redrive()
        self.world.counts["redrives"] += 1
        return True

    def hear(self) -> None:
        """The failure rule is told of an end, perhaps long after it."""
        if self.world.events:
            self.world.tell(self.world.events.pop(self.chance.randrange(len(self.world.events))))

    def wake(self) -> None:
        """A zombie goes on to its end."""
        zombies = [w for w in self.world.workers if not w.invocation.awaited]
        if zombies:
            self.world.counts["zombies that woke"] += 1
            self.world.finish(self.chance.choice(zombies))

    def running(self) -> list[Execution]:
        return [e for e in self.world.executions if e.status == RUNNING]


class Schedules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        THE_WORLD[:] = [self.world]

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        """Mostly something is there already: a world in its first run has little to break."""
        self.world.random.seed(seed)
        if seed % 4:
            self.world.run(self.world.start())
            self.world.wait(120)
        self.world.start()

    @precondition(lambda self: len(Bustle(self.world, 0).running()) < MAX_RUNNING)
    @rule(machine=st.sampled_from(("ingest", "ingest", "transform")), streams=st.sampled_from(PRODUCTS))
    def start(self, machine: str, streams: tuple[Stream, ...]) -> None:
        self.world.start(machine, *streams)

    @rule(seed=SEEDS, moves=st.integers(40, 120), sickness=SICKNESS)
    def bustle(self, seed: int, moves: int, sickness: float) -> None:
        Bustle(self.world, seed, sickness).go(moves)

    @rule(seed=SEEDS, moves=st.integers(5, 60), sickness=SICKNESS, seconds=st.sampled_from((60, 100, 200)))
    def bustle_and_pause(self, seed: int, moves: int, sickness: float, seconds: int) -> None:
        """Everybody stands still for longer than a lease lasts, and goes on."""
        bustle = Bustle(self.world, seed, sickness)
        bustle.go(moves)
        self.world.wait(seconds)
        bustle.go(moves)

    @rule(seed=SEEDS, what=st.sampled_from(("redrive", "wake", "hear", "give_up", "stop")))
    def somebody_meddles(self, seed: int, what: str) -> None:
        getattr(Bustle(self.world, seed), what)()

    @rule(lags=st.booleans(), down=st.sampled_from((True, False, False, False)))
    def the_weather_changes(self, lags: bool, down: bool) -> None:
        """The index lags, the exchange is down, or not."""
        self.world.stores.streams.let_the_index_lag(lags)
        self.world.exchange_down = down

    def teardown(self) -> None:
        try:
            if not self.world.model.broken:
                self.world.come_to_rest()
        finally:
            self.world.close()
            REACHED["schedules"] += 1
            REACHED.update(self.world.counts)


THE_WORLD: list[World] = []
"""The world of the schedule that runs now, for a planted bug that must look around in it."""
