"""More components of the archive that a distribution's own packages already come from."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ORIGIN = re.compile(r"^\s*\d+ (\S+://\S+) (\S+)/main \S+ Packages$", re.MULTILINE)


def component_sources(policy: str, targets: str, components: Sequence[str]) -> str:
    """A deb822 file that enables components where the distribution's own `main` is enabled.

    `policy` is what `apt-cache policy base-files` prints (a package that only the distribution
    has), `targets` what `apt-get indextargets` prints with the format `$(REPO_URI) $(RELEASE)
    $(COMPONENT) $(SIGNED_BY)`. No archive is named that the host does not use.

    Raises ValueError where the distribution's archive is not to be found.
    """
    own = {(uri.rstrip("/"), suite) for uri, suite in _ORIGIN.findall(policy)}
    entries: list[str] = []
    for line in targets.splitlines():
        uri, suite, component, signed_by = [*line.split(maxsplit=3), "", "", ""][:4]
        if component != "main" or (uri.rstrip("/"), suite) not in own:
            continue
        fields = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}"]
        fields.append(f"Components: {' '.join(components)}")
        # Two entries of one archive must agree on its key.
        if signed_by.startswith("/"):
            fields.append(f"Signed-By: {signed_by}")
        entries.append("\n".join(fields) + "\n")
    if not entries:
        raise ValueError("apt does not say from which archive the package base-files comes")
    return "\n".join(dict.fromkeys(entries))
