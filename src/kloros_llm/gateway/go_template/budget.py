"""What rendering may take, whatever the template."""

from __future__ import annotations

from dataclasses import dataclass


class BudgetError(Exception):
    """It wants more."""


@dataclass(slots=True)
class Budget:
    """What is left: steps, characters made on the way, and levels of nesting.

    A step is a node or a function; long values cost more of them.
    """

    steps: int = 1_000_000
    chars: int = 256 << 20
    levels: int = 100

    def step(self, count: int = 1) -> None:
        """BudgetError: there were too many."""
        self.steps -= count
        if self.steps < 0:
            raise BudgetError("the template takes too many steps")

    def make(self, count: int) -> None:
        """A text of `count` characters was made. BudgetError: there were too many."""
        self.chars -= count
        self.step(count >> 10)
        if self.chars < 0:
            raise BudgetError("the template makes too much text")

    def format(self, count: int) -> None:
        """A text of `count` characters was put together from parts, which takes longer."""
        self.make(count)
        self.step(count >> 2)

    def enter(self) -> None:
        """One level further in. BudgetError: too deep."""
        self.levels -= 1
        if self.levels < 0:
            raise BudgetError("exceeded maximum template depth")

    def leave(self) -> None:
        """One level out again."""
        self.levels += 1
