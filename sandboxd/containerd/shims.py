"""The sockets of runc shims; a shim that is killed while starting leaves its socket behind.

A shim's socket is named by the SHA-256 of "<containerd's socket>/<namespace>/<group>", where the group is the pod's
id (its grouping annotation), below a directory that is the same for every containerd. Checked on 1.6 and 2.4.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat

from sandboxd.errors import CleanupIncomplete

DIRECTORY = "/run/containerd/s"


def socket_path(containerd_socket: str, namespace: str, group: str, directory: str = DIRECTORY) -> str:
    """Where the shim of a pod listens."""
    name = os.path.join(containerd_socket, namespace, group)
    return f"{directory}/{hashlib.sha256(name.encode()).hexdigest()}"


def remove_dead_socket(path: str) -> None:
    """Remove a socket on which no shim listens. Idempotent; a socket that answers stays.

    Raises CleanupIncomplete when it cannot be removed.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
    except FileNotFoundError:
        return
    except BlockingIOError:
        return  # its queue is full: a shim listens
    except ConnectionRefusedError:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise CleanupIncomplete(f"the socket {path} of a dead shim cannot be removed: {exc}") from exc
    except OSError as exc:
        raise CleanupIncomplete(f"the socket {path} of a shim cannot be examined: {exc}") from exc
