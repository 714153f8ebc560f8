"""Run Molecule scenarios side by side, and fail where one ran no test: Molecule itself would pass.

Of several at once, each line that is printed begins with the scenario's name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def scenarios() -> list[str]:
    """The names of all scenarios."""
    return sorted(path.parent.name for path in PROJECT.glob("molecule/*/molecule.yml"))


def tests_run(report: Path) -> int:
    """The number of tests that a JUnit report tells of, skipped ones left out."""
    if not report.exists():
        return 0
    suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - pytest wrote it just now
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def run(scenario: str, prefix: str = "") -> bool:
    """Run one scenario from `destroy` to `destroy`; tell whether it passed with tests run."""
    report = PROJECT / ".testbed" / f"junit-{scenario}.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    molecule = str(Path(sys.executable).parent / "molecule")
    command = [molecule, "test", "--no-command-borders", "--scenario-name", scenario]
    environment = {**os.environ, "TESTBED_JUNIT": str(report)}
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(f"{prefix}{line}", end="", flush=True)
    status = process.returncode
    count = tests_run(report)
    print(f"scenario {scenario}: {count} tests run, exit status {status}", flush=True)
    if not count:
        print(f"error: scenario {scenario} ran no test", file=sys.stderr)
    return status == 0 and count > 0


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", choices=scenarios())
    parser.add_argument("--all", action="store_true", help="every scenario, side by side")
    given = parser.parse_args()
    if given.all == bool(given.scenario):
        parser.error("name a scenario, or say --all")
    if given.scenario:
        return 0 if run(given.scenario) else 1
    chosen = scenarios()
    with ThreadPoolExecutor(len(chosen)) as pool:
        passed = pool.map(run, chosen, [f"{scenario} | " for scenario in chosen])
        return 0 if all(list(passed)) else 1


if __name__ == "__main__":
    sys.exit(main())
