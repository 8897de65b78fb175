"""Executions of plugins without a process: the same input, the same output, the same changes to the machine.

`run` takes what `execution.run` takes and returns a record of the same form, so that nobody else has to know which of
the two it was. What it does to the kernel and to files is done in threads that end; iptables is a process. A run that
is cancelled, or whose time is over, has ended when `run` returns: a DEL never overlaps its ADD.

Raises `Odd` before anything is done when this execution is the plugin's after all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sandboxd.cni.in_process import bridge, portmap, rules, supported
from sandboxd.cni.in_process.bridge import Pod, Prepared
from sandboxd.cni.in_process.dialects import Dialect
from sandboxd.cni.in_process.host_local import Store
from sandboxd.cni.in_process.iptables import Table
from sandboxd.cni.in_process.netlink import IPInterface, Link
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.in_process.supported import Bridge, Portmap
from sandboxd.cni.in_process.words import Failed, error_object, of_os
from sandboxd.cni.strict_json import load_object
from sandboxd.jobs import in_own_thread
from sandboxd.model import IN_PROCESS
from sandboxd.steps import PluginExecution

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One execution, as it goes on."""

    command: str
    pod: Pod
    env: Mapping[str, str]
    dialect: Dialect
    document: Mapping[str, Any]
    given_up: threading.Event = field(default_factory=threading.Event)

    def table(self, version: int) -> Table:
        return Table(version, self.env)


async def run(
    binary: str,
    env: Mapping[str, str],
    stdin: bytes,
    timeout: float,
    cut_off: Callable[[PluginExecution], object] = lambda execution: None,
    *,
    dialect: Dialect,
) -> PluginExecution:
    """ADD or DEL of one plugin, for at most `timeout` seconds; never raises for how it ended, but for Odd.

    `cut_off` gets the execution when it is cancelled.
    """
    began = time.perf_counter_ns()
    this, course = _course(env, stdin, dialect)
    stdout, exit_code, timed_out = b"", 0, False

    def execution(code: int, *, ours: bool = False) -> PluginExecution:
        return PluginExecution(
            command=this.command,
            binary=binary,
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=b"",
            exit_code=code,
            duration=time.perf_counter_ns() - began,
            timed_out=timed_out,
            ended_by="sandboxd" if ours else "",
            backend=IN_PROCESS,
        )

    try:
        async with asyncio.timeout(timeout):
            stdout = await course
    except Failed as exc:
        stdout, exit_code = error_object(str(exc)), 1
    except TimeoutError:
        timed_out = True
        return execution(-signal.SIGKILL, ours=True)
    except OSError as exc:  # after TimeoutError, which is one
        stdout, exit_code = error_object(of_os(exc)), 1
    except BaseException:
        cut_off(execution(-signal.SIGKILL, ours=True))
        raise
    return execution(exit_code)


def _course(env: Mapping[str, str], stdin: bytes, dialect: Dialect) -> tuple[_Run, Coroutine[Any, Any, bytes]]:
    """What is to be done. Raises Odd."""
    try:
        document = load_object(stdin)
    except ValueError as exc:
        raise Odd("a configuration that cannot be read") from exc
    conf = supported.read(document, env.get("CNI_ARGS", ""))
    pod = Pod(container=env["CNI_CONTAINERID"], netns=env["CNI_NETNS"], ifname=env["CNI_IFNAME"])
    this = _Run(command=env["CNI_COMMAND"], pod=pod, env=env, dialect=dialect, document=document)
    match this.command, conf:
        case "ADD", Bridge():
            tables = _tables(this, conf)
            return this, _add_bridge(this, conf, tables)
        case "DEL", Bridge():
            tables = _tables(this, conf)
            return this, _delete_bridge(this, conf, tables)
        case "ADD", Portmap():
            previous = _previous(document)
            if not conf.mappings:
                return this, _done(dialect.printed(previous))
            return this, _add_portmap(this, conf, portmap.address_in(previous, pod.ifname), this.table(4))
        case "DEL", Portmap():
            if not conf.mappings:
                return this, _done(b"")
            return this, _delete_portmap(this, conf, this.table(4))
    raise Odd(this.command)


def _tables(this: _Run, conf: Bridge) -> Mapping[int, Table]:
    versions = {one[0].subnet.version for one in conf.ranges} if conf.masquerade else set()
    return {version: this.table(version) for version in sorted(versions)}


def _previous(document: Mapping[str, Any]) -> Mapping[str, Any]:
    previous = document.get("prevResult")
    if not isinstance(previous, dict):
        raise Odd("no prevResult")
    return previous


