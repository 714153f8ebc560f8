"""Changed wishes: what changes, what does not, and what is refused before anything is touched.

The tests run in this order; each names the wishes that it leaves the host with.
"""

from __future__ import annotations

import copy
from typing import Any

from testinfra.host import Host

from testbed.host_tests import Play, get, main_pid, only_on

KEY = "canary-4b1f0c7e9d52"
CODE_KEY_FILE = "/etc/kloros-llm/credentials/code.key"


def pids(host: Host) -> tuple[int, int]:
    return main_pid(host, "live"), main_pid(host, "code")


def test_a_run_without_a_change_changes_nothing(host: Host, play: Play) -> None:
    before = pids(host)
    run = play()
    assert run.returncode == 0, run.output
    assert run.changed == 0, run.output
    assert pids(host) == before


def test_only_the_instance_whose_wish_changed_restarts(
    host: Host, play: Play, wishes: dict[str, Any]
) -> None:
    """Leaves `code` with another context, options and a key."""
    live, code = pids(host)
    changed = copy.deepcopy(wishes)
    changed["code"] |= {
        "context": 3072,
        "api_key": KEY,
        "extra": {"reasoning-budget": 0, "slot-prompt-similarity": 0.5},
    }
    foretold = play("--check", "--diff", llama_instances=changed)
    assert foretold.returncode == 0, foretold.output
    assert "+LLAMA_ARG_CTX_SIZE=3072" in foretold.output
    assert pids(host) == (live, code)

    run = play("--diff", verbose=True, llama_instances=changed)
    assert run.returncode == 0, run.output
    assert run.changed == foretold.changed > 0
    assert main_pid(host, "live") == live
    assert main_pid(host, "code") not in (0, code)
    arguments = host.file(f"/proc/{main_pid(host, 'code')}/cmdline").content_string.split("\0")
    assert arguments[1:5] == ["--reasoning-budget", "0", "--slot-prompt-similarity", "0.5"]
    assert KEY not in foretold.output + run.output


def test_the_key_is_asked_for_and_shown_nowhere(host: Host) -> None:
    ask = (
        "import sys, json, urllib.request as u; key = open(sys.argv[2]).read().strip(); "
        "headers = {'Authorization': 'Bearer ' + key}; "
        "print(u.urlopen(u.Request(sys.argv[1], headers=headers)).read().decode())"
    )
    url = "http://127.0.0.1:8081/props"
    allowed = host.check_output("python3 -c %s %s %s", ask, url, CODE_KEY_FILE)
    assert '"n_ctx":3072' in allowed
    assert "401" in host.run("python3 -c %s %s %s", ask, url, "/etc/hostname").stderr

    key_file = host.file(CODE_KEY_FILE)
    assert (key_file.user, key_file.group, key_file.mode) == ("root", "root", 0o600)
    assert key_file.content_string == f"{KEY}\n"
    pid = main_pid(host, "code")
    for path in (
        "/etc/kloros-llm/plan.json",
        "/etc/kloros-llm/instances/code.env",
        "/etc/systemd/system/kloros-llama-code.service",
        f"/proc/{pid}/environ",
        f"/proc/{pid}/cmdline",
    ):
        assert KEY not in host.file(path).content_string
    assert KEY not in host.check_output("journalctl --no-pager --boot")
    # The pattern is in a file: sudo logs the arguments.
    look = f"grep --recursive --files-with-matches --file={CODE_KEY_FILE}"
    found = host.run(f"{look} /etc /opt /var /tmp /root /home")
    assert found.stdout.split() == [CODE_KEY_FILE]


def test_back_to_the_inventory(host: Host, play: Play) -> None:
    live = main_pid(host, "live")
    run = play()
    assert run.returncode == 0, run.output
    assert main_pid(host, "live") == live
    assert get(host, 8081, "/props")["default_generation_settings"]["n_ctx"] == 2048
    assert not host.file(CODE_KEY_FILE).exists


