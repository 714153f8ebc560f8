"""Module llama_fit through a real ansible-playbook."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.llama_dry_run import DeviceRow
from ansible_collections.kloros.llm.plugins.modules.llama_fit import differences

from testbed.stand_in_hub import StandInHub
from tests.unit.llama_dry_run_lab import MODEL, Lab, is_alive, lab, tiny_gguf
from tests.unit.play_runner import PlayRunner

TOKEN = "hf_canary_token"
SOURCE = "hf://acme/tiny-GGUF/tiny.gguf"


@pytest.fixture
def here(runner: PlayRunner) -> Iterator[Lab]:
    with lab() as made:
        runner.settings["TMPDIR"] = str(made.tmp)
        yield made


@pytest.fixture
def hub(here: Lab) -> Iterator[StandInHub]:
    folder = here.folder / "hub" / "acme" / "tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / ".gated").touch()
    tiny_gguf(folder / "tiny.gguf")
    with StandInHub(here.folder / "hub", token=TOKEN) as running:
        yield running


def args(lab: Lab, environment: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"server": str(lab.server), "environment": environment, **more}


def test_it_says_what_the_engine_says_and_how_far_the_plan_was_off(
    runner: PlayRunner, here: Lab
) -> None:
    predicted = [
        {"device": "CUDA0", "weights_mib": 33.5, "kv_mib": 96, "compute_mib": 30},
        {"device": "CUDA2", "weights_mib": 7, "kv_mib": 0, "compute_mib": 1},
    ]
    given = args(here, here.environment("two-gpus.jsonl"), predicted=predicted)
    for options in ([], ["--check", "--diff"]):
        played = runner.play("llama_fit", given, options=options)
        assert played.rc == 0, played.output
        result = played.result
        assert result["changed"] is False
        assert (result["asked"], result["accepted"]) == ("llama-server", True)
        assert result["rows"][1] == {
            "device": "CUDA1",
            "weights_mib": 58,
            "kv_mib": 84,
            "compute_mib": 37,
            "total_mib": 11264,
            "free_mib": 5000,
        }
        assert [list(row.values()) for row in result["difference"]] == [
            ["CUDA0", -0.5, 0, 2, 1.5],
            ["CUDA1", 58, 84, 37, 179],
            ["Host", 28, 0, 21, 49],
            ["CUDA2", -7, 0, -1, -8],
        ]
    assert here.left_over() == []


def test_a_refusal_is_a_result_and_no_failure(runner: PlayRunner, here: Lab) -> None:
    given = args(here, here.environment("unknown-architecture.jsonl"), predicted=[])
    played = runner.play("llama_fit", given)
    assert played.rc == 0, played.output
    assert played.result["accepted"] is False
    assert played.result["rows"] == played.result["difference"] == []
    assert "unknown model architecture" in " ".join(played.result["last_words"])


def test_a_model_that_is_not_there_is_asked_about_by_its_header(
    runner: PlayRunner, here: Lab, hub: StandInHub
) -> None:
    given = args(
        here,
        here.environment("cpu.jsonl"),
        models=[{"path": MODEL, "source": SOURCE}],
        hf_endpoint=hub.url,
        hf_token=TOKEN,
    )
    played = runner.play("llama_fit", given, options=["-vvv"])
    assert played.rc == 0, played.output
    assert played.result["rows"][0]["kv_mib"] == 180
    size = (here.folder / "hub/acme/tiny-GGUF/tiny.gguf").stat().st_size
    assert here.seen("model_size") == [str(size)]
    assert here.seen("model_magic") == ["GGUF"]
    assert here.left_over() == []
    assert len(hub.requests) <= 3
    assert TOKEN not in played.output
    assert TOKEN not in here.record.read_text()


def test_a_model_that_is_there_is_read_where_it_lies(runner: PlayRunner, here: Lab) -> None:
    model = here.folder / "model.gguf"
    tiny_gguf(model)
    environment = here.environment("cpu.jsonl", LLAMA_ARG_MODEL=str(model))
    models = [{"path": str(model), "source": "http://127.0.0.1:1/never.gguf"}]
    played = runner.play("llama_fit", args(here, environment, models=models))
    assert played.rc == 0, played.output
    assert here.seen("LLAMA_ARG_MODEL") == [str(model)]


def test_of_a_local_source_the_header_is_laid_out(runner: PlayRunner, here: Lab) -> None:
    tiny_gguf(here.folder / "import.gguf")
    models = [{"path": MODEL, "source": f"file:{here.folder}/import.gguf"}]
    given = args(here, here.environment("cpu.jsonl"), models=models)
    played = runner.play("llama_fit", given)
    assert played.rc == 0, played.output
    (seen,) = here.seen("LLAMA_ARG_MODEL")
    assert Path(seen).name == "import.gguf"
    assert here.left_over() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the engine to another user")
def test_the_engine_need_not_be_able_to_read_a_local_source(runner: PlayRunner, here: Lab) -> None:
    private = here.folder / "home"
    private.mkdir(mode=0o700)
    tiny_gguf(private / "import.gguf")
    models = [{"path": MODEL, "source": f"file:{private}/import.gguf"}]
    played = runner.play("llama_fit", args(here, here.environment("cpu.jsonl"), models=models))
    assert played.rc == 0, played.output
    assert played.result["rows"][0]["kv_mib"] == 180
    assert here.seen("model_magic") == ["GGUF"]


def test_a_damaged_file_is_not_asked_about(runner: PlayRunner, here: Lab) -> None:
    """It will be fetched again: its source is what the engine sees."""
    model = here.folder / "model.gguf"
    tiny_gguf(here.folder / "whole.gguf")
    model.write_bytes((here.folder / "whole.gguf").read_bytes()[:40])
    environment = here.environment("cpu.jsonl", LLAMA_ARG_MODEL=str(model))
    models = [{"path": str(model), "source": f"file:{here.folder}/whole.gguf"}]
    played = runner.play("llama_fit", args(here, environment, models=models))
    assert played.rc == 0, played.output
    (seen,) = here.seen("LLAMA_ARG_MODEL")
    assert Path(seen).name == "whole.gguf"


def test_only_what_the_environment_names_is_looked_for(runner: PlayRunner, here: Lab) -> None:
    tiny_gguf(here.folder / "import.gguf")
    models = [
        {"path": "/models/other.gguf", "source": "http://127.0.0.1:1/never.gguf"},
        {"path": MODEL, "source": f"file:{here.folder}/import.gguf"},
    ]
    given = args(here, here.environment("cpu.jsonl"), models=models)
    assert runner.play("llama_fit", given).rc == 0


def test_offline_folder_stands_for_the_net(runner: PlayRunner, here: Lab) -> None:
    place = here.folder / "offline" / "acme" / "tiny-GGUF" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    tiny_gguf(place)
    models = [{"path": MODEL, "source": SOURCE}]
    given = args(here, here.environment("cpu.jsonl"), models=models, offline=True)
    refused = runner.play("llama_fit", given)
    assert "'offline' is set" in refused.result["msg"]
    assert here.seen("LLAMA_ARG_MODEL") == []
    played = runner.play("llama_fit", given | {"offline_dir": f"{here.folder}/offline"})
    assert played.rc == 0, played.output
    (seen,) = here.seen("LLAMA_ARG_MODEL")
    assert Path(seen).name == "tiny.gguf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"server": "/nonexistent/llama-server"}, "install llama.cpp first"),
        ({"models": [{"path": MODEL, "source": "ftp://a"}]}, "unknown scheme"),
        ({"timeout_s": 1}, "gave no answer in time"),
    ],
)
def test_what_fails(runner: PlayRunner, here: Lab, change: dict[str, Any], message: str) -> None:
    played = runner.play("llama_fit", args(here, here.environment()) | change)
    assert played.rc != 0
    assert message in played.result["msg"]
    assert here.left_over() == []


def test_a_wrong_token_fails_with_what_to_do(
    runner: PlayRunner, here: Lab, hub: StandInHub
) -> None:
    given = args(
        here,
        here.environment("cpu.jsonl"),
        models=[{"path": MODEL, "source": SOURCE}],
        hf_endpoint=hub.url,
        hf_token="hf_wrong_canary",
    )
    played = runner.play("llama_fit", given)
    assert played.rc != 0
    assert "gated" in played.result["msg"].lower() or "token" in played.result["msg"].lower()
    assert "hf_wrong_canary" not in played.output


def test_a_module_that_is_ended_leaves_nothing(runner: PlayRunner, here: Lab) -> None:
    tiny_gguf(here.folder / "import.gguf")
    play = runner.start("llama_fit", args(here, here.environment()))
    _until(lambda: bool(here.seen("STAND_IN_THEN")))
    server = int(here.seen("pid")[0])
    stat = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    os.kill(int(stat[1]), signal.SIGTERM)
    runner.finish(play)
    assert not is_alive(server)
    assert here.left_over() == []


def test_differences_are_the_engines_less_the_planners() -> None:
    row = DeviceRow("CUDA0", 100, 20, 3, 12288, 11900)
    predicted = {"device": "CUDA0", "weights_mib": 100, "kv_mib": 20, "compute_mib": 3.04}
    assert differences([row], [predicted]) == [
        {"device": "CUDA0", "weights_mib": 0, "kv_mib": 0, "compute_mib": 0, "total_mib": 0}
    ]
    assert differences([], []) == []


def _until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")
