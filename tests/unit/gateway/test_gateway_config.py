"""gateway.toml: the documented example, and everything that is wrong with a file, at once."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kloros_llm.gateway.config import Config, ConfigError, Limits, read_config

EXAMPLE = Path(__file__).parents[3] / "docs" / "gateway.toml"

HEAD = """
models_dir = "/models"
state_dir = "state"
[[listeners]]
port = 11434
[instances.live]
url = "http://127.0.0.1:8080"
model = "m"
[models."m"]
path = "m.gguf"
"""


def read(folder: Path, text: str) -> Config:
    file = folder / "gateway.toml"
    file.write_text(text)
    return read_config(file)


def findings(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        read(folder, text)
    assert str(refused.value).count("\n  - ") == len(refused.value.findings)
    return refused.value.findings


def test_what_models_take_is_by_their_names(tmp_path: Path) -> None:
    head = HEAD.replace('[models."m"]', 'memory_bytes = {"m" = 7, "a/b:c" = 8}\n[models."m"]')
    instance = read(tmp_path, head).instances["live"]
    assert instance.memory_bytes == {"m": 7, "a/b:c": 8}
    assert instance.vram_bytes == {}
    (finding,) = findings(tmp_path, head.replace("= 8", "= -1"))
    assert finding.startswith('instances."live".memory_bytes.a/b:c: found -1, needed 0 to')


def test_a_slots_context_may_be_another_for_each_model_of_a_router(tmp_path: Path) -> None:
    head = HEAD.replace('[models."m"]', 'model_context_tokens = {"embed" = 512}\n[models."m"]')
    instance = read(tmp_path, head).instances["live"]
    assert instance.slot_tokens("embed") == 512
    assert instance.slot_tokens("m") == instance.context_tokens


def test_the_documented_example() -> None:
    config = read_config(EXAMPLE)
    assert [listener.port for listener in config.listeners] == [11434, 11435]
    assert config.listeners[0].socket_name == "ollama-11434"
    assert config.instances["router"].kind == "router"
    assert config.models["qwen2.5:14b-instruct-q4_0"].instances == ("think",)
    assert config.personas["mario"].parameters == {
        "num_ctx": 16384,
        "stop": ("Luigi:",),
        "temperature": 0.6,
    }
    assert config.limits == Limits()
    text = EXAMPLE.read_text()
    for data in (Config, Limits, *(type(value[0]) for value in (config.listeners,))):
        for field in fields(data):
            assert field.name in text, f"{field.name} is not documented"


def test_the_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text().partition("[limits]")[2].splitlines()
    limits = "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    text = limits.replace("address", "#")
    assert read(tmp_path, HEAD + "[limits]\n" + text).limits == Limits()


def test_a_short_one(tmp_path: Path) -> None:
    config = read(tmp_path, HEAD)
    assert config.models_dir == Path("/models")
    assert config.state_dir == tmp_path / "state"
    assert config.models["m"].path == tmp_path / "m.gguf"
    assert config.models["m"].instances == ("live",)
    assert config.listeners[0].address == "127.0.0.1"
    assert config.listeners[0].instances is None
    assert config.metrics is None


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    told = findings(
        tmp_path,
        """
