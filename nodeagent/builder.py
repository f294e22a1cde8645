"""Template builds of one node: a queue, and each build from its recipe to an image.

A build is untrusted work. It runs in a container like any sandbox's, with the same isolation,
limits and egress rules, through the same guest; only the commits are made from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nodeagent.build_archives import BadArchive, rewrite_archive
from nodeagent.build_layers import Layer, LayerStore, days_ago
from nodeagent.build_report import BuildLog, BuildOffice, report_until_known
from nodeagent.build_steps import (
    StepFailed,
    Workbench,
    configure,
    describe,
    follow,
    make_base_ready,
    perform,
    provision,
)
from nodeagent.errors import AgentError, NotFound, QuotaExceeded
from nodeagent.runtime.base import Container, ContainerSpec, Runtime
from nodeagent.runtime.images import ImageRefused, Images
from nodeagent.wire import (
    BuildContext,
    BuildPhase,
    BuildResult,
    BuildState,
    BuildStep,
    BuildTemplate,
)

logger = logging.getLogger(__name__)

INTERNAL = "An internal error occurred. Please try again or contact support with the build ID."
CANCELLED = "build was cancelled"
READY_SECONDS = 600.0
FIRST_READY_PAUSE_SECONDS = 0.1
LAST_READY_PAUSE_SECONDS = 2.0
READY_ATTEMPT_SECONDS = 60.0
DISK_CHECK_SECONDS = 3.0
# A container that committed this much is left for one on the new image: its next commit would
# store the same again.
LARGE_LAYER_BYTES = 16 * 1024 * 1024
MAX_QUEUED = 200
REMEMBERED = 500
LAYER_DAYS = 7.0
CLEANING_SECONDS = 3600.0


class BuildFailed(Exception):
    """The reason a build ends with, and the step it belongs to."""

    def __init__(self, message: str, step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.step = step


@dataclass(eq=False)
class _Job:
    spec: BuildTemplate
    log: BuildLog
    task: asyncio.Task[None] | None = None
    is_cancelled: bool = False


class Builder:
    """Accepts builds and carries out `concurrency` of them at a time.

    A build of an agent that has ended is not taken up again: its control plane asks for it, learns
    that nobody knows it, and ends it.
    """

    def __init__(
        self,
        *,
        node_id: str,
        folder: Path,
        runtime: Runtime,
        images: Images,
        office: BuildOffice,
        concurrency: int,
    ) -> None:
        self.container_names: set[str] = set()  # those the sweep must not take for orphans
        self._node_id = node_id
        self._folder = folder
        self._runtime = runtime
        self._images = images
        self._office = office
        self._places = asyncio.Semaphore(concurrency)
        self._layers = LayerStore(folder / "layers")
        self._jobs: dict[str, _Job] = {}
        self._base_locks: dict[str, asyncio.Lock] = {}
        self._cleaned_at = 0.0

    def submit(self, spec: BuildTemplate) -> BuildState:
        """Queue a build; the same id again changes nothing. Raises: QuotaExceeded."""
        job = self._jobs.get(spec.build_id)
        if job is None:
            waiting = sum(not item.log.is_final for item in self._jobs.values())
            if waiting >= MAX_QUEUED:
                raise QuotaExceeded("too many builds are queued on this node")
            job = self._jobs[spec.build_id] = _Job(spec, BuildLog())
            job.task = asyncio.create_task(self._serve(job), name=f"build {spec.build_id}")
            self._forget_old()
        return BuildState(build_id=spec.build_id, phase=job.log.phase)

    def state(self, build_id: str) -> BuildState:
        """Raises: NotFound."""
        job = self._jobs.get(build_id)
        if job is None:
            raise NotFound(f"build {build_id} is not on this node")
        return BuildState(build_id=build_id, phase=job.log.phase)

    def cancel(self, build_id: str) -> None:
        job = self._jobs.get(build_id)
        if job is not None and not job.log.is_final and job.task is not None:
            job.is_cancelled = True
            job.task.cancel()

    async def close(self) -> None:
        """End every build; their containers go with them."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget_old(self) -> None:
        ended = [job for job in self._jobs.values() if job.task is not None and job.task.done()]
        for job in ended[: max(0, len(self._jobs) - REMEMBERED)]:
            del self._jobs[job.spec.build_id]

    async def _serve(self, job: _Job) -> None:
        """One build, and telling of it. Ends when the control plane knows the end."""
        telling = asyncio.create_task(
            report_until_known(
                job.log, build_id=job.spec.build_id, node_id=self._node_id, office=self._office
            )
        )
        telling.add_done_callback(partial(self._told, job))
        try:
            async with self._places:
                await self._build(job)
        except asyncio.CancelledError:
            if not job.is_cancelled:
                telling.cancel()
                raise
            self._fail(job, BuildFailed(CANCELLED))
        await telling

    def _told(self, job: _Job, telling: asyncio.Task[bool]) -> None:
        """A build that the control plane has given up is given up here too."""
        if telling.cancelled():
            return
        if (error := telling.exception()) is not None:
            logger.error("Telling of a build failed.", exc_info=error)
        elif not telling.result() and not job.log.is_final:
            self.cancel(job.spec.build_id)

    async def _build(self, job: _Job) -> None:
        spec, log = job.spec, job.log
        log.move(BuildPhase.RUNNING)
        began = time.monotonic()
        log.add(f"Building template {spec.template_id}/{spec.build_id}")
        try:
            async with asyncio.timeout(spec.timeout_seconds):
                result = await _Build(spec, log, self).run()
        except BuildFailed as failure:
            self._fail(job, failure)
        except TimeoutError:
            self._fail(job, BuildFailed("build timed out"))
        except Exception:
            logger.exception("Build %s failed inside the agent.", spec.build_id)
            self._fail(job, BuildFailed(INTERNAL))
        else:
            log.add(f"Build finished, took {round(time.monotonic() - began)}s")
            log.result = result
            log.move(BuildPhase.READY)
        await self._clean()

    @staticmethod
    def _fail(job: _Job, failure: BuildFailed) -> None:
        job.log.add(f"Build failed: {failure.message}", level="error", step=failure.step)
        job.log.reason, job.log.reason_step = failure.message, failure.step
        job.log.move(BuildPhase.ERROR)

    # -- what builds share ----------------------------------------------------------------------

    def lock_base(self, key: str) -> asyncio.Lock:
        """Builds that need the same base prepare it once; the others wait and find it cached."""
        return self._base_locks.setdefault(key, asyncio.Lock())

    async def cached(self, team_id: str, key: str) -> Layer | None:
        """The layer, if its image is still there."""
        layer = self._layers.get(team_id, key)
        if layer is None:
            return None
        if await self._images.find(layer.image) is None:
            self._layers.forget(team_id, key)
            return None
        return layer

    def keep(self, team_id: str, key: str, layer: Layer) -> None:
        self._layers.put(team_id, key, layer)

    async def boot(self, spec: BuildTemplate, image: str) -> Container:
        name = f"sandlot-{self._node_id}-build-{secrets.token_hex(8)}"
        self.container_names.add(name)
        try:
            return await self._runtime.boot(
                ContainerSpec(
                    name=name,
                    image=image,
                    template_id=spec.template_id,
                    build_id=spec.build_id,
                    cpu_count=spec.cpu_count,
                    memory_mb=spec.memory_mb,
                    disk_size_mb=spec.disk_size_mb,
                )
            )
        except BaseException:
            self.container_names.discard(name)
            raise

    async def discard(self, container: Container) -> None:
        try:
            await self._runtime.remove(container.container_id, container.name)
        except AgentError as error:
            logger.warning("A build's container could not be removed: %s", error)
        finally:
            self.container_names.discard(container.name)  # what is left, the sweep finds

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @property
    def images(self) -> Images:
        return self._images

    @property
    def office(self) -> BuildOffice:
        return self._office

    async def _clean(self) -> None:
        """Now and then, forget layers that nobody has used for long, and their images."""
        now = time.monotonic()
        if self._cleaned_at and now - self._cleaned_at < CLEANING_SECONDS:
            return
        self._cleaned_at = now
        before = self._layers.images()
        self._layers.forget_unused(since=days_ago(LAYER_DAYS))
        for image in before - self._layers.images():
            if image.startswith("sandlot/layer:"):
                await self._images.remove(image)


