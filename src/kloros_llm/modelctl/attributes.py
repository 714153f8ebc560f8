"""Owner, group and mode of new files: as those that are in the models' directory already."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..core.model_catalogue import Catalogue
from ..core.model_files import record_path
from ..core.model_store import Outcome

_READABLE = 0o644


@dataclass(frozen=True)
class Attributes:
    """What a model's file is to have. `uid` and `gid` can be given by root alone."""

    uid: int
    gid: int
    mode: int

    @classmethod
    def of_models(cls, directory: Path, catalogue: Catalogue) -> Attributes:
        """Those of the newest model; in an empty directory its own owner's, readable for all."""
        files = [model.path.stat() for model in catalogue.models() if model.path.is_file()]
        if files:
            newest = max(files, key=lambda state: state.st_mtime_ns)
            return cls(newest.st_uid, newest.st_gid, stat.S_IMODE(newest.st_mode) & 0o666)
        state = directory.stat()
        return cls(state.st_uid, state.st_gid, _READABLE)

    def are_those_of(self, state: os.stat_result) -> bool:
        """Whether a file has them, so that linking to it changes nothing of it."""
        here = (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode))
        return here == (self.uid, self.gid, self.mode)

    def give(self, outcome: Outcome, directory: Path) -> None:
        """Give them to what was fetched, and to its record."""
        if not outcome.changed:
            return
        paths = outcome.after.paths(directory)
        for path in (*paths, record_path(paths[0])):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                state = path.stat()
                if os.geteuid() == 0 and (state.st_uid, state.st_gid) != (self.uid, self.gid):
                    os.chown(path, self.uid, self.gid)
                if stat.S_IMODE(state.st_mode) != self.mode:
                    path.chmod(self.mode)
