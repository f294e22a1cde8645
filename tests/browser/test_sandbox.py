"""Inside one sandbox: terminal, files, and what the list does with many."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import Account, Watch, screenshot
from tests.stack import Stack


def terminal_text(page: Page) -> str:
    return page.locator("#terminal .xterm-rows").inner_text()


def open_terminal(page: Page, account: Account, sandbox_id: str) -> None:
    page.goto(f"{account.team_url}/sandboxes/{sandbox_id}/terminal")
    expect(page.locator("[data-status]")).to_have_text("Connected")
    page.locator("#terminal").click()


def type_line(page: Page, text: str) -> None:
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_terminal_runs_what_is_typed_and_survives_a_reload(
    page: Page, account: Account, shared_sandbox: str
) -> None:
    open_terminal(page, account, shared_sandbox)
    type_line(page, "stty size; echo answer-$((6*7))")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("answer-42")
    type_line(page, r"printf '\033[31mred\033[0m and \033[1;32mgreen\033[0m\n'")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("red and green")
    screenshot(page, "terminal")
    page.reload()
    expect(page.locator("[data-status]")).to_have_text("Connected")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("answer-42")


def test_two_people_share_one_terminal(page: Page, account: Account, shared_sandbox: str) -> None:
    open_terminal(page, account, shared_sandbox)
    other = page.context.new_page()
    open_terminal(other, account, shared_sandbox)
    type_line(other, "echo shared-$((20+3))")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("shared-23")
    expect(page.locator("[data-viewers]")).to_have_text("2 viewers")


def test_a_terminal_that_prints_without_end_stays_usable(
    page: Page, account: Account, shared_sandbox: str
) -> None:
    open_terminal(page, account, shared_sandbox)
    type_line(page, "clear; yes flood")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("flood")
    page.wait_for_timeout(2000)  # let it flood
    page.keyboard.press("Control+c")
    type_line(page, "clear; echo calm-$((1+1))")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("calm-2", timeout=15_000)


def test_a_shell_survives_the_death_of_the_web_process(
    page: Page, account: Account, shared_sandbox: str, stack: Stack, watch: Watch
) -> None:
    watch.expected += ["WebSocket", "ERR_CONNECTION_REFUSED", "Failed to load resource"]
    open_terminal(page, account, shared_sandbox)
    type_line(page, "kept=word-$((30+3))")
    stack.kill9("web")
    expect(page.locator("[data-status]")).to_have_text("Connected", timeout=30_000)
    type_line(page, "echo still-$kept")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("still-word-33")
    expect(page.locator(".live-dot").first).to_have_text("Live", timeout=30_000)


def test_the_keyboard_leaves_the_terminal(
    page: Page, account: Account, shared_sandbox: str
) -> None:
    open_terminal(page, account, shared_sandbox)
    page.keyboard.press("Control+Shift+Escape")
    expect(page.locator("[data-terminal-search]")).to_be_focused()


def test_files_are_made_edited_uploaded_and_removed(
    page: Page, account: Account, shared_sandbox: str, tmp_path: Path
) -> None:
    files = f"{account.team_url}/sandboxes/{shared_sandbox}/files"
    page.goto(files)
    page.get_by_role("button", name="New").click()
    page.locator("#new-entry").get_by_label("Name").fill("notes.txt")
    page.get_by_role("button", name="Create").click()
    page.get_by_role("link", name="notes.txt", exact=True).click()
    page.get_by_label("Text of notes.txt").fill("first line\nsecond <b>line</b>\n")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved notes.txt")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Text of notes.txt")).to_have_value("first line\nsecond <b>line</b>\n")
    screenshot(page, "file")

    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.path().read_text() == "first line\nsecond <b>line</b>\n"

    page.goto(files)
    upload = tmp_path / "data é.bin"
    upload.write_bytes(bytes(range(256)) * 10)
    page.locator("#upload").set_input_files(upload)
    expect(page.get_by_role("link", name="data é.bin", exact=True)).to_be_visible()
    screenshot(page, "files")
    page.get_by_role("link", name="data é.bin", exact=True).click()
    expect(page.get_by_text("is not text")).to_be_visible()

    page.goto(files)
    page.get_by_role("button", name="Remove notes.txt").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_role("link", name="notes.txt", exact=True)).to_have_count(0)


def test_a_server_in_the_sandbox_shows_up_as_a_port_that_opens(
    page: Page, account: Account, shared_sandbox: str
) -> None:
    open_terminal(page, account, shared_sandbox)
    type_line(page, "cd /tmp && echo served > index.html && (python3 -m http.server 8765 &)")
    type_line(page, "until curl -s localhost:8765; do sleep 0.1; done; echo listens-$((4+4))")
    expect(page.locator("#terminal .xterm-rows")).to_contain_text("listens-8", timeout=20_000)
    page.goto(f"{account.team_url}/sandboxes/{shared_sandbox}")
    link = page.get_by_role("link", name="8765-")
    expect(link).to_be_visible(timeout=20_000)
    with page.context.expect_page() as opened:
        link.click()
    expect(opened.value.locator("body")).to_contain_text("served")
    opened.value.close()


def test_pausing_and_resuming_from_the_page(page: Page, account: Account) -> None:
    sandbox_id = account.create_sandbox()
    page.goto(f"{account.team_url}/sandboxes/{sandbox_id}")
    head = page.locator("#sandbox-head")
    page.get_by_role("button", name="Pause").click()
    expect(head).to_contain_text("Paused", timeout=15_000)
    page.get_by_role("button", name="Resume").click()
    expect(head).to_contain_text("Running", timeout=15_000)
    page.get_by_role("button", name="Kill").click()
    page.get_by_role("button", name="Kill sandbox").click()
    expect(head).to_contain_text("Ended", timeout=15_000)
    expect(head).to_contain_text("killed by its owner")


def test_many_are_killed_at_once(page: Page, account: Account) -> None:
    chosen = [account.create_sandbox(metadata={"batch": "b7"}) for _ in range(3)]
    page.goto(f"{account.team_url}/sandboxes?q=b7")
    for sandbox_id in chosen:
        page.get_by_label(f"Choose {sandbox_id}").check()
    expect(page.get_by_text("3 chosen")).to_be_visible()
    screenshot(page, "bulk")
    page.locator("[data-bulk]").get_by_role("button", name="Kill").click()
    page.get_by_role("button", name="Kill them").click()
    expect(page.get_by_text("Killed 3.")).to_be_visible(timeout=20_000)
    for sandbox_id in chosen:
        expect(page.locator(f"#row-{sandbox_id}")).to_have_count(0)
    expect(page.locator("[data-bulk]")).to_be_hidden()


def test_a_sandbox_is_created_from_the_page(page: Page, account: Account) -> None:
    page.goto(f"{account.team_url}/sandboxes?sort=age")
    page.get_by_role("button", name="New sandbox").click()
    page.get_by_label("Time limit in minutes").fill("3")
    page.get_by_role("button", name="Create sandbox").click()
    text = page.locator(".toast").filter(has_text="Started ").inner_text(timeout=30_000)
    sandbox_id = text.split("Started ")[1].split(".")[0]
    expect(page.locator(f"#row-{sandbox_id}")).to_contain_text("Running")
    account.kill_sandbox(sandbox_id)
