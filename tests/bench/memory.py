"""Measures the memory model against llama.cpp: a zoo of models x contexts x slots x KV types.

    python -m tests.bench.memory --server PATH --fit-params PATH [--stand-in-cuda FOLDER]
        [--all] [--record FILE] [MODEL …]

The engine is asked by dry runs on headers without weights: llama-server's own first line
`fit_memory_breakdown`, llama-fit-params, and, with --stand-in-cuda, a llama-server in that folder
whose CUDA devices are stand-ins: they place, copy and allocate as CUDA's do, except for CUDA's
padding of quantised rows and its room for converted caches. Prints Markdown. --record keeps the
answers that the unit tests compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ansible_collections.kloros.llm.plugins.module_utils.memory_model import (
    MIB,
    MemoryModelError,
    RunConfig,
    memory,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape, shape_of

from testbed import model_zoo

AT_ONCE = 2
TIMEOUT_S = 120
COMPUTE_LIMIT = 0.10
UNDERSHOOT_LIMIT = 0.02
BERT = {"nomic-embed-1.5"}

Row = tuple[int, int, int]


@dataclass(frozen=True)
class Run:
    """One question to the engine. `source`: who is asked."""

    model: str
    source: str
    config: RunConfig
    core: bool = False


@dataclass
class Answer:
    """What the engine and what we say, in MiB: device -> (weights, KV, compute)."""

    run: Run
    engine: dict[str, Row] = field(default_factory=dict)
    ours: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    problem: str = ""

    @property
    def weights_equal(self) -> bool:
        return all(int(self.ours[device][0]) == row[0] for device, row in self.engine.items())

    @property
    def kv_equal(self) -> bool:
        return all(int(self.ours[device][1]) == row[1] for device, row in self.engine.items())

    @property
    def compute_deviation(self) -> float:
        """The worst, beyond the engine's rounding to whole MiB, as a part of the truth."""
        worst = 0.0
        for device, row in self.engine.items():
            ours = self.ours[device][2]
            beyond = max(row[2] - ours, ours - (row[2] + 1), 0.0)
            worst = max(worst, beyond / max(row[2], 1))
        return worst

    @property
    def undershoot(self) -> float:
        """How far a device's total is below the truth, as a part of it."""
        worst = 0.0
        for device, row in self.engine.items():
            total = sum(row)
            worst = max(worst, (total - sum(self.ours[device])) / max(total, 1))
        return worst

    @property
    def met(self) -> bool:
        return (
            not self.problem
            and self.weights_equal
            and self.kv_equal
            and self.compute_deviation <= COMPUTE_LIMIT
            and self.undershoot <= UNDERSHOOT_LIMIT
        )


def _cpu_runs(model: str, source: str) -> Iterator[Run]:
    tool = source == "fit-params"
    base: dict[str, Any] = {
        "embeddings": model in BERT and not tool,
        "cpu_repack": False,
        "all_outputs": tool,
    }
    for context, slots in ((2048, 1), (8192, 2), (16384, 4)):
        for cache in ("f16", "q8_0", "q4_0"):
            yield Run(
                model,
                source,
                RunConfig(
                    context_tokens=context,
                    slots=slots,
                    cache_type_k=cache,
                    cache_type_v=cache,
                    **base,
                ),
                core=(context, cache) in {(2048, "f16"), (8192, "q8_0"), (16384, "q4_0")},
            )
    if tool:
        return
    yield Run(model, source, RunConfig(context_tokens=8192, ubatch=128, **base))
    yield Run(
        model, source, RunConfig(context_tokens=8192, slots=2, flash_attention="off", **base), True
    )
    yield Run(model, source, RunConfig(context_tokens=300, **base))
    yield Run(model, source, RunConfig(context_tokens=4096, slots=4, unified=True, **base), True)
    yield Run(
        model,
        source,
        RunConfig(
            context_tokens=4096,
            slots=3,
            cache_type_k="q8_0",
            cache_type_v="q8_0",
            ubatch=1024,
            **base,
        ),
    )


