#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_instance
short_description: Have a llama-server instance run with exactly the planned configuration
version_added: 0.1.0
description:
  - Starts or restarts a systemd unit only if it does not run, or runs with another configuration
    than the planned one. The running process itself is asked, so a run that was cut short between
    writing files and restarting is made good by the next one.
  - Proves afterwards that this very process listens on the port, is healthy, and has the slots
    and the context that were planned.
  - Proves once after each start that an instance on GPUs uses them, by its log (layers, and where
    the weights lie), by the driver (memory that the process holds), and by its token rate.
  - A server that does not come up fails the task with its own last words.
options:
  unit:
    description: Name of the systemd unit. Its file must be in place already, except in check mode.
    type: str
    required: true
  url:
    description: Base URL under which the instance answers on its host.
    type: str
    required: true
  config_digest:
    description:
      - Digest of everything the process depends on. The unit's environment must carry it as
        C(KLOROS_LLM_CONFIG_DIGEST).
    type: str
    required: true
  slots:
    description: Number of slots that the server must have.
    type: int
    required: true
  context_tokens:
    description:
      - Tokens that each slot must have at least. llama-server rounds up, and stops at the
        context that the model was trained with.
    type: int
    required: true
  router:
    description:
      - Whether the server is a router, which loads a model when it is asked for. It is proven to be
        one, and O(slots), O(context_tokens) and O(gpus) say nothing of it.
    type: bool
    default: false
  api_key:
    description: Key that the server asks for, if it does.
    type: str
  gpus:
    description:
      - The GPUs that the instance must use, in its order, each with C(index), C(uuid) and C(name).
        With any, each start is proven to have brought the model there; without, the instance runs
        on the CPU.
    type: list
    elements: dict
    default: []
  gpu_layers:
    description: Layers that must be on the GPUs, V(all) or a number.
    type: str
    default: all
  split_mode:
    description: How the model is split over several GPUs, as llama-server calls it.
    type: str
  main_gpu:
    description: Position among O(gpus) of the one that holds the model where it is not split.
    type: int
  mostly_on_gpus:
    description: Whether a good part of the weights must be on the GPUs if all layers are.
    type: bool
    default: true
  generates:
    description: Whether the server generates text, so that its token rate can be measured.
    type: bool
    default: true
  min_tokens_per_s:
    description: Token rate that an instance on GPUs must reach after a start, 0 for any.
    type: float
    default: 0
  timeout_s:
    description: Longest wait for the unit to be ready, in seconds.
    type: int
    default: 600
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
- name: Run the live instance as planned
  kloros.llm.llama_instance:
    unit: kloros-llama-live.service
    url: http://127.0.0.1:8080
    config_digest: 0f5c0b1d7e
    slots: 2
    context_tokens: 8192
"""

RETURN = r"""
main_pid:
  description: Process id of the server.
  returned: when it runs
  type: int
  sample: 4711
main_pid_before:
  description: Process id of the server before, 0 where none ran.
  returned: always
  type: int
  sample: 0
slots:
  description: Slots that the server says it has.
  returned: when it runs and is no router
  type: int
  sample: 2
context_tokens:
  description: Tokens a slot that the server says it has.
  returned: when it runs and is no router
  type: int
  sample: 8192
layers:
  description: Layers on GPUs, and layers in all, as the server's log says.
  returned: when it runs on GPUs and was proven in this run
  type: list
  elements: int
  sample: [31, 31]
buffers_mib:
  description: Where its weights lie, in MiB a buffer.
  returned: when it runs on GPUs and was proven in this run
  type: dict
  sample: {CUDA0: 92.1, CPU_Mapped: 28.7}
tokens_per_s:
  description: Token rate that was measured; null where the server generates no text.
  returned: when it runs on GPUs and was proven in this run
  type: float
  sample: 48.2
last_words:
  description: The last lines that the server wrote before it failed.
  returned: on failure
  type: list
  elements: str
  sample: ["error loading model: no such file"]
