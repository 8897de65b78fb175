"""Answers of Explain for the tests of its page: a pod with a network, a failed one, one under way, a hostile one."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from sandboxd.pb.host.v1 import host_pb2 as host

MS = 10**6
BEGIN = 1_796_057_560_011 * MS
NOW = BEGIN + 5000 * MS
NETNS = "/run/netns/sandboxd-a"
BRIDGE: dict[str, Any] = {
    "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "sbx0", "isGateway": True, "ipMasq": True
}  # fmt: skip
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
RESULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "sbx0"},
        {"name": "veth1"},
        {"name": "eth0", "sandbox": NETNS, "mac": "0a:00:00:00:00:01"},
    ],
    "ips": [{"interface": 2, "address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.9"}],
}
REFUSED = {"code": 999, "msg": "no address"}


def step(name: str, at: float, took: float, **fields: Any) -> host.Step:
    return host.Step(
        operation="RunPodSandbox", name=name, started_at=BEGIN + int(at * MS), duration=int(took * MS), **fields
    )


def execution(kind: str, conf: dict[str, Any], answer: dict[str, Any], **fields: Any) -> host.PluginExecution:
    return host.PluginExecution(
        command=fields.pop("command", "ADD"),
        binary=f"/usr/lib/cni/{kind}",
        env={"CNI_COMMAND": "ADD", "CNI_IFNAME": fields.pop("ifname", "eth0"), "CNI_NETNS": NETNS},
        stdin=json.dumps({**conf, "type": kind}).encode(),
        stdout=json.dumps(answer).encode(),
        duration=MS,
        **fields,
    )


def bridge_add(at: float = 5, **fields: Any) -> host.Step:
    return step("cni.add", at, 40, plugin=execution("bridge", BRIDGE, RESULT, **fields), detail={"network": "net"})


def portmap_add(at: float = 50, **fields: Any) -> host.Step:
    conf = {"name": "net", "prevResult": RESULT, "runtimeConfig": PORTS}
    return step("cni.add", at, 30, plugin=execution("portmap", conf, RESULT, **fields), detail={"network": "net"})


def netns() -> host.Step:
    return step("pod.netns.create", 1, 2, detail={"path": NETNS, "inode": "77"})


def running_pod(*steps: host.Step) -> host.ExplainResponse:
    """A pod with bridge and portmap, its file systems mounted meanwhile."""
    return host.ExplainResponse(
        pod_sandbox_id="a" * 64,
        netns_path=NETNS,
        netns_inode=77,
        pid=42,
        steps=steps
        or [
            netns(),
            bridge_add(),
            step("pod.files.mount", 6, 10),
            portmap_add(),
            step("pod.network.attach", 4, 80, detail={"network": "net"}),
            step("pod.run", 0, 100),
        ],
    )


def failed_pod(*steps: host.Step) -> host.ExplainResponse:
    """What is left of a pod whose bridge had no address to give."""
    plugin = execution("bridge", BRIDGE, REFUSED, exit_code=1, stderr=b"it is\nfull")
    known = {"cause": "every address is given out", "next": "free some"}
    failure = host.Operation(
        operation="RunPodSandbox",
        subject="default/full",
        started_at=BEGIN,
        duration=200 * MS,
        error="bridge failed on ADD: no address; cause: every address is given out; next: free some",
        times=3,
        steps=steps
        or [
            netns(),
            step("cni.add", 5, 40, plugin=plugin, error="bridge failed on ADD: no address", detail=known),
            step("pod.network.attach", 4, 42, error="bridge failed on ADD: no address", detail={"network": "net"}),
            step("pod.run", 0, 50, error="bridge failed on ADD: no address"),
            step("pod.stop", 60, 100),
        ],
    )
    return host.ExplainResponse(operations=[failure])


def pod_under_way() -> host.ExplainResponse:
    """A pod whose second plugin takes its time."""
    waiting = [
        host.Step(name="pod.run", started_at=BEGIN),
        host.Step(name="pod.network.attach", started_at=BEGIN + 4 * MS, detail={"network": "net"}),
        host.Step(name="cni.add", started_at=BEGIN + 50 * MS, detail={"network": "net", "plugin": "portmap"}),
    ]
    finished = [netns(), bridge_add()]
    run = host.Operation(
        operation="RunPodSandbox", subject="default/slow", started_at=BEGIN, steps=finished, open=waiting
    )
    return host.ExplainResponse(
        pod_sandbox_id="a" * 64, netns_path=NETNS, netns_inode=77, steps=finished, operations=[run]
    )


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\x1b[2J\u202e]]><!--"


def hostile_pod() -> host.ExplainResponse:
    """An answer in which every text is hostile."""
    bad = HOSTILE
    result = {
        "interfaces": [{"name": bad}, {"name": f"v{bad}"}, {"name": bad, "sandbox": bad, "mac": bad}],
        "ips": [{"interface": 2, "address": bad, "gateway": bad}],
        "routes": [{"dst": bad, "gw": bad}],
        bad: bad,
    }
    ports = {"portMappings": [{"hostIP": bad, "hostPort": bad, "containerPort": bad, "protocol": bad}]}
    conf = {"name": bad, "bridge": bad, "isGateway": True, "ipMasq": True, "runtimeConfig": ports, bad: bad}
    plugin = host.PluginExecution(
        command=bad,
        binary=f"/{bad}",
        env={"CNI_IFNAME": bad, bad: bad},
        stdin=json.dumps({"type": "bridge", **conf}).encode(),
        stdout=json.dumps(result).encode(),
        stderr=bad.encode(),
        ended_by=bad,
    )
    second = host.PluginExecution()
    second.CopyFrom(plugin)
    second.stdin = json.dumps({"type": bad, **conf, "prevResult": {"interfaces": [{"name": bad}]}}).encode()
    detail = dict.fromkeys((bad, "cause", "next", "warning", "passed_over", "path", "network", "image", "ips"), bad)
    steps = [
        host.Step(
            operation=bad, name="cni.add", started_at=BEGIN + at * MS, duration=MS, error=error, detail=detail,
            container_id=bad, plugin=each,
        )
        for at, each, error in ((1, plugin, ""), (3, second, bad))
    ]  # fmt: skip
    steps[0].acts.add(what=bad, about=bad, outcome=bad)
    steps.append(host.Step(operation=bad, name=bad, started_at=BEGIN, duration=9 * MS, error=bad, detail=detail))
    both: dict[str, Any] = {
        "operation": bad,
        "subject": bad,
        "pod_sandbox_id": bad,
        "container_id": bad,
        "started_at": BEGIN,
    }
    return host.ExplainResponse(
        pod_sandbox_id=bad,
        netns_path=bad,
        netns_inode=7,
        pid=1,
        steps=steps,
        operations=[
            host.Operation(**both, steps=steps, open=[host.Step(name=bad, started_at=BEGIN, detail=detail)]),
            host.Operation(**both, duration=9 * MS, error=bad, steps=steps),
            host.Operation(**both, duration=9 * MS, error=bad),
        ],
        attachments=[
            host.Attachment(network=bad, ifname=f"b{bad}", state=bad, conf_file=bad, error=bad, ips=[bad], attempts=2)
        ],
    )


class Elements(HTMLParser):
    """What a document consists of: its elements with their attributes, and its text. Demands that tags are closed."""

    _VOID = ("meta", "br")

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """The attributes of the elements with this name, and these words in these attributes."""
        return [
            found
            for name, found in self.elements
            if name == tag
            and all(
                set(words.split()) <= set((found.get(key.rstrip("_").replace("_", "-")) or "").split())
                for key, words in attributes.items()
            )
        ]
