"""`modelctl rollback`: back to the version before."""

from __future__ import annotations

from argparse import Namespace

from ...core.model_catalogue import CatalogueError
from ..exit_codes import Exit, ModelctlError
from ..host import Host
from ..switching import finish


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    host.prepare_writing()
    try:
        switch = host.catalogue.rollback(arguments.name)
    except CatalogueError as error:
        raise ModelctlError(str(error), Exit.NOT_FOUND) from error
    return finish(host, switch, restart=arguments.restart, as_json=arguments.json)
