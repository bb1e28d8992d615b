"""Docs page: Swagger UI at `/`, drawn from our own /openapi.json, without a byte from the internet.

Its script and style come from the installed package fastapi-offline, whose releases follow Swagger UI's.
Used by app.py."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from backend.serving.openai.errors import ApiError

PACKAGE = "fastapi_offline"
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}


router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> HTMLResponse:
    _folder()
    root = request.scope.get("root_path", "")
    script, style, icon = (f"{root}/docs-files/{name}" for name in FILES)
    return get_swagger_ui_html(openapi_url=f"{root}/openapi.json", title=request.app.title, swagger_js_url=script,
                               swagger_css_url=style, swagger_favicon_url=icon)


@router.get("/docs-files/{name}")
async def file(name: str) -> FileResponse:
    """One of the page's files, of which there are no others: a name is looked up, never joined to a path."""
    if name not in FILES:
        raise ApiError(404, f"there is no {name!r} here; the page at / uses {', '.join(FILES)}", code="not_found")
    return FileResponse(_folder() / name, media_type=FILES[name], headers={"cache-control": "max-age=86400"})


@cache
def _folder() -> Path:
    """Where the package keeps its files. Found without importing it, which would make it part of the server.

    Raises ApiError 404 where it is not installed; the API itself does not need it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ApiError(404, "this page needs a package; pip install fastapi-offline", code="not_found")
    return Path(found.origin).parent / "static"
