"""The application: routes, and around them who asks, how much, and what is written down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from gptj.serve import routes
from gptj.serve.document import ABOUT, document
from gptj.serve.keys import Guard, Keys
from gptj.serve.kobold import Kobold
from gptj.serve.limits import Limits
from gptj.serve.logs import Observed
from gptj.serve.metrics import Metrics
from gptj.serve.original import Original
from gptj.serve.refusal import Refused, from_http, from_validation, unforeseen
from gptj.serve.service import Service, watch

PAGE = Path(__file__).parent / "page"
"""The web page: its files are served as they are."""

PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
"""What a model writes is shown on the page: nothing of it, and nothing from elsewhere, may run."""


def build_app(service: Service, keys: Keys, metrics: Metrics) -> FastAPI:
    """The application of a service; the service's worker is started by whoever runs it."""
    app = FastAPI(
        title="gptj", version=version("gptj-jax"), description=ABOUT, docs_url=None, redoc_url=None
    )
    app.state.service, app.state.metrics = service, metrics
    app.state.kobold, app.state.original = Kobold(service), Original(service)
    for router in (routes.openai, routes.tokens, routes.own, routes.story, routes.operating):
        app.include_router(router)
    if service.config.adapter_loading:
        app.include_router(routes.adapters)
    app.openapi = lambda: _document(app, bool(keys))  # type: ignore[method-assign]
    _refuse_in_our_words(app)
    watch(service, metrics)
    config, page = service.config, _add_page(app)
    # Each is wrapped around those before it.
    app.add_middleware(Limits, most_bytes=config.max_body_bytes, seconds=config.client_seconds)
    app.add_middleware(Guard, keys=keys, also_open=page)
    if config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(Observed, metrics=metrics)
    return app


def _document(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    if not app.openapi_schema:
        app.openapi_schema = document(app, with_keys)
    return app.openapi_schema


def _refuse_in_our_words(app: FastAPI) -> None:
    """Whatever goes wrong is answered in the protocol's own shape."""

    @app.exception_handler(Refused)
    async def refused(http: Request, error: Refused) -> Response:
        return error.response(http.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> Response:
        return from_validation(error).response(http.url.path)

    @app.exception_handler(HTTPException)
    async def by_framework(http: Request, error: HTTPException) -> Response:
        return from_http(error).response(http.url.path)

    @app.exception_handler(Exception)
    async def failed(http: Request, error: Exception) -> Response:
        return unforeseen(http.scope).response(http.url.path)


def _add_page(app: FastAPI) -> frozenset[str]:
    """Serve the files of the web page; the paths, which anyone may see."""
    files = {f"/page/{file.name}": file for file in sorted(PAGE.glob("*.*"))}
    files["/"] = files.pop("/page/index.html")
    for path, file in files.items():
        app.add_route(path, _sender(file))
    return frozenset(files)


def _sender(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(file, headers=PAGE_HEADERS)

    return send
