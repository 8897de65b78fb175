"""The HTTP proxy for a URL: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as Go and curl read them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sandboxd.registry.hosts import is_loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxies:
    """The values of the three variables, "" when unset. A proxy's URL may contain a password."""

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    no_proxy: str = ""

    def of(self, url: str) -> str:
        """The proxy for `url`, "" for none; loopback is never proxied."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        host = parts.hostname or ""
        if not proxy or is_loopback(f"[{host}]" if ":" in host else host) or self._excepted(host, parts.port):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"

    def _excepted(self, host: str, port: int | None) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        for item in (word.strip().lower() for word in self.no_proxy.split(",")):
            if item == "*":
                return True
            if not item:
                continue
            if address is not None and _contains(item, address):
                return True
            name, colon, item_port = item.rpartition(":")
            if colon and item_port.isdigit() and "]" not in item_port:
                if port is None or int(item_port) != port:
                    continue
                item = name.strip("[]")
            bare = item.removeprefix("*").lstrip(".")
            if host == bare and not item.startswith((".", "*")):
                return True
            if bare and host.endswith(f".{bare}"):
                return True
        return False


def _contains(item: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether `item` is the address or a network (CIDR) that contains it."""
    try:
        return address in ipaddress.ip_network(item, strict=False)
    except ValueError:
        return False
