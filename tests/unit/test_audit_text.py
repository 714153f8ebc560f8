"""The audit as a person reads it: the KLoROS machine with the 32B models of its owner's plan."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.kloros.llm.plugins.module_utils.audit_text import audit_report
from ansible_collections.kloros.llm.plugins.module_utils.plan import make_plan

from tests.unit.conftest import PROJECT
from tests.unit.planned_models import headers_of

Data = dict[str, Any]
SECTIONS = ["Host", "GPUs", "Models", "Memory", "With other GPUs", "Findings"]


@pytest.fixture
def kloros(wishes: Data, gpu_host: Data) -> tuple[Data, Data]:
    """The wishes of `inventories/kloros`, and its machine before anything is installed."""
    inventory = PROJECT / "inventories/kloros/group_vars/all.yml"
    wished = yaml.safe_load(inventory.read_text(encoding="utf-8"))
    wishes["gguf_models"] |= {"models": wished["gguf_models"], "dir": wished["gguf_models_dir"]}
    wishes["gguf_models"]["owner"] = wished["gguf_models_owner"]
    wishes["llama_instances"]["instances"] = wished["llama_instances"]
    wishes["llama_cpp"]["cuda_nonfree"] = wished["llama_cpp_cuda_nonfree"]
    gpu_host["headers"] = headers_of(wishes, "qwen2.5-32b")
    return wishes, gpu_host


def report(wishes: Data, host: Data) -> list[str]:
    result = make_plan(wishes, host)
    return audit_report(wishes, host, result["plan"], result["findings"])


def sections(lines: list[str]) -> dict[str, list[str]]:
    """The report's lines by title."""
    found: dict[str, list[str]] = {}
    title = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line and following == "=" * len(line):
            title = line
            found[title] = []
        elif title and set(line) != {"="}:
            found[title].append(line)
    return found


def joined(lines: list[str]) -> str:
    """As one line, whatever was wrapped."""
    return " ".join(" ".join(lines).split())


def test_models_of_the_plan_do_not_fit_the_owners_cards(kloros: tuple[Data, Data]) -> None:
    found = sections(report(*kloros))
    assert list(found) == SECTIONS[:-1]  # nothing is wrong but what the memory says
    memory = joined(found["Memory"])
    # Two slots of 8192 tokens as q8_0 are the least of the wish: 64 layers of 8 heads of 128 of
    # 34/32 bytes, keys and values, 2176 MiB; the file's own 18.5 GiB lie on the GPU but for the
    # table of words.
    assert "live does not fit: found: GPU 0 (NVIDIA GeForce RTX 3060) would need" in memory
    assert "KV cache 2176," in memory
    assert "has 11776 of 12288 MiB left for it" in memory
    assert "code does not fit: found: GPU 1 (NVIDIA GeForce GTX 1080 Ti) would need" in memory
    assert "KV cache 1088," in memory
    assert "has 10752 of 11264 MiB left for it" in memory
    assert "1. split it over gpus: [0, 1]: then 2 slots of 8192 tokens, KV cache q8_0" in memory
    assert memory.count("leave a part to the CPU with offload: auto") == 2
    assert memory.count("take a smaller model") == 2


