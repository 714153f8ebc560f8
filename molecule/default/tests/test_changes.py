"""Changed wishes: what changes, what does not, and what is refused before anything is touched."""

from __future__ import annotations

import copy
import json
from typing import Any

from conftest import Play, get, main_pid
from testinfra.host import Host

KEY = "canary-4b1f0c7e9d52"


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
    live, code = pids(host)
    changed = copy.deepcopy(wishes)
    changed["code"] |= {
        "context": 3072,
        "extra": {"reasoning-budget": 0, "slot-prompt-similarity": 0.5},
    }

    foretold = play("--check", "--diff", llama_instances=changed)
    assert foretold.returncode == 0, foretold.output
    assert foretold.changed > 0
    assert "+LLAMA_ARG_CTX_SIZE=3072" in foretold.output
    assert pids(host) == (live, code)

    run = play(llama_instances=changed)
    assert run.returncode == 0, run.output
    assert run.changed == foretold.changed, run.output
    assert main_pid(host, "live") == live
    assert main_pid(host, "code") not in (0, code)
    assert get(host, 8081, "/props")["default_generation_settings"]["n_ctx"] == 3072
    environment = host.file(f"/proc/{main_pid(host, 'code')}/cmdline").content_string
    assert environment.split("\0")[1:5] == [
        "--reasoning-budget",
        "0",
        "--slot-prompt-similarity",
        "0.5",
    ]

    back = play()
    assert back.returncode == 0, back.output
    assert main_pid(host, "live") == live


def test_a_run_cut_short_is_made_good(host: Host, play: Play) -> None:
    """Killed after writing files and before restarting: the next run restarts what is stale."""
    live, code = pids(host)
    env_file = "/etc/kloros-llm/instances/code.env"
    # The process that runs carries another digest than the file on disk will.
    host.check_output(f"sed -i s/DIGEST=/DIGEST=f/ {env_file}")
    host.check_output("systemctl restart kloros-llama-code")
    stale = main_pid(host, "code")
    run = play()
    assert run.returncode == 0, run.output
    assert main_pid(host, "live") == live
    assert main_pid(host, "code") not in (0, code, stale)
    assert play().changed == 0


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


def test_a_model_that_does_not_load_fails_with_the_servers_own_words(
    host: Host, play: Play, wishes: dict[str, Any], models: dict[str, Any]
) -> None:
    """The other instance is left alone, and mending the wish mends the instance."""
    live, _ = pids(host)
    broken = "/var/lib/kloros-llm/broken.gguf"
    host.check_output(f"sh -c 'echo no model at all > {broken}'")
    changed = copy.deepcopy(wishes)
    changed["code"]["model"] = "broken:1b"
    run = play(
        llama_instances=changed,
        gguf_models={**models, "broken:1b": {"source": f"file:{broken}"}},
    )
    assert run.returncode != 0
    assert "kloros-llama-code.service did not become ready" in run.output
    assert "failed to load model" in run.output
    assert main_pid(host, "live") == live
    assert get(host, 8080, "/health") == {"status": "ok"}

    mended = play()
    assert mended.returncode == 0, mended.output
    assert main_pid(host, "live") == live
    assert get(host, 8081, "/health") == {"status": "ok"}
    models_dir = "/var/lib/kloros-llm/models"
    host.check_output(f"rm {broken} {models_dir}/broken.gguf {models_dir}/broken.gguf.json")


def test_an_instance_taken_out_is_gone(host: Host, play: Play, wishes: dict[str, Any]) -> None:
    live = main_pid(host, "live")
    run = play(llama_instances={"live": wishes["live"]})
    assert run.returncode == 0, run.output
    assert main_pid(host, "live") == live
    assert main_pid(host, "code") == 0
    for path in (
        "/etc/systemd/system/kloros-llama-code.service",
        "/etc/kloros-llm/instances/code.env",
        "/var/lib/kloros-llama-code",
    ):
        assert not host.file(path).exists
    assert host.run("find /etc/systemd/system -name 'kloros-llama-code*'").stdout == ""
    assert play(llama_instances={"live": wishes["live"]}).changed == 0

    back = play()
    assert back.returncode == 0, back.output
    assert main_pid(host, "live") == live


