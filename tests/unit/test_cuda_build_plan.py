"""Which toolkit serves which mix of GPUs, on which driver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.cuda_build_plan import (
    BuildPlan,
    cuda_build_plan,
)
from ansible_collections.kloros.llm.plugins.module_utils.cuda_toolkits import (
    OLDEST_DRIVER,
    TOOLKITS,
)
from hypothesis import given
from hypothesis import strategies as st

CAPABILITIES = {
    "Tesla K80": "3.7",
    "NVIDIA GeForce GTX 980": "5.2",
    "NVIDIA GeForce GTX 1080 Ti": "6.1",
    "Tesla V100-PCIE-16GB": "7.0",
    "NVIDIA GeForce RTX 3060": "8.6",
    "NVIDIA RTX A4000": "8.6",
    "NVIDIA GeForce RTX 4090": "8.9",
    "NVIDIA H100 PCIe": "9.0",
    "NVIDIA Thor (on CUDA 12)": "10.1",
    "NVIDIA B300": "10.3",
    "NVIDIA Thor (on CUDA 13)": "11.0",
    "NVIDIA GeForce RTX 5080": "12.0",
    "NVIDIA GeForce RTX 5090": "12.0",
    "NVIDIA Future": "15.0",
    "NVIDIA Between": "10.9",
}
K80, GTX_980, GTX_1080_TI, V100, RTX_3060, A4000, RTX_4090, H100 = list(CAPABILITIES)[:8]
THOR_12, B300, THOR_13, RTX_5080, RTX_5090, FUTURE, BETWEEN = list(CAPABILITIES)[8:]

D390 = {"version": "390.157", "cuda_version": None}
D470 = {"version": "470.256.02", "cuda_version": "11.4"}
D525 = {"version": "525.60.13", "cuda_version": "12.0"}
D550 = {"version": "550.163.01", "cuda_version": "12.4"}
D565 = {"version": "565.57.01", "cuda_version": "12.7"}
D570 = {"version": "570.86.15", "cuda_version": "12.8"}
D580 = {"version": "580.65.06", "cuda_version": "13.0"}

Driver = Mapping[str, str | None]


def cards(*names: str) -> list[dict[str, Any]]:
    """These cards as module gpu_info returns them."""
    return [
        {"index": index, "name": name, "compute_capability": CAPABILITIES[name]}
        for index, name in enumerate(names)
    ]


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def architecture(gpu: Mapping[str, Any]) -> int:
    return int(gpu["compute_capability"].replace(".", ""))


def reasons(plan: BuildPlan) -> str:
    return " ".join(plan["reasons"])


@pytest.mark.parametrize(
    ("names", "driver", "toolkit", "architectures"),
    [
        ([GTX_1080_TI, RTX_3060], D550, "12.4", "61-real;86-real"),
        ([GTX_1080_TI, RTX_3060, RTX_5080], D570, "12.8", "61-real;86-real;120-real"),
        ([RTX_5090], D570, "12.8", "120-real"),
        ([RTX_5090], D580, "13.0", "120-real"),
        ([RTX_5090], D565, "12.8", "120-real"),
        ([RTX_3060], D565, "12.6", "86-real"),
        ([H100], D550, "12.4", "90-real"),
        ([H100], D525, "12.0", "90-real"),
        ([RTX_4090, A4000], D550, "12.4", "86-real;89-real"),
        ([RTX_4090, A4000], D580, "13.0", "86-real;89-real"),
        ([RTX_3060, A4000, RTX_3060], D580, "13.0", "86-real"),
        ([GTX_980], D550, "12.4", "52-real"),
        ([GTX_980], D580, "12.9", "52-real"),
        ([GTX_1080_TI], D580, "12.9", "61-real"),
        ([V100, GTX_1080_TI, RTX_5080], D570, "12.8", "61-real;70-real;120-real"),
        ([V100, GTX_1080_TI, RTX_5080], D580, "12.9", "61-real;70-real;120-real"),
        ([K80], D470, "11.4", "37-real"),
        ([RTX_4090], D470, "11.8", "89-real"),
        ([B300], D570, "12.9", "103-real"),
        ([B300], D580, "13.0", "103-real"),
        ([RTX_3060], {"version": "700.1", "cuda_version": "15.2"}, "13.5", "86-real"),
    ],
)
def test_toolkit_and_architectures(
    names: list[str], driver: Driver, toolkit: str, architectures: str
) -> None:
    plan = cuda_build_plan(cards(*names), driver)
    assert plan["toolkit"] == toolkit
    assert plan["accepted"][0] == toolkit
    assert plan["architectures"] == architectures.split(";")
    assert plan["flags"] == {"GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": architectures}
    assert plan["sets"] == []
    assert f"Driver {driver['version']} (CUDA {driver['cuda_version']})" in reasons(plan)


@pytest.mark.parametrize(("driver", "accepted"), [(D570, "12.8 12.9"), (D580, "12.9 12.8")])
def test_volta_with_blackwell_leaves_two_toolkits(driver: Driver, accepted: str) -> None:
    plan = cuda_build_plan(cards(V100, GTX_1080_TI, RTX_5080), driver)
    assert plan["accepted"] == accepted.split()


def test_the_drivers_own_major_first_then_older_ones() -> None:
    own_first = "12.4 12.3 12.2 12.1 12.0 12.5 12.6 12.8 12.9 11.8 11.7 11.6 11.5 11.4"
    assert cuda_build_plan(cards(RTX_3060), D550)["accepted"] == own_first.split()
    older_majors = "13.0 13.1 13.2 13.3 13.4 13.5 12.9 12.8 12.6 12.5 12.4 12.3 12.2 12.1 12.0 11.8"
    assert cuda_build_plan(cards(H100), D580)["accepted"] == older_majors.split()


@pytest.mark.parametrize("driver", [None, {}])
@pytest.mark.parametrize(
    ("names", "accepted", "oldest_driver"),
    [
        ([RTX_5080], "12.9 12.8 13.5 13.4 13.3 13.2 13.1 13.0", "525.60.13"),
        ([V100, RTX_5080], "12.9 12.8", "525.60.13"),
        ([THOR_13], "13.5 13.4 13.3 13.2 13.1 13.0", "580.65.06"),
        ([K80, GTX_980], "11.8 11.7 11.6 11.5 11.4", "450.80.02"),
        (
            [RTX_4090],
            "12.9 12.8 12.6 12.5 12.4 12.3 12.2 12.1 12.0 13.5 13.4 13.3 13.2 13.1 13.0 11.8",
            "525.60.13",
        ),
    ],
)
def test_without_a_driver_what_runs_on_the_most_drivers(
    driver: Driver | None, names: list[str], accepted: str, oldest_driver: str
) -> None:
    plan = cuda_build_plan(cards(*names), driver)
    assert plan["accepted"] == accepted.split()
    assert f"every driver from {oldest_driver} on" in plan["reasons"][-1]


@pytest.mark.parametrize(
    ("version", "newest"),
    [("450.80.02", "11.8"), ("580.65.05", "12.9"), ("580.65.06", "13.5"), ("1000.1", "13.5")],
)
def test_a_driver_without_libcuda_is_judged_by_its_version(version: str, newest: str) -> None:
    plan = cuda_build_plan(cards(RTX_3060), {"version": version, "cuda_version": None})
    newest_first = sorted(TOOLKITS, key=number, reverse=True)
    assert plan["accepted"] == newest_first[newest_first.index(newest) :]


def test_reasons_of_a_mix() -> None:
    assert cuda_build_plan(cards(RTX_3060, GTX_1080_TI, RTX_5080, RTX_5090), D570)["reasons"] == [
        "GPU 1 (NVIDIA GeForce GTX 1080 Ti, 6.1) is the oldest, known to CUDA 12.9 and older.",
        "GPUs 2 and 3 (NVIDIA GeForce RTX 5080 and NVIDIA GeForce RTX 5090, 12.0) are the newest, "
        "known to CUDA 12.8 and newer.",
        "Driver 570.86.15 (CUDA 12.8) runs machine code of CUDA 12 and older.",
        "CUDA 12.8 is preferred: it is the driver's own version.",
    ]


@pytest.mark.parametrize(
    ("names", "driver", "why"),
    [
        ([THOR_12], D580, "is known to CUDA 12.8 to 12.9."),
        ([RTX_3060], D580, "is known to CUDA 11.4 to 13.5."),
        ([GTX_1080_TI], D580, "13.0, does not know every GPU; this is the nearest older one"),
        ([B300], D570, "12.8, does not know every GPU; no older one serves"),
        ([RTX_3060], D565, "12.7, is no toolkit in the table; this is the nearest older one"),
        ([RTX_5090], D565, "12.7, is no toolkit in the table; no older one serves"),
        ([K80], {**D470, "cuda_version": None}, "preferred: the newest of them that serves."),
    ],
)
def test_reasons_for_the_version(names: list[str], driver: Driver, why: str) -> None:
    assert why in reasons(cuda_build_plan(cards(*names), driver))


def assert_no_toolkit(plan: BuildPlan) -> None:
    assert plan["toolkit"] is None
    assert plan["accepted"] == []
    assert plan["architectures"] == []
    assert plan["flags"] == {}


def test_gpus_that_exclude_each_other() -> None:
    plan = cuda_build_plan(cards(K80, RTX_5080, K80), D570)
    assert_no_toolkit(plan)
    assert plan["reasons"] == [
        "GPUs 0 and 2 (Tesla K80, 3.7) and GPU 1 (NVIDIA GeForce RTX 5080, 12.0) exclude each "
        "other: CUDA 11.8 and older know the former, CUDA 12.8 and newer the latter."
    ]
    assert plan["sets"] == [
        {"gpus": [1], "toolkit": "12.8", "architectures": ["120-real"]},
        {"gpus": [0, 2], "toolkit": "11.8", "architectures": ["37-real"]},
    ]


def test_sets_hold_all_that_go_together() -> None:
    plan = cuda_build_plan(cards(K80, RTX_5080, RTX_3060, GTX_1080_TI), D580)
    assert_no_toolkit(plan)
    assert len(plan["reasons"]) == 1
    # 12.9 rather than the driver's own 13.0, which would leave the GTX 1080 Ti out.
    assert plan["sets"] == [
        {
            "gpus": [1, 2, 3],
            "toolkit": "12.9",
            "architectures": ["61-real", "86-real", "120-real"],
        },
        {
            "gpus": [0, 2, 3],
            "toolkit": "11.8",
            "architectures": ["37-real", "61-real", "86-real"],
        },
    ]


def test_three_gpus_that_all_exclude_each_other() -> None:
    plan = cuda_build_plan(cards(THOR_13, THOR_12, K80), None)
    assert_no_toolkit(plan)
    assert [tuple(map(int, re.findall(r"GPU (\d)", reason))) for reason in plan["reasons"]] == [
        (2, 1),
        (2, 0),
        (1, 0),
    ]
    assert [offer["gpus"] for offer in plan["sets"]] == [[0], [2]]


def test_the_second_set_starts_with_what_the_first_left_out() -> None:
    gpus = cards(GTX_980, RTX_5080)
    gpus.append({"index": 2, "name": "Orin's successor", "compute_capability": "8.8"})
    plan = cuda_build_plan(gpus, D580)
    assert_no_toolkit(plan)
    assert [(offer["gpus"], offer["toolkit"]) for offer in plan["sets"]] == [
        ([1, 2], "13.0"),
        ([0, 1], "12.9"),
    ]


def test_a_driver_too_old_for_one_of_the_gpus() -> None:
    plan = cuda_build_plan(cards(RTX_3060, RTX_5080), D470)
    assert_no_toolkit(plan)
    assert plan["reasons"] == [
        "Driver 470.256.02 (CUDA 11.4) runs nothing newer than CUDA 11, which does not know "
        "GPU 1 (NVIDIA GeForce RTX 5080, 12.0): at least CUDA 12.8 is needed, and for that driver "
        "525.60.13 or newer."
    ]
    assert plan["sets"] == []


def test_a_driver_older_than_every_toolkit() -> None:
    plan = cuda_build_plan(cards(RTX_3060, THOR_13), D390)
    assert_no_toolkit(plan)
    assert "(CUDA version unknown) runs nothing newer than CUDA 10" in reasons(plan)
    assert "at least CUDA 13.0 is needed, and for that driver 580.65.06" in reasons(plan)


def test_sets_stay_within_the_drivers_bound() -> None:
    plan = cuda_build_plan(cards(K80, RTX_5080), D470)
    assert_no_toolkit(plan)
    assert "exclude each other" in reasons(plan)
    assert "driver 525.60.13 or newer" in reasons(plan)
    assert plan["sets"] == [{"gpus": [0], "toolkit": "11.4", "architectures": ["37-real"]}]


@pytest.mark.parametrize(
    ("name", "capability"), [(FUTURE, "15.0"), (BETWEEN, "10.9"), (FUTURE, "2.0")]
)
def test_a_capability_that_no_toolkit_knows(name: str, capability: str) -> None:
    gpus = cards(RTX_3060, name)
    gpus[1]["compute_capability"] = capability
    plan = cuda_build_plan(gpus, D580)
    assert_no_toolkit(plan)
    (reason,) = plan["reasons"]
    assert f"from 11.4 to 13.5, where the table ends, knows GPU 1 ({name}, {capability})" in reason
    assert "capabilities go from 3.5 to 12.1" in reason
    assert "path of a toolkit that does in llama_cpp_cuda_toolkit" in reason
    assert "llama_cpp_cuda_architectures" in reason
    assert f"{capability.replace('.', '')}-real" in reason
    assert plan["sets"] == []


def test_a_driver_that_does_not_tell_the_capability() -> None:
    gpus = cards(RTX_3060, K80)
    gpus[1]["compute_capability"] = None
    plan = cuda_build_plan(gpus, D470)
    assert_no_toolkit(plan)
    (reason,) = plan["reasons"]
    assert "The compute capability of GPU 1 (Tesla K80) is unknown" in reason
    assert "llama_cpp_cuda_architectures" in reason
    assert plan["sets"] == []


def test_an_unknown_gpu_beside_two_that_exclude_each_other() -> None:
    plan = cuda_build_plan(cards(FUTURE, K80, RTX_5080), D580)
    assert_no_toolkit(plan)
    assert [reason.split()[0] for reason in plan["reasons"]] == ["No", "GPU"]
    assert plan["sets"] == []


def test_no_gpus() -> None:
    plan = cuda_build_plan([], D550)
    assert_no_toolkit(plan)
    assert plan["reasons"][0].startswith("There is no GPU to build for.")
    assert plan["sets"] == []


GOOD = {"index": 0, "name": "a", "compute_capability": "8.6"}


@pytest.mark.parametrize(
    ("gpus", "driver", "message"),
    [
        ("8.6", None, "the GPUs must be a list, found '8.6'"),
        (GOOD, None, "the GPUs must be a list"),
        (None, None, "the GPUs must be a list"),
        (["8.6"], None, "a GPU must be a mapping"),
        ([{**GOOD, "index": "0"}], None, "index must be a number from 0 on, found '0'"),
        ([{**GOOD, "index": True}], None, "index must be a number from 0 on, found True"),
        ([{**GOOD, "index": -1}], None, "index must be a number from 0 on, found -1"),
        ([GOOD, {**GOOD, "name": "b"}], None, "two GPUs have the index 0"),
        ([{**GOOD, "name": None}], None, "the name of GPU 0 must be text"),
        ([{"index": 3, "name": "x"}], None, r"GPU 3 \(x\) has no key compute_capability"),
        ([{**GOOD, "compute_capability": 8.6}], None, r"must be text such as '8.6', found 8.6"),
        ([{**GOOD, "compute_capability": "8.6\n"}], None, "compute_capability of GPU 0"),
        ([{**GOOD, "compute_capability": "sm_86"}], None, "compute_capability of GPU 0"),
        ([GOOD], "550.163.01", "the driver must be a mapping"),
        ([GOOD], [], "the driver must be a mapping"),
        ([GOOD], {"cuda_version": "12.4"}, "the driver's version must be text"),
        ([GOOD], {"version": "N/A", "cuda_version": "12.4"}, "the driver's version must be text"),
        ([GOOD], {**D550, "cuda_version": 12.4}, "cuda_version must be text such as '12.4'"),
        ([GOOD], {**D550, "cuda_version": "N/A"}, "cuda_version must be text such as '12.4'"),
        ([], {**D550, "cuda_version": "12.4.1"}, "cuda_version must be text such as '12.4'"),
    ],
)
def test_what_is_not_in_the_contracts_form(gpus: Any, driver: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cuda_build_plan(gpus, driver)


KNOWN = sorted(set().union(*(toolkit.architectures for toolkit in TOOLKITS.values())))


def gpu_lists(architectures: st.SearchStrategy[int]) -> st.SearchStrategy[list[dict[str, Any]]]:
    def gpus(capabilities: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "name": f"card {index}",
                "compute_capability": f"{capability // 10}.{capability % 10}",
            }
            for index, capability in enumerate(capabilities)
        ]

    return st.lists(architectures, min_size=1, max_size=5).map(gpus)


GPUS = gpu_lists(st.sampled_from(KNOWN))
ANY_GPUS = gpu_lists(st.one_of(st.sampled_from(KNOWN), st.integers(10, 200)))
DRIVERS = st.one_of(
    st.none(),
    st.sampled_from([D390, D470, D525, D550, D565, D570, D580]),
    st.tuples(st.integers(9, 15), st.integers(0, 9)).map(
        lambda cuda: {"version": "600.1", "cuda_version": f"{cuda[0]}.{cuda[1]}"}
    ),
)


@given(ANY_GPUS, DRIVERS)
def test_exactly_what_knows_every_gpu_and_runs_on_the_driver_is_accepted(
    gpus: list[dict[str, Any]], driver: Driver | None
) -> None:
    plan = cuda_build_plan(gpus, driver)
    wanted = {architecture(gpu) for gpu in gpus}
    reported = (
        driver["cuda_version"] or "10.0" if driver else "99.0"
    )  # of drivers, only 390 is mute
    limit = number(reported)[0]
    serving = {
        version
        for version, toolkit in TOOLKITS.items()
        if wanted <= toolkit.architectures and number(version)[0] <= limit
    }
    assert set(plan["accepted"]) == serving
    assert len(plan["accepted"]) == len(serving)
    assert plan["toolkit"] == (plan["accepted"][0] if serving else None)
    assert plan["reasons"]
    if serving:
        assert plan["architectures"] == [f"{item}-real" for item in sorted(wanted)]
        assert plan["flags"]["CMAKE_CUDA_ARCHITECTURES"] == ";".join(plan["architectures"])


@given(ANY_GPUS, DRIVERS, st.randoms())
def test_the_order_of_the_gpus_is_irrelevant(
    gpus: list[dict[str, Any]], driver: Driver | None, random: Any
) -> None:
    shuffled = list(gpus)
    random.shuffle(shuffled)
    assert cuda_build_plan(shuffled, driver) == cuda_build_plan(gpus, driver)


@given(GPUS, DRIVERS)
def test_each_set_is_what_a_plan_of_its_own_gives(
    gpus: list[dict[str, Any]], driver: Driver | None
) -> None:
    plan = cuda_build_plan(gpus, driver)
    for offer in plan["sets"]:
        alone = cuda_build_plan([gpus[index] for index in offer["gpus"]], driver)
        assert alone["toolkit"] == offer["toolkit"]
        assert alone["architectures"] == offer["architectures"]
        for gpu in gpus:  # nothing that this toolkit covers is left out
            covered = architecture(gpu) in TOOLKITS[offer["toolkit"]].architectures
            assert (gpu["index"] in offer["gpus"]) == covered
    if plan["toolkit"] is None and driver is None:
        newest = max(gpus, key=architecture)["index"]
        first, second = plan["sets"]
        assert newest in first["gpus"]
        assert set(second["gpus"]) - set(first["gpus"])


def test_the_table_is_ordered_and_complete() -> None:
    versions = list(TOOLKITS)
    assert versions == sorted(versions, key=number)
    assert "12.7" not in versions
    assert {number(version)[0] for version in versions} == set(OLDEST_DRIVER)
    for version, toolkit in TOOLKITS.items():
        assert re.fullmatch(re.escape(version) + r"\.\d", toolkit.patch)
    limits = [toolkit.newest_gcc for toolkit in TOOLKITS.values()]
    assert limits == sorted(limits)


@pytest.mark.parametrize("known", KNOWN)
def test_the_toolkits_that_know_an_architecture_follow_one_upon_another(known: int) -> None:
    knows = "".join("y" if known in item.architectures else "n" for item in TOOLKITS.values())
    assert re.fullmatch("n*y+n*", knows)
