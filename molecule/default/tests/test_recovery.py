"""An instance comes back: after a crash, and after a reboot of the host."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from testinfra.host import Host

from testbed.host_tests import PROJECT, get, host_name, main_pid, only_on

DEADLINE_S = 120


def wait_until_active(host: Host, instance: str, other_than: int) -> int:
    """The new main process of an instance, within a bounded time."""
    unit = f"kloros-llama-{instance}.service"
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        pid = main_pid(host, instance)
        if pid not in (0, other_than) and host.run(f"systemctl is-active {unit}").rc == 0:
            return pid
        time.sleep(1)
    raise AssertionError(f"{unit} did not come back within {DEADLINE_S} s")


def test_a_killed_server_comes_back(host: Host) -> None:
    before, other = main_pid(host, "live"), main_pid(host, "code")
    host.check_output(f"kill -KILL {before}")
    wait_until_active(host, "live", before)
    assert get(host, 8080, "/health") == {"status": "ok"}
    assert main_pid(host, "code") == other


@only_on("kloros-trixie")
def test_a_server_that_keeps_failing_stays_failed(host: Host) -> None:
    """The restart limit holds, and the next start by hand works."""
    unit = "kloros-llama-live.service"
    limit = int(host.check_output(f"systemctl show --property=StartLimitBurst --value {unit}"))
    assert limit == 5
    # Without its model the server cannot start; the limit must end the restarts.
    model = "/var/lib/kloros-llm/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    host.check_output(f"mv {model} {model}.away")
    try:
        host.check_output(f"systemctl reset-failed {unit}")
        failed = host.run(f"systemctl restart {unit}")
        assert failed.rc != 0
        ends = time.monotonic() + DEADLINE_S
        state = "--property=ActiveState,Result --value"
        while time.monotonic() < ends:
            if host.check_output(f"systemctl show {state} {unit}").split()[-1:] == ["failed"]:
                break
            time.sleep(1)
        assert (
            host.check_output(f"systemctl show --property=ActiveState --value {unit}") == "failed"
        )
    finally:
        host.check_output(f"mv {model}.away {model}")
    host.check_output(f"systemctl reset-failed {unit}")
    host.check_output(f"systemctl start {unit}")
    assert get(host, 8080, "/health") == {"status": "ok"}


@only_on("kloros-trixie")
def test_another_server_on_the_port_is_not_taken_for_it(host: Host) -> None:
    """It answers /health with 200 as well, but it is not the unit's own process."""
    host.check_output("systemctl stop kloros-llama-code")
    host.check_output("sh -c 'mkdir -p /run/other && echo ok > /run/other/health'")
    host.check_output(
        "systemd-run --unit=other --property=Type=exec --working-directory=/run/other "
        "python3 -m http.server --bind 127.0.0.1 8081"
    )
    try:
        refused = host.run("systemctl start kloros-llama-code")
    finally:
        host.check_output("systemctl stop other")
    assert refused.rc != 0
    host.check_output("systemctl reset-failed kloros-llama-code")
    host.check_output("systemctl start kloros-llama-code")
    assert get(host, 8081, "/health") == {"status": "ok"}


def test_everything_is_there_after_a_reboot(host: Host) -> None:
    booted = host.check_output("cat /proc/1/stat").split()[21]
    subprocess.run(
        [sys.executable, "-m", "testbed.container_host", "reboot", host_name(host)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=True,
    )
    assert host.check_output("cat /proc/1/stat").split()[21] != booted
    for instance, port in (("live", 8080), ("code", 8081)):
        wait_until_active(host, instance, 0)
        assert get(host, port, "/health") == {"status": "ok"}