async def _done(stdout: bytes) -> bytes:
    return stdout


async def _add_bridge(this: _Run, conf: Bridge, tables: Mapping[int, Table]) -> bytes:
    prepared = await _in_thread(this, lambda: bridge.prepare(conf, this.pod, this.dialect, this.given_up))
    connecting = _in_thread(this, lambda: bridge.connect(conf, this.pod, prepared, this.dialect, this.given_up))
    masquerading = (
        table.make(_masquerade(this, conf, prepared.addresses, version)) for version, table in tables.items()
    )
    try:
        links, *_ = await _together(connecting, *masquerading)
    except Failed:
        with suppress(Failed):
            await _release(this, conf, prepared.addresses)
        raise
    return this.dialect.printed(_result(this, conf, prepared, links))


async def _delete_bridge(this: _Run, conf: Bridge, tables: Mapping[int, Table]) -> bytes:
    """The rules go with the interface, and the address is free last: no other pod gets it with them still there."""
    given = _given(this.document)
    chain = rules.masquerade_chain(conf.network, this.pod.container)
    doing = []
    for version, table in tables.items():
        of_family = [each for each in given if each.version == version]
        known = _masquerade(this, conf, of_family, version) if of_family else None
        doing.append(table.remove(chain, known))
    if this.pod.netns:
        doing.append(_in_thread(this, lambda: bridge.disconnect(this.pod.netns, this.pod.ifname)))
    await _together(*doing)
    await _release(this, conf, given)
    return b""


async def _release(this: _Run, conf: Bridge, given: Sequence[IPInterface]) -> None:
    store = Store(conf.data_dir, this.dialect.file_mode, this.given_up)
    expected = [str(each.ip) for each in given] if len(given) == len(conf.ranges) else []
    await _in_thread(this, lambda: store.release(this.pod.container, this.pod.ifname, expected))


async def _add_portmap(this: _Run, conf: Portmap, address: IPInterface, table: Table) -> bytes:
    await table.make(portmap.wanted(conf, this.pod.container, address))
    await _in_thread(this, lambda: portmap.let_loopback_through(address))
    return this.dialect.printed(_previous(this.document))


async def _delete_portmap(this: _Run, conf: Portmap, table: Table) -> bytes:
    chain = rules.portmap_chain(conf.network, this.pod.container)
    given = [each for each in _given(this.document) if each.version == 4]
    await table.remove(chain, portmap.wanted(conf, this.pod.container, given[0]) if given else None)
    return b""


def _masquerade(
    this: _Run, conf: Bridge, addresses: tuple[IPInterface, ...] | list[IPInterface], version: int
) -> rules.Rules:
    return rules.masquerade(conf.network, this.pod.container, [each for each in addresses if each.version == version])


def _given(document: Mapping[str, Any]) -> list[IPInterface]:
    """The addresses that ADD gave the pod; none when that is not known."""
    previous = document.get("prevResult")
    try:
        return [ipaddress.ip_interface(each["address"]) for each in previous["ips"]] if previous else []
    except (KeyError, TypeError, ValueError):
        return []


def _result(this: _Run, conf: Bridge, prepared: Prepared, links: tuple[Link, Link, Link]) -> dict[str, Any]:
    host, port, inside = links
    old = conf.cni_version.startswith("0.")
    ips = [
        {
            **({"version": str(address.version)} if old else {}),
            "interface": 2,
            "address": str(address),
            "gateway": str(gateway),
        }
        for address, gateway in zip(prepared.addresses, prepared.gateways, strict=True)
    ]
    routes = [
        {"dst": str(each.destination), **({"gw": str(each.gateway)} if each.gateway else {})}
        for each in prepared.routes(conf)
    ]
    return {
        "cniVersion": conf.cni_version,
        "interfaces": [
            {"name": host.name, "mac": host.mac},
            {"name": port.name, "mac": port.mac},
            {"name": inside.name, "mac": inside.mac, "sandbox": this.pod.netns},
        ],
        "ips": ips,
        **({"routes": routes} if routes else {}),
        "dns": {},
    }


async def _together(*doing: Coroutine[Any, Any, Any]) -> list[Any]:
    """All of them, each to its end; raises the first failure then."""
    outcomes = await asyncio.gather(*doing, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


async def _in_thread(this: _Run, call: Callable[[], T]) -> T:
    """Run `call` in a thread; it has ended when this is cancelled."""
    return await in_own_thread(call, give_up=this.given_up.set)
