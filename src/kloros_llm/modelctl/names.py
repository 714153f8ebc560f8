"""The names that a shell may complete to; whatever goes wrong, there are just none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ..core.model_catalogue import Catalogue, CatalogueError
from .exit_codes import ModelctlError
from .host_plan import DEFAULT_MODELS_DIR, HostPlan, read_plan


def names(
    kind: str, before: Sequence[str], plan_file: Path | None, models_dir: Path | None
) -> set[str]:
    """Names of a kind (see `arguments.COMPLETES`); `before` are the arguments before it."""
    try:
        plan = read_plan(plan_file)
    except ModelctlError:
        plan = None
    if kind == "instance":
        return {instance.name for instance in plan.instances} if plan else set()
    planned_dir = plan.models_dir if plan else DEFAULT_MODELS_DIR
    with contextlib.suppress(CatalogueError, OSError):
        catalogue = Catalogue(models_dir or planned_dir)
        if kind == "version":
            return {one.id for one in catalogue.owner(before[0]).versions} if before else set()
        here = {model.name for model in catalogue.models()}
        if kind == "model":
            return here
        here |= {alias.alias for alias in catalogue.aliases()}
        return here | _wanted(kind, plan)
    return _wanted(kind, plan)


def _wanted(kind: str, plan: HostPlan | None) -> set[str]:
    """The plan's models, where they may be named though they are not here."""
    if plan is None or kind not in ("planned", "known"):
        return set()
    return {name for model in plan.models for name in (model.name, *model.aliases)}
