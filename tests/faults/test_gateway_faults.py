"""The gateway's own restarts under load, its socket held by another process as systemd does."""

from __future__ import annotations

import signal
from pathlib import Path

from kloros_llm.gateway.front.activation import bound_sockets
from tests.faults.clients import SteadyLoad
from tests.faults.engines import EngineProcess
from tests.unit.gateway.gateway_process import GatewayProcess, write_config


def test_restarts_of_the_gateway_under_load_fail_nothing(tmp_path: Path) -> None:
    with (
        EngineProcess.stand_in(tokens=20, interval_ms=20) as engine,
        bound_sockets("127.0.0.1", 0)[0] as listening,
    ):
        port = listening.getsockname()[1]
        config = write_config(tmp_path, port, engine.url)
        passed, names = [listening], [f"ollama-{port}"]
        with SteadyLoad(port, 20) as load:
            for _ in range(4):
                with GatewayProcess(config, passed, names) as gateway:
                    load.await_whole(30)
                    assert gateway.stop() == 0
            with GatewayProcess(config, passed, names):
                load.await_whole(30)
                load.stop()
        assert load.failures == []
        assert load.broken_off == []


def test_engine_and_gateway_restart_together_under_load(tmp_path: Path) -> None:
    with (
        EngineProcess.stand_in(tokens=20, interval_ms=20) as engine,
        bound_sockets("127.0.0.1", 0)[0] as listening,
    ):
        port = listening.getsockname()[1]
        config = write_config(tmp_path, port, engine.url)
        passed, names = [listening], [f"ollama-{port}"]
        with SteadyLoad(port, 20) as load:
            for _ in range(2):
                with GatewayProcess(config, passed, names) as gateway:
                    load.await_whole(30)
                    gateway.signal(signal.SIGTERM)
                    engine.kill()
                    engine.start()
                    assert gateway.stop() == 0
            with GatewayProcess(config, passed, names):
                load.await_whole(30)
                load.stop()
        assert load.failures == []
