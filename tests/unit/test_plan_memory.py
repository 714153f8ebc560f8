"""The memory in the plan: wishes met best-first, servers that were asked, runs that repeat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import memory_model
from ansible_collections.kloros.llm.plugins.module_utils.memory_model import RunConfig
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape
from ansible_collections.kloros.llm.plugins.module_utils.plan import (
    lasting,
    make_plan,
    models_to_read,
)
from ansible_collections.kloros.llm.plugins.module_utils.plan_memory import (
    dry_run_findings,
    dry_run_key,
    known_dry_runs,
    plan_sources,
    previous_plan,
    with_dry_runs,
)
from ansible_collections.kloros.llm.plugins.module_utils.vram_need import (
    CUDA_CONTEXT_MIB,
    PROJECTOR_COMPUTE_MIB,
)
from ansible_collections.kloros.llm.plugins.module_utils.vram_plan import vram_plan

from tests.unit.planned_models import header_of, headers_of

Data = dict[str, Any]
UUID = "GPU-3060"


@pytest.fixture
def on_gpu(wishes: Data, gpu_host: Data) -> tuple[Data, Data]:
    """An instance of a small model on the first GPU."""
    wishes["llama_instances"]["instances"]["live"] |= {"gpus": [0], "context": 4096}
    gpu_host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    return wishes, gpu_host


ADAPTER = {
    "shape": None,
    "shape_detail": "a file of kind 'adapter' is no language model",
    "architecture": "qwen2",
    "context_trained": None,
}


def warnings(result: Data) -> list[str]:
    return [finding["found"] for finding in result["findings"] if finding["level"] == "warning"]


def errors(result: Data) -> list[str]:
    return [finding["found"] for finding in result["findings"] if finding["level"] == "error"]


def rows(plan: Data, **more: int) -> list[Data]:
    """What a server says that takes just what was predicted, but for what is named."""
    predicted = plan["memory"]["instances"]["live"]["predicted"]
    return [
        {**row, **{part: row[part] + mib for part, mib in more.items()}}
        if row["device"] == "CUDA0"
        else dict(row)
        for row in predicted
    ]


def say(host: Data, plan: Data, **said: Any) -> None:
    """Have the server asked about the plan's instance, and say what module llama_fit returns."""
    answer = {
        "item": {"name": "live"},
        "asked": "llama-server",
        "accepted": True,
        "rows": rows(plan),
        "draft_rows": [],
        "projector_mib": {},
        "not_covered": [],
        **said,
    }
    host["dry_runs"] = with_dry_runs(host["dry_runs"], plan["memory"]["keys"], [answer])


def ask(host: Data, plan: Data, **more: int) -> None:
    """Have the server say that it takes just so much more on the GPU than was predicted."""
    say(host, plan, rows=rows(plan, **more))


def devices(result: Data) -> Data:
    """What the instance takes, by device."""
    taken = result["plan"]["memory"]["instances"]["live"]["devices"]
    return {row["device"]: row for row in taken}