"""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils.gpu_proof import (
    memory_problems,
    offload_problems,
    read_offload,
)
from ansible_collections.kloros.llm.plugins.module_utils.host_facts import listeners, run
from ansible_collections.kloros.llm.plugins.module_utils.llama_environment import cuda_devices
from ansible_collections.kloros.llm.plugins.module_utils.nvidia_smi import gpu_info
from ansible_collections.kloros.llm.plugins.module_utils.systemd import (
    UnitState,
    environment_of,
    last_words,
    unit_state,
)

DIGEST_VARIABLE = "KLOROS_LLM_CONFIG_DIGEST"
PROVEN_DIR = Path("/run/kloros-llm/proven")
OFFLOAD_DIR = Path("/run/kloros-llm/offload")  # as in the template llama-offloaded
EXPECTATIONS = (
    "gpus",
    "gpu_layers",
    "split_mode",
    "main_gpu",
    "mostly_on_gpus",
    "min_tokens_per_s",
)
RATE_REQUEST = {
    "prompt": "The history of the computer begins",
    "n_predict": 48,
    "temperature": 0,
    "ignore_eos": True,
    "cache_prompt": False,
}


def get_json(url: str, api_key: str | None, timeout_s: float = 10, body: Any = None) -> Any:
    """The JSON that a server on this host answers, to a POST if there is a body.

    No proxy is asked.
    """
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - http, from the plan
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as answer:
        return json.load(answer)


def start(module: AnsibleModule, state: UnitState) -> None:
    """Enable and restart the unit; fail with the server's last words if it does not come up."""
    unit: str = module.params["unit"]
    if state["load"] == "not-found" or state["needs_reload"]:
        run(["systemctl", "daemon-reload"])
    if state["file_state"] != "enabled":
        status, output = run(["systemctl", "enable", unit])
        if status != 0:
            module.fail_json(msg=f"{unit} cannot be enabled: {output.strip()}")
    started_at = time.time()
    run(["systemctl", "reset-failed", unit])  # an earlier failure must not use up the start limit
    status, output = run(["systemctl", "restart", unit], timeout_s=module.params["timeout_s"] + 60)
    if status == 0:
        return
    words = last_words(unit, started_at)
    said = "\n".join(f"    {line}" for line in words) or "    (nothing)"
    module.fail_json(
        msg=f"{unit} did not become ready: {output.strip()}\nIts last words:\n{said}\n"
        f"See more with: journalctl -u {unit}",
        last_words=words,
    )


