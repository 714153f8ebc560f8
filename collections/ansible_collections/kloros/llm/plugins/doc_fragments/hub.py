"""What the modules that read or fetch models have in common in their documentation."""

from __future__ import annotations


class ModuleDocFragment:
    """Options that say where a model's source is reached."""

    DOCUMENTATION = r"""
options:
  offline_dir:
    description:
      - A folder on the host with files that stand for the network. They lie there as
        C(OWNER/REPOSITORY/PATH), under the name that they get among the models, or under the last
        part of their source. They are taken as V(file:/…) sources are.
    type: path
  offline:
    description: Never ask the network. What O(offline_dir) does not hold cannot be had then.
    type: bool
    default: false
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
"""
