"""`jobctl admin`: the operator's commands, each a thin skin over `Admin`."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobclient import output

if TYPE_CHECKING:
    from jobclient.admin import Admin, NewKey

app = typer.Typer(
    help="Operate a platform with your own AWS credentials.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
dead_letters = typer.Typer(
    help="Doorbells that could not be read.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(dead_letters, name="dead-letters")

Stack = Annotated[
    str,
    typer.Option("--stack", metavar="NAME", envvar="JOBS_STACK", help="Name of the service stack."),
]
Region = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="REGION",
        envvar=["AWS_REGION", "AWS_DEFAULT_REGION"],
        help="AWS region; default: the profile's.",
    ),
]
Profile = Annotated[str | None, typer.Option("--profile", metavar="PROFILE", help="AWS profile.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[str, typer.Argument(metavar="CLIENT", help="Name or id of the client.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]

STACK = "JobPlatformService"


@app.command()
def create_client(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new client.")],
    plan: Annotated[
        str, typer.Option("--plan", metavar="PLAN", help="Usage plan of its first key.")
    ] = "basic",
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Create a client and its first key. The key is shown this once."""
    admin = _admin(stack, region, profile)
    # Asked for first: nothing may fail between the making of a key and its showing.
    api_url = admin.api_url
    _print_key(api_url, admin.create_client(name, plan), json_)


@app.command()
def add_key(
    client: Name,
    plan: Annotated[
        str, typer.Option("--plan", metavar="PLAN", help="Usage plan of the key.")
    ] = "basic",
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Give a client one more key. It is shown this once."""
    admin = _admin(stack, region, profile)
    api_url = admin.api_url
    _print_key(api_url, admin.add_key(client, plan), json_)


@app.command()
def rotate_key(
    client: Name,
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="PLAN", help="Plan of the new key; default: as before."),
    ] = None,
    key_id: Annotated[
        str | None,
        typer.Option(
            "--key-id", metavar="KEY_ID", help="Replace this key only; default: all of them."
        ),
    ] = None,
    grace: Annotated[
        bool, typer.Option("--grace", help="Leave the old keys working until `revoke-key`.")
    ] = False,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Replace a client's keys. Its jobs stay."""
    admin = _admin(stack, region, profile)
    api_url = admin.api_url
    rotation = admin.rotate_key(
        client,
        plan=plan,
        api_key_id=key_id,
        grace=grace,
        announce=lambda key: _print_key(api_url, key, json_),
    )
    for api_key_id in rotation.revoked:
        output.note(f"Revoked: {api_key_id}")
    for api_key_id in rotation.still_valid:
        output.note(f"Still works, end it with: jobctl admin revoke-key {api_key_id}")


@app.command()
def revoke_key(
    api_key_id: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="Id of the key; `list-clients` shows it.")
    ],
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
) -> None:
    """End a key at once."""
    _admin(stack, region, profile).revoke_key(api_key_id)
    output.note(f"Revoked: {api_key_id}")


