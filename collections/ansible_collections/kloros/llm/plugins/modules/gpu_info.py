#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Read which NVIDIA GPUs a host has, or why none can be used
version_added: 0.1.0
description:
  - Reads GPUs, their memory and processes, and the driver's versions from C(nvidia-smi).
  - Where that gives no GPUs, says why and what to do, with what the kernel tells without a driver.
  - Does not fail for a host without a usable GPU, see RV(status).
  - Needs nothing but Python and the driver on the host and changes nothing.
options: {}
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
notes:
  - C(nvidia-smi) is looked for on E(PATH) and then where drivers put it.
  - Without persistence mode the driver sets every GPU up anew for this, which takes seconds a GPU.
author:
  - The kloros-llm contributors
"""

EXAMPLES = r"""
- name: Look at the GPUs
  kloros.llm.gpu_info:
  register: host_gpus

- name: Stop where no GPU can be used
  ansible.builtin.assert:
    that: host_gpus.status == 'ok'
    fail_msg: "{{ host_gpus.detail }}. {{ host_gpus.cure }}"
"""

RETURN = r"""
status:
  description:
    - V(ok) where there are GPUs to use.
    - V(no_tool) without C(nvidia-smi), V(driver_mismatch) where the loaded module is of another
      version than the driver's libraries, V(driver_not_loaded) where C(nvidia-smi) does not reach
      the driver, V(no_gpus) where the driver finds none.
    - V(failed) for anything else, such as a GPU that was lost, missing permissions or no answer.
  returned: always
  type: str
  sample: ok
detail:
  description: What was found, in one line.
  returned: always
  type: str
  sample: "1 GPU on driver 550.163.01 (CUDA 12.4): NVIDIA GeForce RTX 3060"
cure:
  description: What to do about it; empty where RV(status) is V(ok).
  returned: always
  type: str
  sample: ""
driver:
  description:
    - The driver's version and the newest CUDA version that it serves, null unless RV(status) is
      V(ok).
    - C(cuda_version) is null with drivers before 410.
  returned: always
  type: dict
  sample: {version: 550.163.01, cuda_version: "12.4"}
gpus:
  description:
    - The GPUs in the order of the PCI bus, empty unless RV(status) is V(ok).
    - C(compute_capability) is null where the driver is too old to tell, C(memory_total_mib) and
      C(memory_free_mib) where the GPU shares the host's memory. Of a GPU with C(mig), programs see
      partitions only.
    - C(processes) are those that hold memory, compute and graphics alike; C(name) and C(used_mib)
      are null where hidden. In a container and with old drivers the list can be empty all the same.
  returned: always
  type: list
  elements: dict
  sample:
    - index: 0
      uuid: GPU-3a9d41c7-58be-0f26-9c14-7be20d6f81a3
      name: NVIDIA GeForce RTX 3060
      compute_capability: "8.6"
      memory_total_mib: 12288
      memory_free_mib: 11867
      bus_id: "00000000:06:00.0"
      mig: false
      processes: [{pid: 1604, name: /usr/lib/xorg/Xorg, used_mib: 94}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils.nvidia_smi import gpu_info


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **gpu_info())


if __name__ == "__main__":
    main()
