"""The operator's commands: API Gateway and the platform stay in step, whatever fails on the way."""

import hashlib
from datetime import UTC, datetime

import botocore.exceptions
import pytest
from moto import mock_aws

from jobclient import errors
from jobclient.admin import Admin
from tests.unit.jobclient.admin_platform import API_URL, AdminPlatform, crash
from tests.unit.jobclient.scripted_server import Reply


@pytest.fixture
def platform(server):
    with mock_aws():
        yield AdminPlatform(server)


@pytest.fixture
def admin(platform) -> Admin:
    return platform.admin()


def refuse(monkeypatch, admin: Admin, operation: str, code: str = "AccessDeniedException") -> None:
    """API Gateway refuses one operation from now on."""

    def refused(**arguments):
        raise botocore.exceptions.ClientError(
            {"Error": {"Code": code, "Message": "No such right"}}, operation
        )

    monkeypatch.setattr(admin._apigateway, operation, refused)


# The stack


def test_the_stack_says_where_everything_is(admin):
    assert admin.api_url == API_URL
    assert admin.plans == ["basic", "pro"]
    assert admin.functions == ["admin", "api", "dispatcher", "purge", "worker"]


def test_on_an_emulator_the_address_is_one_that_can_be_reached(platform):
    emulated = platform.session.client("apigateway", endpoint_url="http://127.0.0.1:4566")

    url = platform.admin(apigateway=emulated).api_url

    assert url == "http://127.0.0.1:4566/restapis/a1b2c3/prod/_user_request_"


def test_an_address_of_ones_own_is_kept_on_an_emulator_too(platform, monkeypatch):
    emulated = platform.session.client("apigateway", endpoint_url="http://127.0.0.1:4566")
    admin = platform.admin(apigateway=emulated)
    monkeypatch.setitem(admin.outputs, "ApiUrl", "https://jobs.example.com/")

    assert admin.api_url == "https://jobs.example.com/"


def test_a_missing_stack_is_named_with_its_region(platform):
    with pytest.raises(errors.StackNotFound, match="no stack Nowhere in eu-central-1"):
        platform.admin(stack="Nowhere").list_clients()


def test_a_stack_of_something_else_is_recognized(platform):
    platform.session.client("cloudformation").create_stack(
        StackName="Other", TemplateBody='{"Resources": {"Q": {"Type": "AWS::SQS::Queue"}}}'
    )

    with pytest.raises(errors.StackNotFound, match="has no output ApiUrl"):
        _ = platform.admin(stack="Other").api_url


