"""A folder that every user may enter: stand-ins of llama.cpp's programs, recorded answers."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
RECORDED = HERE / "data" / "llama-dry-run"
MODEL = "/models/model.gguf"


class Lab:
    """`server` and `fit_params` are the stand-ins, `tmp` is for TMPDIR, `record` is written by the
    stand-in: what it was given.
    """

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.folder = folder
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        self.tmp.chmod(0o1777)
        self.server = folder / "bin" / "llama-server"
        self.fit_params = self.server.with_name("llama-fit-params")
        self.server.parent.mkdir()
        for program in (self.server, self.fit_params):
            shutil.copy(HERE / "stand_in_llama_server", program)
            program.chmod(0o755)
        self.recorded = folder / "recorded"
        shutil.copytree(RECORDED, self.recorded)
        self.record = folder / "record"
        self.record.touch()
        self.record.chmod(0o666)
        for path in [self.recorded, self.server.parent, *self.recorded.iterdir()]:
            path.chmod(0o755)

    def environment(
        self, stdout: str | Path = "", then: str = "hang", **more: str
    ) -> dict[str, str]:
        """An instance's, with what the stand-in shall say: a recording's name or a path."""
        said = {"STAND_IN_STDOUT": str(self.recorded / stdout)} if stdout else {}
        return {
            "LLAMA_ARG_MODEL": MODEL,
            "LLAMA_ARG_FIT": "off",
            "STAND_IN_RECORD": str(self.record),
            "STAND_IN_THEN": then,
            "STAND_IN_HELP": str(self.recorded / "fit-params-help.txt"),
            "STAND_IN_TABLE": str(self.recorded / "fit-params.txt"),
            **said,
            **more,
        }

    def file(self, name: str, content: str) -> Path:
        """A file that the stand-in can read."""
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o644)
        return path

    def seen(self, key: str) -> list[str]:
        """What the stand-in wrote about `key`."""
        lines = [line.partition("=") for line in self.record.read_text().splitlines()]
        return [value for name, _, value in lines if name == key]

    def left_over(self) -> list[Path]:
        """What lies in the folder for temporary files."""
        return list(self.tmp.iterdir())


@contextmanager
def lab() -> Iterator[Lab]:
    """Not below pytest's own folder, which only its owner may enter."""
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        yield Lab(Path(folder))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def tiny_gguf(path: Path, tensor_bytes: int = 9 << 20, **metadata: int) -> int:
    """Write a GGUF with one F32 tensor, all of it a hole; returns the header's length."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, 1, 1 + len(metadata)), _text("general.architecture")]
    parts += [struct.pack("<I", 8), _text("llama")]
    for key, value in metadata.items():
        parts += [_text(key.replace("_", ".")), struct.pack("<II", 4, value)]
    name = f"tensor.{metadata.get('split_no', 0)}"
    parts += [_text(name), struct.pack("<IQIQ", 1, tensor_bytes // 4, 0, 0)]
    header = b"".join(parts)
    header += b"\0" * (-len(header) % 32)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + tensor_bytes)
    os.utime(path, (0, 0))
    return len(header)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
