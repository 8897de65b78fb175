"""Which machine an image is for, and which of an index's entries is for this one.

Names are compared as containerd compares them: without regard to case, the kernel's names (x86_64, aarch64) as Go's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sandboxd.errors import Unsupported
from sandboxd.oci.image import INDEXES, MANIFESTS, UNSPECIFIC, Descriptor, Platform, plain_type

# An annotation of what describes the image beside it (provenance, an SBOM) rather than being one.
REFERENCE_ANNOTATION = "vnd.docker.reference.type"

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "x86": "386",
}
_ARM = {"armhf": "7", "armv7l": "7", "armv7": "7", "armel": "6", "armv6l": "6", "armv6": "6", "armv5": "5"}
_ALSO_RUNS = {"amd64": "386", "arm64": "arm"}  # the older architecture that a newer one runs
_BASELINE = {"amd64": 1, "arm64": 8, "arm": 7}  # the variant that a name without one means
_VARIANT = re.compile(r"v?([0-9]{1,3})(?:\.[0-9]{1,3})?")


def normalized(platform: Platform) -> Platform:
    """The platform in Go's terms, "" where it says nothing. The variant that goes without saying is left out."""
    os, architecture, variant = (
        part.strip().lower() for part in (platform.os, platform.architecture, platform.variant)
    )
    if architecture in _ARM:
        architecture, variant = "arm", variant or _ARM[architecture]
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if match := _VARIANT.fullmatch(variant):
        number = int(match[1])
        variant = "" if number == _BASELINE.get(architecture) and architecture != "arm" else f"v{number}"
    return Platform(os=os, architecture=architecture, variant=variant)


def normal_architecture(machine: str) -> str:
    """The kernel's name of a machine (uname -m) in Go's terms."""
    return normalized(Platform(os="", architecture=machine)).architecture


def silent(platform: Platform | None) -> bool:
    """Whether a platform leaves out the architecture, so that another word decides."""
    return platform is None or not platform.architecture.strip()


def runs_on(image: Platform, host: Platform) -> bool:
    """Whether `host` can run what was built for `image`; members that an image leaves out are not held against it."""
    return _rank(image, host) is not None


def choose(manifests: Iterable[Descriptor], host: Platform) -> tuple[Descriptor, ...]:
    """Those of an index that `host` can run, best first; those that do not say what they are for come last."""
    ranked = []
    for item in manifests:
        if not _may_be_image(item):
            continue
        rank = _rank(item.platform, host) if item.platform else (0, 0)
        if rank is not None:
            ranked.append(((silent(item.platform), *rank), item))
    # Sorting is stable: equal ones stay in the order of the index, as the format requires.
    ranked.sort(key=lambda pair: pair[0])
    return tuple(item for _, item in ranked)


def nearest(manifests: Iterable[Descriptor], host: Platform) -> tuple[Descriptor, ...]:
    """Those of an index that are for a newer variant of `host`'s architecture than it has, the oldest first.

    What the processor can do in fact is not known here.
    """
    found = []
    for item in manifests:
        if item.platform is None or not _may_be_image(item) or runs_on(item.platform, host):
            continue
        ours, theirs = normalized(host), normalized(item.platform)
        if (theirs.os or ours.os, theirs.architecture) == (ours.os, ours.architecture):
            found.append((_number(theirs), item))
    found.sort(key=lambda pair: pair[0])
    return tuple(item for _, item in found)


def objection(platform: Platform, host: Platform) -> str:
    """Why an image that offers nothing else may not run here, in words; "" if nothing speaks against it.

    Programs for another processor run where the kernel has an interpreter for them (binfmt_misc). Raises Unsupported
    for what no Linux machine runs.
    """
    if runs_on(platform, host):
        return ""
    if normalized(platform).os == "windows" != normalized(host).os:
        raise Unsupported(f"the image is for {platform}, this machine is {host}; only Windows runs it")
    return f"the image is for {platform}, this machine is {host}: it runs only with an emulator (binfmt_misc)"


def is_other_kind(item: Descriptor) -> bool:
    """Whether an entry of an index has the type of something that is neither a manifest nor an index."""
    return plain_type(item.media_type) not in (*MANIFESTS, *INDEXES, *UNSPECIFIC)


def _may_be_image(item: Descriptor) -> bool:
    return not item.annotations.get(REFERENCE_ANNOTATION) and not is_other_kind(item)


def _rank(image: Platform, host: Platform) -> tuple[int, int] | None:
    """How good a choice an image is, smaller is better; None for one that `host` cannot run."""
    theirs, ours = normalized(image), normalized(host)
    if (theirs.os or ours.os) != ours.os:
        return None
    if (theirs.architecture or ours.architecture) == ours.architecture:
        number, most = _number(theirs), _number(ours)
        return (0, -number) if not theirs.variant or number <= most else None
    if theirs.architecture == _ALSO_RUNS.get(ours.architecture):
        return (1, -_number(theirs)) if _number(theirs) <= _BASELINE["arm64"] else None
    return None


def _number(platform: Platform) -> int:
    """A variant as a number; one that is not known is newer than all others."""
    if not platform.variant:
        return _BASELINE.get(platform.architecture, 0)
    match = _VARIANT.fullmatch(platform.variant)
    return int(match[1]) if match else 1000
