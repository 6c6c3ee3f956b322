"""A headless Chromium over the Chrome DevTools protocol: what a user does with a page, without a further dependency."""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY_CODES = {"Enter": 13, "Escape": 27}


class Page:
    """One tab. Script errors and console errors are collected in `errors`, requests' addresses in `requests`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._session = socket, ""
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def open_tab(self, width: int, height: int) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height)

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def cpu_seconds(self) -> float:
        """Processor seconds of all the browser's processes so far: unlike time, little changed by a busy machine."""
        session, self._session = self._session, ""
        found = await self.call("SystemInfo.getProcessInfo")
        self._session = session
        return sum(process["cpuTime"] for process in found["processInfo"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        coming = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": self._session} if self._session else {}))
        answer = await asyncio.wait_for(coming, 60)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def goto(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 10) -> Any:
        """Waits until an expression is truthy and returns it; TimeoutError names it otherwise."""
        for _ in range(int(seconds / 0.02)):
            with contextlib.suppress(RuntimeError):  # the page may not be there yet
                if value := await self.evaluate(expression):
                    return value
            await asyncio.sleep(0.02)
        raise TimeoutError(f"not within {seconds} s: {expression}; the page's errors: {self.errors}")

    async def click(self, selector: str) -> None:
        """A mouse click on the middle of the first element that fits."""
        await self.wait_for(f"document.querySelector({selector!r}) !== null")
        box = await self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'nearest'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        await self.mouse("mouseMoved", *box)
        await self.mouse("mousePressed", *box)
        await self.mouse("mouseReleased", *box)

    async def mouse(self, kind: str, x: float, y: float) -> None:
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    async def type(self, text: str) -> None:
        """Text or single keys, into whatever has the focus."""
        for key in [text] if text in KEY_CODES else text:
            code = KEY_CODES.get(key, 0)
            more = {"windowsVirtualKeyCode": code} if code else {"text": key}
            await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
            await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def choose(self, selector: str, value: str) -> None:
        """Sets a <select> or an <input> as a user would."""
        await self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.value = {value!r};"
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true})); })()"
        )

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._waiting.pop(event["id"]).set_result(event)
            elif event["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                self.errors.append(event["params"]["entry"]["text"])
            elif event["method"] == "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])


@contextlib.asynccontextmanager
async def open_page(width: int = 1440, height: int = 900) -> AsyncIterator[Page]:
    """A browser of its own with one tab, ended with the context."""
    if CHROMIUM is None:
        raise FileNotFoundError("no Chromium in PATH: install the package chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"]
        options += ["--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root with one
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, *options, stdout=quiet, stderr=quiet, start_new_session=True
        )
        try:
            address = await _address(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                await page.open_tab(width, height)
                yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            await process.wait()


async def _address(file: Path, process: asyncio.subprocess.Process) -> str:
    """Where the browser listens, which it writes into its profile."""
    for _ in range(1500):
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        if process.returncode is not None:
            raise RuntimeError(f"{CHROMIUM} ended with {process.returncode} before it listened")
        await asyncio.sleep(0.02)
    raise TimeoutError(f"{CHROMIUM} did not listen within 30 s")
