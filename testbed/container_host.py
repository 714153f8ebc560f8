"""Throw-away Debian hosts: systemd containers that are reached over SSH, as real hosts are.

Needs podman, debootstrap and an SSH client, and either root or passwordless sudo.
`python -m testbed.container_host --help` lists the commands.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.cache import cache_folder, locked

RELEASES = ("trixie", "bookworm")
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "sudo",
    "openssh-server",
    "ca-certificates",
    "iproute2",
)
MASKED_UNITS = (
    "console-getty.service",  # a container has no console to log in at
    "getty.target",
    "systemd-networkd-wait-online.service",  # podman owns the network
    "systemd-udevd.service",
    "apt-daily.timer",  # would hold the dpkg lock in the middle of a test
    "apt-daily-upgrade.timer",
)
# Runs in the new root. The host keys of openssh-server's installation stay: first boot has them.
CUSTOMISE = r"""
set -eu
ssh-keygen -A
useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
chmod 0440 /etc/sudoers.d/admin
install -d -m 0700 /root/.ssh
install -d -m 0700 -o admin -g admin /home/admin/.ssh
for unit in MASKED; do ln -sf /dev/null "/etc/systemd/system/$unit"; done
echo LANG=C.UTF-8 > /etc/default/locale
: > /etc/machine-id
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/log/*.log
"""
# With private mounts, as a container runtime makes them, LoadCredential= silently delivers nothing.
BOOT = "mount --make-rshared / && exec /lib/systemd/systemd"
IMAGE_NAME = "localhost/kloros-llm-host"
SETTINGS_LABEL, KEY_LABEL = "kloros-llm.settings", "kloros-llm.key"
HOST_CACHE = "/var/cache/kloros-llm"
CA_FOLDER = Path("/usr/local/share/ca-certificates")
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BOOT_TIMEOUT_S = 120.0
READY_STATES = ("running", "degraded")
# What podman asks for, unless it is told otherwise (containers-common's defaults).
PODMAN_NOFILE, PODMAN_NPROC = 1048576, 4194304


class TestbedError(Exception):
    """What was found, what was needed and what to do, for the person at the terminal."""


@dataclass(frozen=True)
class HostSettings:
    """Everything that makes one host different from another; a change means a new container."""

    name: str
    release: str
    ssh_port: int
    published: tuple[tuple[int, int], ...]
    cache: Path | None
    key: Path


@dataclass(frozen=True)
class Machine:
    """How this machine runs commands with privilege and keeps its caches."""

    privilege: tuple[str, ...]
    cache_folder: Path

    def run(
        self, *argv: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run argv with privilege and capture its output.

        Raises:
            TestbedError: the program is missing, or it failed and `check` is set.
        """
        command = [*self.privilege, *argv]
        try:
            done = subprocess.run(
                command, input=stdin or "", capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise TestbedError(missing_program(str(error.filename))) from error
        if check and done.returncode != 0:
            raise TestbedError(
                f"`{shlex.join(command)}` ended with status {done.returncode}:\n"
                f"{(done.stderr or done.stdout).strip()}"
            )
        return done


def missing_program(name: str) -> str:
    """Say how to get a program that is not installed."""
    return f"{name} is not installed; install it with: apt-get install {name}"


def this_machine() -> Machine:
    """Find out how to get privilege, and check that the programs needed are there.

    Raises:
        TestbedError: no privilege, or a program is missing.
    """
    privilege: tuple[str, ...] = ()
    if os.geteuid() != 0:
        privilege = ("sudo", "-n")
        if shutil.which("sudo") is None:
            raise TestbedError("not root, and sudo is not installed; run this as root")
        if subprocess.run([*privilege, "true"], capture_output=True, check=False).returncode != 0:
            raise TestbedError(
                "not root, and sudo asks for a password; run `sudo -v` first, or run this as root"
            )
    # sbin is where podman's runtimes and debootstrap live; a user's PATH may lack it.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    for program, package in (("podman", "podman"), ("ssh", "openssh-client")):
        if shutil.which(program) is None:
            raise TestbedError(missing_program(package))
    return Machine(privilege, cache_folder())


# --- image ---------------------------------------------------------------------------------------


def customise_script() -> str:
    """Return the shell script that turns debootstrap's root into a host's."""
    return CUSTOMISE.replace("MASKED", " ".join(MASKED_UNITS))


def image_tag(release: str) -> str:
    """Return the image's name; the tag changes with the recipe and with the mirror."""
    mirror = os.environ.get("KLOROS_LLM_DEBIAN_MIRROR", "")
    recipe = json.dumps([release, PACKAGES, customise_script(), mirror])
    return f"{IMAGE_NAME}:{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def ensure_image(machine: Machine, release: str) -> str:
    """Build the release's image unless it is there; return its name.

    Raises:
        TestbedError: debootstrap is missing or failed.
    """
    tag = image_tag(release)
    with locked(machine.cache_folder / "image.lock"):
        if machine.run("podman", "image", "exists", tag, check=False).returncode != 0:
            build_image(machine, release, tag)
    return tag


def build_image(machine: Machine, release: str, tag: str) -> None:
    """Make a Debian root with debootstrap and import it as `tag`.

    Raises:
        TestbedError: debootstrap is missing or failed.
    """
    if shutil.which("debootstrap") is None:
        raise TestbedError(missing_program("debootstrap"))
    if not DEBIAN_KEYRING.exists():
        raise TestbedError(missing_program("debian-archive-keyring"))
    packages = machine.cache_folder / "debootstrap" / release
    packages.mkdir(parents=True, exist_ok=True)
    say(f"making the image {tag} (about a minute)")
    # Not in /tmp, which may be a tmpfs, or mounted nodev or noexec.
    scratch = Path(tempfile.mkdtemp(prefix=f"root-{release}-", dir=machine.cache_folder))
    folder = scratch / "root"  # made by debootstrap: its owner and mode become those of /
    try:
        debootstrap(machine, release, folder, packages)
        machine.run("chroot", str(folder), "sh", "-c", customise_script())
        import_image(machine, folder, tag)
    finally:
        machine.run("rm", "-rf", "--one-file-system", str(scratch), check=False)


def debootstrap(machine: Machine, release: str, folder: Path, packages: Path) -> None:
    """Fill `folder` with a minimal Debian, keeping the .debs in `packages`."""
    mirror = os.environ.get("KLOROS_LLM_DEBIAN_MIRROR")
    done = machine.run(
        "debootstrap",
        "--variant=minbase",
        f"--cache-dir={packages}",
        f"--include={','.join(PACKAGES)}",
        release,
        str(folder),
        *([mirror] if mirror else []),
        check=False,
    )
    if done.returncode != 0:
        log = machine.run("tail", "-n", "20", f"{folder}/debootstrap/debootstrap.log", check=False)
        raise TestbedError(
            f"debootstrap could not make Debian {release} (status {done.returncode}):\n"
            f"{tail(done.stdout + done.stderr)}\n{log.stdout}"
            "If the mirror is wrong or out of reach, name one: "
            "KLOROS_LLM_DEBIAN_MIRROR=http://your-mirror/debian"
        )


def import_image(machine: Machine, folder: Path, tag: str) -> None:
    """Turn the root in `folder` into the image `tag`."""
    archive = subprocess.Popen(
        [*machine.privilege, "tar", "--numeric-owner", "-C", str(folder), "-c", "."],
        stdout=subprocess.PIPE,
    )
    command = ["podman", "import", "--change", 'CMD ["/lib/systemd/systemd"]', "-", tag]
    done = subprocess.run(
        [*machine.privilege, *command],
        stdin=archive.stdout,
        capture_output=True,
        text=True,
        check=False,
    )
    if archive.stdout:
        archive.stdout.close()
    if archive.wait() != 0 or done.returncode != 0:
        machine.run("podman", "image", "rm", "--force", tag, check=False)
        raise TestbedError(f"podman could not import the image {tag}:\n{done.stderr.strip()}")


# --- how this machine can run systemd in a container ---------------------------------------------


def runtime_options(machine: Machine) -> list[str]:
    """Return podman's global options: runc where cgroup v1 rules (crun refuses hybrid mode)."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return []
    if shutil.which("runc") is None:
        raise TestbedError(
            "this machine mounts cgroup v1, where podman's usual runtime crun cannot run systemd; "
            + missing_program("runc")
        )
    runtime = machine.run("podman", "info", "--format", "{{.Host.OCIRuntime.Name}}").stdout.strip()
    return [] if runtime == "runc" else ["--runtime", "runc"]


def limit_options(machine: Machine) -> list[str]:
    """Return the ulimits to ask for where podman's own defaults would be denied.

    Raising a hard limit needs CAP_SYS_RESOURCE in the machine's own user namespace, which a
    capability mask does not tell: so try it, in a process with podman's privilege.
    """
    probe = (
        "import resource as r\n"
        f"for kind, want in ((r.RLIMIT_NOFILE, {PODMAN_NOFILE}), (r.RLIMIT_NPROC, {PODMAN_NPROC})):"
        "\n    hard = r.getrlimit(kind)[1]\n"
        "    try:\n        r.setrlimit(kind, (want, want)); print('granted')\n"
        "    except (OSError, ValueError):\n        print(hard)\n"
    )
    answers = machine.run("python3", "-c", probe).stdout.split()
    if answers == ["granted", "granted"]:
        return []
    # podman lowers its own process limit to pid_max first
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    open_files = PODMAN_NOFILE if answers[0] == "granted" else int(answers[0])
    processes = pid_max if answers[1] == "granted" else min(int(answers[1]), pid_max)
    return [f"--ulimit=nofile={open_files}:{open_files}", f"--ulimit=nproc={processes}:{processes}"]


def security_options() -> list[str]:
    """Return what systemd needs to sandbox its units.

    Without CAP_SYS_ADMIN, or under AppArmor's container profile (it denies mounts), systemd
    silently runs units unsandboxed, and a hardening test proves nothing.
    """
    # SYS_PTRACE: root reads /proc of others, else PrivateUsers= with ProtectProc= fails (217/USER)
    options = ["--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--cap-add=SYS_PTRACE"]
    apparmor = Path("/sys/module/apparmor/parameters/enabled")
    if apparmor.exists() and apparmor.read_text().strip() == "Y":
        options.append("--security-opt=apparmor=unconfined")
    return options


# --- containers ----------------------------------------------------------------------------------


def create_arguments(machine: Machine, settings: HostSettings, image: str) -> list[str]:
    """Return the whole podman command that makes the container, less the settings label."""
    mounts = []
    if settings.cache:
        mounts.append(f"type=bind,src={settings.cache},dst={HOST_CACHE}")
    if has_own_authorities():
        # The folder of added authorities only: a read-only /etc/ssl/certs would break
        # update-ca-certificates, and with it many installations, inside.
        mounts.append(f"type=bind,src={CA_FOLDER},dst={CA_FOLDER},ro=true")
    ports = [(settings.ssh_port, 22), *settings.published]
    return [
        "podman",
        *runtime_options(machine),
        "run",
        "--detach",
        f"--name={settings.name}",
        f"--hostname={settings.name}",
        f"--label={KEY_LABEL}={settings.key}",
        "--systemd=always",
        "--stop-timeout=60",
        "--pids-limit=-1",
        *security_options(),
        *limit_options(machine),
        *[f"--publish=127.0.0.1:{outer}:{inner}" for outer, inner in ports],
        *[f"--mount={mount}" for mount in mounts],
        image,
        *("sh", "-c", BOOT),
    ]


def has_own_authorities() -> bool:
    """Tell whether somebody added certificate authorities to this machine (a company's CA)."""
    return CA_FOLDER.is_dir() and any(CA_FOLDER.glob("**/*.crt"))


