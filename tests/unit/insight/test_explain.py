"""Which operations a name means."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sandboxd.insight.explain import about


@dataclass(frozen=True)
class Told:
    subject: str
    sandbox_id: str = ""
    container_id: str = ""


POD = Told("default/web", "ab12" + "0" * 60)
CONTAINER = Told("default/web/nginx", "ab12" + "0" * 60, "cd34" + "0" * 60)
OTHER = Told("prod/web", "ef56" + "0" * 60)
LONGER = Told("default/webshop", "ef57" + "0" * 60)
IMAGE = Told("docker.io/library/web:1")
ALL = [POD, CONTAINER, OTHER, LONGER, IMAGE]


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("web", [POD, CONTAINER, OTHER]),
        ("default/web", [POD, CONTAINER]),
        ("nginx", [CONTAINER]),
        ("web/nginx", [CONTAINER]),
        ("prod", [OTHER]),
        ("ab12", [POD, CONTAINER]),
        ("cd34" + "0" * 60, [CONTAINER]),
        ("ab1", []),  # too short for an id
        ("docker.io/library/web:1", [IMAGE]),
        ("web:1", [IMAGE]),
        ("we", []),
        ("", []),
        ("/", []),
    ],
)
def test_a_reference_means_ids_and_whole_parts_of_names(reference: str, meant: list[Told]) -> None:
    assert about(ALL, reference) == meant


def test_several_references_keep_the_order_of_the_operations() -> None:
    assert about(ALL, "ef57", "nginx") == [CONTAINER, LONGER]
