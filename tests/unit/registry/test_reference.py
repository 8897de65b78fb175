"""Image names are read as every container tool reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.registry.reference import Reference, normalize, parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.25", "docker.io/library/nginx:1.25"),
        ("someone/tool", "docker.io/someone/tool:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/library/nginx:latest", "docker.io/library/nginx:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/tool:v1", "localhost:5000/tool:v1"),
        ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
        ("Registry/tool", "Registry/tool:latest"),
        ("registry.test/a/b_c/d__e-f.g", "registry.test/a/b_c/d__e-f.g:latest"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1@{DIGEST}", f"docker.io/library/nginx:1@{DIGEST}"),
        ("sandboxd.local/pause:builtin", "sandboxd.local/pause:builtin"),
    ],
)
def test_a_name_is_completed_with_the_usual_defaults(text: str, full: str) -> None:
    """Domain, library/ and latest are filled in where they are missing."""
    assert normalize(text) == full
    assert normalize(full) == full


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Nginx", "lower case"),
        ("ngi nx", "path"),
        ("nginx:", "tag"),
        ("nginx:a/b", "host name"),
        ("r.test/nginx:a/b", "tag"),
        ("nginx:-x", "tag"),
        ("nginx@sha256:short", "digest"),
        ("nginx@", "digest"),
        ("-.test/x", "host name"),
        ("registry.test/", "path"),
        ("/nginx", "path"),
        ("a//b", "path"),
        ("../etc", "host name"),
        ("a/../b", "path"),
        ("nginx\n", "path"),
        ("ab" * 32, "image id"),
        (DIGEST, "image id"),
        ("registry.test/" + "a/" * 130 + "b", "longer than 255"),
        ("a" * 2000, "longer than 1024"),
    ],
)
def test_what_is_not_a_name_is_refused_with_the_reason(text: str, reason: str) -> None:
    """The message says which part is wrong."""
    with pytest.raises(InvalidRequest, match=reason):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@registry.test/image:v1",
        "https://hunter2@registry.test/image",
        "docker://me:hun/hunter2@registry.test/image",
        "me:hunter2@registry.test/image:v1",
        "me:hunter2@registry.test:5000/image",
        "me:x@hunter2@registry.test/image",
        "https://registry.test/image?token=hunter2",
        f"https://me:hunter2@registry.test/image@{DIGEST}",
        "me:hunter2@",
    ],
)
def test_credentials_in_a_name_are_refused_and_not_repeated(text: str) -> None:
    """People paste URLs; what they get for it goes to the log."""
    with pytest.raises(InvalidRequest, match="is not an image name") as caught:
        parse(text)

    assert "hunter2" not in str(caught.value)


def test_the_parts_are_kept_apart() -> None:
    """Port, tag and digest all use a colon and are not confused."""
    assert parse(f"r.test:80/a/b:c@{DIGEST}") == Reference(domain="r.test:80", path="a/b", tag="c", digest=DIGEST)
    assert parse("r.test:80/a/b").repository == "r.test:80/a/b"


@given(st.text(max_size=80) | st.text("abAZ09./:@-_[]", max_size=80))
def test_any_text_is_a_name_that_is_stable_or_refused(text: str) -> None:
    """Writing a name out in full is idempotent; nothing but InvalidRequest is ever raised."""
    try:
        full = normalize(text)
    except InvalidRequest:
        return
    assert normalize(full) == full


@pytest.mark.parametrize("port", ["65536", "99999", "10000000080"])
def test_a_port_that_is_too_large_is_no_part_of_a_name(port: str) -> None:
    with pytest.raises(InvalidRequest, match="port is larger than 65535"):
        parse(f"localhost:{port}/a")


def test_every_port_that_there_is_may_be_part_of_a_name() -> None:
    assert parse("localhost:65535/a").domain == "localhost:65535"
    assert parse("localhost:0000000080/a").domain == "localhost:0000000080"
