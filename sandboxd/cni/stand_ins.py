"""Stand-ins for IPAM plugins that were uninstalled: they succeed and do nothing.

A plugin runs its IPAM plugin's DEL first, and when that is not there it gives up, with its own work not undone: the
rules that `bridge` made for masquerading would stay for ever. It looks for the IPAM plugin in CNI_PATH, where a
stand-in lets it go on. What the IPAM plugin itself kept, such as an address, nobody else can free.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sandboxd.cni.conf import is_file_name


@contextmanager
def directory(types: Iterable[str], path: str) -> Iterator[str]:
    """A directory with a stand-in for each of `types`, to go last in CNI_PATH. `path` is the PATH of the plugins."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-cni-") as made:
        # A link, since the directory's file system may be mounted noexec; true(1) does not care how it is called.
        if true := shutil.which("true", path=path):
            for type_ in filter(is_file_name, types):
                os.symlink(true, os.path.join(made, type_))
        yield made
