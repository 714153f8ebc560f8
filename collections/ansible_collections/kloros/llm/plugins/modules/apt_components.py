#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_components
short_description: Enable more components of the distribution's own package archive
version_added: 0.1.0
description:
  - Repeats the entries of apt's lists that the distribution's own packages come from, with other
    components. No archive is named that the host does not use already.
  - Where apt does not accept the result, it is removed again, and the task fails with apt's words.
options:
  components:
    description: The components, for example C(non-free).
    type: list
    elements: str
    required: true
  name:
    description: Name of the files in C(/etc/apt/sources.list.d), without an ending.
    type: str
    required: true
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    support: full
    platforms: linux
author:
  - The kloros-llm contributors
"""

EXAMPLES = r"""
- name: Enable Debian's non-free
  kloros.llm.apt_components:
    components: [contrib, non-free]
    name: kloros-llm-cuda
"""

RETURN = r"""
files:
  description: The files that enable the components, path to content.
  returned: success
  type: dict
  sample:
    /etc/apt/sources.list.d/kloros-llm-cuda.list: deb http://deb.debian.org/debian trixie contrib
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils.apt_sources import (
    component_sources,
    own_archives,
)
from ansible_collections.kloros.llm.plugins.module_utils.host_facts import run

APT = Path("/etc/apt")
HEADER = "# Written by Ansible (kloros-llm), module apt_components.\n"
UPDATE_TIMEOUT_S = 600


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "components": {"type": "list", "elements": "str", "required": True},
            "name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    folder = APT / "sources.list.d"
    own = {kind: folder / f"{module.params['name']}.{kind}" for kind in ("list", "sources")}
    lists = [
        APT / "sources.list",
        *sorted(folder.glob("*.list")),
        *sorted(folder.glob("*.sources")),
    ]
    texts = {
        str(path): path.read_text(encoding="utf-8", errors="replace")
        for path in lists
        if path.exists() and path not in own.values()
    }
    archives = own_archives(run(["apt-cache", "policy", "base-files"])[1])
    try:
        found = component_sources(texts, archives, module.params["components"])
    except ValueError as problem:
        module.fail_json(
            msg=f"{problem}. Needed: {' and '.join(module.params['components'])} of the "
            "distribution's archive; enable them by hand, then run again."
        )
    wanted = {str(own[kind]): HEADER + text for kind, text in found.items()}
    there = {str(path): path.read_text(encoding="utf-8") for path in own.values() if path.exists()}
    result = {
        "changed": wanted != there,
        "files": wanted,
        "diff": {"before": "".join(there.values()), "after": "".join(wanted.values())},
    }
    if not result["changed"] or module.check_mode:
        module.exit_json(**result)
    for path in own.values():
        path.unlink(missing_ok=True)
    for name, text in wanted.items():
        Path(name).write_text(text, encoding="utf-8")
        Path(name).chmod(0o644)
    update = ["apt-get", "--option=DPkg::Lock::Timeout=300", "--quiet", "update"]
    status, output = run(update, UPDATE_TIMEOUT_S)
    if status != 0:
        for name in wanted:
            Path(name).unlink()
        module.fail_json(msg=f"apt does not take {', '.join(wanted)}; removed again:\n{output}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