def test_memory_settles_the_instance(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["llama_instances"]["instances"]["live"]["context"] = {"want": 32768, "min": 1024}
    wishes["gpu_reserve_mib"] = {"0": 12288 - 1200}
    result = make_plan(wishes, host)
    (live,) = result["plan"]["instances"]
    assert errors(result) == []
    assert 1024 <= live["context_tokens"] < 32768
    assert live["environment"]["LLAMA_ARG_CTX_SIZE"] == str(live["context_tokens"])
    (gpu, _) = result["plan"]["memory"]["gpus"]
    assert gpu["instances"][0]["mib"] <= 1200
    json.dumps(result)


def test_what_does_not_fit_is_an_error_with_ways_out(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    host["headers"] = headers_of(wishes, "qwen2.5-32b")
    result = make_plan(wishes, host)
    (finding,) = [item for item in result["findings"] if item["level"] == "error"]
    assert finding["key"] == "llama_instances.live"
    assert "has 11776 of 12288 MiB" in finding["found"]
    assert all(f"({number})" in finding["cure"] for number in (1, 2, 3))


def test_alternative_is_taken_where_the_wish_does_not_fit(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    host["headers"] = headers_of(wishes, "qwen2.5-32b")
    live = wishes["llama_instances"]["instances"]["live"]
    live["alternatives"] = [{"gpus": [0, 1], "context": 2048, "kv_cache": ["q8_0"]}]
    result = make_plan(wishes, host)
    (instance,) = result["plan"]["instances"]
    (finding,) = result["findings"]
    assert (finding["level"], instance["alternative"]) == ("warning", 1)
    assert "alternative 1 (the wish itself: GPU 0" in finding["found"]
    assert instance["environment"]["LLAMA_ARG_DEVICE"] == "CUDA0,CUDA1"
    assert instance["environment"]["LLAMA_ARG_TENSOR_SPLIT"].count(",") == 1


def test_locked_out_gpu_takes_no_part(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["gpu_lockout"] = [UUID]
    result = make_plan(wishes, host)
    assert errors(result) == ["GPU 0 (NVIDIA GeForce RTX 3060) is locked out by gpu_lockout"]
    assert [gpu["index"] for gpu in result["plan"]["memory"]["gpus"]] == [1]


def test_header_that_cannot_be_read_is_an_error(wishes: Data, host: Data) -> None:
    (item,) = models_to_read(wishes)
    host["headers"] = [{"item": item, "problem": "HTTP 404"}]
    result = make_plan(wishes, host)
    assert errors(result) == ["HTTP 404"]
    assert item["path"] == "/var/lib/kloros-llm/models/tiny.gguf"


def test_server_that_says_the_same_changes_nothing(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    first = make_plan(wishes, host)["plan"]
    assert first["memory"]["unasked"] == ["live"]
    ask(host, first)
    second = make_plan(wishes, host)["plan"]
    assert second["memory"]["unasked"] == []
    assert second["memory"]["differences"] == {}
    assert second["instances"] == first["instances"]


def test_server_that_says_more_makes_another_plan(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["llama_instances"]["instances"]["live"]["context"] = {"want": 32768, "min": 1024}
    wishes["gpu_reserve_mib"] = {UUID: 12288 - 1200}
    first = make_plan(wishes, host)["plan"]
    ask(host, first, compute_mib=100)
    second = make_plan(wishes, host)["plan"]
    assert second["instances"][0]["context_tokens"] < first["instances"][0]["context_tokens"]
    assert second["memory"]["differences"] == {}  # of the new configuration nothing is known yet
    assert second["memory"]["unasked"] == ["live"]
    ask(host, second, compute_mib=100)
    third = make_plan(wishes, host)["plan"]
    assert third["instances"] == second["instances"]
    assert third["memory"]["differences"] == {"live": {"CUDA0": {"compute_mib": 100}}}
    assert third["memory"]["unasked"] == []
    # The next run begins with what this one wrote, and ends where it ended.
    before = previous_plan(json.dumps(lasting(third)))
    again = make_plan(wishes, host | {"before": before, "dry_runs": known_dry_runs(before)})
    assert lasting(again["plan"]) == lasting(third)


def test_server_that_says_too_much_stops_the_play(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    ask(host, make_plan(wishes, host)["plan"], weights_mib=12000)
    (said,) = errors(make_plan(wishes, host))
    assert "GPU 0" in said


def test_companions_are_corrected_by_what_the_server_says(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["gguf_models"]["models"]["tiny:1b"] |= {
        "mmproj": "hf://someone/tiny/mmproj.gguf",
        "draft": "hf://someone/tiny/draft.gguf",
    }
    host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    first = make_plan(wishes, host)
    before = devices(first)
    assert before["CUDA0"]["draft_mib"] > 300
    assert before["CUDA0"]["projector_mib"] > PROJECTOR_COMPUTE_MIB
    assert "projector" in warnings(first)[0]
    draft = [{"device": "CUDA0", "weights_mib": 300, "kv_mib": 40, "compute_mib": 60}]
    projector = {"CUDA0": 199.2, "Host": 0.6}
    say(host, first["plan"], draft_rows=draft, projector_mib=projector)
    result = make_plan(wishes, host)
    after = devices(result)
    # The draft's three parts are told rounded down.
    assert 400 <= after["CUDA0"]["draft_mib"] <= 403
    assert after["CUDA0"]["projector_mib"] == 200
    assert after["Host"]["projector_mib"] == 1
    assert after["CUDA0"]["weights_mib"] == before["CUDA0"]["weights_mib"]
    assert warnings(result) == []
    assert result["plan"]["memory"]["unasked"] == []
    # A server that tells nothing of them does not make them nothing.
    say(host, first["plan"])
    assert devices(make_plan(wishes, host)) == before


def test_sum_over_all_gpus_corrects_none_of_them(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["llama_instances"]["instances"]["live"] |= {"gpus": [0, 1], "split_mode": "tensor"}
    first = make_plan(wishes, host)
    assert "split mode tensor" in warnings(first)[0]
    together = {"device": "Meta()", "weights_mib": 900, "kv_mib": 100, "compute_mib": 100}
    say(host, first["plan"], rows=[together, rows(first["plan"])[-1]], not_covered=["each GPU"])
    result = make_plan(wishes, host)
    assert devices(result) == devices(first)
    memory = result["plan"]["memory"]
    assert (memory["differences"], memory["not_covered"]) == ({}, {"live": ["each GPU"]})


def test_adapters_of_an_instance_are_counted(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    before = devices(make_plan(wishes, host))
    wishes["gguf_models"]["models"]["style"] = {"source": "hf://someone/tiny/style.gguf"}
    wishes["llama_instances"]["instances"]["live"]["lora"] = [{"model": "style", "scale": 0.5}]
    host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    host["headers"][1] |= ADAPTER | {"data_bytes": 300 * 2**20}
    result = make_plan(wishes, host)
    after = devices(result)
    assert result["findings"] == []
    # All of them lie with the layers: nobody adapts the table of words, which is on the host.
    assert after["CUDA0"]["weights_mib"] == before["CUDA0"]["weights_mib"] + 300
    assert after["Host"] == before["Host"]


def test_adapter_is_no_model_to_run(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    host["headers"][0] |= ADAPTER
    assert errors(make_plan(wishes, host)) == [f"tiny:1b: {ADAPTER['shape_detail']}"]


def test_draft_model_that_cannot_be_read_is_said_once(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["gguf_models"]["models"]["d"] = {"source": "hf://someone/tiny/d.gguf"}
    wishes["llama_instances"]["instances"]["live"]["draft_model"] = "d"
    item = models_to_read(wishes)[1]
    host["headers"].append({"item": item, "problem": "HTTP 404"})
    assert errors(make_plan(wishes, host)) == ["HTTP 404"]


def test_unknown_architecture_is_told_until_the_server_was_asked(
    on_gpu: tuple[Data, Data],
) -> None:
    wishes, host = on_gpu
    host["headers"][0]["shape"]["architecture"] = "novel"
    first = make_plan(wishes, host)
    (said,) = warnings(first)
    assert "only estimates the architecture novel" in said
    ask(host, first["plan"])
    assert make_plan(wishes, host)["findings"] == []


@pytest.mark.parametrize("lockout", [[0], ["0"], [UUID]])
def test_locked_out_gpu_is_said_with_what_to_do(
    on_gpu: tuple[Data, Data], lockout: list[int | str]
) -> None:
    wishes, host = on_gpu
    wishes["gpu_lockout"] = lockout
    (finding,) = make_plan(wishes, host)["findings"]
    assert "is locked out" in finding["found"]
    assert "gpu_lockout" in finding["cure"]


def test_many_plans_of_a_model_ask_for_each_setting_once(
    on_gpu: tuple[Data, Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes, host = on_gpu
    asked: list[RunConfig] = []
    real, defaults = memory_model.memory, vram_plan.__kwdefaults__ or {}

    def counting(shape: ModelShape, config: RunConfig) -> Any:
        asked.append(config)
        return real(shape, config)

    monkeypatch.setattr(memory_model, "memory", counting)
    monkeypatch.setattr(vram_plan, "__kwdefaults__", defaults | {"memory": counting})
    first = make_plan(wishes, host)
    assert len(asked) == len(set(asked)) > 0
    known = len(asked)
    wishes["gguf_models"]["models"]["same"] = {"source": "hf://someone/tiny/same.gguf"}
    wishes["llama_instances"]["instances"]["live"]["model"] = "same"
    host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    assert devices(make_plan(wishes, host)) == devices(first)
    assert len(asked) == known


def test_neighbours_do_not_change_what_is_written(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    quiet = lasting(make_plan(wishes, host)["plan"])
    host["gpus"]["gpus"][0]["memory_free_mib"] -= 700
    host["gpus"]["gpus"][0]["processes"] = [{"pid": 7, "name": "voice", "used_mib": 700}]
    assert lasting(make_plan(wishes, host)["plan"]) == quiet


def test_others_are_seen_beside_own_servers_where_the_driver_hides_processes(
    on_gpu: tuple[Data, Data],
) -> None:
    wishes, host = on_gpu
    plan = make_plan(wishes, host)["plan"]
    taken = plan["memory"]["instances"]["live"]["devices"][0]["total_mib"]
    assert taken > CUDA_CONTEXT_MIB
    host["gpus"]["gpus"][0]["memory_free_mib"] -= taken + 1000
    host["unit_processes"] = {"kloros-llama-live.service": 4711}
    host["before"] = previous_plan(json.dumps(lasting(plan)))
    assert make_plan(wishes, host)["plan"]["memory"]["gpus"][0]["neighbours_mib"] == 1280
    host["unit_processes"] = {}  # it does not run, so what is used is others'
    assert make_plan(wishes, host)["plan"]["memory"]["gpus"][0]["neighbours_mib"] > 2000


def test_who_gives_memory_back_stops_before_others_take_it(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    live = wishes["llama_instances"]["instances"]["live"]
    live["context"] = 16384
    first = make_plan(wishes, host)["plan"]
    assert first["changes"]["units_to_move"] == []
    host["before"] = previous_plan(json.dumps(lasting(first)))
    assert make_plan(wishes, host)["plan"]["changes"]["units_to_move"] == []
    less: list[Data] = [{"context": 4096}, {"gpus": []}]
    for changed in less:
        wishes["llama_instances"]["instances"]["live"] = live | changed
        shrunk = make_plan(wishes, host)["plan"]
        assert shrunk["changes"]["units_to_move"] == ["kloros-llama-live.service"]
    wishes["llama_instances"]["instances"]["live"] = live | {"context": 20480}
    assert make_plan(wishes, host)["plan"]["changes"]["units_to_move"] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"memory": {}}',
        '{"memory": {"instances": {"live": {"devices": [{}]}}, "dry_runs": {}}}',
        '{"memory": {"instances": {}, "dry_runs": {"release": "r", "answers": {"k": {}}}}}',
        '{"memory": {"instances": {}, "dry_runs": {"release": 1, "answers": {}}}}',
    ],
)
def test_old_or_broken_plan_is_none(text: str) -> None:
    assert previous_plan(text) == {}
    assert known_dry_runs({}) == {"release": "", "answers": {}}


def test_key_is_of_what_matters() -> None:
    environment = {"LLAMA_ARG_CTX_SIZE": "4096", "LLAMA_ARG_PORT": "8080"}
    key = dry_run_key(environment, [{"shape": 1}])
    assert dry_run_key(environment | {"LLAMA_ARG_PORT": "8081"}, [{"shape": 1}]) == key
    assert dry_run_key(environment | {"LLAMA_ARG_CTX_SIZE": "8192"}, [{"shape": 1}]) != key
    assert dry_run_key(environment, [{"shape": 2}]) != key


def test_refusal_is_told_with_the_servers_words() -> None:
    results = [
        {"item": {"name": "live"}, "accepted": True, "asked": "llama-server", "last_words": []},
        {
            "item": {"name": "code"},
            "accepted": False,
            "asked": "llama-server",
            "last_words": ["wrong number of tensors"],
        },
    ]
    (finding,) = dry_run_findings(results)
    assert (finding["key"], finding["found"]) == (
        "llama_instances.code",
        "wrong number of tensors",
    )


def test_sources_of_all_files(wishes: Data, host: Data) -> None:
    wishes["gguf_models"]["models"]["tiny:1b"] |= {"mmproj": "hf://someone/tiny/mmproj.gguf"}
    folder = "/var/lib/kloros-llm/models"
    assert plan_sources(make_plan(wishes, host)["plan"]) == [
        {"path": f"{folder}/tiny.gguf", "source": "hf://someone/tiny/tiny.gguf@main"},
        {"path": f"{folder}/tiny.mmproj.gguf", "source": "hf://someone/tiny/mmproj.gguf@main"},
    ]
    (live,) = make_plan(wishes, host)["plan"]["instances"]
    assert live["environment"]["LLAMA_ARG_MMPROJ"] == f"{folder}/tiny.mmproj.gguf"


def two_models(wishes: Data, host: Data) -> None:
    """A model of 7 billion parameters and one of half a billion, for the instance live."""
    wishes["gguf_models"]["models"] = {
        name: {"source": f"hf://someone/them/{name}.gguf"} for name in ("big", "little")
    }
    zoo = {"big.gguf": "qwen2.5-7b", "little.gguf": "qwen2.5-0.5b"}
    host["headers"] = [header_of(item, zoo[item["file"]]) for item in models_to_read(wishes)]
    wishes["llama_instances"]["instances"]["live"] |= {
        "model": "big",
        "alternatives": [{"model": "little"}],
    }


@pytest.mark.parametrize("more_mib", [9000, 12000])
def test_what_is_said_of_the_wish_is_not_held_against_the_alternative(
    on_gpu: tuple[Data, Data], more_mib: int
) -> None:
    wishes, host = on_gpu
    two_models(wishes, host)
    ask(host, make_plan(wishes, host)["plan"], compute_mib=more_mib)
    second = make_plan(wishes, host)
    assert errors(second) == []
    (live,) = second["plan"]["instances"]
    assert (live["model"], second["plan"]["memory"]["unasked"]) == ("little", ["live"])
    ask(host, second["plan"])
    third = make_plan(wishes, host)
    (predicted, _) = third["plan"]["memory"]["instances"]["live"]["predicted"]
    assert devices(third)["CUDA0"]["compute_mib"] <= predicted["compute_mib"] + 1
    assert third["plan"]["memory"]["unasked"] == []


def test_what_is_said_of_a_wish_leaves_room_beside_its_alternative(
    on_gpu: tuple[Data, Data],
) -> None:
    wishes, host = on_gpu
    two_models(wishes, host)
    code = {"model": "big", "port": 8081, "gpus": [0], "context": 2048}
    wishes["llama_instances"]["instances"]["code"] = code
    ask(host, make_plan(wishes, host)["plan"], compute_mib=7000)
    result = make_plan(wishes, host)
    assert errors(result) == []
    models = {one["name"]: one["model"] for one in result["plan"]["instances"]}
    assert models == {"live": "little", "code": "big"}


def test_build_stays_what_it_is_whatever_the_engine_says(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    wishes["llama_instances"]["instances"]["live"]["alternatives"] = [{"gpus": []}]
    first = make_plan(wishes, host)["plan"]
    ask(host, first, compute_mib=12000)
    second = make_plan(wishes, host)["plan"]
    assert second["instances"][0]["gpus"] == []
    assert first["llama_cpp"] == second["llama_cpp"]
    assert second["llama_cpp"]["backend"] == "cuda"
    say(host, second)
    third = make_plan(wishes, host)["plan"]
    before = previous_plan(json.dumps(lasting(third)))
    again = make_plan(wishes, host | {"before": before, "dry_runs": known_dry_runs(before)})["plan"]
    assert lasting(again) == lasting(third)
    assert again["memory"]["unasked"] == []


def test_without_its_gpus_a_wish_asks_for_no_cuda(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    live = wishes["llama_instances"]["instances"]["live"]
    live |= {"gpus": ["GPU-elsewhere"], "alternatives": [{"gpus": []}]}
    assert make_plan(wishes, host)["plan"]["llama_cpp"]["backend"] == "cpu"


def test_dry_run_is_known_again_when_the_file_is_on_the_host(on_gpu: tuple[Data, Data]) -> None:
    wishes, host = on_gpu
    host["headers"][0] |= {"size_bytes": None, "quantisation": None}
    ask(host, make_plan(wishes, host)["plan"])
    host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    assert make_plan(wishes, host)["plan"]["memory"]["unasked"] == []
