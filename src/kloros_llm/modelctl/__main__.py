"""`python3 -m kloros_llm.modelctl`, from a checkout or a wheel on sys.path."""

from __future__ import annotations

import sys

from .main import main

sys.exit(main())
