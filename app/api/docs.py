"""The OpenAPI document, and a page for people that is made from it."""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Response, current_app, render_template, request
from markupsafe import Markup, escape

from app.api.outline import outline
from app.api.replies import json_response
from app.api.resource import Resource

resource = Resource("docs", "Documentation", "This description of the service.")

_CODE = re.compile(r"`([^`]+)`")
_CSP = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"


@resource.route_as("get", "/openapi.json", answers={200: "application/json"}, guarded=False)
def get_openapi() -> Response:
    """Read the OpenAPI 3.1 document."""
    return _cached(json_response(json.dumps(current_app.extensions["darkroom.openapi"])))


@resource.route_as("get", "/docs", answers={200: "text/html"}, guarded=False)
def get_docs() -> Response:
    """Read the documentation page."""
    page = render_template(
        "docs.html",
        document=current_app.extensions["darkroom.openapi"],
        groups=_outline(),
        address=request.host_url.rstrip("/"),
        prose=_prose,
    )
    response = Response(page, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _CSP
    return _cached(response)


@resource.route_as("get", "/docs/style.css", answers={200: "text/css"}, guarded=False)
def get_docs_style() -> Response:
    """Read the page's style sheet."""
    with current_app.open_resource("static/docs.css") as sheet:
        return _cached(Response(sheet.read(), content_type="text/css; charset=utf-8"))


def _cached(response: Response) -> Response:
    """Let the reader keep it, and ask whether it is still good."""
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response


def _prose(text: str) -> Markup:
    """Text with its `words` set as code; everything else is escaped."""
    # Safe: the text is escaped first, and only our own tags are put in.
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704


def _outline() -> Any:
    extensions = current_app.extensions
    if "darkroom.outline" not in extensions:
        extensions["darkroom.outline"] = outline(extensions["darkroom.openapi"])
    return extensions["darkroom.outline"]
