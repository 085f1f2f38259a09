"""The OpenAPI document, and a page for people that is made from it."""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Response, current_app, render_template, request
from markupsafe import Markup, escape

from app.api.outline import outline
from app.api.release import release
from app.api.replies import json_response, send
from app.api.resource import Resource
from app.api.schemas.service import RootAnswer

resource = Resource("docs", "Documentation", "This description of the service.", prefix=None)

_OPENAPI, _DOCS = "/v1/openapi.json", "/v1/docs"

_CODE = re.compile(r"`([^`]+)`")
_CSP = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"


@resource.route_as(
    "get", "/", answers={200: RootAnswer, 302: None}, headers={302: ["Location"]}, guarded=False
)
def get_root() -> Response:
    """Read what answers here and where to go on.

    A browser, or who else prefers `text/html`, is led to the documentation page.
    """
    if request.accept_mimetypes.best_match(("application/json", "text/html")) == "text/html":
        response = Response(status=302, headers={"Location": _DOCS})
    else:
        response = send(
            RootAnswer(
                service="darkroom",
                version=release(),
                documentation=_DOCS,
                openapi=_OPENAPI,
                health="/readyz",
            )
        )
    response.headers["Vary"] = "Accept"
    return response


@resource.route_as("get", _OPENAPI, answers={200: "application/json"}, guarded=False)
def get_openapi() -> Response:
    """Read the OpenAPI 3.1 document."""
    return _cached(json_response(json.dumps(current_app.extensions["darkroom.openapi"])))


@resource.route_as("get", _DOCS, answers={200: "text/html"}, guarded=False)
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


@resource.route_as("get", f"{_DOCS}/style.css", answers={200: "text/css"}, guarded=False)
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
