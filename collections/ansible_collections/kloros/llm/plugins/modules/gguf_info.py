#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: Read what a GGUF model is, before or after its download
version_added: 0.1.0
description:
  - Reads the header of a GGUF file on the host, or of one on a Hugging Face Hub or web server.
  - Of a remote model it fetches the header only, a few MiB in two or three requests a file,
    whatever the size of the model.
  - A model in several files (C(NAME-00001-of-00003.gguf)) is read as one.
  - Needs nothing but Python on the host and changes nothing. Proxies are taken from the environment
    (E(https_proxy), E(no_proxy)).
options:
  path:
    description:
      - A model file on the host; of a model in several files the first.
      - With O(source), it is read where it is there and whole, unless the record beside it says
        that it came from elsewhere; else O(source) is.
    type: path
  source:
    description:
      - V(hf://OWNER/REPOSITORY/PATH/FILE.gguf[@REVISION]), V(https://HOST/PATH), V(http://HOST/PATH)
        or V(file:/ABSOLUTE/PATH), as for M(kloros.llm.gguf_model); of a model in several files the
        first.
    type: str
  sha256:
    description: What the file at O(path) must have to be read where it came from another source.
    type: str
  report_problems:
    description:
      - Succeed where the header cannot be read, and say why in RV(problem); for a caller that wants
        to see all problems at once.
    type: bool
    default: false
  timeout_s:
    description: Seconds to wait for a connection, and for the next bytes on it.
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
seealso:
  - module: kloros.llm.gguf_model
author:
  - The kloros-llm contributors
"""

EXAMPLES = r"""
- name: Look at a model before its download
  kloros.llm.gguf_info:
    source: hf://Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q3_k_m.gguf
  register: remote_model

- name: Say what it is
  ansible.builtin.debug:
    msg: >-
      {{ remote_model.name }}: {{ remote_model.quantisation }},
      {{ remote_model.size_bytes | human_readable }},
      trained for {{ remote_model.context_trained }} tokens

- name: Look at a model on the host
  kloros.llm.gguf_info:
    path: /var/lib/kloros-llm/models/model.gguf
"""

RETURN = r"""
problem:
  description: Why the header cannot be read. Nothing else is returned with it.
  returned: where O(report_problems) is set and it cannot
  type: str
  sample: "hf://example/gone/model.gguf@main: HTTP 404"
on_host:
  description: Whether the model was read on the host, at O(path) or in O(offline_dir).
  returned: success
  type: bool
  sample: false
name:
  description: The model's name for people; null where the file has none.
  returned: success
  type: str
  sample: Qwen2.5 7B Instruct
kind:
  description:
    - V(model) for a language model, V(projector) for a vision or audio projector (mmproj),
      V(adapter) for a LoRA or control vector, V(imatrix) or V(other).
  returned: success
  type: str
  sample: model
architecture:
  description: As llama.cpp calls it; null where the file does not say.
  returned: success
  type: str
  sample: qwen2
size_label:
  description: The size as its makers call it; null where the file does not say.
  returned: success
  type: str
  sample: 7B
quantisation:
  description:
    - The file type as llama.cpp calls it, or the tensor type that takes most bytes where the file
      does not say.
  returned: success
  type: str
  sample: Q3_K_M
parameters:
  description: The number of elements of all tensors.
  returned: success
  type: int
  sample: 7615616512
context_trained:
  description: The context the model was trained for, in tokens; null where the file does not say.
  returned: success
  type: int
  sample: 131072
size_bytes:
  description: The size of all files; null where a server does not state it.
  returned: success
  type: int
  sample: 3808391072
files:
  description: The files in order, C(size_bytes) null where a server does not state it.
  returned: success
  type: list
  elements: dict
  sample: [{name: qwen2.5-7b-instruct-q3_k_m.gguf, size_bytes: 3808391072}]
revision:
  description: The commit that was read; null where the source states none.
  returned: success
  type: str
  sample: bb5d59e06d9551d752d08b292a50eb208b07ab1f
version:
  description: The version of the GGUF format.
  returned: success
  type: int
  sample: 3
byte_order:
  description: V(little) or V(big).
  returned: success
  type: str
  sample: little
tensors:
  description: The number of tensors.
  returned: success
  type: int
  sample: 339
data_bytes:
  description: The bytes of all tensors.
  returned: success
  type: int
  sample: 3802505728
bytes_by_type:
  description: The bytes of all tensors of each type, most first.
  returned: success
  type: dict
  sample: {Q3_K: 2455199744, Q4_K: 894156800, Q6_K: 447068160, Q5_K: 5046272, F32: 1365504}
tokenizer:
  description: The kind of tokenizer; null where the file has none.
  returned: success
  type: str
  sample: gpt2
vocabulary:
  description: The number of tokens; null where the file has no tokenizer.
  returned: success
  type: int
  sample: 152064
chat_template:
  description: Whether the file has a chat template.
  returned: success
  type: bool
  sample: true
shape:
  description:
    - What the planner needs to know of layers, heads and tensors; null where RV(kind) is not
      V(model), or as RV(shape_detail) says.
  returned: success
  type: dict
  sample: {architecture: qwen2, context_trained: 131072, vocabulary: 152064}
shape_detail:
  description: Why RV(shape) is null; empty otherwise.
  returned: success
  type: str
  sample: ""
requests:
  description: HTTP requests that it took, a redirect counted as one. 0 for a file.
  returned: success
  type: int
  sample: 3
fetched_bytes:
  description: Bytes that were fetched. 0 for a file.
  returned: success
  type: int
  sample: 16777216
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import env_fallback
from ansible_collections.kloros.llm.plugins.module_utils.gguf_facts import model_facts
from ansible_collections.kloros.llm.plugins.module_utils.gguf_files import (
    GgufModel,
    read_model_file,
    read_model_source,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import GgufError
from ansible_collections.kloros.llm.plugins.module_utils.http_client import (
    MAX_ATTEMPTS_HEADER,
    HttpClient,
    HttpError,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_placement import may_be
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    DEFAULT_HF_ENDPOINT,
    Source,
    SourceError,
    check_endpoint,
    file_at_hand,
    parse_source,
)


def read(params: dict[str, Any]) -> tuple[GgufModel, bool]:
    """The model's headers, and whether they lie on the host.

    Raises SourceError, GgufError, HttpError or OSError.
    """
    path = params["path"]
    if not (path or params["source"]):
        raise SourceError("both 'path' and 'source' are empty; one of them is needed")
    if not params["source"]:
        return read_model_file(path), True
    source = parse_source(params["source"])
    damage = ""
    if path and may_be(Path(path), source, params["sha256"]):
        try:
            return read_model_file(path), True
        except (GgufError, OSError) as error:
            damage = str(error)
    try:
        return read_from_source(source, params)
    except (SourceError, GgufError, HttpError, OSError) as error:
        if not damage:
            raise
        raise GgufError(f"{damage}; and what is to replace it: {error}") from error


def read_from_source(source: Source, params: dict[str, Any]) -> tuple[GgufModel, bool]:
    """As `read`, where the model itself is not in place."""
    name = Path(params["path"]).name if params["path"] else None
    local = file_at_hand(source, name, params["offline_dir"], offline=params["offline"])
    if local:
        return read_model_file(local), True
    client = HttpClient(params["timeout_s"], max_attempts=MAX_ATTEMPTS_HEADER)
    endpoint = check_endpoint(params["hf_endpoint"] or DEFAULT_HF_ENDPOINT)
    return read_model_source(source, client, endpoint, params["hf_token"] or None), False


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "source": {"type": "str"},
            "sha256": {"type": "str"},
            "offline_dir": {"type": "path"},
            "offline": {"type": "bool", "default": False},
            "report_problems": {"type": "bool", "default": False},
            "hf_endpoint": {"type": "str", "fallback": (env_fallback, ["HF_ENDPOINT"])},
            "hf_token": {"type": "str", "no_log": True},
            "timeout_s": {"type": "int", "default": 30},
        },
        required_one_of=[("path", "source")],
        supports_check_mode=True,
    )
    params = module.params
    try:
        model, on_host = read(params)
    except (SourceError, GgufError, HttpError) as error:
        problem = str(error)
    except OSError as error:
        where = error.filename or params["path"] or params["source"]
        problem = f"{where}: {error.strerror or error}"
    else:
        module.exit_json(
            changed=False,
            on_host=on_host,
            requests=model.requests,
            fetched_bytes=model.fetched_bytes,
            **model_facts(model),
        )
    if params["report_problems"]:
        module.exit_json(changed=False, problem=problem)
    module.fail_json(msg=problem)


if __name__ == "__main__":
    main()
