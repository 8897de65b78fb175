"""What a reference means, and how an image's user is told."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.images.store import find, user_of
from sandboxd.model import ImageRecord


def record(image_id: str, *tags: str, digest: str = "sha256:" + "f" * 64, **more: Any) -> ImageRecord:
    digests = tuple(sorted({f"{tag.rpartition(':')[0]}@{digest}" for tag in tags}))
    values: dict[str, Any] = {
        "id": image_id,
        "names": (*tags, *digests),
        "repo_tags": tags,
        "repo_digests": digests,
        "size": 1,
        "username": "",
        "uid": None,
        "pinned": False,
        "chain_id": "",
        "config": {},
        "digest": digest,
    }
    return ImageRecord(**(values | more))


NGINX = record("sha256:" + "abc1" + "0" * 60, "docker.io/library/nginx:latest", "docker.io/library/nginx:1")
CAFE = record("sha256:" + "abc2" + "0" * 60, "docker.io/library/cafe:latest", digest="sha256:" + "e" * 64)
UNTAGGED = record("sha256:" + "cafe" + "0" * 60, digest="sha256:" + "d" * 64)
ALL = (NGINX, CAFE, UNTAGGED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nginx", NGINX),
        ("nginx:1", NGINX),
        ("docker.io/library/nginx:latest", NGINX),
        (f"nginx@{NGINX.digest}", NGINX),
        (f"nginx:other@{NGINX.digest}", NGINX),
        (NGINX.id, NGINX),
        (NGINX.id[7:], NGINX),
        ("abc2", CAFE),
        ("sha256:abc2", CAFE),
        ("cafe", CAFE),
        ("sha256:cafe", UNTAGGED),
        ("cafe0", UNTAGGED),
        (UNTAGGED.digest, UNTAGGED),
    ],
)
def test_a_reference_is_a_name_before_it_is_an_id(text: str, expected: ImageRecord) -> None:
    """Names, ids, beginnings of ids, digests of manifests."""
    assert find(ALL, text) is expected


@pytest.mark.parametrize("text", ["nginx:2", "other", "abcd", "sha256:" + "9" * 64, f"cafe@{NGINX.digest}"])
def test_an_unknown_reference_is_not_found_and_says_what_to_do(text: str) -> None:
    """The message has the reference and the next step."""
    with pytest.raises(NotFound, match="sandboxctl load"):
        find(ALL, text)


def test_an_ambiguous_beginning_is_refused() -> None:
    """Picking one of them would run or remove the wrong image."""
    with pytest.raises(InvalidRequest, match="2 image ids"):
        find(ALL, "sha256:abc")


@pytest.mark.parametrize("text", ["", "UPPER", "a b", "sha256:xyz!", "../x"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    """It could never succeed."""
    with pytest.raises(InvalidRequest):
        find(ALL, text)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, ("", None)),
        ("", ("", None)),
        ("0", ("", 0)),
        ("1000:1000", ("", 1000)),
        ("www-data", ("www-data", None)),
        ("www-data:33", ("www-data", None)),
        ("²", ("²", None)),
    ],
)
def test_an_image_s_user_is_a_number_or_a_name(user: str | None, expected: tuple[str, int | None]) -> None:
    """The group is not part of it."""
    assert user_of({} if user is None else {"User": user}) == expected
