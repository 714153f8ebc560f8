"""Wishes measured against a host."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.findings import render
from ansible_collections.kloros.llm.plugins.module_utils.plan import (
    instance_files,
    lasting,
    make_plan,
    packages,
)
from ansible_collections.kloros.llm.plugins.module_utils.plan_text import endpoints, table

Data = dict[str, Any]


def errors(result: Data) -> list[str]:
    return [finding["key"] for finding in result["findings"] if finding["level"] == "error"]


def test_smallest_wish_makes_a_plan(wishes: Data, host: Data) -> None:
    result = make_plan(wishes, host)
    assert result["findings"] == []
    (live,) = result["plan"]["instances"]
    assert live["unit"] == "kloros-llama-live.service"
    assert live["url"] == "http://127.0.0.1:8080"
    assert live["model_path"] == "/var/lib/kloros-llm/models/tiny.gguf"
    assert live["environment"]["LLAMA_ARG_PORT"] == "8080"
    assert (live["slots"], live["context_tokens"]) == (1, 8192)
    assert result["plan"]["llama_cpp"]["jobs"] == 8
    assert result["plan"]["changes"]["account"] is True
    json.dumps(result)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::1", "http://[::1]:8080"),
        ("::", "http://[::1]:8080"),
        ("192.0.2.7", "http://192.0.2.7:8080"),
    ],
)
def test_instance_is_asked_where_it_listens(
    wishes: Data, host: Data, address: str, url: str
) -> None:
    wishes["llama_instances"]["host"] = address
    assert make_plan(wishes, host)["plan"]["instances"][0]["url"] == url


def test_context_is_for_each_slot(wishes: Data, host: Data) -> None:
    wishes["llama_instances"]["instances"]["live"] |= {"parallel": 3, "context": {"want": 4096}}
    (live,) = make_plan(wishes, host)["plan"]["instances"]
    assert live["environment"]["LLAMA_ARG_CTX_SIZE"] == str(3 * 4096)
    assert live["environment"]["LLAMA_ARG_N_PARALLEL"] == "3"


def test_compilers_are_bounded_by_memory(wishes: Data, host: Data) -> None:
    host["machine"]["memory_mib"] = 4000
    assert make_plan(wishes, host)["plan"]["llama_cpp"]["jobs"] == 2
    host["machine"]["memory_mib"] = 512
    assert make_plan(wishes, host)["plan"]["llama_cpp"]["jobs"] == 1


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"os": {"id": "fedora", "version": "44", "name": "Fedora 44"}}, "operating system"),
        ({"os": {"id": "debian", "version": "11", "name": "Debian 11"}}, "operating system"),
        ({"architecture": "riscv64"}, "architecture"),
        ({"python": "3.9.2"}, "python"),
        ({"systemd": None}, "systemd"),
        ({"systemd": 249}, "systemd"),
    ],
)
def test_host_that_will_not_do(wishes: Data, host: Data, change: Data, key: str) -> None:
    host["machine"] |= change
    assert errors(make_plan(wishes, host)) == [key]


def test_untried_system_at_own_risk(wishes: Data, host: Data) -> None:
    host["machine"]["os"] = {"id": "mint", "version": "23", "name": "Mint 23"}
    wishes["any_system"] = True
    result = make_plan(wishes, host)
    assert errors(result) == []
    assert [finding["key"] for finding in result["findings"]] == ["operating system"]


def listener(**keys: Any) -> Data:
    base = {"port": 8080, "address": "0.0.0.0", "pid": 812, "process": "python3", "unit": None}
    return base | keys


def test_foreign_holder_of_a_port_is_named(wishes: Data, host: Data) -> None:
    host["listeners"] = [listener(unit="vosk.service")]
    result = make_plan(wishes, host)
    assert errors(result) == ["llama_instances.live.port"]
    assert "python3 (pid 812 of vosk.service, 0.0.0.0)" in result["findings"][0]["found"]


def test_another_address_is_no_clash(wishes: Data, host: Data) -> None:
    host["listeners"] = [listener(address="192.0.2.9")]
    assert errors(make_plan(wishes, host)) == []
    for address in ("127.0.0.1", "0.0.0.0", "::"):
        host["listeners"] = [listener(address=address)]
        assert errors(make_plan(wishes, host)) == ["llama_instances.live.port"]


def test_foreign_unit_of_that_name_is_left_alone(wishes: Data, host: Data) -> None:
    host["foreign_units"] = ["kloros-llama-live.service", "kloros-llama-mine.service"]
    result = make_plan(wishes, host)
    assert errors(result) == ["llama_instances.live"]
    assert result["plan"]["changes"]["units_to_retire"] == []


@pytest.mark.parametrize(
    ("role", "key", "value"),
    [
        ("llama_cpp", "version", "feature/x"),
        ("llama_cpp", "version", "../x"),
        ("llama_cpp", "version", ""),
        ("llama_cpp", "dir", "/opt/my llama"),
        ("llama_cpp", "dir", "opt"),
        ("llama_cpp", "cache_dir", "/var/100%"),
        ("llama_cpp", "jobs", -1),
        ("llama_cpp", "memory_per_job_mib", 0),
        ("llama_cpp", "archive_sha256", "abc"),
        ("gguf_models", "dir", "/srv/a:b"),
        ("llama_instances", "host", ""),
        ("llama_instances", "context", "big"),
        ("llama_instances", "context", {"min": 512}),
        ("llama_instances", "parallel", 0),
    ],
)
def test_wrong_setting_is_named(
    wishes: Data, host: Data, role: str, key: str, value: object
) -> None:
    for path in ("/opt/my llama", "opt", "/var/100%"):
        host["disks"][path] = host["disks"][f"{path}/current"] = host["disks"]["/opt/llama.cpp"]
    wishes[role][key] = value
    assert f"{role}_{key}" in errors(make_plan(wishes, host))


@pytest.mark.parametrize("name", ["Bad Name", "", "-x"])
def test_impossible_account(wishes: Data, host: Data, name: str) -> None:
    wishes["user"] = name
    host["users"][name] = None
    assert errors(make_plan(wishes, host)) == ["kloros_llm_user"]


def test_owner_of_the_models_must_exist(wishes: Data, host: Data) -> None:
    wishes["gguf_models"]["owner"] = "alice"
    host["users"]["alice"] = None
    assert errors(make_plan(wishes, host)) == ["gguf_models_owner"]
    # The servers' own account is made where it is missing.
    wishes["gguf_models"]["owner"] = wishes["user"]
    assert errors(make_plan(wishes, host)) == []


def test_what_systemd_cannot_hold_is_a_finding(wishes: Data, host: Data) -> None:
    wishes["llama_instances"]["instances"]["live"]["extra"] = {"chat-template": "\ufeff"}
    result = make_plan(wishes, host)
    assert len(errors(result)) == 1
    assert errors(result)[0].startswith("llama_instances.live")


def test_backend_follows_the_instances(wishes: Data, gpu_host: Data) -> None:
    assert make_plan(wishes, gpu_host)["plan"]["llama_cpp"]["backend"] == "cpu"
    wishes["llama_instances"]["instances"]["live"]["gpus"] = [1]
    result = make_plan(wishes, gpu_host)
    assert result["findings"] == []
    assert result["plan"]["llama_cpp"]["backend"] == "cuda"
    assert result["plan"]["llama_cpp"]["cuda"]["version"] == "12.4"
    wishes["llama_cpp"]["backend"] = "cpu"
    assert errors(make_plan(wishes, gpu_host)) == ["llama_cpp_backend"]


def test_gpus_are_pinned_by_uuid(wishes: Data, gpu_host: Data) -> None:
    live = wishes["llama_instances"]["instances"]["live"]
    live |= {"gpus": [1, "GPU-3060"], "main_gpu": 0, "tensor_split": [2, 3.5], "split_mode": "row"}
    (planned,) = make_plan(wishes, gpu_host)["plan"]["instances"]
    assert [gpu["name"] for gpu in planned["gpus"]] == [
        "NVIDIA GeForce GTX 1080 Ti",
        "NVIDIA GeForce RTX 3060",
    ]
    variables = planned["environment"]
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-1080,GPU-3060"
    assert variables["LLAMA_ARG_DEVICE"] == "CUDA0,CUDA1"
    assert variables["LLAMA_ARG_MAIN_GPU"] == "1"
    assert variables["LLAMA_ARG_TENSOR_SPLIT"] == "2,3.5"
    assert variables["LLAMA_ARG_SPLIT_MODE"] == "row"


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"gpus": [2]}, "llama_instances.live", "0 (NVIDIA GeForce RTX 3060, GPU-3060)"),
        ({"gpus": ["GPU-5080"]}, "llama_instances.live", "there is no GPU GPU-5080"),
        ({"gpus": [0, "GPU-3060"]}, "llama_instances.live", "named twice"),
        ({"gpus": [0], "main_gpu": 1}, "llama_instances.live", "none of its gpus"),
        ({"gpus": [0, 1], "tensor_split": [1]}, "llama_instances.live.tensor_split", "1 shares"),
    ],
)
def test_gpus_that_cannot_be(
    wishes: Data, gpu_host: Data, change: Data, key: str, said: str
) -> None:
    wishes["llama_instances"]["instances"]["live"] |= change
    result = make_plan(wishes, gpu_host)
    assert errors(result) == [key]
    assert said in result["findings"][0]["found"]


def test_gpus_that_the_driver_does_not_show(wishes: Data, gpu_host: Data) -> None:
    gpu_host["gpus"] |= {"status": "driver_mismatch", "detail": "mismatch", "cure": "reboot"}
    wishes["llama_instances"]["instances"]["live"]["gpus"] = [0]
    result = make_plan(wishes, gpu_host)
    assert errors(result) == ["llama_instances.live.gpus", "GPUs"]
    assert result["findings"][0]["found"] == "mismatch"
    # What an instance runs on must be there, also where what to build for is named.
    wishes["llama_cpp"]["cuda_architectures"] = "86-real"
    assert errors(make_plan(wishes, gpu_host)) == ["llama_instances.live.gpus"]


def test_release_must_hold_code_for_the_instances_gpus(wishes: Data, gpu_host: Data) -> None:
    wishes["llama_cpp"]["cuda_architectures"] = "86-real"
    wishes["llama_instances"]["instances"]["live"]["gpus"] = [0, 1]
    result = make_plan(wishes, gpu_host)
    assert errors(result) == ["llama_instances.live.gpus"]
    assert "GTX 1080 Ti, 6.1" in result["findings"][0]["found"]


def test_divided_gpu_is_refused(wishes: Data, gpu_host: Data) -> None:
    gpu_host["gpus"]["gpus"][0]["mig"] = True
    wishes["llama_instances"]["instances"]["live"]["gpus"] = [0]
    result = make_plan(wishes, gpu_host)
    assert errors(result) == ["llama_instances.live"]
    assert "MIG is on" in result["findings"][0]["found"]


def test_flags_that_the_role_decides_are_refused(wishes: Data, gpu_host: Data) -> None:
    wishes["llama_cpp"]["cmake_flags"] = {"CMAKE_CUDA_ARCHITECTURES": "86", "GGML_LTO": "ON"}
    result = make_plan(wishes, gpu_host)
    assert errors(result) == ["llama_cpp_cmake_flags.CMAKE_CUDA_ARCHITECTURES"]
    assert "llama_cpp_cuda_architectures" in result["findings"][0]["cure"]


def test_what_is_written_to_the_host_outlives_the_way_there(wishes: Data, gpu_host: Data) -> None:
    wishes["llama_instances"]["instances"]["live"]["gpus"] = [0, 1]
    before = make_plan(wishes, gpu_host)["plan"]
    gpu_host["packages_missing"] = []
    gpu_host["cuda"] |= {
        "toolkits": [
            {
                "root": "/usr",
                "nvcc": "/usr/bin/nvcc",
                "version": "12.4",
                "gcc_limit": 13,
                "cublas": True,
                "fits_glibc": True,
            }
        ],
        "compilers": {"13": "/usr/bin/g++-13", "14": "/usr/bin/g++-14"},
    }
    after = make_plan(wishes, gpu_host)["plan"]
    assert (before["llama_cpp"]["cuda"]["source"], after["llama_cpp"]["cuda"]["source"]) == (
        "distribution",
        "system",
    )
    assert lasting(before) == lasting(after)


def test_without_the_drivers_library_backends_are_plugins(wishes: Data, host: Data) -> None:
    wishes["llama_cpp"] |= {"cuda_architectures": "86-real", "cuda_toolkit": "redist"}
    assert make_plan(wishes, host)["plan"]["llama_cpp"]["portable"] is True
    host["cuda"]["driver_library"] = {"path": "/l/libcuda.so.1", "package": None}
    assert make_plan(wishes, host)["plan"]["llama_cpp"]["portable"] is False


def test_archive_that_is_not_there(wishes: Data, host: Data) -> None:
    wishes["llama_cpp"] |= {
        "source": "archive",
        "archive": "/nowhere.tar.gz",
        "archive_sha256": "0" * 64,
        "archive_there": False,
    }
    assert errors(make_plan(wishes, host)) == ["llama_cpp_archive"]


def test_own_instance_may_hold_its_port(wishes: Data, host: Data) -> None:
    host["listeners"] = [listener(unit="kloros-llama-live.service")]
    result = make_plan(wishes, host)
    assert result["findings"] == []
    assert result["plan"]["changes"]["units_to_move"] == []


def test_instances_that_swap_ports_stop_first(wishes: Data, host: Data) -> None:
    wishes["llama_instances"]["instances"]["code"] = {"model": "tiny:1b", "port": 8081}
    host["listeners"] = [
        listener(port=8081, unit="kloros-llama-live.service"),
        listener(port=8080, unit="kloros-llama-code.service"),
    ]
    result = make_plan(wishes, host)
    assert result["findings"] == []
    assert result["plan"]["changes"]["units_to_move"] == [
        "kloros-llama-code.service",
        "kloros-llama-live.service",
    ]


def test_open_address_without_a_key_is_worth_a_word(wishes: Data, host: Data) -> None:
    live = wishes["llama_instances"]["instances"]["live"]
    live["host"] = "0.0.0.0"
    assert [f["level"] for f in make_plan(wishes, host)["findings"]] == ["warning"]
    live["api_key"] = "a-canary-of-sixteen"
    result = make_plan(wishes, host)
    assert result["findings"] == []
    assert "canary" not in json.dumps(result)


def test_root_may_not_serve(wishes: Data, host: Data) -> None:
    wishes["user"] = "toor"
    host["users"]["toor"] = {"uid": 0, "gid": 0, "group": "root", "home": "/root"}
    assert errors(make_plan(wishes, host)) == ["kloros_llm_user"]


def test_disk_too_small_to_build_is_an_error_only_without_a_release(
    wishes: Data, host: Data
) -> None:
    for disk in host["disks"].values():
        disk["free_mib"] = 100
    result = make_plan(wishes, host)
    assert errors(result) == ["disk /"]
    assert "100 MiB free" in result["findings"][0]["found"]
    host["disks"]["/opt/llama.cpp/current"]["exists"] = True
    assert errors(make_plan(wishes, host)) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"source": "archive"}, "llama_cpp_archive"),
        ({"source": "package"}, "llama_cpp_package"),
        ({"backend": "cuda"}, "GPUs"),
        ({"cuda_architectures": "native"}, "llama_cpp_cuda_architectures"),
        ({"cuda_toolkit": "apt"}, "llama_cpp_cuda_toolkit"),
        ({"cuda_version": "12"}, "llama_cpp_cuda_version"),
    ],
)
def test_llama_cpp_settings_that_belong_together(
    wishes: Data, host: Data, change: Data, key: str
) -> None:
    wishes["llama_cpp"] |= change
    assert key in errors(make_plan(wishes, host))


def test_instance_that_is_gone_is_retired(wishes: Data, host: Data) -> None:
    host["units"] = ["kloros-llama-live.service", "kloros-llama-old.service"]
    changes = make_plan(wishes, host)["plan"]["changes"]
    assert changes["units_to_retire"] == ["kloros-llama-old.service"]
    assert changes["files_to_remove"] == instance_files("kloros-llama-old.service")
    assert changes["files_to_remove"][-1] == "/etc/systemd/system/kloros-llama-old.service"


def test_packages_follow_the_source(wishes: Data) -> None:
    assert "git" in packages(wishes["llama_cpp"])
    assert "git" not in packages(wishes["llama_cpp"] | {"source": "archive"})
    assert packages(wishes["llama_cpp"] | {"source": "package"}) == ["libgomp1"]


def test_draft_and_lora_are_files_of_the_instance(wishes: Data, host: Data) -> None:
    wishes["gguf_models"]["models"] |= {
        "draft": {"source": "hf://someone/tiny/draft.gguf"},
        "style": {"source": "hf://someone/tiny/style.gguf"},
    }
    wishes["llama_instances"]["instances"]["live"] |= {
        "draft_model": "draft",
        "lora": [{"model": "style", "scale": 0.5}],
    }
    result = make_plan(wishes, host)
    assert result["findings"] == []
    folder = "/var/lib/kloros-llm/models"
    assert result["plan"]["instances"][0]["model_files"] == [
        f"{folder}/tiny.gguf",
        f"{folder}/draft.gguf",
        f"{folder}/style.gguf",
    ]


def test_instance_of_a_faulty_model_is_not_blamed_too(wishes: Data, host: Data) -> None:
    wishes["gguf_models"]["models"]["tiny:1b"] = {"source": "nowhere"}
    assert errors(make_plan(wishes, host)) == ["gguf_models.tiny:1b.source"]


def test_plan_and_findings_can_be_read(wishes: Data, host: Data) -> None:
    host["units"] = ["kloros-llama-old.service"]
    plan = make_plan(wishes, host)["plan"]
    text = "\n".join(table(plan) + endpoints(plan))
    for words in ("tiny:1b", "127.0.0.1:8080", "8192", "kloros-llama-old.service", "CPU"):
        assert words in text
    host["machine"]["systemd"] = 1
    lines = render(make_plan(wishes, host)["findings"])
    assert lines[0] == "ERROR systemd: 1"
