"""Documents in the order of how well they suit a question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranked:
    """One of the documents: its place among those given, its score (higher suits better)."""

    index: int
    score: float
    document: str
