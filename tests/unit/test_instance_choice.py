"""An instance gets its wish, or the first alternative that can be met."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.instance_choice import (
    PLANS_LIMIT,
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
        crowded = len(settled) == 2 and all(one.number == 0 for one in settled.values())
        return {"problems": [{"instance": "code", "found": "crowded"}] if crowded else []}

    numbers = {name: one.number for name, one in choose(instances, plan).chosen.items()}
    assert numbers == {"live": 0, "code": 1}


def test_what_fits_in_no_way_stays_as_it_is_wished_last() -> None:
    numbers, _ = chosen({"live": some(None, "gone", None)}, {"live": set()})
    assert numbers == {"live": 2}


def test_nothing_to_be_had_is_the_wish_with_its_reason() -> None:
    instances = {"live": some("no GPU 0", "no GPU 1")}
    numbers, said = chosen(instances, {"live": set()})
    assert (numbers, said) == ({"live": 0}, {"live": []})


Sizes = dict[str, list[tuple[int, int]]]
ROOM = (10, 10)


def crammed(sizes: Sizes, settled: Mapping[str, Candidate]) -> dict[str, Any]:
    """As the planner does: an instance is refused for those before it."""
    left, problems = ROOM, []
    for name, one in settled.items():
        (first, second), (has_first, has_second) = sizes[name][one.number], left
        if first <= has_first and second <= has_second:
            left = (has_first - first, has_second - second)
        else:
            problems.append({"instance": name, "found": "no room"})
    return {"problems": problems}


def best_of_all(sizes: Sizes) -> tuple[int, ...] | None:
    """The first combination that fits, of all in the order of the instances' wishes."""
    for numbers in itertools.product(*(range(len(of)) for of in sizes.values())):
        settled = {
            name: Candidate(number, {}, ()) for name, number in zip(sizes, numbers, strict=True)
        }
        if not crammed(sizes, settled)["problems"]:
            return numbers
    return None


def test_whatever_fits_is_found_and_the_first_instances_come_first() -> None:
    seed = random.Random(11)  # noqa: S311 - the same cases each time
    outcomes = set()
    for _ in range(500):
        sizes: Sizes = {
            f"i{place}": [
                (seed.randint(0, 8), seed.randint(0, 8)) for _ in range(seed.randint(1, 3))
            ]
            for place in range(seed.randint(1, 4))
        }
        instances = {name: some(*[None] * len(of)) for name, of in sizes.items()}
        choice = choose(instances, partial(crammed, sizes))
        best = best_of_all(sizes)
        outcomes.add(best is None)
        assert bool(choice.memory["problems"]) == (best is None), sizes
        assert not choice.cut_short
        if best is not None:
            assert tuple(one.number for one in choice.chosen.values()) == best, sizes
    assert outcomes == {True, False}


def test_earlier_instance_makes_room_and_it_is_said_for_whom() -> None:
    sizes: Sizes = {"a": [(4, 0)], "b": [(6, 0), (0, 6)], "c": [(5, 0), (0, 11), (6, 0)]}
    instances = {name: some(*[None] * len(of)) for name, of in sizes.items()}
    choice = choose(instances, lambda settled: crammed(sizes, settled))
    assert [one.number for one in choice.chosen.values()] == [0, 1, 0]
    assert choice.passed_over["b"] == ["the wish itself: with it there is no room for c"]
    assert choice.passed_over["c"] == []


def test_search_has_an_end_which_is_said() -> None:
    # All together never fit, though each would alone.
    sizes: Sizes = {f"i{place}": [(2, 0)] * 5 for place in range(7)}
    instances = {name: some(*[None] * len(of)) for name, of in sizes.items()}
    asked = 0

    def counting(settled: Mapping[str, Candidate]) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return crammed(sizes, settled)

    choice = choose(instances, counting)
    assert choice.cut_short
    assert [problem["instance"] for problem in choice.memory["problems"]] == ["i5", "i6"]
    assert PLANS_LIMIT <= asked < PLANS_LIMIT + 20


def test_what_does_not_fit_even_alone_moves_nobody() -> None:
    sizes: Sizes = {"a": [(1, 0), (2, 0)], "b": [(11, 0)]}
    instances = {name: some(*[None] * len(of)) for name, of in sizes.items()}
    choice = choose(instances, lambda settled: crammed(sizes, settled))
    assert [one.number for one in choice.chosen.values()] == [0, 0]
    assert not choice.cut_short


@pytest.mark.parametrize("key", ["model", "gpus", "kv_cache", "lora", "extra", "offload"])
def test_null_in_an_alternative_is_as_not_given(key: str) -> None:
    asked = wish([0], {key: None}) | {"kv_cache": ["f16"], "lora": [], "extra": {}}
    asked |= {"offload": "auto", "tensor_split": [], "main_gpu": 0}
    own, other = candidates(asked, KLOROS_GPUS, [])
    assert other.wish == {name: own.wish[name] for name in other.wish}
    assert list(other.gpus) == list(own.gpus)


def test_null_in_an_alternative_takes_away_what_a_wish_need_not_have() -> None:
    asked = wish([0], {"draft_model": None}, {"gpus": [1], "tensor_split": None})
    asked |= {"draft_model": "little", "tensor_split": [1]}
    _, without, there = candidates(asked, KLOROS_GPUS, [])
    assert without.wish["draft_model"] is None
    assert there.wish["tensor_split"] == []
