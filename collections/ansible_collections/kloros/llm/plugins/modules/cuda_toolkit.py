#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit
short_description: Complete a private CUDA toolkit, so that one can build with it
version_added: 0.1.0
description:
  - A CUDA toolkit that was unpacked from wheels or archives lacks some of what an installed one
    has. This module adds it inside the toolkit's own folder, C(lib64), the links C(libX.so) to
    C(libX.so.N), execute permission of programs, and a stand-in for the driver's library to link
    with (C(lib/stubs/libcuda.so)).
  - Where the toolkit is older than the system's C library, its C(crt/math_functions.h) conflicts
    with C(math.h); the few declarations concerned get the exception specification that they lack.
  - What is there stays as it is. Meant for private copies only, never for an installed toolkit.
options:
  path:
    description: The toolkit, the folder above C(bin/nvcc).
    type: path
    required: true
  compiler:
    description: The C compiler that makes the stand-in for the driver's library.
    type: str
    default: gcc
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
- name: Complete a toolkit that pip has unpacked
  kloros.llm.cuda_toolkit:
    path: /var/cache/kloros-llm/cuda/13.0-pypi
  register: toolkit

- name: Say which compilers it takes
  ansible.builtin.debug:
    msg: "CUDA {{ toolkit.version }} takes g++ up to {{ toolkit.gcc_limit }}"
"""

RETURN = r"""
version:
  description: The toolkit's version, MAJOR.MINOR.
  returned: success
  type: str
  sample: "13.0"
gcc_limit:
  description: The newest g++ (major version) that its headers accept; V(null) if none is named.
  returned: success
  type: int
  sample: 15
added:
  description: What was added or put right; in check mode, what would be.
  returned: success
  type: list
  elements: str
  sample: [lib64 -> lib, lib/libcublas.so -> libcublas.so.13]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils import cuda_host, cuda_toolkit_files


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "compiler": {"type": "str", "default": "gcc"},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["path"])
    try:
        found = cuda_toolkit_files.lacks(root, cuda_toolkit_files.host_glibc())
        if not module.check_mode:
            cuda_toolkit_files.complete(root, found, module.params["compiler"])
        version = cuda_toolkit_files.version(root)
    except cuda_toolkit_files.ToolkitError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.strerror} ({error.filename}); check owner, mode and space of {root}"
        )
    added = [lack.told for lack in found]
    module.exit_json(
        changed=bool(added),
        version=version,
        gcc_limit=cuda_host.gcc_limit(root),
        added=added,
        diff={
            "before": "",
            "after": "".join(f"{line}\n" for line in added),
            "before_header": str(root),
            "after_header": str(root),
        },
    )


if __name__ == "__main__":
    main()
