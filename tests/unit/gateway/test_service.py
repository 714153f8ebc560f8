"""The gateway's process: sockets, signals, restarts; in front of a stand-in engine."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kloros_llm.gateway.front.activation import bound_sockets
from tests.stand_in_engine import StandInEngine, in_thread
from tests.unit.gateway.gateway_process import (
    MODEL,
    GatewayProcess,
    free_ports,
    write_config,
    write_model,
)

_TIMEOUT_S = 30
_SHORT_DRAIN = "[limits]\ndrain_s = 1.0\n"
_BROKEN_OFF = "an error was encountered while running the model: unexpected EOF"


@pytest.fixture
def engine() -> Iterator[StandInEngine]:
    stand_in = StandInEngine(model=MODEL)
    with in_thread(stand_in):
        yield stand_in


def url(port: int, path: str = "") -> str:
    return f"http://127.0.0.1:{port}{path}"


def generate(port: int, **more: Any) -> requests.Response:
    asked = {"model": MODEL, "prompt": "Once", **more}
    return requests.post(
        url(port, "/api/generate"),
        json=asked,
        stream=bool(more.get("stream", True)),
        timeout=_TIMEOUT_S,
    )


def test_it_serves_counts_logs_and_ends(tmp_path: Path, engine: StandInEngine) -> None:
    port, metrics_port = free_ports(2)
    config = write_config(tmp_path, port, engine.url, f"[metrics]\nport = {metrics_port}\n")
    with GatewayProcess(config) as gateway:
        assert gateway.states[0] == f"READY=1\nSTATUS=serving on 127.0.0.1:{port}"
        assert requests.get(url(port), timeout=_TIMEOUT_S).text == "Ollama is running"
        listed = requests.get(url(port, "/api/tags"), timeout=_TIMEOUT_S).json()["models"]
        assert [one["name"] for one in listed] == [MODEL]
        answer = generate(port, stream=False)
        assert (answer.status_code, answer.json()["done"]) == (200, True)
        assert generate(port, model="nobody").status_code == 404
        numbers = requests.get(url(metrics_port, "/metrics"), timeout=_TIMEOUT_S).text
        counted = (
            f'kloros_gateway_requests_total{{code="200",model="{MODEL}",route="/api/generate"}} 1.0'
        )
        assert counted in numbers
        assert (
            'kloros_gateway_requests_total{code="404",model="unknown",route="/api/generate"} 1.0'
            in numbers
        )
        assert 'kloros_gateway_breaker_state{instance="live",state="closed"} 1.0' in numbers
        assert 'kloros_gateway_instance_up{instance="live"} 1.0' in numbers
        for rebound in ({"Host": "rebound.example"}, {"Origin": "https://evil.example"}):
            page = requests.get(url(metrics_port, "/metrics"), headers=rebound, timeout=_TIMEOUT_S)
            assert (page.status_code, page.content) == (403, b"")
        assert gateway.stop() == 0
        logged = [(line["route"], line["status"]) for line in gateway.accesses()]
    assert logged == [
        ("/", 200),
        ("/api/tags", 200),
        ("/api/generate", 200),
        ("/api/generate", 404),
    ]
    assert gateway.accesses()[2]["model"] == MODEL
    assert gateway.accesses()[2]["tokens"] == engine.answer_tokens
    assert "Once" not in "\n".join(gateway.lines + gateway.log)
    assert gateway.states[-1].startswith("STOPPING=1")
    with pytest.raises(requests.ConnectionError):
        requests.get(url(port), timeout=_TIMEOUT_S)


def test_an_answer_under_way_is_finished_before_it_ends(
    tmp_path: Path, engine: StandInEngine
) -> None:
    engine.answer_tokens, engine.interval_s = 40, 0.05
    (port,) = free_ports(1)
    with GatewayProcess(write_config(tmp_path, port, engine.url)) as gateway:
        answer = generate(port)
        lines = answer.iter_lines()
        next(lines)
        gateway.signal(signal.SIGTERM)
        gateway.await_state("STOPPING=1")
        gateway.await_log("stopping: ")
        with pytest.raises(requests.ConnectionError):
            requests.get(url(port), timeout=_TIMEOUT_S)
        rest = [json.loads(line) for line in lines]
        assert len(rest) == 40
        assert rest[-1]["done"] is True
        assert gateway.stop() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_ends_in_an_error(
    tmp_path: Path, engine: StandInEngine, stream: bool
) -> None:
    engine.answer_tokens, engine.interval_s = 100_000, 0.02
    (port,) = free_ports(1)
    with GatewayProcess(write_config(tmp_path, port, engine.url, _SHORT_DRAIN)) as gateway:
        answers: list[requests.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(generate(port, stream=stream)), daemon=True
        )
        asking.start()
        if stream:
            asking.join(_TIMEOUT_S)
        else:
            await_condition(lambda: engine.generating == 1)
        gateway.signal(signal.SIGTERM)
        asking.join(_TIMEOUT_S)
        last = json.loads(list(answers[0].iter_lines())[-1])
        if stream:
            assert last == {"error": _BROKEN_OFF}
        else:
            assert answers[0].status_code == 503
            assert last == {"error": "the server is restarting, please try again"}
        assert gateway.stop() == 0
        await_condition(lambda: engine.generating == 0)


def await_condition(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


class Load:
    """Clients that ask again and again: each tells what went wrong."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.answered = 0

    def _ask(self, ask: Callable[[], requests.Response], wants: str) -> None:
        try:
            answer = ask()
            if answer.status_code != 200 or wants not in answer.text:
                self.failures.append(f"{answer.status_code} {answer.text}")
        except requests.RequestException as error:
            self.failures.append(repr(error))
        self.answered += 1

    def _fresh(self) -> None:
        while not self._stop.wait(0.01):
            self._ask(lambda: requests.get(url(self._port), timeout=_TIMEOUT_S), "running")

    def _kept(self) -> None:
        with requests.Session() as session:
            while not self._stop.wait(0.05):
                self._ask(
                    lambda: session.get(url(self._port, "/api/tags"), timeout=_TIMEOUT_S), MODEL
                )

    def _generating(self) -> None:
        while not self._stop.wait(0.02):
            self._ask(lambda: generate(self._port), '"done":true')

    def start(self) -> None:
        kinds = (self._fresh, self._kept, self._kept, self._generating, self._generating)
        self._threads = [threading.Thread(target=kind, daemon=True) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)

    def await_answers(self, count: int) -> None:
        least = self.answered + count
        await_condition(lambda: self.answered >= least)