def inspect(machine: Machine, name: str, template: str) -> str | None:
    """Return podman's answer about the container, or None when it does not exist."""
    done = machine.run("podman", "container", "inspect", "--format", template, name, check=False)
    if done.returncode != 0:
        if "no such container" in done.stderr.lower():
            return None
        raise TestbedError(f"podman could not inspect {name}:\n{done.stderr.strip()}")
    return done.stdout.strip()


def label_template(label: str) -> str:
    """Return the template that makes podman print one of a container's labels."""
    return f'{{{{index .Config.Labels "{label}"}}}}'


def is_running(machine: Machine, name: str) -> bool:
    """Tell whether the container runs.

    Raises:
        TestbedError: there is no such container.
    """
    state = inspect(machine, name, "{{.State.Status}}")
    if state is None:
        raise TestbedError(f"there is no host {name}; make it with `up {name} …`")
    return state == "running"


def ensure_key(key: Path) -> str:
    """Make the ed25519 key pair unless it is there; return its public half."""
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kloros-llm", "-f", str(key)],
            check=True,
        )
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", str(key)], capture_output=True, text=True, check=False
    )
    if derived.returncode != 0:
        raise TestbedError(
            f"{key} is no usable key without passphrase: {derived.stderr.strip()}; "
            "delete it (a new one is made), or name another with --key"
        )
    return derived.stdout.strip()


