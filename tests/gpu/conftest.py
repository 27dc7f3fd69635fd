"""What `make test-gpu` leaves beside junit.xml and stdout.log: pytest_report.json and system.json."""

from __future__ import annotations

import os
from pathlib import Path

from armillary import system
from armillary.run_folder import write_json

TESTS: list[dict] = []


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else report.longreprtext
        TESTS.append({"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "reason": reason})


def pytest_sessionfinish(session, exitstatus):
    if folder := os.environ.get("ARMILLARY_BATTERY"):
        counts = {o: sum(t["outcome"] == o for t in TESTS) for o in ("passed", "skipped", "failed")}
        report = {"exit_status": int(exitstatus), "counts": counts, "tests": TESTS}
        write_json(Path(folder) / "pytest_report.json", report)
        write_json(Path(folder) / "system.json", system.diagnose(Path()))
