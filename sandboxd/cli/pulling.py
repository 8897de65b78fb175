"""Pulling an image and showing its progress, for `pull` and for `run` with a missing image."""

from __future__ import annotations

import click
import grpc

from sandboxd.cli import progress
from sandboxd.cli.client import Exit, Failure
from sandboxd.cli.parse import CredentialsFlag
from sandboxd.cli.session import Session, note
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

_HINTS = {
    grpc.StatusCode.UNAUTHENTICATED: "log in: sandboxctl pull --creds USER, or the machine's docker config",
    grpc.StatusCode.UNAVAILABLE: "what was fetched is kept: try again; `sandboxctl info` shows the daemon's state",
    grpc.StatusCode.DEADLINE_EXCEEDED: "what was fetched is kept: try again",
}


def pull(session: Session, image: str, credentials: CredentialsFlag | None, *, quiet: bool) -> host.PulledImage:
    """Pull the image and show the progress. An interrupt stops it. Only the daemon limits how long it may take.

    Raises Failure if the pull fails.
    """
    pulled: host.PulledImage | None = None
    call = session.daemon.host.PullImage(host.PullImageRequest(image=image, auth=_auth(credentials)))
    try:
        with progress.layers(quiet=quiet) as update, session.daemon.translating(f"pull {image}"):
            for answer in call:
                if answer.HasField("image"):
                    pulled = answer.image
                elif answer.HasField("layer"):
                    update(answer.layer)
    except Failure as failure:
        failure.hint = _HINTS.get(failure.code, failure.hint) if failure.code else failure.hint
        if failure.code is grpc.StatusCode.UNAVAILABLE:
            failure.exit_code = Exit.FAILED  # the daemon did answer: it is the registry that is unavailable
        raise
    except KeyboardInterrupt:
        note("sandboxctl: the pull stops unless other clients want it; what was fetched is kept for the next attempt")
        raise
    finally:
        call.cancel()
    if pulled is None:
        raise Failure(f"cannot pull {image}: the daemon ended the call without an answer")
    return pulled


def _auth(credentials: CredentialsFlag | None) -> cri.AuthConfig | None:
    """The credentials for the request; prompts for a missing password."""
    if credentials is None:
        return None
    password = credentials.password
    if password is None:
        password = click.prompt(f"Password of {credentials.username}", hide_input=True, default="", err=True)
    return cri.AuthConfig(username=credentials.username, password=password)
