"""What a Distributed Map hands on: with more than 86 failed children, too much for a payload unless it goes to S3."""

from __future__ import annotations

from copy import deepcopy

from tests.simulation.asl import FAILED_CHILD_BYTES, MAX_PAYLOAD, SUCCEEDED, Execution, load
from tests.simulation.test_asl import CHILD, Script
from tests.simulation.world import BTC, World, small_pages

OUTAGE = 110
"""Failed chunks, of 3 kB each: 330 kB."""


def outage(script: Script, writes: bool = True) -> Execution:
    """A run of one stream whose exchange goes away after two chunks; without ResultWriters if they are taken away."""
    if not writes:
        machine = deepcopy(script.service.machines["ingest"])
        streams = machine["States"]["IngestStreams"]
        del streams["ResultWriter"], streams["ItemProcessor"]["States"]["FetchChunks"]["ResultWriter"]
        script.service.machines["ingest"] = machine
    for number in range(2, 2 + OUTAGE):
        script.failing[f"{CHILD}FetchChunks[{number}]/FetchChunk"] = "BadMapping"
    execution = script.service.start("ingest", {"schema_version": 1})
    script.run(execution)
    return execution


def test_without_a_result_writer_an_outage_ends_the_stream_before_its_prefix_is_committed() -> None:
    """The interpreter does as AWS: what this file is about."""
    script = Script(chunks=2 + OUTAGE)
    execution = outage(script, writes=False)
    assert f"{CHILD}CommitSegments" not in [place for place, _ in script.called]
    [child] = [e for e in script.ended if e.error == "States.DataLimitExceeded"]
    assert child.at == "FetchChunks"
    assert execution.status == SUCCEEDED, "the stream's failure is tolerated, and found by CloseRun"


def test_a_few_failed_children_fit_and_many_do_not() -> None:
    fits = MAX_PAYLOAD // FAILED_CHILD_BYTES
    for failed, error in ((fits - 2, ""), (fits + 2, "States.DataLimitExceeded")):
        script = Script(chunks=failed)
        machine = deepcopy(load("ingest"))
        del machine["States"]["IngestStreams"]["ItemProcessor"]["States"]["FetchChunks"]["ResultWriter"]
        script.service.machines["ingest"] = machine
        script.failing |= {f"{CHILD}FetchChunks[{n}]/FetchChunk": "BadMapping" for n in range(failed)}
        script.run(script.service.start("ingest", {"schema_version": 1}))
        errors = {e.error for e in script.ended if e.at == "FetchChunks"}
        assert errors == ({error} if error else set())


def test_the_results_go_to_the_plan_of_the_run() -> None:
    script = Script()
    written: list[tuple[str, str]] = []
    script.service.written = lambda bucket, key: written.append((bucket, key))
    script.run(script.service.start("ingest", {"schema_version": 1}))
    assert [bucket for bucket, _ in written] == ["b"] * 3
    prefixes = [key.rsplit("/", 2)[0] for _, key in written]
    assert prefixes == ["plans/r/x/results", "plans/r/results", "plans/t/results"]


def test_an_outage_of_a_hundred_chunks_still_commits_what_came_before_it() -> None:
    with small_pages():
        world = World()
        try:
            world.run(world.start("ingest", BTC))
            before = world.model.marks[BTC]["high"]
            world.wait(12_000)
            top = world.start("ingest", BTC)
            for _ in range(3):
                world.finish(world.hire(world.run_to(top, "FetchChunk")))
            failed = 0
            while "CommitSegments" not in {e.at for e in top.ready()}:
                [*_, chunk] = [e for e in top.ready() if e.at == "FetchChunk"]
                chunk.invoke().fail("ExchangeUnavailable", retry=False)
                failed += 1
            assert failed > 100
            [stream] = top.children or []
            assert stream.at == "CommitSegments", stream.error
            world.run_to(top, "FetchRemainingChunk")
            assert world.model.marks[BTC]["high"] > before
            world.run(top)
            assert top.status == SUCCEEDED, top.error
        finally:
            world.close()
