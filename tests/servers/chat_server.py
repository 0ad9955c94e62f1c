"""A real HTTP server that speaks chat completions, with answers and faults that a test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = Callable[[dict[str, Any]], Any]
"""From a request's body to the text of the reply, or to the whole message."""


class ChatServer:
    """`with ChatServer() as server:` serves at `server.url` until the end."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: f"reply {len(body['messages'])}"
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        """Other paths' answers: from the body to JSON data, or to (status, data)."""
        self.faults: list[Any] = []
        """What befalls the next requests, first first: None, a status, (status, body, headers), "drop", "garbage"."""
        self.delay_s = 0.0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(200, {"object": "list", "data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
                    outer._serve(self, body)

            def reply(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
                raw = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), "Connection": "close", **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _serve(self, handler: Any, body: dict[str, Any]) -> None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            fault = self.faults.pop(0) if self.faults else None
        time.sleep(self.delay_s)
        with self._lock:
            self._at_once -= 1  # before the client can know, and send its next one
        self._send(handler, body, fault)

    def _send(self, handler: Any, body: dict[str, Any], fault: Any) -> None:
        if fault == "drop":
            handler.close_connection = True
            handler.connection.close()
        elif fault == "garbage":
            handler.reply(200, b"<html>a proxy's page</html>")
        elif isinstance(fault, int):
            handler.reply(fault, {"error": {"message": f"fault {fault}"}})
        elif fault is not None:
            handler.reply(*fault)
        elif handler.path in self.answers:
            answer = self.answers[handler.path](body)
            handler.reply(*(answer if isinstance(answer, tuple) else (200, answer)))
        elif handler.path != "/v1/chat/completions":
            handler.reply(404, {"error": {"message": f"no such path {handler.path}"}})
        else:
            answer = self.answer(body)
            message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
            text = message.get("content") or ""
            words = sum(len((message.get("content") or "").split()) for message in body["messages"])
            handler.reply(
                200,
                {
                    "object": "chat.completion",
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": words, "completion_tokens": len(text.split())},
                },
            )

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
