"""The guard of conftest.py: internet sockets are refused, here and in children; unix sockets are not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

CHILD = "import socket; socket.create_connection(('192.0.2.1', 80))"


def test_connecting_is_refused_and_logged(socket_attempts: Any) -> None:
    for address in (("192.0.2.1", 80), ("127.0.0.1", 9)):
        with socket.socket() as client, pytest.raises(AssertionError, match=f"{address[0]}:{address[1]}"):
            client.connect(address)
    with pytest.raises(AssertionError, match="example.org:443"):
        socket.create_connection(("example.org", 443))
    assert socket_attempts.read() == ["192.0.2.1:80", "127.0.0.1:9", "example.org:443"]


def test_a_child_process_sees_no_network(socket_attempts: Any) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert child.stderr.splitlines()[-1] == "OSError: [Errno 101] the tests refuse 192.0.2.1:80"
    assert socket_attempts.read() == ["192.0.2.1:80"]


def test_pipes_and_unix_sockets_work() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        assert other.recv(1) == b"x"


def test_no_real_data_and_an_empty_cache() -> None:
    assert "ADALORA_BENCH_DATA" not in os.environ
    assert "adalora_bench-tests-" in os.environ["ADALORA_BENCH_CACHE"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