@only_on("kloros-trixie")
def test_a_run_cut_short_is_made_good(host: Host, play: Play) -> None:
    """Killed after writing files and before restarting: the next run restarts what is stale."""
    live, _ = pids(host)
    host.check_output("sed -i s/DIGEST=/DIGEST=f/ /etc/kloros-llm/instances/code.env")
    host.check_output("systemctl restart kloros-llama-code")
    # Now files say what is wished, and the process that runs was started with something else.
    host.check_output("sed -i s/DIGEST=f/DIGEST=/ /etc/kloros-llm/instances/code.env")
    stale = main_pid(host, "code")
    run = play()
    assert run.returncode == 0, run.output
    assert run.changed == 1, run.output
    assert main_pid(host, "live") == live
    assert main_pid(host, "code") not in (0, stale)


@only_on("kloros-trixie")
def test_an_unknown_option_is_refused_before_anything_restarts(
    host: Host, play: Play, wishes: dict[str, Any]
) -> None:
    before = pids(host)
    env = host.file("/etc/kloros-llm/instances/live.env").content_string
    wrong = copy.deepcopy(wishes)
    wrong["live"]["extra"] = {"top-kk": 7}
    run = play(llama_instances=wrong)
    assert run.returncode != 0
    assert "No instance was touched" in run.output
    assert "llama_instances.live.extra.top-kk" in run.output
    assert pids(host) == before
    assert host.file("/etc/kloros-llm/instances/live.env").content_string == env


@only_on("kloros-trixie")
def test_a_model_that_does_not_load_fails_with_the_servers_own_words(
    host: Host, play: Play, wishes: dict[str, Any], models: dict[str, Any]
) -> None:
    """The other instance is left alone. Leaves `code` broken."""
    live, _ = pids(host)
    folder = "/var/lib/kloros-llm/models"
    whole = f"{folder}/SmolLM2-135M-Instruct.Q4_1.gguf"
    # Headers do not tell that weights are no numbers.
    fill = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(60_000_000); f.write(b'\\xff' * 4096)"
    host.check_output(f"cp {whole} /srv/bad.gguf")
    host.check_output("python3 -c %s /srv/bad.gguf", fill)
    changed = copy.deepcopy(wishes)
    changed["code"] |= {"model": "bad:135m", "extra": {"check-tensors": True}}
    bad = {"bad:135m": {"source": "file:/srv/bad.gguf"}}
    run = play(llama_instances=changed, gguf_models=models | bad)
    assert run.returncode != 0
    assert "kloros-llama-code.service did not become ready" in run.output
    assert "has invalid data" in run.output
    assert main_pid(host, "live") == live
    assert get(host, 8080, "/health") == {"status": "ok"}
    host.check_output(f"sh -c 'rm /srv/bad.gguf {folder}/bad.gguf*'")


@only_on("kloros-trixie")
def test_a_model_that_is_cut_off_is_refused_before_anything_changes(
    host: Host, play: Play, wishes: dict[str, Any], models: dict[str, Any]
) -> None:
    whole = "/var/lib/kloros-llm/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    host.check_output(f"sh -c 'head -c 60000000 {whole} > /srv/cut.gguf'")
    changed = copy.deepcopy(wishes)
    changed["code"]["model"] = "cut:135m"
    cut = {"cut:135m": {"source": "file:/srv/cut.gguf"}}
    run = play(llama_instances=changed, gguf_models=models | cut)
    host.check_output("rm /srv/cut.gguf")
    assert run.returncode != 0
    assert run.changed == 0
    assert "Nothing was changed" in run.output
    assert "gguf_models.cut:135m" in run.output


