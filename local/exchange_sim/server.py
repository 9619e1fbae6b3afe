"""HTTP around the simulator: threads, keep-alive, the wire faults, and the control plane below /_sim."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .faults import BadFault
from .messages import Answer, as_json
from .simulator import Simulator
from .world import World, build_world

MAX_CONTROL_BODY = 4 * 2**20


class Handler(BaseHTTPRequestHandler):
    """One connection; `simulator` is set by `Server`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    timeout = 120

    def do_GET(self) -> None:
        """An exchange's endpoint, or a look at the simulator."""
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        _, exchange, *rest = unquote(url.path).split("/", 2)
        if exchange in self.server.simulator.world.exchanges:
            path = "/" + (rest[0] if rest else "")
            if path.startswith("/archive/"):
                self._send(self.server.simulator.archive(exchange, path.removeprefix("/archive"), dict(self.headers)))
                return
            self._send(self.server.simulator.get(exchange, path, query, self.client_address[0]))
        else:
            self._control("GET", url.path, query)

    def do_POST(self) -> None:
        """Control plane only."""
        self._control("POST", urlsplit(self.path).path, {})

    def do_DELETE(self) -> None:
        """Control plane only."""
        url = urlsplit(self.path)
        self._control("DELETE", url.path, dict(parse_qsl(url.query)))

    def _control(self, method: str, path: str, query: dict[str, str]) -> None:
        action = _CONTROLS.get((method, path))
        try:
            body = self._body()  # also for an unknown path: the connection is kept
            if action is None:
                known = [" ".join(one) for one in _CONTROLS]
                self._send(_message(404, f"no {method} {path}; there are {known}"))
            else:
                self._send(action(self.server.simulator, query, body))
        except (ValueError, TypeError, KeyError) as error:
            self._send(_message(400, f"{type(error).__name__}: {error}"))

    def _body(self) -> Any:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_CONTROL_BODY:
            raise ValueError(f"body of {length} bytes; at most {MAX_CONTROL_BODY}")
        return json.loads(self.rfile.read(length)) if length else None

    def _send(self, answer: Answer) -> None:
        if answer.delay_s:
            time.sleep(answer.delay_s)
        try:
            self._write(answer)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _write(self, answer: Answer) -> None:
        """Headers and body in one packet train; half of the body when the fault says so."""
        try:
            phrase = HTTPStatus(answer.status).phrase
        except ValueError:
            phrase = "Status"
        head = [
            f"HTTP/1.1 {answer.status} {phrase}",
            f"Date: {self.date_time_string()}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        start = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        if answer.cut:
            self.wfile.write(start + answer.body[: max(1, len(answer.body) // 2)])
            self._break(answer.cut)
        elif answer.trickle_s:
            self.wfile.write(start)
            self._trickle(answer)
        else:
            self.wfile.write(start + answer.body)

    def _trickle(self, answer: Answer) -> None:
        pieces = 20
        size = max(1, -(-len(answer.body) // pieces))
        for at in range(0, len(answer.body), size):
            time.sleep(answer.trickle_s / pieces)
            self.wfile.write(answer.body[at : at + size])

    def _break(self, how: str) -> None:
        self.close_connection = True
        if how == "reset":
            time.sleep(0.02)  # let the half body leave first: RST discards what is unsent
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The file objects keep the socket open: without these closes it would end with FIN.
            self.rfile.close()
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: /_sim/stats knows every request."""


class Server(ThreadingHTTPServer):
    """The simulator on a port."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> None:
        self.simulator = simulator
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; a fault may have broken it already."""
        if request.fileno() >= 0:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours; everything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError | ValueError):
            super().handle_error(request, client_address)


@contextmanager
def running(config: Mapping[str, Any] | World | None = None, port: int = 0) -> Iterator[Server]:
    """A simulator in this process for the length of a `with`: `server.url`, `server.simulator`."""
    simulator = Simulator(config if isinstance(config, World) else build_world(config))
    with Server(simulator, port=port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _message(status: int, text: str) -> Answer:
    return Answer(status, as_json({"message": text}))


def _health(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    products = {name: len(desk.listings) for name, desk in simulator.world.exchanges.items()}
    return Answer(200, as_json({"status": "ok", "products": products, "now_us": simulator.clock.now_us()}))


def _stats(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    stats = simulator.stats(float(query.get("trim_s", 2)), query.get("timestamps", "0") not in ("", "0"))
    return Answer(200, as_json(stats))


def _reset(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    simulator.reset()
    return Answer(200, as_json({"status": "reset"}))


def _list_faults(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    return Answer(200, as_json(simulator.faults.shown()))


def _add_faults(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    if not isinstance(body, list):
        raise BadFault("a JSON list of faults is expected")
    return Answer(200, as_json(simulator.faults.add(body, simulator.clock.now_us())))


def _clear_faults(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    simulator.faults.clear(int(query["id"]) if "id" in query else None)
    return Answer(200, as_json(simulator.faults.shown()))


def _plant(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    simulator.archives.plant(body)
    return Answer(200, as_json({"planted": len(simulator.archives.plants)}))


def _heal_archives(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    simulator.archives.clear(date.fromisoformat(query["begin"]) if "begin" in query else None)
    return Answer(200, as_json({"planted": len(simulator.archives.plants)}))


def _clock(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    body = dict(body or {})
    simulator.clock.set(body.pop("offset_s", None), body.pop("advance_s", None), body.pop("frozen", None))
    if body:
        raise ValueError(f"unknown {sorted(body)}; possible: offset_s, advance_s, frozen")
    return Answer(200, as_json({"offset_s": simulator.clock.offset_s, "now_us": simulator.clock.now_us()}))


def _oracle(simulator: Simulator, query: dict[str, str], body: Any) -> Answer:
    first, last = (int(query[name]) if name in query else None for name in ("first", "last"))
    return Answer(200, simulator.oracle(query["exchange"], query["product"], first, last))


_CONTROLS: dict[tuple[str, str], Callable[[Simulator, dict[str, str], Any], Answer]] = {
    ("GET", "/_sim/health"): _health,
    ("GET", "/_sim/stats"): _stats,
    ("POST", "/_sim/reset"): _reset,
    ("GET", "/_sim/faults"): _list_faults,
    ("POST", "/_sim/faults"): _add_faults,
    ("DELETE", "/_sim/faults"): _clear_faults,
    ("POST", "/_sim/archives"): _plant,
    ("DELETE", "/_sim/archives"): _heal_archives,
    ("POST", "/_sim/clock"): _clock,
    ("GET", "/_sim/oracle"): _oracle,
}