def up(machine: Machine, settings: HostSettings) -> None:
    """Bring the host up with these settings; leave it alone when it already is.

    Raises:
        TestbedError: it could not be made, or was not ready in time.
    """
    public_key = ensure_key(settings.key)
    if settings.cache:
        settings.cache.mkdir(parents=True, exist_ok=True)
    image = ensure_image(machine, settings.release)
    command = create_arguments(machine, settings, image)
    digest = hashlib.sha256(json.dumps([command, public_key]).encode()).hexdigest()
    template = f"{{{{.State.Status}}}} {label_template(SETTINGS_LABEL)}"
    found = inspect(machine, settings.name, template)
    status, _, found_digest = (found or "absent ").partition(" ")
    if status != "absent" and found_digest != digest:
        say(f"{settings.name} has other settings: making it anew")
        down(machine, settings.name)
        status = "absent"
    if status == "running" and ssh_answers(settings.key, settings.ssh_port):
        say(f"{settings.name} is up")
        return
    if status == "absent":
        label_option = f"--label={SETTINGS_LABEL}={digest}"
        at = command.index("run") + 1
        made = machine.run(*command[:at], label_option, *command[at:], check=False)
        if made.returncode != 0:
            # podman leaves a half-made container behind, for example when a port is taken
            machine.run("podman", "rm", "--force", settings.name, check=False)
            raise TestbedError(f"podman could not start {settings.name}:\n{made.stderr.strip()}")
    elif status != "running":
        machine.run("podman", "start", settings.name)
    # Not before the boot is over: tmpfiles empties /tmp under whatever runs too early.
    wait_until_booted(machine, settings.name)
    install_key(machine, settings.name, public_key)
    trust_host_key(machine, settings)
    wait_until_reachable(machine, settings.name, settings.key, settings.ssh_port)


