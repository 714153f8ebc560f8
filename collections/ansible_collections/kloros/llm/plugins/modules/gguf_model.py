#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_model
short_description: Have GGUF models on the host, complete and proven
version_added: 0.1.0
description:
  - Gets models from a Hugging Face Hub, a web server or a folder of the host, and puts them in
    place only when sizes and sha256 are right. What is already in place stays untouched until
    then.
  - A model may consist of several files. Its shards, and the files that belong to it (projector,
    draft model, adapters), come from one commit of their repository, are put in place together and
    are removed together. The first file comes last.
  - An interrupted download is continued by the next run. Two runs that want the same model wait for
    each other instead of getting it twice.
  - A record beside the first file (its name with C(.json) appended) says where the model came from.
    As long as record, files and wish agree, a run reads neither network nor files.
  - Needs nothing but Python on the host. Proxies are taken from the environment
    (E(https_proxy), E(no_proxy)).
  - Shows its progress in the output of the play while it works.
options:
  name:
    description:
      - The name of the model that clients use; kept in the record.
      - Required unless O(models) is given.
    type: str
  source:
    description:
      - V(hf://OWNER/REPOSITORY/PATH/FILE.gguf[@REVISION]) is a file in a repository of the Hub;
        the revision is a branch, tag or commit and defaults to V(main). A branch or tag is looked
        up once, and all files are fetched at the commit found.
      - V(https://HOST/PATH) or V(http://HOST/PATH) is a plain download.
      - V(file:/ABSOLUTE/PATH) is a file on the host itself. It is hard-linked where it lies on the
        same file system and already has the wished owner, group and mode; otherwise its blocks
        are shared where the file system can do that, or it is copied.
      - A file called C(NAME-00001-of-000NN.gguf) stands for all NN shards of the model.
      - A branch that has moved since is not noticed as long as the record fits; see O(check_update)
        and O(state=latest). A changed source is fetched anew, unless O(sha256) proves that what is
        in place is the same.
      - Required where the model is to be there.
    type: str
  path:
    description: The directory of the model files. It must exist, except in check mode.
    type: path
    required: true
  file:
    description:
      - The name of the first file in O(path).
      - By default the last part of O(source).
      - llama.cpp finds the shards of a model by their names, so here it must be
        C(NAME-00001-of-000NN.gguf) too.
    type: str
  sha256:
    description:
      - The digest that the file must have, 64 hexadecimal digits; for a model of several shards one
        for each, in order.
      - By default those that the Hub states. Where nobody states one, it is computed and recorded,
        and RV(verified) is V(false).
    type: list
    elements: str
  mmproj:
    description:
      - The projector of a multimodal model; its source, or a dictionary with C(source), C(sha256)
        and C(file).
      - It is called C(STEM.mmproj.gguf) unless C(file) says otherwise; the stem is the name of the
        first file without C(.gguf) and without the number of a shard.
    type: raw
  draft:
    description: A draft model for speculative decoding, as O(mmproj). Called C(STEM.draft.gguf).
    type: raw
  lora:
    description: Adapters, each as O(mmproj). Called C(STEM.lora-1.gguf) and so on.
    type: list
    elements: raw
  aliases:
    description: Further names of the model; kept in the record.
    type: list
    elements: str
    default: []
  models:
    description:
      - Several models at once, instead of O(name) and what belongs to it. One that fails does not
        stop the others; the task fails in the end and tells all that failed.
    type: list
    elements: dict
    suboptions:
      name:
        description: As O(name).
        type: str
        required: true
      source:
        description: As O(source).
        type: str
      file:
        description: As O(file).
        type: str
      sha256:
        description: As O(sha256).
        type: list
        elements: str
      mmproj:
        description: As O(mmproj).
        type: raw
      draft:
        description: As O(draft).
        type: raw
      lora:
        description: As O(lora).
        type: list
        elements: raw
      aliases:
        description: As O(aliases).
        type: list
        elements: str
      path:
        description:
          - The whole path of the first file, for a caller that has worked it out and relies on it.
            Where the model would lie elsewhere, the task fails.
        type: path
  parallel:
    description: How many of O(models) are fetched at the same time.
    type: int
    default: 2
  state:
    description:
      - V(present) has the model in place.
      - V(latest) also asks its source, and fetches what that names now. Where a server states no
        digest, only another size is taken for another content.
      - V(absent) removes all of its files, its record, what an interrupted run left, and the
        versions of it that are kept. Nothing is removed, and the task fails, where an instance's
        env file, the plan on the host, O(in_use) or a running process uses one of the files.
    type: str
    choices: [present, latest, absent]
    default: present
  in_use:
    description: Paths of models that are in use, besides those that are found out.
    type: list
    elements: path
    default: []
  config_dir:
    description: Where the instances' env files and the plan lie.
    type: path
    default: /etc/kloros-llm
  check_update:
    description:
      - Also ask the source of a model that is in place whether it names another content now; see
        RV(update_available). Nothing is downloaded for it, and a source that cannot be asked does
        not fail the task.
    type: bool
    default: false
  keep_previous:
    description:
      - Keep what is replaced as a version in C(versions/), so that it can be brought back. It takes
        its space until it is removed.
    type: bool
    default: false
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
  - O(owner), O(group) and O(mode) apply to all files of a model and to its record.
  - Check mode asks the source for size and revision, so a source that cannot be reached fails there
    as well.
extends_documentation_fragment:
  - ansible.builtin.files
  - ansible.builtin.action_common_attributes
  - kloros.llm.hub
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

- name: Have a model of several shards
  kloros.llm.gguf_model:
    name: qwen2.5:32b-instruct-q4_K_M
    source: hf://Qwen/Qwen2.5-32B-Instruct-GGUF/qwen2.5-32b-instruct-q4_k_m-00001-of-00005.gguf
    path: /var/lib/kloros-llm/models

- name: Have a multimodal model of a gated repository, pinned to a commit, from a mirror
  kloros.llm.gguf_model:
    name: gated
    source: hf://example/gated-GGUF/model.gguf@0123456789abcdef0123456789abcdef01234567
    mmproj: hf://example/gated-GGUF/mmproj-F16.gguf@0123456789abcdef0123456789abcdef01234567
    path: /var/lib/kloros-llm/models
    hf_endpoint: https://hub.example.com
    hf_token: "{{ gguf_models_hf_token }}"

- name: Have several models, two at a time, and know which of them have a successor
  kloros.llm.gguf_model:
    models:
      - name: chat
        source: hf://example/chat-GGUF/chat.gguf
        aliases: [main]
      - name: local
        source: file:/srv/import/model.gguf
        file: local.gguf
        sha256: [6d3a6b1c3c1ad0bb9a0c5b2c8e3e0d5ffd3d7b2ee7d3c7d0a3c2b6d9e1f4a5b6]
    path: /var/lib/kloros-llm/models
    check_update: true

- name: Have no model that nobody uses any more
  kloros.llm.gguf_model:
    name: chat
    path: /var/lib/kloros-llm/models
    state: absent
"""

RETURN = r"""
path:
  description: The first file of the model, the one that a server is told to open.
  returned: success, where O(name) is given
  type: str
  sample: /var/lib/kloros-llm/models/model.gguf
size_bytes:
  description: The size of all its files; 0 in check mode where the server does not state it.
  returned: success, unless O(state=absent)
  type: int
  sample: 98362432
sha256:
  description:
    - The first file's digest; V(null) in check mode where nobody states one before the download.
  returned: success, unless O(state=absent)
  type: str
  sample: 6d3a6b1c3c1ad0bb9a0c5b2c8e3e0d5ffd3d7b2ee7d3c7d0a3c2b6d9e1f4a5b6
digest:
  description: What all files are together. The first file's digest where it is the only one.
  returned: success, unless O(state=absent)
  type: str
  sample: 6d3a6b1c3c1ad0bb9a0c5b2c8e3e0d5ffd3d7b2ee7d3c7d0a3c2b6d9e1f4a5b6
files:
  description: All files of the model, the first one first.
  returned: success, unless O(state=absent)
  type: list
  elements: dict
  contains:
    path:
      description: Where it lies.
      type: str
    role:
      description: V(model), V(mmproj), V(draft) or V(lora).
      type: str
    source:
      description: Where it came from.
      type: str
    revision:
      description: The commit it was fetched from; V(null) where the source states none.
      type: str
    size_bytes:
      description: Its size.
      type: int
    sha256:
      description: Its digest.
      type: str
    verified:
      description: As RV(verified), of this file.
      type: bool
revision:
  description: The commit it was fetched from; V(null) where the source states none.
  returned: success, unless O(state=absent)
  type: str
  sample: 0123456789abcdef0123456789abcdef01234567
bytes_fetched:
  description:
    - Bytes that this run got from the source. 0 where nothing was needed or the file was linked.
    - In check mode, bytes that would be fetched.
  returned: success, unless O(state=absent)
  type: int
  sample: 98362432
bytes_resumed:
  description: Bytes that an earlier, interrupted run had got.
  returned: success, unless O(state=absent)
  type: int
  sample: 0
verified:
  description: Whether all digests were given by O(sha256) or the Hub, and not only computed.
  returned: success, unless O(state=absent)
  type: bool
  sample: true
update_available:
  description:
    - Whether the source names another content now. V(null) where that could not be told.
  returned: where O(check_update) is set and the model is in place
  type: bool
  sample: false
update_detail:
  description: Why, in words.
  returned: where O(check_update) is set and the model is in place
  type: str
  sample: the source names what is here
update_files:
  description: What the source names now.
  returned: where O(check_update) is set and the model is in place
  type: list
  elements: dict
  sample: [{file: model.gguf, role: model, size_bytes: 98362432, sha256: 6d3a…, revision: "0123…"}]
removed:
  description: The files that were removed.
  returned: success, where O(state=absent)
  type: list
  elements: str
  sample: [/var/lib/kloros-llm/models/model.gguf, /var/lib/kloros-llm/models/model.gguf.json]
freed_bytes:
  description: What that freed; files of which other names are left count nothing.
  returned: success, where O(state=absent)
  type: int
  sample: 98362432
users:
  description: What uses the model that was to be removed.
  returned: failure, where O(state=absent)
  type: list
  elements: str
  sample: [instance main]
results:
  description:
    - One for each of O(models), in order, with all of the above, C(name), C(changed), C(failed) and
      for one that failed C(msg).
  returned: where O(models) is given, also on failure
  type: list
  elements: dict
"""

import grp
import os
import pwd
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import env_fallback
from ansible_collections.kloros.llm.plugins.module_utils.disk_space import MIB
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient, HttpError
from ansible_collections.kloros.llm.plugins.module_utils.model_batch import fetch_all
from ansible_collections.kloros.llm.plugins.module_utils.model_catalogue import (
    Catalogue,
    InUseError,
    Removal,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_files import (
    Companion,
    read_record,
    record_path,
    wanted_files,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_source import (
    DEFAULT_HF_ENDPOINT,
    SourceError,
    check_endpoint,
    parse_source,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_store import (
    FetchRequest,
    FetchSettings,
    ModelStore,
    Outcome,
    StoreError,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_users import Users
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile

MODEL_SPEC: dict[str, dict[str, Any]] = {
    "name": {"type": "str"},
    "source": {"type": "str"},
    "file": {"type": "str"},
    "sha256": {"type": "list", "elements": "str"},
    "mmproj": {"type": "raw"},
    "draft": {"type": "raw"},
    "lora": {"type": "list", "elements": "raw"},
    "aliases": {"type": "list", "elements": "str"},
}
ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    **MODEL_SPEC,
    "aliases": {"type": "list", "elements": "str", "default": []},
    "path": {"type": "path", "required": True},
    "models": {
        "type": "list",
        "elements": "dict",
        "options": {
            **MODEL_SPEC,
            "name": {"type": "str", "required": True},
            "path": {"type": "path"},
        },
    },
    "parallel": {"type": "int", "default": 2},
    "state": {"type": "str", "choices": ["present", "latest", "absent"], "default": "present"},
    "in_use": {"type": "list", "elements": "path", "default": []},
    "config_dir": {"type": "path", "default": "/etc/kloros-llm"},
    "check_update": {"type": "bool", "default": False},
    "keep_previous": {"type": "bool", "default": False},
    "offline_dir": {"type": "path"},
    "offline": {"type": "bool", "default": False},
    "hf_endpoint": {"type": "str", "fallback": (env_fallback, ["HF_ENDPOINT"])},
    "hf_token": {"type": "str", "no_log": True},
    "reserve_mib": {"type": "int", "default": 1024},
    "timeout_s": {"type": "int", "default": 30},
    "progress_file": {"type": "path"},
}
COMPANION_KEYS = ("source", "sha256", "file")

Result = dict[str, Any]


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


def users_of(params: dict[str, Any]) -> Users:
    """What must not go away."""
    return Users(Path(params["config_dir"]), named=tuple(params["in_use"]))


def settings_of(params: dict[str, Any]) -> FetchSettings:
    """How to fetch. Raises SourceError."""
    owner, group, mode = params["owner"], params["group"], params["mode"]
    return FetchSettings(
        hf_endpoint=check_endpoint(params["hf_endpoint"] or DEFAULT_HF_ENDPOINT),
        hf_token=params["hf_token"] or None,
        reserve_bytes=params["reserve_mib"] * MIB,
        may_link=lambda state: has_attributes(state, owner, group, mode),
        offline_dir=Path(params["offline_dir"]) if params["offline_dir"] else None,
        offline=params["offline"],
        users=users_of(params),
    )


def request_of(
    wish: dict[str, Any], params: dict[str, Any], settings: FetchSettings
) -> FetchRequest:
    """One wish as the store takes it. Raises SourceError."""
    if not wish["source"]:
        raise SourceError(f"model {wish['name']}: there is no source; give one")
    request = FetchRequest(
        name=wish["name"],
        directory=Path(params["path"]),
        files=wanted_files(
            parse_source(wish["source"]),
            wish["file"] or None,
            [_digest(text) for text in wish["sha256"] or () if text],
            mmproj=companion_of(wish["mmproj"], "mmproj") if wish["mmproj"] else None,
            draft=companion_of(wish["draft"], "draft") if wish["draft"] else None,
            lora=[companion_of(one, "lora") for one in wish["lora"] or ()],
        ),
        settings=settings,
        aliases=tuple(wish["aliases"] or ()),
        latest=params["state"] == "latest",
        keep_previous=params["keep_previous"],
    )
    planned = wish.get("path")
    if planned and Path(planned) != request.path:
        raise SourceError(
            f"model {wish['name']} would lie at {request.path}, but {planned} was expected; "
            "correct 'file' or 'path'"
        )
    return request


def companion_of(wish: object, role: str) -> Companion:
    """A file beside a model, from its source or a dictionary. Raises SourceError."""
    if isinstance(wish, str):
        return Companion(parse_source(wish))
    if not isinstance(wish, dict) or not wish.get("source"):
        raise SourceError(f"{role} is {wish!r}; needed: a source, or a dictionary with 'source'")
    unknown = sorted(set(wish) - set(COMPANION_KEYS))
    if unknown:
        raise SourceError(
            f"{role} has the unknown key {', '.join(map(str, unknown))}; known are "
            f"{', '.join(COMPANION_KEYS)}"
        )
    digest = _digest(str(wish["sha256"])) if wish.get("sha256") else None
    return Companion(parse_source(str(wish["source"])), digest, wish.get("file") or None)


def _digest(text: str) -> str:
    digest = text.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SourceError(f"sha256 '{text}' is not 64 hexadecimal digits")
    return digest


def result_of(outcome: Outcome) -> Result:
    """What became of one model, all but the attributes of the files."""
    after = outcome.after
    return {
        "changed": outcome.changed,
        "path": str(outcome.path),
        "size_bytes": after.size_bytes,
        "sha256": after.sha256,
        "digest": after.digest,
        "revision": after.revision,
        "verified": after.verified,
        "files": [
            {
                "path": str(outcome.path.parent / file.file),
                "role": file.role,
                "source": file.source,
                "revision": file.revision,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "verified": file.verified,
            }
            for file in after.files
        ],
        "bytes_fetched": outcome.bytes_fetched,
        "bytes_resumed": outcome.bytes_resumed,
        "diff": {
            "before": outcome.before.facts() if outcome.before else {},
            "after": after.facts(),
            "before_header": str(outcome.path),
            "after_header": str(outcome.path),
        },
    }


def failure(name: str, error: Exception) -> Result:
    """What is told of a model that failed."""
    told: Result = {"name": name, "changed": False, "failed": True, "msg": str(error)}
    if isinstance(error, InUseError):
        told["users"] = [str(user) for user in error.users]
    return told


class Run:
    """One run of the module over all wished models."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._params: dict[str, Any] = module.params
        self._check: bool = module.check_mode

    def results(self) -> list[Result]:
        """One result a model, in order. Raises SourceError for settings that cannot be."""
        wishes = self._params["models"]
        if wishes is None:
            wishes = [{key: self._params[key] for key in MODEL_SPEC}]
        if self._params["state"] == "absent":
            return [self._remove(wish) for wish in wishes]
        return self._fetch(wishes)

    def _fetch(self, wishes: Sequence[dict[str, Any]]) -> list[Result]:
        settings = settings_of(self._params)
        told: dict[int, Result] = {}
        requests: dict[int, FetchRequest] = {}
        owners: dict[Path, str] = {}
        for index, wish in enumerate(wishes):
            try:
                request = request_of(wish, self._params, settings)
                for path in request.paths:
                    if owners.setdefault(path, request.name) != request.name:
                        raise SourceError(
                            f"{path} is where model {owners[path]} lies; give 'file', another name "
                            "for the file of one of them, or the second name as one of 'aliases'"
                        )
                requests[index] = request
            except SourceError as error:
                told[index] = failure(wish["name"], error)
        label = ", ".join(f"model {request.name}" for request in requests.values())
        progress = ProgressFile(self._params["progress_file"], label, "bytes")
        outcomes = fetch_all(
            list(requests.values()),
            self._client,
            progress,
            self._params["parallel"],
            plan_only=self._check,
        )
        if self._params["keep_previous"] and not self._check:
            Catalogue(Path(self._params["path"])).refresh()
        for (index, request), outcome in zip(requests.items(), outcomes, strict=True):
            if isinstance(outcome, Outcome):
                told[index] = self._finished(request, outcome, progress)
            else:
                told[index] = failure(request.name, outcome)
        return [told[index] for index in range(len(wishes))]

    def _client(self) -> HttpClient:
        return HttpClient(self._params["timeout_s"])

    def _finished(self, request: FetchRequest, outcome: Outcome, progress: ProgressFile) -> Result:
        result = {"name": request.name, "failed": False, **result_of(outcome)}
        files = [*outcome.after.paths(request.directory), record_path(request.path)]
        if self._apply_attributes(files):
            result["changed"] = True
        record = read_record(request.path)
        if self._params["check_update"] and record:
            check = ModelStore(self._client(), progress).check_update(record, request.settings)
            result["update_available"] = check.available
            result["update_detail"] = check.detail
            result["update_files"] = [asdict(file) for file in check.newest]
        return result

    def _apply_attributes(self, files: Sequence[Path]) -> bool:
        """Owner, group and mode; whether anything changes."""
        changed = False
        for file in files:
            if file.exists():
                wish = self._module.load_file_common_arguments(self._params, path=str(file))
                changed = self._module.set_fs_attributes_if_different(wish, changed)
        return changed

    def _remove(self, wish: dict[str, Any]) -> Result:
        directory = Path(self._params["path"])
        catalogue = Catalogue(directory, users_of(self._params))
        try:
            names = self._names(wish, catalogue)
            removal = Removal(wish["name"], (), 0)
            if names:
                removal = catalogue.remove_files(names[0], names[1:], dry_run=self._check)
        except (SourceError, StoreError) as error:
            return failure(wish["name"], error)
        removed = [str(path) for path in removal.paths]
        return {
            "name": wish["name"],
            "failed": False,
            "changed": removal.changed,
            "path": str(directory / names[0]) if names else None,
            "removed": removed,
            "freed_bytes": removal.freed_bytes,
            "diff": {"before": {"files": removed}, "after": {"files": []}} if removed else {},
        }

    def _names(self, wish: dict[str, Any], catalogue: Catalogue) -> list[str]:
        """The model's files as far as the wish tells, the first one first; none: there is none."""
        if wish["source"]:
            request = request_of(wish, self._params, FetchSettings())
            return [one.file for one in request.files]
        if wish["file"]:
            return [wish["file"]]
        # Only its own name: an alias is no reason to remove the model that it is lent to.
        return [model.file for model in catalogue.models() if model.name == wish["name"]]


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENT_SPEC,
        add_file_common_args=True,
        supports_check_mode=True,
        required_one_of=[("name", "models")],
        mutually_exclusive=[("models", key) for key in MODEL_SPEC if key != "aliases"],
    )
    try:
        results = Run(module).results()
    except (SourceError, StoreError, HttpError, OSError) as error:
        module.fail_json(msg=str(error))
    failed = [result for result in results if result["failed"]]
    changed = any(result["changed"] for result in results)
    if module.params["models"] is None:
        (only,) = results
        if failed:
            module.fail_json(**{key: only[key] for key in ("msg", "users") if key in only})
        module.exit_json(**{key: only[key] for key in only if key not in ("name", "failed")})
    diffs = [result.pop("diff") for result in results if result.get("diff")]
    told = {"changed": changed, "results": results, "diff": diffs}
    if failed:
        reasons = "\n".join(f"- {result['name']}: {result['msg']}" for result in failed)
        module.fail_json(msg=f"{len(failed)} of {len(results)} models failed:\n{reasons}", **told)
    module.exit_json(**told)


if __name__ == "__main__":
    main()
