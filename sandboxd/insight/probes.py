"""Real packets: ARP, ICMP echo, DNS and TCP, from inside a pod's namespace without any program in it.

A probe never raises for what the network does, and takes `SECONDS` at most; what went wrong is in its answer. Nothing
is sent to anybody but those who are named.

Sources: RFC 826, RFC 5227 (ARP probes), RFC 792, RFC 4443, RFC 1035; packet(7), raw(7), udp(7).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import socket
import struct
import time

from sandboxd import netns
from sandboxd.errors import NotReady
from sandboxd.insight.evidence import Answer

SECONDS = 1.5
ARP_SECONDS = 0.4  # for those who answer to say so; neighbours take a millisecond
_AGAIN_SECONDS = 0.5  # a packet is sent again
_ARP, _ARP_REQUEST, _ARP_REPLY = 0x0806, 1, 2
_ARP_FORMAT = struct.Struct("!HHBBH6s4s6s4s")
_BROADCAST = b"\xff" * 6
_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply
_ICMP_HEADER = struct.Struct("!BBHHH")
# Asks for the name servers of the root, which every server answers, be it by a refusal.
_DNS_QUESTION = struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + b"\0" + struct.pack("!HH", 2, 1)


async def arp(path: str, ifname: str, mac: str, address: str, *, sender: str = "0.0.0.0") -> set[str]:
    """The MAC addresses that answer for an IPv4 address, without the interface's own; all that do within a moment.

    Without a sender it is a probe, which changes nobody's tables. Raises NotReady when it cannot be sent.
    """
    own = bytes.fromhex(mac.replace(":", ""))
    request = _ARP_FORMAT.pack(
        *(1, 0x0800, 6, 4, _ARP_REQUEST, own, socket.inet_aton(sender), bytes(6), socket.inet_aton(address))
    )
    found: set[str] = set()
    with await netns.open_socket(path, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ARP)) as sock:
        sock.setblocking(False)
        try:
            sock.bind((ifname, _ARP))
            sock.sendto(request, (ifname, _ARP, 0, 0, _BROADCAST))
            async with asyncio.timeout(ARP_SECONDS):
                while True:
                    packet = await asyncio.get_running_loop().sock_recv(sock, 64)
                    if len(packet) >= _ARP_FORMAT.size:
                        *_, kind, from_mac, from_ip, _, _ = _ARP_FORMAT.unpack_from(packet)
                        if kind == _ARP_REPLY and from_ip == socket.inet_aton(address) and from_mac != own:
                            found.add(from_mac.hex(":"))
        except TimeoutError:
            return found
        except OSError as exc:
            raise NotReady(f"ARP cannot be sent on {ifname}: {exc.strerror or exc}") from exc


async def ping(path: str, address: str, *, whose: str = "") -> Answer:
    """Whether an address answers ICMP echo requests from inside the namespace."""
    version = ipaddress.ip_address(address).version
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    mark, (kind, reply) = secrets.randbits(16), _ECHO[version]

    async def asked(sock: socket.socket) -> float:
        loop, began, sequence = asyncio.get_running_loop(), time.perf_counter(), 0
        while True:
            sequence += 1
            sent, packet = time.perf_counter(), _echo(kind, mark, sequence)
            sock.sendto(packet, (address, 0))
            try:
                async with asyncio.timeout(_AGAIN_SECONDS):
                    while True:
                        received = await loop.sock_recv(sock, 1500)
                        # An IPv4 raw socket gets the IP header too.
                        icmp = received[(received[0] & 0xF) * 4 :] if version == 4 else received
                        if len(icmp) >= 8:
                            got, _, _, marked, _ = _ICMP_HEADER.unpack_from(icmp)
                            if (got, marked) == (reply, mark):
                                return time.perf_counter() - sent
            except TimeoutError:
                if time.perf_counter() - began > SECONDS - _AGAIN_SECONDS:
                    raise

    return await _answer(address, path, (family, socket.SOCK_RAW, protocol), asked, whose=whose)


async def resolve(path: str, server: str) -> Answer:
    """Whether a name server answers from inside the namespace, whatever it says."""
    family = socket.AF_INET if ipaddress.ip_address(server).version == 4 else socket.AF_INET6

    async def asked(sock: socket.socket) -> float:
        loop, began = asyncio.get_running_loop(), time.perf_counter()
        mark = os.urandom(2)
        sock.connect((server, 53))
        while True:
            sock.send(mark + _DNS_QUESTION)
            try:
                async with asyncio.timeout(_AGAIN_SECONDS):
                    while (await loop.sock_recv(sock, 4096))[:2] != mark:
                        pass
                    return time.perf_counter() - began
            except TimeoutError:
                if time.perf_counter() - began > SECONDS - _AGAIN_SECONDS:
                    raise

    return await _answer(server, path, (family, socket.SOCK_DGRAM, 0), asked)


async def connect(address: str, port: int) -> Answer:
    """Whether a TCP connection from the machine itself is accepted; it is closed at once."""
    family = socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6

    async def asked(sock: socket.socket) -> float:
        began = time.perf_counter()
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return time.perf_counter() - began

    where = f"{address}:{port}" if family is socket.AF_INET else f"[{address}]:{port}"
    return await _answer(where, "", (family, socket.SOCK_STREAM, 0), asked)


async def _answer(to: str, path: str, kind: tuple[int, int, int], ask: object, *, whose: str = "") -> Answer:
    """What came of asking through a socket of that kind in the namespace; "" is the daemon's own."""
    assert callable(ask)
    try:
        with await netns.open_socket(path, *kind) if path else socket.socket(*kind) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(SECONDS):
                seconds = await ask(sock)
    except TimeoutError:
        return Answer(to=to, answered=False, how=f"no answer in {SECONDS:g} s", whose=whose)
    except ConnectionRefusedError:
        return Answer(to=to, answered=False, how="refused", whose=whose)
    except (NotReady, OSError) as exc:
        words = exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
        return Answer(to=to, answered=False, how=words, whose=whose)
    return Answer(to=to, answered=True, how=f"in {seconds * 1000:.1f} ms", whose=whose)


def _echo(kind: int, mark: int, sequence: int) -> bytes:
    """An echo request; of ICMPv6 the kernel computes the checksum (RFC 3542)."""
    payload = b"sandboxd"
    packet = _ICMP_HEADER.pack(kind, 0, 0, mark, sequence) + payload
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return _ICMP_HEADER.pack(kind, 0, checksum, mark, sequence) + payload
