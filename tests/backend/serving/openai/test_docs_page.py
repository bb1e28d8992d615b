"""Swagger UI at `/`: whole without the internet."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("fastapi_offline")


def test_the_page_and_all_it_loads_come_from_this_server(api):
    page = api.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert len(loaded) == 3 and all(address.startswith("/docs-files/") for address in loaded)
    for address in loaded:
        assert api.client.get(address).status_code == 200
    assert "http" not in page.text.replace("<!DOCTYPE html>", "")
    assert "/openapi.json" in page.text


def test_no_other_file_can_be_had(api):
    for name in ("redoc.standalone.js", "..%2F__init__.py", "%2Fetc%2Fpasswd"):
        assert api.client.get(f"/docs-files/{name}").status_code == 404


def test_the_page_lists_every_route(api):
    paths = api.client.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/v1/chat/interactive", "/v1/encode", "/tokenize", "/detokenize",
            "/tokenizer_info", "/generate", "/v1/abort", "/health"} <= paths.keys()
