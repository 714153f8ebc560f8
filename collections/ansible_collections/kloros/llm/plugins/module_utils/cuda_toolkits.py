"""What each CUDA toolkit compiles for, which host compiler it takes and which drivers run it.

Sources, looked at on 22 November 2026:

* Architectures: what `ptxas --help` of NVIDIA's own wheels lists for `--gpu-name`, without the
  variants `a` and `f`: 11.7.99, 11.8.89, 12.0.140, 12.1.105, 12.2.140, 12.3.107, 12.4.131, 12.5.82,
  12.6.85, 12.8.93, 12.9.86, 13.0.88, 13.1.115, 13.2.86, 13.3.73, 13.4.92, 13.5.37. (The 13.x help
  also mentions sm_70 in a sentence on another option; `-arch sm_70` is refused.) 11.4 to 11.6 are
  from their release notes: 8.7 came with 11.4, 8.9 and 9.0 with 11.8.
* Newest g++: `#if __GNUC__ > N` in `crt/host_config.h` of the same wheels; 11.4 to 11.6 from the
  installation guides (11.4.0 itself took g++ 10, its patch release named here takes 11).
* Patch releases: the manifests of NVIDIA's redistributable archives (`redistrib_<release>.json`).
* Oldest drivers: "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
  Compatibility" in NVIDIA's CUDA release notes, for Linux.

There never was a toolkit 12.7, although driver 565 reports CUDA 12.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Toolkit(NamedTuple):
    """A minor release of the CUDA toolkit.

    `architectures` are the compute capabilities that it makes machine code for, without the dot
    (86 is 8.6, 120 is 12.0), `newest_gcc` the newest major version of g++ that nvcc accepts,
    `patch` the newest patch release's label.
    """

    architectures: frozenset[int]
    newest_gcc: int
    patch: str


_MAXWELL_TO_AMPERE: Final = frozenset({50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87})
_11_4: Final = _MAXWELL_TO_AMPERE | {35, 37}
_11_8: Final = _11_4 | {89, 90}
_12_0: Final = _MAXWELL_TO_AMPERE | {89, 90}
_12_8: Final = _12_0 | {100, 101, 120}
_12_9: Final = _12_8 | {103, 121}
_13_0: Final = frozenset({75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121})
_13_4: Final = _13_0 | {107}

TOOLKITS: Final[Mapping[str, Toolkit]] = {
    "11.4": Toolkit(_11_4, 11, "11.4.4"),
    "11.5": Toolkit(_11_4, 11, "11.5.2"),
    "11.6": Toolkit(_11_4, 11, "11.6.2"),
    "11.7": Toolkit(_11_4, 11, "11.7.1"),
    "11.8": Toolkit(_11_8, 11, "11.8.0"),
    "12.0": Toolkit(_12_0, 12, "12.0.1"),
    "12.1": Toolkit(_12_0, 12, "12.1.1"),
    "12.2": Toolkit(_12_0, 12, "12.2.2"),
    "12.3": Toolkit(_12_0, 12, "12.3.2"),
    "12.4": Toolkit(_12_0, 13, "12.4.1"),
    "12.5": Toolkit(_12_0, 13, "12.5.1"),
    "12.6": Toolkit(_12_0, 13, "12.6.3"),
    "12.8": Toolkit(_12_8, 14, "12.8.1"),
    "12.9": Toolkit(_12_9, 14, "12.9.1"),
    "13.0": Toolkit(_13_0, 15, "13.0.2"),
    "13.1": Toolkit(_13_0, 15, "13.1.1"),
    "13.2": Toolkit(_13_0, 15, "13.2.2"),
    "13.3": Toolkit(_13_0, 15, "13.3.1"),
    "13.4": Toolkit(_13_4, 16, "13.4.3"),
    "13.5": Toolkit(_13_4, 16, "13.5.0"),
}
"""By version (MAJOR.MINOR), oldest first. An architecture that was dropped never came back: the
toolkits that know it follow one upon another."""

OLDEST_DRIVER: Final[Mapping[int, str]] = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""The oldest driver that runs machine code of a major version's toolkits, all minors of it."""