def test_restarts_under_load_fail_no_request(tmp_path: Path, engine: StandInEngine) -> None:
    """The test holds the listening socket as systemd does, and passes it to each process."""
    engine.interval_s = 0.01
    with bound_sockets("127.0.0.1", 0)[0] as listening:
        port = listening.getsockname()[1]
        config = write_config(tmp_path, port, engine.url)
        passed, names = [listening], [f"ollama-{port}"]
        load = Load(port)
        load.start()
        for _ in range(4):
            with GatewayProcess(config, passed, names) as gateway:
                load.await_answers(30)
                assert gateway.stop() == 0
        with GatewayProcess(config, passed, names):
            load.await_answers(30)
            load.stop()
        assert load.failures == []


def test_a_socket_that_systemd_holds_answers_once_the_gateway_is_up(
    tmp_path: Path, engine: StandInEngine
) -> None:
    with bound_sockets("127.0.0.1", 0)[0] as listening:
        port = listening.getsockname()[1]
        early = socket.create_connection(("127.0.0.1", port))
        early.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        config = write_config(tmp_path, port, engine.url)
        unused = bound_sockets("127.0.0.1", 0)[0]
        names = [f"ollama-{port}", "ollama-unused"]
        with GatewayProcess(config, [listening, unused], names) as gateway, early:
            early.settimeout(_TIMEOUT_S)
            assert early.makefile("rb").read().endswith(b"Ollama is running")
            assert "ollama-unused, which no listener" in gateway.await_log("ollama-unused")


