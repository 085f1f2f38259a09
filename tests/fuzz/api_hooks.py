"""What schemathesis is told of this API: loaded by it in a process of its own."""

from __future__ import annotations

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """Spend no time waiting: nobody works on the jobs here."""
    if isinstance(case.query, dict):
        case.query.pop("wait", None)


@schemathesis.check
def schema_tells_what_is_valid(ctx, response, case):
    """What the document allows, the schemas take; other rules may refuse it, by other codes."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code != 422 or response.json()["code"] != "request_invalid":
        return
    # JSON Schema takes 1.0 for an integer; we do not, and it has no word for that.
    faults = [
        fault["detail"]
        for fault in response.json()["errors"]
        if fault["detail"] != "Input should be a valid integer"
    ]
    if faults:
        raise AssertionError(f"the document allows what is refused: {faults[0]}")
