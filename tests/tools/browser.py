"""A headless Chromium, driven through a pipe with the DevTools protocol; without any network, not even loopback."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from PIL import Image

_LIMIT = 90  # seconds for one answer, on a busy machine
# The protocol's pipe is the file descriptors 3 and 4.
_LAUNCH = (
    "import os, sys; end = int(sys.argv[1]); os.dup2(end, 3); os.dup2(end, 4); os.execvp(sys.argv[2], sys.argv[2:])"
)
_FLAGS = (
    "--headless",
    "--no-sandbox",  # it runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


class Browser:
    """The process, and one tab. What its console says and what it requests is kept."""

    def __init__(self, profile: Path) -> None:
        if shutil.which("chromium") is None:
            raise RuntimeError("chromium: not installed; `make test-tools` installs it")
        self._pipe, end = socket.socketpair()
        self._pipe.settimeout(_LIMIT)
        argv = ["unshare", "--net", sys.executable, "-I", "-c", _LAUNCH, str(end.fileno())]
        with end, (profile / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*argv, "chromium", *_FLAGS, f"--user-data-dir={profile}/data"],
                pass_fds=[end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(profile)},
                start_new_session=True,
            )
        self._received = b""
        self._last = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pipe.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_LIMIT)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._pipe.sendall(json.dumps(message).encode() + b"\0")
        while True:
            received = self._receive()
            if received.get("id") == self._last:
                assert "error" not in received, received
                result: dict[str, Any] = received["result"]
                return result

    def open(self, page: Path, *, width: int = 1240, height: int = 900, scheme: str = "light") -> None:
        """Show a file, in a window of this size, for someone who prefers this colour scheme."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.media("screen", scheme)
        self.call("Page.navigate", url=page.as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def media(self, medium: str, scheme: str = "light") -> None:
        """Show it on "screen" or in "print"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=medium, features=features)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> Image.Image:
        """The whole page as an image, also as a file."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        data = base64.b64decode(shot["data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Image.open(io.BytesIO(data)).convert("RGB")

    def _receive(self) -> dict[str, Any]:
        """The next message. An end of the pipe is an error, as is silence."""
        while b"\0" not in self._received:
            chunk = self._pipe.recv(1 << 20)
            if not chunk:
                raise RuntimeError("chromium has ended")
            self._received += chunk
        first, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params))
        return message
