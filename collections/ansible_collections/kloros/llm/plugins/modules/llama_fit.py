#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_fit
short_description: Ask the installed llama-server what an instance would take
version_added: 0.1.0
description:
  - Runs the installed C(llama-server) dry, with the very environment of the instance, and returns
    the memory that it says it would take on each device, or that it refuses the model, and why.
    It is stopped before it reads any weights.
  - A model that is not on the host yet is asked about by its header, of which a few MiB are fetched
    from its source.
  - Where C(llama-server) does not measure (O(environment) with C(LLAMA_ARG_SPLIT_MODE=tensor)),
    C(llama-fit-params) beside it is asked, see RV(asked).
  - Changes nothing, so RV(changed) is always V(false), and check mode does the same.
options:
  server:
    description: The C(llama-server) to ask.
    type: path
    required: true
  environment:
    description:
      - The variables of the instance as its unit gives them to the server;
        C(LLAMA_EXTRA_ARGS) among them is split as systemd does.
      - Host, port, keys and files that have no say in memory are left out of the dry run.
    type: dict
    required: true
  models:
    description:
      - Where the headers of files come from that O(environment) names and that need not be on the
        host. A file that is there and whole is read itself, header only, unless the record beside
        it says that it came from elsewhere; one that O(environment) does not name is ignored.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The path as O(environment) names it; of a model in several files, the first.
        type: path
        required: true
      source:
        description: Its source, as module M(kloros.llm.gguf_model) takes it.
        type: str
        required: true
      sha256:
        description: What it must have to be read itself where it came from another source.
        type: str
  predicted:
    description:
      - What the planner expects the model to take, to be compared with RV(rows).
    type: list
    elements: dict
    suboptions:
      device:
        description: The device, as in RV(rows).
        type: str
        required: true
      weights_mib:
        description: Weights in MiB.
        type: float
        required: true
      kv_mib:
        description: KV cache and recurrent state in MiB.
        type: float
        required: true
      compute_mib:
        description: Compute and output buffers in MiB.
        type: float
        required: true
  user:
    description:
      - User that the engine runs as where the module runs as root; by default V(nobody). It must
        be able to read the models that are in place. The engine parses files from the net, so
        V(root) is refused.
    type: str
  timeout_s:
    description: Longest wait for the engine's answer, in seconds.
    type: int
    default: 120
  http_timeout_s:
    description: Seconds to wait for a connection to a source, and for the next bytes on it.
    type: int
    default: 30
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - kloros.llm.hub
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    support: full
    platforms: linux
notes:
  - A dry run takes less than a second for most models. With a CUDA build the process holds a CUDA
    context (a few hundred MiB) on its GPUs for that moment, and a model with recurrent layers its
    state.
  - Needs C(setpriv) of util-linux, which every Debian has.
author:
  - The kloros-llm contributors
"""

EXAMPLES = r"""
- name: Ask what the live instance would take, before its model is downloaded
  kloros.llm.llama_fit:
    server: /opt/llama.cpp/current/bin/llama-server
    user: kloros
    environment:
      LLAMA_ARG_MODEL: /var/lib/kloros-llm/models/qwen2.5-7b-instruct-q3_k_m.gguf
      LLAMA_ARG_CTX_SIZE: "16384"
      LLAMA_ARG_N_PARALLEL: "2"
      LLAMA_ARG_DEVICE: CUDA0
      LLAMA_ARG_N_GPU_LAYERS: all
      CUDA_VISIBLE_DEVICES: GPU-8c1f3a52-7f0e-4c2b-9b4e-2d1f6a7c9e01
    models:
      - path: /var/lib/kloros-llm/models/qwen2.5-7b-instruct-q3_k_m.gguf
        source: hf://Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q3_k_m.gguf
  register: engine

- name: Stop where the engine refuses the model
  ansible.builtin.assert:
    that: engine.accepted
    fail_msg: "{{ engine.last_words | join('; ') }}"
"""

RETURN = r"""
asked:
  description: Who was asked, V(llama-server) or V(llama-fit-params).
  returned: success
  type: str
  sample: llama-server
accepted:
  description: Whether the engine would load the model with these arguments.
  returned: success
  type: bool
  sample: true
rows:
  description:
    - What the model takes on each device in MiB, rounded down; GPUs first, Host last. Empty if it
      is not accepted.
    - The CUDA context of the process (a few hundred MiB a GPU) is in none of them.
  returned: success
  type: list
  elements: dict
  contains:
    device:
      description: V(CUDA0), V(Host), or a kind of buffer that belongs to no single device.
      type: str
      sample: CUDA0
    weights_mib:
      description: Weights.
      type: int
      sample: 3631
    kv_mib:
      description: KV cache and recurrent state.
      type: int
      sample: 896
    compute_mib:
      description: Compute and output buffers.
      type: int
      sample: 304
    total_mib:
      description: Memory of the GPU; V(null) for what is none.
      type: int
      sample: 12288
    free_mib:
      description: Memory of the GPU that was free in the dry run; V(null) for what is none.
      type: int
      sample: 11900
draft_rows:
  description: The same for a draft model or a head for multi-token prediction; else empty.
  returned: success
  type: list
  elements: dict
  sample: []
