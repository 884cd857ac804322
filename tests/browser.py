"""A headless Chromium driven over the DevTools protocol: pages are opened, watched, pressed and photographed.

The protocol runs through two pipes (`--remote-debugging-pipe`: file descriptors 3 and 4, JSON texts ended by a zero
byte), so the standard library is enough and no port is opened.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WAIT = 120.0  # seconds for any one answer: two cores may be busy with other things
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # needed for root; only pages of our own are opened
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--disable-component-update",
    "--disable-background-networking",
)


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome; None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserError(RuntimeError):
    """The browser did not answer, or answered with an error."""


class Browser:
    """A running browser; close it, or use it as a context manager."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="netsmith-browser-")
        ours, theirs = os.pipe(), os.pipe()  # each (to read, to write)
        # copies above 9, so that neither of them is 3 or 4 itself
        their_read, their_write = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs[0], ours[1]))
        quiet = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, quiet, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, their_read, 3), (os.POSIX_SPAWN_DUP2, their_write, 4)]
        self._pid = os.posix_spawn(
            path,
            [path, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            dict(os.environ),
            file_actions=actions,
            setpgroup=0,  # a group of its own, which can be ended as a whole
        )
        for fd in (theirs[0], ours[1], their_read, their_write, quiet):
            os.close(fd)
        self._in, self._out = ours[0], theirs[1]
        self._left = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser, politely first."""
        try:
            self.call("Browser.close")
        except BrowserError:
            pass
        finally:
            os.close(self._out)
            os.close(self._in)
        for patience, stop in ((5.0, signal.SIGTERM), (5.0, signal.SIGKILL), (5.0, None)):
            end = time.monotonic() + patience
            while time.monotonic() < end:
                if os.waitpid(self._pid, os.WNOHANG)[0]:
                    shutil.rmtree(self._profile, ignore_errors=True)
                    return
                time.sleep(0.05)
            if stop is not None:
                os.killpg(self._pid, stop)

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                raise BrowserError("the browser does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise BrowserError("the browser has ended")
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        return json.loads(text)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of one command; events that come meanwhile are kept in `events`."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BrokenPipeError as error:
            raise BrowserError("the browser has ended") from error
        until = time.monotonic() + WAIT
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Returns once the event has come, or had come before."""
        until = time.monotonic() + WAIT
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._receive(until))

    def open(
        self, page: Path | str, *, width: int = 1200, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> Tab:
        """A new tab that has loaded `page`, a file or an address."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme, still])
        tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        tab.call("Page.navigate", url=page.resolve().as_uri() if isinstance(page, Path) else page)
        self.wait("Page.loadEventFired", session)
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self._target = browser, session, target

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.call("Target.closeTarget", targetId=self._target)
        self.browser.events = [e for e in self.browser.events if e.get("sessionId") != self.session]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command to this tab."""
        return self.browser.call(method, self.session, **parameters)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Parameters of all events of a kind."""
        found = [e for e in self.browser.events if e.get("sessionId") == self.session]
        return [e["params"] for e in found if e.get("method") == method]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def faults(self) -> list[str]:
        """Everything that the console shows as an error: uncaught exceptions, `console.error`, blocked loads."""
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # what is on its way arrives
        found = [json.dumps(e["exceptionDetails"]) for e in self.events("Runtime.exceptionThrown")]
        found += [json.dumps(e["args"]) for e in self.events("Runtime.consoleAPICalled") if e["type"] == "error"]
        return found + [e["entry"]["text"] for e in self.events("Log.entryAdded") if e["entry"]["level"] == "error"]

    def requests(self) -> list[str]:
        """Addresses that were asked for, without pictures inside the page."""
        urls = [e["request"]["url"] for e in self.events("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith("data:")]

    def press(self, key: str, times: int = 1) -> None:
        """Presses a named key, such as `ArrowRight`."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}
        codes |= {"PageUp": 33, "PageDown": 34, "Enter": 13, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for _ in range(times):
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                more = {"text": text} if text and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """`mousePressed`, `mouseMoved` or `mouseReleased` at a place of the window, with the left button."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, x: float, y: float) -> None:
        """Presses the left button and lets it go."""
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def picture(self, selector: str | None = None) -> bytes:
        """PNG bytes of the whole page, or of one element of it."""
        size = "[0, 0, document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        if selector is not None:
            size = (
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                " return [b.x + scrollX, b.y + scrollY, b.width, b.height]; })()"
            )
        x, y, width, height = self.run(size)
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        return base64.b64decode(data)


def nameless(tab: Tab) -> list[str]:
    """Roles of pictures and controls that a screen reader would announce without a name."""
    named = {"image", "slider", "button", "link", "radio", "checkbox", "region", "DisclosureTriangle"}
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    return [
        str(n)[:200]
        for n in nodes
        if not n.get("ignored")
        and n.get("role", {}).get("value") in named
        and not (n.get("name", {}).get("value") or "").strip()
    ]


def middle(tab: Tab, selector: str, share: float = 0.5) -> tuple[float, float]:
    """A place on an element, `share` of the way across, after it was scrolled into view."""
    x, y = tab.run(
        f"(() => {{ const e = document.querySelector(`{selector}`); e.scrollIntoView({{block: 'center'}});"
        f" const b = e.getBoundingClientRect(); return [b.x + b.width * {share}, b.y + b.height / 2]; }})()"
    )
    return x, y
