"""``edgefill jobs``: what was accepted, what came of it, and whether its webhook arrived."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from service.commands.arguments import add_json
from service.console import USAGE, CommandError

if TYPE_CHECKING:
    from service.commands.arguments import Commands
    from service.jobs import Delivery, Job, JobStore

STATES: Final = ("queued", "running", "done", "failed", "cancelled")


def add(commands: Commands) -> None:
    """Describe the command and its three actions."""
    parser = commands.add_parser(
        "jobs",
        help="look at requests and their webhooks",
        description="Look at the requests that a server has accepted, and send a webhook again. "
        "Works beside a running server, on the database of EDGEFILL_DATABASE_URL, or else of "
        "EDGEFILL_DATA_DIR.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the newest requests", allow_abbrev=False)
    listing.add_argument("--state", choices=STATES, help="only those (default: all)")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="default: 50")
    showing = actions.add_parser("show", help="one request", allow_abbrev=False)
    sending = actions.add_parser(
        "redeliver", help="send the webhook of a request again", allow_abbrev=False
    )
    for action in (showing, sending):
        action.add_argument("id", type=int, metavar="ID", help="id of the request")
    for action, run in ((listing, _list), (showing, _show), (sending, _redeliver)):
        add_json(action)
        action.set_defaults(run=_with_store(run))


def _with_store(
    run: Callable[[JobStore, argparse.Namespace], None],
) -> Callable[[argparse.Namespace], int]:
    def run_it(arguments: argparse.Namespace) -> int:
        from service.errors import SettingsError
        from service.jobs import JobStore, StoreError

        try:
            url = database_url()
            if url is None:
                raise CommandError("no server has accepted a request here yet", hint=_WHERE)
            store = JobStore.open(url, check=False)
            try:
                run(store, arguments)
            finally:
                store.close()
        except SettingsError as exc:
            raise CommandError(str(exc), code=USAGE) from exc
        except StoreError as exc:
            raise CommandError(f"the jobs cannot be read: {exc}", hint=_WHERE) from exc
        return 0

    return run_it


_WHERE: Final = "EDGEFILL_DATABASE_URL or EDGEFILL_DATA_DIR must be as the server has them"


def database_url() -> str | None:
    """Where the server's jobs are; None when that is a file that does not exist.

    Raises:
        SettingsError: When a setting has a value that is not allowed.
    """
    from service.jobs import default_url
    from service.jobs.database import FILE
    from service.settings import Settings

    settings = Settings.load()
    if settings.database_url is not None:
        return settings.database_url
    return default_url(settings.data_dir) if (settings.data_dir / FILE).is_file() else None


def _list(store: JobStore, arguments: argparse.Namespace) -> None:
    from service.jobs import State

    if arguments.limit < 1:
        raise CommandError(f"--limit is {arguments.limit}; must be at least 1", code=USAGE)
    state = State(arguments.state) if arguments.state else None
    found = store.list_jobs(limit=arguments.limit, state=state)
    statistics = store.statistics()
    if arguments.json:
        _print_json({"queue": asdict(statistics), "jobs": [_summary(job) for job in found]})
        return
    print(
        f"queued: {statistics.queued}, running: {statistics.running}, "
        f"oldest waits: {statistics.oldest_age:.0f} s"
    )
    for job in found:
        webhook = store.outbox.deliveries(job.id)
        told = f"  webhook {webhook[-1].state}" if webhook else ""
        accepted = _time(job.accepted_at)
        print(f"{job.id:>10}  {accepted}  {job.kind:<8}  {job.state:<9}{told}")


def _show(store: JobStore, arguments: argparse.Namespace) -> None:
    job = store.show(arguments.id)
    webhooks = store.outbox.deliveries(arguments.id)
    if job is None and not webhooks:
        raise _unknown(arguments.id)
    if arguments.json:
        record = None if job is None else {**_summary(job), "answer": job.answer}
        _print_json({"job": record, "webhooks": [_webhook(each) for each in webhooks]})
        return
    if job is None:
        print(f"request {arguments.id}: has expired")
    else:
        for name, value in _summary(job).items():
            if value not in (None, []):
                print(f"{name}: {_time(value) if name.endswith('_at') else _plain(value)}")
    for each in webhooks:
        tried = f"{each.state} after {each.attempts} attempt(s)"
        print(f"webhook {each.id}: {tried}, to {_plain(each.url)}")
        if each.last_error:
            print(f"{'':8}last error: {_plain(each.last_error)}")
        if each.state == "pending":
            print(f"{'':8}next attempt: {_time(each.next_at)}")


def _redeliver(store: JobStore, arguments: argparse.Namespace) -> None:
    count = store.outbox.redeliver(arguments.id)
    if not count and store.show(arguments.id) is None:
        raise _unknown(arguments.id)
    if not count:
        raise CommandError(f"request {arguments.id} has no webhook to send")
    if arguments.json:
        _print_json({"id": arguments.id, "webhooks": count})
    else:
        print(f"request {arguments.id}: its webhook is sent again by the running server")


def _unknown(job_id: int) -> CommandError:
    return CommandError(f"there is no request {job_id}", hint="`edgefill jobs list` shows them")


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record))


def _summary(job: Job) -> dict[str, Any]:
    record = asdict(job)
    del record["request"], record["answer"]
    return record


def _webhook(delivery: Delivery) -> dict[str, Any]:
    record = asdict(delivery)
    record["body"] = json.loads(delivery.body)
    return record


def _plain(value: object) -> str:
    """What clients and receivers wrote, without the means to play tricks on a terminal."""
    text = str(value)
    return text if text.isprintable() else ascii(text)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