class _Build:
    """One build under way: at most one container, which holds the state after the last step."""

    def __init__(self, spec: BuildTemplate, log: BuildLog, builder: Builder) -> None:
        self._spec = spec
        self._log = log
        self._builder = builder
        self._container: Container | None = None
        self._image = spec.base  # the container's files, as they were last committed
        self._size_bytes = 0

    async def run(self) -> BuildResult:
        """Raises: BuildFailed."""
        work = asyncio.create_task(self._work())
        watch = asyncio.create_task(self._watch_disk())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not work.done():
                watch.result()
            return await work
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
            await asyncio.shield(self._leave())

    async def _work(self) -> BuildResult:
        context = await self._base()
        for number, step in enumerate(self._spec.steps, start=1):
            context = await self._step(number, step, context)
        return await self._finalize(context)

    async def _watch_disk(self) -> None:
        """End a build that writes more than its template may hold. Raises: BuildFailed."""
        limit = self._spec.disk_size_mb * 1024 * 1024
        while True:
            await asyncio.sleep(DISK_CHECK_SECONDS)
            container = self._container
            if container is None:
                continue
            used = await asyncio.to_thread(self._builder.runtime.disk_usage, [container])
            if used.get(container.container_id, 0) > limit:
                raise BuildFailed(
                    f"the build wrote more than its disk of {self._spec.disk_size_mb} MB holds",
                    self._at,
                )

    # -- phases ---------------------------------------------------------------------------------

    _at = "base"

    async def _base(self) -> BuildContext:
        spec, builder = self._spec, self._builder
        kind = "FROM TEMPLATE" if spec.base_is_template else "FROM"
        text = f"[base] {kind} {spec.base_name} [{spec.base_key[:16]}]"
        user_text = f"[base] DEFAULT USER user [{_user_key(spec.base_key)[:16]}]"
        async with builder.lock_base(f"{spec.team_id} {spec.base_key}"):
            layer = None
            if spec.use_base_cache or spec.base_is_template:
                layer = await builder.cached(spec.team_id, spec.base_key)
            if layer is not None:
                self._log.add(f"CACHED {text}", step="base")
                self._log.add(f"CACHED {user_text}", step="base")
            else:
                self._log.add(f"CACHED {text}" if spec.base_is_template else text, step="base")
                layer = await self._make_base(user_text)
                builder.keep(spec.team_id, spec.base_key, layer)
        self._image = layer.image
        return layer.context

    async def _make_base(self, user_text: str) -> Layer:
        spec, builder = self._spec, self._builder
        try:
            if spec.base_is_template:
                if await builder.images.find(spec.base) is None:
                    raise BuildFailed(
                        "error getting base template, you may need to rebuild it first", "base"
                    )
                context = spec.base_context
            else:
                self._log.add("Provisioning sandbox template", step="base")
                self._log.add("Creating file system and pulling Docker image", step="base")
                self._image, info = await builder.images.obtain(
                    spec.base, username=spec.registry_username, password=spec.registry_password
                )
                size = f"{info.size_bytes / 1024 / 1024:.0f} MB"
                self._log.add(f"Base Docker image size: {size}", step="base")
                context = BuildContext(env=info.env)
            bench = await self._bench()
            if not spec.base_is_template:
                async with asyncio.timeout(READY_SECONDS):
                    await provision(bench, self._lines("[base]", "base", level="debug"))
            self._log.add(user_text, step="base")
            await make_base_ready(bench)
        except ImageRefused as refusal:
            raise BuildFailed(str(refusal), "base") from refusal
        except StepFailed as failure:
            raise BuildFailed(str(failure), "base") from failure
        except TimeoutError as error:
            raise BuildFailed("the image could not be prepared in time", "base") from error
        await self._commit(f"sandlot/layer:{spec.base_key[:24]}-{secrets.token_hex(4)}")
        return Layer(image=self._image, context=replace(context, user="user"))

    async def _step(self, number: int, step: BuildStep, context: BuildContext) -> BuildContext:
        spec, builder = self._spec, self._builder
        self._at = str(number)
        prefix = f"[builder {number}/{len(spec.steps)}]"
        text = f"{prefix} {describe(step)} [{step.key[:16]}]"
        layer = await builder.cached(spec.team_id, step.key) if step.use_cache else None
        if layer is not None:
            self._log.add(f"CACHED {text}", step=self._at)
            await self._leave()
            self._image = layer.image
            return layer.context
        self._log.add(text, step=self._at)
        try:
            context, is_changed = await perform(
                step,
                bench=await self._bench(),
                context=context,
                archive=self._archive,
                on_line=self._lines(prefix, self._at),
            )
        except StepFailed as failure:
            raise BuildFailed(str(failure), self._at) from failure
        if is_changed:
            await self._commit(f"sandlot/layer:{step.key[:24]}-{secrets.token_hex(4)}")
        builder.keep(spec.team_id, step.key, Layer(image=self._image, context=context))
        return context

    async def _finalize(self, context: BuildContext) -> BuildResult:
        spec = self._spec
        self._at = "finalize"
        self._log.add(f"[finalize] Finalizing template build [{spec.build_id[:16]}]", step=self._at)
        try:
            await configure(
                await self._bench(), template_id=spec.template_id, build_id=spec.build_id
            )
        except StepFailed as failure:
            raise BuildFailed(str(failure), self._at) from failure
        await self._commit(spec.image)
        if spec.start_cmd or spec.ready_cmd not in ("", "sleep 0"):
            # In a container of the image, as every sandbox will be, and not in the builder's.
            await self._leave()
            await self._prove_ready(spec.start_context or context)
        found = await self._builder.images.find(spec.image)
        if found is None:
            raise BuildFailed(INTERNAL)
        return BuildResult(image_id=found.image_id, size_bytes=self._size_bytes, context=context)

    async def _prove_ready(self, context: BuildContext) -> None:
        """Start the start command and wait for the ready command. Raises: BuildFailed."""
        spec = self._spec
        bench = await self._bench()
        starting: asyncio.Task[None] | None = None
        if spec.start_cmd:
            self._log.add(f"Running start command: {spec.start_cmd}", step=self._at)
            starting = asyncio.create_task(self._follow_start(bench, context))
        self._log.add(f"Waiting for template to be ready: {spec.ready_cmd}", step=self._at)
        waiting = asyncio.create_task(self._wait_ready(bench, context))
        tasks = [waiting] if starting is None else [waiting, starting]
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not waiting.done():
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    if starting is not None and starting.done():
                        starting.result()
                        tasks = [waiting]
            waiting.result()
        except TimeoutError:
            raise BuildFailed(
                f"ready command failed: ready command timed out after {READY_SECONDS:g}s", self._at
            ) from None
        except (StepFailed, AgentError) as error:
            raise BuildFailed(f"ready command failed: {error}", self._at) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._log.add("Template is ready", step=self._at)

    async def _follow_start(self, bench: Workbench, context: BuildContext) -> None:
        """Raises: BuildFailed when the start command fails; ending well is fine."""
        try:
            channel = await bench.start(self._spec.start_cmd, context=context)
            end = await follow(channel, self._lines("[start]", self._at))
        except (StepFailed, AgentError) as error:
            raise BuildFailed(
                f"start command failed: error running start command: {error}", self._at
            ) from error
        if end.exit_code != 0:
            raise BuildFailed(
                f"start command failed: error running start command: {end.status}", self._at
            )

    async def _wait_ready(self, bench: Workbench, context: BuildContext) -> None:
        if not self._spec.ready_cmd:
            return
        pause_seconds = FIRST_READY_PAUSE_SECONDS
        while True:
            end = await bench.run(
                self._spec.ready_cmd,
                user=context.user,
                context=context,
                on_line=self._lines("[ready]", self._at, level="debug"),
                seconds=READY_ATTEMPT_SECONDS,
            )
            if end.exit_code == 0:
                return
            self._log.add(f"Template is not ready: {end.status}", level="debug", step=self._at)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(LAST_READY_PAUSE_SECONDS, 2 * pause_seconds)

    # -- the container --------------------------------------------------------------------------

    async def _bench(self) -> Workbench:
        """The container that holds the present state, booted if need be. Raises: BuildFailed."""
        if self._container is None:
            try:
                self._container = await self._builder.boot(self._spec, self._image)
            except AgentError as error:
                logger.warning("A build's container did not boot: %s", error)
                raise BuildFailed(
                    f"the image could not be started: {error.message}", self._at
                ) from error
        return Workbench(self._container.link)

    async def _commit(self, image: str) -> None:
        """The container's files become `image`. Raises: BuildFailed."""
        if self._container is None:
            raise BuildFailed(INTERNAL)
        try:
            added = await self._builder.runtime.commit(self._container, image)
        except AgentError as error:
            logger.warning("A build's layer could not be saved: %s", error)
            raise BuildFailed(INTERNAL) from error
        self._image = image
        self._size_bytes += added
        if added > LARGE_LAYER_BYTES:
            await self._leave()

    async def _leave(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            await self._builder.discard(container)

    async def _archive(self, files_hash: str) -> AsyncIterator[bytes]:
        """The checked archive of a COPY step. Raises: StepFailed."""
        room = Path(tempfile.mkdtemp(prefix="sandlot-archive-"))
        try:
            given, clean = room / "given", room / "clean"
            try:
                await self._builder.office.fetch_archive(self._spec.team_id, files_hash, given)
                limit = self._spec.disk_size_mb * 1024 * 1024
                await asyncio.to_thread(rewrite_archive, given, clean, max_bytes=limit)
            except BadArchive as error:
                raise StepFailed(f"failed to extract files: {error}") from error
            except AgentError as error:
                raise StepFailed(
                    f"failed to extract files: the archive is not there ({error})"
                ) from error
            given.unlink()
            with await asyncio.to_thread(clean.open, "rb") as file:
                while chunk := await asyncio.to_thread(file.read, 1024 * 1024):
                    yield chunk
        finally:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(shutil.rmtree, room)

    def _lines(self, prefix: str, step: str, *, level: str = "info") -> Callable[[str, str], None]:
        def on_line(stream: str, line: str) -> None:
            self._log.add(f"{prefix} [{stream}]: {line}", level=level, step=step)

        return on_line


def _user_key(base_key: str) -> str:
    return base_key[::-1]
