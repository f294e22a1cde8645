"""Chromium against the whole stack. A page that logs an error or breaks its policy fails."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
AXE = ROOT / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
PASSWORD = "correct horse battery"
WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WATCH_POLICY = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chromium)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@dataclass
class Watch:
    """What went wrong in the pages of one test."""

    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of lines that are no problem here

    def follow(self, page: Page) -> None:
        page.add_init_script(WATCH_POLICY)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def unexpected(self) -> list[str]:
        return [line for line in self.problems if not any(part in line for part in self.expected)]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    assert watch.unexpected() == []


@pytest.fixture
def open_page(chromium: Browser, watch: Watch) -> Iterator[Callable[..., Page]]:
    """Opens a page in a browser profile of its own; keywords go to the profile."""
    contexts: list[BrowserContext] = []

    def open_one(**settings: Any) -> Page:
        context = chromium.new_context(**({"viewport": WIDE} | settings))
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        watch.follow(page)
        return page

    yield open_one
    for context in contexts:
        for page in context.pages:
            if not page.is_closed() and page.url.startswith("http"):
                watch.problems += page.evaluate("window.__violations ?? []")
        context.close()


def sign_up(page: Page, stack: Stack, email: str) -> str:
    """A new account, by the form. Returns the address of its team."""
    page.goto(f"{stack.web_url}/accounts/signup/")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create account").click()
    page.get_by_role("heading", name="Run your first sandbox").wait_for()
    return page.url.rstrip("/")


@dataclass(frozen=True)
class Account:
    """A person who has signed up and holds a key. `profile` logs a browser in."""

    email: str
    team_url: str
    api_key: str
    profile: dict[str, Any]
    web_url: str

    def create_sandbox(self, **fields: Any) -> str:
        reply = httpx.post(
            f"{self.web_url}/sandboxes",
            headers={"X-API-Key": self.api_key},
            json={"templateID": "base", "timeout": 300, **fields},
            timeout=60,
        )
        assert reply.status_code == 201, reply.text
        return str(reply.json()["sandboxID"])

    def kill_sandbox(self, sandbox_id: str) -> None:
        httpx.delete(f"{self.web_url}/sandboxes/{sandbox_id}", headers={"X-API-Key": self.api_key})


@pytest.fixture(scope="session")
def account(chromium: Browser, stack: Stack) -> Account:
    """Shared by tests that only need somebody."""
    email = f"pages-{secrets.token_hex(3)}@example.com"
    context = chromium.new_context()
    page = context.new_page()
    team_url = sign_up(page, stack, email)
    page.get_by_role("button", name="Create a key").click()
    api_key = page.locator(".secret code").inner_text()
    profile = context.storage_state()
    context.close()
    return Account(email, team_url, api_key, json.loads(json.dumps(profile)), stack.web_url)


@pytest.fixture
def page(open_page: Callable[..., Page], account: Account) -> Page:
    """A page of somebody who is logged in."""
    return open_page(storage_state=account.profile)


@pytest.fixture(scope="session")
def shared_sandbox(account: Account) -> Iterator[str]:
    sandbox_id = account.create_sandbox(
        timeout=1800,
        metadata={"user": "u_42", "run": "nightly", "<b>x</b>": "<script>alert(1)</script>"},
    )
    yield sandbox_id
    account.kill_sandbox(sandbox_id)


def screenshot(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def axe_violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2.2 AA. Evaluated by the debugger, so the page's policy stays."""
    # Half-way through a fade everything is pale.
    page.evaluate(
        """async () => {
            const moves = document.getAnimations();
            const ending = moves.filter((move) => move.effect.getTiming().iterations !== Infinity);
            await Promise.allSettled(ending.map((move) => move.finished));
        }"""
    )
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "async (tags) => (await axe.run(document, { runOnly: tags })).violations", AXE_TAGS
    )
    return [
        f"{item['id']}: {item['help']}: "
        + ", ".join(str(node["target"]) for node in item["nodes"][:4])
        for item in found
    ]
