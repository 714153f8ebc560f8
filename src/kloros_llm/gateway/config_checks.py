"""What no single key of gateway.toml shows: names that nobody has, ports taken twice, circles."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .front.access import ORIGIN_SCHEMES, read_api_keys
from .ollama_api.model_names import name_key
from .toml_table import Findings, found

if TYPE_CHECKING:
    from .config import Config, Instance, Listener

_NOT_IN_PLACES = re.compile(r"[\s\x00-\x20@?#\\]").search
_NOT_IN_TOKENS = re.compile(rb"[^\x21-\x7e]").search
_NAME_RULE = (
    "needed a model's name as Ollama has them: letters, digits, '.', '_' and '-', "
    "with namespace/ before and :tag behind"
)


def check(config: Config, findings: Findings) -> None:
    """Note all that is wrong with `config` as a whole."""
    if not config.listeners:
        findings.append("listeners: there is none; write [[listeners]] with address and port")
    for number, listener in enumerate(config.listeners):
        _check_listener(config, listener, f"listeners[{number}]", findings)
    _check_sockets(config, findings)
    _check_token(config.hf_token_file, findings)
    for instance in config.instances.values():
        _check_instance(config, instance, findings)
    _check_urls(config, findings)
    _check_names(config, findings)
    _check_models(config, findings)
    _check_personas(config, findings)


def is_loopback(address: str) -> bool:
    """Whether only this host reaches it; False for what is no address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def host_and_port(url: str) -> tuple[str, int] | None:
    """Where `url` leads, http or https; None for anything else.

    None too where something stands in it that does not belong to a place: a user, a query.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            return None
        if _NOT_IN_PLACES(url):
            return None
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None


def _check_listener(config: Config, listener: Listener, where: str, findings: Findings) -> None:
    if not _is_address(listener.address):
        findings.append(
            f"{where}.address: found {found(listener.address)}, needed an IP address, "
            "such as 127.0.0.1; names are resolved by clients, not by listeners"
        )
    elif not is_loopback(listener.address) and listener.api_key_file is None:
        findings.append(
            f"{where}.api_key_file: missing, and {listener.address} is reached from other hosts; "
            "name a file with an API key a line, or listen on 127.0.0.1"
        )
    if (listener.tls_certificate is None) != (listener.tls_key is None):
        lacking = "tls_key" if listener.tls_key is None else "tls_certificate"
        findings.append(f"{where}.{lacking}: missing; TLS needs the certificate and its key")
    _check_key_file(listener.api_key_file, f"{where}.api_key_file", findings)
    for key, path in (("tls_certificate", listener.tls_certificate), ("tls_key", listener.tls_key)):
        if path is not None:
            _check_file(path, f"{where}.{key}", findings)
    for origin in listener.origins:
        if origin.count("*") > 1 or ("*" not in origin and not origin.startswith(ORIGIN_SCHEMES)):
            findings.append(
                f"{where}.origins: found {found(origin)}, needed one * at most, or a beginning "
                f"among {' '.join(ORIGIN_SCHEMES)}"
            )
        elif "/" in origin.partition("://")[2]:
            findings.append(
                f"{where}.origins: found {found(origin)}, needed what browsers send: a scheme, a "
                "host and perhaps a port, without a path or a slash at the end"
            )
    _check_known(listener.instances or (), config.instances, f"{where}.instances", findings)


def _check_sockets(config: Config, findings: Findings) -> None:
    taken: dict[int, list[tuple[str, str]]] = {}
    names: dict[str, str] = {}
    wanted = [(f"listeners[{n}]", li.address, li.port) for n, li in enumerate(config.listeners)]
    if config.metrics is not None:
        wanted.append(("metrics", config.metrics.address, config.metrics.port))
        if not is_loopback(config.metrics.address):
            findings.append(
                f"metrics.address: found {found(config.metrics.address)}, needed a loopback "
                "address: metrics have no API key; let what collects them run on this host"
            )
    for where, address, port in wanted:
        for other, its_address in taken.get(port, []):
            if _clash(its_address, address):
                both = ":: is IPv4's too; " if "::" in (its_address, address) else ""
                findings.append(
                    f"{where}.port: found {port}, which {other} has already on {its_address}; "
                    f"{both}give each its own"
                )
        taken.setdefault(port, []).append((where, address))
    for number, listener in enumerate(config.listeners):
        where = f"listeners[{number}]"
        if listener.socket_name in names:
            findings.append(
                f"{where}.socket_name: found {found(listener.socket_name)}, which "
                f"{names[listener.socket_name]} has already; set socket_name on one of them"
            )
        names.setdefault(listener.socket_name, where)


def _clash(one: str, other: str) -> bool:
    """Whether two addresses cannot both be listened on at one port."""
    try:
        first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    except ValueError:
        return one == other
    if first == second or "::" in (str(first), str(second)):
        return True
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def _check_instance(config: Config, instance: Instance, findings: Findings) -> None:
    where = f'instances."{instance.name}"'
    if instance.url and (host_and_port(instance.url) is None or instance.url.endswith("/v1")):
        findings.append(
            f"{where}.url: found {found(instance.url)}, "
            "needed http://ADDRESS:PORT of a llama-server; /v1 is not a part of it"
        )
    if instance.kind == "router" and instance.model is not None:
        findings.append(f"{where}.model: a router serves many; name it in those models' instances")
    if instance.kind == "dedicated" and instance.pulled_models_dir is not None:
        findings.append(
            f"{where}.pulled_models_dir: only a router looks there; leave it out, or write "
            'kind = "router"'
        )
    if instance.pulled_models_dir in (config.models_dir, config.state_dir):
        findings.append(
            f"{where}.pulled_models_dir: found {found(str(instance.pulled_models_dir))}, which "
            "holds other things; name a folder of its own"
        )
    if instance.kind == "dedicated" and instance.model is None:
        findings.append(f'{where}.model: missing; name the model, or write kind = "router"')
    if instance.model is not None:
        _check_known((instance.model,), config.models, f"{where}.model", findings)
    if instance.fallback is not None:
        _check_known((instance.fallback,), config.instances, f"{where}.fallback", findings)
        if instance.fallback == instance.name:
            findings.append(
                f"{where}.fallback: found {found(instance.name)}, which is this instance itself; "
                "name another, or leave it out"
            )
    _check_key_file(instance.api_key_file, f"{where}.api_key_file", findings)


def _check_urls(config: Config, findings: Findings) -> None:
    owners: dict[str, str] = {}
    ports = {listener.port for listener in config.listeners}
    for instance in config.instances.values():
        where = f'instances."{instance.name}".url'
        if instance.url in owners:
            findings.append(
                f"{where}: found {found(instance.url)}, which instance {owners[instance.url]} has "
                "already; give each its own llama-server"
            )
        owners.setdefault(instance.url, instance.name)
        host, port = host_and_port(instance.url) or ("", 0)
        if port in ports and (host == "localhost" or is_loopback(host)):
            findings.append(
                f"{where}: found {found(instance.url)}, which is a listener of this gateway; "
                "name the port of the llama-server"
            )


def _check_names(config: Config, findings: Findings) -> None:
    owners: dict[str, str] = {}
    for model in config.models.values():
        where = f'models."{model.name}"'
        _claim(model.name, where, where, owners, findings)
        for alias in model.aliases:
            _claim(alias, f"{where}.aliases", f"{where} (as an alias)", owners, findings)
    models = {name_key(name) for name in config.models}
    # A persona of a model's own name says what that model's Modelfile says.
    overlays: dict[str, str] = {}
    for persona in config.personas.values():
        where = f'personas."{persona.name}"'
        key = name_key(persona.name)
        overlaid = key in models and key == name_key(persona.from_)
        _claim(persona.name, where, where, overlays if overlaid else owners, findings)


def _claim(name: str, where: str, owner: str, owners: dict[str, str], findings: Findings) -> None:
    key = name_key(name)
    if key is None:
        findings.append(f"{where}: found {found(name)}, {_NAME_RULE}")
    elif key in owners:
        findings.append(
            f"{where}: found {found(name)}, which is {owners[key]} already; "
            "one name stands for one thing, whatever its case"
        )
    else:
        owners[key] = owner


def _check_models(config: Config, findings: Findings) -> None:
    for model in config.models.values():
        where = f'models."{model.name}".instances'
        _check_known(model.instances, config.instances, where, findings)
        for name in model.instances:
            instance = config.instances.get(name)
            if instance is None or instance.kind == "router" or instance.model == model.name:
                continue
            findings.append(
                f"{where}: found {found(name)}, which is dedicated to "
                f"{found(instance.model)}; name a router, or an instance of this model"
            )


def _check_personas(config: Config, findings: Findings) -> None:
    known = {name_key(name) for name in (*config.models, *config.personas)}
    known |= {name_key(alias) for model in config.models.values() for alias in model.aliases}
    models = {name_key(name) for name in config.models}
    parents: dict[str, str | None] = {}
    for persona in config.personas.values():
        where = f'personas."{persona.name}"'
        key = name_key(persona.from_)
        if persona.from_ and (key is None or key not in known):
            findings.append(
                f"{where}.from: found {found(persona.from_)}, which is no model and no persona; "
                f"known: {_listed([*config.models, *config.personas])}"
            )
        own = name_key(persona.name)
        if own is not None and key is not None and not (own == key and own in models):
            parents[own] = key
        _check_known(persona.instances or (), config.instances, f"{where}.instances", findings)
    _check_circles(parents, findings)


def _check_circles(follows: Mapping[str, str | None], findings: Findings) -> None:
    """Note each circle once, at the first of its members."""
    done: set[str] = set()
    for start in follows:
        way: list[str] = []
        at: str | None = start
        while at is not None and at in follows and at not in done and at not in way:
            way.append(at)
            at = follows[at]
        if at in way:
            circle = [*way[way.index(at) :], at]
            findings.append(
                f'personas."{at}".from: goes in a circle: {" → ".join(circle)}; end it somewhere'
            )
        done.update(way)


def _check_known(
    names: tuple[str, ...], known: Mapping[str, object], where: str, findings: Findings
) -> None:
    table = where.rsplit(".", 1)[-1]
    kind = "model" if table == "model" else "instance"
    findings.extend(
        f"{where}: found {found(name)}, which is no {kind} here; known: {_listed(list(known))}"
        for name in names
        if name not in known
    )


def _check_key_file(path: Path | None, where: str, findings: Findings) -> None:
    if path is None or not _check_file(path, where, findings):
        return
    try:
        read_api_keys(path)
    except ValueError as error:
        findings.append(f"{where}: {error}")


def _check_token(path: Path | None, findings: Findings) -> None:
    where = "hf_token_file"
    if path is None or not _check_file(path, where, findings):
        return
    token = path.read_bytes().strip()
    if not token:
        findings.append(f"{where}: {path} holds no token: write one, or leave the key out")
    elif _NOT_IN_TOKENS(token):
        findings.append(f"{where}: {path} holds more than a token: write that alone, on one line")


def _check_file(path: Path, where: str, findings: Findings) -> bool:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        findings.append(
            f"{where}: found {found(str(path))}, but: {reason}; create it, or let this user read it"
        )
        return False
    return True


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none"
