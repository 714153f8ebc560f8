"""A host with GPUs and nothing but their driver: a package is installed, instances are proven.

nvidia-smi and the CUDA backend are stand-ins, which show the KLoROS machine's two GPUs; the server,
its unit and the proof are real.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from testbed import model_zoo
from testbed.cache import cache_folder
from testbed.host_tests import (
    PROJECT,
    Play,
    Run,
    connect,
    get,
    load,
    main_pid,
    only_on,
    scenario_folder,
)

pytestmark = only_on("kloros-gpu")

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
STATE = "/etc/stand_in_nvidia_smi/state.json"
NO_PROCESSES = "/etc/stand_in_nvidia_smi/no_processes"
KLOROS: dict[str, Any] = json.loads(
    (PROJECT / "testbed/data/nvidia_smi_kloros.json").read_text(encoding="utf-8")
)
UUIDS = [gpu["uuid"] for gpu in KLOROS["gpus"]]
MODELS = load(INVENTORY / "group_vars/all/demo.yml")["gguf_models"]
LIVE = {"model": "smollm2:135m", "port": 8080, "gpus": [0], "context": 2048, "threads": 2}
UNIT = "kloros-llama-live.service"
SHARED = "/var/cache/kloros-llm/stand_in_cuda"  # the builder and this host have one cache
PLUGIN = "/opt/llama.cpp/releases/*-cuda-*/bin/libggml-cuda.so"

Serve = Callable[..., Run]


def package() -> Path:
    """The package that the builder has packed, the newest if there are several."""
    found = sorted(
        (scenario_folder(INVENTORY) / "packages").glob("*.tar.gz"), key=lambda p: p.stat().st_mtime
    )
    return found[-1]


@pytest.fixture(scope="module")
def digest() -> str:
    with package().open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@pytest.fixture
def serve(play: Play, digest: str) -> Serve:
    """Run site.yml with the package and the live instance, changed as the test likes."""

    def run(*arguments: str, instances: Any = None, **changes: Any) -> Run:
        settings = {
            "llama_cpp_source": "package",
            "llama_cpp_package": str(package()),
            "llama_cpp_package_sha256": digest,
            "gguf_models": MODELS,
            "llama_instances_restart_s": 1,
            "llama_instances": {"live": LIVE} if instances is None else instances,
        }
        return play(*arguments, **(settings | changes))

    return run


@pytest.fixture
def gpus(host: Host) -> Iterator[Callable[..., None]]:
    """Change what the stand-ins show of the GPUs; afterwards all is as it was."""

    def show(**changes: Any) -> None:
        text = json.dumps(KLOROS | changes)
        host.check_output("printf %%s %s > %s", text, STATE)

    show()
    yield show
    host.check_output(f"rm -f {NO_PROCESSES}")
    show()


def active(host: Host, unit: str = UNIT) -> bool:
    state: str = host.run(f"systemctl is-active {unit}").stdout
    return state.strip() == "active"


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for something that must come, half a minute at most."""
    for _ in range(60):
        if condition():
            return
        time.sleep(0.5)
    raise AssertionError("it did not come")


@pytest.fixture
def owners_models() -> Iterator[None]:
    """The stand-in Hub has the models that the owner's inventory asks for, without weights."""
    models = load(PROJECT / "inventories/kloros/group_vars/all.yml")["gguf_models"]
    made: list[Path] = []
    for model in models.values():
        file = cache_folder() / "hub" / model["source"].removeprefix("hf://")
        digest = file.with_name(f"{file.name}.sha256")
        file.parent.mkdir(parents=True, exist_ok=True)
        model_zoo.write("qwen2.5-32b", file)
        digest.write_text("0" * 64, encoding="utf-8")
        made += [file, digest]
    yield
    for file in made:
        file.unlink()


