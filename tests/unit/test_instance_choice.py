"""An instance gets its wish, or the first alternative that can be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.instance_choice import (
    Candidate,
    candidates,
    choose,
)

from tests.unit.conftest import KLOROS_GPUS

Wish = dict[str, Any]


def wish(gpus: list[Any], *alternatives: Wish) -> Wish:
    return {"model": "tiny", "gpus": gpus, "context": 4096, "alternatives": list(alternatives)}


def of(
    asked: Wish, lockout: Sequence[int | str] = (), shown: Mapping[str, Any] = KLOROS_GPUS
) -> list[tuple[list[int], str | None]]:
    found = candidates(asked, shown, lockout)
    return [([gpu["index"] for gpu in one.gpus], one.missing) for one in found]


def test_wish_and_alternatives_in_order() -> None:
    asked = wish(["GPU-5080"], {"gpus": [0], "context": 2048}, {"gpus": []})
    first, second, third = candidates(asked, KLOROS_GPUS, [])
    assert "there is no GPU GPU-5080" in (first.missing or "")
    assert (second.missing, second.wish["context"], second.wish["model"]) == (None, 2048, "tiny")
    assert (third.missing, list(third.gpus), third.wish["context"]) == (None, [], 4096)


def test_other_gpus_are_not_split_as_the_wishs_own() -> None:
    asked = wish([0, 1], {"gpus": [0]}, {"context": 512}) | {"tensor_split": [3, 2], "main_gpu": 1}
    _, other, same = candidates(asked, KLOROS_GPUS, [])
    assert (other.wish["tensor_split"], other.wish["main_gpu"]) == ([], None)
    assert (same.wish["tensor_split"], same.wish["main_gpu"]) == ([3, 2], 1)


@pytest.mark.parametrize("lockout", [[0], ["GPU-3060"], ["0"]])
def test_locked_out_gpu_is_not_to_be_had(lockout: list[int | str]) -> None:
    (_, missing), (gpus, none) = of(wish([0], {"gpus": [1]}), lockout)
    assert missing == "GPU 0 (NVIDIA GeForce RTX 3060) is locked out by gpu_lockout"
    assert (gpus, none) == ([1], None)


def test_without_a_driver_only_the_cpu_is_to_be_had() -> None:
    shown = {"status": "no_driver", "detail": "the driver is not loaded", "gpus": []}
    (_, missing), (gpus, none) = of(wish([0], {"gpus": []}), shown=shown)
    assert missing == "the driver is not loaded"
    assert (gpus, none) == ([], None)


def chosen(
    instances: Mapping[str, Sequence[Candidate]], fits: Mapping[str, set[int]]
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Choose where an instance fits with the candidates of these numbers only."""

    def plan(settled: Mapping[str, Candidate]) -> dict[str, Any]:
        return {
            "problems": [
                {"instance": name, "found": f"no room for {one.number}"}
                for name, one in settled.items()
                if one.missing is None and one.number not in fits[name]
            ]
        }

    choice = choose(instances, plan)
    numbers = {name: one.number for name, one in choice.chosen.items()}
    return numbers, {name: list(said) for name, said in choice.passed_over.items()}


def some(*missing: str | None) -> list[Candidate]:
    return [Candidate(number, {}, (), text) for number, text in enumerate(missing)]


def test_first_that_is_there_and_fits() -> None:
    numbers, said = chosen({"live": some("gone", None, None)}, {"live": {2}})
    assert numbers == {"live": 2}
    assert said == {"live": ["the wish itself: gone", "alternative 1: no room for 1"]}


def test_later_instance_gives_way_first() -> None:
    instances = {"live": some(None, None), "code": some(None, None)}

    def plan(settled: Mapping[str, Candidate]) -> dict[str, Any]:
        crowded = all(one.number == 0 for one in settled.values())
        names = settled if crowded else ()
        return {"problems": [{"instance": name, "found": "crowded"} for name in names]}

    numbers = {name: one.number for name, one in choose(instances, plan).chosen.items()}
    assert numbers == {"live": 0, "code": 1}


def test_what_fits_in_no_way_stays_as_it_is_wished_last() -> None:
    numbers, _ = chosen({"live": some(None, "gone", None)}, {"live": set()})
    assert numbers == {"live": 2}


def test_nothing_to_be_had_is_the_wish_with_its_reason() -> None:
    instances = {"live": some("no GPU 0", "no GPU 1")}
    numbers, said = chosen(instances, {"live": set()})
    assert (numbers, said) == ({"live": 0}, {"live": []})