def test_audit_says_what_is_there(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    host["gpus"]["gpus"][1]["processes"] = [{"pid": 812, "name": "ollama", "used_mib": 4000}]
    host["gpus"]["gpus"][1]["memory_free_mib"] = 7000
    host["headers"][1]["on_host"] = True
    found = sections(report(wishes, host))
    assert "Debian GNU/Linux 13 (trixie), x86_64, 8 CPUs, 32000 MiB" in joined(found["Host"])
    first, second = found["GPUs"][2:4]
    assert first.split()[:5] == ["0", "NVIDIA", "GeForce", "RTX", "3060"]
    assert "ollama (812)" in second
    main, coder = found["Models"][2:4]
    for line in (main, coder):
        assert all(word in line for word in (" Q4_K_M ", " 32768 ", " qwen2 "))
        assert float(line.split()[1]) == pytest.approx(18.5, abs=0.1)
    assert main.endswith(
        "to be fetched: hf://Qwen/Qwen2.5-32B-Instruct-GGUF/qwen2.5-32b-instruct-q4_k_m.gguf"
    )
    assert coder.endswith("on the host")
    assert "Others use 4264 MiB, counted as 4352: ollama (812, 4000 MiB)." in joined(
        found["Memory"]
    )


def test_audit_shows_what_each_set_of_gpus_would_give(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    live = wishes["llama_instances"]["instances"]["live"]
    live["alternatives"] = [{"gpus": [0, 1]}, {"gpus": [], "context": 4096, "parallel": 1}]
    del wishes["llama_instances"]["instances"]["code"]
    profiles = joined(sections(report(wishes, host))["With other GPUs"])
    everything, rest = profiles.split("without GPU 0 ")
    without_first, rest = rest.split("without GPU 1 ")
    without_second, none = rest.split("CPU only ")
    assert "live 2 x 8192 tokens, q8_0, 65 of 65 layers on the GPUs" in everything
    for profile in (without_first, without_second, none):
        assert "live 1 x 4096 tokens, f16, on the CPU" in profile


def test_locked_out_and_divided_gpus_are_marked(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    wishes["gpu_lockout"] = ["0"]
    host["gpus"]["gpus"][1]["mig"] = True
    first, second = sections(report(wishes, host))["GPUs"][2:4]
    assert first.startswith("0 (locked out) ")
    assert second.startswith("1 (divided by MIG) ")


def test_model_that_cannot_be_read_is_told_with_its_finding(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    host["headers"][0] = {"item": host["headers"][0]["item"], "problem": "HTTP 401: gated"}
    found = sections(report(wishes, host))
    assert "cannot be read, see below" in found["Models"][2]
    assert "ERROR gguf_models.qwen2.5:32b-instruct-q4_K_M: HTTP 401: gated" in found["Findings"]


def test_host_without_gpus_says_why(wishes: Data, host: Data) -> None:
    host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    found = sections(report(wishes, host))
    assert list(found) == SECTIONS
    assert found["GPUs"][0] == "none: there is no nvidia-smi"
    assert found["Findings"] == ["Nothing is wrong."]
    assert "live 1 x 8192 tokens, f16, on the CPU" in joined(found["With other GPUs"])


def test_nothing_wished_for_is_nothing_wrong(wishes: Data, host: Data) -> None:
    wishes["gguf_models"]["models"] = wishes["llama_instances"]["instances"] = {}
    found = sections(report(wishes, host))
    assert found["Models"][0] == "none"
    assert "no instance is planned" in found["Memory"]


def test_wrong_settings_are_findings_without_a_memory_plan(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    wishes["memory_reserve_mib"] = -1
    found = sections(report(wishes, host))
    assert "Memory" not in found
    assert found["Findings"][0] == "ERROR preflight_memory_reserve_mib: -1"


def test_a_card_that_is_taken_out_shifts_indices(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    instances = wishes["llama_instances"]["instances"]
    others = joined(sections(report(wishes, host))["With other GPUs"])
    assert "live, code names GPUs by index" in others
    uuids = [gpu["uuid"] for gpu in host["gpus"]["gpus"]]
    for name, uuid in zip(instances, uuids, strict=True):
        instances[name]["gpus"] = [uuid]
    assert "by index" not in joined(sections(report(wishes, host))["With other GPUs"])
    instances["live"]["alternatives"] = [{"gpus": [1]}]
    others = joined(sections(report(wishes, host))["With other GPUs"])
    assert "live names GPUs by index" in others


def test_what_does_not_fit_is_told_once(kloros: tuple[Data, Data]) -> None:
    """Also where alternatives were passed over, and the finding goes on with the wish itself."""
    wishes, host = kloros
    wishes["llama_instances"]["instances"]["live"]["alternatives"] = [{"gpus": [1]}]
    lines = report(wishes, host)
    assert "live does not fit" in joined(sections(lines)["Memory"])
    assert list(sections(lines)) == SECTIONS[:-1]


def test_no_query_of_a_source_is_shown(kloros: tuple[Data, Data]) -> None:
    wishes, host = kloros
    name = next(iter(wishes["gguf_models"]["models"]))
    source = "https://models.example.org/a.gguf?token=canary"
    file = host["headers"][0]["item"]["file"]
    wishes["gguf_models"]["models"][name] = {"source": source, "file": file}
    text = "\n".join(report(wishes, host))
    assert "https://models.example.org/a.gguf" in text
    assert "canary" not in text