def _cuda_runs(model: str, shape: ModelShape) -> Iterator[Run]:
    layers = shape.layer_count
    base: dict[str, Any] = {"embeddings": model in BERT, "cuda_sizes": False}
    one, two = ("CUDA0",), ("CUDA0", "CUDA1")
    kinds: list[tuple[dict[str, Any], bool]] = [
        ({"context_tokens": 4096, "devices": one}, True),
        (
            {
                "context_tokens": 8192,
                "slots": 2,
                "devices": one,
                "cache_type_k": "q8_0",
                "cache_type_v": "q8_0",
            },
            True,
        ),
        ({"context_tokens": 4096, "slots": 2, "devices": one, "flash_attention": "off"}, False),
        ({"context_tokens": 8192, "devices": one, "gpu_layers": layers // 2}, True),
        ({"context_tokens": 8192, "devices": one, "gpu_layers": layers}, False),
        ({"context_tokens": 8192, "devices": one, "gpu_layers": 1}, False),
        ({"context_tokens": 8192, "devices": one, "gpu_layers": 0}, False),
        ({"context_tokens": 8192, "devices": two}, True),
        (
            {"context_tokens": 8192, "slots": 2, "devices": two, "tensor_split": (3.0, 1.0)},
            False,
        ),
        ({"context_tokens": 4096, "devices": two, "gpu_layers": layers - 2}, False),
        ({"context_tokens": 4096, "devices": one, "kv_offload": False}, False),
    ]
    if shape.has_experts:
        kinds += [
            ({"context_tokens": 4096, "devices": one, "cpu_moe_layers": layers // 3}, True),
            ({"context_tokens": 4096, "devices": one, "cpu_moe_layers": layers}, False),
            ({"context_tokens": 4096, "devices": two, "cpu_moe_layers": 4}, False),
        ]
    for kind, core in kinds:
        yield Run(model, "stand-in CUDA", RunConfig(**base, **kind), core)


def _arguments(run: Run, model: Path) -> list[str]:
    config = run.config
    arguments = ["-m", str(model), "-c", str(config.context_tokens * config.slots)]
    if config.unified:
        arguments += ["--kv-unified"]
    arguments += ["-np", str(config.slots), "-ctk", config.cache_type_k, "-ctv"]
    arguments += [config.cache_type_v, "-ub", str(config.ubatch), "-fa", config.flash_attention]
    if not config.cpu_repack:
        arguments.append("--no-repack")
    if config.embeddings:
        arguments.append("--embeddings")
    if config.devices:
        layers = 999 if config.gpu_layers is None else config.gpu_layers
        arguments += ["--device", ",".join(config.devices), "-ngl", str(layers)]
    if config.cpu_moe_layers:
        arguments += ["--n-cpu-moe", str(config.cpu_moe_layers)]
    if config.tensor_split:
        arguments += ["-ts", ",".join(f"{part:g}" for part in config.tensor_split)]
    if not config.kv_offload:
        arguments.append("--no-kv-offload")
    return arguments


class Engine:
    """Asks the programs; each answer takes a fraction of a second."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.server: Path = options.server
        self.tool: Path = options.fit_params
        self.stand_in: Path | None = options.stand_in_cuda
        self.folder = folder
        gpus = [
            {
                "index": index,
                "uuid": f"GPU-{index}",
                "name": "NVIDIA stand-in",
                "compute_capability": "8.6",
                "memory_total_mib": 98304,
                "base_used_mib": 0,
                "bus_id": f"00000000:0{index + 1}:00.0",
            }
            for index in range(2)
        ]
        self.state = folder / "gpus.json"
        self.state.write_text(json.dumps({"fault": None, "gpus": gpus}))

    def ask(self, run: Run) -> dict[str, Row]:
        """Device -> (weights, KV, compute) in MiB. Raises RuntimeError if the engine refuses."""
        arguments = _arguments(run, self.folder / f"{run.model}.gguf")
        if run.source == "fit-params":
            return self._ask_tool(arguments)
        program = self.server
        if run.source == "stand-in CUDA":
            assert self.stand_in is not None
            program = self.stand_in / "llama-server"
        return self._ask_server(program, arguments, f"{id(run):x}")

    def _ask_tool(self, arguments: list[str]) -> dict[str, Row]:
        done = subprocess.run(
            [self.tool, *arguments, "--fit-print", "on"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(_reason(done.stderr))
        rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
        return {row[0]: (int(row[1]), int(row[2]), int(row[3])) for row in rows}

    def _ask_server(self, program: Path, arguments: list[str], name: str) -> dict[str, Row]:
        socket = self.folder / f"{name}.sock"
        environment = {**os.environ, "STAND_IN_NVIDIA_SMI_STATE": str(self.state)}
        said: list[str] = []
        with subprocess.Popen(
            [program, *arguments, "--host", str(socket), "--log-jsonl"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout is not None
            timer = threading.Timer(TIMEOUT_S, process.kill)
            timer.start()
            try:
                for line in process.stdout:
                    said.append(line)
                    if '"fit_memory_breakdown"' not in line:
                        continue
                    rows = json.loads(line)["data"]["rows"]
                    return {
                        row["name"]: (row["model"], row["context"], row["compute"]) for row in rows
                    }
            finally:
                timer.cancel()
                process.kill()
                socket.unlink(missing_ok=True)
        raise RuntimeError(_reason("".join(said)))


def _reason(said: str) -> str:
    """The first line that says what went wrong."""
    for line in said.splitlines():
        if any(word in line for word in ("fatal error", "GGML_ASSERT", "error:", "failed")):
            return line.strip().rpartition("/")[2][:120]
    return said.strip().splitlines()[-1][:120] if said.strip() else "no answer"


def _answer(engine: Engine, run: Run, shape: ModelShape) -> Answer:
    answer = Answer(run)
    try:
        answer.engine = engine.ask(run)
    except RuntimeError as problem:
        answer.problem = f"the engine ends: {problem}"
        return answer
    try:
        answer.ours = {
            row.device: (
                row.weights_bytes / MIB,
                row.kv_bytes / MIB,
                row.compute_bytes / MIB,
            )
            for row in memory(shape, run.config)
        }
    except MemoryModelError as problem:
        answer.problem = f"not computed: {problem}"
    return answer


def _words(config: RunConfig) -> str:
    """A configuration in few words."""
    words = [f"{config.slots} x {config.context_tokens}"]
    if config.unified:
        words.append("unified")
    words.append(config.cache_type_k)
    if config.ubatch != 512:
        words.append(f"ub {config.ubatch}")
    if config.flash_attention != "auto":
        words.append(f"fa {config.flash_attention}")
    if config.devices:
        words.append(f"{len(config.devices)} GPU")
        if config.gpu_layers is not None:
            words.append(f"ngl {config.gpu_layers}")
    if config.tensor_split:
        words.append("ts " + ",".join(f"{part:g}" for part in config.tensor_split))
    if config.cpu_moe_layers:
        words.append(f"ncmoe {config.cpu_moe_layers}")
    if not config.kv_offload:
        words.append("no kv offload")
    return ", ".join(words)


def _summary(answers: Sequence[Answer]) -> Iterator[str]:
    yield "| model | asked | weights equal | KV equal | compute, worst | total below, worst |"
    yield "|---|---|---|---|---|---|"
    sources = list(dict.fromkeys(answer.run.source for answer in answers))
    models = [*dict.fromkeys(answer.run.model for answer in answers), "**all**"]
    for model in models:
        for source in sources:
            runs = [
                answer
                for answer in answers
                if model in (answer.run.model, "**all**") and answer.run.source == source
            ]
            told = [answer for answer in runs if not answer.problem]
            if not told:
                continue
            yield (
                f"| {model} | {source} "
                f"| {sum(a.weights_equal for a in told)} of {len(told)} "
                f"| {sum(a.kv_equal for a in told)} of {len(told)} "
                f"| {max(a.compute_deviation for a in told):.1%} "
                f"| {max(0.0, *(a.undershoot for a in told)):.2%} |"
            )


def _details(answers: Sequence[Answer]) -> Iterator[str]:
    yield "| model | asked | slots x context, … | device | engine: weights + KV + compute | ours |"
    yield "|---|---|---|---|---|---|"
    for answer in answers:
        if answer.problem:
            continue
        for device, row in answer.engine.items():
            ours = answer.ours[device]
            yield (
                f"| {answer.run.model} | {answer.run.source} | {_words(answer.run.config)} "
                f"| {device} | {row[0]} + {row[1]} + {row[2]} = {sum(row)} "
                f"| {ours[0]:.1f} + {ours[1]:.1f} + {ours[2]:.1f} = {sum(ours):.1f} |"
            )


def _record(path: Path, answers: Sequence[Answer], version: str) -> None:
    plain = {entry.name: entry.default for entry in fields(RunConfig)}
    lines = []
    for answer in answers:
        if answer.problem or not answer.run.core or answer.run.source == "fit-params":
            continue
        config = {
            key: value
            for key, value in asdict(answer.run.config).items()
            if key == "context_tokens" or value != plain[key]
        }
        lines.append(json.dumps([answer.run.model, config, answer.engine], separators=(",", ":")))
    body = ",\n".join(lines)
    path.write_text(f'{{"version": {json.dumps(version)}, "answers": [\n{body}\n]}}\n')


def _version(server: Path) -> str:
    done = subprocess.run(
        [server, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    said = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in said if "version" in line), "unknown")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", type=Path, required=True, help="llama-server, a CPU build")
    parser.add_argument("--fit-params", type=Path, required=True, help="llama-fit-params")
    parser.add_argument(
        "--stand-in-cuda", type=Path, help="folder of a llama-server with the stand-in CUDA backend"
    )
    parser.add_argument("--all", action="store_true", help="print a row a run and device")
    parser.add_argument("--record", type=Path, help="write what the unit tests compare with")
    parser.add_argument("model", nargs="*", default=list(model_zoo.NAMES))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="kloros-zoo-") as name:
        folder = Path(name)
        engine = Engine(options, folder)
        shapes: dict[str, ModelShape] = {}
        runs: list[Run] = []
        for model in options.model:
            model_zoo.write(model, folder / f"{model}.gguf")
            shapes[model] = shape_of(model_zoo.header(model))
            runs += _cpu_runs(model, "server")
            runs += _cpu_runs(model, "fit-params")
            if options.stand_in_cuda:
                runs += _cuda_runs(model, shapes[model])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda run: _answer(engine, run, shapes[run.model]), runs))
    version = _version(options.server)
    if options.record:
        _record(options.record, answers, version)
    told = [answer for answer in answers if not answer.problem]
    print(f"Engine: {version}. {len(answers)} questions, {len(told)} answers.\n")
    print("\n".join(_summary(answers)))
    missed = [answer for answer in answers if not answer.met]
    print(f"\nNot met: {len(missed)}\n")
    for answer in missed:
        run = answer.run
        print(f"- {run.model}, {run.source}, {_words(run.config)}: {answer.problem or 'see below'}")
    shown = answers if options.all else [a for a in answers if a.run.core or not a.met]
    print("\n" + "\n".join(_details(shown)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
