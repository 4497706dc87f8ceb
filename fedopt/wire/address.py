"""Where a server listens: `host:port`, or a port of this machine alone."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from fedopt.registry import ConfigError


class Address(NamedTuple):
    """A host, without brackets, and a port; port 0 takes a free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether it is reached from this machine alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read(text: str, key: str) -> Address:
    """`host:port`, `[IPv6]:port`, or a port alone, which is one of 127.0.0.1; `key` is what to change.

    Raises ConfigError.
    """
    host, _, port = text.strip().rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16) or (":" in host) != host.startswith("["):
        raise ConfigError(key, f"host:port is needed, as in 127.0.0.1:9444; {text!r:.80} was given")
    return Address(host.strip("[]") or "127.0.0.1", int(port))
