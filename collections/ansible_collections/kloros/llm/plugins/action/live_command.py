# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""Runs the module of the same name and shows how far it is."""

from __future__ import annotations

from ansible_collections.kloros.llm.plugins.plugin_utils.live_progress import LiveProgressAction


class ActionModule(LiveProgressAction):
    """All of it is in the base."""