def test_names_are_read_anew_without_a_restart(tmp_path: Path, engine: StandInEngine) -> None:
    def listed() -> set[str]:
        answer = requests.get(url(port, "/api/tags"), timeout=_TIMEOUT_S)
        return {one["name"] for one in answer.json()["models"]}

    (port,) = free_ports(1)
    config = write_config(tmp_path, port, engine.url)
    with GatewayProcess(config) as gateway:
        assert listed() == {MODEL}
        write_config(
            tmp_path, port, engine.url, f'aliases = ["main"]\n[personas.pirate]\nfrom = "{MODEL}"'
        )
        gateway.signal(signal.SIGHUP)
        gateway.await_state("READY=1", 2)
        assert gateway.states[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert listed() == {MODEL, "main:latest", "pirate:latest"}
        gateway.await_log("is in force: models, personas")

        write_config(tmp_path, port, engine.url, "[limits]\nqueue = 3")
        gateway.signal(signal.SIGHUP)
        gateway.await_state("READY=1", 3)
        assert "gateway.toml: limits changed, which takes a restart" in gateway.await_log("restart")
        assert listed() == {MODEL, "main:latest", "pirate:latest"}

        config.write_text("nonsense")
        gateway.signal(signal.SIGHUP)
        gateway.await_state("READY=1", 4)
        gateway.await_log("no valid TOML")
        assert listed() == {MODEL, "main:latest", "pirate:latest"}
        assert gateway.stop() == 0


def write_certificate(folder: Path) -> str:
    """A key, and a certificate of its own for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "gateway.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path = folder / "gateway.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return str(path)


def test_other_hosts_need_a_key_and_may_have_tls(tmp_path: Path, engine: StandInEngine) -> None:
    port, open_port = free_ports(2)
    certificate = write_certificate(tmp_path)
    (tmp_path / "keys").write_text("c29tZSBrZXk\n")
    config = write_config(
        tmp_path,
        open_port,
        engine.url,
        f"""[[listeners]]
address = "0.0.0.0"
port = {port}
api_key_file = "keys"
tls_certificate = "gateway.crt"
tls_key = "gateway.key"
""",
    )
    with GatewayProcess(config) as gateway:
        place = f"https://localhost:{port}/api/tags"
        refused = requests.get(place, verify=certificate, timeout=_TIMEOUT_S)
        assert refused.status_code == 401
        bearer = {"Authorization": "Bearer c29tZSBrZXk"}
        answer = requests.get(place, headers=bearer, verify=certificate, timeout=_TIMEOUT_S)
        assert answer.status_code == 200
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://localhost:{port}/", timeout=_TIMEOUT_S)
        assert requests.get(url(open_port), timeout=_TIMEOUT_S).status_code == 200
        # A new key and a renewed certificate take no restart.
        (tmp_path / "keys").write_text("YW5vdGhlcg\n")
        write_certificate(tmp_path)
        gateway.signal(signal.SIGHUP)
        gateway.await_state("READY=1", 2)
        bearer = {"Authorization": "Bearer YW5vdGhlcg"}
        answer = requests.get(place, headers=bearer, verify=certificate, timeout=_TIMEOUT_S)
        assert answer.status_code == 200
        # Half a renewal, and keys that are gone, change nothing.
        trusted = tmp_path / "trusted.crt"
        trusted.write_bytes((tmp_path / "gateway.crt").read_bytes())
        old_key = (tmp_path / "gateway.key").read_bytes()
        for lost in ("gateway.key", "keys"):
            write_certificate(tmp_path)
            (tmp_path / "gateway.key").write_bytes(old_key)
            (tmp_path / lost).write_text("\n")
            gateway.signal(signal.SIGHUP)
            gateway.await_state("READY=1", 3 if lost == "gateway.key" else 4)
            answer = requests.get(place, headers=bearer, verify=str(trusted), timeout=_TIMEOUT_S)
            assert answer.status_code == 200
        assert gateway.stop() == 0


def test_a_client_that_was_about_to_greet_is_answered_before_it_ends(
    tmp_path: Path, engine: StandInEngine
) -> None:
    (port,) = free_ports(1)
    certificate = write_certificate(tmp_path)
    config = write_config(tmp_path, port, engine.url)
    tls = f'port = {port}\ntls_certificate = "gateway.crt"\ntls_key = "gateway.key"'
    config.write_text(config.read_text().replace(f"port = {port}", tls))
    with GatewayProcess(config) as gateway:
        early = socket.create_connection(("127.0.0.1", port))
        early.settimeout(_TIMEOUT_S)
        # One that was accepted later is through: so is the early one's acceptance.
        assert requests.get(f"https://localhost:{port}/", verify=certificate, timeout=_TIMEOUT_S).ok
        gateway.signal(signal.SIGTERM)
        gateway.await_log("stopping: ")
        time.sleep(0.2)
        context = ssl.create_default_context(cafile=certificate)
        with context.wrap_socket(early, server_hostname="localhost") as greeted:
            greeted.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert greeted.makefile("rb").read().endswith(b"Ollama is running")
        assert gateway.stop() == 0


def checked(config: Path) -> tuple[int, str]:
    """`--check`: its exit status and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "kloros_llm.gateway", "--config", str(config), "--check"],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_check_says_that_nothing_is_wrong_and_serves_nothing(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path, port, "http://127.0.0.1:1")
    assert checked(config) == (
        0,
        f"{config}: nothing is wrong (1 listener, 1 instance, 1 model, 0 personas)\n",
    )
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_without_what_it_needs_it_says_how_to_install_that(check: list[str]) -> None:
    """As after `pip install .`, which is enough for the client library."""
    code = (
        "import sys; sys.modules['uvloop'] = None; sys.argv[0] = 'kloros-llm-gateway'; "
        "from kloros_llm.gateway.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *check],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "kloros-llm-gateway: uvloop is not installed; install this project with what the gateway "
        "needs: pip install '.[gateway]', in a checkout\n"
    )


