"""Every page, light and dark, wide and on a phone: nothing for axe, no error, a screenshot."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import (
    PHONE,
    WIDE,
    Account,
    Watch,
    axe_violations,
    screenshot,
    sign_up,
)
from tests.stack import Stack

SIGNED_OUT = {
    "login": "/accounts/login/",
    "signup": "/accounts/signup/",
    "password-reset": "/accounts/password/reset/",
}
OF_A_TEAM = {
    "home": "/",
    "sandboxes": "/sandboxes",
    "sandboxes-none": "/sandboxes?q=nothing-matches-this",
    "templates": "/templates",
    "activity": "/activity",
    "keys": "/keys",
    "members": "/members",
    "usage": "/usage",
    "billing": "/billing",
    "audit": "/audit",
}
OF_A_SANDBOX = {
    "overview": "",
    "logs": "/logs",
    "monitoring": "/monitoring",
    "terminal": "/terminal",
    "files": "/files",
}
OF_AN_ACCOUNT = {
    "account": "/account/",
    "account-email": "/accounts/email/",
    "account-mfa": "/accounts/2fa/",
    "account-devices": "/accounts/sessions/",
}
LOOKS = [(theme, size) for theme in ("light", "dark") for size in (WIDE, PHONE)]


@pytest.mark.parametrize(
    ("theme", "size"),
    LOOKS,
    ids=lambda value: str(value.get("width")) if isinstance(value, dict) else value,
)
def test_pages_look_right_and_are_accessible(
    theme: str,
    size: dict[str, int],
    open_page: Callable[..., Page],
    account: Account,
    shared_sandbox: str,
    stack: Stack,
) -> None:
    findings = []

    def visit(page: Page, name: str, url: str) -> None:
        response = page.goto(url)
        assert response
        assert response.status == 200, url
        if name == "terminal":
            expect(page.locator("[data-status]")).to_have_text("Connected")
        page.evaluate("document.fonts.ready")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > size["width"]:
            findings.append(f"{name}: {width} px wide on a screen of {size['width']}")
        findings.extend(f"{name}: {line}" for line in axe_violations(page))
        screenshot(page, f"{name}-{theme}-{size['width']}")

    stranger = open_page(color_scheme=theme, viewport=size)
    for name, path in SIGNED_OUT.items():
        visit(stranger, name, stack.web_url + path)
    page = open_page(color_scheme=theme, viewport=size, storage_state=account.profile)
    for name, path in OF_A_TEAM.items():
        visit(page, name, account.team_url + path)
    for name, path in OF_A_SANDBOX.items():
        visit(page, name, f"{account.team_url}/sandboxes/{shared_sandbox}{path}")
    for name, path in OF_AN_ACCOUNT.items():
        visit(page, name, stack.web_url + path)
    assert findings == [], "\n".join(findings)


def test_dialogs_and_refusals_are_accessible(
    page: Page, account: Account, shared_sandbox: str, watch: Watch
) -> None:
    findings = []

    def look(name: str) -> None:
        findings.extend(f"{name}: {line}" for line in axe_violations(page))
        screenshot(page, name)

    page.goto(f"{account.team_url}/keys")
    page.get_by_role("link", name="New key").click()
    page.get_by_role("button", name="Create key").click()  # the browser asks for the name
    look("dialog-key")
    page.goto(f"{account.team_url}/sandboxes")
    page.get_by_role("button", name="New sandbox").click()
    look("dialog-sandbox")
    page.keyboard.press("Escape")
    page.get_by_role("button", name=f"Kill {shared_sandbox}").click()
    look("dialog-confirm")
    page.get_by_role("button", name="Cancel").click()
    page.keyboard.press("Control+k")
    look("dialog-palette")
    page.keyboard.press("Escape")
    page.goto(f"{account.team_url}/sandboxes/{shared_sandbox}/monitoring")
    page.get_by_role("button", name="Show as table").click()
    expect(page.locator("#metrics-table tbody tr").first).to_be_visible(timeout=20_000)
    look("monitoring-table")
    watch.expected.append("404")
    page.goto(f"{account.team_url}/sandboxes/inosuchsandbox")
    look("refusal")
    page.goto(f"{account.team_url}/nothing-here")
    look("not-found")
    assert findings == [], "\n".join(findings)


def test_operators_see_the_nodes(
    open_page: Callable[..., Page], stack: Stack, account: Account
) -> None:
    operator = open_page()
    email = f"operator-{secrets.token_hex(3)}@example.com"
    team_url = sign_up(operator, stack, email)
    stack.manage(
        "shell",
        "-v0",
        "-c",
        "from accounts.models import User;"
        f"User.objects.filter(email='{email}').update(is_staff=True)",
    )
    operator.goto(f"{team_url}/nodes")
    expect(operator.get_by_role("row").nth(1)).to_contain_text("Ready")
    assert axe_violations(operator) == []
    screenshot(operator, "nodes")


def test_the_theme_is_switched_and_there_from_the_first_paint(page: Page, account: Account) -> None:
    page.goto(account.team_url)
    page.get_by_role("button", name=account.email).click()
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_load_state("networkidle")
    page.reload(wait_until="commit")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_keyboard_reaches_everything(page: Page, account: Account, shared_sandbox: str) -> None:
    page.goto(account.team_url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox", name="Search pages")).to_be_focused()
    page.keyboard.type("u_42")
    expect(page.get_by_role("option").first).to_contain_text(shared_sandbox)
    screenshot(page, "palette")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/sandboxes/{shared_sandbox}")

    page.keyboard.press("g")
    page.keyboard.press("s")
    page.wait_for_url("**/sandboxes")
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("u_42")
    page.wait_for_url("**/sandboxes?*q=u_42*")
    expect(page.locator(f"#row-{shared_sandbox}")).to_be_visible()
    page.keyboard.press("Escape")

    page.goto(f"{account.team_url}/sandboxes")
    page.keyboard.press("ArrowDown")
    expect(page.locator("a[data-row-link]").first).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard shortcuts")).to_be_visible()
    screenshot(page, "shortcuts")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Keyboard shortcuts")).to_be_hidden()


def test_the_menu_opens_on_a_phone(open_page: Callable[..., Page], account: Account) -> None:
    page = open_page(viewport=PHONE, storage_state=account.profile)
    page.goto(account.team_url)
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("link", name="Sandboxes", exact=True)).to_be_visible()
    screenshot(page, "menu-390")
    page.get_by_role("link", name="Sandboxes", exact=True).click()
    page.wait_for_url("**/sandboxes")


def test_reads_and_forms_work_without_scripts(
    open_page: Callable[..., Page], account: Account, shared_sandbox: str
) -> None:
    page = open_page(java_script_enabled=False, storage_state=account.profile)
    page.goto(f"{account.team_url}/sandboxes")
    assert shared_sandbox in page.content()
    page.locator("#q").fill("u_42")
    page.get_by_role("button", name="Apply").click()
    assert shared_sandbox in page.content()
    page.goto(f"{account.team_url}/keys?new")
    page.locator("main").get_by_label("Name").fill("no scripts")
    page.locator("main").get_by_role("button", name="Create key").click()
    assert "e2b_" in page.locator(".secret code").inner_text()


def test_text_of_users_never_runs(
    page: Page, account: Account, shared_sandbox: str, watch: Watch
) -> None:
    page.on("dialog", lambda dialog: watch.problems.append(f"dialog: {dialog.message}"))
    for path in ("/sandboxes", f"/sandboxes/{shared_sandbox}", "/"):
        page.goto(account.team_url + path)
        page.wait_for_load_state("networkidle")
    page.goto(f"{account.team_url}/sandboxes/{shared_sandbox}")
    expect(page.get_by_text("<script>alert(1)</script>")).to_be_visible()
