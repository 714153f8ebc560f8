"""`--check`: whether the gateway could serve what gateway.toml says, without serving it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .config import Config, ConfigError, read_config
from .front.service import tls_context
from .go_template import TemplateError, parse
from .models.capabilities import renders_itself
from .models.personas import PersonaStore
from .models.survey import FactsCache, Survey, look


def print_findings(path: Path) -> int:
    """Everything that is wrong, on standard output. 0: nothing; 1: something.

    Where nothing is, what may surprise: lines that begin with "note: ".
    """
    try:
        config = read_config(path)
        findings, notes = [*_tls_findings(config)], list[str]()
        if config.state_dir.exists() and not config.state_dir.is_dir():
            findings.append(
                f"state_dir: {config.state_dir} is no folder; name one, or remove what is there"
            )
        else:
            survey = _survey(config)
            findings += _name_findings(config, survey)
            notes += _notes(survey)
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
    for note in notes:
        print(f"note: {note}")
    return 0


def _tls_findings(config: Config) -> Iterator[str]:
    for number, listener in enumerate(config.listeners):
        try:
            tls_context(listener)
        except ValueError as error:
            yield f"listeners[{number}].tls_certificate, tls_key: {error}"


def _survey(config: Config) -> Survey:
    return look(config, PersonaStore(config.state_dir / "personas").load(), FactsCache())


def _name_findings(config: Config, survey: Survey) -> Iterator[str]:
    """What models' files and the names' templates show."""
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


def _notes(survey: Survey) -> Iterator[str]:
    for entry in survey.entries.values():
        persona = entry.persona
        facts = survey.facts.get(persona.model.path)
        if facts is not None and renders_itself(facts, persona.template):
            yield (
                f'the template of "{persona.name}" gives way to the one in the GGUF file, by which '
                "llama-server takes gpt-oss's answers apart"
            )
