"""The gateway's wishes: which keys its variables may have, and what is wrong with those they have.

The tables below are the one description of a listener's and a persona's keys. What a Go template
or a sampling parameter must look like, `kloros-llm-gateway --check` tells before any restart.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from .findings import Finding, error
from .wishes import SETTING_KEYS, Key, key_findings, repeated, with_defaults

_PATH: Final = re.compile(r"(/[A-Za-z0-9._+-]+)+\Z")
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME: Final = re.compile(
    rf"((?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]*)/(?=.*/))?((?P<space>[A-Za-z0-9_][A-Za-z0-9_-]*)/)?"
    rf"(?P<model>{_PART})(:(?P<tag>{_PART}))?\Z"
)
_VERSION: Final = re.compile(r"([0-9]+(\.[0-9]+)*[0-9A-Za-z.+-]*)?\Z")
_ROLES: Final = ("system", "user", "assistant", "tool")
# To compare, not to bind.
_EVERY_ADDRESS: Final = {
    "0.0.0.0": "every IPv4 address",  # noqa: S104
    "::": "every address, IPv4's too",
}

# Bytes, a number of requests, or seconds; with the least of each.
LIMITS: Final[Mapping[str, int]] = {
    "body_bytes": 1,
    "header_bytes": 1,
    "header_s": 0,
    "body_s": 0,
    "queue": 0,
    "wait_s": 0,
    "connect_s": 0,
    "stall_s": 0,
    "drain_s": 0,
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_filled_text(value: Any) -> bool:
    return _is_text(value) and bool(value)


def _is_list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Sequence) and not isinstance(value, str) and all(map(test, value))
    )


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _is_address(value: Any) -> bool:
    try:
        # A number would be one, and an address with a zone is none that can be compared.
        return isinstance(value, str) and "%" not in value and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def is_loopback(address: str) -> bool:
    """Whether only this host reaches it."""
    return ipaddress.ip_address(address).is_loopback


def plain_address(address: str) -> str:
    """The one spelling of an IP address that has several."""
    return str(ipaddress.ip_address(address))


def clash(one: str, other: str) -> bool:
    """Whether two addresses cannot both be listened on at one port.

    `::` is for IPv4 too, as with Go's listeners, and so with Ollama's.
    """
    if one == other or "::" in (one, other) or "localhost" in (one, other):
        return True
    return "0.0.0.0" in (one, other) and ":" not in one + other  # noqa: S104


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and _PATH.match(value) is not None


def _is_secret(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"[!-\"$-~][!-~]{15,}\Z", value) is not None


def _is_origin(value: Any) -> bool:
    return _is_filled_text(value) and value.isprintable() and value.count("*") <= 1


def _is_tls(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"certificate", "key"}
        and all(map(_is_path, value.values()))
    )


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"role", "content"}
        and value["role"] in _ROLES
        and _is_text(value["content"])
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_parameters(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_filled_text(name) and (_is_scalar(item) or _is_list_of(_is_scalar)(item))
        for name, item in value.items()
    )


LISTENER_KEYS: Final[Mapping[str, Key]] = {
    "port": Key("an integer from 1 to 65535", _is_port, required=True),
    "address": Key("an IP address of the host", _is_address, "127.0.0.1"),
    "instances": Key(
        "a list of the instances that it lists and serves; without it, all",
        _is_list_of(_is_filled_text),
    ),
    "api_key": Key(
        "a secret of at least 16 printable ASCII characters, or a list of them, best from a vault",
        lambda v: _is_secret(v) or (bool(v) and _is_list_of(_is_secret)(v)),
    ),
    "tls": Key("{certificate: /path/on/the/host.pem, key: /path/on/the/host.key}", _is_tls),
    "origins": Key(
        "a list of further origins of web pages, such as https://chat.example, one * in each",
        _is_list_of(_is_origin),
        [],
    ),
}

PERSONA_KEYS: Final[Mapping[str, Key]] = {
    "from": Key("the name or alias of a model or of another persona", _is_text, required=True),
    "system": Key("a text", _is_text),
    "template": Key("a Go template, as in a Modelfile", _is_text),
    "parameters": Key("a mapping of a Modelfile's parameters to values", _is_parameters, {}),
    "messages": Key(
        f"a list of {{role: …, content: …}}, a role out of: {', '.join(_ROLES)}",
        _is_list_of(_is_message),
        [],
    ),
    "license": Key("a text, or a list of them", lambda v: _is_text(v) or _is_list_of(_is_text)(v)),
    "adapters": Key(
        "a list of entries of gguf_models, or of absolute paths on the host",
        _is_list_of(_is_filled_text),
        [],
    ),
    "instances": Key(
        "a list of instances; without it, those of its model", _is_list_of(_is_filled_text)
    ),
}

GATEWAY_KEYS: Final[Mapping[str, Key]] = {
    "listeners": Key("a list of listeners, {port: …}", _is_list_of(lambda _: True)),
    "personas": Key("a mapping of names to {from: …}", lambda v: isinstance(v, Mapping)),
    "metrics_port": Key("a port, or 0 for no metrics", lambda v: v == 0 or _is_port(v)),
    "limits": Key(f"a mapping, of: {', '.join(LIMITS)}", lambda v: isinstance(v, Mapping)),
    "ollama_version": Key(
        "a version such as 0.33.0, or nothing",
        lambda v: isinstance(v, str) and _VERSION.match(v) is not None,
    ),
    "think_inline": Key("true or false", lambda v: isinstance(v, bool)),
    "log_prompts": Key("true or false", lambda v: isinstance(v, bool)),
    "manages_models": Key("true or false", lambda v: isinstance(v, bool)),
    "dir": SETTING_KEYS["gguf_models_dir"],
    "wheels_dir": Key("a folder on the controller, or nothing", _is_text),
    "wheels_there": Key("true or false", lambda v: isinstance(v, bool)),
}


def ollama_name(text: Any) -> str | None:
    """A model's name as Ollama shows it, with its tag; None for what is none.

    Two names that are equal without regard to case are one.
    """
    found = _NAME.match(text) if isinstance(text, str) else None
    if found is None:
        return None
    name = f"{found['model']}:{found['tag'] or 'latest'}"
    host, space = found["host"] or "", found["space"] or ""
    if host.lower() not in ("", "registry.ollama.ai"):
        return f"{host}/{space}/{name}"
    return name if space.lower() in ("", "library") else f"{space}/{name}"


def check_gateway(
    wish: Mapping[str, Any], models: Any, instances: Any
) -> tuple[dict[str, Any], list[Finding]]:
    """Check the role's variables, without their prefix, against the other roles' raw wishes.

    Returns them with defaults filled in, and what is wrong; a listener or persona with findings
    of its own is left out.
    """
    found = key_findings("ollama_gateway", wish, GATEWAY_KEYS, separator="_")
    sound = {
        name: wish[name]
        for name, key in GATEWAY_KEYS.items()
        if name in wish and key.test(wish[name])
    }
    known = list(instances) if isinstance(instances, Mapping) else []
    listeners, listener_findings = _check_listeners(sound.get("listeners", []), known)
    personas, persona_findings = _check_personas(
        sound.get("personas", {}), models if isinstance(models, Mapping) else {}, known
    )
    found += listener_findings
    # Where nobody listens, the names of the models are nobody's.
    if listeners:
        found += persona_findings
    found += _limit_findings(sound.get("limits", {}))
    return {**sound, "listeners": listeners, "personas": personas}, found


def _limit_findings(limits: Mapping[str, Any]) -> list[Finding]:
    def key(name: str, least: int) -> Key:
        if name.endswith("_s"):
            return Key(
                "seconds, more than 0",
                lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e6,
            )
        return Key(
            f"a whole number from {least}",
            lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= 1 << 34,
        )

    keys = {name: key(name, least) for name, least in LIMITS.items()}
    return key_findings("ollama_gateway_limits", limits, keys)


def _check_listeners(
    raw: Sequence[Any], instances: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Finding]]:
    listeners: list[dict[str, Any]] = []
    found: list[Finding] = []
    for number, wish in enumerate(raw):
        path = f"ollama_gateway_listeners[{number}]"
        if not isinstance(wish, Mapping):
            form = "a mapping with a port"
            found.append(error(path, f"{wish!r:.60}", form, "write {port: 11434}"))
            continue
        own = key_findings(path, wish, LISTENER_KEYS)
        listener = with_defaults(wish, LISTENER_KEYS)
        if not own:
            if not is_loopback(listener["address"]) and not listener["api_key"]:
                own.append(_open_to_all(f"{path}.api_key", listener["address"]))
            own += _unknown(f"{path}.instances", listener["instances"] or (), instances)
            listener["address"] = plain_address(listener["address"])
            own += [
                _taken(f"{path}.port", listener, other)
                for other in listeners
                if other["port"] == listener["port"]
                and clash(other["address"], listener["address"])
            ]
        found += own
        if not own:
            listeners.append(listener)
    return listeners, found


def _open_to_all(path: str, address: str) -> Finding:
    return error(
        path,
        f"{address} is reached from other hosts, and there is no key",
        LISTENER_KEYS["api_key"].accepts,
        "set one, or listen on 127.0.0.1",
    )


def _taken(path: str, listener: Mapping[str, Any], other: Mapping[str, Any]) -> Finding:
    meant = "".join(
        f", and {address} is {meaning}"
        for address, meaning in _EVERY_ADDRESS.items()
        if address in (listener["address"], other["address"])
    )
    return error(
        path,
        f"another listener has port {listener['port']} of {other['address']}{meant}",
        "a port of its own, or an address that does not hold the other's",
        "give one of the two another port",
    )


def _unknown(path: str, names: Iterable[Any], known: Sequence[str]) -> list[Finding]:
    found = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            found.append(
                error(
                    path,
                    f"there is no instance {name!r}",
                    f"instances of llama_instances: {', '.join(known) or '(there is none)'}",
                    f"write {near[0]!r} if that was meant" if near else "take it out",
                )
            )
    return found


def _key(name: Any) -> str:
    """The same for all ways to write one name."""
    return (ollama_name(name) or str(name)).lower()


def _check_personas(
    raw: Mapping[Any, Any], models: Mapping[Any, Any], instances: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    places = _names_of_models(models)
    found = [_no_name(place, name) for name, place in places if ollama_name(name) is None]
    # What is written twice in the same way, check_models tells.
    found += repeated(
        ((_key(name), place) for name, place in dict(reversed(places)).items()),
        "a name",
        "drop one of the two: to Ollama's clients, case makes no difference, and no tag is :latest",
    )
    models_keys = {_key(name) for name in models}
    names = {_key(name) for name, _ in places}
    known = names | {_key(name) for name in raw}
    personas: dict[str, dict[str, Any]] = {}
    for name, wish in raw.items():
        path = f"ollama_gateway_personas.{name}"
        if ollama_name(name) is None:
            found.append(_no_name(path, name))
            continue
        if not isinstance(wish, Mapping):
            found.append(error(path, f"{wish!r:.60}", "a mapping with from", "write {from: …}"))
            continue
        own = key_findings(path, wish, PERSONA_KEYS)
        persona = with_defaults(wish, PERSONA_KEYS)
        if not own:
            # Of its model's own name it says what that model's Modelfile says.
            if _key(name) in names and not _key(name) == _key(persona["from"]) in models_keys:
                own.append(_name_taken(path))
            if _key(persona["from"]) not in known:
                own.append(_no_base(f"{path}.from", persona["from"], [*models, *raw]))
            own += _unknown(f"{path}.instances", persona["instances"] or (), instances)
            own += [
                _no_adapter(f"{path}.adapters", adapter, models)
                for adapter in persona["adapters"]
                if adapter not in models and not _is_path(adapter)
            ]
        found += own
        if not own:
            personas[name] = persona
    found += repeated(
        ((_key(name), f"ollama_gateway_personas.{name}") for name in raw),
        "a name",
        "drop one of the two",
    )
    found += _circle_findings(
        {
            _key(name): _key(persona["from"])
            for name, persona in personas.items()
            if _key(name) != _key(persona["from"]) or _key(name) not in models_keys
        }
    )
    return personas, found


def _names_of_models(models: Mapping[Any, Any]) -> list[tuple[Any, str]]:
    """Every (name, place) that the models and their aliases have."""
    names = [(name, f"gguf_models.{name}") for name in models]
    for name, wish in models.items():
        aliases = wish.get("aliases") if isinstance(wish, Mapping) else None
        if _is_list_of(_is_text)(aliases):
            names += [(alias, f"gguf_models.{name}.aliases") for alias in aliases or ()]
    return names


def _no_name(path: str, name: Any) -> Finding:
    return error(
        path,
        f"{name!r:.60} is no name that Ollama's clients could use",
        "letters, digits, '.', '_' and '-', with namespace/ before and :tag behind",
        "rename it, or have no listener (ollama_gateway_listeners: [])",
    )


def _name_taken(path: str) -> Finding:
    return error(
        path,
        "a model or an alias of gguf_models has this name",
        "a name of its own, or, to say what a model's own name means, from: that same name",
        "rename the persona",
    )


def _no_base(path: str, base: Any, known: Sequence[Any]) -> Finding:
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(base), names, n=1)
    return error(
        path,
        f"there is no model and no persona {base!r:.60}",
        f"one of: {', '.join(names) or '(there is none)'}",
        f"write {near[0]!r} if that was meant" if near else "add it to gguf_models",
    )


def _no_adapter(path: str, adapter: str, models: Mapping[Any, Any]) -> Finding:
    near = difflib.get_close_matches(adapter, [str(name) for name in models], n=1)
    return error(
        path,
        f"there is no model {adapter!r:.60}",
        PERSONA_KEYS["adapters"].accepts,
        f"write {near[0]!r} if that was meant" if near else "add it to gguf_models",
    )


def _circle_findings(follows: Mapping[str, str]) -> list[Finding]:
    """A finding for each circle, at the first of its members; `follows` is who follows whom."""
    found = []
    done: set[str] = set()
    for start in follows:
        way: list[str] = []
        at: str | None = start
        while at is not None and at in follows and at not in done and at not in way:
            way.append(at)
            at = follows[at]
        if at is not None and at in way:
            circle = " → ".join([*way[way.index(at) :], at])
            key = f"ollama_gateway_personas.{at}.from"
            needed = "a model at the end"
            found.append(error(key, f"it goes in a circle: {circle}", needed, "end it"))
        done.update(way)
    return found


def fallback_findings(instances: Any) -> list[Finding]:
    """What is wrong with the `fallback` of the instances, raw as in the inventory.

    Two may stand in for each other: the gateway asks nobody twice.
    """
    if not isinstance(instances, Mapping):
        return []
    wishes = {name: wish for name, wish in instances.items() if isinstance(wish, Mapping)}
    follows = {
        str(name): wish["fallback"]
        for name, wish in wishes.items()
        if isinstance(wish.get("fallback"), str)
    }
    known = [str(name) for name in instances]
    found = [
        finding
        for name, fallback in follows.items()
        for finding in _unknown(f"llama_instances.{name}.fallback", [fallback], known)
    ]
    return found + [
        error(
            f"llama_instances.{name}.fallback",
            "the instance itself",
            "another instance, which serves while this one is down",
            "name another, or leave it out",
        )
        for name, fallback in follows.items()
        if name == fallback
    ]
