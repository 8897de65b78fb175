"""The contracts of `.importlinter` hold, and each finds what it is there for.

A contract that names modules by hand goes stale in silence: a room that it does not list is free of it. So violations
are planted here one by one, in a copy of the import graph, and each must be found by the contracts as they stand in
the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations, permutations
from typing import Any

import grimp
import pytest
from importlinter import Contract
from importlinter.api import read_configuration
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract

from tests.unit.architecture.source import ROOT

TYPES: dict[str, type[Contract]] = {
    "acyclic_siblings": AcyclicSiblingsContract,
    "forbidden": ForbiddenContract,
    "layers": LayersContract,
    "protected": ProtectedContract,
}
CONFIGURATION = read_configuration(str(ROOT / ".importlinter"))
OPTIONS: dict[str, dict[str, Any]] = {options["id"]: options for options in CONFIGURATION["contracts_options"]}
LAYERED = sorted(name for name, options in OPTIONS.items() if options["type"] == "layers")

Import = tuple[str, str]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("sandboxd", include_external_packages=True, cache_dir=None)


@pytest.fixture(scope="module")
def bare(graph: grimp.ImportGraph) -> grimp.ImportGraph:
    """The modules without their imports: one that is planted here is found for itself, not for what it leads to."""
    copy = deepcopy(graph)
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            copy.remove_import(importer=importer, imported=imported)
    return copy


def finds(contract: str, graph: grimp.ImportGraph) -> bool:
    """Whether the contract is broken in the graph."""
    options = OPTIONS[contract]
    checked = TYPES[options["type"]](options["name"], CONFIGURATION["session_options"], options)
    return not checked.check(deepcopy(graph), verbose=False).kept


def planted(graph: grimp.ImportGraph, importer: str, imported: str) -> grimp.ImportGraph:
    """A copy of the graph with one more import; what it names and is not there is there in the copy."""
    copy = deepcopy(graph)
    for module in (importer, imported):
        parts = module.split(".")
        for depth in range(2, len(parts) + 1):
            if (name := ".".join(parts[:depth])) not in copy.modules:
                copy.add_module(name)
    copy.add_import(importer=importer, imported=imported, line_number=1, line_contents="planted")
    return copy


def rows(contract: str) -> list[list[str]]:
    """The contract's layers from the top, each the full names of its siblings."""
    options = OPTIONS[contract]
    container = options["containers"]
    return [
        [f"{container}.{sibling.strip(' ()')}" for sibling in re.split("[|:]", layer)] for layer in options["layers"]
    ]


def upward_and_sideways(rows: list[list[str]]) -> Iterator[Import]:
    """From each module to each that is above it, and to each beside it."""
    for above, below in combinations(rows, 2):
        yield from ((importer, imported) for importer in below for imported in above)
    for row in rows:
        yield from permutations(row, 2)


def innermost(graph: grimp.ImportGraph, room: str) -> str:
    """A module that is deep in the room, or the room itself where it is one module."""
    return min(graph.find_descendants(room) or {room}, key=lambda name: (-name.count("."), name))


@pytest.mark.parametrize("contract", sorted(OPTIONS))
def test_the_contracts_hold(contract: str, graph: grimp.ImportGraph) -> None:
    assert not finds(contract, graph)


@pytest.mark.parametrize("contract", LAYERED)
def test_every_import_upward_or_between_siblings_is_found(contract: str, bare: grimp.ImportGraph) -> None:
    there = [[innermost(bare, room) for room in row if room in bare.modules] for row in rows(contract)]
    imports = list(upward_and_sideways(there))

    assert len(imports) >= len(bare.find_children(OPTIONS[contract]["containers"]))
    assert [each for each in imports if not finds(contract, planted(bare, *each))] == []


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("cli.render", "streaming.channels", "cli"),
        ("cli.render", "cgroups.sample", "cli"),
        ("cli.client", "errors", "cli"),
        ("cli.client", "pb.containerd.services.tasks.v1.tasks_pb2", "cli"),
        ("cli.client", "a_new_room.module", "cli"),
        ("daemon", "cli.render", "layers"),
        ("streaming.server", "pb.containerd.services.tasks.v1.tasks_pb2", "containerd-messages"),
        ("registry.client", "pb.containerd.services.tasks.v1.tasks_pb2", "containerd-messages"),
        ("cgroups.kernel", "pb.containerd.services.tasks.v1.tasks_pb2", "containerd-messages"),
        ("steps", "pb.containerd.types.mount_pb2", "containerd-messages"),
        ("__main__", "pb.containerd.types.mount_pb2", "containerd-messages"),
        ("a_new_room.module", "pb.containerd.types.mount_pb2", "containerd-messages"),
        ("a_new_module", "pb.containerd.types.mount_pb2", "containerd-messages"),
        ("a_new_room.module", "errors", "layers"),
        ("a_new_module", "errors", "layers"),
        ("containers.declared_volumes", "pods.teardown", "layers"),
        ("images.store", "pods.recover", "layers"),
        ("pb.host.v1.host_pb2", "model", "layers"),
        ("pods.files", "pods.teardown", "pods"),
        ("pods.network", "pods.run", "pods"),
        ("pods.cidr", "pods.recover", "pods"),
        ("pods.ports", "pods.follow", "pods"),
        ("pods.a_new_module", "errors", "pods"),
        ("containers.image_mounts", "containers.create", "containers"),
        ("containers.a_new_module", "errors", "containers"),
        ("images.store", "images.fetch", "images"),
        ("images.store", "images.unpack", "images"),
        ("images.a_new_module", "errors", "images"),
        ("registry.reference", "registry.client", "acyclic"),
        ("cni.conf", "cni.invoker", "acyclic"),
    ],
)
def test_a_planted_violation_is_found(importer: str, imported: str, contract: str, graph: grimp.ImportGraph) -> None:
    assert finds(contract, planted(graph, f"sandboxd.{importer}", f"sandboxd.{imported}"))


def test_an_import_downward_is_not_a_violation(graph: grimp.ImportGraph) -> None:
    """What finds everything proves nothing."""
    copy = planted(graph, "sandboxd.api.edge", "sandboxd.errors")

    assert [contract for contract in OPTIONS if finds(contract, copy)] == []


def test_a_module_that_no_layer_places_is_found_before_it_imports_anything(graph: grimp.ImportGraph) -> None:
    copy = deepcopy(graph)
    copy.add_module("sandboxd.a_new_module")

    assert finds("layers", copy)


def test_only_sandboxctl_has_an_exception_and_it_is_the_wire() -> None:
    """An exception lifts a rule for one import, which no other planted violation would show."""
    exceptions = ("ignore_imports", "exhaustive_ignores", "skip_descendants", "allow_indirect_imports")
    excepted = {name: options[key] for name, options in OPTIONS.items() for key in exceptions if key in options}

    assert excepted == {
        "cli": ["sandboxd.cli.** -> sandboxd.pb.cri.**", "sandboxd.cli.** -> sandboxd.pb.host.**"],
    }


def test_a_package_itself_imports_nothing(graph: grimp.ImportGraph) -> None:
    """Importing any module of it imports the package, so its imports would be every module's and seen in none."""
    packages = [name for name in graph.modules if name.startswith("sandboxd") and graph.find_children(name)]
    importing = {name: graph.find_modules_directly_imported_by(name) for name in packages}

    assert {name: names for name, names in importing.items() if names} == {}
