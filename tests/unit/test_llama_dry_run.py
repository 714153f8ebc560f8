"""Asking llama-server: with a stand-in that repeats recorded answers, and with the real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import llama_dry_run
from ansible_collections.kloros.llm.plugins.module_utils.gguf_bytes import FileBytes
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header_files import (
    Header,
    fetch_headers,
    lay_out,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import read_header
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient
from ansible_collections.kloros.llm.plugins.module_utils.llama_dry_run import (
    DeviceRow,
    DryRunError,
    dry_run,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    SourceError,
    parse_source,
)

from testbed.stand_in_hub import StandInHub
from tests.llama_server import BINARY, needs_llama_server
from tests.llama_server import MODEL as REAL_MODEL
from tests.unit.llama_dry_run_lab import MODEL, Lab, is_alive, lab, tiny_gguf

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with lab() as made:
        monkeypatch.setattr(tempfile, "tempdir", str(made.tmp))
        yield made
        assert made.left_over() == []


@pytest.fixture(scope="module")
def engine() -> Iterator[Path]:
    """The real server, which as root runs as `nobody`: a build in a private folder is copied."""
    built = Path(BINARY).resolve()
    if all(folder.stat().st_mode & stat.S_IXOTH for folder in built.parents):
        yield built
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(built.parent, Path(folder, "bin"), symlinks=True)
        yield Path(folder, "bin", built.name)


def rows(answer: llama_dry_run.DryRun) -> list[tuple[str, int, int, int]]:
    return [(row.device, row.weights_mib, row.kv_mib, row.compute_mib) for row in answer.rows]


# what the server says


def test_a_server_on_the_cpu(here: Lab) -> None:
    answer = dry_run(here.server, here.environment("cpu.jsonl"))
    assert rows(answer) == [("Host", 92, 180, 17)]
    assert (answer.asked, answer.accepted) == ("llama-server", True)
    assert (answer.not_covered, answer.last_words, answer.draft_rows) == ((), (), ())


def test_two_gpus_with_what_they_have_and_what_is_free(here: Lab) -> None:
    answer = dry_run(here.server, here.environment("two-gpus.jsonl"))
    assert answer.rows == (
        DeviceRow("CUDA0", 33, 96, 32, total_mib=12288, free_mib=11900),
        DeviceRow("CUDA1", 58, 84, 37, total_mib=11264, free_mib=5000),
        DeviceRow("Host", 28, 0, 21),
    )


def test_the_placement_as_given_counts_not_what_fitting_makes_of_it(here: Lab) -> None:
    environment = here.environment("auto-small-gpu.jsonl", LLAMA_ARG_FIT="on")
    answer = dry_run(here.server, environment)
    assert rows(answer) == [("CUDA1", 92, 180, 16), ("Host", 28, 0, 6)]
    assert "the fitting of the layers" in " ".join(answer.not_covered)


@pytest.mark.parametrize(("fit", "kv_mib"), [("off", 180), ("on", 360)])
def test_without_a_context_only_fitting_enlarges_it(here: Lab, fit: str, kv_mib: int) -> None:
    environment = here.environment(
        "no-context.jsonl", LLAMA_ARG_FIT=fit, LLAMA_ARG_N_GPU_LAYERS="1"
    )
    assert dry_run(here.server, environment).rows[-1].kv_mib == kv_mib


def test_buffers_of_the_cpu_count_as_the_hosts_and_others_for_themselves(here: Lab) -> None:
    def row(kind: str, name: str, size: int) -> dict[str, Any]:
        return {"kind": kind, "name": name, "model": size, "context": 1, "compute": 2}

    line = {
        "type": "fit_memory_breakdown",
        "data": {
            "unit": "MiB",
            "rows": [
                row("host", "Host", 10),
                row("buffer_type", "CPU_REPACK", 20),
                row("buffer_type", "CUDA_Split", 40),
            ],
        },
    }
    end = {"type": "log", "level": "info", "msg": "fit: projected to use 1 MiB"}
    said = here.file("said", f"{json.dumps(line)}\n{json.dumps(end)}\n")
    assert rows(dry_run(here.server, here.environment(said))) == [
        ("CUDA_Split", 40, 1, 2),
        ("Host", 30, 2, 4),
    ]


def test_a_draft_model_has_rows_of_its_own(here: Lab) -> None:
    environment = here.environment("draft.jsonl", LLAMA_ARG_SPEC_DRAFT_MODEL="/models/draft.gguf")
    answer = dry_run(here.server, environment)
    assert [row.weights_mib for row in answer.rows] == [92, 28]
    assert [row.weights_mib for row in answer.draft_rows] == [92, 28]
    assert answer.draft_rows[0].kv_mib == 180


def test_a_head_for_several_tokens_has_no_weights_of_its_own(here: Lab) -> None:
    answer = dry_run(here.server, here.environment("draft.jsonl", LLAMA_ARG_SPEC_TYPE="draft-mtp"))
    assert [(row.weights_mib, row.kv_mib) for row in answer.draft_rows] == [(0, 180), (0, 0)]


def test_a_projector_is_told_a_device(here: Lab) -> None:
    environment = here.environment("projector.jsonl", LLAMA_ARG_MMPROJ="/models/mmproj.gguf")
    answer = dry_run(here.server, environment)
    assert answer.projector_mib == {"CUDA0": 4.98, "Host": 0.58}
    assert rows(answer)[0] == ("CUDA0", 46, 132, 32)
    assert here.seen("LLAMA_ARG_LOG_VERBOSITY") == ["5"]


def test_adapters_are_said_to_be_left_out(here: Lab) -> None:
    environment = here.environment("cpu.jsonl", LLAMA_EXTRA_ARGS="--lora /models/a.gguf")
    assert "--lora" in dry_run(here.server, environment).not_covered[0]


def test_split_mode_tensor_is_asked_of_fit_params(here: Lab) -> None:
    environment = here.environment(
        "split-tensor.jsonl",
        LLAMA_ARG_SPLIT_MODE="tensor",
        LLAMA_EXTRA_ARGS="--kv-unified --ubatch-size 256 --spec-draft-n-max 3 -fa on",
    )
    answer = dry_run(here.server, environment)
    assert answer.asked == "llama-fit-params"
    assert rows(answer) == [("Meta()", 92, 180, 97), ("Host", 28, 0, 6)]
    assert "--kv-unified --spec-draft-n-max 3" in " ".join(answer.not_covered)
    assert here.seen("argument") == ["--ubatch-size", "256", "-fa", "on", "--fit-print", "on"]


def test_a_server_that_says_it_does_not_measure_leads_to_fit_params(here: Lab) -> None:
    answer = dry_run(here.server, here.environment("split-tensor.jsonl"))
    assert answer.asked == "llama-fit-params"
    assert "not implemented for SPLIT_MODE_TENSOR" in answer.not_covered[0]


def test_without_fit_params_there_is_no_answer_for_split_mode_tensor(here: Lab) -> None:
    here.fit_params.unlink()
    with pytest.raises(DryRunError, match=r"no .*llama-fit-params to ask instead"):
        dry_run(here.server, here.environment(LLAMA_ARG_SPLIT_MODE="tensor"))


# refusals


@pytest.mark.parametrize(
    ("recording", "word"),
    [
        ("unknown-architecture", "unknown model architecture: 'lambo'"),
        ("tensor-missing", "tensor 'blk.3.attn_q.weight' not found"),
        ("draft-missing", "failed to open GGUF file '/models/draft.gguf'"),
        ("projector-missing", "Failed to load CLIP model from /models/mmproj.gguf"),
    ],
)
def test_a_refusal_has_the_engines_words(here: Lab, recording: str, word: str) -> None:
    environment = here.environment(
        f"{recording}.jsonl", LLAMA_ARG_SPEC_DRAFT_MODEL="/models/draft.gguf"
    )
    answer = dry_run(here.server, environment)
    assert (answer.accepted, answer.rows) == (False, ())
    assert word in " ".join(answer.last_words)
    assert not is_alive(int(here.seen("pid")[0]))


def test_a_draft_that_cannot_be_measured_is_left_out(here: Lab) -> None:
    draft = {"LLAMA_ARG_SPEC_DRAFT_MODEL": "/models/draft.gguf"}
    recorded = (here.recorded / "draft-missing.jsonl").read_text()
    said = here.file(
        "said",
        recorded.replace(
            "without it: failed to load model",
            "without it: failed to create llama_context from model",
        ),
    )
    answer = dry_run(here.server, here.environment(said, **draft))
    assert answer.accepted
    assert "failed to create llama_context" in answer.not_covered[0]


def test_a_wrong_argument_is_told_without_the_usage(here: Lab) -> None:
    said = here.file("said", "error while handling argument: bad\n\nusage:\n-c N  context\n")
    environment = here.environment(then="exit 1", STAND_IN_STDERR=str(said))
    answer = dry_run(here.server, environment)
    assert not answer.accepted
    assert answer.last_words == (
        "error while handling argument: bad",
        "it ended with exit status 1",
    )


def test_a_crash_is_a_refusal(here: Lab) -> None:
    said = here.file("said", "GGML_ASSERT(n > 0) failed\n")
    answer = dry_run(here.server, here.environment(then="abort", STAND_IN_STDERR=str(said)))
    assert not answer.accepted
    assert answer.last_words == ("GGML_ASSERT(n > 0) failed", "it was ended by SIGABRT")


def test_the_words_are_about_the_callers_files(here: Lab) -> None:
    header = Header("other-name.gguf", b"GGUF", 5)
    text = 'echo "cannot load $LLAMA_ARG_MODEL" >&2; exit 1'
    answer = dry_run(here.server, here.environment(then=text), headers={MODEL: [header]})
    assert answer.last_words[0] == f"cannot load {MODEL}"


# no answer


def test_a_server_that_hangs_is_stopped(here: Lab) -> None:
    with pytest.raises(DryRunError, match="gave no answer in time and was stopped"):
        dry_run(here.server, here.environment(), timeout_s=1)
    assert not is_alive(int(here.seen("pid")[0]))


def test_a_server_that_closes_its_output_and_hangs_is_stopped(here: Lab) -> None:
    with pytest.raises(DryRunError, match="gave no answer in time and was stopped"):
        dry_run(here.server, here.environment(then="exec sleep 600 >&- 2>&-"), timeout_s=1)
    assert not is_alive(int(here.seen("pid")[0]))


@pytest.mark.parametrize(
    "garbage",
    [
        '{"type": "fit_memory_breakdown"}',
        '{"type": "fit_memory_breakdown", "data": {"unit": "GiB", "rows": []}}',
        '{"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": [{"name": 3}]}}',
        '{"type": "log", "msg": null}',
        '{"type": "log"',
        "[1]",
        "\0\xff{{{",
    ],
)
def test_garbage_is_no_answer(here: Lab, garbage: str) -> None:
    said = here.file("said", f"{garbage}\n")
    with pytest.raises(DryRunError, match="ended without saying what memory"):
        dry_run(here.server, here.environment(said, then="exit 0"))


@pytest.mark.parametrize("stream", ["cat /dev/zero", "yes 'no answer at all, but a long line'"])
def test_endless_garbage_is_cut_off(here: Lab, stream: str) -> None:
    with pytest.raises(DryRunError, match="bytes without an answer"):
        dry_run(here.server, here.environment(then=f"exec {stream}"))
    assert not is_alive(int(here.seen("pid")[0]))


def test_no_server_no_answer(here: Lab) -> None:
    with pytest.raises(DryRunError, match=r"install llama\.cpp first"):
        dry_run(here.folder / "none", {})


@pytest.mark.parametrize("status", [126, 127])
def test_a_program_that_cannot_be_executed_has_not_refused(here: Lab, status: int) -> None:
    with pytest.raises(DryRunError, match="cannot be run on this host"):
        dry_run(here.server, here.environment(then=f"exit {status}"))


def test_a_file_that_may_not_be_read_is_no_refusal(here: Lab) -> None:
    text = 'echo "failed to open: Permission denied" >&2; exit 1'
    with pytest.raises(DryRunError, match="Name a user who can read the models"):
        dry_run(here.server, here.environment(then=text))


# what the server is given


def test_it_is_stopped_before_it_loads(here: Lab) -> None:
    dry_run(here.server, here.environment("cpu.jsonl", then="load"))
    assert not is_alive(int(here.seen("pid")[0]))
    assert "loaded" not in here.record.read_text()


def test_the_arguments_are_the_instances_but_for_what_reaches_out(here: Lab) -> None:
    extra = (
        f'-c 4096 --api-key canary --log-file /tmp/x -v --draft "{MODEL}" --port 80 '
        '--override-kv "a b=int:1" --mcp-servers-json "{}" --fit off'
    )
    environment = here.environment("cpu.jsonl", LLAMA_EXTRA_ARGS=extra)
    dry_run(here.server, environment, headers={MODEL: [Header("x.gguf", b"GGUF", 4)]})
    folder = here.seen("pwd")[0]
    assert here.seen("argument") == [
        *("-c", "4096", "--draft", f"{folder}/0/x.gguf", "--override-kv", "a b=int:1")
    ]


def test_the_variables_are_the_instances_but_for_what_reaches_out(here: Lab) -> None:
    environment = here.environment(
        "cpu.jsonl",
        LLAMA_API_KEY="canary",
        LLAMA_ARG_API_KEY_FILE="/run/canary",
        LLAMA_ARG_HOST="0.0.0.0",
        LLAMA_ARG_PORT="80",
        LLAMA_ARG_TOOLS="all",
        HF_TOKEN="canary",
        CUDA_VISIBLE_DEVICES="GPU-1",
    )
    dry_run(here.server, environment)
    folder = here.seen("pwd")[0]
    assert "canary" not in here.record.read_text()
    assert here.seen("CUDA_VISIBLE_DEVICES") == ["GPU-1"]
    assert here.seen("LLAMA_ARG_HOST") == [f"{folder}/listen.sock"]
    assert here.seen("LLAMA_ARG_FIT") == ["on"]
    assert here.seen("LLAMA_ARG_LOG_JSONL") == ["1"]
    assert here.seen("LLAMA_ARG_LOG_VERBOSITY") == ["4"]
    assert here.seen("LLAMA_ARG_OFFLINE") == ["1"]
    assert here.seen("HOME") == [folder]
    assert here.seen("LLAMA_ARG_PORT") == here.seen("LLAMA_ARG_TOOLS") == []


def test_our_own_environment_does_not_come_through(
    here: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    dry_run(here.server, here.environment("cpu.jsonl"))
    assert "canary" not in here.record.read_text()
    assert here.seen("LLAMA_ARG_CTX_SIZE") == []


def test_a_header_is_a_file_of_full_size_that_takes_no_space(here: Lab) -> None:
    header = Header("model.gguf", b"GGUF" + bytes(996), 20 << 30)
    dry_run(here.server, here.environment("cpu.jsonl"), headers={MODEL: [header]})
    assert here.seen("model_size") == [str(20 << 30)]
    assert int(here.seen("model_blocks")[0]) <= 64
    assert here.seen("model_magic") == ["GGUF"]
    assert here.seen("model_mode") == ["700"]


def test_shards_lie_side_by_side(here: Lab) -> None:
    names = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    headers = [Header(name, b"GGUF", 100) for name in names]
    dry_run(here.server, here.environment("cpu.jsonl"), headers={MODEL: headers})
    assert here.seen("model_siblings") == [f"{names[0]} {names[1]} "]


def test_a_file_stands_in_for_the_model(here: Lab) -> None:
    model = here.file("here.gguf", "GGUF")
    dry_run(here.server, here.environment("cpu.jsonl"), model)
    assert here.seen("LLAMA_ARG_MODEL") == [str(model)]


def test_an_absurd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="at most 4398046511104 are believed"):
        lay_out({MODEL: [Header("a.gguf", b"GGUF", 1 << 60)]}, tmp_path)


@pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
def test_never_as_root(here: Lab) -> None:
    headers = {MODEL: [Header("model.gguf", b"GGUF", 4)]}
    dry_run(here.server, here.environment("cpu.jsonl"), headers=headers)
    assert here.seen("uid") == ["65534"]
    assert "CapBnd:\t0000000000000000" in here.record.read_text()
    assert "NoNewPrivs:\t1" in here.record.read_text()
    assert here.seen("nice") == [str(min(19, os.nice(0) + 10))]
    with pytest.raises(DryRunError, match="it is not run as root"):
        dry_run(here.server, here.environment("cpu.jsonl"), user="root")
    with pytest.raises(DryRunError, match="no user 'nobody-at-all'"):
        dry_run(here.server, here.environment("cpu.jsonl"), user="nobody-at-all")


def test_the_server_does_not_outlive_who_asks(here: Lab) -> None:
    code = (
        "import sys, json; from pathlib import Path\n"
        "from ansible_collections.kloros.llm.plugins.module_utils.llama_dry_run import dry_run\n"
        "dry_run(Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
    )
    asker = subprocess.Popen(
        [sys.executable, "-c", code, here.server, json.dumps(here.environment())],
        env={**os.environ, "PYTHONPATH": "collections", "TMPDIR": str(here.tmp)},
        cwd=Path(__file__).parents[2],
    )
    try:
        _until(lambda: bool(here.seen("STAND_IN_THEN")))
        server = int(here.seen("pid")[0])
        assert is_alive(server)
    finally:
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    _until(lambda: not is_alive(server))
    # Nobody is left to remove it: a few KiB, in a folder that is emptied at boot.
    for folder in here.left_over():
        shutil.rmtree(folder)


def _until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")


# headers from a server


def test_headers_come_by_range_with_all_shards(here: Lab) -> None:
    folder = here.folder / "hub" / "acme" / "tiny-GGUF"
    folder.mkdir(parents=True)
    lengths = [
        tiny_gguf(
            folder / f"m-0000{number + 1}-of-00002.gguf",
            split_no=number,
            split_count=2,
            split_tensors_count=2,
        )
        for number in (0, 1)
    ]
    with StandInHub(here.folder / "hub") as hub:
        source = parse_source("hf://acme/tiny-GGUF/m-00001-of-00002.gguf")
        headers = fetch_headers(source, HttpClient(5), hub.url)
    assert [header.file_name for header in headers] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    assert [len(header.content) for header in headers] == lengths
    assert [header.size_bytes for header in headers] == [9437184 + length for length in lengths]


def test_a_local_file_needs_no_copy_of_its_header() -> None:
    with pytest.raises(SourceError, match="is a local file"):
        fetch_headers(parse_source("file:/models/a.gguf"), HttpClient(5), "http://127.0.0.1")


# the real one


def real_header() -> Header:
    with FileBytes(str(REAL_MODEL)) as source:
        header = read_header(source)
        size = source.size_bytes
        return Header("model.gguf", source.read_at(0, header.data_offset), size)


def loaded(environment: dict[str, str], folder: Path) -> list[tuple[str, int, int, int]]:
    """What a server that really loaded the model says it holds when it ends."""
    address = str(folder / "loaded.sock")
    variables = {
        **environment,
        "LLAMA_ARG_MODEL": str(REAL_MODEL),
        "LLAMA_ARG_HOST": address,
        "LLAMA_ARG_LOG_JSONL": "1",
        "LLAMA_ARG_LOG_VERBOSITY": "4",
        "HOME": str(folder),
    }
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen([BINARY], env=variables, stdout=output, stderr=output)
    try:
        _until(lambda: _is_healthy(address) or server.poll() is not None)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()
    entries = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
    data = [one["data"] for one in entries if one["type"] == "fit_memory_breakdown"][-1]
    return [(row["name"], row["model"], row["context"], row["compute"]) for row in data["rows"]]


def _is_healthy(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(address)
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        except OSError:
            return False


@needs_llama_server
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("context", "slots", "cache"),
    [("2048", "1", "f16"), ("8192", "4", "q8_0"), ("4096", "2", "q4_0"), ("0", "2", "f16")],
)
def test_the_header_alone_gives_what_a_loaded_server_holds(
    engine: Path, tmp_path: Path, context: str, slots: str, cache: str
) -> None:
    environment = {
        "LLAMA_ARG_MODEL": MODEL,
        "LLAMA_ARG_CTX_SIZE": context,
        "LLAMA_ARG_N_PARALLEL": slots,
        "LLAMA_ARG_CACHE_TYPE_K": cache,
        "LLAMA_ARG_CACHE_TYPE_V": cache,
        "LLAMA_ARG_DEVICE": "none",
        "LLAMA_ARG_FIT": "off",
        "LLAMA_ARG_THREADS": "2",
    }
    answer = dry_run(engine, environment, headers={MODEL: [real_header()]})
    assert answer.accepted, answer.last_words
    assert rows(answer) == loaded(environment, tmp_path)


@needs_llama_server
@pytest.mark.usefixtures("here")
def test_the_real_one_refuses_an_unknown_architecture(engine: Path) -> None:
    header = real_header()
    other = Header("x.gguf", header.content.replace(b"llama", b"lambo", 1), header.size_bytes)
    answer = dry_run(engine, {"LLAMA_ARG_MODEL": MODEL}, headers={MODEL: [other]})
    assert not answer.accepted
    assert "unknown model architecture: 'lambo'" in " ".join(answer.last_words)


@needs_llama_server
@pytest.mark.usefixtures("here")
def test_the_real_one_refuses_a_file_cut_short(engine: Path) -> None:
    header = real_header()
    short = Header("x.gguf", header.content, header.size_bytes - 1000)
    answer = dry_run(engine, {"LLAMA_ARG_MODEL": MODEL}, headers={MODEL: [short]})
    assert "data is not within the file bounds" in " ".join(answer.last_words)


@needs_llama_server
@pytest.mark.usefixtures("here")
def test_the_real_one_measures_a_draft_model(engine: Path) -> None:
    environment = {
        "LLAMA_ARG_MODEL": MODEL,
        "LLAMA_ARG_CTX_SIZE": "4096",
        "LLAMA_ARG_SPEC_DRAFT_MODEL": "/models/draft.gguf",
        "LLAMA_ARG_SPEC_TYPE": "draft-simple",
        "LLAMA_ARG_DEVICE": "none",
    }
    headers = {MODEL: [real_header()], "/models/draft.gguf": [real_header()]}
    answer = dry_run(engine, environment, headers=headers)
    assert answer.accepted, answer.last_words
    assert [row.weights_mib for row in (*answer.rows, *answer.draft_rows)] == [92, 92]
