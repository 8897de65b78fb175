"""The environment that the daemon was started in, and the one that it hands on: what of it means something to us."""

from __future__ import annotations

import os
from typing import TextIO

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where there is no PATH


def notify_socket() -> str:
    """systemd's notification socket (sd_notify(3)), "" when not started by systemd."""
    return os.environ.get("NOTIFY_SOCKET", "")


def is_journal(stream: TextIO) -> bool:
    """Whether systemd's journal reads what is written there: it is in JOURNAL_STREAM then (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # closed, or nothing that the kernel knows
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def plugin_path(configured: str) -> str:
    """PATH for the network's plugins: the configured one, or this process's own if that is ""."""
    return configured or os.environ.get("PATH") or DEFAULT_PATH


def child_environment() -> dict[str, str]:
    """The environment for programs that outlive us: ours, without what was meant for this process or its session.

    A containerd that inherited NOTIFY_SOCKET would tell systemd that sandboxd is ready. XDG_RUNTIME_DIR is removed
    when the user who started us logs out, and containerd's shim, which writes there for each exec, then fails.
    """
    left_out = ("JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "XDG_RUNTIME_DIR")
    return {key: value for key, value in os.environ.items() if key not in left_out}


def proxy_variables() -> tuple[str, str, str]:
    """The proxies for HTTP and HTTPS and the hosts that need none, as curl(1) reads them; "" when unset.

    HTTP_PROXY in capitals is not read, as in curl: the client of a CGI program could set it.
    """
    env = os.environ
    http = env.get("http_proxy", "")
    https = env.get("https_proxy") or env.get("HTTPS_PROXY", "")
    return http, https, env.get("no_proxy") or env.get("NO_PROXY", "")
