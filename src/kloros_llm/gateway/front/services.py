"""What the handlers of one listener work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from ..config import Config, Listener
    from ..engines.backends import Backends
    from ..models.catalogue import Catalogue
    from .metrics import GatewayMetrics


@dataclass(frozen=True)
class Services:
    """Everything but `listener` is the same object for all listeners of the process."""

    config: Config
    listener: Listener
    catalogue: Catalogue
    backends: Backends
    metrics: GatewayMetrics


SERVICES: web.AppKey[Services] = web.AppKey("services")
