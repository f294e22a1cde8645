"""A person adds a card, chooses a plan and pays, on Stripe's pages as the fake shows them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from ops.services import free_port
from tests.browser.conftest import axe_violations, screenshot, sign_up
from tests.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def paid_stack() -> Iterator[Stack]:
    with Stack.start(
        STRIPE="fake",
        SANDLOT_FAKE_STRIPE_PORT=str(free_port()),
        SANDLOT_DEFAULT_PLAN="hobby",
        SANDLOT_POOL_SIZE="0",
    ) as running:
        yield running


def test_a_card_a_plan_and_its_paid_invoice(
    open_page: Callable[..., Page], paid_stack: Stack
) -> None:
    page = open_page()
    team_url = sign_up(page, paid_stack, f"payer-{secrets.token_hex(3)}@example.com")
    page.goto(f"{team_url}/billing")
    assert axe_violations(page) == []
    expect(page.get_by_text("$100.00").first).to_be_visible()

    page.get_by_role("button", name="Add a card").click()
    page.get_by_label("Card").select_option("pm_decline")
    page.get_by_role("button", name="Save card").click()
    expect(page.get_by_role("alert")).to_contain_text("declined")
    page.get_by_label("Card").select_option("pm_ok")
    page.get_by_role("button", name="Save card").click()
    page.wait_for_url(f"{team_url}/billing**")
    expect(page.get_by_text("4242")).to_be_visible()

    page.get_by_label("Plan", exact=True).select_option("pro")
    page.get_by_role("button", name="Choose plan").click()
    expect(page.get_by_role("heading", name="Pro", exact=True)).to_be_visible()
    invoices = page.get_by_role("region", name="Invoices")
    for _ in range(40):  # the worker pushes it, Stripe charges, a webhook tells
        if "Paid" in invoices.inner_text():
            break
        page.wait_for_timeout(1_000)
        page.reload()
    expect(invoices).to_contain_text("Paid")
    screenshot(page, "billing-paid")

    invoices.get_by_role("link", name=re.compile("^INV-")).first.click()
    expect(page.get_by_text("Pro plan, rest of period")).to_be_visible()
    assert axe_violations(page) == []
    page.get_by_role("link", name="Print").click()
    expect(page.get_by_text("Amount due")).to_be_visible()