@pytest.mark.usefixtures("owners_models")
def test_plan_of_the_kloros_machine(host: Host, play: Play) -> None:
    """The owner's inventory against a virgin host with the owner's GPUs, without a change."""
    run = play("--inventory=inventories/kloros", "--check", "--diff")
    said = " ".join(run.output.split())  # long lines are folded
    assert "CUDA 12.4 (distribution) for 61-real, 86-real, with g++ 13" in said
    assert "driver 550.163.01 (CUDA 12.4)" in said
    assert "GTX 1080 Ti, 6.1) is the oldest, known to CUDA 12.9 and older" in said
    assert "12.4 is preferred: it is the driver" in said
    # The owner's models do not fit the owner's cards, and that is said before anything is built.
    assert run.returncode != 0
    assert "Nothing was changed. What is wrong:" in said
    assert run.changed == 0
    assert not host.file("/opt/llama.cpp").exists
    assert not host.package("cmake").is_installed


@pytest.mark.usefixtures("owners_models")
def test_audit_of_the_kloros_machine(host: Host, play: Play) -> None:
    """32 billion parameters on cards of 12 and 11 GiB: the true verdict, and what would fit."""
    run = play("--inventory=inventories/kloros", playbook="playbooks/audit.yml")
    assert (run.returncode, run.changed) == (0, 0), run.output
    said = " ".join(run.output.split())
    assert "qwen2.5:32b-instruct-q4_K_M 18.48 Q4_K 32768 qwen2 to be fetched" in said
    for instance, card in (
        ("live", "GPU 0 (NVIDIA GeForce RTX 3060) would need 21"),
        ("code", "GPU 1 (NVIDIA GeForce GTX 1080 Ti) would need 20"),
    ):
        verdict = said.split(f"{instance} does not fit: found:")[1].split(" does not fit")[0]
        assert card in verdict
        assert "weights 185" in verdict
        assert all(f" {number}. " in verdict for number in (1, 2, 3))
        assert "gpus: [0, 1]" in verdict
    assert "without GPU 1 (NVIDIA GeForce GTX 1080 Ti)" in said
    assert not host.file("/etc/kloros-llm").exists


def test_backend_that_does_not_load_is_no_silent_fall_back(host: Host, serve: Serve) -> None:
    """The builder has built a part of the backend only: it cannot be loaded."""
    run = serve()
    assert run.returncode != 0
    assert "No instance was touched. What is wrong:" in run.output
    assert "invalid device: CUDA0" in run.output
    assert not active(host)


def test_release_stands_on_its_own(host: Host) -> None:
    assert not host.package("nvidia-cuda-toolkit").is_installed
    assert not host.package("g++").is_installed
    listed = host.check_output(f"sh -c 'ldd {PLUGIN}'")
    missing = [line.split()[0] for line in listed.splitlines() if "not found" in line]
    assert missing == ["libcuda.so.1"]
    assert "libcublasLt.so.12 => /opt/llama.cpp/" in listed


@pytest.fixture(scope="module")
def stand_in_backend(host: Host) -> None:
    """The stand-in for the CUDA backend, built on the builder, in the place of the real one."""
    builder = connect(INVENTORY, "kloros-builder")
    builder.check_output(
        f"sh -c 'rm -rf {SHARED} && cp -rL /opt/llama.cpp/current/bin {SHARED}"
        f" && bash /opt/testbed/stand_in_cuda/build.sh"
        f" $(dirname $(ls /var/cache/kloros-llm/sources/*/CMakeLists.txt | head -n 1)) {SHARED}'"
    )
    copy = f"cp --remove-destination {SHARED}/libggml-cuda.so"
    host.check_output(f"sh -c '{copy} $(ls {PLUGIN})'")


@pytest.fixture
def served(host: Host, stand_in_backend: None, gpus: Callable[..., None], serve: Serve) -> Serve:
    """The live instance runs on the first GPU alone, and is proven."""
    settings = host.file("/etc/kloros-llm/instances/live.env")
    planned = settings.exists and f"CUDA_VISIBLE_DEVICES={UUIDS[0]}\n" in settings.content_string
    alone = not host.file("/etc/kloros-llm/instances/second.env").exists
    if not (planned and alone and active(host)):
        run = serve()
        assert run.returncode == 0, run.output
    assert active(host)
    return serve


