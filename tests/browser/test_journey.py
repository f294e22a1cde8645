"""What a new person does, from the first page to a sandbox that is gone."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, WebSocketRoute, expect

from ops import sdks
from tests.browser.conftest import PASSWORD, Account, Watch, screenshot, sign_up
from tests.stack import Stack

PROGRAM = """
import sys
from e2b import Sandbox

sandbox = Sandbox.create(timeout=120, metadata={"made-by": "the official SDK"})
print(sandbox.sandbox_id, flush=True)
sys.stdin.readline()
print(sandbox.is_running(), flush=True)
"""


@contextmanager
def official_sdk(stack: Stack, api_key: str) -> Iterator[subprocess.Popen[str]]:
    python = sdks.ensure_python(sdks.PINNED_PYTHON) / "bin" / "python"
    environment = os.environ | {
        "E2B_API_URL": stack.web_url,
        "E2B_SANDBOX_URL": stack.gateway_url,
        "E2B_API_KEY": api_key,
    }
    with subprocess.Popen(
        [python, "-c", PROGRAM],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def line_of(program: subprocess.Popen[str]) -> str:
    assert program.stdout
    return program.stdout.readline().strip()


def test_from_signing_up_to_a_killed_sandbox(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = open_page()
    team_url = sign_up(page, stack, f"journey-{secrets.token_hex(3)}@example.com")
    expect(page.get_by_text("Waiting for your first sandbox")).to_be_visible()
    screenshot(page, "journey-1-waiting")

    page.get_by_role("button", name="Create a key").click()
    secret = page.locator(".secret code").inner_text()
    assert secret.startswith("e2b_")
    expect(page.get_by_label("Shell settings", exact=True)).to_contain_text(secret)
    screenshot(page, "journey-2-key")

    watching = page.context.new_page()
    watching.goto(f"{team_url}/sandboxes")
    expect(watching.get_by_text("Nothing is running")).to_be_visible()
    expect(watching.locator(".live-dot").first).to_have_text("Live")
    watching.evaluate("window.neverReloaded = true")

    with official_sdk(stack, secret) as program:
        sandbox_id = line_of(program)
        row = watching.locator(f"#row-{sandbox_id}")
        expect(row).to_contain_text("Running", timeout=10_000)
        expect(row).to_contain_text("the official SDK")
        expect(page.get_by_text("Your first sandbox arrived")).to_be_visible()
        screenshot(page, "journey-3-arrived")
        screenshot(watching, "journey-4-row")

        row.get_by_role("button", name=f"Kill {sandbox_id}").click()
        watching.get_by_role("button", name="Kill sandbox").click()
        expect(row).to_have_count(0, timeout=10_000)
        expect(watching.get_by_text(f"Killed {sandbox_id}")).to_be_visible()
        assert program.stdin
        program.stdin.write("\n")
        program.stdin.flush()
        assert line_of(program) == "False"
    assert watching.evaluate("window.neverReloaded") is True


def test_logging_out_and_in_again(stack: Stack, open_page: Callable[..., Page]) -> None:
    page = open_page()
    email = f"again-{secrets.token_hex(3)}@example.com"
    team_url = sign_up(page, stack, email)
    page.get_by_role("button", name=email).click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("heading", name="Log in").wait_for()
    page.goto(f"{team_url}/keys")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.get_by_role("heading", name="API keys")).to_be_visible()


def test_the_list_comes_back_after_the_connection_was_lost(
    page: Page, account: Account, watch: Watch
) -> None:
    watch.expected.append("ERR_INTERNET_DISCONNECTED")
    page.goto(f"{account.team_url}/sandboxes")
    dot = page.locator(".live-dot").first
    expect(dot).to_have_text("Live")
    page.context.set_offline(True)
    page.evaluate("dispatchEvent(new Event('offline'))")
    expect(page.get_by_text("The live connection is down")).to_be_visible(timeout=60_000)
    sandbox_id = account.create_sandbox()
    page.context.set_offline(False)
    expect(page.locator(f"#row-{sandbox_id}")).to_be_visible(timeout=30_000)
    expect(dot).to_have_text("Live")
    expect(page.get_by_text("The live connection is down")).to_be_hidden()
    account.kill_sandbox(sandbox_id)
    expect(page.locator(f"#row-{sandbox_id}")).to_have_count(0)


def test_a_key_is_created_copied_and_revoked(page: Page, account: Account) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{account.team_url}/keys")
    page.get_by_role("link", name="New key").click()
    page.locator("#new-key").get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create key").click()
    secret = page.locator("dialog[open] .secret code").inner_text()
    page.get_by_role("button", name="Copy the key").click()
    expect(page.get_by_role("button", name="Copy the key")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == secret
    page.get_by_role("link", name="Done").click()
    row = page.get_by_role("row").filter(has_text="laptop").first
    expect(row).to_contain_text(secret[-4:])
    row.get_by_role("button", name="Revoke laptop").click()
    page.get_by_role("button", name="Revoke key").click()
    expect(page.get_by_role("row").filter(has_text="laptop")).to_have_count(0)


def test_a_storm_of_hints_does_not_become_a_storm_of_requests(page: Page, account: Account) -> None:
    sockets: list[WebSocketRoute] = []

    def join(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        socket.send(json.dumps({"type": "joined"}))

    page.route_web_socket("**/live", join)
    asked: list[str] = []
    page.on(
        "request",
        lambda request: (
            asked.append(request.url)
            if "hx-request" in request.headers and "/sandboxes" in request.url
            else None
        ),
    )
    page.goto(f"{account.team_url}/sandboxes")
    expect(page.locator(".live-dot").first).to_have_text("Live")
    started = time.monotonic()
    while time.monotonic() - started < 2:
        for _ in range(20):
            sockets[0].send(json.dumps({"type": "changed", "topics": ["sandboxes"]}))
        page.wait_for_timeout(50)
    assert 1 <= len(asked) <= 10


def test_inviting_somebody_who_then_joins(
    page: Page, account: Account, open_page: Callable[..., Page], watch: Watch
) -> None:
    email = f"guest-{secrets.token_hex(3)}@example.com"
    page.goto(f"{account.team_url}/members")
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Role", exact=True).select_option("viewer")
    page.get_by_role("button", name="Invite").click()
    link = page.locator(".secret code").inner_text()
    screenshot(page, "members-invited")

    guest = open_page()
    guest.goto(link)
    guest.get_by_role("link", name="Create an account").click()
    guest.get_by_label("Email").fill(email)
    guest.get_by_label("Password").fill(PASSWORD)
    guest.get_by_role("button", name="Create account").click()
    screenshot(guest, "invitation")
    guest.get_by_role("button", name="Join").click()
    guest.wait_for_url(f"{account.team_url}/")
    guest.goto(f"{account.team_url}/sandboxes")
    expect(guest.get_by_role("button", name="New sandbox")).to_have_count(0)

    page.goto(f"{account.team_url}/members")
    page.get_by_label(f"Role of {email}").select_option("developer")
    expect(page.get_by_text(f"{email} is Developer now")).to_be_visible()
    page.get_by_role("button", name=f"Remove {email}").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_text(f"Removed {email}")).to_be_visible()
    watch.expected.append("404")
    assert guest.goto(f"{account.team_url}/sandboxes").status == 404