def install_key(machine: Machine, name: str, public_key: str) -> None:
    """Let the key in as root and as admin, and take over the machine's added authorities."""
    script = """
set -eu
cat > /root/.ssh/authorized_keys
install -o admin -g admin -m 0600 /root/.ssh/authorized_keys /home/admin/.ssh/authorized_keys
chmod 0600 /root/.ssh/authorized_keys
update-ca-certificates > /dev/null
"""
    machine.run("podman", "exec", "-i", name, "sh", "-c", script, stdin=f"{public_key}\n")


def known_hosts_file(key: Path) -> Path:
    """Return where the hosts' own keys are kept: beside the key that opens them."""
    return key.with_name(f"{key.name}.known_hosts")


def trust_host_key(machine: Machine, settings: HostSettings) -> None:
    """Record the host's key, read through podman, so that SSH can check it strictly."""
    public = machine.run(
        "podman", "exec", settings.name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"
    ).stdout.split()
    address = f"[127.0.0.1]:{settings.ssh_port}"
    path = known_hosts_file(settings.key)
    with locked(path.with_name(f"{path.name}.lock")):
        known = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in known if not line.startswith(f"{address} ")]
        path.write_text("\n".join([*kept, f"{address} {public[0]} {public[1]}", ""]))


def ssh_answers(key: Path, port: int) -> bool:
    """Tell whether a login as root works on the published port."""
    done = subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(port), "-i", str(key)),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=5"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", f'UserKnownHostsFile="{known_hosts_file(key)}"'),
            *("root@127.0.0.1", "true"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def system_state(machine: Machine, name: str) -> str:
    """Return systemd's own word for its state, for example `running`."""
    done = machine.run("podman", "exec", name, "systemctl", "is-system-running", check=False)
    return done.stdout.strip()


def wait_until_booted(machine: Machine, name: str) -> None:
    """Wait until systemd has booted, and say which units failed.

    Raises:
        TestbedError: not booted in time; carries the journal's last lines.
    """
    if not wait_for(lambda: system_state(machine, name) in READY_STATES):
        raise TestbedError(
            f"{name} has not booted after {BOOT_TIMEOUT_S:.0f} s "
            f"(systemd says {system_state(machine, name)!r}).\n{last_words(machine, name)}"
        )
    if system_state(machine, name) == "degraded":
        failed = machine.run(
            "podman", "exec", name, "systemctl", "--failed", "--no-legend", "--plain"
        ).stdout
        say(f"{name} is degraded; failed units:\n{failed.rstrip()}")


def wait_until_reachable(machine: Machine, name: str, key: Path, ssh_port: int) -> None:
    """Wait until SSH lets the key in.

    Raises:
        TestbedError: it does not in time; carries the journal's last lines.
    """
    if not wait_for(lambda: ssh_answers(key, ssh_port)):
        raise TestbedError(
            f"SSH on 127.0.0.1:{ssh_port} does not let {key} in after {BOOT_TIMEOUT_S:.0f} s.\n"
            f"{last_words(machine, name)}"
        )
    say(f"{name} is up")


def wait_for(condition: Callable[[], bool]) -> bool:
    """Ask until the condition holds; False when BOOT_TIMEOUT_S have passed."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def last_words(machine: Machine, name: str) -> str:
    """Return the end of the container's journal, or of its console when there is none."""
    journal = machine.run(
        "podman", "exec", name, "journalctl", "--no-pager", "--lines=40", check=False
    )
    if journal.returncode == 0 and journal.stdout.strip():
        return journal.stdout
    console = machine.run("podman", "logs", "--tail=40", name, check=False)
    return console.stdout + console.stderr + journal.stderr


def down(machine: Machine, name: str) -> None:
    """Remove the host and what it wrote, except its bind-mounted cache."""
    if inspect(machine, name, "{{.Id}}") is None:
        say(f"{name} is absent")
        return
    # A throw-away host needs no orderly shutdown.
    machine.run("podman", "stop", "--time=0", name, check=False)
    machine.run("podman", "rm", "--force", "--volumes", name)
    say(f"{name} is removed")


def reboot(machine: Machine, name: str) -> None:
    """Restart the host in good order, as a reboot does, and wait until it is ready.

    Raises:
        TestbedError: no such host, or not ready in time.
    """
    if not is_running(machine, name):
        raise TestbedError(f"{name} does not run; start it with `up {name} …`")
    machine.run("podman", "restart", name)
    template = '{{(index (index .HostConfig.PortBindings "22/tcp") 0).HostPort}}'
    ssh_port = int(inspect(machine, name, template) or 0)
    key = inspect(machine, name, label_template(KEY_LABEL)) or ""
    wait_until_booted(machine, name)
    wait_until_reachable(machine, name, Path(key), ssh_port)


def network_field(machine: Machine, name: str, field: str) -> str:
    """Return one of the running host's network facts, for example `IPAddress`.

    Raises:
        TestbedError: no such host, or it does not run.
    """
    running = is_running(machine, name)
    value = inspect(machine, name, f"{{{{.NetworkSettings.{field}}}}}")
    if not running or not value:
        raise TestbedError(f"{name} has no network now (does it run?); `up {name} …` starts it")
    return value


def execute(machine: Machine, name: str, command: Sequence[str]) -> int:
    """Run a command in the host with this process's input and output; return its status."""
    if not is_running(machine, name):
        raise TestbedError(f"{name} does not run; start it with `up {name} …`")
    argv = [*machine.privilege, "podman", "exec", "-i", name, *command]
    return subprocess.run(argv, check=False).returncode


def read_file(machine: Machine, name: str, path: str) -> str:
    """Return a text file of the running host.

    Raises:
        TestbedError: no such host, or no such file.
    """
    return machine.run("podman", "exec", name, "cat", path).stdout


# --- command line --------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    print(line, flush=True)


def tail(text: str, lines: int = 15) -> str:
    """Return the last lines of `text`."""
    return "\n".join(text.strip().splitlines()[-lines:])


def port_number(text: str) -> int:
    """Parse a TCP port."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; needed: 1 to 65535")
    return int(text)


def port_pair(text: str) -> tuple[int, int]:
    """Parse HOSTPORT:PORT."""
    outer, separator, inner = text.partition(":")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOSTPORT:PORT, for example 8080:8080")
    return port_number(outer), port_number(inner)


def host_name(text: str) -> str:
    """Parse a name that is good for a container and for a host."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host name; needed: a-z, 0-9 and -")
    return text