models_dir = 5
stat_dir = "/state"
think_inline = "yes"
hf_endpoint = "hub"
[[listeners]]
address = "0.0.0.0"
port = 11434
tls_key = "missing.key"
instances = ["lve"]
origins = ["chat.example"]
[[listeners]]
port = 11434
[[listeners]]
address = "localhost"
port = 70000
[instances.live]
url = "127.0.0.1:8080"
model = "nosuch"
slots = 0
fallback = "think"
[instances.think]
url = "http://127.0.0.1:11434/"
kind = "routr"
fallback = "live"
[models."bad name"]
path = "x"
[models."m"]
path = "m.gguf"
aliases = ["M:latest"]
instances = ["live", "gone"]
[personas.a]
from = "b"
parameters = { num_ctx = "big", mirostat = 2 }
[personas.b]
from = "a"
[[personas.b.messages]]
role = "robot"
[personas.c]
from = "nobody"
[limits]
wait_s = 0
queue = 1.5
[metrics]
address = "0.0.0.0"
port = 9000
""",
    )
    for expected in (
        "models_dir: found 5, needed a text in quotes",
        "state_dir: missing; it needs a value",
        'stat_dir: no such key; did you mean "state_dir"?',
        "think_inline: found 'yes', needed true or false",
        "hf_endpoint: found 'hub', needed http:// or https:// and a host",
        "listeners[0].api_key_file: missing, and 0.0.0.0 is reached from other hosts; ",
        "listeners[0].tls_certificate: missing; TLS needs the certificate and its key",
        "listeners[0].tls_key: found '",
        "listeners[0].instances: found 'lve', which is no instance here; known: live, think",
        "listeners[0].origins: found 'chat.example'",
        "listeners[1].port: found 11434, which listeners[0] has already on 0.0.0.0; ",
        "listeners[1].socket_name: found 'ollama-11434', which listeners[0] has already; ",
        "listeners[2].address: found 'localhost', needed an IP address",
        "listeners[2].port: found 70000, needed 1 to 65535",
        "instances.\"live\".url: found '127.0.0.1:8080', needed http://ADDRESS:PORT",
        "instances.\"live\".model: found 'nosuch', which is no model here; known: bad name, m",
        'instances."live".slots: found 0, needed 1 to 1024',
        "instances.\"think\".kind: found 'routr', needed one of: dedicated, router",
        "instances.\"think\".url: found 'http://127.0.0.1:11434', which is a listener of this ",
        "models.\"bad name\": found 'bad name', needed a model's name as Ollama has them",
        'models."m".aliases: found \'M:latest\', which is models."m" already; ',
        "models.\"m\".instances: found 'live', which is dedicated to 'nosuch'; ",
        "models.\"m\".instances: found 'gone', which is no instance here",
        'personas."a".parameters.num_ctx: found \'big\': option "num_ctx" must be of type integer',
        'personas."a".parameters.mirostat: no such key; ',
        "personas.\"b\".messages[0].role: found 'robot', needed one of: system, user, ",
        "personas.\"c\".from: found 'nobody', which is no model and no persona; ",
        "goes in a circle: registry.ollama.ai/library/a:latest → ",
        "limits.wait_s: found 0, needed seconds: above 0",
        "limits.queue: found 1.5, needed a whole number",
        "metrics.address: found '0.0.0.0', needed a loopback address",
    ):
        assert any(expected in finding for finding in told), f"{expected}\nnot in\n{told}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "listeners: there is none"),
        ("a = [", "no valid TOML"),
        ("listeners = 5", "listeners: found 5, needed an array"),
        ("listeners = [5]", "listeners[0]: found 5, needed a table"),
        ("instances = []", "instances: found [], needed a table"),
        ("[models]\nm = 1", 'models."m": found 1, needed a table'),
        (HEAD + "[[listeners]]\nport = 11435\naddress = '::'", "[1].api_key_file: missing"),
        (HEAD.replace("8080", "8080:1"), "url: found 'http://127.0.0.1:8080:1'"),
        (HEAD.replace("http://127.0.0.1:8080", "http://[::1"), "url: found 'http://[::1'"),
        (HEAD.replace("8080", "8080/v1/"), "needed http://ADDRESS:PORT of a llama-server; /v1 is"),
        (HEAD.replace("8080", "8080/?x=y"), "url: found 'http://127.0.0.1:8080/?x=y', needed"),
        (HEAD.replace("//127", "//user:secret@127"), "needed http://ADDRESS:PORT"),
        (HEAD.replace(":8080", " :8080"), "needed http://ADDRESS:PORT"),
        (HEAD.replace("8080", "0"), "needed http://ADDRESS:PORT"),
        (HEAD.replace("11434", "11434\norigins = ['https://a.example/']"), "a slash at the end"),
        (HEAD.replace('model = "m"', ""), 'live".model: missing; name the model, or write kind'),
        (HEAD.replace('model = "m"', 'model = "m"\nkind = "router"'), "a router serves many"),
        (
            HEAD.replace('model = "m"', 'model = "m"\npulled_models_dir = "p"'),
            'live".pulled_models_dir: only a router looks there',
        ),
        (
            f'{HEAD}[instances.b]\nurl = "http://127.0.0.1:1"\nkind = "router"\n'
            'pulled_models_dir = "/models"',
            "which holds other things; name a folder of its own",
        ),
        (
            HEAD.replace('model = "m"', 'model = "m"\nfallback = "live"'),
            "live\".fallback: found 'live'",
        ),
        (HEAD + '[instances.b]\nurl = "http://127.0.0.1:8080"\nmodel = "m"', "instance live has"),
        (HEAD + '[personas.p]\nfrom = "p"', "goes in a circle"),
        (HEAD + '[personas.p]\nfrom = ""', 'found "", needed a text'),
        (HEAD + "[personas.m]\nfrom = 'm'\n[personas.'M']\nfrom = 'm'", 'is personas."m" already'),
        (HEAD + "[metrics]\nport = 11434", "which listeners[0] has already"),
    ],
)
def test_one_thing_wrong(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in finding for finding in findings(tmp_path, text)), findings(
        tmp_path, text
    )


def test_two_instances_may_serve_for_each_other(tmp_path: Path) -> None:
    other = '[instances.b]\nurl = "http://127.0.0.1:8082"\nmodel = "m"\nfallback = "live"\n'
    config = read(tmp_path, HEAD.replace('model = "m"', 'model = "m"\nfallback = "b"') + other)
    assert [one.fallback for one in config.instances.values()] == ["b", "live"]


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("::", "127.0.0.1", True),
        ("0.0.0.0", "::", True),
        ("0.0.0.0", "127.0.0.2", True),
        ("::1", "0:0::1", True),
        ("0.0.0.0", "::1", False),
        ("127.0.0.1", "127.0.0.2", False),
    ],
)
def test_listeners_on_one_port(tmp_path: Path, one: str, other: str, clash: bool) -> None:
    (tmp_path / "keys").write_text("secret\n")
    keys = 'api_key_file = "keys"\nsocket_name'
    text = HEAD.replace("port = 11434", f'port = 11434\naddress = "{one}"\n{keys} = "a"')
    text += f'[[listeners]]\nport = 11434\naddress = "{other}"\n{keys} = "b"\n'
    if clash:
        (told,) = findings(tmp_path, text)
        assert f"listeners[1].port: found 11434, which listeners[0] has already on {one}" in told
    else:
        assert len(read(tmp_path, text).listeners) == 2


def test_a_persona_may_bear_its_models_name(tmp_path: Path) -> None:
    config = read(tmp_path, HEAD + "[personas.'M:latest']\nfrom = 'm'\nsystem = 'Be terse.'")
    assert config.personas["M:latest"].system == "Be terse."


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd loaded comes first; without it, the file beside gateway.toml."""
    text = HEAD.replace("port = 11434", 'port = 11434\naddress = "0.0.0.0"\napi_key_file = "keys"')
    assert "keys', but: No such file or directory" in findings(tmp_path, text)[0]
    (tmp_path / "keys").write_text("\n")
    assert "holds no API key" in findings(tmp_path, text)[0]
    (tmp_path / "keys").write_text("secret\n")
    assert read(tmp_path, text).listeners[0].api_key_file == tmp_path / "keys"
    loaded = tmp_path / "credentials"
    loaded.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(loaded))
    assert read(tmp_path, text).listeners[0].api_key_file == tmp_path / "keys"
    (loaded / "keys").write_text("secret\n")
    assert read(tmp_path, text).listeners[0].api_key_file == loaded / "keys"


