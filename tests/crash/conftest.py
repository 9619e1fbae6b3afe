"""The crash matrix's table at the end of the session, whichever processes the parts of it ran in."""

from __future__ import annotations

import json

from _pytest.terminal import TerminalReporter

from tests.crash.report import Tally, merged, summary, table


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    tallies, seconds = [], 0.0
    for report in [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]:
        found = [value for name, value in getattr(report, "user_properties", ()) if name == "crash_matrix"]
        if found and report.when == "call":
            tallies += [Tally(*fields) for value in found for fields in json.loads(value)]
            seconds += report.duration
    if tallies:
        terminalreporter.section("crash matrix: runs · lost · duplicated")
        for line in (*table(merged(tallies)).splitlines(), summary(merged(tallies), seconds)):
            terminalreporter.write_line(line)
