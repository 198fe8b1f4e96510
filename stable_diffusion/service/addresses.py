"""Addresses and names of the page's server: who can reach it, and by which names it is asked for."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket

from ..errors import InputError, StableDiffusionError

PASSWORD_VARIABLE = "STABLE_DIFFUSION_PASSWORD"
SHORTEST_PASSWORD = 8
EVERYWHERE = "0.0.0.0"


def is_loopback(address: str) -> bool:
    """Whether a name or address leads to this machine only."""
    try:
        found = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return address.lower() == "localhost"
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def own_names(address: str) -> list[str]:
    """The names and addresses by which others may ask for a server that listens at `address`; the best one first."""
    host = socket.gethostname().lower()
    names = [host] if "." in host or host == "localhost" else [f"{host}.local", host]
    address = address.strip("[]")
    if address not in (EVERYWHERE, "::"):
        return [address, *names]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the address that leads out of here
        names = [probe.getsockname()[0], *names]
    return names


def checked_host(name: str) -> str:
    """A name for Host headers to be compared with: a name, an address, "*.name" or "*"; raises `InputError`."""
    name = name.strip().strip("[]")
    if re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", name):
        return name
    raise InputError(f"{name!r} is not the name of a host: give one name at a time, without http:// or port.")


def checked_password(password: str) -> str:
    """A password that cannot be guessed at once; raises `InputError`."""
    if len(password) < SHORTEST_PASSWORD:
        raise InputError(f"The password should have at least {SHORTEST_PASSWORD} characters.")
    return password


def check_port(address: str, port: int) -> None:
    """Raise `StableDiffusionError` if a server could not listen there."""
    where = "127.0.0.1" if address == "localhost" else address.strip("[]")
    try:
        with socket.create_server((where, port), family=socket.AF_INET6 if ":" in where else socket.AF_INET):
            pass
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StableDiffusionError(
                f"Port {port} is in use, perhaps by a page that is still running. Choose another one: --port {port + 1}"
            ) from None
        raise StableDiffusionError(f"This machine cannot listen at {address}, port {port}: {error.strerror}") from None
