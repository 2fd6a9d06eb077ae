"""Two nodes in one machine: in two network namespaces where that is permitted, else on loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import harness
import processes


@dataclass(frozen=True)
class Network:
    """How two nodes reach each other.

    Attributes:
        addresses: of the first node and of the second.
        interfaces: theirs.
        namespace: the second node's, or ``None``: both are in this one.
    """

    addresses: tuple[str, str]
    interfaces: tuple[str, str]
    namespace: str | None


@contextmanager
def network() -> Iterator[Network]:
    """A namespace and a pair of virtual interfaces; loopback where ``ip`` is missing or refused."""
    name = f"layered{os.getpid()}"
    host, guest = f"lh{os.getpid()}", f"lg{os.getpid()}"
    prefix = f"10.{213 + os.getpid() % 40}.{os.getpid() % 250}"
    setup = [
        f"netns add {name}",
        f"link add {host} type veth peer name {guest} netns {name}",
        f"addr add {prefix}.1/24 dev {host}",
        f"link set {host} up",
        f"-n {name} addr add {prefix}.2/24 dev {guest}",
        f"-n {name} link set {guest} up",
        f"-n {name} link set lo up",
    ]
    try:
        made = all(ip(command) for command in setup)
        if made:
            yield Network((f"{prefix}.1", f"{prefix}.2"), (host, guest), name)
        else:
            yield Network(("127.0.0.1", "127.0.0.1"), ("lo", "lo"), None)
    finally:
        ip(f"netns delete {name}")
        ip(f"link delete {host}")


def ip(command: str) -> bool:
    """Whether ``ip`` with these arguments worked."""
    try:
        return subprocess.run(["ip", *command.split()], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def two_nodes(
    commands: list[list[str]], folder: Path, env: dict[str, str]
) -> Iterator[harness.Server]:
    """Run a server of two nodes until the block ends.

    Args:
        commands: of the first node, which answers requests, and of the second.
        folder: for their logs.
        env: for both.
    """
    with network() as net, ExitStack() as stack:
        meet = f"{net.addresses[0]}:{harness.free_port()}"
        nodes = ["--nnodes", "2", "--dist-init-addr", meet, "--node-rank"]
        first, second = ([*command, *nodes, str(i)] for i, command in enumerate(commands))
        # Each would take the address and the interface of the machine's way to the internet.
        envs = [
            {**env, "SGLANG_HOST_IP": address, "GLOO_SOCKET_IFNAME": interface}
            for address, interface in zip(net.addresses, net.interfaces, strict=True)
        ]
        guest = harness.start(second, folder / "node1.log", envs[1], net.namespace)
        stack.callback(processes.stop, guest)
        with harness.running(first, folder / "node0.log", envs[0]) as server:
            yield server
            assert guest.poll() is None, (folder / "node1.log").read_text()[-4000:]
