"""A browser for tests, driven over the WebDriver protocol: Chromium with its driver, nothing else."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)
DRIVER = shutil.which("chromedriver")
MISSING = "needs Chromium and its driver (apt-get install chromium chromium-driver)"


class Browser:
    """One window; pages are asked for what they are by JavaScript."""

    def __init__(self, address: str):
        self.address = address

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from None

    def open(self, page: Path) -> None:
        self.call("POST", "/url", {"url": page.as_uri()})

    def run(self, script: str, *args: Any) -> Any:
        """Run the body of a function, and give what it returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def send(self, command: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, scheme: str) -> None:
        """Ask for the light or the dark scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """Scroll to an element, and give a point in it by shares of its width and height."""
        script = """const e = document.querySelector(arguments[0]);
        e.scrollIntoView({block: "center"});
        const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height];"""
        left, top, width, height = self.run(script, selector)
        return left + x * width, top + y * height

    def drag(self, start: tuple[float, float], *stops: tuple[float, float]) -> None:
        """Press at one point, move over others, and release at the last; without others, click."""
        button = {"button": "left", "clickCount": 1}
        self.hover(start)
        self._mouse("mousePressed", start, **button)
        for stop in stops:
            self._mouse("mouseMoved", stop, button="left")
        self._mouse("mouseReleased", (start, *stops)[-1], **button)

    def hover(self, point: tuple[float, float]) -> None:
        self._mouse("mouseMoved", point)

    def _mouse(self, kind: str, point: tuple[float, float], **more: Any) -> None:
        x, y = point
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path) -> Path:
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(picture))
        return path

    def errors(self) -> list[str]:
        """Give what the page complained of since it was asked last.

        A browser asks each server once for a picture of its own accord, which no page of ours names.
        """
        entries = self.call("POST", "/se/log", {"type": "browser"})
        messages = [entry["message"] for entry in entries]
        return [message for message in messages if "/favicon.ico - " not in message]


@contextlib.contextmanager
def browser(profile: Path, *, scripts: bool = True) -> Iterator[Browser]:
    """Start a browser that talks to nobody, with a new profile; without scripts if not `scripts`."""
    profile.mkdir(parents=True)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={profile / 'data'}"]
    options: dict[str, Any] = {"binary": CHROMIUM, "args": flags}
    if not scripts:
        options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    environment = os.environ | {"HOME": str(profile)}
    with subprocess.Popen(
        [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        try:
            assert driver.stdout
            started = next(line for line in driver.stdout if "started successfully" in line)
            port = started.split()[-1].rstrip(".")
            root = f"http://127.0.0.1:{port}/session"
            session = Browser(root).call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
            page = Browser(f"{root}/{session['sessionId']}")
            try:
                yield page
            finally:
                page.call("DELETE", "")
        finally:
            driver.terminate()
