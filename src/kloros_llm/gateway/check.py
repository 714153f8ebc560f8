"""`--check`: whether the gateway could serve what gateway.toml says, without serving it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .config import Config, ConfigError, read_config
from .go_template import TemplateError, parse
from .personas import PersonaStore
from .service import tls_context
from .survey import FactsCache, look


def print_findings(path: Path) -> int:
    """Everything that is wrong, on standard output. 0: nothing; 1: something."""
    try:
        config = read_config(path)
        findings = [*_tls_findings(config), *_name_findings(config)]
        if findings:
            raise ConfigError(path, findings)
    except ConfigError as error:
        print(error)
        return 1
    counts = ", ".join(
        f"{len(found)} {kind}{'' if len(found) == 1 else 's'}"
        for found, kind in (
            (config.listeners, "listener"),
            (config.instances, "instance"),
            (config.models, "model"),
            (config.personas, "persona"),
        )
    )
    print(f"{path}: nothing is wrong ({counts})")
    return 0


def _tls_findings(config: Config) -> Iterator[str]:
    for number, listener in enumerate(config.listeners):
        try:
            tls_context(listener)
        except ValueError as error:
            yield f"listeners[{number}].tls_certificate, tls_key: {error}"


def _name_findings(config: Config) -> Iterator[str]:
    """What models' files and the names' templates show."""
    if config.state_dir.exists() and not config.state_dir.is_dir():
        yield f"state_dir: {config.state_dir} is no folder; name one, or remove what is there"
        return
    created = PersonaStore(config.state_dir / "personas").load()
    survey = look(config, created, FactsCache())
    for model in config.models.values():
        facts = survey.facts.get(model.path)
        if facts is not None and facts.problem:
            yield (
                f'models."{model.name}": {facts.problem}; pull the model (modelctl pull), or '
                "correct path and mmproj"
            )
    for settings in config.personas.values():
        for adapter in settings.adapters:
            if not adapter.is_file():
                yield (
                    f'personas."{settings.name}".adapters: there is no file {adapter}; correct '
                    "the path, or leave it out"
                )
    for entry in survey.entries.values():
        persona = entry.persona
        if persona.template is None:
            continue
        try:
            parse(persona.template)
        except TemplateError as error:
            yield (
                f'the template of "{persona.name}" cannot be honoured: {error}; correct it, or '
                "leave it out, then the model's own is used"
            )
