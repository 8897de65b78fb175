"""Every parser of what others write, as a function of bytes: with texts that it takes, and how it may refuse."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from yarl import URL

from sandboxd import config, foreign_json, mountinfo
from sandboxd.cgroups import sample
from sandboxd.cli import configs
from sandboxd.cni import conf, convert, failures, result, strict_json, template
from sandboxd.errors import SandboxdError
from sandboxd.logs import format as log_format
from sandboxd.logs import wire
from sandboxd.machine import handlers
from sandboxd.oci import cdi, image, layers, seccomp, users
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.registry import auth, hosts, proxies, reference
from sandboxd.streaming import exchange, portforward, remotecommand, spdy, spdy_headers, upgrade, websocket

DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """`refuses` are the errors that it documents."""

    name: str
    parse: Callable[[bytes], object]
    seeds: Sequence[bytes]
    refuses: tuple[type[Exception], ...] = (SandboxdError,)
    levels: int = 100_000  # of nesting that it is given at most
    cheap: bool = True  # a few of its inputs in a millisecond


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _url(base: str) -> None:
    """A URL can be made of it, or the transport says that it cannot."""
    with contextlib.suppress(ValueError):
        URL(base, encoded=True).origin()


def _hosts(data: bytes) -> None:
    for endpoint in hosts.parse(_text(data), "registry.example:5000", "/etc/certs.d/x"):
        _url(endpoint.base)
        proxies.Proxies(http="a:1", https="b:2", no_proxy="c").of(endpoint.base)


def _challenges(data: bytes) -> None:
    chosen = auth.choose(auth.parse_challenges([_text(data)]))
    if chosen is not None:
        for credentials in (auth.Credentials(), auth.Credentials(username="u", password="p")):
            auth.token_request(chosen, credentials, "repository:a:pull", plain_allowed=True)


def _cdi(name: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> None:
        spec = cdi.parse(data, name)
        cdi.resolve([f"{spec.kind}={device}" for device in spec.devices], [[spec]], [])

    return parse


def _result(data: bytes) -> None:
    parsed = result.parse_result(data, "bridge")
    result.pod_ips(parsed, "eth0")
    for version in ("0.2.0", "0.4.0", "1.0.0"):
        with contextlib.suppress(SandboxdError):
            convert.in_version(parsed, version)


def _failure(data: bytes) -> None:
    str(failures.error_from(data, data, 1, False, plugin="p", command="ADD", seconds=1.0))


def _conf(name: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> None:
        read = conf.parse(name, data)
        assert conf.from_json(conf.config_json(read), read.source) == read

    return parse


def _config(data: bytes) -> None:
    config.merge(config.parse(data, "config.toml"), origin="config.toml", flags={})


def _user(data: bytes) -> None:
    passwd, _, group = data.partition(b"\n\n")
    for spec in (
        users.UserSpec(run_as_user=1000),
        users.UserSpec(run_as_username="app"),
        users.UserSpec(image_user=_text(data)[:20]),
    ):
        with contextlib.suppress(SandboxdError):
            users.resolve(spec, passwd, group)


def _layer(data: bytes) -> None:
    layers.scan(io.BytesIO(data), "the layer")


def _spdy(data: bytes) -> None:
    connection = spdy.Connection()
    connection.begin()
    for at in range(0, len(data), 50):
        connection.receive_data(data[at : at + 50])
    connection.receive_eof()


_HANDSHAKE = (
    b"GET /exec/x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _websocket(data: bytes) -> None:
    for tunnelled in (False, True):
        socket = websocket.WebSocket(None)
        assert socket.accept(_HANDSHAKE)
        streams: websocket.Channels | websocket.Tunnel
        if tunnelled:
            streams = websocket.Tunnel(socket, spdy.Connection())
        else:
            streams = websocket.Channels(socket, streams={0: {}, 1: {}}, greetings={}, half_close=True)
        streams.begin()
        streams.receive_data(data)
        streams.receive_eof()


def _upgrade(data: bytes) -> None:
    http = exchange.Exchange()
    if not data:
        return
    try:
        asked = http.receive_data(data)
    except upgrade.Refused as refused:
        http.refuse(refused)
        return
    if asked is not None and asked.transport == upgrade.WEBSOCKET:
        websocket.WebSocket(None).accept(asked.head)


def _pairs(data: bytes) -> None:
    pairing = portforward.Pairing()
    for number, line in enumerate(_text(data).splitlines()):
        kind, _, port = line.partition(" ")
        with contextlib.suppress(SandboxdError):
            pairing.add(number, {"streamtype": kind, "port": port})


def _frames(data: bytes) -> None:
    for kind, payload in wire.Frames().feed(data):
        if kind == wire.MESSAGE:
            wire.parse(payload)


def _cgroup(data: bytes) -> None:
    text = _text(data)
    for read in (sample.keyed, sample.number, sample.pressure, sample.io_stat):
        read(text)
    sample.blkio(text, text)
    files = dict.fromkeys(("cpu.stat", "memory.current", "memory.stat", "memory.max", "cpuacct.usage"), text)
    for per_version in (sample.cpu_v1, sample.cpu_v2, sample.memory_v1, sample.memory_v2):
        per_version(files)


def _log(data: bytes) -> None:
    splitter = log_format.LineSplitter("stdout", 100)
    for line in (splitter.feed(data, 1) + splitter.eof(1)).split(b"\n")[:-1]:
        assert log_format.parse(line) is not None
    log_format.parse(data)


def _pod_file(data: bytes) -> None:
    configs.from_file(_text(data), cri.PodSandboxConfig(), "pod.yaml")


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (("etc", tarfile.DIRTYPE), ("etc/passwd", tarfile.REGTYPE), ("ü" * 120, tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, 5 if kind == tarfile.REGTYPE else 0
            entry.linkname = "etc/passwd" if kind == tarfile.SYMTYPE else ""
            archive.addfile(entry, io.BytesIO(b"hello"))
    return made.getvalue()


_CONFLIST = _json(
    {
        "cniVersion": "1.0.0",
        "name": "net",
        "plugins": [{"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/8"}}, {"type": "portmap"}],
    }
)
_RESULT = _json(
    {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/n", "mac": "aa:bb:cc:dd:ee:ff"}],
        "ips": [{"address": "10.0.0.2/8", "gateway": "10.0.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
        "dns": {"nameservers": ["10.0.0.1"]},
    }
)
_DESCRIPTOR = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 5}
_MANIFEST = _json(
    {"schemaVersion": 2, "config": {**_DESCRIPTOR, "mediaType": image.OCI_CONFIG}, "layers": [_DESCRIPTOR]}
)
_INDEX = _json(
    {"schemaVersion": 2, "manifests": [{**_DESCRIPTOR, "platform": {"os": "linux", "architecture": "amd64"}}]}
)
_IMAGE = _json(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"], "User": "0:0", "Volumes": {"/data": {}}, "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "history": [{"created_by": "x", "empty_layer": True}],
    }
)
_SECCOMP = _json(
    {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}
        ],
    }
)
_CDI = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/class",
    "devices": [{"name": "dev", "containerEdits": {"env": ["A=b"], "deviceNodes": [{"path": "/dev/null"}]}}],
    "containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/b"}], "hooks": []},
}
_YAML = (
    b"cdiVersion: 0.6.0\nkind: vendor.com/class\n"
    b"devices:\n- name: dev\n  containerEdits: &e {env: [A=b]}\ncontainerEdits: *e\n"
)
_YAML_ODD = (
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nkind: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
    b"kind: &x [*x]\n", b"kind: !!timestamp x\n", b"kind: !!bool x\n", b"kind: !!int ''\n", b"? [a]\n: b\n",
    b"kind: 2020-99-99\n", b"kind: !!binary x\n", b"kind: !!python/object:os.system x\n",
    b"kind: !!float .\n", b"1: 2\n",
)  # fmt: skip
_MOUNTINFO = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"

PARSERS = (
    Parser(
        name="image names",
        parse=lambda data: _url(hosts.upstream(reference.parse(_text(data)).domain).base),
        seeds=(b"docker.io/library/nginx:1.0", b"localhost:5000/a/b@" + DIGEST.encode(), b"[::1]:80/x", b"nginx"),
    ),
    Parser(
        name="hosts.toml",
        cheap=False,
        parse=_hosts,
        seeds=(
            b'server = "https://a.example"\n[host."http://b:1"]\ncapabilities = ["pull"]\nca = "x"\n'
            b'client = [["a", "b"]]\n[host."http://b:1".header]\nx = "y"\n',
        ),
    ),
    Parser(name="docker's auth", parse=lambda data: auth.decode(_text(data)), seeds=(b"dTpw", b"dXNlcjpwYXNz")),
    Parser(
        name="challenges",
        cheap=False,
        parse=_challenges,
        seeds=(b'Bearer realm="https://auth.example:443/token",service="a",scope="b", Basic realm="x"',),
    ),
    Parser(name="tokens", parse=lambda data: auth.parse_token(data, "realm"), seeds=(b'{"token": "a"}',)),
    Parser(name="foreign JSON", parse=lambda data: foreign_json.parse(data, "it"), seeds=(_IMAGE, _MANIFEST)),
    Parser(name="strict JSON", parse=strict_json.load_object, seeds=(_CONFLIST,), refuses=(ValueError,)),
    Parser(name=".conflist", parse=_conf("net.conflist"), seeds=(_CONFLIST,)),
    Parser(
        name=".conf", parse=_conf("net.conf"), seeds=(_json({"type": "bridge", "name": "n", "cniVersion": "0.4.0"}),)
    ),
    Parser(
        name="CNI templates",
        cheap=False,
        parse=lambda data: template.render(data, ("10.0.0.0/24",), "net.template"),
        seeds=(_CONFLIST.replace(b'"10.0.0.0/8"', b'"{{.PodCIDR}}"'),),
    ),
    Parser(name="pod CIDRs", parse=lambda data: template.cidrs(_text(data)), seeds=(b"10.0.0.0/8,fd00::/64",)),
    Parser(name="CNI results", cheap=False, parse=_result, seeds=(_RESULT,)),
    Parser(
        name="CNI errors",
        cheap=False,
        parse=_failure,
        seeds=(_json({"code": 7, "msg": "no", "details": "d"}), b"panic: x"),
    ),
    Parser(
        name="CNI versions",
        parse=lambda data: result.supported_versions(data, "p"),
        seeds=(_json({"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}),),
    ),
    Parser(
        name="config.toml",
        cheap=False,
        parse=_config,
        seeds=(b'[daemon]\nroot = "/r"\n[runtime.handlers.crun]\nbinary = "crun"\n',),
    ),
    Parser(name="manifests", parse=image.parse_manifest, seeds=(_MANIFEST, _INDEX)),
    Parser(name="image configs", parse=image.parse_config, seeds=(_IMAGE,)),
    Parser(name="seccomp profiles", parse=lambda data: seccomp.parse_profile(data, "p.json"), seeds=(_SECCOMP,)),
    Parser(name="CDI in JSON", parse=_cdi("x.json"), seeds=(_json(_CDI),)),
    Parser(name="CDI in YAML", cheap=False, parse=_cdi("x.yaml"), seeds=(_YAML, *_YAML_ODD)),
    Parser(
        name="passwd and group",
        cheap=False,
        parse=_user,
        seeds=(b"root:x:0:0:r:/:/bin/sh\napp:x:1000:1000::/:\n\nroot:x:0:\napp:x:1000:a,b\n",),
    ),
    Parser(name="layers", cheap=False, parse=_layer, seeds=(_tar(),)),
    Parser(
        name="OCI runtimes' features",
        parse=handlers.parse,
        seeds=(_json({"mountOptions": ["rro"], "linux": {"namespaces": ["user"]}}),),
    ),
    Parser(name="mountinfo", parse=mountinfo.parse, seeds=(_MOUNTINFO,)),
    Parser(
        name="cgroup files",
        cheap=False,
        parse=_cgroup,
        seeds=(b"usage_usec 5\nanon 4\n", b"8:0 rbytes=1\n", b"max\n"),
    ),
    Parser(
        name="log lines", cheap=False, parse=_log, seeds=(b"2020-01-02T03:04:05.6Z stdout F hello\n", b"a\r\nb\n")
    ),
    Parser(name="the logger's frames", parse=_frames, seeds=(wire.message(id=1, op="x"),), refuses=(wire.Garbled,)),
    Parser(
        name="SPDY",
        cheap=False,
        parse=_spdy,
        seeds=(
            b"\x80\x03\x00\x01\x00\x00\x00\x0a" + bytes(10),
            b"\x00\x00\x00\x01\x00\x00\x00\x02hi\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01",
            b"\x80\x03\x00\x04\x00\x00\x00\x0c\x00\x00\x00\x01" + bytes(8),
        ),
    ),
    Parser(
        name="SPDY headers",
        parse=lambda data: spdy_headers.HeaderReader().read(data),
        seeds=(spdy_headers.HeaderWriter().write({"streamtype": "data", "port": "80"}),),
        refuses=(spdy_headers.BadHeaders,),
    ),
    Parser(
        name="WebSocket",
        cheap=False,
        parse=_websocket,
        seeds=(b"\x82\x83\0\0\0\0\x00hi", b"\x81\x82\0\0\0\0\xffx", b"\x88\x80\0\0\0\0", b"\x89\x80\0\0\0\0"),
    ),
    Parser(
        name="upgrades",
        cheap=False,
        parse=_upgrade,
        seeds=(_HANDSHAKE, b"POST /exec/x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"),
    ),
    Parser(
        name="terminal sizes",
        parse=lambda data: remotecommand.ResizeReader().read(data),
        seeds=(b'{"Width":80,"Height":25}', b'{"Width":1,"Height":1}\n{"Width":2'),
    ),
    Parser(name="port-forward's streams", parse=_pairs, seeds=(b"error 80\ndata 80\n", b"data 0\n")),
    Parser(
        name="sandboxctl's files",
        levels=1000,  # of a person's own file: it may take its time
        cheap=False,
        parse=_pod_file,
        seeds=(b"metadata: {name: a, uid: b}\nlabels: {a: b}\n", *_YAML_ODD),
        refuses=(ValueError,),
    ),
)


def by_name() -> Mapping[str, Parser]:
    """Every parser."""
    return {parser.name: parser for parser in PARSERS}
