# SPDX-License-Identifier: Apache-2.0
"""An S3 store on this machine: moto's server, behind a gate that can be closed or made slow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "bucket"
_CHUNK_BYTES = 65536


class Gate:
    """Passes connections on to a server; closed, it drops those that are open and all that come."""

    def __init__(self, server_port: int) -> None:
        self.is_open = True
        self.pause_seconds = 0.0  # before each piece that is passed on to the server
        self.last_words: bytes | None = None  # a request with them closes it
        self._server_port = server_port
        self._live: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self.is_open = False
        for connection in list(self._live):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self.last_words = None
        self.is_open = True

    def end(self) -> None:
        self.shut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self.is_open:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._live |= {client, server}
                threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_CHUNK_BYTES):
                if is_request and self.pause_seconds:
                    time.sleep(self.pause_seconds)
                if is_request and self.last_words is not None and self.last_words in piece:
                    self.shut()
                target.sendall(piece)
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            self._live.discard(connection)


class Store:
    """The store as it really is, past the gate."""

    def __init__(self, port: int, gate: Gate) -> None:
        import s3fs

        self.gate = gate
        self.files: Any = s3fs.S3FileSystem(
            key="testing",
            secret="testing-secret",
            endpoint_url=f"http://127.0.0.1:{port}",
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self.files.mkdir(BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that comes through the gate."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def names(self, run: str) -> dict[str, bytes]:
        """Every object of a run, by its name in it."""
        root = f"{BUCKET}/{run}"
        return {path.removeprefix(f"{root}/"): self.files.cat_file(path) for path in self.files.find(root)}

    def latest(self, run: str) -> str | None:
        try:
            return str(self.files.cat_file(f"{BUCKET}/{run}/latest").decode().strip())
        except FileNotFoundError:
            return None

    def flip(self, name: str) -> None:
        """Changes one byte of an object."""
        content = bytearray(self.files.cat_file(f"{BUCKET}/{name}"))
        content[len(content) // 2] ^= 1
        self.files.pipe_file(f"{BUCKET}/{name}", bytes(content))


def damage_in(objects: dict[str, bytes], step: str) -> list[str]:
    """What of a checkpoint is not as its manifest says, told apart without the code under test."""
    if f"{step}/manifest.json" not in objects:
        return ["manifest.json"]
    files = json.loads(objects[f"{step}/manifest.json"])["files"]
    return [
        name
        for name, entry in files.items()
        if hashlib.sha256(objects.get(f"{step}/{name}", b"missing")).hexdigest() != entry["sha256"]
    ]


@contextmanager
def s3_store() -> Iterator[Store]:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    gate = Gate(port)
    try:
        yield Store(port, gate)
    finally:
        gate.end()
        server.stop()
