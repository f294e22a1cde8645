"""What the pages show and do."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from django.core import mail
from django.core.cache import cache
from django.test import Client, override_settings
from django.utils import timezone

from accounts.models import APIKey, AuditEvent, Team, User
from accounts.services import create_api_key, hash_secret
from sandboxes.models import Sandbox, SandboxEvent, SandboxMetric
from templates_app.access import resolve_for_start
from templates_app.models import BuildLogEntry, Template, TemplateAlias, TemplateBuild
from tests.integration.frontend.conftest import PASSWORD, SandboxMaker

pytestmark = pytest.mark.django_db

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
HTMX = {"HX-Request": "true"}


def test_signing_up_makes_a_team_and_lands_on_its_home(client: Client) -> None:
    response = client.post(
        "/accounts/signup/",
        {"email": "new@example.com", "password1": "a long enough secret"},
        follow=True,
    )
    assert response.status_code == 200
    assert "Run your first sandbox" in response.content.decode()
    assert Team.objects.filter(memberships__user__email="new@example.com").count() == 1


def test_logging_in_and_out(client: Client, alice: User) -> None:
    client.post("/accounts/login/", {"login": alice.email, "password": PASSWORD})
    assert client.get("/").status_code == 302
    assert client.get("/accounts/logout/").status_code == 200  # asks, does nothing
    client.post("/accounts/logout/")
    assert client.get("/").headers["Location"].startswith("/accounts/login/")


def test_logging_in_does_not_redirect_elsewhere(client: Client, alice: User) -> None:
    response = client.post(
        "/accounts/login/?next=https://evil.example/",
        {"login": alice.email, "password": PASSWORD, "next": "https://evil.example/"},
    )
    assert response.status_code == 302
    assert "evil.example" not in response.headers["Location"]


def test_logging_in_changes_the_session_key(client: Client, alice: User) -> None:
    client.get("/accounts/login/")
    session = client.session
    session["x"] = 1
    session.save()
    before = session.session_key
    client.post("/accounts/login/", {"login": alice.email, "password": PASSWORD})
    assert client.session.session_key != before


def test_a_wrong_password_is_refused_with_a_reason(client: Client, alice: User) -> None:
    response = client.post("/accounts/login/", {"login": alice.email, "password": "nope"})
    text = response.content.decode()
    assert 'role="alert"' in text
    assert "not correct" in text


def test_guessing_passwords_is_slowed_down(client: Client, alice: User) -> None:
    cache.clear()
    for _ in range(12):
        response = client.post("/accounts/login/", {"login": alice.email, "password": "guess"})
    assert "Too many failed" in response.content.decode() or response.status_code == 429
    right = client.post("/accounts/login/", {"login": alice.email, "password": PASSWORD})
    assert right.status_code != 302
    cache.clear()


@override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend")
def test_a_forgotten_password_is_replaced_by_mail(client: Client, alice: User) -> None:
    client.post("/accounts/password/reset/", {"email": alice.email})
    link = re.search(r"https?://[^/\s]+(/accounts/password/reset/key/\S+)", mail.outbox[0].body)
    assert link
    page = client.get(link[1], follow=True)
    assert "Choose a new password" in page.content.decode()
    client.post(
        page.request["PATH_INFO"],
        {"password1": "another good one", "password2": "another good one"},
    )
    alice.refresh_from_db()
    assert alice.check_password("another good one")


@override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend")
def test_a_reset_does_not_tell_who_has_an_account(client: Client, alice: User) -> None:
    known = client.post("/accounts/password/reset/", {"email": alice.email}, follow=True)
    unknown = client.post("/accounts/password/reset/", {"email": "no@example.com"}, follow=True)
    assert known.redirect_chain == unknown.redirect_chain


def test_a_first_key_is_shown_once_and_filled_into_the_snippet(
    as_alice: Client, team: Team
) -> None:
    text = as_alice.post(f"/t/{team.slug}/first-key").content.decode()
    (secret,) = set(re.findall(r"e2b_[0-9a-f]{40}", text))
    assert f"export E2B_API_KEY={secret}" in text
    assert APIKey.objects.get(secret_hash=hash_secret(secret)).team == team
    assert secret not in as_alice.get(f"/t/{team.slug}/").content.decode()
    assert AuditEvent.objects.filter(team=team, action="api_key.created").exists()


def test_home_waits_for_the_first_sandbox_and_then_shows_it(
    as_alice: Client, team: Team, make_sandbox: SandboxMaker
) -> None:
    now = as_alice.get(f"/t/{team.slug}/now").content.decode()
    assert "Waiting for your first sandbox" in now
    sandbox = make_sandbox()
    now = as_alice.get(f"/t/{team.slug}/now").content.decode()
    assert "Your first sandbox arrived" in now
    assert sandbox.public_id in now


def test_a_key_is_created_by_form_with_an_expiry(as_alice: Client, team: Team) -> None:
    text = as_alice.post(
        f"/t/{team.slug}/keys/new", {"name": "CI", "expires_in_days": "30"}
    ).content.decode()
    assert re.search(r"e2b_[0-9a-f]{40}", text)
    key = APIKey.objects.get(team=team)
    assert key.expires_at is not None
    assert timedelta(days=29) < key.expires_at - timezone.now() < timedelta(days=31)


@pytest.mark.parametrize(
    "form", [{}, {"name": ""}, {"name": "x" * 101}, {"name": "x", "expires_in_days": "1e9"}]
)
def test_a_bad_key_form_creates_nothing_and_says_why(
    form: dict[str, str], as_alice: Client, team: Team
) -> None:
    response = as_alice.post(f"/t/{team.slug}/keys/new", form, headers=HTMX)
    assert response.status_code == 422
    assert "field-errors" in response.content.decode()
    assert not APIKey.objects.exists()


def test_a_revoked_key_leaves_the_list(as_alice: Client, team: Team, alice: User) -> None:
    key, _ = create_api_key(team=team, name="laptop", created_by=alice)
    response = as_alice.post(f"/t/{team.slug}/keys/{key.public_id}/revoke", headers=HTMX)
    assert response.status_code == 204
    assert json.loads(response.headers["HX-Trigger"])["live-changed"] == {"topics": ["keys"]}
    assert str(key.public_id) not in as_alice.get(f"/t/{team.slug}/keys").content.decode()


def test_the_list_shows_what_lives_and_filters_the_rest(
    as_alice: Client, team: Team, make_sandbox: SandboxMaker
) -> None:
    running = make_sandbox(metadata={"user": "Zoë"})
    paused = make_sandbox(state="paused", paused_at=timezone.now())
    ended = make_sandbox(state="ended", end_reason="oom")

    def shown(query: str) -> set[str]:
        text = as_alice.get(f"/t/{team.slug}/sandboxes{query}").content.decode()
        return {s.public_id for s in (running, paused, ended) if f"row-{s.public_id}" in text}

    everything = {running.public_id, paused.public_id, ended.public_id}
    assert shown("") == {running.public_id, paused.public_id}
    assert shown("?state=all") == everything
    assert shown("?state=ended") == {ended.public_id}
    assert shown("?state=paused") == {paused.public_id}
    assert shown("?q=zoë") == {running.public_id} or shown("?q=Zoë") == {running.public_id}
    assert shown(f"?q={paused.public_id[3:12]}") == {paused.public_id}
    assert shown("?q=nothing-has-this") == set()
    assert shown("?template=no-such") == set()
    assert shown("?state=junk&sort=junk&page=junk") == {running.public_id, paused.public_id}


def test_a_search_without_result_and_an_empty_team_say_different_things(
    as_alice: Client, team: Team
) -> None:
    empty = as_alice.get(f"/t/{team.slug}/sandboxes").content.decode()
    none = as_alice.get(f"/t/{team.slug}/sandboxes?q=abc").content.decode()
    assert "Nothing is running" in empty
    assert "No sandbox matches" in none
    assert "Clear filters" in none


@pytest.mark.parametrize("sort", ["id", "state", "template", "age", "left", "cpu", "memory"])
def test_each_column_sorts_both_ways(
    sort: str, as_alice: Client, team: Team, make_sandbox: SandboxMaker
) -> None:
    now = timezone.now()
    for index in range(3):
        make_sandbox(
            cpu_count=index + 1,
            memory_mb=512 * (index + 1),
            alias=f"t{index}",
            state=["paused", "running", "starting"][index],
            created_at=now - timedelta(minutes=index),
            end_at=now + timedelta(minutes=index + 1),
        )

    def order(sort: str) -> list[str]:
        text = as_alice.get(f"/t/{team.slug}/sandboxes?sort={sort}").content.decode()
        return re.findall(r'id="row-(\w+)"', text)

    assert len(order(sort)) == 3
    assert order(sort) == order(f"-{sort}")[::-1]


def test_newest_come_first(as_alice: Client, team: Team, make_sandbox: SandboxMaker) -> None:
    old = make_sandbox(created_at=timezone.now() - timedelta(hours=1))
    new = make_sandbox()
    text = as_alice.get(f"/t/{team.slug}/sandboxes").content.decode()
    assert text.index(f"row-{new.public_id}") < text.index(f"row-{old.public_id}")


def test_long_lists_are_paged(as_alice: Client, team: Team, make_sandbox: SandboxMaker) -> None:
    for _ in range(51):
        make_sandbox()
    first = as_alice.get(f"/t/{team.slug}/sandboxes").content.decode()
    second = as_alice.get(f"/t/{team.slug}/sandboxes?page=2").content.decode()
    assert first.count('id="row-') == 50
    assert second.count('id="row-') == 1
    assert "of 51" in first


def test_htmx_gets_the_table_alone(as_alice: Client, team: Team, sandbox: Sandbox) -> None:
    part = as_alice.get(f"/t/{team.slug}/sandboxes", headers=HTMX).content.decode()
    assert part.lstrip().startswith('<section class="card" id="sandboxes"')
    assert "<html" not in part


def test_user_text_is_never_markup(
    as_alice: Client, team: Team, make_sandbox: SandboxMaker, alice: User
) -> None:
    sandbox = make_sandbox(metadata={EVIL: EVIL}, alias=EVIL[:100], end_detail=EVIL)
    SandboxEvent.objects.create(sandbox=sandbox, at=timezone.now(), kind="log", message=EVIL)
    SandboxEvent.objects.create(
        sandbox=sandbox, at=timezone.now(), kind="ended", data={"reason": EVIL, "detail": EVIL}
    )
    create_api_key(team=team, name=EVIL[:90], created_by=alice)
    Team.objects.filter(pk=team.pk).update(name=EVIL[:100])
    User.objects.filter(pk=alice.pk).update(name=EVIL[:100])
    base = f"/t/{team.slug}"
    one = f"{base}/sandboxes/{sandbox.public_id}"
    for url in (
        base + "/",
        base + "/sandboxes",
        base + "/keys",
        base + "/members",
        base + "/audit",
        one,
        one + "/logs",
        one + "/monitoring",
        one + "/terminal",
        "/account/",
        base + "/sandboxes?q=" + EVIL,
    ):
        text = as_alice.get(url).content.decode()
        assert "<script>alert" not in text, url
        assert "<img src=x" not in text, url


def test_killing_from_the_page_asks_the_node(
    as_alice: Client, team: Team, sandbox: Sandbox
) -> None:
    # The node of this test answers nobody: the page says so, the row stays as the service left it.
    response = as_alice.post(f"/t/{team.slug}/sandboxes/{sandbox.public_id}/kill", headers=HTMX)
    assert response.status_code == 503
    assert "node is not answering" in response.headers["X-Error-Message"].replace("%20", " ")
    sandbox.refresh_from_db()
    assert sandbox.state == "killing"


def test_killing_an_ended_sandbox_is_no_error(
    as_alice: Client, team: Team, make_sandbox: SandboxMaker
) -> None:
    sandbox = make_sandbox(state="ended")
    response = as_alice.post(f"/t/{team.slug}/sandboxes/{sandbox.public_id}/kill")
    assert response.status_code == 302


@pytest.mark.parametrize("minutes", ["", "0", "-1", "1441", "1e3", "9" * 50, "ten"])
def test_a_bad_time_limit_changes_nothing(
    minutes: str, as_alice: Client, team: Team, sandbox: Sandbox
) -> None:
    before = sandbox.end_at
    response = as_alice.post(
        f"/t/{team.slug}/sandboxes/{sandbox.public_id}/timeout", {"minutes": minutes}
    )
    assert response.status_code == 400
    sandbox.refresh_from_db()
    assert sandbox.end_at == before


def test_changing_many_wants_a_verb_and_a_choice(
    as_alice: Client, team: Team, sandbox: Sandbox
) -> None:
    url = f"/t/{team.slug}/sandboxes/change"
    assert as_alice.post(url, {"verb": "kill"}).status_code == 400
    assert as_alice.post(url, {"verb": "burn", "sandbox": sandbox.public_id}).status_code == 400
    foreign = as_alice.post(url, {"verb": "kill", "sandbox": "inotmine"}, headers=HTMX)
    assert "Killed 0." in foreign.headers["HX-Trigger"]


def test_the_overview_of_an_ended_sandbox_says_why(
    as_alice: Client, team: Team, make_sandbox: SandboxMaker
) -> None:
    sandbox = make_sandbox(state="ended", end_reason="oom")
    text = as_alice.get(f"/t/{team.slug}/sandboxes/{sandbox.public_id}").content.decode()
    assert "ran out of memory" in text
    assert "/kill" not in text


def test_logs_are_filtered_and_downloaded(as_alice: Client, team: Team, sandbox: Sandbox) -> None:
    for level, message in (("info", "all is well"), ("error", "it broke")):
        SandboxEvent.objects.create(
            sandbox=sandbox, at=timezone.now(), kind="log", level=level, message=message
        )
    url = f"/t/{team.slug}/sandboxes/{sandbox.public_id}/logs"
    assert "all is well" in as_alice.get(url).content.decode()
    errors = as_alice.get(url + "?level=error").content.decode()
    assert "it broke" in errors
    assert "all is well" not in errors
    assert "all is well" in as_alice.get(url + "?q=well").content.decode()
    assert as_alice.get(url + "?before=junk").status_code == 400
    whole = as_alice.get(url + ".txt")
    assert whole.headers["Content-Disposition"].startswith("attachment")
    assert whole.content.decode().count("\n") == 2


def test_metrics_come_as_columns(as_alice: Client, team: Team, sandbox: Sandbox) -> None:
    now = timezone.now()
    for second in range(3):
        SandboxMetric.objects.create(
            sandbox=sandbox,
            at=now - timedelta(seconds=second),
            cpu_count=2,
            cpu_used_pct=10.0 * second,
            mem_used=2**20,
            mem_total=2**29,
            mem_cache=0,
            disk_used=1,
            disk_total=2,
        )
    data = as_alice.get(f"/t/{team.slug}/sandboxes/{sandbox.public_id}/metrics").json()
    assert data["cpu"] == [20.0, 10.0, 0.0]
    assert data["at"] == sorted(data["at"])
    assert data["limits"]["memory"] == 512 * 2**20


def test_the_palette_finds_objects_of_the_team_only(
    as_alice: Client, as_charlie: Client, charlie: User, team: Team, make_sandbox: SandboxMaker
) -> None:
    sandbox = make_sandbox(metadata={"user": "u_42"})
    found = as_alice.get(f"/t/{team.slug}/palette?q=u_42").json()["results"]
    assert [item["label"] for item in found] == [sandbox.public_id]
    own = Team.objects.get(memberships__user=charlie)
    assert as_charlie.get(f"/t/{own.slug}/palette?q=u_42").json()["results"] == []
    templates = as_alice.get(f"/t/{team.slug}/palette?q=base").json()["results"]
    assert "Template" in {item["kind"] for item in templates}


def test_the_audit_log_filters_and_exports_without_formulas(
    as_alice: Client, team: Team, alice: User
) -> None:
    AuditEvent.objects.create(team=team, actor_label="=cmd()", action="api_key.created")
    page = as_alice.get(f"/t/{team.slug}/audit?action=api_key.created").content.decode()
    assert "=cmd()" in page
    assert "team.created" not in re.sub(r"<select.*?</select>", "", page, flags=re.S)
    sheet = as_alice.get(f"/t/{team.slug}/audit.csv").content.decode()
    assert "'=cmd()" in sheet
    assert as_alice.get(f"/t/{team.slug}/audit?since=junk&until=2026-99-99").status_code == 200


def test_the_theme_is_remembered_and_goes_nowhere_else(client: Client) -> None:
    response = client.post("/preferences/theme", {"theme": "dark", "next": "https://evil.example"})
    assert response.headers["Location"] == "/"
    assert 'data-theme="dark"' in client.get("/accounts/login/").content.decode()
    client.post("/preferences/theme", {"theme": "<script>", "next": "/"})
    assert 'data-theme="dark"' in client.get("/accounts/login/").content.decode()


@pytest.mark.parametrize(
    "path",
    [
        "/accounts/login/",
        "/accounts/signup/",
        "/accounts/password/reset/",
        "/accounts/password/reset/done/",
    ],
)
def test_account_pages_are_ours(path: str, client: Client) -> None:
    text = client.get(path, headers={"accept": "text/html"}).content.decode()
    assert 'class="entrance"' in text


@pytest.mark.parametrize(
    "path",
    [
        "/account/",
        "/accounts/email/",
        "/accounts/password/change/",
        "/accounts/2fa/",
        "/accounts/sessions/",
    ],
)
def test_account_settings_are_in_the_shell(path: str, as_alice: Client, team: Team) -> None:
    response = as_alice.get(path, follow=True)
    assert response.status_code == 200
    assert (
        'id="sidebar"' in response.content.decode()
        or 'class="entrance"' in response.content.decode()
    )


def test_the_list_asks_as_much_for_many_rows_as_for_few(
    as_alice: Client, team: Team, make_sandbox: SandboxMaker, django_assert_max_num_queries
) -> None:
    first = make_sandbox()
    rows = []
    for index in range(300):
        copy = Sandbox(
            **{
                field.attname: getattr(first, field.attname)
                for field in Sandbox._meta.fields
                if field.name not in ("id", "public_id")
            }
        )
        copy.created_at -= timedelta(seconds=index)
        rows.append(copy)
    Sandbox.objects.bulk_create(rows)
    with django_assert_max_num_queries(12):
        assert as_alice.get(f"/t/{team.slug}/sandboxes").status_code == 200


def test_a_blocked_team_is_told_why_and_where_to_settle_it(
    as_alice: Client, as_vera: Client, team: Team
) -> None:
    Team.objects.filter(pk=team.pk).update(is_blocked=True, blocked_reason="credit is used up")
    owner = as_alice.get(f"/t/{team.slug}/").content.decode()
    assert "credit is used up" in owner
    assert "Settle it on the billing page" in owner
    assert "Ask an owner" in as_vera.get(f"/t/{team.slug}/").content.decode()


@pytest.fixture
def own_template(team: Team) -> Template:
    template = Template.objects.create(team=team)
    TemplateAlias.objects.create(template=template, alias="mine", namespace=team.slug)
    for _ in range(2):
        TemplateBuild.objects.create(template=template, status="ready", image="mine:latest")
    return template


def test_a_tag_is_rolled_back_to_an_older_build(
    as_alice: Client, team: Team, own_template: Template
) -> None:
    older, newer = own_template.builds.order_by("pk")
    url = f"/t/{team.slug}/templates/{own_template.public_id}/tag"
    for build in (newer, older):
        form = {"tag": "default", "build": str(build.public_id)}
        assert as_alice.post(url, form, headers=HTMX).status_code == 204
    assert resolve_for_start(team, "mine").build == older
    assert as_alice.post(url, {"tag": "default", "build": "junk"}).status_code == 400
    assert AuditEvent.objects.filter(team=team, action="template.tag_moved").count() == 2


def test_a_template_is_published_and_deleted(
    as_alice: Client, team: Team, own_template: Template
) -> None:
    base = f"/t/{team.slug}/templates/{own_template.public_id}"
    as_alice.post(f"{base}/public", {"public": "yes"})
    own_template.refresh_from_db()
    assert own_template.is_public
    as_alice.post(f"{base}/public", {"public": "no"})
    as_alice.post(f"{base}/delete")
    own_template.refresh_from_db()
    assert not own_template.is_public
    assert own_template.deleted_at is not None
    assert as_alice.get(base).status_code == 404


def test_a_template_in_use_stays(
    as_alice: Client, team: Team, own_template: Template, make_sandbox: SandboxMaker
) -> None:
    make_sandbox(template=own_template, build=own_template.builds.first())
    response = as_alice.post(f"/t/{team.slug}/templates/{own_template.public_id}/delete")
    assert response.status_code == 400
    assert "sandboxes using it" in response.content.decode()


def test_the_platforms_templates_are_not_the_teams_to_change(
    as_alice: Client, team: Team, template: Template
) -> None:
    base = f"/t/{team.slug}/templates/{template.public_id}"
    for action in ("public", "tag", "delete"):
        assert as_alice.post(f"{base}/{action}", {"public": "no"}).status_code == 403


def test_a_build_shows_its_log_as_text(
    as_alice: Client, team: Team, own_template: Template
) -> None:
    build = own_template.builds.first()
    assert build
    BuildLogEntry.objects.create(build=build, number=0, at=timezone.now(), message=EVIL)
    url = f"/t/{team.slug}/templates/{own_template.public_id}/builds/{build.public_id}"
    text = as_alice.get(url).content.decode()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert "every 1s" not in text  # it has ended, so nothing is asked again
