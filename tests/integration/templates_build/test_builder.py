"""Builds on a real engine: what steps do, what is cached, and what hostile builds cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from nodeagent.builder import Builder
from nodeagent.errors import NotFound
from nodeagent.runtime.docker import DockerRuntime
from nodeagent.runtime.images import DockerImages
from nodeagent.wire import BuildContext, BuildPhase, BuildTemplate
from ops import images
from templates_app.steps import base_key, plan_steps

pytestmark = pytest.mark.docker

NODE = f"b{secrets.token_hex(3)}"
HASH = "a" * 64


@dataclass
class Office:
    """Keeps what builds report; `archives` by hash."""

    archives: dict[str, bytes] = field(default_factory=dict)
    lines: dict[str, list] = field(default_factory=dict)
    ends: dict[str, asyncio.Future] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def report(self, build_id, progress):
        if build_id in self.forgotten:
            raise NotFound("forgotten")
        known = self.lines.setdefault(build_id, [])
        known[progress.first :] = progress.lines
        self.heard.set()
        if progress.phase in (BuildPhase.READY, BuildPhase.ERROR):
            future = self.ends[build_id]
            if not future.done():
                future.set_result(progress)

    async def fetch_archive(self, team_id, files_hash, target):
        if files_hash not in self.archives:
            raise NotFound("no such archive")
        target.write_bytes(self.archives[files_hash])


class RecordingRuntime(DockerRuntime):
    """The real one; `made` names what it committed, so that a test run can remove it."""

    made: list[str]

    async def commit(self, container, image):
        self.made.append(image)
        return await super().commit(container, image)


@pytest.fixture(scope="module")
def ground():
    """A state directory, and the images made in it: gone with the module."""
    images.ensure_base_image()
    made: list[str] = []
    with tempfile.TemporaryDirectory(prefix="slb-") as folder:
        yield Path(folder), made
    engine = docker.from_env()
    for container in engine.containers.list(all=True, filters={"label": f"sandlot.node={NODE}"}):
        container.remove(force=True)
    with contextlib.suppress(docker.errors.NotFound):
        engine.networks.get(f"sandlot-{NODE}").remove()
    for image in reversed(made):  # an image goes only after those made on it
        with contextlib.suppress(docker.errors.APIError):
            engine.images.remove(image)
    engine.close()


@pytest.fixture
async def runtime(ground):
    folder, made = ground
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    found = RecordingRuntime(node_id=NODE, run_dir=run_dir, state_dir=folder, pids_limit=200)
    found.made = made
    await found.open()
    yield found
    await found.close()


class Yard:
    """A builder of its own, and builds given to it."""

    def __init__(self, runtime, folder):
        self.runtime = runtime
        self.office = Office()
        self.images = DockerImages({"base": images.BASE_IMAGE, "e2bdev/base": images.BASE_IMAGE})
        self.builder = Builder(
            node_id=NODE,
            folder=folder,
            runtime=runtime,
            images=self.images,
            office=self.office,
            concurrency=2,
        )

    def submit(self, *steps, force=False, parent=None, **fields):
        """Queue a build; returns its id. `steps`: dicts, or texts to RUN."""
        build_id = f"{secrets.token_hex(8)}"
        planned = [{"type": "RUN", "args": [s]} if isinstance(s, str) else s for s in steps]
        base = {"base": "base", "base_name": "base"}
        key = base_key(image="base", disk_size_mb=512)
        if parent is not None:
            parent_id, context = parent
            key = base_key(parent_build_id=parent_id, disk_size_mb=512)
            base = {
                "base": f"sandlot/template:{parent_id}",
                "base_name": "parent",
                "base_is_template": True,
                "base_context": BuildContext(user="user", workdir=context.workdir, env=context.env),
            }
        spec = BuildTemplate(
            **{
                "build_id": build_id,
                "template_id": "t",
                "team_id": "team",
                "image": f"sandlot/template:{build_id}",
                "base_key": key,
                "use_base_cache": True,
                "steps": plan_steps(key, planned, force=force),
                "cpu_count": 1,
                "memory_mb": 256,
                "disk_size_mb": 512,
                **base,
                **fields,
            }
        )
        self.office.ends[build_id] = asyncio.get_running_loop().create_future()
        self.builder.submit(spec)
        return build_id

    async def end(self, build_id, seconds=90):
        async with asyncio.timeout(seconds):
            return await self.office.ends[build_id]

    def messages(self, build_id):
        return [line.message for line in self.office.lines.get(build_id, [])]

    async def until_said(self, build_id, text, seconds=30):
        """Until the build's first step has printed the text."""
        async with asyncio.timeout(seconds):
            while f"[builder 1/1] [stdout]: {text}" not in self.messages(build_id):
                self.office.heard.clear()
                await self.office.heard.wait()

    async def build(self, *steps, **fields):
        """(id, result) of a build that must succeed."""
        build_id = self.submit(*steps, **fields)
        progress = await self.end(build_id)
        assert progress.phase is BuildPhase.READY, self.messages(build_id)
        return build_id, progress.result

    async def refused(self, *steps, **fields):
        """(reason, step) of a build that must fail."""
        build_id = self.submit(*steps, **fields)
        progress = await self.end(build_id)
        assert progress.phase is BuildPhase.ERROR, self.messages(build_id)
        assert self.messages(build_id)[-1] == f"Build failed: {progress.reason}"
        return progress.reason, progress.reason_step

    async def output(self, *steps, **fields):
        """What the last step of a build printed."""
        build_id, _ = await self.build(*steps, **fields)
        mark = f"[builder {len(steps)}/{len(steps)}] [stdout]: "
        return [text.removeprefix(mark) for text in self.messages(build_id) if mark in text]

    async def containers(self):
        return await self.runtime.containers()