def absolute_path(text: str) -> Path:
    """Parse a path; relative ones start at the current folder."""
    return Path(text).expanduser().absolute()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    root = argparse.ArgumentParser(
        description="Throw-away systemd hosts in containers, reached over SSH.",
        epilog="KLOROS_LLM_CACHE names the cache folder, KLOROS_LLM_DEBIAN_MIRROR a mirror.",
    )
    commands = root.add_subparsers(dest="command", required=True)

    def command(name: str, help_text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text)
        added.add_argument("name", type=host_name)
        return added

    bring_up = command("up", "make or start a host, and wait until SSH answers")
    bring_up.add_argument("--release", choices=RELEASES, default=RELEASES[0])
    bring_up.add_argument("--ssh-port", type=port_number, required=True)
    bring_up.add_argument(
        "--publish", type=port_pair, action="append", default=[], metavar="HOSTPORT:PORT"
    )
    bring_up.add_argument("--cache", type=absolute_path, help=f"mounted at {HOST_CACHE}")
    bring_up.add_argument("--key", type=absolute_path, required=True, help="made if missing")
    command("reboot", "restart a host, and wait until SSH answers")
    command("down", "remove a host")
    command("address", "print the host's IP address")
    command("gateway", "print the address under which the host reaches this machine")
    execution = command("exec", "run a command in the host: exec NAME -- CMD…")
    execution.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD…")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = parser().parse_args(arguments)
    try:
        machine = this_machine()
        if given.command == "up":
            published = tuple(sorted(given.publish))
            up(
                machine,
                HostSettings(
                    given.name, given.release, given.ssh_port, published, given.cache, given.key
                ),
            )
        elif given.command == "down":
            down(machine, given.name)
        elif given.command == "reboot":
            reboot(machine, given.name)
        elif given.command == "exec":
            argv = given.argv[1:] if given.argv[:1] == ["--"] else given.argv
            return execute(machine, given.name, argv or ["bash", "-l"])
        else:
            field = {"address": "IPAddress", "gateway": "Gateway"}[given.command]
            say(network_field(machine, given.name, field))
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