@app.command()
def list_clients(
    removed: Annotated[bool, typer.Option("--all", help="Removed clients and keys too.")] = False,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """List clients and the ids of their keys."""
    clients = _admin(stack, region, profile).list_clients()
    if not removed:
        clients = [
            dataclasses.replace(client, keys=client.live_keys)
            for client in clients
            if client.removed_at is None
        ]
    if json_:
        output.as_json([dataclasses.asdict(client) for client in clients])
        return
    output.table(
        ["client", "client id", "created", "keys (id, plan)"],
        (
            [
                f"{client.name} (removed)" if client.removed_at else client.name,
                client.client_id,
                client.created_at,
                "\n".join(
                    f"{key.api_key_id} {key.plan}{' (revoked)' if key.revoked_at else ''}"
                    for key in client.keys
                ),
            ]
            for client in clients
        ),
    )


@app.command()
def remove_client(
    client: Name,
    yes: Yes = False,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
) -> None:
    """Remove a client, its keys, jobs and results.

    The keys end at once, the jobs are cancelled, the results go with the next purge.
    """
    admin = _admin(stack, region, profile)
    found = admin.client(client)
    _confirm(
        f"Remove {found.name} ({found.client_id}) with {len(found.live_keys)} live keys, "
        "all of its jobs and results?",
        yes,
    )
    admin.remove_client(found.client_id)
    output.note(f"Removed: {found.name}. Its results are deleted by the next purge.")


@app.command()
def invoke(
    function: Annotated[
        str, typer.Argument(metavar="FUNCTION", help="api, worker, dispatcher, purge or admin.")
    ],
    event_file: Annotated[Path, typer.Argument(metavar="EVENTFILE", help="The event (JSON).")],
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
) -> None:
    """Invoke a function with an event from a file.

    Prints its answer (JSON) on stdout and the end of its log on stderr.
    """
    try:
        event = json.loads(event_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="EVENTFILE") from error
    invocation = _admin(stack, region, profile).invoke(function, event)
    if invocation.log:
        output.note(invocation.log)
    output.as_json(invocation.payload)


@app.command()
def list_jobs(
    status: Annotated[
        str | None,
        typer.Option(
            "--status", metavar="STATUS", help="queued, running, succeeded, failed, cancelled."
        ),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option("--client", metavar="CLIENT", help="Jobs of this client (name or id) only."),
    ] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only those that wait or run longer than they should.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")
    ] = 50,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """List jobs of every client."""
    admin = _admin(stack, region, profile)
    _print(admin.list_jobs(status=status, client=client, stuck=stuck, limit=limit), json_)


@app.command()
def explain_job(
    job_id: JobId,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Show what happened to a job, with causes."""
    _print(_admin(stack, region, profile).explain_job(job_id), json_)


@app.command()
def retry_job(
    job_id: JobId,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Queue a failed job again."""
    _print(_admin(stack, region, profile).retry_job(job_id), json_)


@app.command()
def cancel_job(
    job_id: JobId,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Cancel a job of any client."""
    _print(_admin(stack, region, profile).cancel_job(job_id), json_)


@dead_letters.command(name="list")
def list_dead_letters(
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Look at the dead letters; they stay."""
    _print(_admin(stack, region, profile).list_dead_letters(), json_)


@dead_letters.command(name="redrive")
def redrive_dead_letters(
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Send the dead letters to the queue again."""
    _print(_admin(stack, region, profile).redrive_dead_letters(), json_)


@dead_letters.command(name="drop")
def drop_dead_letters(
    yes: Yes = False,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Delete the dead letters. No job is lost."""
    admin = _admin(stack, region, profile)
    _confirm("Delete all dead letters?", yes)
    _print(admin.drop_dead_letters(), json_)


@app.command()
def purge(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    yes: Yes = False,
    stack: Stack = STACK,
    region: Region = None,
    profile: Profile = None,
    json_: Json = False,
) -> None:
    """Delete what is past its time, now.

    The platform does it by itself every day at 03:00 UTC.
    """
    admin = _admin(stack, region, profile)
    if not dry_run:
        _confirm("Delete everything that is past its time?", yes)
    _print(admin.purge(dry_run=dry_run), json_)


def _admin(stack: str, region: str | None, profile: str | None) -> "Admin":
    try:
        # Loading boto3 takes longer than most commands of `jobctl` that do not need it.
        from jobclient.admin import Admin
    except ModuleNotFoundError as error:
        if error.name != "boto3":
            raise
        raise typer.BadParameter(
            "operator's commands need boto3: pip install 'async-job-platform[client]'"
        ) from error
    return Admin.from_profile(stack, profile=profile, region=region)


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True, err=True)


def _print(answer: Any, json_: bool) -> None:
    if json_:
        output.as_json(answer)
    else:
        output.anything(answer)


def _print_key(api_url: str, key: "NewKey", json_: bool) -> None:
    if json_:
        output.as_json(
            {
                "client_id": key.client_id,
                "plan": key.plan,
                "api_key_id": key.api_key_id,
                "api_key": key.api_key,
                "api_url": api_url,
            }
        )
        return
    output.note(
        f"Key {key.api_key_id} of client {key.client_id} on plan {key.plan}. It is shown this once "
        "and kept nowhere; on AWS it works after some seconds.\n"
    )
    output.line(f"export JOBS_API_URL={api_url}")
    output.line(f"export JOBS_API_KEY={key.api_key}")
