"""`kloros-llm-gateway --config FILE [--check]`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/kloros-llm/gateway.toml")


def main(arguments: list[str] | None = None) -> int:
    """The command. 0: served until it was stopped, or nothing wrong was found."""
    parser = argparse.ArgumentParser(
        prog="kloros-llm-gateway", description="Ollama's API in front of llama-server."
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="gateway.toml (%(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read everything it names, say all that is wrong, and serve nothing",
    )
    chosen = parser.parse_args(arguments)
    # What a check finds it prints: a line in the log would say it twice.
    level = logging.ERROR if chosen.check else logging.INFO
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        from .check import print_findings  # noqa: PLC0415
        from .front.service import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        # The client library and modelctl do without what the gateway needs.
        print(
            f"kloros-llm-gateway: {error.name} is not installed; install this project with what "
            "the gateway needs: pip install '.[gateway]', in a checkout",
            file=sys.stderr,
        )
        return 1
    return print_findings(chosen.config) if chosen.check else serve(chosen.config)


if __name__ == "__main__":
    sys.exit(main())
