"""Connections between the hosts of a run, by which each learns at once that another has ended, and how.

jax notices by heartbeats, after a while, and then aborts the process. The first host holds a connection to each of the
others. A host that ends early says so in a line, which the first hands on; one that is gone without a word closes its
connection by that. Hosts that cannot connect go on without, and leave it to jax.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable

from cascades import ending

_PATIENCE = 30.0  # seconds in which hosts that have joined connect
_SAYING = 5.0  # seconds in which a connection says whose it is
_TOKEN, _NUMBER, _WELCOME = 32, 8, b"+"  # a host says the token, 32 characters, and its number, and is welcomed


class Lifeline:
    """The connections of one host: to all others, if it is the first, or to the first. Built by `connect`."""

    def __init__(self, peers: dict[int, socket.socket]):
        self._peers = peers
        self._leaving = threading.Event()
        self._word = threading.Event()
        self._heard: tuple[int, str] | None = None
        self._finished = {host: threading.Event() for host in peers}
        self._listeners = [
            threading.Thread(target=self._listen, args=(host, peer), daemon=True) for host, peer in peers.items()
        ]
        for listener in self._listeners:
            listener.start()

    def tell(self, code: int, words: str) -> None:
        """Says how this host ends, or hands on what it heard; the first host stays until the others are gone.

        It holds jax's coordinator, without which theirs abort.
        """
        self._leaving.set()
        code, words = self._heard or (code, words)
        self._send(f"{code} {words}")
        if 0 not in self._peers:
            for listener in {*self._listeners} - {threading.current_thread()}:
                listener.join(1.5 * ending.GRACE)

    def heard(self, seconds: float) -> tuple[int, str] | None:
        """Returns the code and the words of a host that ended early, for which it waits so long."""
        return self._heard if self._word.wait(seconds) else None

    def finish(self) -> None:
        """Returns once every host has come here; one that ends early before ends this one too."""
        if 0 in self._peers:
            self._send("0 ")
        for finished in self._finished.values():
            finished.wait()
        if 0 not in self._peers:
            self._send("0 ")
        self._leaving.set()

    def _send(self, line: str) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(f"{line}\n".encode())

    def _listen(self, host: int, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer, peer.makefile(encoding="utf-8") as lines:
            for line in lines:
                code, _, words = line.strip().partition(" ")
                if code == "0":
                    self._finished[host].set()
                    continue
                self._end(int(code), words, ending.GRACE)
        if not self._finished[host].is_set():
            words = f"host {host} of this run is gone without a word: see its log, and run the command again on all"
            # Without the first host jax aborts this process in a moment.
            self._end(1, words, 0.0 if host == 0 else ending.GRACE)

    def _end(self, code: int, words: str, grace: float) -> None:
        """Ends this host because of another, unless its main thread does so."""
        if self._leaving.is_set():
            return
        self._heard = code, words
        self._word.set()
        if not self._leaving.wait(grace):
            ending.leave(code, f"error: {words}")


def connect(
    host: int, hosts: int, first: str, publish: Callable[[str], None], published: Callable[[], str]
) -> Lifeline | None:
    """Returns the connections of a host, or None where there can be none.

    Args:
      host, hosts: which of them this is, and how many there are. first: the name or address of the first.
      publish: makes a text of the first host known to the others. published: returns it there.
    """
    if host == 0:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, backlog=hosts, dualstack_ipv6=both) as server:
            token = secrets.token_hex(_TOKEN // 2)
            publish(f"{server.getsockname()[1]} {token}")
            return Lifeline(_accepted(server, hosts, token))
    port, token = published().split()
    with contextlib.ExitStack() as kept, contextlib.suppress(OSError):
        peer = kept.enter_context(socket.create_connection((first, int(port)), timeout=_PATIENCE))
        peer.sendall(f"{token}{host:{_NUMBER}d}".encode())
        if peer.recv(1) == _WELCOME:
            peer.settimeout(None)
            kept.pop_all()
            return Lifeline({0: peer})
    return None


def _accepted(server: socket.socket, hosts: int, token: str) -> dict[int, socket.socket]:
    """Returns the connections to the hosts that show the token within `_PATIENCE`."""
    peers: dict[int, socket.socket] = {}
    end = time.monotonic() + _PATIENCE
    while len(peers) < hosts - 1 and (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        with contextlib.ExitStack() as kept, contextlib.suppress(OSError, ValueError):
            peer = kept.enter_context(server.accept()[0])
            peer.settimeout(min(left, _SAYING))
            said = peer.recv(_TOKEN + _NUMBER, socket.MSG_WAITALL)
            if secrets.compare_digest(said[:_TOKEN], token.encode()):
                host = int(said[_TOKEN:])
                peer.sendall(_WELCOME)
                peer.settimeout(None)
                kept.pop_all()
                peers[host] = peer
    return peers
