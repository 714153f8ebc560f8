"""`modelctl fit`: what memory a model would take."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from ...core.gguf_header_files import Header
from ...core.llama_dry_run import DryRunError
from ...core.memory_model import MIB, MemoryModelError, RunConfig
from ...core.model_shape import ModelShape, shape_of
from ..exit_codes import Exit, ModelctlError
from ..fit_devices import Devices, choose_devices
from ..fit_engine import ask, server_of
from ..fit_formulas import needs
from ..fit_result import Engine, Fit, Need
from ..fit_text import lines
from ..fit_ways import ways_out
from ..host import Host
from ..lookup import place_of, read_with_bytes
from ..output import emit, say, tell


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    devices = choose_devices(arguments)
    server = server_of(host, arguments)
    place = place_of(host, arguments.what)
    model, headers = read_with_bytes(host, place, arguments)
    shape = shape_of(model.header)
    config = _config(shape, devices, arguments)
    formulas, formula_error = _formulas(shape, config, devices)
    engine = None
    if server is not None and devices.imagined:
        tell("the engine is not asked: it cannot imagine a GPU")
    elif server is not None:
        engine = _engine(server, headers, devices, config)
    fit = Fit(place, model.size_bytes, shape, config, formulas, formula_error, engine)
    if not fit.needs:
        raise ModelctlError("; ".join(fit.notes))
    if fit.fits is False:
        fit = replace(fit, ways_out=tuple(ways_out(shape, config, devices)))
    if arguments.json:
        emit(fit.to_data())
    else:
        say(lines(fit))
        for note in fit.notes:
            tell(note)
    return Exit.DOES_NOT_FIT if fit.fits is False else Exit.OK


def _config(shape: ModelShape, devices: Devices, arguments: Namespace) -> RunConfig:
    context = arguments.context or shape.context_trained
    if not context:
        raise ModelctlError(
            "the header does not say for which context the model was trained; give --context",
            Exit.USAGE,
        )
    return RunConfig(
        context_tokens=context,
        slots=arguments.parallel,
        cache_type_k=arguments.kv_cache,
        cache_type_v=arguments.kv_cache,
        devices=tuple(gpu.name for gpu in devices.gpus),
        gpu_layers=arguments.gpu_layers,
        device_free_bytes=tuple((gpu.free_mib or 0) * MIB for gpu in devices.gpus),
        cpu_moe_layers=arguments.cpu_moe_layers,
    )


def _formulas(
    shape: ModelShape, config: RunConfig, devices: Devices
) -> tuple[tuple[Need, ...] | None, str | None]:
    try:
        return needs(shape, config, devices), None
    except MemoryModelError as error:
        return None, str(error)


def _engine(
    server: Path, headers: tuple[Header, ...], devices: Devices, config: RunConfig
) -> Engine:
    try:
        answer = ask(server, headers, devices, config)
    except DryRunError as error:
        return Engine(server, None, str(error))
    told = (
        Need(device, row.weights_mib, row.kv_mib, row.compute_mib)
        for device, row in zip(devices.all, answer.rows, strict=True)
    )
    return Engine(server, tuple(told), None, answer.not_covered)
