"""TLS in front of a port: what an engine on another machine looks like."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tls_front(port: int, certificates: Path) -> Iterator[int]:
    """Gives a port where clients with the certificates in a folder, made here, reach another port of 127.0.0.1."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=engine "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {certificates}/key.pem -out {certificates}/cert.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    shutil.copy(certificates / "cert.pem", certificates / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=_accept, args=(server, context, port))
        accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(server: socket.socket, context: ssl.SSLContext, port: int) -> None:
    passing: list[threading.Thread] = []
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            passing.append(threading.Thread(target=_pass_on, args=(client, context, port)))
            passing[-1].start()
    for thread in passing:
        thread.join()


def _pass_on(client: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Each way by turns in one thread, as OpenSSL wants it."""
    with (
        contextlib.suppress(OSError),
        context.wrap_socket(client, server_side=True) as outside,
        socket.create_connection(("127.0.0.1", port)) as inside,
    ):
        outside.settimeout(0.0005)
        inside.settimeout(0.0005)
        while True:
            for source, target in ((outside, inside), (inside, outside)):
                try:
                    data = source.recv(1 << 16)
                except TimeoutError:
                    continue
                if not data:
                    return
                target.settimeout(10)
                target.sendall(data)
                target.settimeout(0.0005)
