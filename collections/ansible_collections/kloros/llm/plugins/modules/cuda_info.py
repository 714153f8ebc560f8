#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_info
short_description: Read what a host has to build with CUDA
version_added: 0.1.0
description:
  - Looks for CUDA toolkits, C++ compilers, the toolkit's version in the distribution's enabled
    package lists, and the driver's library.
  - Needs nothing but Python on the host and changes nothing.
options:
  toolkits:
    description: Folders of toolkits (those above C(bin/nvcc)) to look at beside the usual ones.
    type: list
    elements: path
    default: []
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
- name: Look for CUDA toolkits
  kloros.llm.cuda_info:
    toolkits: [/srv/cuda-12.8]
  register: cuda
"""

RETURN = r"""
toolkits:
  description:
    - Toolkits with an nvcc that runs. C(gcc_limit) is the newest g++ that the headers accept,
      C(cublas) whether the library and headers to build with are there.
  returned: always
  type: list
  elements: dict
  sample: [{root: /usr, nvcc: /usr/bin/nvcc, version: "12.4", gcc_limit: 13, cublas: true}]
compilers:
  description: The host's g++, major version to path.
  returned: always
  type: dict
  sample: {"14": /usr/bin/g++}
packaged:
  description: The toolkit's version in the distribution's package lists that are enabled, or null.
  returned: always
  type: str
  sample: "12.4"
driver_library:
  description: The driver's C(libcuda.so.1) and the package that owns it, null where there is none.
  returned: always
  type: dict
  sample: {path: /lib/x86_64-linux-gnu/libcuda.so.1, package: libcuda1}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils import cuda_host


def main() -> None:
    module = AnsibleModule(
        argument_spec={"toolkits": {"type": "list", "elements": "path", "default": []}},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **cuda_host.look(module.params["toolkits"]))


if __name__ == "__main__":
    main()
