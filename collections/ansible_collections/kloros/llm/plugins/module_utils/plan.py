"""The plan: what is wanted, measured against what is there, settled before the first change.

Every role after preflight only carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from . import release
from .cuda_code import uncovered
from .cuda_plan import plan_cuda
from .findings import Finding, error, warning
from .gateway_plan import plan_gateway
from .plan_instances import Settled
from .plan_routers import preset_path, settle_all
from .router_wishes import check_routers, split_routers
from .systemd import CONFIG_DIR, UNIT_DIR, UNIT_PREFIX
from .wishes import SETTING_KEYS, check_instances, check_models, check_settings

SCHEMA: Final = 1


# Known to work: Debian 12 and 13 and Ubuntu 24.04 have the systemd, CMake and compiler needed.
SUPPORTED_SYSTEMS: Final = {"debian": ("12", "13"), "ubuntu": ("24.04", "26.04")}
SUPPORTED_ARCHITECTURES: Final = ("x86_64", "aarch64")
OLDEST_PYTHON: Final = (3, 11)
OLDEST_SYSTEMD: Final = 252  # Debian 12's

BUILD_PACKAGES: Final = ("ccache", "cmake", "g++", "gcc", "libc6-dev", "make", "ninja-build")
RUN_PACKAGES: Final = ("libgomp1",)

_BUILD_DISK_MIB: Final = {"cpu": 2048, "cuda": 12288}
_RELEASE_DISK_MIB: Final = {"cpu": 256, "cuda": 3072}
# What a toolkit takes, by where it comes from; `system` is there already.
_TOOLKIT_DISK_MIB: Final = {"distribution": 6144, "pypi": 4096, "redist": 4096}
_BACKEND_OF_PACKAGE: Final = re.compile(r"-(cpu|cuda)-[0-9a-f]{10}-")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - to compare, not to bind


def instance_files(unit: str) -> list[str]:
    """Everything on the host that belongs to the instance of a unit alone.

    The unit comes last: as long as it is there, a run that was cut short is taken up again.
    """
    service = unit.removesuffix(".service")
    name = service.removeprefix(UNIT_PREFIX)
    return [
        f"{CONFIG_DIR}/instances/{name}.env",
        preset_path(name),
        f"{CONFIG_DIR}/credentials/{name}.key",
        f"/var/lib/{service}",
        f"{UNIT_DIR}/{unit}",
    ]


def packages(llama_cpp: Mapping[str, Any]) -> list[str]:
    """The distribution's packages that a host needs for its source of llama.cpp."""
    if llama_cpp["source"] == "package":
        return list(RUN_PACKAGES)
    git = ["git", "ca-certificates"] if llama_cpp["source"] == "git" else []
    return sorted([*BUILD_PACKAGES, *RUN_PACKAGES, *git])


