"""Releases of llama.cpp: made beside each other, switched at once, and never half.

The source is a stand-in that builds in two seconds; everything else is the role's real way.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from testbed.cache import cache_folder
from testbed.host_tests import Hub, Play, Run, only_on

pytestmark = only_on("kloros-bookworm")

STAND_IN = Path(__file__).resolve().parents[1] / "stand_in_llama_cpp"
REPOSITORY = "/srv/llama.cpp"
TRIAL = "/opt/trial"


@pytest.fixture
def make(host: Host, play: Play) -> Iterator[Any]:
    """Run the role into a folder of its own, which is removed afterwards."""

    def run(*arguments: str, folder: str = TRIAL, **variables: Any) -> Run:
        return play(
            *arguments,
            playbook="molecule/default/releases_only.yml",
            llama_cpp_dir=folder,
            llama_cpp_cache_dir="/var/cache/trial",
            preflight_plan_file="/run/trial-plan.json",
            **{"llama_instances": {}, "gguf_models": {}, **variables},
        )

    yield run
    host.check_output(f"rm -rf {TRIAL} {TRIAL}-2 /var/cache/trial {REPOSITORY}")


def releases(host: Host, folder: str = TRIAL) -> list[str]:
    names: list[str] = host.check_output(f"ls -A {folder}/releases").split()
    return names


def link(host: Host, name: str, folder: str = TRIAL) -> str:
    target: str = host.file(f"{folder}/{name}").linked_to
    return target.rsplit("/", 1)[-1]


def make_repository(host: Host) -> None:
    """A git repository with the versions v1, v2, and one that does not compile."""
    host.check_output(
        "sh -c 'command -v git || (apt-get -qq update && apt-get -qq install -y git)'"
    )
    host.check_output(f"mkdir -p {REPOSITORY}")
    for path in STAND_IN.iterdir():
        text = path.read_text(encoding="utf-8")
        host.check_output("sh -c %s", f"cat > {REPOSITORY}/{path.name} <<'END'\n{text}END")
    git = f"git -C {REPOSITORY} -c user.name=t -c user.email=t@t"
    for command in (
        "init --quiet",
        "add .",
        "commit --quiet --message=one",
        "tag v1",
        "commit --quiet --allow-empty --message=two",
        "tag v2",
    ):
        host.check_output(f"{git} {command}")
    host.check_output(f"sh -c 'echo this is no C >> {REPOSITORY}/program.c'")
    host.check_output(f"{git} commit --quiet --all --message=broken")
    host.check_output(f"{git} tag broken")


def test_releases_from_git(
    host: Host, make: Any, wishes: dict[str, Any], models: dict[str, Any]
) -> None:
    make_repository(host)
    git = {"llama_cpp_source": "git", "llama_cpp_git_url": f"file://{REPOSITORY}"}

    foretold = make("--check", **git, llama_cpp_version="v1")
    assert foretold.returncode == 0, foretold.output
    assert "Would make release v1-cpu-" in foretold.output
    assert not host.file(TRIAL).exists

    first = make(**git, llama_cpp_version="v1")
    assert first.returncode == 0, first.output
    (v1,) = releases(host)
    assert link(host, "current") == v1
    assert not host.file(f"{TRIAL}/previous").exists
    assert host.check_output(f"{TRIAL}/current/bin/llama-server --version") == "version: v1"
    assert make(**git, llama_cpp_version="v1").changed == 0

    # This llama-server knows none of the options that the instances need.
    refused = make(**git, llama_cpp_version="v2", llama_instances=wishes, gguf_models=models)
    assert refused.returncode != 0
    assert "No instance was touched" in refused.output
    assert link(host, "current") == v1
    assert not host.file(f"{TRIAL}/previous").exists

    # A checkout that was killed leaves such files; releases that are in use stay.
    host.check_output(
        "sh -c 'cd /var/cache/trial/sources/git/.git && touch index.lock shallow.lock'"
    )
    host.check_output(f"sh -c 'rm -r {TRIAL}/releases/v2*'")
    # Whoever reads while the release is switched finds a whole one, always.
    host.check_output(
        "systemd-run --unit=reader sh -c %s",
        f"while cat {TRIAL}/current/BUILD_INFO.json >/dev/null; do :; done",
    )
    second = make(**git, llama_cpp_version="v2")
    assert second.returncode == 0, second.output
    assert host.check_output("systemctl is-active reader") == "active"
    host.check_output("systemctl stop reader")
    v2 = link(host, "current")
    assert v2.startswith("v2-cpu-")
    assert link(host, "previous") == v1

    broken = make(**git, llama_cpp_version="broken")
    assert broken.returncode != 0
    assert "program.c" in broken.output
    assert "error:" in broken.output
    assert (link(host, "current"), link(host, "previous")) == (v2, v1)
    assert [name for name in releases(host) if not name.startswith(".")] == sorted([v1, v2])

    flagged = make(**git, llama_cpp_version="v2", llama_cpp_cmake_flags={"GGML_LTO": "ON"})
    assert flagged.returncode == 0, flagged.output
    v2_with_flag = link(host, "current")
    assert v2_with_flag.startswith("v2-cpu-")
    assert v2_with_flag != v2
    assert link(host, "previous") == v2
    assert releases(host) == sorted([v2, v2_with_flag])

    # The way back to a release that is there takes no build.
    back = make(**git, llama_cpp_version="v2")
    assert back.returncode == 0, back.output
    assert "Build the release" not in back.output
    assert (link(host, "current"), link(host, "previous")) == (v2, v2_with_flag)


def archive(folder: Path) -> tuple[Path, str]:
    """The stand-in's source in a sub-folder of a tarball, as a source distribution has it."""
    path = folder / "stand-in-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for file in STAND_IN.iterdir():
            tar.add(file, f"stand-in-1.0/vendor/llama.cpp/{file.name}")
        other = tarfile.TarInfo("stand-in-1.0/README")
        other.size = 4
        tar.addfile(other, io.BytesIO(b"read"))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_archive_package_and_wrong_digests(host: Host, make: Any, hub: Hub, tmp_path: Path) -> None:
    path, sha256 = archive(tmp_path)
    source = {
        "llama_cpp_source": "archive",
        "llama_cpp_version": "v3",
        "llama_cpp_archive": str(path),
        "llama_cpp_archive_subdir": "stand-in-1.0/vendor/llama.cpp",
    }
    wrong = make(**source, llama_cpp_archive_sha256="0" * 64)
    assert wrong.returncode != 0
    assert sha256 in wrong.output
    assert not host.file(f"{TRIAL}/current").exists
    assert releases(host) == []
    assert host.check_output("sh -c 'ls -A /var/cache/trial/downloads'") == ""

    missing = make(
        **source | {"llama_cpp_archive": "/nowhere.tar.gz"}, llama_cpp_archive_sha256=sha256
    )
    assert missing.returncode != 0
    assert missing.changed == 0
    assert "/nowhere.tar.gz is not on the controller" in missing.output

    # From a URL this time, and with the digest in capitals.
    served = cache_folder() / "hub/stand-in/archives"
    served.mkdir(parents=True)
    shutil.copy(path, served)
    packages = tmp_path / "packages"
    settings = {
        **source,
        "llama_cpp_archive": f"{hub.url}/stand-in/archives/resolve/main/{path.name}",
        "llama_cpp_archive_sha256": sha256.upper(),
        "llama_cpp_pack_dir": str(packages),
    }
    try:
        built = make(**settings)
    finally:
        shutil.rmtree(served.parent)
    assert built.returncode == 0, built.output
    release = link(host, "current")
    again = make(**settings)
    assert again.changed == 0, again.output

    package, stated = sorted(packages.iterdir())
    package_sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    assert stated.name == f"{package.name}.sha256"
    assert stated.read_text() == f"{package_sha256}  {package.name}\n"
    install = {"llama_cpp_source": "package", "llama_cpp_package": str(package)}
    refused = make(folder=f"{TRIAL}-2", **install, llama_cpp_package_sha256="0" * 64)
    assert refused.returncode != 0
    assert package_sha256 in refused.output
    assert not host.file(f"{TRIAL}-2/current").exists

    installed = make(folder=f"{TRIAL}-2", **install, llama_cpp_package_sha256=package_sha256)
    assert installed.returncode == 0, installed.output
    assert link(host, "current", f"{TRIAL}-2") == release
    server = f"{TRIAL}-2/current/bin/llama-server"
    assert host.check_output(f"{server} --version") == "version: v3"
    info = json.loads(host.file(f"{TRIAL}-2/current/BUILD_INFO.json").content_string)
    assert info["name"] == release
    assert (
        make(folder=f"{TRIAL}-2", **install, llama_cpp_package_sha256=package_sha256).changed == 0
    )
    # The libraries are found beside the binaries: the folder of the first release plays no part.
    host.check_output(f"mv {TRIAL} {TRIAL}-away")
    try:
        assert host.check_output(f"{server} --version") == "version: v3"
    finally:
        host.check_output(f"mv {TRIAL}-away {TRIAL}")
