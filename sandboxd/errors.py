"""The errors that sandboxd raises, named by what they mean to the caller.

Foreign errors (gRPC, OSError, netlink, exit codes) become one of these once, at the resource that met them,
`from` the cause. The gRPC codes that clients see are assigned in `api/edge.py` and nowhere else.

    SandboxdError
    ├── InvalidRequest      the request or a configuration file can never succeed as it stands
    │   └── Unsupported     well-formed, but this runtime or machine does not offer it
    ├── NotFound            the named sandbox, container or image does not exist
    ├── AlreadyExists       the name is taken by another object
    ├── NotReady            the object or machine is in the wrong state; the request may succeed later
    ├── AccessDenied        a registry refused the credentials, or requires some
    ├── Exhausted           a bounded resource has none left (addresses, tokens)
    ├── TimedOut            a bounded step ran out of time
    ├── Unavailable         a service that we need does not answer, or we are not serving yet
    ├── CleanupIncomplete   something is left that a later Stop or Remove must finish
    ├── PluginFailed        a CNI plugin refused or broke; carries the plugin's own message
    └── Unclassified        a service that we need failed, and only its message says why
"""

from __future__ import annotations


class SandboxdError(Exception):
    """Every error that sandboxd raises on purpose. `str()` is a sentence for people."""


class InvalidRequest(SandboxdError):
    """The request or configuration can never succeed as it stands."""


class Unsupported(InvalidRequest):
    """Well-formed, but this runtime or machine does not offer it."""


class NotFound(SandboxdError):
    """The named object does not exist."""


class AlreadyExists(SandboxdError):
    """The name belongs to another object."""


class NotReady(SandboxdError):
    """The object or the machine is in the wrong state for this request."""


class AccessDenied(SandboxdError):
    """A registry refused the credentials, or requires some."""


class Exhausted(SandboxdError):
    """A bounded resource has none left."""


class TimedOut(SandboxdError):
    """A bounded step ran out of time."""


class Unavailable(SandboxdError):
    """A service that we need does not answer."""


class CleanupIncomplete(SandboxdError):
    """Something is left behind; the record is kept so that a retry can finish."""


class Unclassified(SandboxdError):
    """A service that we need failed in a way that it has no code for; its message is all there is."""


class PluginFailed(SandboxdError):
    """A CNI plugin failed.

    `code`, `msg` and `details` are the plugin's error object (CNI spec, "Error"); code 0 means that it printed
    none and `msg` says what was observed instead (exit status, signal, stderr).
    """

    def __init__(self, *, plugin: str, command: str, code: int, msg: str, details: str = "") -> None:
        self.plugin = plugin
        self.command = command
        self.code = code
        self.msg = msg
        self.details = details
        message = f"{msg}: {details}" if details else msg
        suffix = f" (CNI error {code})" if code else ""
        super().__init__(f"CNI plugin {plugin} failed on {command}: {message}{suffix}")