@pytest.fixture
async def yard(runtime, shared_folder):
    found = Yard(runtime, shared_folder)
    yield found
    await found.builder.close()
    assert await found.containers() == [], "a build left its container"


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """One layer cache for the module: the base is prepared once."""
    return tmp_path_factory.mktemp("builds")


def step(kind, *args, **fields):
    return {"type": kind, "args": list(args), **fields}


def tar(*members):
    """`members`: (name, content) or (name, (type, target))."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if isinstance(what, bytes):
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
            else:
                info.type, info.linkname = what
                info.mode = 0o755
                archive.addfile(info)
    return content.getvalue()


DIRECTORY = (tarfile.DIRTYPE, "")


class TestSteps:
    async def test_context_is_carried_along(self, yard):
        steps = [
            step("ENV", "A", "one two", "B", "$HOME-${HOME}"),
            step("WORKDIR", "/srv/app"),
            step("WORKDIR", "sub"),
            step("USER", "worker"),
            'echo "$A|$B|$(pwd)|$(id -un)|$(stat -c %U /srv /srv/app/sub | xargs)"',
        ]
        assert await yard.output(*steps) == ["one two|/root-/root|/srv/app/sub|worker|root user"]

    async def test_values_stay_literal(self, yard):
        value = "a\"b'c\\d `id` $(id) -----BEGIN\n\tsecond\n\n"
        marker = step("ENV", "V", value)
        shown = await yard.output(marker, 'printf "%s" "$V" | od -An -c | tr -d " \\n"')
        plain = await yard.output('printf "%s" "$X" | od -An -c | tr -d " \\n"')
        assert plain == []
        expected = value.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "")
        assert "".join(shown) == expected.replace("\\d", "\\d")

    async def test_a_path_of_ones_own(self, yard):
        steps = [
            step("RUN", "mkdir -p /opt/own && printf '#!/bin/sh\\necho own' > /opt/own/tool"
                        " && chmod +x /opt/own/tool", "root"),
            step("ENV", "PATH", "${PATH}:/opt/own"),
            "tool && command -v ls",
        ]  # fmt: skip
        assert await yard.output(*steps) == ["own", "/usr/bin/ls"]

    async def test_run_as_another_user_for_one_step(self, yard):
        assert await yard.output(step("RUN", "id -un", "root")) == ["root"]
        assert await yard.output(step("RUN", "id -un", "")) == ["user"]

    async def test_the_result_knows_its_user_and_directory(self, yard):
        _, result = await yard.build(step("USER", "root"), step("WORKDIR", "/data"))
        assert (result.context.user, result.context.workdir) == ("root", "/data")
        assert result.image_id.startswith("sha256:")

    async def test_what_every_template_has(self, yard):
        build_id, _ = await yard.build("true")
        context = BuildContext()
        checks = "cat /.e2b; stat -c '%U %a' /home/user /code; sudo -n id -un; ls -A /home/user"
        shown = await yard.output(checks, parent=(build_id, context))
        assert shown[:3] == ["ENV_ID=t", "TEMPLATE_ID=t", f"BUILD_ID={build_id}"]
        assert shown[3].startswith("user ")
        assert "root" in shown
        assert ".bashrc" in shown

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ("exit 3", "failed to run command 'exit 3': exit status 3"),
            ("kill -9 $$", "failed to run command 'kill -9 $$': signal: killed"),
            (step("RUN", "id", "nobody-here"),
             "failed to run command 'id': command failed: unauthenticated: invalid username:"
             " 'nobody-here'"),
            (step("RUN"), "RUN requires a command"),
            (step("COPY", "a", "b"), "COPY requires files hash to be set"),
            (step("COPY", "a", "b", filesHash=HASH), "failed to extract files: the archive is not"),
            (step("ENV"), "ENV does not support passing no arguments"),
            (step("ENV", "A"), "ENV requires both a key and value arguments"),
            (step("WORKDIR", "/etc/passwd"), "failed to create workdir: '/etc/passwd' exists"),
            (step("USER", "--bad name"), "failed to create user: invalid user name"),
            (step("SHELL", "x"), "command type SHELL is not implemented"),
        ],
    )  # fmt: skip
    async def test_failures_name_their_step(self, yard, bad, reason):
        told, at = await yard.refused("true", bad, "echo never")
        assert (told.startswith(reason), at) == (True, "2"), told


class TestCopy:
    async def copied(self, yard, archive, *args, check, before=()):
        yard.office.archives[HASH] = archive
        key = secrets.token_hex(4)  # so that no test finds another's layer
        steps = [f"true {key}", *before, step("COPY", *args, filesHash=HASH), check]
        return await yard.output(*steps)

    async def test_a_glob_of_a_folder(self, yard):
        archive = tar(("folder/test.txt", b"Hello"), ("folder/sub", DIRECTORY),
                      ("folder/sub/b", b"b"))  # fmt: skip
        shown = await self.copied(
            yard, archive, "folder/*", "folder", "", "",
            check="pwd; cat folder/test.txt folder/sub/b; stat -c %U:%G folder/test.txt",
        )  # fmt: skip
        assert shown == ["/home/user", "Hellob", "user:user"] or shown == [
            "/home/user",
            "Hellobuser:user",
        ]

    async def test_links_arrive_as_links(self, yard):
        archive = tar(
            ("f/real", b"text"),
            ("f/relative", (tarfile.SYMTYPE, "real")),
            ("f/absolute", (tarfile.SYMTYPE, "/home/caller/real")),
            ("f/dangling", (tarfile.SYMTYPE, "nowhere")),
        )
        shown = await self.copied(
            yard, archive, "f", "f",
            check="cat f/relative; echo; readlink f/relative f/absolute f/dangling",
        )  # fmt: skip
        assert shown == ["text", "real", "/home/caller/real", "nowhere"]

    async def test_a_file_to_a_name_in_a_new_folder(self, yard):
        shown = await self.copied(
            yard, tar(("a.txt", b"x")), "a.txt", "/opt/deep/er/b.txt", "user", "0640",
            check="stat -c '%n %U %a' /opt/deep/er/b.txt; stat -c '%U' /opt/deep",
        )  # fmt: skip
        assert shown == ["/opt/deep/er/b.txt user 640", "root"]

    async def test_into_a_folder(self, yard):
        shown = await self.copied(
            yard, tar(("a.txt", b"x")), "a.txt", "into/", check="ls into",
        )  # fmt: skip
        assert shown == ["a.txt"]

    async def test_folders_are_merged(self, yard):
        before = [
            step("RUN", "mkdir -p m/keep real && echo old > m/f && echo kept > m/other"
                        " && ln -s other m/link && ln -s ~/real m/todir && chmod 700 m/keep")
        ]  # fmt: skip
        archive = tar(("d/f", b"new"), ("d/link", b"was a link"), ("d/keep", DIRECTORY),
("d/keep/x", b""), ("d/todir", DIRECTORY), ("d/todir/y", b"through"))  # fmt: skip
        shown = await self.copied(
            yard, archive, "d", "m", before=before,
            check="cat m/f; echo; cat m/other m/link; echo; stat -c %a m/keep; cat real/y; echo;"
                  " test -L m/todir && echo link",
        )  # fmt: skip
        assert shown == ["new", "kept", "was a link", "700", "through", "link"]

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ([("../up", b"x")], "leads out of the archive"),
            ([("dev", (tarfile.CHRTYPE, ""))], "neither a file nor"),
            ([("zeros", bytes(600 * 1024 * 1024))], "unpacks to more than"),
        ],
    )
    async def test_hostile_archives_end_the_build(self, yard, members, reason):
        yard.office.archives[HASH] = tar(*members)
        told, at = await yard.refused(step("COPY", ".", "x", filesHash=HASH))
        assert (told.startswith("failed to extract files: "), at) == (True, "1")
        assert reason in told

    async def test_a_link_in_the_archive_leads_nowhere_on_the_host(self, yard, tmp_path):
        archive = tar(("way", (tarfile.SYMTYPE, str(tmp_path))), ("way/escaped", b"x"))
        yard.office.archives[HASH] = archive
        await yard.end(yard.submit(step("COPY", ".", "x", filesHash=HASH)))
        assert list(tmp_path.iterdir()) == []

    async def test_a_missing_source_fails(self, yard):
        yard.office.archives[HASH] = tar(("a", b"x"))
        told, _ = await yard.refused(step("COPY", "b", "x", filesHash=HASH))
        assert told == "failed to move files in sandbox: source 'b' does not exist"


class TestCache:
    async def test_a_second_build_takes_every_layer_from_the_cache(self, yard):
        mark = secrets.token_hex(4)
        steps = [step("ENV", "MARK", mark), "echo $MARK > made; date +%N > when", "cat when"]
        first, _ = await yard.build(*steps)
        second, _ = await yard.build(*steps)
        cached = [text for text in yard.messages(second) if text.startswith("CACHED ")]
        assert len(cached) == 5
        assert any(text.startswith(f"CACHED [builder 1/3] ENV MARK {mark} [") for text in cached)
        context = BuildContext()
        one = await yard.output("cat ~/made ~/when", parent=(first, context))
        two = await yard.output("cat ~/made ~/when", parent=(second, context))
        assert one == two
        assert one[0] == mark

    async def test_force_rebuilds_from_its_step_on(self, yard):
        mark = secrets.token_hex(4)
        steps = [f"echo {mark}", "date +%N > when", "true"]
        await yard.build(*steps)
        forced = [steps[0], step("RUN", steps[1], force=True), steps[2]]
        build_id, _ = await yard.build(*forced)
        cached = [text[:22] for text in yard.messages(build_id) if text.startswith("CACHED [b")]
        assert cached[2:] == ["CACHED [builder 1/3] R"]

    async def test_teams_do_not_share_layers(self, yard):
        mark = secrets.token_hex(4)
        await yard.build(f"echo {mark}")
        build_id, _ = await yard.build(f"echo {mark}", team_id="other")
        assert not any("CACHED [builder" in text for text in yard.messages(build_id))

    async def test_a_layer_whose_image_is_gone_is_made_again(self, yard, runtime):
        mark = secrets.token_hex(4)
        await yard.build(f"echo {mark} > f")
        layers = yard.builder._layers
        key = plan_steps(
            base_key(image="base", disk_size_mb=512),
            [{"type": "RUN", "args": [f"echo {mark} > f"]}],
            force=False,
        )[0].key
        layers.put("team", key, type(layers.get("team", key))(
            image="sandlot/layer:gone", context=BuildContext(user="user")
        ))  # fmt: skip
        assert await yard.output(f"echo {mark} > f", "cat f") == [mark]

    async def test_a_parent_hands_on_env_and_directory_and_not_its_user(self, yard):
        parent, result = await yard.build(
            step("ENV", "A", "1"), step("WORKDIR", "/w"), step("USER", "root"), "touch made"
        )
        shown = await yard.output("echo $A $(pwd) $(id -un); ls", parent=(parent, result.context))
        assert shown == ["1 /w user", "made"]

    async def test_a_parent_whose_image_is_gone(self, yard):
        told, at = await yard.refused("true", parent=("0" * 16, BuildContext()))
        assert told.startswith("error getting base template, you may need to rebuild it first")
        assert at == "base"


class TestStart:
    async def test_start_and_ready_in_order(self, yard):
        build_id, _ = await yard.build(
            step("ENV", "WHAT", "web"),
            step("WORKDIR", "/srv"),
            start_cmd='echo "starting $WHAT in $(pwd)"; sleep 0.3; touch /tmp/up; sleep 60',
            ready_cmd="test -e /tmp/up",
        )
        texts = yard.messages(build_id)
        wanted = ["Running start command: echo", 
                  "Waiting for template to be ready: test -e /tmp/up",
                  "Template is ready"]  # fmt: skip
        places = [next(i for i, t in enumerate(texts) if t.startswith(w)) for w in wanted]
        assert places == sorted(places)
        assert "[start] [stdout]: starting web in /srv" in texts
        assert any(text == "Template is not ready: exit status 1" for text in texts)

    async def test_a_start_command_that_ends_well_is_fine(self, yard):
        await yard.build(start_cmd="true", ready_cmd="sleep 0.5")

    async def test_a_start_command_that_fails_ends_the_build(self, yard):
        told, at = await yard.refused(start_cmd="exit 4", ready_cmd="sleep 30")
        assert told == "start command failed: error running start command: exit status 4"
        assert at == "finalize"

    async def test_an_inherited_start_command_has_a_context_of_its_own(self, yard):
        build_id, _ = await yard.build(
            step("USER", "root"),
            start_cmd='echo "$(id -un) $(pwd) $A"',
            ready_cmd="sleep 0.3",
            start_context=BuildContext(user="user", workdir="/tmp", env={"A": "parent"}),
        )
        assert "[start] [stdout]: user /tmp parent" in yard.messages(build_id)


class TestHostile:
    async def test_a_build_that_hangs_ends(self, yard):
        began = time.monotonic()
        told, _ = await yard.refused("sleep 600", timeout_seconds=3)
        assert told == "build timed out"
        assert time.monotonic() - began < 15

    async def test_cancelling_ends_it_at_once_and_leaves_nothing(self, yard):
        build_id = yard.submit("echo on; sleep 600")
        await yard.until_said(build_id, "on")
        yard.builder.cancel(build_id)
        progress = await yard.end(build_id, 10)
        assert (progress.reason, progress.reason_step) == ("build was cancelled", "")
        yard.builder.cancel(build_id)
        yard.builder.cancel("never-heard-of")

    async def test_a_build_nobody_waits_for_is_given_up(self, yard):
        build_id = yard.submit("echo on; sleep 600")
        yard.office.forgotten.add(build_id)
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(job.task for job in yard.builder._jobs.values()), return_exceptions=True
            )
        assert yard.builder.state(build_id).phase is BuildPhase.ERROR

    async def test_an_agent_that_stops_leaves_no_container(self, yard):
        build_id = yard.submit("echo on; sleep 600")
        async with asyncio.timeout(30):
            await yard.office.heard.wait()
        await yard.builder.close()
        assert await yard.containers() == []
        assert not yard.office.ends[build_id].done()

    async def test_a_full_disk_ends_the_build(self, yard):
        told, at = await yard.refused(
            "yes > big; sleep 60", disk_size_mb=48, base_key=secrets.token_hex(32)
        )
        assert told.startswith("the build wrote more than its disk of 48 MB holds")
        assert at == "1"

    async def test_a_flood_of_lines_is_cut(self, yard):
        build_id, _ = await yard.build(
            "yes line | head -n 60000; head -c 100000 /dev/zero | tr '\\0' x"
        )
        texts = yard.messages(build_id)
        assert len(texts) < 21_000
        assert "The log is too long; what follows is left out." in texts
        assert max(map(len, texts)) <= 8192 + 100

    async def test_forks_without_end_are_bounded(self, yard):
        bomb = "echo on; bomb() { bomb | bomb & }; bomb; sleep 600"
        build_id = yard.submit(bomb)
        await yard.until_said(build_id, "on")
        assert await yard.output("echo alive") == ["alive"]
        yard.builder.cancel(build_id)
        assert (await yard.end(build_id, 30)).reason == "build was cancelled"

    async def test_memory_is_bounded(self, yard):
        told, _ = await yard.refused(
            "tail /dev/zero", memory_mb=128, base_key=secrets.token_hex(32)
        )
        assert told.startswith("failed to run command 'tail /dev/zero': ")

    async def test_a_workdir_among_descriptors_shows_no_host_files(self, yard):
        steps = [step("WORKDIR", f"/proc/self/fd/{n}") for n in (3, 5, 7, 9)]
        for way in steps:
            build_id = yard.submit(way, "ls / ../../../..")
            await yard.end(build_id)
            seen = " ".join(yard.messages(build_id))
            assert "lost+found" not in seen
            assert str(Path.home()) + "/.ssh" not in seen

    async def test_it_is_as_confined_as_a_sandbox(self, yard):
        shown = await yard.output(
            step(
                "RUN",
                "test -e /var/run/docker.sock && echo socket; mount -t tmpfs x /mnt 2>/dev/null"
                " && echo mounted; mknod /tmp/d b 8 0 2>/dev/null && echo device;"
                " cat /proc/1/environ | tr '\\0' '\\n' | grep -i sandlot; echo end",
                "root",
            )
        )
        assert shown == ["end"]

    async def test_no_more_than_the_limit_run_at_once_and_the_rest_waits(self, yard):
        ids = [yard.submit(f"sleep 0.3; echo {secrets.token_hex(4)}") for _ in range(4)]
        phases = {yard.builder.state(build_id).phase for build_id in ids}
        assert phases <= {BuildPhase.QUEUED, BuildPhase.RUNNING}
        most = 0
        while not all(yard.office.ends[build_id].done() for build_id in ids):
            most = max(most, len(await yard.containers()))
            await asyncio.sleep(0.05)
        assert {yard.office.ends[build_id].result().phase for build_id in ids} == {BuildPhase.READY}
        assert most <= 2


class TestBase:
    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            ("no such image", "invalid image reference"),
            ("sandlot/base:latest", "not found"),
            ("localhost:1/nothing:here", "failed to pull image 'localhost:1/nothing:here'"),
        ],
    )
    async def test_images_that_cannot_be_used(self, yard, image, reason):
        told, at = await yard.refused(base=image, base_key=secrets.token_hex(32))
        assert (reason in told, at) == (True, "base"), told

    async def test_an_image_that_cannot_be_a_sandbox(self, yard):
        name = f"unusable-{secrets.token_hex(4)}:1"
        engine = docker.from_env()
        engine.api.import_image_from_data(tar(("etc", DIRECTORY)), repository=name[:-2], tag="1")
        try:
            told, at = await yard.refused(base=name, base_key=secrets.token_hex(32))
        finally:
            engine.images.remove(name, force=True)
            engine.close()
        assert (told.startswith("the image could not be prepared"), at) == (True, "base")

    async def test_the_same_base_is_prepared_once_for_many(self, yard):
        key = secrets.token_hex(32)
        ids = [yard.submit(f"echo {n}", base_key=key) for n in range(2)]
        for build_id in ids:
            assert (await yard.end(build_id)).phase is BuildPhase.READY
        fresh = [b for b in ids if "Provisioning sandbox template" in yard.messages(b)]
        assert len(fresh) == 1

    async def test_submitting_twice_is_one_build(self, yard):
        build_id = yard.submit("sleep 0.5")
        job = yard.builder._jobs[build_id]
        yard.builder.submit(job.spec)
        await yard.end(build_id)
        assert yard.messages(build_id).count(f"Building template t/{build_id}") == 1
