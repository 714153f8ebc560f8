"""The names that a shell may complete to; whatever goes wrong, there are just none."""

from __future__ import annotations

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
    catalogue = Catalogue(models_dir or planned_dir)
    try:
        if kind == "version":
            return {one.id for one in catalogue.find(before[0]).model.versions} if before else set()
        here = {name for model in catalogue.models() for name in (model.name, *model.aliases)}
        here |= {alias.alias for alias in catalogue.aliases()}
    except (CatalogueError, OSError):
        here = set()
    if kind == "here":
        return here
    planned = _planned(plan)
    return planned if kind == "planned" else here | planned


def _planned(plan: HostPlan | None) -> set[str]:
    return (
        {name for model in plan.models for name in (model.name, *model.aliases)} if plan else set()
    )