def test_no_region_and_no_credentials_say_what_to_do(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(errors.AwsFailed, match="no AWS region: give --region"):
        Admin()
    with pytest.raises(errors.AwsFailed, match="no AWS credentials"):
        _ = Admin.from_profile(region="eu-central-1").outputs
    with pytest.raises(errors.AwsFailed, match="nobody"):
        Admin.from_profile(profile="nobody")


def test_an_emulator_that_does_not_run_is_named(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(errors.AwsFailed, match=r"127\.0\.0\.1:9.*Is AWS_ENDPOINT_URL right"):
        _ = Admin.from_profile(region="eu-central-1").outputs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(errors.AwsFailed, match="nonsense"):
        Admin.from_profile(region="eu-central-1")


# Clients and keys


def test_create_client_makes_a_key_that_both_sides_know(platform, admin):
    key = admin.create_client("acme", "pro")

    assert platform.gateway_keys() == {key.api_key_id: key.api_key}
    assert platform.plan_of(key.api_key_id) == ["pro"]
    (recorded,) = platform.keys("acme")
    assert recorded["key_sha256"] == hashlib.sha256(key.api_key.encode()).hexdigest()
    assert (recorded["api_key_id"], recorded["plan"]) == (key.api_key_id, "pro")


def test_keys_are_long_random_and_plain(admin):
    keys = {admin.create_client(f"c{n}").api_key for n in range(5)}

    assert len(keys) == 5
    assert all(len(key) == 43 and key.isalnum() and key.isascii() for key in keys)


def test_the_key_itself_goes_nowhere_but_to_api_gateway_and_the_operator(platform, admin):
    key = admin.create_client("acme")

    assert key.api_key not in str(platform.events)
    assert key.api_key not in repr(key)


def test_an_unknown_plan_is_refused_before_anything_is_done(platform, admin):
    with pytest.raises(errors.CommandRefused, match="no plan gold; there are: basic, pro"):
        admin.create_client("acme", "gold")

    assert platform.commands == []


def test_a_name_that_is_taken_is_refused_and_leaves_the_owner_alone(platform, admin):
    first = admin.create_client("acme")

    with pytest.raises(errors.CommandRefused, match="already") as caught:
        admin.create_client("acme")

    assert caught.value.code == "client_exists"
    assert list(platform.gateway_keys()) == [first.api_key_id]
    assert platform.clients["client-1"]["removed_at"] is None


@pytest.mark.parametrize("operation", ["create_api_key", "create_usage_plan_key"])
def test_what_api_gateway_refuses_is_taken_back(platform, admin, monkeypatch, operation):
    refuse(monkeypatch, admin, operation)

    with pytest.raises(errors.StepFailed, match="No such right") as caught:
        admin.create_client("acme")

    assert platform.gateway_keys() == {}
    assert platform.clients["client-1"]["removed_at"]
    assert caught.value.undone[-1] == "client acme (client-1)"
    assert caught.value.left == []


@pytest.mark.parametrize("failure", ["refused", "crashed", "answer lost"])
def test_a_key_that_cannot_be_recorded_is_taken_back(platform, admin, failure):
    lost = Reply(drop=True)
    platform.breaks["add_key"] = {
        "refused": Reply(body={"error": {"code": "plan_unknown", "message": "No plan"}}),
        "crashed": crash("OperationalError", "no database"),
        "answer lost": lambda: lost,
    }[failure]

    with pytest.raises(errors.StepFailed, match="Could not record the key of acme") as caught:
        admin.create_client("acme")

    assert platform.gateway_keys() == {}
    assert platform.clients["client-1"]["removed_at"]
    assert all(key["revoked_at"] for key in platform.keys("acme"))
    assert caught.value.left == []


def test_a_second_key_that_cannot_be_recorded_leaves_the_first_alone(platform, admin):
    first = admin.create_client("acme")
    lost = Reply(drop=True)
    platform.breaks["add_key"] = lambda: lost

    with pytest.raises(errors.StepFailed):
        admin.add_key("acme")

    assert list(platform.gateway_keys()) == [first.api_key_id]
    assert [bool(key["revoked_at"]) for key in platform.keys("acme")] == [False, True]
    assert platform.clients["client-1"]["removed_at"] is None


def test_ctrl_c_is_taken_back_too(platform, admin, monkeypatch):
    def interrupted(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(admin._apigateway, "create_usage_plan_key", interrupted)

    with pytest.raises(errors.StepFailed, match="interrupted"):
        admin.create_client("acme")

    assert platform.gateway_keys() == {}
    assert platform.clients["client-1"]["removed_at"]


def test_what_cannot_be_taken_back_is_named(platform, admin, monkeypatch):
    refuse(monkeypatch, admin, "create_usage_plan_key")
    refuse(monkeypatch, admin, "delete_api_key")

    with pytest.raises(errors.StepFailed, match="LEFT BEHIND") as caught:
        admin.create_client("acme")

    (api_key_id,) = platform.gateway_keys()
    assert caught.value.left[0].startswith(f"API Gateway key {api_key_id}")
    assert platform.clients["client-1"]["removed_at"]


def test_an_error_of_ours_takes_back_and_stays_what_it_is(platform, admin, monkeypatch):
    def broken(**arguments):
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(admin._apigateway, "create_usage_plan_key", broken)

    with pytest.raises(TypeError, match="a mistake"):
        admin.create_client("acme")

    assert platform.gateway_keys() == {}


def test_add_key_takes_the_client_by_name_or_id(platform, admin):
    admin.create_client("acme")

    by_name, by_id = admin.add_key("acme", "pro"), admin.add_key("client-1")

    assert by_name.client_id == by_id.client_id == "client-1"
    assert [key["plan"] for key in platform.keys("acme")] == ["basic", "pro", "basic"]


def test_an_unknown_client_is_named(admin):
    with pytest.raises(errors.CommandRefused, match="There is no client nobody"):
        admin.add_key("nobody")


def test_a_name_that_is_anothers_id_has_to_be_told_apart(platform, admin):
    admin.create_client("acme")
    admin.create_client("client-1")

    with pytest.raises(errors.CommandRefused, match="give the id"):
        admin.remove_client("client-1")


def test_a_removed_clients_name_can_be_used_again(platform, admin):
    admin.create_client("acme")
    admin.remove_client("acme")
    admin.create_client("acme")

    assert admin.client("acme").client_id == "client-2"
    assert admin.client("client-1").removed_at


def test_rotate_shows_the_new_key_before_it_ends_the_old_one(platform, admin):
    old = admin.create_client("acme", "pro")
    at_announcement = []

    rotation = admin.rotate_key(
        "acme", announce=lambda key: at_announcement.append(list(platform.gateway_keys()))
    )

    new = rotation.new_key
    assert at_announcement == [[old.api_key_id, new.api_key_id]]
    assert list(platform.gateway_keys()) == [new.api_key_id]
    assert platform.plan_of(new.api_key_id) == ["pro"]
    assert rotation.revoked == [old.api_key_id]
    assert [bool(key["revoked_at"]) for key in platform.keys("acme")] == [True, False]


def test_rotate_with_grace_leaves_both_until_the_old_one_is_revoked(platform, admin):
    old = admin.create_client("acme")

    rotation = admin.rotate_key("acme", grace=True)
    assert rotation.still_valid == [old.api_key_id]
    assert len(platform.gateway_keys()) == 2

    admin.revoke_key(old.api_key_id)
    assert list(platform.gateway_keys()) == [rotation.new_key.api_key_id]


def test_rotate_can_take_one_key_and_another_plan(platform, admin):
    first = admin.create_client("acme")
    second = admin.add_key("acme", "pro")

    with pytest.raises(errors.CommandRefused, match="several plans"):
        admin.rotate_key("acme")
    rotation = admin.rotate_key("acme", api_key_id=second.api_key_id, plan="basic")

    assert set(platform.gateway_keys()) == {first.api_key_id, rotation.new_key.api_key_id}
    assert platform.plan_of(rotation.new_key.api_key_id) == ["basic"]


def test_rotate_needs_a_key_that_is_live(admin):
    old = admin.create_client("acme")
    admin.revoke_key(old.api_key_id)

    with pytest.raises(errors.CommandRefused, match="acme has no key"):
        admin.rotate_key("acme")
    with pytest.raises(errors.CommandRefused, match="acme has no key zzz"):
        admin.rotate_key("acme", api_key_id="zzz")


def test_revoke_that_broke_off_can_be_repeated(platform, admin):
    key = admin.create_client("acme")
    platform.breaks["revoke_key"] = crash("OperationalError", "no database")

    with pytest.raises(errors.FunctionFailed, match="no database"):
        admin.revoke_key(key.api_key_id)
    assert platform.gateway_keys() == {}

    platform.breaks.clear()
    admin.revoke_key(key.api_key_id)
    admin.revoke_key(key.api_key_id)
    assert platform.keys("acme")[0]["revoked_at"]


def test_a_key_of_another_api_in_the_account_is_left_alone(platform, admin):
    foreign = platform.apigateway.create_api_key(name="of another API", enabled=True)["id"]

    with pytest.raises(errors.CommandRefused, match="No client has a key"):
        admin.revoke_key(foreign)

    assert foreign in platform.gateway_keys()


def test_remove_client_ends_its_keys_first(platform, admin, monkeypatch):
    admin.create_client("acme")
    admin.add_key("acme")
    refuse(monkeypatch, admin, "delete_api_key", "TooManyRequestsException")

    with pytest.raises(errors.AwsFailed, match="TooManyRequestsException"):
        admin.remove_client("acme")
    assert platform.clients["client-1"]["removed_at"] is None

    monkeypatch.undo()
    admin.remove_client("acme")
    assert platform.clients["client-1"]["removed_at"]
    assert platform.gateway_keys() == {}


def test_remove_client_takes_keys_made_meanwhile(platform, admin, monkeypatch):
    admin.create_client("acme")
    before = admin.list_clients()
    admin.add_key("acme")
    monkeypatch.setattr(admin, "list_clients", lambda: before)

    admin.remove_client("acme")

    assert platform.gateway_keys() == {}


def test_remove_client_that_broke_off_can_be_repeated(platform, admin):
    admin.create_client("acme")
    lost = Reply(drop=True)
    platform.breaks["remove_client"] = lambda: lost

    with pytest.raises(errors.AwsFailed, match="may have done its work all the same"):
        admin.remove_client("acme")

    platform.breaks.clear()
    assert admin.remove_client("client-1").client_id == "client-1"


def test_list_clients_reads_answers_of_another_version(admin):
    admin.create_client("acme")
    (client,) = admin.list_clients()

    assert (client.name, client.removed_at) == ("acme", None)
    assert client.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert [key.plan for key in client.live_keys] == ["basic"]


# Functions


def test_invoke_hands_the_event_over_and_the_answer_back(platform, admin):
    platform.answers["worker"] = {"batchItemFailures": []}

    assert admin.invoke("worker", {"Records": []}).payload == {"batchItemFailures": []}
    assert platform.events == [("worker", {"Records": []})]


def test_a_function_that_does_not_exist_is_named_with_those_that_do(admin):
    with pytest.raises(errors.CommandRefused, match="no function wroker; there are: admin, api"):
        admin.invoke("wroker", {})


def test_a_function_that_crashed_shows_its_error_and_log(platform, admin):
    platform.breaks["list_jobs"] = crash("OperationalError", "no database", "START\nno route\n")

    with pytest.raises(errors.FunctionFailed) as caught:
        admin.list_jobs()

    assert str(caught.value) == "function-admin failed: OperationalError: no database"
    assert caught.value.log == "START\nno route\n"


def test_an_answer_of_another_version_is_not_taken_for_a_result(platform, admin):
    platform.breaks["list_jobs"] = Reply(body=[1, 2])

    with pytest.raises(errors.FunctionFailed, match="same version"):
        admin.list_jobs()


def test_an_answer_that_is_no_json_is_not_taken_for_a_result(platform, admin):
    platform.breaks["list_jobs"] = Reply(body=b"oops")

    with pytest.raises(errors.FunctionFailed, match="oops"):
        admin.list_jobs()


def test_a_command_is_never_sent_twice(platform, admin):
    platform.breaks["retry_job"] = Reply(drop=True)

    with pytest.raises(errors.AwsFailed):
        admin.retry_job("job-1")

    assert len(platform.commands) == 1


def test_the_lambda_client_of_its_own_making_does_not_repeat_either(platform, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", platform.lambda_url)
    platform.breaks["retry_job"] = Reply(status=503, body={"message": "busy"})

    with pytest.raises(errors.AwsFailed):
        Admin(session=platform.session).retry_job("job-1")

    assert len(platform.commands) == 1


@pytest.mark.parametrize(
    ("call", "command", "arguments"),
    [
        (lambda admin: admin.list_jobs(), "list_jobs", {"stuck": False, "limit": 50}),
        (
            lambda admin: admin.list_jobs(status="failed", client="acme", stuck=True, limit=5),
            "list_jobs",
            {"status": "failed", "client": "acme", "stuck": True, "limit": 5},
        ),
        (lambda admin: admin.explain_job("j"), "explain_job", {"job_id": "j"}),
        (lambda admin: admin.retry_job("j"), "retry_job", {"job_id": "j"}),
        (lambda admin: admin.cancel_job("j"), "cancel_job", {"job_id": "j"}),
        (lambda admin: admin.list_dead_letters(), "list_dead_letters", {}),
        (lambda admin: admin.redrive_dead_letters(), "redrive_dead_letters", {}),
        (lambda admin: admin.drop_dead_letters(), "drop_dead_letters", {}),
        (lambda admin: admin.purge(dry_run=True), "purge", {"dry_run": True}),
    ],
)
def test_commands_send_their_arguments(platform, admin, call, command, arguments):
    platform.answers[command] = {"done": 1}

    assert call(admin) == {"done": 1}
    assert platform.commands == [(command, arguments)]
