"""On a machine with an NVIDIA GPU: build for it, load a model, prove where it lies, measure.

Nothing is stood in for. Without a GPU everything is skipped, and says why. Needs cmake, ninja, a
CUDA toolkit with cuBLAS and a C++ compiler, and of Python pytest alone. Settings, by environment:

    KLOROS_GPU_SOURCE   llama.cpp's source tree; else the one that the other tests use is fetched
    KLOROS_GPU_MODEL    a GGUF file; else a small one is fetched
    KLOROS_GPU_BUILD    a folder to build in, for further runs too; else a temporary one
    KLOROS_GPU_REPORT   a file that the measurements are written to, beside standard output
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import cuda_host, gpu_proof, release
from ansible_collections.kloros.llm.plugins.module_utils.cuda_build_plan import cuda_build_plan
from ansible_collections.kloros.llm.plugins.module_utils.llama_environment import (
    PlannedInstance,
    cuda_devices,
    instance_environment,
)
from ansible_collections.kloros.llm.plugins.module_utils.nvidia_smi import gpu_info

FACTS = gpu_info()
pytestmark = pytest.mark.skipif(
    FACTS["status"] != "ok", reason=f"no GPU to test on: {FACTS['detail']}"
)
PROJECT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180
Report = Callable[[str], None]


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """Takes lines of the report; they are printed, and written where that is wished for."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    yield say
    if target := os.environ.get("KLOROS_GPU_REPORT"):
        Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("KLOROS_GPU_SOURCE"):
        return Path(given)
    from testbed.fetch_inputs import fetch_all  # noqa: PLC0415 - only where there is a network

    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(fetch_all()["llama_cpp_source"]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


@pytest.fixture(scope="module")
def model() -> Path:
    if given := os.environ.get("KLOROS_GPU_MODEL"):
        return Path(given)
    from testbed.fetch_inputs import fetch_all  # noqa: PLC0415 - only where there is a network

    return fetch_all()["model"]


@pytest.fixture(scope="module")
def programs(source: Path, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a llama-server that was built as the role builds it, for these GPUs."""
    plan = cuda_build_plan(FACTS["gpus"], FACTS["driver"])
    report(f"date         {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}")
    for gpu in FACTS["gpus"]:
        report(
            f"GPU {gpu['index']}        {gpu['name']}, capability {gpu['compute_capability']}, "
            f"{gpu['memory_total_mib']} MiB"
        )
    report(f"driver       {FACTS['driver']}")
    report(f"plan         CUDA {plan['toolkit']} preferred of {', '.join(plan['accepted'])}")
    toolkits = [item for item in cuda_host.toolkits() if item["version"] in plan["accepted"]]
    assert toolkits, f"no toolkit that serves is here: {cuda_host.toolkits()}"
    toolkit = min(toolkits, key=lambda item: plan["accepted"].index(item["version"]))
    compilers = cuda_host.compilers()
    limit = toolkit["gcc_limit"] or max(map(int, compilers))
    major = max(int(name) for name in compilers if int(name) <= limit)
    cuda = {
        "version": toolkit["version"],
        "root": toolkit["root"],
        "nvcc": toolkit["nvcc"],
        "host_compiler": {"version": str(major), "path": compilers[str(major)]},
        "architectures": plan["architectures"],
    }
    wish = {"version": "v0.5.0-dev", "backend": "cuda", "cuda": cuda, "portable": False}
    flags = release.cmake_flags(wish | {"cmake_flags": {}})
    chosen = os.environ.get("KLOROS_GPU_BUILD")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("build")
    report(f"toolkit      CUDA {toolkit['version']} at {toolkit['root']}, g++ {major}")
    report(f"built for    {', '.join(plan['architectures'])}")
    started = time.monotonic()
    subprocess.run(
        ["cmake", "-G", "Ninja", "-S", source, "-B", folder, *release.definitions(flags, cuda)],
        check=True,
    )
    subprocess.run(["cmake", "--build", folder, "--target", *release.TARGETS], check=True)
    report(f"build        {time.monotonic() - started:.0f} s on {os.cpu_count()} CPUs")
    return folder / "bin"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(model: Path, uuids: list[str], **changes: Any) -> dict[str, str]:
    """An instance's variables, as the plan renders them."""
    instance: PlannedInstance = {
        "name": "gpu-test",
        "model_path": str(model),
        "aliases": ["gpu-test"],
        "host": "127.0.0.1",
        "port": free_port(),
        "gpus": uuids,
        "context_tokens": 4096,
        "slots": 1,
        "kv_cache": "f16",
        "gpu_layers": "all",
        "cpu_moe_layers": 0,
        "split_mode": None,
        "main_gpu": None,
        "tensor_split": [],
        "mmproj_path": None,
        "draft_model_path": None,
        "lora": [],
        "embeddings": False,
        "rerank": False,
        "metrics": True,
        "api_key": False,
        "threads": None,
        "extra": {},
    }
    return instance_environment({**instance, **changes})  # type: ignore[typeddict-item]


class Server:
    """A llama-server of this test's own."""

    def __init__(self, process: subprocess.Popen[bytes], port: str, log: Path) -> None:
        self.process, self.log = process, log
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def ready(self) -> bool:
        """Whether it became healthy; False where it ended before."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask("/health")
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return True
        return False

    def messages(self) -> list[str]:
        found = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(str(json.loads(line).get("msg", line)))
            except ValueError:
                found.append(line)
        return found


@contextmanager
def running(programs: Path, variables: Mapping[str, str], folder: Path) -> Iterator[Server]:
    log = folder / f"{variables['LLAMA_ARG_PORT']}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [programs / "llama-server"],
            env={**os.environ, **variables},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(process, variables["LLAMA_ARG_PORT"], log)
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.parametrize("gpu", FACTS["gpus"], ids=lambda gpu: f"GPU {gpu['index']}")
def test_model_is_proven_on_each_gpu(
    gpu: Any, programs: Path, model: Path, report: Report, tmp_path: Path
) -> None:
    with running(programs, environment(model, [gpu["uuid"]]), tmp_path) as server:
        assert server.ready(), "\n".join(server.messages()[-20:])
        offload = gpu_proof.read_offload(server.messages())
        assert gpu_proof.offload_problems(offload, ["CUDA0"], "all") == []
        shown = gpu_info()["gpus"]
        pid = server.process.pid
        assert gpu_proof.memory_problems(offload, ["CUDA0"], [gpu], shown, pid) == []
        body = {"prompt": "Once upon a time", "n_predict": 256, "ignore_eos": True}
        server.ask("/completion", body | {"n_predict": 16})
        timings = [server.ask("/completion", body)["timings"] for _ in range(3)]
        rates = sorted(timing["predicted_per_second"] for timing in timings)
    report(f"GPU {gpu['index']}        layers {offload['layers']}, MiB {offload['buffers_mib']}")
    report(f"             {model.name}: {rates[1]:.1f} tokens/s, median of 3 times 256")
    assert rates[1] > 0


def test_model_is_split_over_all_gpus(
    programs: Path, model: Path, report: Report, tmp_path: Path
) -> None:
    gpus = FACTS["gpus"]
    if len(gpus) < 2:
        pytest.skip("one GPU only: nothing to split over")
    with running(programs, environment(model, [gpu["uuid"] for gpu in gpus]), tmp_path) as server:
        assert server.ready(), "\n".join(server.messages()[-20:])
        offload = gpu_proof.read_offload(server.messages())
    assert gpu_proof.offload_problems(offload, cuda_devices(len(gpus)), "all") == []
    report(f"all GPUs     MiB {offload['buffers_mib']}")


def test_hidden_gpu_is_no_silent_fall_back(programs: Path, model: Path, tmp_path: Path) -> None:
    variables = environment(model, [FACTS["gpus"][0]["uuid"]]) | {"CUDA_VISIBLE_DEVICES": ""}
    with running(programs, variables, tmp_path) as server:
        assert not server.ready()
        assert server.process.wait(timeout=30) == 1
        assert any("invalid device: CUDA0" in line for line in server.messages())


def test_context_that_does_not_fit_is_no_silent_fall_back(
    programs: Path, model: Path, report: Report, tmp_path: Path
) -> None:
    gpu = FACTS["gpus"][0]
    if gpu["memory_free_mib"] is None:
        pytest.skip("this GPU has no memory of its own")
    # SmolLM2's cache takes 22.5 KiB a token: far more slots than memory for them.
    slots = 64
    tokens = int(gpu["memory_free_mib"] * 1024 * 4 / 22.5 / slots)
    variables = environment(model, [gpu["uuid"]], slots=slots, context_tokens=tokens)
    with running(programs, variables, tmp_path) as server:
        assert not server.ready()
        last = server.messages()[-12:]
    assert any("out of memory" in line for line in last), "\n".join(last)
    report(
        f"too much     refused: {next(line for line in last if 'out of memory' in line).strip()}"
    )


def test_code_for_another_gpu_does_not_run(programs: Path, report: Report, tmp_path: Path) -> None:
    """What an architecture too many or too few does, with the smallest program there is."""
    assert programs.exists()
    plan = cuda_build_plan(FACTS["gpus"], FACTS["driver"])
    (toolkit, *_) = [t for t in cuda_host.toolkits() if t["version"] in plan["accepted"]]
    own = {name.split("-")[0].rstrip("af") for name in plan["architectures"]}
    other = next(code for code in ("75", "80", "86", "90", "120") if code not in own)
    program = tmp_path / "other.cu"
    program.write_text(
        "#include <cstdio>\n__global__ void kernel() {}\nint main() { kernel<<<1, 1>>>();\n"
        "  cudaError_t e = cudaDeviceSynchronize(); if (!e) e = cudaGetLastError();\n"
        "  std::puts(cudaGetErrorString(e)); return e != cudaSuccess; }\n",
        encoding="utf-8",
    )
    code = f"arch=compute_{other},code=sm_{other}"
    binary = tmp_path / "other"
    subprocess.run([toolkit["nvcc"], "-gencode", code, "-o", binary, program], check=True)
    done = subprocess.run([binary], capture_output=True, text=True, check=False)
    report(f"sm_{other}       on this GPU: {done.stdout.strip()}")
    runs = any(own_code[:-1] == other[:-1] and own_code >= other for own_code in own)
    assert (done.returncode == 0) == runs
