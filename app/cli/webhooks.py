"""``darkroom webhooks add | list | remove | enable | rotate | test | deliveries | replay``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.connect import GuardedGroup, JsonFlag, connect
from app.cli.console import answer, note, print_json, print_table, say, state_text
from app.cli.limits import read_seconds
from app.cli.words import ago_text

if TYPE_CHECKING:
    from app.client.values import Webhook

app = typer.Typer(cls=GuardedGroup, help="Addresses that are told of events.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="whk_…", show_default=False)]


@app.command()
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://…", show_default=False)],
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as job.succeeded or job.progress; repeat for more. Else how a job ended.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Register an address: https to a public host, or what else the operator allows.

    The secret that signs what it is sent is shown once.
    """
    with connect(context) as darkroom:
        webhook = darkroom.webhooks.create(url, event)
    answer(webhook.raw, f"{webhook.id}  {webhook.url}", as_json=as_json)
    if not as_json:
        _show_once(webhook)


@app.command("list")
def list_webhooks(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List webhooks, newest first."""
    with connect(context) as darkroom:
        webhooks = list(darkroom.webhooks.list())
    if as_json:
        print_json([webhook.raw for webhook in webhooks])
        return
    print_table(
        ("webhook", "state", "url", "events"),
        [
            (
                webhook.id,
                _state_of(webhook),
                webhook.url,
                " ".join(webhook.events),
            )
            for webhook in webhooks
        ],
        wrap=("url", "events"),
        empty="no webhooks",
    )


def _state_of(webhook: Webhook) -> str:
    """Its state, and why or since when it is in trouble."""
    if webhook.disabled_reason:
        return f"{webhook.state} ({webhook.disabled_reason})"
    if webhook.first_failed_at:
        return f"{webhook.state} (failing since {ago_text(webhook.first_failed_at)})"
    if not webhook.signed:
        return f"{webhook.state} (not signed)"
    return webhook.state


def _show_once(webhook: Webhook) -> None:
    if webhook.secret:
        say(webhook.secret)
        note(f"{webhook.id}: keep its secret now, it is not shown again")


@app.command()
def remove(context: typer.Context, webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Forget a webhook and the log of its deliveries."""
    with connect(context) as darkroom:
        darkroom.webhooks.delete(webhook_id)
    answer({"id": webhook_id, "removed": True}, f"{webhook_id} removed", as_json=as_json)


@app.command()
def enable(context: typer.Context, webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Tell a disabled webhook of events again, from now on."""
    with connect(context) as darkroom:
        webhook = darkroom.webhooks.enable(webhook_id)
    answer(webhook.raw, f"{webhook.id} {webhook.state}", as_json=as_json)


@app.command()
def rotate(
    context: typer.Context,
    webhook_id: WebhookId,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="How long the old secret signs along: 2h, 1d; 0 ends it at once."
        ),
    ] = "1d",
    as_json: JsonFlag = False,
) -> None:
    """Replace the secret of a webhook. The new one is shown once."""
    seconds = read_seconds(overlap, "--overlap")
    with connect(context) as darkroom:
        webhook = darkroom.webhooks.rotate_secret(webhook_id, overlap_seconds=seconds)
    if as_json:
        print_json(webhook.raw)
        return
    _show_once(webhook)
    if webhook.previous_secret_ends_at:
        note(f"the old secret signs along for {overlap} more")


@app.command("test")
def send_test(context: typer.Context, webhook_id: WebhookId, as_json: JsonFlag = False) -> None:
    """Send a webhook.test that tells of no job; see `deliveries` for what became of it."""
    with connect(context) as darkroom:
        delivery = darkroom.webhooks.test(webhook_id)
    answer(delivery.raw, f"{delivery.id} {delivery.state}", as_json=as_json)


@app.command()
def deliveries(
    context: typer.Context,
    webhook_id: WebhookId,
    state: Annotated[
        str | None, typer.Option(help="pending, sending, delivered or failed.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Deliveries to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show what a webhook was sent, or is still owed, newest first."""
    with connect(context) as darkroom:
        found = list(islice(darkroom.webhooks.deliveries(webhook_id, state=state), limit))
    if as_json:
        print_json([delivery.raw for delivery in found])
        return
    print_table(
        ("delivery", "state", "event", "job", "attempts", "answer", "made"),
        [
            (
                delivery.id,
                state_text(delivery.state),
                delivery.event_type,
                delivery.job_id or "",
                delivery.attempts,
                delivery.last_error or delivery.last_status or "",
                ago_text(delivery.created_at),
            )
            for delivery in found
        ],
        right=("attempts",),
        wrap=("answer",),
        spare=("attempts", "made", "job"),
        empty="no deliveries",
    )


@app.command()
def replay(
    context: typer.Context,
    webhook_id: WebhookId,
    delivery_id: Annotated[
        str, typer.Argument(metavar="DELIVERY", help="dlv_…", show_default=False)
    ],
    as_json: JsonFlag = False,
) -> None:
    """Send a delivery again that was delivered or given up."""
    with connect(context) as darkroom:
        delivery = darkroom.webhooks.replay(webhook_id, delivery_id)
    answer(delivery.raw, f"{delivery.id} {delivery.state}", as_json=as_json)