def make_plan(wishes: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the wishes against the host.

    `wishes` has `user` (a name), `any_system` (bool), and `llama_cpp`, `gguf_models`,
    `llama_instances` and `ollama_gateway` (each a mapping of that role's settings); `host` is what
    module `host_info` returned, with `gpus` from `gpu_info`, `cuda` from `cuda_info`, `headers`
    (`gguf_info`'s results for `models_to_read`) and `dry_runs` (what servers said before, see
    `plan_memory`). Returns `plan` (plain data, without secrets) and `findings`; a plan with errors
    among its findings must not be carried out.
    """
    models_wish, instances_wish = wishes["gguf_models"], wishes["llama_instances"]
    models, model_findings = check_models(models_wish["models"])
    raw_models = models_wish["models"]
    names = list(raw_models) if isinstance(raw_models, Mapping) else []
    dedicated, raw_routers = split_routers(instances_wish["instances"])
    instances, instance_findings = check_instances(dedicated, names)
    routers, router_findings = check_routers(raw_routers, names, instances)
    settings_findings = check_settings(_settings(wishes))
    headers = {result["item"]["file"]: result for result in host["headers"]}
    settled = Settled({}, [], [], {}, [])
    routed: list[dict[str, Any]] = []
    if not settings_findings:
        settled, routed = settle_all(wishes, host, instances | routers, models, headers)
    planned = settled.instances
    on_gpus = [name for name, candidate in settled.chosen.items() if candidate.wish["gpus"]]
    llama_cpp, llama_cpp_findings = _llama_cpp(
        wishes["llama_cpp"], host, on_gpus, for_gpus=bool(settled.for_gpus)
    )
    if llama_cpp["cuda"]:
        driver = host["gpus"]["driver"]
        llama_cpp_findings += _code_findings(planned, llama_cpp["cuda"], driver)
    gateway, gateway_changes, gateway_findings = plan_gateway(
        wishes, host, models, planned, settled.memory
    )
    findings = [
        *settings_findings,
        *model_findings,
        *_header_findings(models, headers),
        *instance_findings,
        *router_findings,
        *settled.findings,
        *llama_cpp_findings,
        *_machine_findings(host["machine"], wishes["any_system"]),
        *_user_findings(wishes["user"], wishes["gguf_models"]["owner"], host["users"]),
        *_unit_findings(planned, host["foreign_units"]),
        *_port_findings(planned, host["listeners"]),
        *_disk_findings(llama_cpp, host["disks"]),
        *gateway_findings,
    ]
    retired = sorted(set(host["units"]) - {instance["unit"] for instance in planned})
    plan = {
        "schema": SCHEMA,
        "user": wishes["user"],
        "machine": host["machine"],
        "driver": host["gpus"]["driver"],
        "llama_cpp": llama_cpp,
        "models_dir": models_wish["dir"],
        "models": [
            {"name": name, "path": f"{models_wish['dir']}/{model['file']}", **model}
            for name, model in models.items()
        ],
        "models_hf_endpoint": models_wish["hf_endpoint"],
        "instances": planned,
        # The models of router instances, as if each had an instance of its own.
        "routed": routed,
        "memory": settled.memory,
        "gateway": gateway,
        # What this run alone has to do; the plan on the host leaves it out.
        "changes": {
            "account": host["users"][wishes["user"]] is None,
            "packages": [
                package
                for package in host["packages_missing"]
                if package not in gateway_changes["gateway_packages"]
            ],
            "units_to_retire": retired,
            "files_to_remove": [path for unit in retired for path in instance_files(unit)],
            "units_to_move": sorted(
                {
                    *_units_off_ports(planned, host["listeners"]),
                    *_units_off_gpus(planned, settled.memory, host["before"]),
                }
            ),
            **gateway_changes,
        },
    }
    return {"plan": plan, "findings": findings}


def lasting(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plan is written to the host: what is to be, not the way there.

    The next run finds some of the way gone already (a toolkit that was installed, packages), and
    must not take that for a change.
    """
    llama_cpp = dict(plan["llama_cpp"])
    if cuda := llama_cpp["cuda"]:
        llama_cpp["cuda"] = {
            "version": cuda["version"],
            "architectures": cuda["architectures"],
            "host_compiler": cuda["host_compiler"]["version"],
        }
    memory = plan["memory"]
    return {name: value for name, value in plan.items() if name != "changes"} | {
        "llama_cpp": llama_cpp,
        "memory": {
            "instances": {
                name: {"devices": instance["devices"]}
                for name, instance in memory["instances"].items()
            },
            "dry_runs": memory["dry_runs"],
        },
    }


def models_to_read(wishes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files whose headers the plan needs, each with `file`, `path` on the host,
    `source` and `sha256`.

    Of a split model the first file stands for all.
    """
    models, _ = check_models(wishes["gguf_models"]["models"])
    folder = wishes["gguf_models"]["dir"]
    read = []
    for model in models.values():
        for position, file in enumerate(model["files"]):
            if position == 0 or file["role"] != "model":
                path = f"{folder}/{file['file']}"
                read.append(
                    {key: file[key] for key in ("file", "source", "sha256")} | {"path": path}
                )
    return read


_FETCHED_KEYS: Final = ("name", "source", "file", "mmproj", "draft", "lora", "aliases", "path")


def models_to_fetch(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plan's models as module `gguf_model` takes them."""
    return [
        {key: model[key] for key in _FETCHED_KEYS}
        | {"sha256": [model["sha256"]] if isinstance(model["sha256"], str) else model["sha256"]}
        for model in plan["models"]
    ]


def _header_findings(
    models: Mapping[str, Mapping[str, Any]], headers: Mapping[str, Mapping[str, Any]]
) -> list[Finding]:
    """The models whose headers cannot be read, so that nobody knows what they take."""
    return [
        error(
            f"gguf_models.{name}",
            headers[file["file"]]["problem"],
            "a header that can be read, on the host or at the source",
            "correct the source, or see why the host does not reach it",
        )
        for name, model in models.items()
        for file in model["files"]
        if headers.get(file["file"], {}).get("problem")
    ]


def _settings(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The roles' settings among the wishes, by variable."""
    found = {
        "kloros_llm_user": wishes["user"],
        "gpu_lockout": wishes["gpu_lockout"],
        "preflight_gpu_reserve_mib": wishes["gpu_reserve_mib"],
        "preflight_gpu_reserve_default_mib": wishes["gpu_reserve_default_mib"],
        "preflight_memory_reserve_mib": wishes["memory_reserve_mib"],
    }
    for role in ("llama_cpp", "gguf_models", "llama_instances"):
        found |= {f"{role}_{key}": value for key, value in wishes[role].items()}
    return {name: value for name, value in found.items() if name in SETTING_KEYS}


def _llama_cpp(
    wish: Mapping[str, Any], host: Mapping[str, Any], on_gpus: Sequence[str], *, for_gpus: bool
) -> tuple[dict[str, Any], list[Finding]]:
    """The plan of llama.cpp itself.

    `on_gpus` are the instances that are to run on GPUs; `for_gpus` says whether some could, were
    there room. The build follows the latter: what the engine says of the memory, which is after the
    build, must not call for another one.
    """
    found = _source_findings(wish)
    found += [
        error(
            f"llama_cpp_cmake_flags.{name}",
            "it is what this role decides itself",
            "other CMake cache entries",
            f"take it out; {release.MANAGED_FLAGS[name]}",
        )
        for name in wish["cmake_flags"]
        if name in release.MANAGED_FLAGS
    ]
    backend = _backend(wish, for_gpus=for_gpus)
    gpus, machine = host["gpus"], host["machine"]
    if on_gpus and backend == "cpu":
        found.append(
            error(
                "llama_cpp_backend",
                f"it is cpu, and {', '.join(on_gpus)} ask for GPUs",
                "cuda, or instances without gpus",
                "set it to auto, or take gpus out of the instances",
            )
        )
    if on_gpus and gpus["status"] != "ok":
        found += [
            error(
                f"llama_instances.{name}.gpus",
                gpus["detail"],
                "GPUs that the driver shows",
                gpus["cure"],
            )
            for name in on_gpus
        ]
    cuda = None
    if backend == "cuda" and wish["source"] != "package":
        cuda, cuda_findings = plan_cuda(wish, gpus, host["cuda"], machine, runs_here=for_gpus)
        found += cuda_findings
    # Without the driver's library a program that is linked with it does not even start: the
    # backends are then plugins, which the server can do without while it is built and packed.
    no_driver_library = (
        cuda is not None
        and host["cuda"]["driver_library"] is None
        and cuda["source"] != "distribution"
    )
    if cuda is not None and no_driver_library and not wish["portable"]:
        cuda["reasons"].append(
            "The host has no driver library (libcuda.so.1): built with backends as plugins, for "
            "any CPU (as with llama_cpp_portable)."
        )
    memory_per_job_mib = max(1, wish["memory_per_job_mib"])
    jobs = wish["jobs"] or release.jobs(machine["cpus"], machine["memory_mib"], memory_per_job_mib)
    identities = {
        "git": {"url": wish["git_url"], "version": wish["version"]},
        "archive": {"sha256": wish["archive_sha256"], "subdir": wish["archive_subdir"]},
        "package": {"sha256": wish["package_sha256"]},
    }
    planned = {
        **wish,
        "backend": backend,
        "cuda": cuda,
        "portable": wish["portable"] or no_driver_library,
        "jobs": jobs,
        "source_identity": identities[wish["source"]],
    }
    return planned, found


def _code_findings(
    instances: Sequence[Mapping[str, Any]],
    cuda: Mapping[str, Any],
    driver: Mapping[str, Any] | None,
) -> list[Finding]:
    return [
        error(
            f"llama_instances.{instance['name']}.gpus",
            f"a build for {', '.join(cuda['architectures'])} holds no code for "
            f"{', '.join(missing)}",
            "code for every GPU that an instance runs on",
            "add its architecture to llama_cpp_cuda_architectures, or leave that empty",
        )
        for instance in instances
        if (missing := uncovered(cuda["architectures"], instance["gpus"], cuda["version"], driver))
    ]


def _backend(wish: Mapping[str, Any], *, for_gpus: bool) -> str:
    """`cpu` or `cuda`: a package is what it is; `auto` follows the wishes."""
    if wish["source"] == "package":
        packed = _BACKEND_OF_PACKAGE.search(str(wish["package"]))
        return packed.group(1) if packed else "cpu"
    if wish["backend"] != "auto":
        return str(wish["backend"])
    return "cuda" if for_gpus or wish["cuda_architectures"] else "cpu"


def _source_findings(wish: Mapping[str, Any]) -> list[Finding]:
    source = wish["source"]
    needed = () if source == "git" else (source, f"{source}_sha256")
    found = [
        error(
            f"llama_cpp_{key}",
            "it is empty",
            f"a value, since llama_cpp_source is {source}",
            "set it in the inventory",
        )
        for key in needed
        if not wish[key]
    ]
    place = wish[source] if source != "git" else ""
    if place.startswith("/") and not wish[f"{source}_there"]:
        found.append(
            error(
                f"llama_cpp_{source}",
                f"{place} is not on the controller",
                "a file there, or a URL",
                "correct the path",
            )
        )
    return found


def _machine_findings(machine: Mapping[str, Any], any_system: bool) -> list[Finding]:
    found: list[Finding] = []
    system = machine["os"]
    if system["version"] not in SUPPORTED_SYSTEMS.get(system["id"], ()):
        known = "; ".join(f"{name} {', '.join(v)}" for name, v in SUPPORTED_SYSTEMS.items())
        cure = "use a supported release, or preflight_any_system: true at your own risk"
        say = warning if any_system else error
        found.append(say("operating system", system["name"], known, cure))
    if machine["architecture"] not in SUPPORTED_ARCHITECTURES:
        known = ", ".join(SUPPORTED_ARCHITECTURES)
        found.append(error("architecture", machine["architecture"], known, "use another host"))
    python = tuple(int(part) for part in machine["python"].split(".")[:2])
    if python < OLDEST_PYTHON:
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        cure = "set ansible_python_interpreter to a newer one"
        found.append(error("python", machine["python"], f"{oldest} or newer", cure))
    if machine["systemd"] is None or machine["systemd"] < OLDEST_SYSTEMD:
        shown = (
            "it is not the init system" if machine["systemd"] is None else str(machine["systemd"])
        )
        cure = "use a host that systemd has booted"
        found.append(error("systemd", shown, f"{OLDEST_SYSTEMD} or newer", cure))
    return found


def _user_findings(name: str, owner: str, users: Mapping[str, Any]) -> list[Finding]:
    found: list[Finding] = []
    account = users[name]
    if name == "root" or (account is not None and account["uid"] == 0):
        shown = "root would run the servers"
        cure = "name another user"
        found.append(error("kloros_llm_user", shown, "an unprivileged user", cure))
    if users[owner] is None and owner != name:
        shown = f"there is no account {owner!r} on the host"
        cure = "make the account first, or leave the weights to root"
        found.append(error("gguf_models_owner", shown, "an account that exists", cure))
    return found


def _holder(listener: Mapping[str, Any]) -> str:
    if listener["pid"] is None:
        return f"a process that is not visible ({listener['address']})"
    unit = f" of {listener['unit']}" if listener["unit"] else ""
    return f"{listener['process']} (pid {listener['pid']}{unit}, {listener['address']})"


def _clash(one: str, other: str) -> bool:
    """Whether two addresses cannot both be listened on at one port."""
    return one == other or bool({one, other} & _EVERY_ADDRESS) or "localhost" in (one, other)


def _port_findings(
    instances: list[dict[str, Any]], listening: list[Mapping[str, Any]]
) -> list[Finding]:
    found: list[Finding] = []
    for instance in instances:
        key = f"llama_instances.{instance['name']}"
        # Units of our own that hold a port give it up before another takes it (units_to_move).
        foreign = [
            listener
            for listener in listening
            if listener["port"] == instance["port"]
            and _clash(listener["address"], instance["host"])
            and not (listener["unit"] or "").startswith(UNIT_PREFIX)
        ]
        if foreign:
            holders = ", ".join(sorted({_holder(listener) for listener in foreign}))
            shown = f"port {instance['port']} is held by {holders}"
            cure = "give the instance another port, or stop the holder"
            found.append(error(f"{key}.port", shown, "a free port", cure))
        if instance["host"] not in _LOOPBACK and not instance["api_key"]:
            shown = f"{instance['host']} is open to the network without a key"
            cure = "set api_key, or listen on 127.0.0.1, or see that a firewall stands before it"
            found.append(warning(f"{key}.host", shown, "an api_key or loopback", cure))
    return found


def _unit_findings(instances: list[dict[str, Any]], foreign: list[str]) -> list[Finding]:
    return [
        error(
            f"llama_instances.{instance['name']}",
            f"{instance['unit']} is on the host and was not written by kloros-llm",
            "a name that nothing else uses",
            "rename the instance, or remove that unit if nobody needs it",
        )
        for instance in instances
        if instance["unit"] in foreign
    ]


def _disk_findings(
    llama_cpp: Mapping[str, Any], disks: Mapping[str, Mapping[str, Any]]
) -> list[Finding]:
    """Room for the build and the release; a model's own size is checked when it is fetched."""
    backend = llama_cpp["backend"]
    wanted = {llama_cpp["dir"]: _RELEASE_DISK_MIB[backend]}
    if llama_cpp["source"] != "package":
        cache = llama_cpp["cache_dir"]
        wanted[cache] = wanted.get(cache, 0) + _BUILD_DISK_MIB[backend]
    if cuda := llama_cpp["cuda"]:
        place = "/usr" if cuda["source"] == "distribution" else llama_cpp["cache_dir"]
        wanted[place] = wanted.get(place, 0) + _TOOLKIT_DISK_MIB.get(cuda["source"], 0)
    per_mount: dict[str, int] = {}
    for path, mib in wanted.items():
        per_mount[disks[path]["mount"]] = per_mount.get(disks[path]["mount"], 0) + mib
    free = {disk["mount"]: disk["free_mib"] for disk in disks.values()}
    # Where a release is installed already, this run may well have nothing to build.
    say = warning if disks[f"{llama_cpp['dir']}/current"]["exists"] else error
    return [
        say(
            f"disk {mount}",
            f"{free[mount]} MiB free",
            f"{mib} MiB for building and installing llama.cpp ({backend})",
            "free some space, or point llama_cpp_dir and llama_cpp_cache_dir elsewhere",
        )
        for mount, mib in per_mount.items()
        if free[mount] < mib
    ]


def _units_off_ports(
    instances: list[dict[str, Any]], listening: list[Mapping[str, Any]]
) -> set[str]:
    """Units of ours that hold a port which another instance is to have: they stop first."""
    owner = {instance["port"]: instance["unit"] for instance in instances}
    return {
        listener["unit"]
        for listener in listening
        if (listener["unit"] or "").startswith(UNIT_PREFIX)
        and owner.get(listener["port"], listener["unit"]) != listener["unit"]
    }


def _units_off_gpus(
    instances: list[dict[str, Any]], memory: Mapping[str, Any], before: Mapping[str, Any]
) -> set[str]:
    """Units that are to take less of a GPU than now: they stop first, others may need the room.

    Only such as are restarted in any case, since their settings change.
    """
    formerly = {instance["name"]: instance for instance in before.get("instances", ())}
    found = set()
    for instance in instances:
        name = instance["name"]
        old = formerly.get(name)
        if old is None or old.get("environment") == instance["environment"]:
            continue
        taken = _gpu_mib(before.get("memory", {}), name)
        to_take = _gpu_mib(memory, name)
        if any(to_take.get(uuid, 0) < mib for uuid, mib in taken.items()):
            found.add(instance["unit"])
    return found


def _gpu_mib(memory: Mapping[str, Any], name: str) -> dict[str, int]:
    """What an instance takes of each GPU by UUID, as a plan says."""
    taken: dict[str, int] = {}
    for whose, instance in memory.get("instances", {}).items():
        # A router's models are called ROUTER/MODEL.
        if whose.partition("/")[0] == name:
            for row in instance["devices"]:
                if row["uuid"] is not None:
                    taken[row["uuid"]] = taken.get(row["uuid"], 0) + row["total_mib"]
    return taken
