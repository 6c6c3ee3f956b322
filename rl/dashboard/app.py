"""The dashboard's HTTP server: a page, its files, and what the page asks for. Nothing here writes."""

import asyncio
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from deltarl.rl.alerts import LOOK_AT
from deltarl.rl.dashboard.index import RunIndex
from deltarl.rl.dashboard.runs import Run, flatten, inside
from deltarl.rl.dashboard.samples import PAGE_SIZE, SampleIndex, Wanted, compare
from deltarl.rl.dashboard.series import SeriesRequest, series
from deltarl.rl.dashboard.trace import read_bars
from deltarl.rl.metrics import SAMPLES_FILE, metric_doc
from deltarl.rl.trace import TRACE_FILE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TYPES = {".js": "text/javascript", ".css": "text/css", ".LICENSE": "text/plain"}


class Dashboard:
    """The handlers, around one index of runs.

    Args:
        root: the folder of runs.
        hosts: names besides IP addresses by which a browser may call this server. Without the check, a web page
            whose name is made to point at this machine could read what is served (DNS rebinding).
    """

    def __init__(self, root: Path, hosts: frozenset[str] = frozenset({"localhost"})):
        self.index, self.hosts = RunIndex(root), hosts
        self._samples: dict[str, SampleIndex] = {}
        self._samples_lock = asyncio.Lock()
        loader = PackageLoader("deltarl.rl.dashboard", "static")
        self._page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        static = resources.files("deltarl.rl.dashboard") / "static"
        shipped = [*static.iterdir(), *(static / "vendor").iterdir()]
        self._files = {f.name: f.read_bytes() for f in shipped if f.is_file() and Path(f.name).suffix in TYPES}

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self.page),
                web.get("/static/{name}", self.static),
                web.get("/api/runs", self.runs),
                web.post("/api/series", self.series),
                web.get("/api/config", self.config),
                web.get("/api/samples", self.samples),
                web.get("/api/compare", self.compare),
                web.get("/api/trace", self.trace),
            ]
        )
        app.on_startup.append(lambda _: self.index.refresh())
        app.on_cleanup.append(lambda _: self.index.close())
        return app

    # ---------------------------------------------------------------------------------------------------- handlers

    async def page(self, request: web.Request) -> web.Response:
        """GET /: the page. Only scripts with its nonce run, and it can load and call nothing but this server."""
        nonce = secrets.token_urlsafe(16)
        text = self._page.get_template("index.html.j2").render(nonce=nonce, folder=self.index.root.name)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def static(self, request: web.Request) -> web.Response:
        """GET /static/{name}: a file that belongs to the page."""
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound(text=f"no file {name!r}")
        return web.Response(body=self._files[name], content_type=TYPES[Path(name).suffix])

    async def runs(self, request: web.Request) -> web.Response:
        """GET /api/runs?since=VERSION: ids of all runs, and summaries of those that changed since."""
        await self.index.refresh()
        changed = self.index.changed_since(_integer(request, "since", 0))
        summaries = [run.summary() for run in changed]
        names = {name for run in changed for name in run.columns.values if name != "step"}
        answer = {"version": self.index.version, "ids": sorted(self.index.runs), "runs": summaries}
        return _json(answer | {"docs": {name: _doc(name) for name in sorted(names)}, "alerts": LOOK_AT})

    async def series(self, request: web.Request) -> web.Response:
        """POST /api/series: curves, as series.series gives them."""
        try:
            wanted = SeriesRequest.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        runs = [self._run(name) for name in wanted.runs]
        body = await asyncio.to_thread(series, wanted, runs)
        return web.Response(body=body, content_type="application/octet-stream")

    async def config(self, request: web.Request) -> web.Response:
        """GET /api/config?run=...&run=...: every configuration value as text, by run and dotted key."""
        return _json({name: flatten(self._run(name).config) for name in request.query.getall("run", [])})

    async def samples(self, request: web.Request) -> web.Response:
        """GET /api/samples?run=: a page of samples by step, split, verdict and text."""
        index = await self._sample_index(request.query.get("run", ""))
        query = request.query
        step = _integer(request, "step", 0) if query.get("step") else None
        wanted = Wanted(step, query.get("split", ""), query.get("verdict", ""), query.get("text", ""))
        total, rows = await asyncio.to_thread(index.find, wanted, _integer(request, "page", 0))
        return _json({"total": total, "page_size": PAGE_SIZE, "rows": rows} | index.facets())

    async def compare(self, request: web.Request) -> web.Response:
        """GET /api/compare?run=&a=&other=&b=: answers to the same prompts at step a of run and step b of other."""
        query = request.query
        first = await self._sample_index(query.get("run", ""))
        second = await self._sample_index(query.get("other") or query.get("run", ""))
        steps = _integer(request, "a", 0), _integer(request, "b", 0)
        page, only = _integer(request, "page", 0), query.get("only", "")
        found = await asyncio.to_thread(compare, first, steps[0], second, steps[1], only, page)
        return _json(found | {"page_size": PAGE_SIZE})

    async def trace(self, request: web.Request) -> web.Response:
        """GET /api/trace?run=: the bars of trace.json; 404 where there is none."""
        run = self._run(request.query.get("run", ""))
        path = inside(self.index.root, run.folder / TRACE_FILE)
        if path is None:
            raise web.HTTPNotFound(text=f"{run.id} has no {TRACE_FILE}")
        return _json(await asyncio.to_thread(read_bars, path))

    # ----------------------------------------------------------------------------------------------------- helpers

    def _run(self, name: str) -> Run:
        if name not in self.index.runs:
            raise web.HTTPNotFound(text=f"no run {name!r} here")
        return self.index.runs[name]

    async def _sample_index(self, name: str) -> SampleIndex:
        path = inside(self.index.root, self._run(name).folder / SAMPLES_FILE)
        if path is None:
            raise web.HTTPNotFound(text=f"{name} has no {SAMPLES_FILE}")
        index = self._samples.setdefault(name, SampleIndex(path))
        async with self._samples_lock:
            await asyncio.to_thread(index.refresh)
        return index

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        if not (is_address(host) or host in self.hosts):
            raise web.HTTPForbidden(text=f"not served under the name {host!r}; start it with --host {host}")
        response = await handler(request)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, an IPv6 one with or without its brackets."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _integer(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise web.HTTPBadRequest(text=f"{name}={text!r} is not a whole number from 0")
    return number


def _doc(name: str) -> dict[str, Any]:
    try:
        return dict(metric_doc(name)._asdict())
    except ValueError:  # a run of another version, or of another program
        return {"description": "", "unit": "", "panel": "Other"}


def _json(value: Any) -> web.Response:
    return web.json_response(value)
