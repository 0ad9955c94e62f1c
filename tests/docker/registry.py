"""A registry that knows one image, for pulling."""

import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Registry:
    """Serves an image of an engine under any name, on a port of 127.0.0.1.

    Args:
        engine: Who has the image.
        image: Its name there.
    """

    def __init__(self, engine: Any, image: str) -> None:
        self._blobs: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(b"".join(engine.get_image(image)))) as archive:
            (saved,) = json.loads(_member(archive, "manifest.json"))
            config = self._add(_member(archive, saved["Config"]))
            layers = [self._add(_member(archive, name)) for name in saved["Layers"]]
        manifest = {
            "schemaVersion": 2,
            "mediaType": _TYPE,
            "config": {"mediaType": _CONFIG_TYPE, **config},
            "layers": [{"mediaType": _LAYER_TYPE, **layer} for layer in layers],
        }
        self._manifest = json.dumps(manifest).encode()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_address[1]

    def _add(self, blob: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        self._blobs[digest] = blob
        return {"digest": digest, "size": len(blob)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, name = self.path.rstrip("/").rsplit("/", 2)[-2:]
                if kind == "manifests":
                    self._answer(registry._manifest, _TYPE)
                elif kind == "blobs":
                    self._answer(registry._blobs[name], "application/octet-stream")
                else:
                    self._answer(b"{}", "application/json")

            do_HEAD = do_GET

            def _answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()
