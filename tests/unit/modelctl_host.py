"""A host in a folder for `modelctl`: models, plan, programs; and the program itself, run on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60

# What systemctl and journalctl are asked is written to `calls`; what systemctl says is in `units`.
_SYSTEMCTL = """#!/bin/bash
printf '%s\\n' "systemctl $*" >> "{calls}"
[[ $1 == show ]] && cat "{units}"
[[ $1 != try-restart || ! -e "{units}.fails" ]] || {{ echo "Job failed"; exit 1; }}
exit 0
"""
_JOURNALCTL = """#!/bin/bash
printf '%s\\n' "journalctl $*" >> "{calls}"
echo "a line of the journal"
"""
_NO_GPU = {"fault": "no_devices", "driver": {"version": "550.163.01"}, "gpus": []}


@dataclass(frozen=True)
class Ran:
    """What a run of modelctl came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class ModelctlHost:
    """The host; `models` is its models' directory, `etc` stands for /etc/kloros-llm."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "models"
        self.etc = root / "etc"
        self.bin = root / "bin"
        self.releases = root / "llama.cpp"
        for folder in (self.models, self.etc, self.bin, root / "home"):
            folder.mkdir(parents=True)
        self.plan = self.etc / "plan.json"
        self._calls = root / "calls"
        self._calls.touch()
        self._units = root / "units"
        self._units.touch()
        for name, text in (("systemctl", _SYSTEMCTL), ("journalctl", _JOURNALCTL)):
            self.add_program(name, text.format(calls=self._calls, units=self._units))
        launcher = f'#!/bin/bash\nexec {sys.executable} -m kloros_llm.modelctl "$@"\n'
        self.add_program("modelctl", launcher)
        shutil.copy(ROOT / "testbed/stand_in_nvidia_smi.py", self.bin / "nvidia-smi")
        self._gpus = root / "gpus.json"
        self.have_gpus(_NO_GPU)

    def add_program(self, name: str, text: str) -> None:
        program = self.bin / name
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)

    def have_gpus(self, state: Mapping[str, Any]) -> None:
        """Nothing runs on them but what `state` says: not what this machine's servers take."""
        self._gpus.write_text(json.dumps(state), encoding="utf-8")
        self._gpus.with_name("no_processes").touch()

    def have_units(self, **units: Mapping[str, object]) -> None:
        """What systemctl show says, by the unit's name without its ending."""
        blocks = [
            "".join(f"{key}={value}\n" for key, value in {"Id": f"{unit}.service", **said}.items())
            for unit, said in units.items()
        ]
        self._units.write_text("\n".join(blocks), encoding="utf-8")

    def fail_restarts(self) -> None:
        self._units.with_name("units.fails").touch()

    @property
    def calls(self) -> list[str]:
        """What systemctl and journalctl were asked."""
        return self._calls.read_text(encoding="utf-8").splitlines()

    def write_plan(
        self,
        models: Sequence[Mapping[str, Any]] = (),
        instances: Sequence[Mapping[str, Any]] = (),
        **changes: object,
    ) -> None:
        """A plan as the playbook leaves it, as far as it matters."""
        plan = {
            "schema": 1,
            "user": "kloros",
            "llama_cpp": {"dir": str(self.releases)},
            "models_dir": str(self.models),
            "models": list(models),
            "instances": list(instances),
            **changes,
        }
        self.plan.write_text(json.dumps(plan), encoding="utf-8")

    def planned_model(self, name: str, source: str, *aliases: str) -> dict[str, Any]:
        file = source.partition("@")[0].rpartition("/")[2]
        files = [{"file": file, "role": "model", "source": source, "sha256": None}]
        return {
            "name": name,
            "source": source,
            "path": str(self.models / file),
            "aliases": list(aliases),
            "files": files,
        }

    def planned_instance(self, name: str, model: Path, **changes: object) -> dict[str, Any]:
        return {
            "name": name,
            "unit": f"kloros-llama-{name}.service",
            "url": "http://127.0.0.1:9",  # the discard port: nobody answers
            "model": "tiny:1b",
            "aliases": ["tiny:1b"],
            "model_files": [str(model)],
            "context_tokens": 4096,
            "slots": 2,
            "kv_cache": "f16",
            "gpus": [],
            "environment": {"LLAMA_ARG_MODEL": str(model)},
            "api_key": False,
            **changes,
        }

    def environment(self, **variables: str) -> dict[str, str]:
        """No proxy and no token of the machine that the tests run on."""
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.root / "home"),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONWARNINGS": "error",
            "STAND_IN_NVIDIA_SMI_STATE": str(self._gpus),
            **variables,
        }

    def command(self, *words: object) -> list[str]:
        """The whole command line, with the plan where there is one."""
        argv = [sys.executable, "-m", "kloros_llm.modelctl", *map(str, words)]
        if "--plan" in words:
            return argv
        with_plan = self.plan.exists()
        return [
            *argv,
            *(["--plan", f"{self.plan}"] if with_plan else ["--models-dir", f"{self.models}"]),
        ]

    def run(self, *words: object, **variables: str) -> Ran:
        """Run `modelctl` with these words on this host."""
        return self._run(self.command(*words), variables)

    def run_without_rights(self, *words: object) -> Ran:
        """Run it as somebody for whom file modes count, which they do not for root."""
        bound = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"] if is_root() else []
        return self._run([*bound, *self.command(*words)], {})

    def _run(self, argv: Sequence[str], variables: Mapping[str, str]) -> Ran:
        done = subprocess.run(
            argv,
            env=self.environment(**variables),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *words: object, **variables: str) -> subprocess.Popen[str]:
        """Start `modelctl`, to be interrupted."""
        return subprocess.Popen(
            # Whoever runs the tests in the background has this signal ignored.
            ["env", "--default-signal=INT", *self.command(*words)],
            env=self.environment(**variables),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def text_of_all_files(self) -> bytes:
        """Everything that lies in the host's folder."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        return b"".join(str(path).encode() + path.read_bytes() for path in files)


def write_model(path: Path, *, seed: int = 0, layers: int = 2, megabytes: int = 0) -> None:
    """A real little llama in GGUF; `megabytes` makes its embedding as large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, heads, kv_heads, feed_forward = 64, 4, 2, 128
    vocabulary = max(256, megabytes * 2**20 // (2 * width))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny \x1b[31mLlama")
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(vocabulary)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        dtype = np.float16 if len(shape) > 1 else np.float32
        writer.add_tensor(name, random.standard_normal(shape).astype(dtype))

    add("token_embd.weight", vocabulary, width)
    add("output_norm.weight", width)
    kv_width = width // heads * kv_heads
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", width)
        add(f"blk.{layer}.attn_q.weight", width, width)
        add(f"blk.{layer}.attn_k.weight", kv_width, width)
        add(f"blk.{layer}.attn_v.weight", kv_width, width)
        add(f"blk.{layer}.attn_output.weight", width, width)
        add(f"blk.{layer}.ffn_norm.weight", width)
        add(f"blk.{layer}.ffn_gate.weight", feed_forward, width)
        add(f"blk.{layer}.ffn_up.weight", feed_forward, width)
        add(f"blk.{layer}.ffn_down.weight", width, feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_root() -> bool:
    return os.geteuid() == 0
