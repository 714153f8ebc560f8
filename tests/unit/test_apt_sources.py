"""More components of the archive that a host uses already."""

from __future__ import annotations

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.apt_sources import (
    component_sources,
    own_archives,
)

POLICY = """base-files:
  Installed: 13.8
  Version table:
 *** 13.8 500
        500 http://deb.debian.org/debian trixie/main amd64 Packages
        500 mirror+file:/etc/apt/mirrors/debian.list trixie-updates/main amd64 Packages
        100 /var/lib/dpkg/status
"""
OWN = own_archives(POLICY)
WANTED = ["contrib", "non-free"]


def test_archives_that_base_files_comes_from() -> None:
    assert {
        ("http://deb.debian.org/debian", "trixie"),
        ("mirror+file:/etc/apt/mirrors/debian.list", "trixie-updates"),
    } == OWN


def test_one_line_entries_keep_their_options() -> None:
    text = """# deb http://deb.debian.org/debian trixie main
deb [arch=amd64 signed-by=/usr/share/keyrings/d.gpg] http://deb.debian.org/debian/ trixie main # x
deb mirror+file:/etc/apt/mirrors/debian.list trixie-updates main
deb-src http://deb.debian.org/debian trixie main
deb https://example.org/debian trixie main
"""
    assert component_sources({"/etc/apt/sources.list": text}, OWN, WANTED) == {
        "list": "deb [arch=amd64 signed-by=/usr/share/keyrings/d.gpg] "
        "http://deb.debian.org/debian/ trixie contrib non-free\n\n"
        "deb mirror+file:/etc/apt/mirrors/debian.list trixie-updates contrib non-free\n"
    }


def test_stanzas_keep_everything_but_the_components() -> None:
    text = """# Debian
Types: deb deb-src
URIs: http://deb.debian.org/debian
Suites: trixie trixie-backports
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: https://example.org/debian
Suites: trixie
Components: main

Enabled: no
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main
"""
    found = component_sources({"x.sources": text}, OWN, WANTED)
    assert list(found) == ["sources"]
    assert "\n".join(line.rstrip() for line in found["sources"].split("\n")) == (
        """Types: deb
Uris: http://deb.debian.org/debian
Suites: trixie trixie-backports
Components: contrib non-free
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""
    )


def test_host_that_does_not_use_the_archive() -> None:
    with pytest.raises(ValueError, match="no entry of apt's lists"):
        component_sources({"a.list": "deb https://example.org/d trixie main"}, OWN, WANTED)


def test_what_is_enabled_already_is_not_enabled_again() -> None:
    entry = "deb http://deb.debian.org/debian trixie main contrib"
    assert component_sources({"a.list": entry}, OWN, WANTED) == {
        "list": "deb http://deb.debian.org/debian trixie non-free\n"
    }
    assert component_sources({"a.list": f"{entry} non-free"}, OWN, WANTED) == {}
