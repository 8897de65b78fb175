"""The in-process network is as that of the plugins, for configurations that are drawn by lot.

Run by `make test-plugins`. Whatever is drawn that is not done in-process would be the plugin's: only that it is left
to it is checked then.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from sandboxd.cni.in_process.supported import why_not
from tests.root import plugin_runs
from tests.root.plugin_runs import DIRECTORIES, OURS, REAL, Run

pytestmark = [pytest.mark.root, pytest.mark.plugins]

EXAMPLES = 25
SUBNETS = {4: ("10.99.0.0/24", "10.99.0.0/29", "172.30.4.0/22"), 6: ("fd00:99::/64", "fd00:98::/120")}


@st.composite
def ipams(draw: st.DrawFn) -> dict[str, Any]:
    """Ranges of one family or of both, and routes of these."""
    families = draw(st.sampled_from([(4,), (6,), (4, 6), (6, 4)]))
    ipam: dict[str, Any] = {"type": "host-local"}
    ipam["ranges"] = [[{"subnet": draw(st.sampled_from(SUBNETS[family]))}] for family in families]
    if families == (4,) and draw(st.booleans()):
        ipam = {"type": "host-local", "subnet": "10.99.0.0/24", "rangeStart": "10.99.0.20"}
        if draw(st.booleans()):
            ipam |= {"rangeEnd": "10.99.0.21", "gateway": "10.99.0.254"}
    known = {4: [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16"}], 6: [{"dst": "::/0"}, {"dst": "fd11::/48"}]}
    offered = [route for family in families for route in known[family]]
    if routes := draw(st.lists(st.sampled_from(offered), unique_by=lambda route: route["dst"])):
        ipam["routes"] = routes
    return ipam


@st.composite
def runs(draw: st.DrawFn, directory: str) -> Run:
    """One to three pods; host ports only where the pods have IPv4 alone."""
    versions = ["0.3.1", "0.4.0", "1.0.0", *(["1.1.0"] if directory != DIRECTORIES[0] else [])]
    flags = st.fixed_dictionaries(
        {},
        optional={
            **{key: st.booleans() for key in ("isGateway", "isDefaultGateway", "ipMasq", "hairpinMode")},
            "forceAddress": st.just(False),
            "mtu": st.sampled_from([0, 1280, 1400, 9000]),
        },
    )
    conf: dict[str, Any] = {
        "cniVersion": draw(st.sampled_from(versions)),
        "name": "net1",
        "type": "bridge",
        "bridge": "cni9",
    }
    conf |= draw(flags) | {"ipam": draw(ipams())}
    pods = draw(st.integers(1, 3))
    before: list[str] = []
    # Without a gateway the bridge's address is that of a port, whichever has the lowest.
    if not conf.get("isGateway") and not conf.get("isDefaultGateway"):
        before.append("ip link add cni9 address 02:00:00:00:00:09 type bridge")
    port = st.integers(1, 65535)
    mapping = st.fixed_dictionaries(
        {"hostPort": port, "containerPort": port, "protocol": st.just("tcp")},
        optional={"hostIP": st.sampled_from(["127.0.0.1", "192.0.2.7"])},
    )
    ports: list[tuple[dict[str, Any], ...]] = [()] * pods
    if "fd00:" not in json.dumps(conf["ipam"]):
        unique = st.lists(mapping, max_size=4, unique_by=lambda each: each["hostPort"])
        ports = [tuple(draw(unique)) for _ in range(pods)]
    return Run(conf=conf, ports=tuple(ports), before=tuple(before), plugins=directory)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_what_is_drawn_is_as_the_plugins_make_it_and_undone_by_either(directory: str) -> None:
    # An example takes seconds, so one that fails is not made smaller.
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=(Phase.generate,),
    )
    @given(runs(directory))
    def compare(run: Run) -> None:
        assume(not why_not(json.dumps(run.conf).encode(), ""))

        theirs = plugin_runs.seen(run)
        ours = plugin_runs.seen(Run(conf=run.conf, ports=run.ports, before=run.before, plugins=directory, by=OURS))

        assert run.by == REAL
        assert ours == theirs

    compare()
