"""Two machines in one: network namespaces joined by a pair of virtual ethernet devices, in which commands are started as on two hosts."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace with one device, whose commands reach the other host and nothing else."""

    namespace: str
    device: str
    address: str

    def command(self, *words: str) -> list[str]:
        """The command that runs these arguments there."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def variables(self) -> dict[str, str]:
        """What tells gloo and nccl which device leads to the other host."""
        return {"GLOO_SOCKET_IFNAME": self.device, "NCCL_SOCKET_IFNAME": self.device}

    def unplug(self) -> None:
        """Take the cable out: packets are lost, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", self.device, "down")


def why_not() -> str:
    """Why no namespaces can be made here; empty: they can."""
    if shutil.which("ip") is None:
        return "needs ip of iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return ""


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other; gone afterwards."""
    tag = os.getpid() % 100000
    hosts = (Host(f"host0-{tag}", f"v0-{tag}", "10.77.0.1"), Host(f"host1-{tag}", f"v1-{tag}", "10.77.0.2"))
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", hosts[0].device, "netns", hosts[0].namespace, "type", "veth",
            "peer", "name", hosts[1].device, "netns", hosts[1].namespace)  # fmt: skip
        for host in hosts:
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.device)
            for device in ("lo", host.device):
                _ip("-n", host.namespace, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True)


def require_hosts() -> None:
    """Skip the test, with the reason, where hosts cannot be made."""
    if reason := why_not():
        pytest.skip(reason)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
