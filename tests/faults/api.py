"""The API as production runs it, armed: it may die when a POST is done and not yet answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from app.api.app import create_app as create_real_app
from app.points import reach
from tests.faults.acts import arm_plan
from tests.faults.plan import Plan


def create_app() -> Any:
    """The real application behind a point of its own: the transaction is over, no byte is sent."""
    arm_plan(Plan.from_environment(os.environ))
    app = create_real_app()
    answer = app.wsgi_app

    def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body: Iterable[bytes] = answer(environ, start_response)
        if environ["REQUEST_METHOD"] == "POST":
            reach("before_reply")
        return body

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]
    return app
