#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read what a host has, before anything is changed on it
version_added: 0.1.0
description:
  - Reads the operating system, CPUs, memory, free disk space, accounts, installed packages, TCP
    ports in use and the llama.cpp instances that this project has set up.
  - Needs nothing but Python on the host and changes nothing.
options:
  paths:
    description: Paths whose free disk space is asked for; they need not exist.
    type: list
    elements: path
    default: []
  users:
    description: Accounts to look up.
    type: list
    elements: str
    default: []
  packages:
    description: Debian packages of which the missing ones are returned.
    type: list
    elements: str
    default: []
  programs:
    description: Programs, by name or path, whose C(--version) output is returned.
    type: list
    elements: str
    default: []
  releases_dir:
    description: A folder of releases, of which those that processes run from are returned.
    type: path
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    support: full
    platforms: linux
author:
  - The kloros-llm contributors
"""

EXAMPLES = r"""
- name: Look at the host
  kloros.llm.host_info:
    paths: [/opt/llama.cpp, /var/lib/kloros-llm/models]
    users: [kloros]
    packages: [cmake, g++]
  register: host

- name: Say who holds port 8080
  ansible.builtin.debug:
    msg: "{{ host.listeners | selectattr('port', '==', 8080) }}"
"""

RETURN = r"""
machine:
  description: Operating system, architecture, Python, systemd, CPUs and memory.
  returned: always
  type: dict
  sample:
    os: {id: debian, version: "13", name: Debian GNU/Linux 13 (trixie)}
    architecture: x86_64
    python: 3.13.5
    systemd: 257
    cpus: 8
    cpu_digest: 1ddebed04610
    memory_mib: 32041
disks:
  description: For each of O(paths), whether it exists, its mount point and free space in MiB.
  returned: always
  type: dict
  sample: {/opt/llama.cpp: {exists: false, mount: /, free_mib: 48000}}
users:
  description: For each of O(users), its account, or null where there is none.
  returned: always
  type: dict
  sample: {kloros: {uid: 1001, gid: 1001, group: kloros, home: /home/kloros}}
packages_missing:
  description: Those of O(packages) that are not installed.
  returned: always
  type: list
  elements: str
  sample: [cmake]
programs:
  description: For each of O(programs), what C(--version) prints, or null where it is not there.
  returned: always
  type: dict
  sample: {cmake: cmake version 3.31.6}
listeners:
  description: TCP ports that are listened on; C(pid), C(process) and C(unit) are null where hidden.
  returned: always
  type: list
  elements: dict
  sample: [{port: 8080, address: 127.0.0.1, pid: 812, process: python3, unit: vosk.service}]
units:
  description: Names of the instance units that this project has written.
  returned: always
  type: list
  elements: str
  sample: [kloros-llama-live.service]
unit_processes:
  description: The main process of each of RV(units) that runs.
  returned: always
  type: dict
  sample: {kloros-llama-live.service: 4711}
unit_children:
  description: The processes that those of RV(unit_processes) have started and that still run.
  returned: always
  type: list
  elements: int
  sample: [4712]
foreign_units:
  description: Names of units that are named as this project's are, and were written by others.
  returned: always
  type: list
  elements: str
  sample: []
gateway_units:
  description: Names of the units that this project has written for its gateway.
  returned: always
  type: list
  elements: str
  sample: [kloros-llm-gateway.service, kloros-llm-gateway-11434.socket]
releases_in_use:
  description: Names of the folders in O(releases_dir) that running processes execute from.
  returned: when O(releases_dir) is given
  type: list
  elements: str
  sample: [v0.4.0-cpu-6b7f5c053c]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils import host_facts
from ansible_collections.kloros.llm.plugins.module_utils.systemd import (
    gateway_units,
    instance_units,
    unit_state,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "programs": {"type": "list", "elements": "str", "default": []},
            "releases_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    units, foreign_units = instance_units()
    processes = {unit: unit_state(unit)["main_pid"] for unit in units}
    releases_dir = module.params["releases_dir"]
    in_use = {"releases_in_use": host_facts.folders_in_use(releases_dir)} if releases_dir else {}
    module.exit_json(
        changed=False,
        machine=host_facts.machine(),
        disks={path: host_facts.disk(path) for path in module.params["paths"]},
        users={name: host_facts.user(name) for name in module.params["users"]},
        packages_missing=host_facts.missing_packages(module.params["packages"]),
        programs=host_facts.program_versions(module.params["programs"]),
        listeners=host_facts.listeners(),
        units=units,
        unit_processes={unit: pid for unit, pid in processes.items() if pid},
        unit_children=host_facts.children_of(pid for pid in processes.values() if pid),
        foreign_units=foreign_units,
        gateway_units=gateway_units(),
        **in_use,
    )


if __name__ == "__main__":
    main()
