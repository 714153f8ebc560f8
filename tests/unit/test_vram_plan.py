"""The memory planner: real models on real cards, and small ones against brute force."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import memory_model
from ansible_collections.kloros.llm.plugins.module_utils.memory_model import (
    HOST,
    MIB,
    DeviceMemory,
    MemoryModelError,
    RunConfig,
    placement,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import (
    LayerShape,
    ModelShape,
    TensorShape,
)
from ansible_collections.kloros.llm.plugins.module_utils.vram_need import context_steps
from ansible_collections.kloros.llm.plugins.module_utils.vram_plan import profiles, vram_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vram_shapes import model, qwen3_30b_a3b, qwen25_7b, qwen25_14b, qwen25_32b

Data = dict[str, Any]

FIRST, SECOND, THIRD = "GPU-0a", "GPU-1b", "GPU-2c"
HOST_MEMORY = {"memory_mib": 32000, "reserve_mib": 4096}
KV_BYTES = {"f16": 4, "q8_0": 2, "q4_0": 1}


def gpu(index: int, total_mib: int, **more: Any) -> Data:
    uuid = (FIRST, SECOND, THIRD)[index]
    return {
        "index": index,
        "uuid": uuid,
        "name": f"Card {index}",
        "compute_capability": "8.6",
        "memory_total_mib": total_mib,
        "memory_free_mib": total_mib,
        "processes": [],
        **more,
    }


def kloros_gpus() -> list[Data]:
    return [
        gpu(0, 12288, name="NVIDIA GeForce RTX 3060"),
        gpu(1, 11264, name="NVIDIA GeForce GTX 1080 Ti", compute_capability="6.1"),
    ]


def instance(name: str, model_name: str, gpus: list[str], **more: Any) -> Data:
    return {
        "name": name,
        "model": model_name,
        "gpus": gpus,
        "context": {"want": 32768, "min": 8192},
        "slots": 1,
        "kv_cache": ["f16", "q8_0"],
        **more,
    }


def kloros_instances() -> list[Data]:
    """As inventories/kloros has them."""
    return [
        instance("live", "qwen2.5:32b", [FIRST], slots=2),
        instance("code", "qwen2.5-coder:32b", [SECOND]),
    ]


def kloros_models() -> Data:
    big = model(qwen25_32b(), 32.76e9)
    return {"qwen2.5:32b": big, "qwen2.5-coder:32b": big}


def within_budgets(plan: Data) -> bool:
    """Every total adds up, and none is more than there is."""
    for name, planned in plan["instances"].items():
        for device in planned["devices"]:
            parts = [value for key, value in device.items() if key.endswith("_mib")]
            assert sum(parts) == 2 * device["total_mib"], (name, device)
    for pool in [*plan["gpus"], plan["host"]]:
        taken = sum(item["mib"] for item in pool["instances"])
        if pool["free_mib"] != pool["budget_mib"] - taken or pool["free_mib"] < 0:
            return False
    return True


# The owner's host


def test_plans_models_do_not_fit_the_owners_cards() -> None:
    plan = vram_plan(kloros_gpus(), kloros_instances(), kloros_models(), HOST_MEMORY)
    assert plan["instances"] == {}
    live, code = plan["problems"]
    assert live["key"] == "llama_instances.live"
    # 19.84 GB of weights less the input embedding, and 2 x 8192 tokens of 256 KiB at 17/32.
    assert "weights 18507, KV cache 2176, compute " in live["found"]
    assert "GPU 0 (NVIDIA GeForce RTX 3060) would need 21" in live["found"]
    assert "has 11776 of 12288 MiB left for it" in live["found"]
    assert "2 slots of 8192 tokens, KV cache q8_0" in live["needed"]
    assert "without code, not planned either" in live["needed"]
    assert "weights 18507, KV cache 1088, compute " in code["found"]
    for problem in (live, code):
        kinds = [way["kind"] for way in problem["ways_out"]]
        assert kinds == ["gpus", "offload", "smaller_model"]
        split = problem["ways_out"][0]
        assert split["change"]["gpus"] == [FIRST, SECOND]
        assert "gpus: [0, 1]" in split["text"]
        # Weights have to be about 9 GiB: a 14B model at this quantisation, not a 32B one.
        assert "about 15." in problem["ways_out"][2]["text"]
    json.dumps(plan)


def test_smaller_models_of_the_inventory_are_offered_the_largest_first() -> None:
    models = kloros_models()
    models["qwen2.5:7b"] = model(qwen25_7b(), 7.62e9)
    models["qwen2.5:14b"] = model(qwen25_14b(), 14.77e9)
    plan = vram_plan(kloros_gpus(), kloros_instances(), models, HOST_MEMORY)
    for problem in plan["problems"]:
        ways = {way["kind"]: way["change"] for way in problem["ways_out"]}
        assert ways["model"] == {"model": "qwen2.5:14b"}


def test_big_model_split_over_both_cards() -> None:
    (live, _) = kloros_instances()
    live |= {"gpus": [FIRST, SECOND]}
    plan = vram_plan(kloros_gpus(), [live], kloros_models(), HOST_MEMORY)
    assert plan["problems"] == []
    got = plan["instances"]["live"]
    assert got["kv_cache"] == "q8_0"
    assert 8192 <= got["context_tokens"] < 16384
    assert got["gpu_layers"] == "all"
    assert sum(got["tensor_split"]) == 65
    assert got["tensor_split"][0] > got["tensor_split"][1]
    assert within_budgets(plan)
    # What the plan says is what the memory model says of exactly this.
    config = RunConfig(
        context_tokens=got["context_tokens"],
        slots=2,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        devices=("CUDA0", "CUDA1"),
        gpu_layers=65,
        tensor_split=tuple(got["tensor_split"]),
    )
    for row, device in zip(memory_model.memory(qwen25_32b(), config), got["devices"], strict=True):
        assert device["weights_mib"] == -(-row.weights_bytes // MIB)
        assert device["kv_mib"] == -(-row.kv_bytes // MIB)
        assert device["compute_mib"] == -(-row.compute_bytes // MIB)
    assert any("With 2 slots of 32768 tokens" in reason for reason in got["reasons"])


def test_neighbour_of_the_night_takes_the_room() -> None:
    """judge.service starts at 03:00 and takes 6 to 11 GB of GPU 0."""
    models = {"7b": model(qwen25_7b(), 7.62e9)}
    live = instance("live", "7b", [FIRST], context={"want": 16384, "min": 8192})
    assert "live" in vram_plan(kloros_gpus(), [live], models, HOST_MEMORY)["instances"]
    judge = {"pid": 77, "name": "/usr/bin/python3", "used_mib": 9000}
    cards = kloros_gpus()
    cards[0] |= {"memory_free_mib": 3200, "processes": [judge]}
    plan = vram_plan(cards, [live], models, HOST_MEMORY)
    (problem,) = plan["problems"]
    ways = {way["kind"]: way for way in problem["ways_out"]}
    assert ways["gpus"]["change"]["gpus"] == [SECOND]
    assert "free what others use now (9216 MiB on GPU 0)" in ways["neighbours"]["text"]
    assert plan["gpus"][0]["neighbours_mib"] == 9216
    assert "/usr/bin/python3 (77, 9000 MiB)" in plan["gpus"][0]["note"]


def test_experts_go_to_the_cpu_before_layers_do() -> None:
    models = {"moe": model(qwen3_30b_a3b(), 30.5e9)}
    wish = instance("live", "moe", [FIRST], offload="auto")
    plan = vram_plan(kloros_gpus(), [wish], models, HOST_MEMORY)
    got = plan["instances"]["live"]
    assert got["gpu_layers"] == "all"
    assert 0 < got["cpu_moe_layers"] < 48
    assert within_budgets(plan)
    less = {**wish, "cpu_moe": got["cpu_moe_layers"] - 1, "offload": "full"}
    assert vram_plan(kloros_gpus(), [less], models, HOST_MEMORY)["instances"] == {}


def test_of_a_dense_model_as_many_layers_as_fit_stay_on_the_gpu() -> None:
    (live, _) = kloros_instances()
    plan = vram_plan(kloros_gpus(), [live | {"offload": "auto"}], kloros_models(), HOST_MEMORY)
    got = plan["instances"]["live"]
    assert 20 < got["layers_on_gpu"] < 40
    assert got["gpu_layers"] == got["layers_on_gpu"]
    assert within_budgets(plan)
    more = live | {"gpu_layers": got["layers_on_gpu"] + 1}
    assert vram_plan(kloros_gpus(), [more], kloros_models(), HOST_MEMORY)["instances"] == {}


# A small model whose every number is plain, for the rules themselves


def layer(weights_mib: int, experts_mib: int = 0) -> LayerShape:
    tensors = {"attn_q.weight": TensorShape((1,), "F32", weights_mib * MIB)}
    if experts_mib:
        tensors["ffn_up_exps.weight"] = TensorShape((1,), "F32", experts_mib * MIB)
    return LayerShape(
        heads=1,
        kv_heads=1,
        key_length=1,
        value_length=1,
        feed_forward=1,
        expert_feed_forward=1,
        experts_used=1,
        cached=True,
        sliding=False,
        recurrent=False,
        nextn=False,
        tensors=tensors,
    )


def small(layers: Sequence[LayerShape], *, context: int = 65536, kv_mib: int = 1) -> Data:
    """A model whose layers take `kv_mib` MiB of f16 KV cache for 1024 tokens."""
    shape = ModelShape(
        architecture="small",
        name="small",
        context_trained=context,
        vocabulary=1,
        embedding_length=1,
        sliding_window=0,
        parameters={"kv_mib": kv_mib},
        layers=tuple(layers),
        tensors={},
    )
    return model(shape, None)


OUTPUT_MIB, INPUT_MIB, COMPUTE_MIB = 30, 7, 11


def stand_in_memory(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
    """Every layer its weights and its KV cache, and constants for the rest."""
    where = placement(shape, config)
    names = (*where.devices, HOST)
    weights, cache = [0] * len(names), [0] * len(names)
    weights[-1] += INPUT_MIB * MIB
    for index, (entry, device) in enumerate(zip(shape.layers, where.layers, strict=True)):
        experts = entry.experts_host_bytes
        weights[device] += entry.dense_host_bytes
        weights[device if index >= config.cpu_moe_layers else -1] += experts
        per_token = shape.parameter("kv_mib") * MIB * KV_BYTES[config.cache_type_k] // 4 // 1024
        cache[device] += per_token * config.context_tokens * config.slots
    weights[where.output] += OUTPUT_MIB * MIB
    return [
        DeviceMemory(name, weights[place], cache[place], COMPUTE_MIB * MIB)
        for place, name in enumerate(names)
    ]


def plan_small(
    gpus: Sequence[Data], wishes: Sequence[Data], models: Data, **more: Any
) -> dict[str, Any]:
    options: Data = {"memory": stand_in_memory, "cuda_context_mib": 100, "default_reserve_mib": 0}
    host = more.pop("host", {"memory_mib": 100_000, "reserve_mib": 0})
    plan = vram_plan(gpus, wishes, models, host, **{**options, **more})
    assert within_budgets(plan)
    return plan


TEN_LAYERS = small([layer(100)] * 10)  # 1030 MiB on the GPU, and 10 MiB of f16 a 1024 tokens
FIXED_MIB = 1000 + OUTPUT_MIB + COMPUTE_MIB + 100


def wish(name: str = "a", **more: Any) -> Data:
    context = {"want": 32768, "min": 4096}
    return instance(name, "m", [FIRST], context=context, kv_cache=["f16", "q8_0", "q4_0"]) | more


def got(plan: Data, name: str = "a") -> tuple[int, str, int | str]:
    planned = plan["instances"][name]
    return planned["context_tokens"], planned["kv_cache"], planned["gpu_layers"]


@pytest.mark.parametrize(
    ("kv_room_mib", "expected"),
    [
        (320, (32768, "f16", "all")),
        (319, (32768, "q8_0", "all")),
        (160, (32768, "q8_0", "all")),
        (159, (32768, "q4_0", "all")),
        (80, (32768, "q4_0", "all")),
        (79, (31744, "q4_0", "all")),
        (10, (4096, "q4_0", "all")),
    ],
)
def test_wishes_are_met_best_first(kv_room_mib: int, expected: tuple[int, str, str]) -> None:
    plan = plan_small([gpu(0, FIXED_MIB + kv_room_mib)], [wish()], {"m": TEN_LAYERS})
    assert got(plan) == expected


def test_below_the_smallest_context_nothing_is_planned() -> None:
    plan = plan_small([gpu(0, FIXED_MIB + 9)], [wish()], {"m": TEN_LAYERS})
    (problem,) = plan["problems"]
    assert f"would need {FIXED_MIB + 10} MiB" in problem["found"]
    assert f"has {FIXED_MIB + 9} of {FIXED_MIB + 9} MiB left" in problem["found"]
    (context, *_) = [way for way in problem["ways_out"] if way["kind"] == "context"]
    assert context["change"] == {"context": {"want": 32768, "min": 3584}}


def test_a_context_without_min_is_not_made_smaller() -> None:
    fixed = wish(context={"want": 32768})
    plan = plan_small([gpu(0, FIXED_MIB + 79)], [fixed], {"m": TEN_LAYERS})
    assert [problem["instance"] for problem in plan["problems"]] == ["a"]


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (512, 1500, [512, 768, 1024, 1280, 1500]),
        (4096, 6000, [4096, 5120, 6000]),
        (8192, 8192, [8192]),
    ],
)
def test_contexts_that_are_tried(least: int, most: int, expected: list[int]) -> None:
    assert context_steps(least, most) == expected


def test_trained_context_is_the_limit_unless_extended() -> None:
    models = {"m": small([layer(100)] * 10, context=2048)}
    plan = plan_small([gpu(0, 8192)], [wish()], models)
    assert got(plan) == (2048, "f16", "all")
    assert "trained for 2048" in plan["instances"]["a"]["reasons"][0]
    plan = plan_small([gpu(0, 8192)], [wish(context_extended=True)], models)
    assert got(plan) == (32768, "f16", "all")


def test_forced_layers_are_kept_and_the_context_fits_around_them() -> None:
    # 4 layers and the output: 430 + 111 MiB, and 4 MiB a 1024 tokens of f16.
    plan = plan_small([gpu(0, 541 + 64)], [wish(gpu_layers=5)], {"m": TEN_LAYERS})
    assert got(plan) == (32768, "q8_0", 5)
    assert plan["instances"]["a"]["layers_on_gpu"] == 5
    assert plan["host"]["instances"] == [{"name": "a", "mib": INPUT_MIB + 600 + 96 + COMPUTE_MIB}]


def test_fewest_layers_leave_the_gpu_and_the_context_takes_the_rest() -> None:
    # 5 of 10 layers at 4096 tokens of q4_0 need 5 x 101 MiB beside the output's 141.
    plan = plan_small([gpu(0, 141 + 505 + 15)], [wish(offload="auto")], {"m": TEN_LAYERS})
    assert got(plan) == (16384, "q4_0", 6)


def test_wished_layers_of_experts_are_kept() -> None:
    models = {"m": small([layer(10, 90)] * 10)}
    plan = plan_small([gpu(0, 8192)], [wish(cpu_moe=4, offload="auto")], models)
    assert plan["instances"]["a"]["cpu_moe_layers"] == 4
    assert plan["host"]["instances"] == [{"name": "a", "mib": INPUT_MIB + 360 + COMPUTE_MIB}]


def test_quantised_cache_needs_flash_attention() -> None:
    plan = plan_small([gpu(0, FIXED_MIB + 160)], [wish(flash_attention="off")], {"m": TEN_LAYERS})
    assert got(plan) == (16384, "f16", "all")
    assert "q8_0, q4_0 is left out" in plan["instances"]["a"]["reasons"][0]
    none = wish(flash_attention="off", kv_cache=["q8_0"])
    plan = plan_small([gpu(0, 8192)], [none], {"m": TEN_LAYERS})
    assert "without flash attention" in plan["problems"][0]["found"]


def test_instance_on_the_cpu_is_bounded_by_the_host() -> None:
    host = {
        "memory_mib": 1000 + OUTPUT_MIB + INPUT_MIB + COMPUTE_MIB + 512 + 80,
        "reserve_mib": 512,
    }
    plan = plan_small([], [wish(gpus=[])], {"m": TEN_LAYERS}, host=host)
    assert got(plan) == (32768, "q4_0", 0)
    assert [device["device"] for device in plan["instances"]["a"]["devices"]] == ["Host"]
    less = {**host, "reserve_mib": 512 + 60}
    plan = plan_small([], [wish(gpus=[])], {"m": TEN_LAYERS}, host=less)
    assert got(plan) == (8192, "q4_0", 0)
    fixed = wish(gpus=[], context={"want": 32768})
    plan = plan_small([], [fixed], {"m": TEN_LAYERS}, host=less)
    assert "the host would need" in plan["problems"][0]["found"]


def test_embeddings_and_reranking_reach_the_memory_model() -> None:
    seen: list[RunConfig] = []

    def watching(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
        seen.append(config)
        return stand_in_memory(shape, config)

    encoder = {"m": small([layer(10)] * 2, context=512, kv_mib=0)}
    plan = plan_small(
        [gpu(0, 8192)], [wish(embeddings=True, ubatch=2048)], encoder, memory=watching
    )
    assert got(plan) == (512, "f16", "all")
    assert {(config.embeddings, config.pooling, config.ubatch) for config in seen} == {
        (True, "unset", 2048)
    }
    seen.clear()
    plan_small([gpu(0, 8192)], [wish(rerank=True)], encoder, memory=watching)
    assert {(config.embeddings, config.pooling) for config in seen} == {(True, "rank")}
    # As many tokens at once as a slot has.
    assert {(config.batch, config.ubatch) for config in seen} == {(512, 512)}
    assert plan["host"]["prompt_caches_mib"] == 0
    seen.clear()
    plan_small([gpu(0, 8192)], [wish()], encoder, memory=watching)
    assert {(config.batch, config.ubatch) for config in seen} == {(2048, 512)}


def test_draft_projector_and_adapter_are_counted() -> None:
    models = {
        "m": TEN_LAYERS
        | {
            "companions": {
                "projector": {"bytes": 40 * MIB, "compute_bytes": 60 * MIB},
                "lora_bytes": 103 * MIB,
            }
        },
        "d": small([layer(5)] * 2, kv_mib=2),
    }
    plan = plan_small([gpu(0, 8192)], [wish(draft_model="d", kv_cache=["q8_0"])], models)
    (card, host) = plan["instances"]["a"]["devices"]
    assert card["projector_mib"] == 100
    # Its weights, 2 layers of 2 MiB a 1024 tokens of f16 whatever the instance has, its buffers.
    assert card["draft_mib"] == 10 + OUTPUT_MIB + 2 * 2 * 32 + COMPUTE_MIB
    assert host["draft_mib"] == INPUT_MIB + COMPUTE_MIB
    assert card["weights_mib"] + host["weights_mib"] == 1030 + 7 + 103 + 1  # both rounded up
    moved = plan_small([gpu(0, 8192)], [wish(projector_on_gpu=False)], models)
    assert [device["projector_mib"] for device in moved["instances"]["a"]["devices"]] == [0, 100]


# Several GPUs


def test_split_over_unequal_gpus_is_what_the_server_will_do() -> None:
    cards = [gpu(0, 900), gpu(1, 500)]
    plan = plan_small(cards, [wish(gpus=[FIRST, SECOND])], {"m": TEN_LAYERS})
    planned = plan["instances"]["a"]
    split = planned["tensor_split"]
    assert sum(split) == 11
    config = RunConfig(
        context_tokens=0, devices=("CUDA0", "CUDA1"), tensor_split=tuple(split), gpu_layers=11
    )
    where = placement(ModelShape.from_data(TEN_LAYERS["shape"]), config)
    held = [where.layers.count(0), where.layers.count(1)]
    assert [split[0], split[1] - 1] == held
    assert where.output == 1
    for device, layers, output in zip(planned["devices"], held, (0, OUTPUT_MIB), strict=False):
        assert device["weights_mib"] == 100 * layers + output


def test_order_of_the_gpus_is_the_instances_own() -> None:
    cards = [gpu(0, 500), gpu(1, 900)]
    plan = plan_small(cards, [wish(gpus=[SECOND, FIRST])], {"m": TEN_LAYERS})
    first, second, _ = plan["instances"]["a"]["devices"]
    assert (first["device"], first["uuid"]) == ("CUDA0", SECOND)
    assert (second["device"], second["uuid"]) == ("CUDA1", FIRST)
    assert first["weights_mib"] > second["weights_mib"]


def test_wished_split_is_left_alone() -> None:
    cards = [gpu(0, 2000), gpu(1, 2000)]
    asked = wish(gpus=[FIRST, SECOND], tensor_split=[3, 1])
    planned = plan_small(cards, [asked], {"m": TEN_LAYERS})["instances"]["a"]
    assert planned["tensor_split"] == [3, 1]
    assert [device["weights_mib"] for device in planned["devices"]] == [900, 130, INPUT_MIB]
    tight = plan_small([gpu(0, 900), gpu(1, 2000)], [asked], {"m": TEN_LAYERS})
    assert [problem["instance"] for problem in tight["problems"]] == ["a"]


def test_split_mode_none_takes_the_main_gpu_alone() -> None:
    cards = [gpu(0, 2000), gpu(1, 2000)]
    asked = wish(gpus=[FIRST, SECOND], split_mode="none", main_gpu=1)
    planned = plan_small(cards, [asked], {"m": TEN_LAYERS})["instances"]["a"]
    assert planned["tensor_split"] == []
    assert [device["weights_mib"] for device in planned["devices"]] == [0, 1030, INPUT_MIB]


@pytest.mark.parametrize("mode", ["row", "tensor"])
def test_other_split_modes_are_estimates(mode: str) -> None:
    cards = [gpu(0, 2000), gpu(1, 1000)]
    asked = wish(gpus=[FIRST, SECOND], split_mode=mode)
    planned = plan_small(cards, [asked], {"m": TEN_LAYERS})["instances"]["a"]
    assert planned["estimates"] == [f"The memory model only estimates split mode {mode}."]
    first, second, _ = planned["devices"]
    assert first["weights_mib"] > second["weights_mib"] > 0


def test_three_gpus() -> None:
    cards = [gpu(0, 500), gpu(1, 700), gpu(2, 500)]
    asked = wish(gpus=[FIRST, SECOND, THIRD])
    plan = plan_small(cards, [asked], {"m": TEN_LAYERS})
    split = plan["instances"]["a"]["tensor_split"]
    assert sum(split) == 11
    assert split[1] == max(split)
    assert [p["instance"] for p in plan_small(cards[:2], [asked], {"m": TEN_LAYERS})["problems"]]


def test_gpu_without_memory_of_its_own_draws_on_the_host() -> None:
    board = gpu(0, 0, memory_total_mib=None, memory_free_mib=None)
    plan = plan_small(
        [board], [wish()], {"m": TEN_LAYERS}, host={"memory_mib": 4000, "reserve_mib": 0}
    )
    total = sum(device["total_mib"] for device in plan["instances"]["a"]["devices"])
    assert plan["host"]["instances"] == [{"name": "a", "mib": total}]
    assert plan["gpus"][0]["total_mib"] is None


# Neighbours and reserves


def process(pid: int, used_mib: int | None) -> Data:
    return {"pid": pid, "name": "judge", "used_mib": used_mib}


@pytest.mark.parametrize(
    ("free_mib", "processes", "own_pids", "own_mib", "neighbours_mib"),
    [
        (10_000, [], [], {}, 0),
        (8900, [], [], {}, 1280),  # hidden, or the driver's own
        (8900, [process(1, 1100)], [], {}, 1280),
        (8720, [process(1, 1280)], [], {}, 1280),
        (8719, [process(1, 1281)], [], {}, 1536),
        (4000, [process(1, 1100), process(2, 4900)], [2], {}, 1280),
        (4000, [process(2, 6000)], [2], {}, 0),
        (4000, [process(1, None)], [], {}, 6144),
        (4000, [process(2, None)], [2], {FIRST: 5000}, 1024),
        (4000, [], [2], {FIRST: 5000}, 1024),
        (4000, [], [2], {}, 6144),  # we run, but not on this GPU
        (4000, [], [2], None, 0),  # nobody tells which part is ours
        (None, [process(1, 300)], [], {}, 512),
    ],
)
def test_what_others_use(
    free_mib: int | None,
    processes: list[Data],
    own_pids: list[int],
    own_mib: dict[str, int] | None,
    neighbours_mib: int,
) -> None:
    card = gpu(0, 10_000, memory_free_mib=free_mib, processes=processes)
    plan = plan_small([card], [], {}, own_pids=own_pids, own_mib=own_mib)
    assert plan["gpus"][0]["neighbours_mib"] == neighbours_mib
    assert plan["gpus"][0]["budget_mib"] == 10_000 - neighbours_mib


@pytest.mark.parametrize("key", [FIRST, "0", 0])
def test_larger_of_reserve_and_what_is_seen_counts(key: str | int) -> None:
    card = gpu(0, 10_000, memory_free_mib=9000)
    for reserve_mib, budget_mib in ((1500, 8500), (500, 8976)):
        plan = plan_small([card], [], {}, reserves={key: reserve_mib})
        assert plan["gpus"][0]["reserve_mib"] == reserve_mib
        assert plan["gpus"][0]["budget_mib"] == budget_mib
    assert plan_small([card], [], {}, default_reserve_mib=2000)["gpus"][0]["budget_mib"] == 8000


def test_plan_is_the_same_once_our_own_server_runs() -> None:
    models = {"m": TEN_LAYERS}
    before = plan_small([gpu(0, 1300, memory_free_mib=1290)], [wish()], models)
    used = sum(item["mib"] for item in before["gpus"][0]["instances"])
    running = gpu(0, 1300, memory_free_mib=1290 - used, processes=[process(9, used)])
    assert plan_small([running], [wish()], models, own_pids=[9]) == before


# What the engine measured


def test_corrections_flip_a_verdict() -> None:
    card, models = [gpu(0, FIXED_MIB + 320)], {"m": TEN_LAYERS}
    fixed = wish(context={"want": 32768}, kv_cache=["f16"])
    assert got(plan_small(card, [fixed], models)) == (32768, "f16", "all")
    more = {"a": {"CUDA0": {"compute_mib": 1}}}
    assert plan_small(card, [fixed], models, corrections=more)["instances"] == {}
    tight = [gpu(0, FIXED_MIB + 300)]
    assert plan_small(tight, [fixed], models)["instances"] == {}
    less = {"a": {"CUDA0": {"weights_mib": -12, "kv_mib": -8}}}
    plan = plan_small(tight, [fixed], models, corrections=less)
    assert got(plan) == (32768, "f16", "all")
    card_need = plan["instances"]["a"]["devices"][0]
    assert (card_need["weights_mib"], card_need["kv_mib"]) == (1018, 312)
    assert any("weights -12 MiB, KV cache -8 MiB" in r for r in plan["instances"]["a"]["reasons"])


def test_measured_cuda_context_counts() -> None:
    plan = plan_small([gpu(0, 8192)], [wish()], {"m": TEN_LAYERS}, cuda_context_mib={FIRST: 321})
    assert plan["instances"]["a"]["devices"][0]["cuda_context_mib"] == 321


# Several instances


def test_the_first_instance_leaves_the_second_its_smallest() -> None:
    models = {"m": TEN_LAYERS}
    two = [wish("a"), wish("b")]
    plan = plan_small([gpu(0, 2 * FIXED_MIB + 10 + 90)], two, models)
    assert got(plan, "a") == (32768, "q4_0", "all")
    assert got(plan, "b") == (8192, "q4_0", "all")
    plan = plan_small([gpu(0, 2 * FIXED_MIB + 325)], two, models)
    assert got(plan, "a") == (32768, "q8_0", "all")
    reasons = plan["instances"]["a"]["reasons"]
    assert any("it would leave too little for b" in reason for reason in reasons)
    assert not any("too little" in reason for reason in plan["instances"]["b"]["reasons"])


def test_together_they_do_not_fit() -> None:
    two = [wish("a"), wish("b")]
    plan = plan_small([gpu(0, 2 * FIXED_MIB + 19)], two, {"m": TEN_LAYERS})
    assert list(plan["instances"]) == ["a"]
    (problem,) = plan["problems"]
    assert problem["instance"] == "b"
    assert "does not fit beside the instances before it" in problem["found"]
    assert f"a at its smallest takes {FIXED_MIB + 10} MiB of GPU 0" in problem["found"]


def test_split_makes_way_for_a_later_instance() -> None:
    """Evenly filled, both cards would be too full for the second one."""
    models = {"m": TEN_LAYERS, "n": small([layer(100)] * 5)}
    fixed = {"context": {"want": 4096}, "kv_cache": ["q4_0"]}
    first = wish("a", gpus=[FIRST, SECOND], **fixed)
    second = wish("b", model="n", gpus=[FIRST], **fixed)
    cards = [gpu(0, 1100), gpu(1, 1100)]
    even = plan_small(cards, [first], models)["instances"]["a"]["tensor_split"]
    assert even[0] >= 4
    plan = plan_small(cards, [first, second], models)
    assert plan["problems"] == []
    assert plan["instances"]["a"]["tensor_split"][0] < even[0]


def test_second_of_two_on_one_card_is_offered_the_other_card() -> None:
    cards = [gpu(0, FIXED_MIB + 400), gpu(1, FIXED_MIB + 400)]
    plan = plan_small(cards, [wish("a"), wish("b")], {"m": TEN_LAYERS})
    (problem,) = plan["problems"]
    (way, *_) = [way for way in problem["ways_out"] if way["kind"] == "gpus"]
    assert way["change"]["gpus"] == [SECOND]


# Ways out


def test_of_two_other_gpus_the_one_with_the_better_setting_is_offered() -> None:
    cards = [gpu(0, 900), gpu(1, FIXED_MIB + 20), gpu(2, FIXED_MIB + 160)]
    plan = plan_small(cards, [wish()], {"m": TEN_LAYERS})
    ways = {way["kind"]: way for way in plan["problems"][0]["ways_out"]}
    assert ways["gpus"]["change"]["gpus"] == [THIRD]
    assert "then 32768 tokens, KV cache q8_0, all 11 layers on GPU 2" in ways["gpus"]["text"]


def test_known_quantisation_is_named_first() -> None:
    models = {"m": {**TEN_LAYERS, "other_quantisations": {"Q8_0": 9**10, "Q3": 800 * MIB, "Q2": 9}}}
    plan = plan_small([gpu(0, FIXED_MIB - 100)], [wish()], models)
    way = plan["problems"][0]["ways_out"][0]
    assert way["change"] == {"quantisation": "Q3"}


def test_usual_quantisation_is_computed_from_the_parameters() -> None:
    # 1000 MiB of weights as they are: at 4 bits a weight, 2^31 * 0.977 parameters.
    models = {"m": {**TEN_LAYERS, "parameters": 1000 * MIB * 2}}
    plan = plan_small([gpu(0, FIXED_MIB - 60)], [wish()], models)
    way = plan["problems"][0]["ways_out"][0]
    assert way["kind"] == "quantisation"
    assert way["change"] == {"quantisation": "Q3_K_S"}


def test_where_there_is_no_alternative_none_is_made_up() -> None:
    host = {"memory_mib": 300, "reserve_mib": 0}
    plan = plan_small([gpu(0, 300)], [wish(context={"want": 256})], {"m": TEN_LAYERS}, host=host)
    assert plan["problems"][0]["ways_out"] == []


def test_gpu_that_is_gone() -> None:
    plan = plan_small([gpu(1, 4096)], [wish()], {"m": TEN_LAYERS})
    (problem,) = plan["problems"]
    assert f"{FIRST} is not there or not usable; there is: 1 (Card 1)" in problem["found"]
    assert problem["ways_out"][0]["change"]["gpus"] == [SECOND]
    plan = plan_small([], [wish()], {"m": TEN_LAYERS})
    assert "there is: no GPU" in plan["problems"][0]["found"]
    assert [way["kind"] for way in plan["problems"][0]["ways_out"]] == ["cpu"]


def test_model_that_is_not_known() -> None:
    for models, found in (({}, "nothing is known"), ({"m": {"shape": None}}, "header of m")):
        (problem,) = plan_small([gpu(0, 4096)], [wish()], models)["problems"]
        assert found in problem["found"]
        assert problem["ways_out"] == []


def test_what_nobody_can_model_is_a_problem_with_the_reason() -> None:
    def refusing(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
        raise MemoryModelError(f"{shape.name} has no cache of {config.cache_type_k}")

    (problem,) = plan_small([gpu(0, 4096)], [wish()], {"m": TEN_LAYERS}, memory=refusing)[
        "problems"
    ]
    assert problem["found"] == "small has no cache of q4_0"


INVENTORY_KEYS = {"gpus", "context", "kv_cache", "slots", "offload", "model", "cpu"}


@settings(max_examples=60, deadline=None)
@given(
    cards=st.lists(st.integers(150, 1600), min_size=1, max_size=2),
    slots=st.integers(1, 3),
    auto=st.booleans(),
    experts=st.booleans(),
)
def test_ways_out_are_true(cards: list[int], slots: int, auto: bool, experts: bool) -> None:
    shape = small([layer(40, 60) if experts else layer(100)] * 10, kv_mib=4)
    models = {"m": shape, "n": small([layer(50)] * 4)}
    asked = wish(slots=slots, kv_cache=["f16"], offload="auto" if auto else "full")
    there = [gpu(index, total) for index, total in enumerate(cards)]
    host = {"memory_mib": 1500, "reserve_mib": 0}
    for problem in plan_small(there, [asked], models, host=host)["problems"]:
        assert len(problem["ways_out"]) <= 3
        for way in problem["ways_out"]:
            if way["kind"] in INVENTORY_KEYS:
                again = plan_small(there, [{**asked, **way["change"]}], models, host=host)
                assert again["problems"] == [], way


# Host memory


def test_prompt_caches_are_named_and_not_counted() -> None:
    plan = plan_small(
        [gpu(0, 8192)], [wish()], {"m": TEN_LAYERS}, host={"memory_mib": 4000, "reserve_mib": 500}
    )
    assert plan["host"]["prompt_caches_mib"] == 8192
    assert plan["host"]["free_mib"] == 3500 - INPUT_MIB - COMPUTE_MIB
    assert "may grow to 8192 MiB" in plan["host"]["notes"][1]
    quiet = plan_small([gpu(0, 8192)], [wish(cache_ram_mib=1024)], {"m": TEN_LAYERS})
    assert (quiet["host"]["prompt_caches_mib"], len(quiet["host"]["notes"])) == (1024, 1)


# Profiles


def test_profiles() -> None:
    first, second = kloros_gpus()
    assert [
        (label, [card["index"] for card in cards]) for label, cards in profiles([second, first])
    ] == [
        ("all GPUs: GPU 0 (NVIDIA GeForce RTX 3060), GPU 1 (NVIDIA GeForce GTX 1080 Ti)", [0, 1]),
        ("without GPU 0 (NVIDIA GeForce RTX 3060)", [1]),
        ("without GPU 1 (NVIDIA GeForce GTX 1080 Ti)", [0]),
        ("CPU only", []),
    ]
    assert [label for label, _ in profiles([first])] == [
        "all GPUs: GPU 0 (NVIDIA GeForce RTX 3060)",
        "CPU only",
    ]
    assert profiles([]) == [("CPU only", [])]


# The thumbnail that the search asks


def test_what_is_chosen_was_asked_in_full() -> None:
    """Where the thumbnail is too small, the plan is still within what the whole model needs."""

    def growing(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
        return [
            DeviceMemory(row.device, row.weights_bytes, row.kv_bytes, len(shape.layers) * 5 * MIB)
            for row in stand_in_memory(shape, config)
        ]

    plan = plan_small([gpu(0, 1130 + 50 + 80)], [wish()], {"m": TEN_LAYERS}, memory=growing)
    assert got(plan) == (32768, "q4_0", "all")
    assert plan["instances"]["a"]["devices"][0]["compute_mib"] == 50
    plan = plan_small([gpu(0, 1130 + 49 + 10)], [wish()], {"m": TEN_LAYERS}, memory=growing)
    assert plan["instances"] == {}


# Brute force


Choice = tuple[int, int, str, tuple[int, ...]]  # step, context, KV type, split


def every_choice(asked: Data, shape: ModelShape) -> Iterator[tuple[Choice, RunConfig]]:
    layers = len(shape.layers)
    full = layers + 1
    devices = tuple(f"CUDA{index}" for index in range(len(asked["gpus"])))
    steps = [(full, 0)] if devices else [(0, 0)]
    if devices and asked["offload"] == "auto" and shape.has_experts:
        steps = [(full, n) for n in range(layers + 1)] + [
            (n, layers) for n in range(layers, -1, -1)
        ]
    elif devices and asked["offload"] == "auto":
        steps = [(n, 0) for n in range(full, -1, -1)]
    for step, (on_gpu, cpu_moe) in enumerate(steps):
        splits: list[tuple[int, ...]] = [()]
        if len(devices) == 2 and on_gpu:
            splits = [(n, on_gpu - n) for n in range(on_gpu + 1)]
        for tokens in range(asked["context"]["min"], asked["context"]["want"] + 1, 256):
            for kv_cache in asked["kv_cache"]:
                for split in splits:
                    config = RunConfig(
                        context_tokens=tokens,
                        slots=asked["slots"],
                        cache_type_k=kv_cache,
                        cache_type_v=kv_cache,
                        devices=devices,
                        gpu_layers=on_gpu,
                        tensor_split=tuple(map(float, split)),
                        cpu_moe_layers=cpu_moe,
                    )
                    yield (step, tokens, kv_cache, split), config


Table = list[tuple[Choice, list[int]]]  # what each choice needs of each device, in MiB


def table_of(asked: Data, models: Data) -> Table:
    shape = ModelShape.from_data(models[asked["model"]]["shape"])
    table = []
    for choice, config in every_choice(asked, shape):
        rows = stand_in_memory(shape, config)
        needs = [
            -(-row.weights_bytes // MIB) - (-row.kv_bytes // MIB) + COMPUTE_MIB + 100
            for row in rows
        ]
        needs[-1] -= 100  # no CUDA context in main memory
        table.append((choice, needs))
    return table


def brute_force(
    wishes: Sequence[tuple[Data, Table]], budgets: Mapping[str, int]
) -> list[Choice] | None:
    """The lexicographically best choices, by looking at all of them."""
    if not wishes:
        return []
    (asked, table), *later = wishes
    pools = [*asked["gpus"], HOST]
    ranked = []
    for choice, needs in table:
        left = dict(budgets)
        for pool, need in zip(pools, needs, strict=True):
            left[pool] -= need
        if min(left.values()) >= 0:
            step, tokens, kv_cache, split = choice
            even = (0.0, 0)
            if split:
                loads = zip(asked["gpus"], needs, strict=False)
                even = (max(need / budgets[pool] for pool, need in loads), -split[0])
            ranked.append(((step, -tokens, asked["kv_cache"].index(kv_cache), even), choice, left))
    for _, choice, left in sorted(ranked, key=lambda item: item[0]):
        rest = brute_force(later, left)
        if rest is not None:
            return [choice, *rest]
    return None


def accepted_by_brute_force(
    wishes: Sequence[Data], models: Data, budgets: Mapping[str, int]
) -> dict[str, Choice]:
    accepted: list[tuple[Data, Table]] = []
    for asked in wishes:
        one = asked, table_of(asked, models)
        if brute_force([*accepted, one], budgets) is not None:
            accepted.append(one)
    found = brute_force(accepted, budgets)
    assert found is not None
    return {asked["name"]: choice for (asked, _), choice in zip(accepted, found, strict=True)}


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[list[Data], list[Data], Data, Data]:
    cards = [gpu(index, draw(st.integers(100, 700))) for index in range(2)]
    models = {
        name: small(
            [
                layer(
                    draw(st.integers(5, 60)), draw(st.sampled_from([0, 50])) if name == "n" else 0
                )
                for _ in range(draw(st.integers(1, 3)))
            ],
            kv_mib=draw(st.integers(1, 80)),
        )
        for name in ("m", "n")
    }
    wishes = [
        instance(
            name,
            draw(st.sampled_from(["m", "n"])),
            draw(st.sampled_from([[FIRST], [SECOND], [FIRST, SECOND], [SECOND, FIRST], []])),
            context={"want": draw(st.sampled_from([256, 768, 1024])), "min": 256},
            kv_cache=draw(st.sampled_from([["f16"], ["f16", "q8_0"], ["q4_0", "f16"]])),
            slots=draw(st.integers(1, 2)),
            offload=draw(st.sampled_from(["full", "auto"])),
        )
        for name in ("a", "b", "c")[: draw(st.integers(1, 3))]
    ]
    host = {"memory_mib": draw(st.integers(20, 700)), "reserve_mib": 0}
    return cards, wishes, models, host


@settings(max_examples=150, deadline=None)
@given(small_cases())
def test_best_by_brute_force(case: tuple[list[Data], list[Data], Data, Data]) -> None:
    cards, wishes, models, host = case
    plan = plan_small(cards, wishes, models, host=host)
    budgets = {card["uuid"]: card["memory_total_mib"] for card in cards}
    best = accepted_by_brute_force(wishes, models, {**budgets, HOST: host["memory_mib"]})
    assert list(plan["instances"]) == list(best)
    for name, (_, tokens, kv_cache, split) in best.items():
        planned = plan["instances"][name]
        assert (planned["context_tokens"], planned["kv_cache"]) == (tokens, kv_cache)
        assert tuple(planned["tensor_split"]) == split
    assert {problem["instance"] for problem in plan["problems"]} == {
        asked["name"] for asked in wishes if asked["name"] not in best
    }
    assert plan == plan_small(cards, wishes, models, host=host)
