"""A browser for tests and pictures: Debian's chromium without a window, driven through the Chrome DevTools Protocol.

The protocol's messages are JSON with a NUL behind each, on file descriptors 3 and 4 of the browser
(https://chromedevtools.github.io/devtools-protocol/, --remote-debugging-pipe). Neither a port nor a package is needed.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
           "--force-color-profile=srgb", "--remote-debugging-pipe"]
# The pipes get the numbers 3 and 4 in a small process that then becomes the browser.
START = ("import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); "
         "os.execvp(sys.argv[3], sys.argv[3:])")


# How the browser answers a command whose page goes away, or whose page is so new that it cannot run a script yet.
CHANGES = ("Inspected target navigated or closed", "Execution context was destroyed", "Cannot find context",
           "Cannot find default execution context")


class PageChanged(AssertionError):
    """Another page is taking the place of the one that a command was sent to."""


class Browser:
    """One page in a browser. `events` holds all that the browser reported."""

    def __init__(self, profile: str | Path) -> None:
        """profile: a folder for the browser's own files"""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_browser, from_browser)]
        os.close(to_browser)
        os.close(from_browser)
        command = [PATH or "chromium", *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), *command],
            pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        self._buffer, self._number = b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, seconds: float = 30, **parameters: Any) -> Any:
        """The result of one command. Raises AssertionError for an error of the browser, PageChanged where the page goes
        away before the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode()
                 + b"\0")
        end = time.monotonic() + seconds
        while (answer := self._next(end)).get("id") != self._number:
            self.events.append(answer)
        if answer.get("error", {}).get("message", "").startswith(CHANGES):
            raise PageChanged(method, answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], max(0, end - time.monotonic()))[0], "the browser is silent"
            block = os.read(self._read, 1 << 20)
            assert block, "the browser has ended"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def size(self, width: int, height: int, mobile: bool = False, density: float = 1) -> None:
        """The size of the window in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=density,
                  mobile=mobile)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def open(self, path: Path, ready: str = "true") -> None:
        """Open a file and wait until the expression `ready` is true."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"location.href !== 'about:blank' && document.readyState === 'complete' && ({ready})")

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true, on this page or on one that takes its place."""
        end = time.monotonic() + seconds
        while not self._is_true(expression):
            assert time.monotonic() < end, f"never true: {expression}\n{self.errors()}"
            time.sleep(0.02)

    def _is_true(self, expression: str) -> bool:
        try:
            return bool(self.evaluate(expression))
        except PageChanged:
            return False

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, also of a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def painted(self) -> None:
        """Wait until what was asked for is on the screen."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One event: mousePressed, mouseReleased, mouseMoved or mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", buttons=1, clickCount=1)

    def touch(self, x: float, y: float) -> None:
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self) -> str:
        """The window as PNG, in base64."""
        return str(self.call("Page.captureScreenshot", format="png")["data"])

    def errors(self) -> list[dict[str, Any]]:
        """Exceptions, errors of the console and of the browser, such as a violation of the page's policy."""
        return [event for event in self.events if event["method"] == "Runtime.exceptionThrown"
                or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "assert"))
                or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")]

    def requests(self) -> list[str]:
        """The URLs that were asked for, but data: within the page."""
        urls = [event["params"]["request"]["url"] for event in self.events
                if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.call("Browser.close", seconds=5)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
