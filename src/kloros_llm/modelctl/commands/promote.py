"""`modelctl promote`: choose the version that a name stands for."""

from __future__ import annotations

from argparse import Namespace

from ..host import Host
from ..switching import finish


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    host.prepare_writing()
    switch = host.catalogue.promote(arguments.name, arguments.version)
    return finish(host, switch, restart=arguments.restart, as_json=arguments.json)
