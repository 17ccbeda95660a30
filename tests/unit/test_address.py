"""By which address workers are told to connect."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from computemanager import address
from computemanager.address import reachable_address
from computemanager.errors import SettingsError


@contextlib.contextmanager
def metadata_server(answer: Any) -> Iterator[dict[str, str]]:
    """Run a server that answers as the metadata endpoint of a container does; yields the environment."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield {"ECS_CONTAINER_METADATA_URI_V4": f"http://127.0.0.1:{server.server_port}/v4/abc"}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_the_user_says_wins() -> None:
    with metadata_server({"Networks": [{"IPv4Addresses": ["10.1.2.3"]}]}) as environ:
        assert reachable_address("main.example", environ) == "main.example"


def test_in_an_ecs_task_it_is_the_address_of_the_tasks_interface() -> None:
    answer = {"DockerId": "x", "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.1.2.3"]}]}
    with metadata_server(answer) as environ:
        assert reachable_address(environ=environ) == "10.1.2.3"


@pytest.mark.parametrize(
    "answer", [b"", b"no json", {}, {"Networks": 3}, {"Networks": [{"IPv4Addresses": ["x"]}]}]
)
def test_metadata_without_an_address_is_passed_over(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_of_way_out", lambda: "198.51.100.9")
    with metadata_server(answer) as environ:
        assert reachable_address(environ=environ) == "198.51.100.9"


def test_a_metadata_server_that_is_not_there_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_of_way_out", lambda: "198.51.100.9")
    environ = {"ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:9/v4"}
    assert reachable_address(environ=environ) == "198.51.100.9"


def test_without_a_way_out_any_interface_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_of_way_out", lambda: None)
    monkeypatch.setattr(address, "_of_any_interface", lambda: "198.51.100.8")
    assert reachable_address(environ={}) == "198.51.100.8"


def test_a_machine_without_a_network_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_of_way_out", lambda: None)
    monkeypatch.setattr(address, "_of_any_interface", lambda: None)
    with pytest.raises(SettingsError, match=r"address='\.\.\.'"):
        reachable_address(environ={})
