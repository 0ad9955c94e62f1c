"""A model server of our own: OpenAI's calls, and those of vLLM's that training needs.

    GET  /health  /v1/models  /is_paused  /weight_info
    POST /v1/completions  /v1/chat/completions
    POST /v1/load_lora_adapter  /v1/unload_lora_adapter  /collective_rpc (reload_weights)  /pause  /resume
         /reset_prefix_cache  /update_weight_version                                      (with `weight_updates=True`)

It is the standard library's server with one thread a connection: the model is what takes time, and the threads only
wait for it. A web framework would bring a dozen packages to save a hundred lines.

Not here: streaming, TLS (put a proxy in front), several models, and what makes a server fast on many GPUs: use vLLM.
"""

from __future__ import annotations

import concurrent.futures
import json
import secrets
import selectors
import socket
import socketserver
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self, cast

from ..core.errors import ConfigError
from .batching import Job, Paused, PauseMode, Sampled
from .completion_requests import RequestError
from .served_model import ServedModel

LOOK_S = 0.5
"""How often a waiting thread looks whether its client is still there."""
IDLE_S = 60.0
"""Seconds after which a connection without requests is closed."""
GREATEST_BODY = 64 * 2**20
PAUSE_MODES = ("abort", "wait", "keep")


class ModelServer:
    """`with ModelServer(served, port=0) as server:` answers at `server.url` until the end.

    Args:
        served: The model; it is closed with the server.
        host: The address to listen at; `0.0.0.0` is every one of this machine.
        port: 0 takes a free one.
        api_key: Asked from every request but `/health`; empty asks for none.
        weight_updates: Whether requests may change weights; they name folders that this process reads.

    Raises:
        ConfigError: The port cannot be had.
    """

    def __init__(
        self, served: ServedModel, *, host: str, port: int, api_key: str = "", weight_updates: bool = False
    ) -> None:
        self.served, self._api_key = served, api_key
        self.routes = _routes(served, weight_updates)
        outer = self

        class Handler(_Handler):
            server_of = outer

        try:
            self._http = _Http((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen at {host}:{port}: {error}; --port=0 takes a free port") from error
        shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self._http.server_address[1]}/v1"

    def serve_forever(self) -> None:
        """Answers until `close` is called in another thread."""
        self._http.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        """Stops listening and ends all work."""
        self._http.shutdown()
        self._http.server_close()
        self.served.close()

    def may_enter(self, authorization: str) -> bool:
        """Whether a request brings the key."""
        wanted = f"Bearer {self._api_key}"
        return not self._api_key or secrets.compare_digest(authorization.encode(), wanted.encode())

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True, name="http").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # the standard five would turn a rollout's first requests away

    def server_bind(self) -> None:
        """Binds without looking up the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that clients close are nobody's error."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()

    @property
    def address_family(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """IPv6 where the host is written so."""
        host = self.server_address[0] if hasattr(self, "server_address") else ""
        return socket.AF_INET6 if ":" in str(host) else socket.AF_INET


Wait = Callable[[Job], Sampled]
Route = Callable[[dict[str, Any], dict[str, str], Wait], Any]
"""From body, query and a way to wait for jobs to JSON data, text, or None for an empty answer."""


def _routes(served: ServedModel, weight_updates: bool) -> dict[tuple[str, str], Route]:
    batcher = served.batcher
    routes: dict[tuple[str, str], Route] = {
        ("GET", "/health"): lambda body, query, wait: None,
        ("GET", "/v1/models"): lambda body, query, wait: served.models(),
        ("GET", "/is_paused"): lambda body, query, wait: {"is_paused": batcher.is_paused},
        ("GET", "/weight_info"): lambda body, query, wait: {"weight_version": batcher.label},
        ("POST", "/v1/completions"): lambda body, query, wait: served.complete(body, wait),
        ("POST", "/v1/chat/completions"): lambda body, query, wait: served.chat(body, wait),
    }
    if not weight_updates:
        return routes
    return routes | {
        ("POST", "/v1/load_lora_adapter"): lambda body, query, wait: served.load_adapter(
            str(body.get("lora_name") or ""), str(body.get("lora_path") or ""), in_place=bool(body.get("load_inplace"))
        ),
        ("POST", "/v1/unload_lora_adapter"): lambda body, query, wait: served.unload_adapter(
            str(body.get("lora_name") or "")
        ),
        ("POST", "/collective_rpc"): lambda body, query, wait: _collective_rpc(served, body),
        ("POST", "/pause"): lambda body, query, wait: _pause(served, query),
        ("POST", "/resume"): lambda body, query, wait: batcher.resume() or {"status": "resumed"},
        ("POST", "/reset_prefix_cache"): lambda body, query, wait: batcher.reset_cache() or {"success": True},
        ("POST", "/update_weight_version"): lambda body, query, wait: _set_label(served, body),
    }


def _collective_rpc(served: ServedModel, body: dict[str, Any]) -> dict[str, Any]:
    if body.get("method") != "reload_weights":
        raise RequestError(400, "method: this server knows 'reload_weights' only")
    path = (body.get("kwargs") or {}).get("weights_path")
    if not isinstance(path, str | None):
        raise RequestError(400, "weights_path: must be the path of a model folder")
    served.reload(path)
    return {"results": [None]}


def _pause(served: ServedModel, query: dict[str, str]) -> dict[str, Any]:
    mode = query.get("mode", "abort")
    if mode not in PAUSE_MODES:
        raise RequestError(400, f"mode={mode}: must be one of {', '.join(PAUSE_MODES)}")
    served.batcher.pause(cast(PauseMode, mode))
    return {"status": "paused"}


def _set_label(served: ServedModel, body: dict[str, Any]) -> dict[str, Any]:
    label = body.get("new_version")
    if not isinstance(label, str) or not label:
        raise RequestError(400, "new_version: must be a text")
    served.batcher.label = label
    return {"success": True, "new_version": label}


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server_of: ClassVar[ModelServer]
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answers a request."""
        self._respond("GET")

    def do_POST(self) -> None:
        """Answers a request."""
        self._respond("POST")

    def _respond(self, method: str) -> None:
        try:
            self._send(200, self._answer(method))
        except RequestError as error:
            self._send_error(error.status, error.message, error.kind)
        except Paused:
            self._send_error(503, "The engine is paused for a weight update.", "ServiceUnavailableError")
        except _Gone:
            self.close_connection = True
        except OSError:
            raise
        except Exception as error:  # of the model or of this program: the client may try again
            traceback.print_exc()
            self._send_error(500, f"{type(error).__name__}: {error}", "InternalServerError")

    def _answer(self, method: str) -> Any:
        server = self.server_of
        address = urllib.parse.urlsplit(self.path)
        if address.path != "/health" and not server.may_enter(self.headers.get("Authorization", "")):
            self.close_connection = True  # its body is not read
            raise RequestError(401, "Unauthorized", "AuthenticationError")
        body = self._body()
        route = server.routes.get((method, address.path))
        if route is None:
            raise RequestError(404, f"Not Found: {method} {address.path}", "NotFoundError")
        return route(body, dict(urllib.parse.parse_qsl(address.query)), self._wait)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > GREATEST_BODY:
            self.close_connection = True  # what follows cannot be told from a next request
            raise RequestError(413, f"Content-Length={length}: must be at most {GREATEST_BODY} bytes")
        raw = self.rfile.read(int(length))
        if not raw:
            return {}
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise RequestError(400, "the body must be a JSON object")
        return body

    def _wait(self, job: Job) -> Sampled:
        """Waits for an answer; a client that goes away takes its request with it."""
        batcher = self.server_of.served.batcher
        batcher.submit(job)
        while True:
            try:
                return job.answer.result(timeout=LOOK_S)
            except concurrent.futures.TimeoutError:
                if self._client_is_gone():
                    batcher.cancel(job)
                    raise _Gone from None

    def _client_is_gone(self) -> bool:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.connection, selectors.EVENT_READ)
                return bool(selector.select(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _send(self, status: int, data: Any) -> None:
        raw = b"" if data is None else data.encode() if isinstance(data, str) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(data, str) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _send_error(self, status: int, message: str, kind: str) -> None:
        self._send(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


class _Gone(Exception):
    """The client closed its connection."""
