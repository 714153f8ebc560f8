#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_model
short_description: Have a GGUF model file on the host, complete and proven
version_added: 0.1.0
description:
  - Gets one model file from a Hugging Face Hub, a web server or a file on the host, and puts it in
    place only when its size and sha256 are right. A file that is already in place stays untouched
    until then.
  - An interrupted download is continued by the next run. Two runs that want the same file wait for
    each other instead of getting it twice.
  - A record beside the file (its name with C(.json) appended) says where it came from. As long as
    record, file and wish agree, a run reads neither network nor file.
  - Needs nothing but Python on the host. Proxies are taken from the environment
    (E(https_proxy), E(no_proxy)).
  - Shows its progress in the output of the play while it works.
options:
  name:
    description: The name of the model that clients use; kept in the record.
    type: str
    required: true
  source:
    description:
      - V(hf://OWNER/REPOSITORY/PATH/FILE.gguf[@REVISION]) is a file in a repository of the Hub;
        the revision is a branch, tag or commit and defaults to V(main).
      - V(https://HOST/PATH) or V(http://HOST/PATH) is a plain download.
      - V(file:/ABSOLUTE/PATH) is a file on the host itself. It is hard-linked where it lies on the
        same file system and already has the wished owner, group and mode; otherwise its blocks
        are shared where the file system can do that, or it is copied.
      - A branch that has moved since is not noticed as long as the record fits. A changed source
        is fetched anew, unless O(sha256) proves that the file in place is the same.
    type: str
    required: true
  path:
    description: The directory of the model files. It must exist, except in check mode.
    type: path
    required: true
  file:
    description:
      - The file name in O(path).
      - By default the last part of O(source).
    type: str
  sha256:
    description:
      - The digest that the file must have, 64 hexadecimal digits.
      - By default the one that the Hub states. Where nobody states one, the digest is computed and
        recorded, and RV(verified) is V(false).
    type: str
  hf_endpoint:
    description:
      - Base URL of the Hub or of a mirror.
      - By default the value of E(HF_ENDPOINT) on the host, then V(https://huggingface.co).
    type: str
  hf_token:
    description:
      - Token for gated or private repositories.
      - Sent as a header to the host of O(hf_endpoint) only, never to another host that it
        redirects to. Never written to a file or log.
    type: str
  reserve_mib:
    description: Space that must stay free on the file system, in MiB.
    type: int
    default: 1024
  timeout_s:
    description: Seconds to wait for a connection, and for the next bytes on it.
    type: int
    default: 30
  progress_file:
    description:
      - File in which the module keeps saying how far it is.
      - Set by the action plugin of the same name; if it is given, nothing is shown in the play.
    type: path
notes:
  - O(owner), O(group) and O(mode) also apply to the record.
  - Check mode asks the source for size and revision, so a source that cannot be reached fails there
    as well.
extends_documentation_fragment:
  - ansible.builtin.files
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
- name: Have a chat model from the Hub
  kloros.llm.gguf_model:
    name: qwen2.5:7b-instruct-q4_K_M
    source: hf://Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q3_k_m.gguf
    path: /var/lib/kloros-llm/models
    owner: root
    group: kloros
    mode: "0640"

- name: Have a model of a gated repository, pinned to a commit, from a mirror
  kloros.llm.gguf_model:
    name: gated
    source: hf://example/gated-GGUF/model.gguf@0123456789abcdef0123456789abcdef01234567
    path: /var/lib/kloros-llm/models
    hf_endpoint: https://hub.example.com
    hf_token: "{{ gguf_models_hf_token }}"

- name: Have a model from a file on the host
  kloros.llm.gguf_model:
    name: local
    source: file:/srv/import/model.gguf
    path: /var/lib/kloros-llm/models
    file: local.gguf
    sha256: 6d3a6b1c3c1ad0bb9a0c5b2c8e3e0d5ffd3d7b2ee7d3c7d0a3c2b6d9e1f4a5b6
"""

RETURN = r"""
path:
  description: The model file.
  returned: success
  type: str
  sample: /var/lib/kloros-llm/models/model.gguf
size_bytes:
  description: Its size; 0 in check mode where the server does not state it.
  returned: success
  type: int
  sample: 98362432
sha256:
  description: Its digest; V(null) in check mode where nobody states one before the download.
  returned: success
  type: str
  sample: 6d3a6b1c3c1ad0bb9a0c5b2c8e3e0d5ffd3d7b2ee7d3c7d0a3c2b6d9e1f4a5b6
revision:
  description: The commit it was fetched from; V(null) where the source states none.
  returned: success
  type: str
  sample: 0123456789abcdef0123456789abcdef01234567
bytes_fetched:
  description:
    - Bytes that this run got from the source. 0 where nothing was needed or the file was linked.
    - In check mode, bytes that would be fetched.
  returned: success
  type: int
  sample: 98362432
bytes_resumed:
  description: Bytes that an earlier, interrupted run had got.
  returned: success
  type: int
  sample: 0
verified:
  description: Whether the digest was given by O(sha256) or the Hub, and not only computed.
  returned: success
  type: bool
  sample: true
"""

import grp
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import env_fallback
from ansible_collections.kloros.llm.plugins.module_utils.disk_space import MIB
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient, HttpError
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    DEFAULT_HF_ENDPOINT,
    SourceError,
    check_endpoint,
    check_file_name,
    default_file,
    parse_source,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_store import (
    FetchRequest,
    ModelStore,
    Outcome,
    StoreError,
    record_path,
)
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "source": {"type": "str", "required": True},
    "path": {"type": "path", "required": True},
    "file": {"type": "str"},
    "sha256": {"type": "str"},
    "hf_endpoint": {"type": "str", "fallback": (env_fallback, ["HF_ENDPOINT"])},
    "hf_token": {"type": "str", "no_log": True},
    "reserve_mib": {"type": "int", "default": 1024},
    "timeout_s": {"type": "int", "default": 30},
    "progress_file": {"type": "path"},
}


def has_attributes(
    state: os.stat_result, owner: str | None, group: str | None, mode: str | None
) -> bool:
    """Whether a file already is as wished, so that sharing its inode changes nothing of it.

    A symbolic mode is never taken as fulfilled: a copy is then the safe way.
    """
    try:
        uid = _id_of(owner, lambda name: pwd.getpwnam(name).pw_uid) if owner else None
        gid = _id_of(group, lambda name: grp.getgrnam(name).gr_gid) if group else None
        bits = int(mode, 8) if mode else None
    except (KeyError, ValueError):
        return False
    return (
        uid in (None, state.st_uid)
        and gid in (None, state.st_gid)
        and bits in (None, state.st_mode & 0o7777)
    )


def _id_of(name: str, look_up: Callable[[str], int]) -> int:
    return int(name) if name.isdecimal() else look_up(name)


def request_of(params: dict[str, Any]) -> FetchRequest:
    """The wish as the store takes it. Raises SourceError."""
    source = parse_source(params["source"])
    sha256 = (params["sha256"] or "").strip().lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise SourceError(f"sha256 '{params['sha256']}' is not 64 hexadecimal digits")
    owner, group, mode = params["owner"], params["group"], params["mode"]
    return FetchRequest(
        name=params["name"],
        source=source,
        directory=Path(params["path"]),
        file_name=check_file_name(params["file"] or default_file(source)),
        sha256=sha256 or None,
        hf_endpoint=check_endpoint(params["hf_endpoint"] or DEFAULT_HF_ENDPOINT),
        hf_token=params["hf_token"] or None,
        reserve_bytes=params["reserve_mib"] * MIB,
        may_link=lambda state: has_attributes(state, owner, group, mode),
    )


def result_of(outcome: Outcome) -> dict[str, Any]:
    """The module's result, all but the attributes of the file."""
    after = outcome.after
    return {
        "changed": outcome.changed,
        "path": str(outcome.path),
        "size_bytes": after.size_bytes,
        "sha256": after.sha256,
        "revision": after.revision,
        "verified": after.verified,
        "bytes_fetched": outcome.bytes_fetched,
        "bytes_resumed": outcome.bytes_resumed,
        "diff": {
            "before": outcome.before.facts() if outcome.before else {},
            "after": after.facts(),
            "before_header": str(outcome.path),
            "after_header": str(outcome.path),
        },
    }


def apply_attributes(module: AnsibleModule, path: Path) -> bool:
    """Owner, group and mode of the model and its record; whether anything changes."""
    changed = False
    for file in (path, record_path(path)):
        if file.exists():
            wish = module.load_file_common_arguments(module.params, path=str(file))
            changed = module.set_fs_attributes_if_different(wish, changed)
    return changed


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENT_SPEC, add_file_common_args=True, supports_check_mode=True
    )
    progress = ProgressFile(
        module.params["progress_file"], f"model {module.params['name']}", "bytes"
    )
    store = ModelStore(HttpClient(module.params["timeout_s"]), progress)
    try:
        request = request_of(module.params)
        outcome = store.plan(request) if module.check_mode else store.fetch(request)
    except (SourceError, StoreError, HttpError) as error:
        module.fail_json(msg=str(error))
    result = result_of(outcome)
    if apply_attributes(module, outcome.path):
        result["changed"] = True
    module.exit_json(**result)


if __name__ == "__main__":
    main()
