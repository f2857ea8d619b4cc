# SPDX-License-Identifier: Apache-2.0
"""A server that speaks the protocol of Isabelle's server and knows a toy logic.

Messages have the form of those that isabelle-client keeps as recorded from Isabelle2025. The logic: a step
is a quoted proposition, and `knows` says which methods prove which. A theory is checked step by step;
`sorry` proves anything and is an oracle; sledgehammer proposes what is known under the name `hammer`.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "the-password"
_STEP = re.compile(
    r'(?:show|have|theorem \w+:)\s+"(?P<step>[^"]*)"\s+'
    r"(?P<method>by \([^)]*\)|by \w+|sorry|sledgehammer[^\n]*)"
)


class Server(socketserver.ThreadingTCPServer):
    """`knows`: proposition → methods that prove it. `commands` are those asked for, `theories` the texts
    seen."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, knows: Mapping[str, set[str]], silent_on: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.knows, self.silent_on = knows, silent_on
        self.commands: list[str] = []
        self.theories: dict[str, str] = {}
        self.purged: list[str] = []
        self.stopped = threading.Event()

    @property
    def line(self) -> str:
        """What `isabelle server` prints."""
        return f'server "prove" = 127.0.0.1:{self.server_address[1]} (password "{PASSWORD}")\n'

    def node(self, folder: Path, name: str) -> dict[str, Any]:
        """One theory, checked."""
        text = (folder / f"{name}.thy").read_text(encoding="utf-8")
        self.theories[name] = text
        messages = [{"kind": kind, "message": message} for kind, message in self._messages(text)]
        failed = sum(message["kind"] == "error" for message in messages)
        status = {
            "ok": not failed,
            "total": 9,
            "unprocessed": 0,
            "running": int("LOOPS" in text and "by force" in text),
            "warned": 0,
            "failed": failed,
            "finished": 9 - failed,
            "canceled": False,
            "consolidated": True,
            "percentage": 100,
        }
        names = {"node_name": f"{name}.thy", "theory_name": f"Draft.{name}"}
        return {**names, "status": status, "messages": messages, "exports": []}

    def _messages(self, text: str) -> Iterator[tuple[str, str]]:
        if "BAD TYPE" in text:
            yield "error", "Type unification failed\\<^here>: Clash of types"
        for found in _STEP.finditer(text):
            step, method = found["step"], found["method"]
            if method.startswith("sledgehammer"):
                yield "writeln", "Sledgehammering..."
                for known in sorted(self.knows.get(step, ())):
                    if known.startswith("hammer "):
                        yield "writeln", f"metis: Try this: {known.removeprefix('hammer ')} (2 ms)"
            elif method != "sorry" and not {method, f"hammer {method}"} & self.knows.get(step, set()):
                yield "error", f"Failed to finish proof\\<^here>:\ngoal (1 subgoal):\n 1. {step}"
        if re.search(r"^thm_oracles \w+$", text, re.MULTILINE):
            gap = "\n  Pure.skip_proof" if re.search(r"\bsorry\b|SMUGGLED", text) else ""
            yield "writeln", f"oracles:{gap}"


class Handler(socketserver.StreamRequestHandler):
    """One command a connection, as isabelle-client asks."""

    server: Server

    def handle(self) -> None:
        password = self.rfile.readline().decode().strip()
        command, _, arguments = self.rfile.readline().decode().strip().partition(" ")
        if password != PASSWORD:
            return
        self.server.commands.append(command)
        self._line('OK {"isabelle_id":"mock","isabelle_name":"Isabelle2025"}')
        asked = json.loads(arguments or "{}")
        if command == self.server.silent_on:
            self.server.stopped.wait(60)
        elif command == "session_start":
            self._line('OK {"task":"1"}')
            self._long({"task": "1", "session_id": "session-1", "tmp_dir": "/nowhere"})
        elif command == "session_stop":
            self._line('OK {"task":"2"}')
            self._long({"task": "2", "ok": True, "return_code": 0})
        elif command == "purge_theories":
            self.server.purged += asked["theories"]
            self._line('OK {"purged":[],"retained":[]}')
        elif command == "use_theories":
            self._line('OK {"task":"3"}')
            self._line('NOTE {"percentage":42,"task":"3","message":"theory 42%","kind":"writeln"}')
            nodes = [self.server.node(Path(asked["master_dir"]), name) for name in asked["theories"]]
            errors = [each for node in nodes for each in node["messages"] if each["kind"] == "error"]
            self._long({"ok": not errors, "errors": errors, "nodes": nodes, "task": "3"})

    def _line(self, text: str) -> None:
        self.wfile.write(f"{text}\n".encode())

    def _long(self, body: Mapping[str, Any]) -> None:
        text = f"FINISHED {json.dumps(body)}".encode()
        self.wfile.write(f"{len(text)}\n".encode() + text)


@contextmanager
def serving(knows: Mapping[str, set[str]], silent_on: str | None = None) -> Iterator[Server]:
    """A server that runs."""
    with Server(knows, silent_on) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()
