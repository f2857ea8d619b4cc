# SPDX-License-Identifier: Apache-2.0
"""A real browser for tests: Debian's Chromium without a window, driven by the DevTools protocol over a pipe.

The pipe (`--remote-debugging-pipe`: JSON ended by NUL on descriptors 3 and 4) needs no port and no package.
The browser can reach no host. What a page prints as an error and every address it asks for are kept.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CALL_SECONDS = 60.0
KEY_CODES = {
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--mute-audio", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--force-color-profile=srgb", "--hide-scrollbars",
)  # fmt: skip


def missing() -> str | None:
    """Why there is no browser here; None where there is one."""
    return None if shutil.which("chromium") else "no chromium on PATH (Debian's package chromium)"


class Page:
    """A tab. `errors` are exceptions, console errors and broken rules of the page; `requests` are the
    addresses asked for."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = bytearray()
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")
        self.resize(1440, 900)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            answer = self._next(deadline)
            if answer is None:
                raise TimeoutError(f"{method}: no answer in {CALL_SECONDS} s")
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self, deadline: float) -> dict[str, Any] | None:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            got = os.read(self._read, 1 << 20)
            assert got, "the browser has ended"
            self._buffer += got
        end = self._buffer.index(b"\0")
        message: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, given = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(each.get("value")) for each in given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {given['message']}")
            self.call("Page.handleJavaScriptDialog", accept=True)

    def open(self, path: Path, fragment: str = "") -> None:
        """Opens a file of this machine, and waits until it is loaded."""
        self.leave()
        self.call("Page.navigate", url=f"{path.resolve().as_uri()}{fragment}")
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def leave(self) -> None:
        """Leaves the page, which from here on asks for nothing, and waits until it is left."""
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        details = answer.get("exceptionDetails")
        assert details is None, details.get("exception", {}).get("description", details["text"])
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + CALL_SECONDS
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """The text of the first element that is selected, as a reader sees it."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Clicks the first element that is selected."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def choose(self, selector: str, value: str) -> None:
        """Chooses an option of a menu."""
        self.run(
            f"(() => {{ const menu = document.querySelector({json.dumps(selector)});"
            f" menu.value = {json.dumps(value)};"
            " menu.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Presses and lets go of a key by its DevTools name, such as j, ArrowDown or Escape."""
        text = key if len(key) == 1 else ""
        code = KEY_CODES.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            typed = text if kind == "keyDown" else ""
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=typed, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int) -> None:
        """The window's size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, is_dark: bool) -> None:
        """What the system is set to."""
        value = "dark" if is_dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, path: Path) -> None:
        """A PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with one tab, killed at the end with all its processes. `profile` is an empty folder."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Above 10, so that giving them the numbers 3 and 4 overwrites neither.
    high_in, high_out = (fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (theirs_in, theirs_out))
    command = ["bash", "-c", f'exec "$@" 3<&{high_in} 4>&{high_out}', "browser", "chromium", *FLAGS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", "about:blank"], pass_fds=(high_in, high_out),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, "HOME": str(profile), "TMPDIR": str(profile)},
    )  # fmt: skip
    for each in (theirs_in, theirs_out, high_in, high_out):
        os.close(each)
    try:
        yield Page(ours_in, ours_out)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        os.close(ours_in)
        os.close(ours_out)
