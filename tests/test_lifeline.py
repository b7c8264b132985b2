"""Connections between hosts, here of one process: who hears what, and when."""

import contextlib
import queue
import socket
import threading
import time

import pytest

from cascades import ending, lifeline


@pytest.fixture
def ends(monkeypatch):
    """What ends this process: a queue of codes and lines. A main thread has no time of its own to end."""
    found = queue.Queue()
    monkeypatch.setattr(ending, "leave", lambda code, line: found.put((code, line)))
    monkeypatch.setattr(ending, "GRACE", 0.0)
    return found


@pytest.fixture
def hosts(ends):
    """Connects so many hosts; `meddle` does something to the port of the first before the others come."""
    every = []

    def connected(count, meddle=lambda port: None):
        published, lines = queue.Queue(), {}

        def connect(host):
            lines[host] = lifeline.connect(host, count, "localhost", published.put, lambda: address)

        threads = [threading.Thread(target=connect, args=(host,)) for host in range(count)]
        threads[0].start()
        address = published.get(timeout=30)
        meddle(int(address.split()[0]))
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        every.extend(lines.values())
        return [lines[host] for host in range(count)]

    yield connected
    for line in every:
        close(line)
    for listener in (listener for line in every for listener in line._listeners):
        listener.join(30)


def close(line):
    """What the operating system does for a process that has ended."""
    for peer in line._peers.values():
        with contextlib.suppress(OSError):  # it is closed
            peer.shutdown(socket.SHUT_RDWR)


def test_the_first_hands_on_what_it_hears(hosts, ends):
    first, second, third = hosts(3)
    third.tell(143, "host 2 of this run was terminated")
    assert ends.get(timeout=30) == (143, "error: host 2 of this run was terminated")
    assert first.heard(30.0) == (143, "host 2 of this run was terminated")
    assert second.heard(0.0) is None
    first.tell(1, "host 0 of this run failed")  # which followed from that
    assert second.heard(30.0) == (143, "host 2 of this run was terminated")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_gone_is_missed(hosts, ends, victim):
    lines = hosts(2)
    close(lines[victim])
    code, words = lines[1 - victim].heard(30.0)
    assert code == 1 and words.startswith(f"host {victim} of this run is gone without a word")
    assert (code, f"error: {words}") in [ends.get(timeout=30), ends.get(timeout=30)]


def test_nobody_finishes_before_all_do(hosts, ends):
    lines, finished = hosts(3), []

    def finish(host):
        lines[host].finish()
        finished.append(host)

    threads = [threading.Thread(target=finish, args=(host,)) for host in range(3)]
    for thread in threads[:2]:
        thread.start()
    time.sleep(0.3)
    assert finished == []
    threads[2].start()
    for thread in threads:
        thread.join(30)
    assert sorted(finished) == [0, 1, 2]
    for line in lines:
        close(line)
    for listener in (listener for line in lines for listener in line._listeners):
        listener.join(30)
    assert ends.empty()  # who closes the connection then has finished


def test_the_first_stays_until_the_others_are_gone(hosts, monkeypatch):
    monkeypatch.setattr(ending, "GRACE", 20.0)
    first, second = hosts(2)
    threading.Timer(0.5, close, (second,)).start()
    began = time.monotonic()
    first.tell(2, "host 0 of this run could not go on, and says why")
    assert 0.4 < time.monotonic() - began < 20
    assert second.heard(30.0) == (2, "host 0 of this run could not go on, and says why")
    second._leaving.set()


def test_strangers_are_none_of_the_hosts(hosts):
    def stranger(port):
        with socket.create_connection(("localhost", port)) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: nobody\r\nX-Filled-Up: to a token\r\n\r\n")

    first, second = hosts(2, stranger)
    assert list(first._peers) == [1]
    second.tell(2, "no")
    assert first.heard(30.0) == (2, "no")


def test_hosts_that_cannot_connect_go_on_without():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    assert lifeline.connect(1, 2, "localhost", lambda text: None, lambda: f"{port} {'0' * 32}") is None
