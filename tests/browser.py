"""Pages in a headless browser, where one is installed."""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
AXE = find_spec("axe_core_python")
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser here")
needs_axe = pytest.mark.skipif(not CHROMIUM.exists() or AXE is None, reason="no browser, or no axe-core-python, here")
SECONDS = 120
LOOKS = tuple((width, is_dark) for width in (1280, 390) for is_dark in (False, True))
"""Widths in pixels, and colour schemes, in which pages are looked at."""


def options(folder: Path) -> list[str]:
    """Of a headless browser that writes to a folder."""
    return ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]


def opened(page: Path, folder: Path) -> subprocess.CompletedProcess:
    """Open a page from disk: stdout has its DOM when it has settled, stderr what it logs.

    Args:
        folder: where the browser may write.
    """
    words = [str(CHROMIUM), *options(folder), "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)


class Tab:
    """A page that is used as a person would: over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol), by pipes.

    Attributes:
        asked: URLs that the page asked for.
    """

    def __init__(self, requests: int, replies: int) -> None:
        """requests, replies: ends of the pipes."""
        self._requests, self._replies, self._read, self._number = requests, replies, b"", 0
        self._session: dict[str, str] = {}
        self.asked: list[str] = []
        (target,) = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        self.send("Network.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method; returns its result."""
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters} | self._session
        os.write(self._requests, json.dumps(order).encode() + b"\0")
        while (message := self._next()).get("id") != self._number:
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._replies], [], [], SECONDS)[0], "the browser does not answer"
            read = os.read(self._replies, 1 << 20)
            assert read, "the browser has ended"
            self._read += read
        first, _, self._read = self._read.partition(b"\0")
        return json.loads(first)

    def go(self, url: str, *, width: int = 1280, is_dark: bool = False, height: int = 900) -> None:
        """Open a URL in a window of so many pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What an expression of JavaScript gives."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true, or finds an element."""
        deadline = time.monotonic() + SECONDS
        while not self.value(f"!!({script})"):
            assert time.monotonic() < deadline, (script, self.value("document.body.innerText"))
            time.sleep(0.1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key, such as ("Enter", 13, "\\r")."""
        for kind, given in (("keyDown", text), ("keyUp", "")):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=given)

    def drop(self, path: Path, selector: str) -> None:
        """Drop a picture on an element, as its page hears of it."""
        content = base64.b64encode(path.read_bytes()).decode()
        self.value(f"""(() => {{
            const bytes = Uint8Array.from(atob({json.dumps(content)}), letter => letter.charCodeAt(0)), data = new DataTransfer();
            data.items.add(new File([bytes], {json.dumps(path.name)}, {{type: "image/png"}}));
            for (const kind of ["dragenter", "dragover", "drop"])
                document.querySelector({json.dumps(selector)}).dispatchEvent(
                    new DragEvent(kind, {{dataTransfer: data, bubbles: true, cancelable: true}}));
        }})()""")

    def violations(self) -> list[str]:
        """What axe-core (https://github.com/dequelabs/axe-core) finds wrong with the page as it is, a line each."""
        assert AXE is not None and AXE.submodule_search_locations is not None
        script = Path(AXE.submodule_search_locations[0]) / "axe.min.js"
        self.send("Runtime.evaluate", expression=script.read_text(encoding="utf-8"))
        found = self.value("axe.run(document, {resultTypes: ['violations']}).then(all => JSON.stringify(all.violations))")
        return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in json.loads(found) for node in one["nodes"]]

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page, as .png."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser with one page; `folder`: where it may write."""
    (requests_out, requests), (replies, replies_in) = os.pipe(), os.pipe()
    joined = f'exec "$0" "$@" 3<&{requests_out} 4>&{replies_in}'
    words = ["bash", "-c", joined, str(CHROMIUM), *options(folder), "--remote-debugging-pipe", "about:blank"]
    process = subprocess.Popen(words, pass_fds=(requests_out, replies_in), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(requests_out), os.close(replies_in)
    try:
        tab = Tab(requests, replies)
        yield tab
        tab._session = {}
        tab.send("Browser.close")
    finally:
        os.close(requests), os.close(replies)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
