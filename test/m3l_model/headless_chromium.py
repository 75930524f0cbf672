# SPDX-License-Identifier: Apache-2.0
"""A page in a headless Chromium, driven by chromedriver through the WebDriver protocol, which is JSON over HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

TIMEOUT = 120.0


def missing_program() -> str | None:
    """The program that is not installed, of those that are needed."""
    if not shutil.which("chromedriver"):
        return "chromedriver (apt: chromium-driver)"
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        return "chromium (apt: chromium)"
    return None


class Page:
    """One window."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/session"
        self._opener = build_opener(ProxyHandler({}))
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        options = {
            "binary": browser,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self._base = f"{self._base}/{answer['sessionId']}"

    def open(self, file: Path, width: int, height: int, phone: bool = False) -> None:
        """Open a file in a window of that size, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        self._call("POST", "/url", {"url": file.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script, which may return a promise, and give its result."""
        wrapped = f"return (async () => {{ {script} }})()"
        return self._call("POST", "/execute/sync", {"script": wrapped, "args": list(arguments)})

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Run a command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def console_errors(self) -> list[str]:
        """The errors on the page's console since it was last asked."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        shot = self.devtools("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        self._call("DELETE", "")

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with self._opener.open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)["value"]


@contextmanager
def headless_page() -> Iterator[Page]:
    """A browser of its own, ended at the end."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert driver.stdout is not None
        started = next(
            match for line in driver.stdout if (match := re.search(r"successfully on port (\d+)", line))
        )
        page = Page(int(started[1]))
        try:
            yield page
        finally:
            page.close()
    finally:
        driver.terminate()
        driver.wait()
