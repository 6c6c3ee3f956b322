"""The dashboard as its reader has it: clicked, filtered, compared and looked at in headless Chromium."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp.test_utils import TestServer
from chromium import CHROMIUM, open_page
from test_dashboard import HOSTILE, row, sample, write_rows

from deltarl.rl.dashboard.app import Dashboard

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")

CHARTS = "[...document.querySelectorAll('.card')].filter((c) => c.querySelector('canvas')).map((c) => c.dataset.metric)"
# Pixels of a chart that are not its background: none before something is drawn.
INK = """(() => { const c = document.querySelector('.card canvas'); if (!c) return 0;
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"""


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for number in range(3):
        folder = root / f"run-{number}"
        rows = [
            row(s, entropy=2.0 / s, **{"time/total": 2.0 * s, "alert/entropy": float(s > 15)}) for s in range(1, 21)
        ]
        write_rows(folder / "metrics.jsonl", rows)
        (folder / "config.yaml").write_text(
            f"name: run-{number}\nseed: {number}\nsteps: 20\nlearner: {{lr: {number % 2}}}\n"
        )
    texts = [sample(1, "2+2=", HOSTILE, "wrong"), sample(20, "2+2=", "It is 4"), sample(20, "3+3=", "It is 7", "wrong")]
    write_rows(root / "run-0" / "samples.jsonl", texts)
    bar = {"name": "update", "ph": "X", "cat": "learner", "dur": 5e5, "pid": 1, "tid": 0, "args": {"step": 1}}
    bars = [bar | {"ts": 1e6 * i} for i in range(5)]
    (root / "run-0" / "trace.json").write_text("[" + ",\n".join(map(json.dumps, bars)))
    return root


@asynccontextmanager
async def dashboard(root, view=""):
    async with TestServer(Dashboard(root).app()) as server, open_page() as page:
        await page.goto(str(server.make_url("/")) + view)
        yield page
        assert page.errors == []
        outside = [url for url in page.requests if not url.startswith((str(server.make_url("/")), "data:", "about:"))]
        assert outside == []


def test_runs_are_followed_chosen_and_shared_by_address(runs, tmp_path):
    async def read():
        async with dashboard(runs) as page:
            await page.wait_for(f"{CHARTS}.includes('entropy')")
            assert await page.evaluate(INK) > 500
            await page.click("#runs li:nth-child(2) input")
            await page.wait_for("document.querySelector('#run-count').textContent === '2 of 3 shown'")
            assert await page.evaluate("location.hash") == "#runs=run-0%2Crun-2"

            write_rows(runs / "run-0" / "metrics.jsonl", [row(21, brand_new=1.0)], "a")
            await page.wait_for("document.querySelector('#runs .facts').textContent === '21/20'")

            await page.type("/")
            await page.type("brand")
            await page.wait_for(f"{CHARTS}.join() === 'brand_new'")
            await page.type("Escape")
            await page.type("xl]")  # axis, log scale, smoothing
            await page.choose("#group", "learner.lr")
            address = await page.evaluate("location.href")
            assert all(part in address for part in ("q=brand", "x=tokens", "log=1", "smooth=0.7", "group=learner.lr"))
            await page.goto("about:blank")
            await page.goto(address)
            await page.wait_for(f"{CHARTS}.join() === 'brand_new'")
            assert await page.evaluate("document.querySelector('#group').value") == "learner.lr"
            assert await page.evaluate("document.querySelector('#run-count').textContent") == "2 of 3 shown"

            await page.screenshot(tmp_path / "light.png")
            await page.type("t")
            await page.type("t")
            await page.wait_for("document.documentElement.dataset.theme === 'dark'")
            await asyncio.sleep(0.2)
            await page.screenshot(tmp_path / "dark.png")
            assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()

    asyncio.run(read())


def test_samples_are_filtered_and_compared_and_never_run(runs):
    async def read():
        async with dashboard(runs, "#view=samples") as page:
            await page.wait_for("document.querySelectorAll('.sample').length === 3")
            await page.choose("#sample-verdict", "wrong")
            await page.wait_for("document.querySelectorAll('.sample').length === 2")
            await page.choose("#sample-step", "1")
            await page.wait_for("document.querySelectorAll('.sample').length === 1")
            shown = await page.evaluate("document.querySelectorAll('.sample pre')[1].textContent")
            assert shown.startswith("</script><img src=x onerror=")
            assert await page.evaluate("document.querySelectorAll('.sample img').length") == 0
            assert "hacked" not in await page.evaluate("document.title")

            await page.click(".switch button:nth-child(2)")
            await page.wait_for("document.querySelectorAll('ins').length > 0")
            count = await page.evaluate("document.querySelector('#sample-count').textContent")
            assert count == "1 prompts were answered at both steps: 1 became right, 0 became wrong. 1 shown."
            assert "It" in await page.evaluate("document.querySelector('ins').textContent")

    asyncio.run(read())


def test_configurations_timeline_and_alerts_have_their_views(runs):
    async def read():
        async with dashboard(runs) as page:
            await page.wait_for(f"{CHARTS}.length > 0")
            assert await page.evaluate("document.querySelector('#alert-count').textContent") == "3"
            await page.type("3")
            await page.wait_for("document.querySelector('table') !== null")
            keys = "[...document.querySelectorAll('tbody th')].map((t) => t.textContent).join()"
            assert await page.evaluate(keys) == "name,seed,learner.lr"
            await page.type("4")
            await page.wait_for("document.querySelector('.gantt canvas') !== null")
            assert "5 bars in 1 lanes" in await page.evaluate("document.querySelector('.gantt').ariaLabel")
            await page.type("5")
            await page.click(".alert button")
            await page.wait_for(
                f"{CHARTS}.join() === 'alert/entropy,entropy' || {CHARTS}.join() === 'entropy,alert/entropy'"
            )
            assert "zoom=" in await page.evaluate("location.hash")

    asyncio.run(read())


def test_every_control_has_a_name(runs):
    unnamed = """[...document.querySelectorAll('button, input, select, [role=img]')].filter((e) =>
        !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.title)).map((e) => e.outerHTML)"""

    async def read():
        async with dashboard(runs) as page:
            for key in "12345":
                await page.wait_for("document.querySelector('[data-shown]') !== null")
                await page.type(key)
                await asyncio.sleep(0.1)
                assert await page.evaluate(unnamed) == []

    start = time.monotonic()
    asyncio.run(read())
    assert time.monotonic() - start < 60
