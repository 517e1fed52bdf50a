"""A headless browser for tests: Chromium's own protocol over two pipes, nothing to install."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_LAUNCH = """\
import fcntl, os, sys
high = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 20) for n in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a headless Chromium.

    Args:
        program: the browser.
        profile: an empty folder for it.
    """

    def __init__(self, program: str, profile: Path) -> None:
        from_browser, to_us = os.pipe()
        to_browser, from_us = os.pipe()
        command = [
            sys.executable,
            "-c",
            _LAUNCH,
            str(to_browser),
            str(to_us),
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--window-size=1280,1000",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, to_us), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(to_us)
        self._in, self._out = os.fdopen(from_browser, "rb"), os.fdopen(from_us, "wb")
        self._held = b""
        self._number = 0
        self.logged: list[str] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.requested: list[str] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        with contextlib.suppress(BrokenPipeError):
            self._out.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the page."""
        return self._call(method, parameters, self._session)

    def _call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            reply = self._read()
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return dict(reply["result"])
            self._notice(reply)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            assert ready, f"the browser said nothing for {PATIENCE} s"
            part = os.read(self._in.fileno(), 1 << 16)
            assert part, "the browser ended"
            self._held += part
        message, self._held = self._held.split(b"\0", 1)
        return dict(json.loads(message))

    def _notice(self, message: dict[str, Any]) -> None:
        method, values = message.get("method", ""), message.get("params", {})
        if method == "Log.entryAdded":
            self.logged.append(values["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.logged.append(json.dumps(values["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(values["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(self, address: str) -> None:
        """Loads a page and waits until it is there."""
        for place in ("about:blank", address):  # from a page to a part of itself loads nothing
            self._loaded = False
            self.call("Page.navigate", url=place)
            while not self._loaded:
                self._notice(self._read())

    def value(self, script: str) -> Any:
        """What a script in the page gives."""
        output = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in output, output["exceptionDetails"]
        return output["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click: the mouse goes there, whatever lies there takes it."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    def pdf(self) -> bytes:
        """The page as it is printed."""
        output = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(output["data"])