def test_the_token_for_pulls_is_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'hf_token_file = "hf_token"\n{HEAD}'
    assert "hf_token_file: found '" in findings(tmp_path, text)[0]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "hf_token").write_text("\n")
    assert findings(tmp_path, text) == (
        f"hf_token_file: {tmp_path}/hf_token holds no token: write one, or leave the key out",
    )
    for odd in ("hf_canary\nhf_canary\n", "hf canary", "hf_canar\u00fd"):
        (tmp_path / "hf_token").write_text(odd)
        (told,) = findings(tmp_path, text)
        assert "holds more than a token: write that alone, on one line" in told
        assert "canar" not in told
    (tmp_path / "hf_token").write_text("hf_canary\n")
    assert read(tmp_path, text).hf_token_file == tmp_path / "hf_token"


def test_no_secret_is_told(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret-key\n")
    text = HEAD.replace("port = 11434", 'port = 0\naddress = "0.0.0.0"\napi_key_file = "keys"')
    assert not any("secret-key" in finding for finding in findings(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        read_config(tmp_path / "gateway.toml")


LINES = st.sampled_from(EXAMPLE.read_text().replace("# ", "").splitlines())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES | st.text(max_size=12), max_size=12))
def test_any_file_is_read_or_told(tmp_path: Path, lines: list[str]) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    with contextlib.suppress(ConfigError):
        assert read_config(file).listeners