def prove(module: AnsibleModule, main_pid: int) -> dict[str, int]:
    """What the running server says of itself; fails unless it is what was planned."""
    params = module.params
    unit, url = params["unit"], params["url"]
    port = int(url.rsplit(":", 1)[1])
    holders = [item for item in listeners() if item["port"] == port]
    if main_pid not in [item["pid"] for item in holders]:
        shown = ", ".join(f"{item['process']} (pid {item['pid']})" for item in holders)
        module.fail_json(msg=f"{unit} (pid {main_pid}) does not listen on port {port}: {shown}")
    try:
        health = get_json(f"{url}/health", None)
        props = get_json(f"{url}/props", params["api_key"])
        if health.get("status") != "ok":
            raise ValueError(f"/health says {health}")
        if params["router"]:
            if props.get("role") != "router":
                raise ValueError("it is no router: it has a model of its own")
            return {}
        slots = int(props["total_slots"])
        context_tokens = int(props["default_generation_settings"]["n_ctx"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        module.fail_json(msg=f"{unit} runs, but {url} does not answer as llama-server: {problem}")
    if slots != params["slots"]:
        module.fail_json(
            msg=f"{unit} has {slots} slots, planned were {params['slots']}", slots=slots
        )
    if context_tokens < params["context_tokens"]:
        module.warn(
            f"{unit} has {context_tokens} tokens a slot, planned were {params['context_tokens']}: "
            "more than the model was trained with"
        )
    return {"slots": slots, "context_tokens": context_tokens}


def prove_gpus(module: AnsibleModule, state: UnitState) -> dict[str, Any]:
    """Where the model of a started instance lies and how fast it is; fails unless as planned.

    What was proven, of which start, is remembered until the next boot.
    """
    params = module.params
    unit: str = params["unit"]
    expected = {name: params[name] for name in EXPECTATIONS}
    wanted = json.dumps([state["invocation"], expected], sort_keys=True)
    remembered = PROVEN_DIR / unit
    if remembered.exists() and remembered.read_text(encoding="utf-8") == wanted:
        return {}
    devices = cuda_devices(len(params["gpus"]))
    offload = read_offload(log_of_start(module, state["invocation"]))
    problems = offload_problems(
        offload,
        devices,
        params["gpu_layers"],
        split_mode=params["split_mode"],
        main_gpu=params["main_gpu"],
        mostly_on_gpus=params["mostly_on_gpus"],
    )
    rate = token_rate(module) if params["generates"] and not problems else None
    if rate is not None and rate < params["min_tokens_per_s"]:
        problems.append(
            f"It generates {rate:.1f} tokens/s, at least {params['min_tokens_per_s']:g} were "
            "wanted (min_tokens_per_s)."
        )
    # After the request: a server that sleeps when idle gives its memory back.
    shown = gpu_info()
    if shown["status"] == "ok":
        problems += memory_problems(
            offload, devices, params["gpus"], shown["gpus"], state["main_pid"]
        )
    else:
        problems.append(f"The driver shows no GPU: {shown['detail']}")
    result = {**offload, "tokens_per_s": rate}
    if problems:
        remembered.unlink(missing_ok=True)
        said = "\n".join(f"    {problem}" for problem in problems)
        message = f"{unit} answers, but is not proven to use its GPUs:\n{said}"
        module.fail_json(msg=message, **result)
    if rate is not None or not params["generates"]:
        PROVEN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        remembered.write_text(wanted, encoding="utf-8")
    return result


def log_of_start(module: AnsibleModule, invocation: str) -> list[str]:
    """What the start's own check (llama-offloaded) has kept of the log, which may be gone since."""
    unit: str = module.params["unit"]
    try:
        first, *lines = (OFFLOAD_DIR / unit).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        first, lines = "", []
    if first != invocation:
        module.fail_json(
            msg=f"{unit} runs, but nothing was kept of the log of its start ({OFFLOAD_DIR}). "
            f"Restart it: systemctl restart {unit}"
        )
    return lines


def token_rate(module: AnsibleModule) -> float | None:
    """Tokens a second that the server generates for one request; None where it is busy."""
    params = module.params
    try:
        slots = get_json(f"{params['url']}/slots", params["api_key"])
        if any(slot["is_processing"] for slot in slots):
            module.warn(f"{params['unit']} is busy: its token rate was not measured")
            return None
        answer = get_json(f"{params['url']}/completion", params["api_key"], 120, RATE_REQUEST)
        return float(answer["timings"]["predicted_per_second"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        module.fail_json(msg=f"{params['unit']} does not complete a short text: {problem}")
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "config_digest": {"type": "str", "required": True},
            "slots": {"type": "int", "required": True},
            "context_tokens": {"type": "int", "required": True},
            "router": {"type": "bool", "default": False},
            "api_key": {"type": "str", "no_log": True},
            "gpus": {"type": "list", "elements": "dict", "default": []},
            "gpu_layers": {"type": "str", "default": "all"},
            "split_mode": {"type": "str"},
            "main_gpu": {"type": "int"},
            "mostly_on_gpus": {"type": "bool", "default": True},
            "generates": {"type": "bool", "default": True},
            "min_tokens_per_s": {"type": "float", "default": 0},
            "timeout_s": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    unit = module.params["unit"]
    state = unit_state(unit)
    running = environment_of(state["main_pid"]).get(DIGEST_VARIABLE)
    before = {
        "active": state["active"] == "active",
        "enabled": state["file_state"] == "enabled",
        "config_digest": running,
    }
    after = {"active": True, "enabled": True, "config_digest": module.params["config_digest"]}
    result: dict[str, Any] = {
        "changed": before != after,
        "diff": {"before": before, "after": after},
        "main_pid_before": state["main_pid"],
    }
    if result["changed"]:
        if module.check_mode:
            module.exit_json(**result)
        restart = before | {"enabled": True} != after
        if restart:
            start(module, state)
        else:
            run(["systemctl", "enable", unit])
        state = unit_state(unit)
    result["main_pid"] = state["main_pid"]
    result.update(prove(module, state["main_pid"]))
    if module.params["gpus"] and not (module.params["router"] or module.check_mode):
        result.update(prove_gpus(module, state))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
