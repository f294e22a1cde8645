"""The SDK's git module: shell commands whose English output it reads."""

from __future__ import annotations

from e2b import Sandbox


def test_a_repository_from_its_first_commit_to_a_clone(shared: Sandbox, folder: str) -> None:
    git, repo, remote = shared.git, f"{folder}/repo", f"{folder}/srv/repo.git"
    git.init(remote, bare=True, initial_branch="main")
    daemon = shared.commands.run(
        f"git daemon --reuseaddr --base-path={folder}/srv --export-all --enable=receive-pack"
        " --listen=127.0.0.1 --port=9418 --verbose 2>&1",
        background=True,
    )
    assert "Ready" in next(iter(daemon))[0]

    git.init(repo, initial_branch="main")
    git.configure_user("Ann", "ann@example.com", scope="local", path=repo)
    assert git.get_config("user.name", scope="local", path=repo) == "Ann"
    assert git.get_config("no.such-key", scope="local", path=repo) is None
    shared.files.write(f"{repo}/readme.md", "one")
    assert [(entry.name, entry.status) for entry in git.status(repo).file_status] == [
        ("readme.md", "untracked")
    ]
    git.add(repo)
    git.commit(repo, "First\n\nwith a body", author_name="Bo", author_email="bo@example.com")
    assert git.status(repo).is_clean

    git.remote_add(repo, "origin", "git://127.0.0.1/repo.git")
    assert git.remote_get(repo, "origin") == "git://127.0.0.1/repo.git"
    git.push(repo, remote="origin", branch="main")
    assert git.status(repo).upstream == "origin/main"

    git.create_branch(repo, "topic")
    branches = git.branches(repo)
    assert (sorted(branches.branches), branches.current_branch) == (["main", "topic"], "topic")
    git.checkout_branch(repo, "main")
    git.delete_branch(repo, "topic", force=True)

    copy = f"{folder}/copy"
    git.clone("git://127.0.0.1/repo.git", copy)
    assert shared.files.read(f"{copy}/readme.md") == "one"
    shared.files.write(f"{repo}/readme.md", "two")
    git.add(repo, files=["readme.md"])
    git.commit(repo, "Second", author_name="Bo", author_email="bo@example.com")
    assert git.status(repo).ahead == 1
    git.push(repo, remote="origin", branch="main")
    git.pull(copy)
    assert shared.files.read(f"{copy}/readme.md") == "two"
    daemon.kill()
