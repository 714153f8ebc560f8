"""The circuit breaker, on a clock that the test turns."""

from __future__ import annotations

from kloros_llm.gateway.engines.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    TRY_S,
    Breaker,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for left in range(FAILURES_TO_OPEN, 0, -1):
        assert breaker.state == "closed"
        assert breaker.allows
        assert breaker.fail() == (left == 1)
    assert breaker.state == "open"
    assert not breaker.allows
    return breaker, clock


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker(Clock())
    for _ in range(FAILURES_TO_OPEN * 3):
        breaker.fail()
        breaker.succeed()
    assert breaker.state == "closed"
    assert breaker.opened == 0


def test_one_tries_and_closes_it() -> None:
    breaker, clock = opened()
    assert breaker.pause_s == FIRST_PAUSE_S
    clock.now += FIRST_PAUSE_S
    assert breaker.state == "half-open"
    assert breaker.allows
    assert breaker.enter()
    assert not breaker.allows
    breaker.succeed()
    assert breaker.state == "closed"
    assert not breaker.enter()


def test_a_failed_try_opens_it_for_longer_each_time() -> None:
    breaker, clock = opened()
    pauses = []
    for _ in range(7):
        clock.now += breaker.pause_s
        assert breaker.enter()
        assert breaker.fail()
        pauses.append(breaker.pause_s)
    assert pauses[:3] == [2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert breaker.opened == 8


def test_what_was_under_way_when_it_opened_does_not_lengthen_the_pause() -> None:
    breaker, _clock = opened()
    assert not breaker.fail()
    assert breaker.pause_s == FIRST_PAUSE_S
    assert breaker.opened == 1


def test_a_try_without_outcome_leaves_it_to_the_next() -> None:
    breaker, clock = opened()
    clock.now += FIRST_PAUSE_S
    assert breaker.enter()
    breaker.release()
    assert breaker.allows
    assert breaker.enter()


def test_a_try_that_hangs_does_not_keep_the_others_out() -> None:
    breaker, clock = opened()
    clock.now += FIRST_PAUSE_S
    assert breaker.enter()
    clock.now += TRY_S / 2
    assert not breaker.allows
    clock.now += TRY_S / 2
    assert breaker.allows
    assert breaker.enter()
    assert not breaker.allows


def test_a_new_process_is_tried_at_once() -> None:
    breaker, _clock = opened()
    breaker.restarted()
    assert breaker.state == "half-open"
    assert breaker.enter()


def test_what_only_began_closes_it_until_the_next_failure() -> None:
    breaker, clock = opened()
    clock.now += FIRST_PAUSE_S
    assert breaker.enter()
    breaker.began()
    assert breaker.state == "closed"
    assert breaker.fail()
    assert breaker.pause_s == 2 * FIRST_PAUSE_S


def test_what_began_while_it_is_closed_forgives_no_failure() -> None:
    breaker = Breaker(Clock())
    for _ in range(FAILURES_TO_OPEN):
        breaker.began()
        breaker.fail()
    assert breaker.state == "open"