def test_ports_can_be_swapped(host: Host, play: Play, wishes: dict[str, Any]) -> None:
    swapped = copy.deepcopy(wishes)
    swapped["live"]["port"], swapped["code"]["port"] = 8081, 8080
    run = play(llama_instances=swapped)
    assert run.returncode == 0, run.output
    assert get(host, 8081, "/props")["total_slots"] == 2
    back = play()
    assert back.returncode == 0, back.output
    assert get(host, 8080, "/props")["total_slots"] == 2


def test_a_key_is_asked_for_and_shown_nowhere(
    host: Host, play: Play, wishes: dict[str, Any]
) -> None:
    locked = copy.deepcopy(wishes)
    locked["code"]["api_key"] = KEY
    run = play("--diff", verbose=True, llama_instances=locked)
    assert run.returncode == 0, run.output
    ask = (
        "import sys, urllib.request as u; "
        "u.urlopen(u.Request(sys.argv[1], headers={'Authorization': sys.argv[2]}))"
    )
    url = "http://127.0.0.1:8081/v1/models"
    assert host.run("python3 -c %s %s %s", ask, url, f"Bearer {KEY}").rc == 0
    assert "401" in host.run("python3 -c %s %s %s", ask, url, "Bearer wrong").stderr

    key_file = host.file("/etc/kloros-llm/credentials/code.key")
    assert (key_file.user, key_file.group, key_file.mode) == ("root", "root", 0o600)
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
    # What the test itself handed over on the command line is in the log of -vvv; nothing else is.
    given = json.dumps({"llama_instances": locked})
    assert KEY not in run.output.replace(given, "")

    back = play()
    assert back.returncode == 0, back.output
    assert not key_file.exists


def test_everything_wrong_is_said_at_once_and_nothing_changes(
    host: Host, play: Play, wishes: dict[str, Any]
) -> None:
    before = pids(host)
    plan = host.file("/etc/kloros-llm/plan.json").content_string
    host.check_output("systemd-run --unit=vosk python3 -m http.server --bind 127.0.0.1 8090")
    try:
        wrong = copy.deepcopy(wishes)
        wrong["live"] |= {"prot": 1, "context": "big"}
        wrong["code"]["port"] = 8080
        wrong["deep"] = {"model": "smollm2:135b", "port": 8090}
        wrong["vosk"] = {"model": "smollm2:135m", "port": 8090}
        run = play(llama_instances=wrong)
        assert run.returncode != 0
        assert run.changed == 0
        for words in (
            "Nothing was changed",
            "llama_instances.live.prot: there is no such key",
            "llama_instances.live.context: 'big'",
            "llama_instances.deep.model: there is no model 'smollm2:135b'",
            "write 'smollm2:135m' if that was meant",
            "of vosk.service",
        ):
            assert words in run.output.replace("\n        ", " "), words
        variables = play(llama_cpp_jbos=3, llama_cpp_source="svn")
        assert variables.returncode != 0
        assert variables.changed == 0
        assert "llama_cpp_jbos: there is no such variable" in variables.output
        assert "git, archive, package" in variables.output
    finally:
        host.check_output("systemctl stop vosk")
    assert pids(host) == before
    assert host.file("/etc/kloros-llm/plan.json").content_string == plan


def test_a_system_that_nobody_tried_is_refused(host: Host, play: Play) -> None:
    release = host.file("/etc/os-release").content_string
    host.check_output("sed -i s/^ID=debian/ID=haiku/ $(readlink -f /etc/os-release)")
    try:
        run = play()
    finally:
        host.check_output("sed -i s/^ID=haiku/ID=debian/ $(readlink -f /etc/os-release)")
    assert run.returncode != 0
    assert run.changed == 0
    assert "operating system: Debian" in run.output
    assert host.file("/etc/os-release").content_string == release