def test_instance_runs_on_its_gpu(host: Host, served: Serve) -> None:
    settings = host.file("/etc/kloros-llm/instances/live.env").content_string
    assert f"CUDA_VISIBLE_DEVICES={UUIDS[0]}" in settings
    assert "LLAMA_ARG_DEVICE=CUDA0" in settings
    answer = get(host, 8080, "/completion", data={"prompt": "One two three", "n_predict": 4})
    assert answer["content"]
    shown = host.check_output("nvidia-smi --query-compute-apps=pid,gpu_uuid --format=csv,noheader")
    assert shown == f"{main_pid(host, 'live')}, {UUIDS[0]}"


def test_proven_instance_is_left_alone(host: Host, served: Serve) -> None:
    before = main_pid(host, "live")
    run = served()
    assert (run.returncode, run.changed) == (0, 0), run.output
    assert main_pid(host, "live") == before


def test_unit_sees_the_gpus_and_no_other_device(host: Host, served: Serve) -> None:
    shown = host.check_output(f"systemctl show --property=DevicePolicy,DeviceAllow {UNIT}")
    assert "DevicePolicy=closed" in shown
    allowed = {line.split("=")[1] for line in shown.splitlines() if line.startswith("DeviceAllow")}
    assert {entry.split()[0] for entry in allowed} == {
        "char-nvidia",
        "char-nvidia-frontend",
        "char-nvidia-uvm",
        "char-nvidiactl",
        "char-rtc",  # read-only, from ProtectClock=
    }
    exposure = host.check_output(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    assert float(exposure.split(": ")[1].split()[0]) <= 2.0, exposure


@pytest.mark.parametrize("fault", ["not_loaded", "mismatch", "no_devices", "lost"])
def test_driver_that_shows_no_gpu_stops_the_play(
    host: Host, served: Serve, gpus: Callable[..., None], fault: str
) -> None:
    before = main_pid(host, "live")
    gpus(fault=fault)
    run = served()
    assert run.returncode != 0
    assert "Nothing was changed. What is wrong:" in run.output
    assert "llama_instances.live.gpus" in run.output
    assert main_pid(host, "live") == before


def test_instance_does_not_start_without_its_gpu(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    gpus(fault="no_devices")
    started = host.run(f"timeout 60 systemctl restart {UNIT}")
    assert started.rc != 0
    assert not active(host)
    gpus()
    assert served().returncode == 0
    assert active(host)


def test_layers_on_the_cpu_are_no_start(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    """llama-server answers 200 and says that all layers were offloaded, and none is."""
    gpus(layers_on_cpu=True)
    host.check_output(f"systemctl stop {UNIT}")
    run = served()
    assert run.returncode != 0
    assert "did not become ready" in run.output
    assert "no weights of the model lie on CUDA0" in run.output
    assert not active(host)


def test_memory_that_the_driver_does_not_see_taken(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    # Where the driver shows no process at all, what is taken of the whole GPU has to do.
    gpus(gpus=[gpu | {"base_used_mib": 1} for gpu in KLOROS["gpus"]])
    host.check_output(f"systemctl stop {UNIT}")
    host.check_output(f"touch {NO_PROCESSES}")
    run = served()
    assert run.returncode != 0
    assert "is not proven to use its GPUs" in run.output
    assert "MiB are taken on GPU 0 (NVIDIA GeForce RTX 3060)" in run.output
    # Not remembered as proven: it is asked again, though nothing has changed.
    assert served().returncode != 0
    host.check_output(f"rm {NO_PROCESSES}")
    assert served().changed == 0


def test_token_rate_below_the_floor(host: Host, served: Serve) -> None:
    host.check_output(f"systemctl restart {UNIT}")
    run = served(llama_instances_min_tokens_per_s=100000)
    assert run.returncode != 0
    assert "at least 100000 were wanted" in run.output
    assert served(llama_instances_min_tokens_per_s=0).returncode == 0


def test_instance_that_does_not_fit_beside_another(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    both = {"live": LIVE, "second": LIVE | {"port": 8081}}
    before = main_pid(host, "live")
    nearly_full = [
        gpu | {"base_used_mib": gpu["memory_total_mib"] - 1300} for gpu in KLOROS["gpus"]
    ]
    gpus(gpus=nearly_full)
    run = served(instances=both)
    assert run.returncode != 0
    assert "Nothing was changed. What is wrong:" in run.output
    assert "it does not fit beside the instances before it" in " ".join(run.output.split())
    assert main_pid(host, "live") == before

    # What takes the memory after the plan was made is the server's own to refuse.
    gpus()
    assert served(instances=both).returncode == 0
    second = "kloros-llama-second.service"
    host.check_output(f"systemctl stop {second}")
    gpus(gpus=[gpu | {"base_used_mib": gpu["memory_total_mib"] - 60} for gpu in KLOROS["gpus"]])
    assert host.run(f"timeout 60 systemctl start {second}").rc != 0
    log = host.check_output(f"journalctl --output=cat --unit={second} --boot")
    assert "cudaMalloc failed: out of memory" in log
    assert active(host)
    assert not active(host, second)


def test_alternatives_follow_the_gpus_that_are_there(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    wish = LIVE | {
        "gpus": [UUIDS[0]],
        "alternatives": [{"gpus": [UUIDS[1]], "context": 1024}, {"gpus": []}],
    }

    def settings(**changes: Any) -> str:
        run = served(instances={"live": wish}, **changes)
        assert run.returncode == 0, run.output
        text: str = host.file("/etc/kloros-llm/instances/live.env").content_string
        return text

    assert f"CUDA_VISIBLE_DEVICES={UUIDS[0]}\n" in settings()
    locked = settings(gpu_lockout=[UUIDS[0]])
    assert f"CUDA_VISIBLE_DEVICES={UUIDS[1]}\n" in locked
    assert "LLAMA_ARG_CTX_SIZE=1024\n" in locked
    gpus(gpus=KLOROS["gpus"][1:])  # the card is gone
    assert f"CUDA_VISIBLE_DEVICES={UUIDS[1]}\n" in settings()
    gpus()
    assert f"CUDA_VISIBLE_DEVICES={UUIDS[0]}\n" in settings()


def test_model_over_two_unequal_gpus(host: Host, served: Serve) -> None:
    run = served(instances={"live": LIVE | {"gpus": [0, 1]}})  # as the plan splits it
    assert run.returncode == 0, run.output
    run = served(instances={"live": LIVE | {"gpus": [1, 0], "tensor_split": [1, 3]}})
    assert run.returncode == 0, run.output
    log = host.check_output(f"journalctl --output=cat --unit={UNIT} --boot")
    last = log[log.rindex("llama_server: initializing") :]
    sizes = [
        float(last.split(f"{name} model buffer size =")[1].split()[0])
        for name in ("CUDA0", "CUDA1")
    ]
    assert 2 < sizes[1] / sizes[0] < 5
    settings = host.file("/etc/kloros-llm/instances/live.env").content_string
    assert f"CUDA_VISIBLE_DEVICES={UUIDS[1]},{UUIDS[0]}" in settings


def test_package_for_other_gpus_is_refused(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    newer = KLOROS["gpus"][0] | {"name": "NVIDIA GeForce RTX 5080", "compute_capability": "12.0"}
    before = main_pid(host, "live")
    gpus(gpus=[newer])
    run = served()
    assert run.returncode != 0
    assert "holds no code for GPU 0 (NVIDIA GeForce RTX 5080, 12.0)" in run.output
    assert main_pid(host, "live") == before


def test_driver_that_comes_late_is_waited_for(
    host: Host, served: Serve, gpus: Callable[..., None]
) -> None:
    """As at boot, when the instance is to start before the driver's modules are loaded."""
    gpus(fault="not_loaded")
    host.check_output(f"systemctl restart --no-block {UNIT}")
    waiting = f"systemctl is-active kloros-llm-gpu@{UUIDS[0]}.service"
    wait_for(lambda: host.run(waiting).stdout.strip() == "activating")
    assert not active(host)
    gpus()
    wait_for(lambda: active(host))
    assert host.check_output(f"systemctl show --property=NRestarts --value {UNIT}") == "0"


def test_proof_needs_no_old_journal(host: Host, served: Serve) -> None:
    assert served().returncode == 0
    host.check_output("sh -c 'rm -rf /run/kloros-llm/proven && journalctl --rotate'")
    host.check_output("journalctl --vacuum-time=1s")
    run = served()
    assert (run.returncode, run.changed) == (0, 0), run.output