projector_mib:
  description: The worst case of a projector (mmproj) in MiB, a device.
  returned: success
  type: dict
  sample: {}
difference:
  description:
    - Measured less predicted, in MiB, for each device of either; what one side does not name
      counts as 0. Empty without O(predicted) and if the engine refuses the model.
  returned: success
  type: list
  elements: dict
  sample: [{"device": "CUDA0", "weights_mib": 0, "kv_mib": 0, "compute_mib": 4, "total_mib": 4}]
not_covered:
  description: What the numbers leave out, in sentences.
  returned: success
  type: list
  elements: str
  sample: []
last_words:
  description: What the engine said when it refused the model.
  returned: success
  type: list
  elements: str
  sample: []
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import env_fallback
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header_files import (
    Header,
    fetch_headers,
    local_headers,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import GgufError
from ansible_collections.kloros.llm.plugins.module_utils.http_client import (
    MAX_ATTEMPTS_HEADER,
    HttpClient,
    HttpError,
)
from ansible_collections.kloros.llm.plugins.module_utils.llama_dry_run import (
    DeviceRow,
    DryRunError,
    dry_run,
)
from ansible_collections.kloros.llm.plugins.module_utils.llama_environment import EXTRA_ARGS
from ansible_collections.kloros.llm.plugins.module_utils.model_placement import may_be
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    DEFAULT_HF_ENDPOINT,
    SourceError,
    check_endpoint,
    file_at_hand,
    parse_source,
)
from ansible_collections.kloros.llm.plugins.module_utils.systemd_env import split_args

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "server": {"type": "path", "required": True},
    "environment": {"type": "dict", "required": True},
    "models": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "source": {"type": "str", "required": True},
            "sha256": {"type": "str"},
        },
    },
    "predicted": {
        "type": "list",
        "elements": "dict",
        "options": {
            "device": {"type": "str", "required": True},
            "weights_mib": {"type": "float", "required": True},
            "kv_mib": {"type": "float", "required": True},
            "compute_mib": {"type": "float", "required": True},
        },
    },
    "user": {"type": "str"},
    "hf_endpoint": {"type": "str", "fallback": (env_fallback, ["HF_ENDPOINT"])},
    "hf_token": {"type": "str", "no_log": True},
    "offline_dir": {"type": "path"},
    "offline": {"type": "bool", "default": False},
    "timeout_s": {"type": "int", "default": 120},
    "http_timeout_s": {"type": "int", "default": 30},
}
PARTS = ("weights_mib", "kv_mib", "compute_mib")


def differences(
    rows: Sequence[DeviceRow], predicted: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Measured less predicted in MiB, a device: those of the engine first, in its order."""
    measured = {row.device: row.to_data() for row in rows}
    expected = {str(row["device"]): row for row in predicted}
    found = []
    for device in dict.fromkeys([*measured, *expected]):
        row: dict[str, Any] = {"device": device}
        for part in PARTS:
            mib = measured.get(device, {}).get(part, 0) - expected.get(device, {}).get(part, 0)
            row[part] = round(mib, 1)
        row["total_mib"] = round(sum(row[part] for part in PARTS), 1)
        found.append(row)
    return found


def stand_ins(params: Mapping[str, Any]) -> dict[str, Sequence[Header]]:
    """The headers of each model that the environment names and that is not there, from its source.

    Those of local sources too: the engine runs as a user who may not read them where they lie.

    Raises SourceError, GgufError, HttpError, OSError.
    """
    headers: dict[str, Sequence[Header]] = {}
    endpoint = check_endpoint(params["hf_endpoint"] or DEFAULT_HF_ENDPOINT)
    environment = {str(name): str(value) for name, value in params["environment"].items()}
    named = {*environment.values(), *split_args(environment.get(EXTRA_ARGS, ""))}
    for model in params["models"]:
        path = model["path"]
        if path not in named:
            continue
        source = parse_source(model["source"])
        if may_be(Path(path), source, model["sha256"]) and _has_headers(path):
            continue
        local = file_at_hand(
            source, Path(path).name, params["offline_dir"], offline=params["offline"]
        )
        if local:
            headers[path] = local_headers(local)
        else:
            client = HttpClient(params["http_timeout_s"], max_attempts=MAX_ATTEMPTS_HEADER)
            headers[path] = fetch_headers(source, client, endpoint, params["hf_token"] or None)
    return headers


def _has_headers(path: str) -> bool:
    """Whether the file is a model, with all its shards: what is damaged will be fetched again."""
    try:
        local_headers(path)
    except (GgufError, OSError):
        return False
    return True


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    params = module.params
    environment = {str(name): str(value) for name, value in params["environment"].items()}
    try:
        headers = stand_ins(params)
        answer = dry_run(
            Path(params["server"]),
            environment,
            headers=headers,
            user=params["user"],
            timeout_s=params["timeout_s"],
        )
    except (SourceError, GgufError, HttpError, DryRunError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror or error}")
    compared = answer.accepted and params["predicted"] is not None
    module.exit_json(
        changed=False,
        difference=differences(answer.rows, params["predicted"]) if compared else [],
        **answer.to_data(),
    )


def _leave(number: int, _frame: FrameType | None) -> None:
    """End as after an error: the engine is stopped, the headers are removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
