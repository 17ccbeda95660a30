"""By which address workers elsewhere can reach this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any

from computemanager.errors import SettingsError

__all__ = ["reachable_address"]

_METADATA_VARIABLE = "ECS_CONTAINER_METADATA_URI_V4"
_METADATA_TIMEOUT_S = 2.0
# Addresses set apart for documentation (RFC 5737 and 3849): routed like any other, and never anybody's.
_FAR_AWAY = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def reachable_address(setting: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The address to give to workers.

    Parameters
    ----------
    setting : str, optional
        The user's own choice: a number or a name. It wins.
    environ : mapping, optional
        Environment variables. Default: this process's.

    Returns
    -------
    str
        The setting; else, in an ECS task, the address of the task's network interface, from the container's
        metadata; else that of the interface by which this machine sends to far-away addresses (nothing is
        sent to find out); else the first one that is not a loopback.

    Raises
    ------
    SettingsError
        If there is none.

    Examples
    --------
    >>> reachable_address("10.0.0.7")
    '10.0.0.7'
    """
    environ = os.environ if environ is None else environ
    if setting:
        return setting
    found = _of_ecs_task(environ.get(_METADATA_VARIABLE)) or _of_way_out() or _of_any_interface()
    if found is None:
        raise SettingsError(
            "no address was found under which workers could reach this machine: it has no network but the "
            "loopback. Give one, as address='...'"
        )
    return found


def _of_ecs_task(metadata_address: str | None) -> str | None:
    """The address in a container's metadata (version 4), where there is such a thing."""
    if not metadata_address:
        return None
    try:
        with urllib.request.urlopen(metadata_address, timeout=_METADATA_TIMEOUT_S) as answer:
            metadata: Any = json.load(answer)
        for network in metadata["Networks"]:
            for address in network.get("IPv4Addresses", ()):
                return str(ipaddress.ip_address(address))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def _of_way_out() -> str | None:
    for family, far_away in _FAR_AWAY:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far_away, 9))  # a datagram socket: this only looks up the route
            return str(probe.getsockname()[0])
    return None


def _of_any_interface() -> str | None:
    """The first address that is not a loopback; for networks without a way out."""
    try:
        import fcntl
        import struct
    except ImportError:  # Windows
        return None
    get_address = 0x8915  # SIOCGIFADDR of Linux
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), get_address, struct.pack("256s", name.encode()[:15]))
                address = socket.inet_ntoa(answer[20:24])
                if not ipaddress.ip_address(address).is_loopback:
                    return address
    return None