def test_a_check_says_which_template_gives_way(tmp_path: Path) -> None:
    """A thought, and no fault: such a Modelfile comes with each gpt-oss of Ollama."""
    (port,) = free_ports(1)
    for architecture, channels, told in (
        ("gpt-oss", "<|start|>user{{ .Prompt }}<|end|>", 1),
        ("gpt-oss", "{{ .Prompt }}", 0),
        ("llama", "<|start|>user{{ .Prompt }}<|end|>", 0),
    ):
        config = write_config(
            tmp_path,
            port,
            "http://127.0.0.1:1",
            f'[personas.oss]\nfrom = "{MODEL}"\ntemplate = "{channels}"',
        )
        write_model(tmp_path / "models" / "smol.gguf", architecture)
        code, said = checked(config)
        assert code == 0
        first, *notes = said.splitlines()
        assert "nothing is wrong" in first
        assert len(notes) == told
        for note in notes:
            assert note.startswith('note: the template of "oss')
            assert "gpt-oss" in note


def test_a_check_says_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = write_config(
        tmp_path,
        port,
        "http://127.0.0.1:1",
        f"""
[models.broken]
path = "models/broken.gguf"
instances = []

[models.missing]
path = "models/missing.gguf"
instances = []

[personas.pirate]
from = "{MODEL}"
template = "{{{{ if }}}}"
adapters = ["mario.gguf"]

[[listeners]]
port = {port + 1}
tls_certificate = "gateway.crt"
tls_key = "gateway.key"
""",
    )
    write_certificate(tmp_path)
    (tmp_path / "gateway.key").write_text("no key")
    (tmp_path / "models" / "broken.gguf").write_bytes(b"GGUF, but no more")
    status, said = checked(config)
    assert status == 1
    lines = said.splitlines()
    assert lines[0] == f"{config}: 5 things are wrong"
    assert "listeners[1].tls_certificate, tls_key: " in lines[1]
    assert 'models."broken": ' in lines[2]
    assert 'models."missing": ' in lines[3]
    assert 'personas."pirate".adapters: there is no file ' in lines[4]
    assert 'the template of "pirate:latest" cannot be honoured: template: :1: ' in lines[5]


def test_what_cannot_be_read_is_not_worth_a_retry(tmp_path: Path) -> None:
    missing = tmp_path / "gateway.toml"
    assert checked(missing)[0] == 1
    gateway = GatewayProcess(missing).start()
    assert gateway.process.wait(_TIMEOUT_S) == 78
    gateway.stop()
    assert "No such file or directory" in "\n".join(gateway.log)
    (port,) = free_ports(1)
    with bound_sockets("127.0.0.1", port)[0]:
        taken = GatewayProcess(write_config(tmp_path, port, "http://127.0.0.1:1")).start()
        assert taken.process.wait(_TIMEOUT_S) == 1
        taken.stop()
    assert f"cannot listen on 127.0.0.1 port {port}" in "\n".join(taken.log)
