"""Router instances: their wishes, the room for their largest models, and their preset files."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gateway_toml import gateway_toml
from ansible_collections.kloros.llm.plugins.module_utils.host_facts import children_of
from ansible_collections.kloros.llm.plugins.module_utils.plan import (
    instance_files,
    lasting,
    make_plan,
    models_to_read,
)
from ansible_collections.kloros.llm.plugins.module_utils.plan_memory import with_dry_runs
from ansible_collections.kloros.llm.plugins.module_utils.plan_text import table

from tests.llama_server import BINARY, MODEL, needs_llama_server
from tests.unit.client.real_llama_server import free_port
from tests.unit.planned_models import header_of

Data = dict[str, Any]
KEY = "canary-4b1f0c7e9d52"
ZOO = {"small": "qwen2.5-0.5b", "middle": "smollm2-135m", "large": "qwen2.5-7b"}


def errors(result: Data) -> list[str]:
    return [finding["key"] for finding in result["findings"] if finding["level"] == "error"]


@pytest.fixture
def swap(wishes: Data, gpu_host: Data) -> Data:
    """Three models, one of them dedicated too, and a router for all; the wishes."""
    wishes["llama_cpp"] |= {"backend": "cuda", "cuda_nonfree": True}
    wishes["gguf_models"]["models"] = {
        name: {"source": f"hf://someone/{name}/{name}.gguf"} for name in ZOO
    }
    wishes["llama_instances"]["instances"] = {
        "live": {"model": "small", "port": 8080, "gpus": [1]},
        "swap": {
            "router": True,
            "models": ["small", "large", "middle"],
            "port": 8090,
            "gpus": [0],
            "context": 2048,
            "parallel": 2,
            "extra": {"top-k": 7, "context-shift": False},
        },
    }
    gpu_host["headers"] = [
        header_of(item, ZOO[item["file"].removesuffix(".gguf")]) for item in models_to_read(wishes)
    ]
    return wishes


def test_room_is_kept_for_the_largest(swap: Data, gpu_host: Data) -> None:
    result = make_plan(swap, gpu_host)
    assert errors(result) == []
    plan = result["plan"]
    assert set(plan["memory"]["instances"]) == {"live", "swap/large"}
    assert [instance["name"] for instance in plan["instances"]] == ["live", "swap"]
    assert [one["name"] for one in plan["routed"]] == ["swap/small", "swap/large", "swap/middle"]
    # Of each the server is asked.
    assert plan["memory"]["unasked"] == ["live", "swap/large", "swap/small", "swap/middle"]
    assert set(plan["memory"]["keys"]) == set(plan["memory"]["unasked"])
    router = plan["instances"][1]
    assert router["unit"] == "kloros-llama-swap.service"
    assert router["url"] == "http://127.0.0.1:8090"
    assert (router["model"], router["context_tokens"], router["slots"]) == ("", 2048, 2)
    assert len(router["model_files"]) == 3
    assert "small, large, middle" in "\n".join(table(plan))
    json.dumps(lasting(plan))


def test_its_preset_file(swap: Data, gpu_host: Data) -> None:
    router = make_plan(swap, gpu_host)["plan"]["instances"][1]
    path = "/etc/kloros-llm/instances/swap.models.ini"
    environment = router["environment"]
    assert environment["LLAMA_ARG_MODELS_PRESET"] == path
    assert environment["LLAMA_ARG_MODELS_MAX"] == "1"
    assert environment["LLAMA_ARG_PORT"] == "8090"
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-3060"
    assert "LLAMA_ARG_MODEL" not in environment
    assert path in instance_files(router["unit"])
    first, *sections = router["preset"].split("\n[")
    assert first == "version = 1\n"
    assert [section.split("\n")[1] for section in sections] == [
        "alias = small",
        "alias = large",
        "alias = middle",
    ]
    for line in (
        "LLAMA_ARG_MODEL = /var/lib/kloros-llm/models/large.gguf",
        "LLAMA_ARG_CTX_SIZE = 4096",
        "LLAMA_ARG_N_PARALLEL = 2",
        "LLAMA_ARG_DEVICE = CUDA0",
        "top-k = 7",
        "no-context-shift = true",
    ):
        assert line in sections[1].split("\n")
    assert "LLAMA_ARG_PORT" not in router["preset"]


def test_a_model_for_embeddings_is_started_for_them(swap: Data, gpu_host: Data) -> None:
    """Its header says what it is for: a wish is for all models of the router."""
    swap["gguf_models"]["models"]["embed"] = {"source": "hf://someone/embed/embed.gguf"}
    router = swap["llama_instances"]["instances"]["swap"]
    router |= {"models": ["embed", "large"], "extra": {}}
    gpu_host["headers"] = [
        header_of(item, (ZOO | {"embed": "nomic-embed-1.5"})[item["file"].removesuffix(".gguf")])
        for item in models_to_read(swap)
    ]
    result = make_plan(swap, gpu_host)
    assert errors(result) == []
    _, embed, large = result["plan"]["instances"][1]["preset"].split("\n[")
    told = {"LLAMA_ARG_EMBEDDINGS = 1", "LLAMA_ARG_BATCH = 2048", "LLAMA_ARG_UBATCH = 2048"}
    assert told <= set(embed.split("\n"))
    assert "LLAMA_ARG_CONTEXT_SHIFT = 1" in large.split("\n")
    assert not told & set(large.split("\n"))
    assert not result["plan"]["instances"][1]["embeddings"]


def test_several_at_once_take_the_room_of_several(swap: Data, gpu_host: Data) -> None:
    wish = swap["llama_instances"]["instances"]["swap"]
    wish["models_max"] = 2
    memory = make_plan(swap, gpu_host)["plan"]["memory"]
    assert set(memory["instances"]) == {"live", "swap/large", "swap/small"}
    wish["models_max"] = 3
    result = make_plan(swap, gpu_host)
    assert errors(result) == []
    memory = result["plan"]["memory"]
    assert set(memory["instances"]) == {"live", "swap/large", "swap/small", "swap/middle"}


def test_what_does_not_fit_is_said(swap: Data, gpu_host: Data) -> None:
    swap["llama_instances"]["instances"]["swap"] |= {"parallel": 64, "context": 32768}
    found = errors(make_plan(swap, gpu_host))
    assert found
    assert all(key.startswith("llama_instances.swap") for key in found)
    assert any(key.startswith("llama_instances.swap/large") for key in found)


def answered(plan: Data, name: str, **mib: int) -> Data:
    """The server of one model was asked, and said that on the first GPU."""
    said = {
        "item": {"name": name},
        "asked": "llama-server",
        "rows": [{"device": "CUDA0", "kv_mib": 100, "compute_mib": 100, **mib}],
        "draft_rows": [],
        "projector_mib": {},
        "not_covered": [],
    }
    known = {"release": "v1", "answers": plan["memory"]["dry_runs"]["answers"]}
    return with_dry_runs(known, plan["memory"]["keys"], [said])


def test_what_the_server_says_is_heard(swap: Data, gpu_host: Data) -> None:
    plan = make_plan(swap, gpu_host)["plan"]
    gpu_host["dry_runs"] = answered(plan, "swap/small", weights_mib=9000)
    result = make_plan(swap, gpu_host)
    assert errors(result) == []
    memory = result["plan"]["memory"]
    # It is the largest now, and the others find room in its place.
    assert set(memory["instances"]) == {"live", "swap/small"}
    assert memory["unasked"] == ["live", "swap/large", "swap/middle"]
    gpu_host["dry_runs"] = answered(plan, "swap/small", weights_mib=19000)
    assert errors(make_plan(swap, gpu_host)) != []


def of_main_memory(plan: Data, name: str) -> int:
    taken = {one["name"]: one["mib"] for one in plan["memory"]["host"]["instances"]}
    return int(taken[name])


def test_a_model_that_takes_more_of_one_device(swap: Data, gpu_host: Data) -> None:
    """`large` takes more main memory than `small`, which is taken for the largest."""
    plan = make_plan(swap, gpu_host)["plan"]
    gpu_host["dry_runs"] = answered(plan, "swap/small", weights_mib=9000)
    heard = make_plan(swap, gpu_host)["plan"]
    more = of_main_memory(plan, "swap/large") - of_main_memory(heard, "swap/small")
    assert more > 1
    # All of what is free, but for one MiB less than that.
    swap["memory_reserve_mib"] += heard["memory"]["host"]["free_mib"] - more + 1
    result = make_plan(swap, gpu_host)
    assert "llama_instances.swap.models" in errors(result)
    (said, *_) = (f for f in result["findings"] if f["key"] == "llama_instances.swap.models")
    assert "of main memory more than what is kept" in said["found"]


def test_all_is_what_no_other_instance_serves(swap: Data, gpu_host: Data) -> None:
    swap["llama_instances"]["instances"]["swap"]["models"] = "all"
    result = make_plan(swap, gpu_host)
    assert errors(result) == []
    assert result["plan"]["instances"][1]["models"] == ["middle", "large"]


def test_one_for_all_looks_for_what_clients_pull(swap: Data, gpu_host: Data) -> None:
    folder = "/var/lib/kloros-llm/gateway/pulled"
    live, named = (plan := make_plan(swap, gpu_host)["plan"])["instances"]
    assert "LLAMA_ARG_MODELS_DIR" not in live["environment"] | named["environment"]
    assert "[*]" not in named["preset"]
    assert "pulled_models_dir" not in gateway_toml(plan["gateway"])
    swap["llama_instances"]["instances"]["swap"]["models"] = "all"
    live, router = (plan := make_plan(swap, gpu_host)["plan"])["instances"]
    assert "LLAMA_ARG_MODELS_DIR" not in live["environment"]
    assert router["environment"]["LLAMA_ARG_MODELS_DIR"] == folder
    told = tomllib.loads(gateway_toml(plan["gateway"]))["instances"]
    assert told["swap"]["pulled_models_dir"] == folder
    assert "pulled_models_dir" not in told["live"]
    # As the router's own models are run, but for where the layers go; and these say all of it.
    head, *sections = router["preset"].split("\n[m")
    common = head.partition("[*]\n")[2].strip().split("\n")
    assert common == [
        "LLAMA_ARG_CTX_SIZE = 4096",
        "LLAMA_ARG_N_PARALLEL = 2",
        "LLAMA_ARG_CACHE_TYPE_K = f16",
        "LLAMA_ARG_CACHE_TYPE_V = f16",
        "LLAMA_ARG_DEVICE = CUDA0",
        "LLAMA_ARG_FIT = on",
        "no-context-shift = true",
        "top-k = 7",
    ]
    for section in sections:
        lines = section.split("\n")
        assert {line.partition(" =")[0] for line in common} <= {
            line.partition(" =")[0] for line in lines
        }
        assert "LLAMA_ARG_FIT = off" in lines


def test_the_gateway_asks_it_last(swap: Data, gpu_host: Data) -> None:
    gateway = make_plan(swap, gpu_host)["plan"]["gateway"]
    assert gateway["models"]["small"]["instances"] == ["live", "swap"]
    assert gateway["models"]["large"]["instances"] == ["swap"]
    assert gateway["instances"]["swap"]["kind"] == "router"
    assert gateway["instances"]["swap"]["model"] is None
    assert gateway["listeners"][0]["names"] == ["large:latest", "middle:latest", "small:latest"]


def test_the_gateway_knows_what_each_model_takes(swap: Data, gpu_host: Data) -> None:
    plan = make_plan(swap, gpu_host)["plan"]
    live, router = plan["gateway"]["instances"].values()
    assert set(live["memory_bytes"]) == {"small"}
    assert set(router["memory_bytes"]) == set(router["vram_bytes"]) == set(ZOO)
    rows = plan["memory"]["instances"]["swap/large"]["devices"]
    assert router["memory_bytes"]["large"] == sum(row["total_mib"] for row in rows) << 20
    of_gpu = next(row for row in rows if row["uuid"])
    assert router["vram_bytes"]["large"] == of_gpu["total_mib"] << 20
    assert router["vram_bytes"]["large"] > router["vram_bytes"]["small"] > 0
    planned = {row["name"]: row["context_tokens"] for row in plan["instances"]}
    assert set(router["model_context_tokens"]) == set(ZOO)
    assert min(router["model_context_tokens"].values()) == planned["swap"]
    told = tomllib.loads(gateway_toml(plan["gateway"]))["instances"]
    assert told["swap"]["model_context_tokens"] == router["model_context_tokens"]
    assert told["swap"]["vram_bytes"] == router["vram_bytes"]
    assert told["live"]["memory_bytes"] == live["memory_bytes"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"router": "yes"}, "llama_instances.swap.router"),
        ({"router": False}, "llama_instances.swap.router"),
        ({"model": "small"}, "llama_instances.swap.model"),
        ({"models": ["smal"]}, "llama_instances.swap.models"),
        ({"models": []}, "llama_instances.swap.models"),
        ({"models": ["small", "small"]}, "llama_instances.swap.models"),
        ({"models_max": 0}, "llama_instances.swap.models_max"),
        ({"port": 8080}, "llama_instances.swap.port"),
        ({"api_key": "short"}, "llama_instances.swap.api_key"),
        ({"extra": {"port": 1}}, "llama_instances.swap.extra.port"),
        ({"extra": {"system-prompt": "a # b"}}, "llama_instances.swap.extra.system-prompt"),
        ({"extra": {"control-vector": ["a", "b"]}}, "llama_instances.swap.extra.control-vector"),
        ({"fallback": "lvie"}, "llama_instances.swap.fallback"),
    ],
)
def test_wrong_wish_is_named(swap: Data, gpu_host: Data, change: Data, key: str) -> None:
    swap["llama_instances"]["instances"]["swap"] |= change
    assert errors(make_plan(swap, gpu_host)) == [key]


def test_memory_that_its_models_hold_is_its_own(swap: Data, gpu_host: Data) -> None:
    """Else the second run would find no room for what runs."""
    gpu = gpu_host["gpus"]["gpus"][0]
    gpu["processes"] = [{"pid": 4712, "name": "llama-server", "used_mib": 9000}]
    gpu["memory_free_mib"] -= 9000
    gpu_host["unit_processes"] = {"kloros-llama-swap.service": 4711}
    assert errors(make_plan(swap, gpu_host)) != []
    gpu_host["unit_children"] = [4712]
    assert errors(make_plan(swap, gpu_host)) == []


def test_children_are_found() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        assert child.pid in children_of([os.getpid()])
        assert child.pid not in children_of([child.pid])
        child.kill()


def test_the_folder_is_there_before_the_router(
    run_play: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "lib/kloros-llm/gateway/pulled"
    (tmp_path / "lib").mkdir()
    user = pwd.getpwuid(os.getuid())
    import_role = {"name": "llama_instances", "tasks_from": "pulled"}

    def run(pulled: Path | None, *arguments: str) -> str:
        router = {"router": "swap", "pulled_models_dir": pulled and str(pulled)}
        plan = {"user": user.pw_name, "instances": [{"router": None}, router]}
        done = run_play(
            [{"ansible.builtin.import_role": import_role}],
            *arguments,
            preflight_plan=plan,
            __llama_instances_group=grp.getgrgid(user.pw_gid).gr_name,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "changed=0" in run(None)
    assert "changed=1" in run(folder, "--check")
    assert not folder.exists()
    assert "changed=1" in run(folder)
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    # This one is others' too.
    assert folder.parent.parent.stat().st_mode & 0o777 != 0o700
    assert "changed=0" in run(folder)


def ask(url: str, data: Any = None) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as answer:  # noqa: S310
        return json.load(answer)


@contextmanager
def served(environment: Data, folder: Path) -> Iterator[str]:
    """A real router with that environment, as its unit has it."""
    key_file = folder / "key"
    key_file.write_text(KEY)
    url = f"http://127.0.0.1:{environment['LLAMA_ARG_PORT']}"
    process = subprocess.Popen(
        ["nice", BINARY],
        env=environment
        | {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LLAMA_ARG_THREADS": "1"}
        | {"LLAMA_ARG_API_KEY_FILE": str(key_file)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: ask(f"{url}/health") == {"status": "ok"})
        yield url
    finally:
        process.terminate()
        process.wait(60)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.1)
    raise AssertionError("it did not come to that")


@needs_llama_server
def test_a_real_router_takes_it(wishes: Data, host: Data, tmp_path: Path) -> None:
    wishes["gguf_models"] |= {
        "dir": str(MODEL.parent),
        "models": {
            "smollm2:135m": {"source": f"file:{MODEL}", "file": MODEL.name},
            "gone:1b": {"source": "file:/nowhere/gone.gguf"},
        },
    }
    wishes["llama_instances"]["instances"] = {
        "swap": {
            "router": True,
            "models": "all",
            "port": free_port(),
            "context": 512,
            "parallel": 2,
            "api_key": KEY,
            "extra": {"reasoning-budget": 0, "context-shift": False},
        }
    }
    (router,) = make_plan(wishes, host)["plan"]["instances"]
    preset = tmp_path / "models.ini"
    preset.write_text(router["preset"], encoding="utf-8")
    pulled = tmp_path / "pulled"
    (pulled / "brought").mkdir(parents=True)
    (pulled / "brought/model.gguf").symlink_to(MODEL)
    environment = router["environment"] | {
        "LLAMA_ARG_MODELS_PRESET": str(preset),
        "LLAMA_ARG_MODELS_DIR": str(pulled),
    }
    with served(environment, tmp_path) as url:
        assert ask(f"{url}/props")["role"] == "router"
        listed = {alias for one in ask(f"{url}/models")["data"] for alias in one["aliases"]}
        assert listed == {"smollm2:135m", "gone:1b"}
        for model in ("smollm2:135m", "brought"):
            question = {"model": model, "prompt": "The", "n_predict": 4}
            assert ask(f"{url}/completion", question)["tokens_predicted"] == 4
            props = ask(f"{url}/props?model={model}")
            assert props["total_slots"] == 2
            assert props["default_generation_settings"]["n_ctx"] == 512