@only_on("kloros-trixie")
def test_an_instance_taken_out_is_gone(host: Host, play: Play, wishes: dict[str, Any]) -> None:
    """Also a broken one, and not one that somebody else made. Leaves `live` alone."""
    live = main_pid(host, "live")
    foreign = "/etc/systemd/system/kloros-llama-mine.service"
    host.check_output(f"sh -c 'printf \"[Service]\\nExecStart=/bin/true\\n\" > {foreign}'")
    run = play(llama_instances={"live": wishes["live"]})
    assert run.returncode == 0, run.output
    assert (main_pid(host, "live"), main_pid(host, "code")) == (live, 0)
    for path in (
        "/etc/systemd/system/kloros-llama-code.service",
        "/etc/kloros-llm/instances/code.env",
        "/var/lib/kloros-llama-code",
    ):
        assert not host.file(path).exists
    assert host.run("find /etc/systemd/system -name 'kloros-llama-code*'").stdout == ""
    assert host.run("systemctl cat kloros-llama-code").rc != 0
    assert host.file(foreign).exists
    host.check_output(f"rm {foreign}")
    assert host.run("systemctl is-system-running").stdout.strip() == "running"


@only_on("kloros-trixie")
def test_an_instance_gives_up_its_port_to_another(
    host: Host, play: Play, wishes: dict[str, Any]
) -> None:
    """Leaves the two with each other's ports."""
    swapped = copy.deepcopy(wishes)
    swapped["live"]["port"], swapped["code"]["port"] = 8081, 8080
    run = play(llama_instances=swapped)
    assert run.returncode == 0, run.output
    assert get(host, 8081, "/props")["total_slots"] == 2
    assert get(host, 8080, "/props")["total_slots"] == 1


@only_on("kloros-trixie")
def test_two_instances_swap_their_ports(host: Host, play: Play) -> None:
    """Leaves the host as the inventory wishes."""
    run = play()
    assert run.returncode == 0, run.output
    assert get(host, 8080, "/props")["total_slots"] == 2
    assert get(host, 8081, "/props")["total_slots"] == 1


@only_on("kloros-trixie")
def test_everything_wrong_is_said_at_once_and_nothing_changes(
    host: Host, play: Play, wishes: dict[str, Any]
) -> None:
    before = pids(host)
    plan = host.file("/etc/kloros-llm/plan.json").content_string
    host.check_output(
        "systemd-run --unit=vosk --property=Type=exec python3 -m http.server --bind 127.0.0.1 8090"
    )
    try:
        wrong = copy.deepcopy(wishes)
        wrong["live"] |= {"prot": 1, "context": "big"}
        wrong["code"]["port"] = 8090
        wrong["deep"] = {"model": "smollm2:135b", "port": 8090}
        run = play(llama_instances=wrong)
        variables = play(llama_cpp_jbos=3, llama_cpp_source="svn")
    finally:
        host.check_output("systemctl stop vosk")
    assert run.returncode != 0
    assert run.changed == 0
    said = " ".join(run.output.split())
    for words in (
        "Nothing was changed",
        "llama_instances.live.prot: there is no such key",
        "llama_instances.live.context: 'big'",
        "llama_instances.deep.model: there is no model 'smollm2:135b'",
        "write 'smollm2:135m' if that was meant",
        "port 8090 is held by python3",
        "of vosk.service",
    ):
        assert words in said, words
    assert variables.returncode != 0
    assert variables.changed == 0
    assert "llama_cpp_jbos: there is no such variable" in variables.output
    assert "git, archive, package" in variables.output
    assert pids(host) == before
    assert host.file("/etc/kloros-llm/plan.json").content_string == plan


@only_on("kloros-trixie")
def test_a_system_that_nobody_tried_is_refused(host: Host, play: Play) -> None:
    host.check_output("sed -i s/^ID=debian/ID=haiku/ /usr/lib/os-release")
    try:
        run = play()
    finally:
        host.check_output("sed -i s/^ID=haiku/ID=debian/ /usr/lib/os-release")
    assert run.returncode != 0
    assert run.changed == 0
    assert "operating system: Debian" in run.output
