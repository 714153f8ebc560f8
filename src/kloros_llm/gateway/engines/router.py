"""The models of a router instance: loaded when asked for, ended when their time is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..ollama_api.durations import FOREVER_NS
from .engine import Engine
from .engine_errors import EngineError, EngineGoneError, EngineLoadingError
from .watch import Watch

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_READ_AGAIN_S = 1.0
_FAILURES = (EngineError, EngineLoadingError, EngineGoneError)


@dataclass
class _Use:
    """Of one model: requests under way, how long it stays after the last, until when."""

    keep_alive_ns: int
    requests: int = 0
    timer: asyncio.TimerHandle | None = None
    expires_at: datetime | None = None


class RouterModels:
    """Loads and ends models as Ollama does. `engine` gives the router's engine for a model."""

    def __init__(self, watch: Watch, engine: Callable[[str], Engine], keep_alive_ns: int) -> None:
        self._watch = watch
        self._engine = engine
        self._keep_alive_ns = keep_alive_ns
        self._uses: dict[str, _Use] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._ended_at: dict[str, datetime] = {}
        # What has changed while this gateway was away is not known.
        self._to_read = watch.instance.pulled_models_dir is not None
        self._reading = asyncio.Lock()

    def is_loaded(self, model: str) -> bool:
        """As far as is known, and nobody is ending it."""
        return model in self._watch.models() and model not in self._ends

    async def read_folder(self) -> None:
        """Has the router read its folder anew. Where that fails, `keep_reading` does it later."""
        self._to_read = True
        await self._read_folder()

    async def keep_reading(self) -> None:
        """Has the router read its folder where it has not yet, until this is cancelled."""
        while True:
            if self._watch.status == "up":
                await self._read_folder()
            await asyncio.sleep(_READ_AGAIN_S)

    async def _read_folder(self) -> None:
        async with self._reading:
            if not self._to_read:
                return
            # What changes from now on is read once more.
            self._to_read = False
            try:
                await self._watch.read_folder()
            except BaseException as error:
                self._to_read = True
                if not isinstance(error, _FAILURES):
                    raise
                _log.info("%s: reading its models anew: %s", self._watch.instance.name, error)

    async def load(self, model: str, name: str) -> None:
        """Returns when it is loaded. All that wait for one model share one load. `name` is what
        people call it.

        Raises EngineError where it cannot be loaded, else as Engine does.
        """
        load = self._loads.get(model)
        if load is None:
            load = asyncio.get_running_loop().create_task(self._load(model, name))
            self._loads[model] = load
            load.add_done_callback(lambda done: self._loaded(model, done))
        await asyncio.shield(load)

    def _loaded(self, model: str, load: asyncio.Task[None]) -> None:
        del self._loads[model]
        if load.cancelled():
            return
        # Where all that waited are gone, nobody else asks for the outcome, nor ends the model.
        if (error := load.exception()) is not None:
            _log.warning("%s: loading %s: %s", self._watch.instance.name, model, error)
        elif model not in self._uses:
            use = self._uses[model] = _Use(self._keep_alive_ns)
            self._start_timer(model, use)

    async def _load(self, model: str, name: str) -> None:
        if (end := self._ends.get(model)) is not None:
            await asyncio.wait((end,))
        try:
            await self._begin(model)
        except EngineLoadingError:
            # All its places are taken by busy models: a request itself waits in the router's line.
            return
        except EngineError as error:
            if error.status == 404:
                instance = self._watch.instance
                lacking = "its preset file must have it as an alias"
                if model != name:
                    lacking = f"it has not found it in {instance.pulled_models_dir}"
                raise EngineError(
                    500,
                    f"instance {instance.name!r} does not know the model {name!r}: {lacking}",
                    kind=error.kind,
                ) from error
            if error.message != "model is already running":
                raise
        while True:
            await self._watch.read_models()
            said = self._watch.router_model(model)
            value = said.get("value")
            if value == "unloaded" and said.get("failed"):
                raise EngineError(
                    500,
                    f"llama-server could not load the model {name!r}: it ended with "
                    f"exit status {said.get('exit_code')}; its log says why",
                    kind="server_error",
                )
            # Unloaded without a failure: another one took its place. A request loads it again.
            if value != "loading":
                return
            await asyncio.sleep(_POLL_S)

    async def _begin(self, model: str) -> None:
        """Has it begin to load; a router that does not know it reads its folder first."""
        try:
            await self._engine(model).load()
        except EngineError as error:
            is_read = not (self._to_read or self._reading.locked())
            if error.status != 404 or is_read:
                raise
            await self._read_folder()
            await self._engine(model).load()

    def enter(self, model: str, keep_alive_ns: int | None) -> None:
        """A request uses it from now on; None leaves its keep_alive as it was."""
        use = self._uses.setdefault(model, _Use(self._keep_alive_ns))
        use.requests += 1
        if keep_alive_ns is not None:
            use.keep_alive_ns = keep_alive_ns
        self._stop_timer(use)

    def leave(self, model: str) -> None:
        """A request is done with it: after the last, its time begins to run."""
        use = self._uses[model]
        use.requests -= 1
        if use.requests == 0:
            self._start_timer(model, use)

    def expire(self, model: str) -> None:
        """Ends it now, or when its requests are done."""
        use = self._uses.setdefault(model, _Use(0))
        use.keep_alive_ns = 0
        if use.requests == 0:
            self._start_timer(model, use)

    def expires_at(self, model: str) -> datetime | None:
        """When it will be ended, or was: a router takes a moment for that. None: it stays."""
        use = self._uses.get(model)
        if use is None:
            return self._ended_at.get(model)
        if use.keep_alive_ns == FOREVER_NS:
            return None
        return use.expires_at or datetime.now(UTC) + _period(use.keep_alive_ns)

    def _start_timer(self, model: str, use: _Use) -> None:
        self._stop_timer(use)
        if use.keep_alive_ns == FOREVER_NS:
            return
        use.expires_at = datetime.now(UTC) + _period(use.keep_alive_ns)
        loop = asyncio.get_running_loop()
        use.timer = loop.call_later(_period(use.keep_alive_ns).total_seconds(), self._end, model)

    @staticmethod
    def _stop_timer(use: _Use) -> None:
        if use.timer is not None:
            use.timer.cancel()
        use.timer = None
        use.expires_at = None

    def _end(self, model: str) -> None:
        del self._uses[model]
        self._ended_at[model] = datetime.now(UTC)
        self._ends[model] = asyncio.get_running_loop().create_task(self._unload(model))

    async def _unload(self, model: str) -> None:
        try:
            await self._engine(model).unload()
            await self._watch.read_models()
        except (EngineError, EngineLoadingError, EngineGoneError) as error:
            # Not running any more, or the router is gone: either way nothing is left to end.
            _log.info("%s: unloading %s: %s", self._watch.instance.name, model, error)
        finally:
            del self._ends[model]
        self._watch.look()

    def close(self) -> None:
        """Stops timers and loads. What the router has loaded stays."""
        for use in self._uses.values():
            self._stop_timer(use)
        for task in (*self._loads.values(), *self._ends.values()):
            task.cancel()


def _period(keep_alive_ns: int) -> timedelta:
    return timedelta(microseconds=keep_alive_ns / 1000)
