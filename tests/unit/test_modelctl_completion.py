"""modelctl in a real shell: what the tabulator key brings."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.unit.modelctl_host import TIMEOUT_S, ModelctlHost, write_model

COMMANDS = ["alias", "completion", "fit", "gc", "list", "logs", "promote", "ps", "pull", "rm"]
COMMANDS += ["rollback", "show", "status", "update", "verify"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelctlHost:
    """Three models and a plan; no test changes it."""
    tmp_path = tmp_path_factory.mktemp("completion")
    host = ModelctlHost(tmp_path / "host")
    for name in ("qwen2.5:7b", "qwen2.5:32b", "smollm2"):
        file = name.replace(":", "-").replace(".", "_")
        write_model(tmp_path / f"{file}.gguf", seed=len(name))
        pulled = host.run("pull", f"file:{tmp_path}/{file}.gguf", "--name", name)
        assert pulled.code == 0, pulled.err
    assert host.run("alias", "small", "smollm2").code == 0
    source = "hf://acme/planned-GGUF/planned.gguf"
    live = host.planned_instance("live", host.models / "smollm2.gguf")
    host.write_plan(
        [host.planned_model("planned:1b", source, "main")],
        [live, host.planned_instance("think", host.models / "smollm2.gguf")],
    )
    return host


def complete(host: ModelctlHost, line: str) -> list[str]:
    """What an interactive bash puts into COMPREPLY for a line, the cursor at its end."""
    script = f"""
    source <(modelctl completion bash)
    COMP_LINE={shell_quoted(line)}
    COMP_POINT=${{#COMP_LINE}}
    _modelctl
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return run_bash(host, script)


def shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def run_bash(host: ModelctlHost, script: str) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", script],
        env=host.environment(),
        cwd=host.root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [line for line in done.stdout.splitlines() if line]


def test_commands_and_options_come_from_the_parser(host: ModelctlHost) -> None:
    assert complete(host, "modelctl ") == COMMANDS
    assert complete(host, "modelctl pr") == ["promote"]
    assert complete(host, "modelctl --js") == ["--json"]
    assert complete(host, "modelctl fit --kv-") == ["--kv-cache"]
    assert complete(host, "modelctl fit x --kv-cache q4") == ["q4_0", "q4_1"]
    assert complete(host, "modelctl fit x --kv-cache=q8") == ["--kv-cache=q8_0"]
    assert complete(host, "modelctl completion ") == ["bash", "fish", "zsh"]
    assert complete(host, "modelctl completion bash ") == []
    assert complete(host, "modelctl nonsense ") == []


def test_names_of_this_host(host: ModelctlHost) -> None:
    plan = f"--plan {host.plan}"
    assert complete(host, f"modelctl {plan} rm sm") == ["smollm2"]
    assert complete(host, f"modelctl {plan} rm smollm2 sm") == []
    assert complete(host, f"modelctl logs {plan} ") == ["live", "think"]
    assert complete(host, f"modelctl logs {plan} live ") == []
    assert complete(host, f"modelctl pull --plan={host.plan} pl") == ["planned:1b"]
    assert complete(host, f"modelctl show {plan} ma") == ["main"]
    assert complete(host, f"modelctl rm {plan} ma") == []
    assert complete(host, f"modelctl rollback {plan} sm") == ["small", "smollm2"]
    assert complete(host, f"modelctl alias {plan} tiny smo") == ["smollm2"]
    assert complete(host, f"modelctl rm --models-dir {host.models} smo") == ["smollm2"]


def test_versions_of_the_model_before(host: ModelctlHost) -> None:
    (version,) = host.run("list", "--json").json["models"][2]["versions"]
    assert complete(host, f"modelctl promote --plan {host.plan} smollm2 ") == [version]
    assert complete(host, f"modelctl promote --plan {host.plan} nobody ") == []


def test_a_colon_does_not_double_what_is_before_it(host: ModelctlHost) -> None:
    """bash replaces only what follows the last colon."""
    line = f"modelctl rm --plan {host.plan} qwen2.5:"
    assert complete(host, line) == ["32b", "7b"]
    script_start = "COMP_WORDBREAKS=${COMP_WORDBREAKS//:}\n"
    script = f"""{script_start}
    source <(modelctl completion bash)
    COMP_LINE={shell_quoted(line)}
    COMP_POINT=${{#COMP_LINE}}
    _modelctl
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert run_bash(host, script) == ["qwen2.5:32b", "qwen2.5:7b"]


def test_files_where_files_are_wanted(host: ModelctlHost) -> None:
    (host.root / "token.txt").touch()
    assert complete(host, "modelctl pull --token-file tok") == ["token.txt"]
    assert complete(host, "modelctl show ./tok") == ["./token.txt"]


def test_nothing_is_said_where_something_is_wrong(host: ModelctlHost) -> None:
    broken = host.root / "broken.json"
    broken.write_text("{")
    assert complete(host, f"modelctl logs --plan {broken} ") == []
    assert complete(host, "modelctl rm --models-dir /nonexistent ") == []


def test_a_real_tab_in_an_interactive_bash(host: ModelctlHost) -> None:
    """readline itself: the completed line is what is run."""
    setup = "source <(modelctl completion bash); bind 'set bell-style none'\n"
    keys = f"modelctl roll\t --plan {host.plan} qwen2.5:3\t\n"
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", "bash --norc --noprofile -i", "/dev/null"],
        input=f"PS1='$ '\n{setup}{keys}exit 0\n",
        env=host.environment(TERM="xterm", INPUTRC="/dev/null"),
        cwd=host.root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "qwen2.5:32b has no earlier version to go back to" in done.stdout, done.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(host: ModelctlHost, shell: str) -> None:
    printed = run_bash(host, f"modelctl completion {shell}")
    assert any("modelctl __complete" in line for line in printed)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here; the script was printed and not run")
    script = host.root / f"completion.{shell}"
    script.write_text("\n".join(printed), encoding="utf-8")
    assert run_bash(host, f"{shell} -n {script}") == []
    if shell == "fish":
        line = f"modelctl rm --models-dir {host.models} qwen2.5:"
        run = f"fish --no-config -c 'source {script}; complete -C \"{line}\"'"
        assert sorted(run_bash(host, run)) == ["qwen2.5:32b", "qwen2.5:7b"]
