"""Contexts: sessions of one language each, where runs take turns and dead kernels come back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from interpreter.kernels.base import Kernel, KernelDied, KernelFailed
from interpreter.languages import WARM_LANGUAGES, make_kernel, normalise
from interpreter.outputs import END, Count, Failure, Output

log = logging.getLogger(__name__)

DEFAULT_CWD = "/home/user"

# After an interrupt: again, again, and then the kernel goes. Seconds between.
_INTERRUPT_STEPS = (1.0, 1.0, 2.0)

SandboxEnv = Callable[[str | None], Awaitable[dict[str, str]]]
"""The sandbox-wide variables, asked for with the access token of a request."""


class ContextNotFound(Exception):
    def __init__(self, context_id: str) -> None:
        super().__init__(f"Context {context_id} not found")


@dataclass(eq=False)
class Run:
    """One execution: its outputs arrive in `outputs`, the last one is END. Nobody need listen.

    done: END is out; the clean-up after it may still be under way.
    """

    code: str
    env_vars: dict[str, str]
    access_token: str | None
    outputs: asyncio.Queue[Output] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None
    has_turn: bool = False
    is_abandoned: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)
    ended_by: Failure | None = None

    def put(self, output: Output) -> None:
        if not self.done.is_set():
            self.outputs.put_nowait(output)

    def finish(self, failure: Failure | None = None) -> None:
        if failure is not None:
            self.put(failure)
        self.put(END)
        self.done.set()


RESTARTING = Failure("ContextRestarting", "Context was restarted")
CLOSED = Failure(
    "UnexpectedEndOfExecution",
    "Connection to the execution was closed before the execution was finished",
)


class Context:
    def __init__(
        self, *, context_id: str, language: str, cwd: str, sandbox_env: SandboxEnv
    ) -> None:
        self.context_id = context_id
        self.language = language
        self.cwd = cwd
        self._sandbox_env = sandbox_env
        self._env: dict[str, str] | None = None  # sandbox-wide variables, once known
        self._kernel: Kernel | None = None
        self._turn = asyncio.Lock()
        self._count = 0
        self._current: Run | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def open(self) -> None:
        """Raises: KernelFailed."""
        async with self._turn:
            await self._live_kernel()

    def submit(self, code: str, env_vars: dict[str, str], access_token: str | None) -> Run:
        run = Run(code, env_vars, access_token)
        run.task = self._spawn(self._perform(run))
        return run

    async def abandon(self, run: Run) -> None:
        """Nobody listens any more: leave the queue, or stop the run. Returns at once."""
        if run.done.is_set():
            return
        run.is_abandoned = True
        if not run.has_turn:
            if run.task is not None:
                run.task.cancel()
            return
        self._spawn(self._stop(run))

    async def restart(self) -> None:
        """A fresh session of the same id, language and directory. Raises: KernelFailed."""
        await self._drop_kernel(CLOSED)
        async with self._turn:
            await self._live_kernel()

    async def close(self) -> None:
        self._is_closed = True
        await self._drop_kernel(CLOSED)
        for task in list(self._tasks):
            task.cancel()

    # --- one run

    async def _perform(self, run: Run) -> None:
        try:
            async with self._turn:
                run.has_turn = True
                self._current = run
                try:
                    await self._run_in_turn(run)
                finally:
                    self._current = None
        except asyncio.CancelledError:
            run.finish(CLOSED)
            raise
        except Exception:
            log.exception("a run failed inside the service")
            run.finish(Failure("InternalError", "The code interpreter failed; run the code again"))

    async def _run_in_turn(self, run: Run) -> None:
        try:
            kernel = await self._live_kernel()
            await self._apply_env(kernel, run)
        except KernelDied:
            run.finish(run.ended_by or RESTARTING)
            return
        except KernelFailed as error:
            run.finish(Failure("KernelError", str(error)))
            return
        if run.is_abandoned:
            run.finish(CLOSED)
            return
        self._count += 1
        run.put(Count(self._count))
        failure = None
        try:
            async for output in kernel.run(run.code):
                run.put(output)
        except KernelDied:
            failure = run.ended_by or RESTARTING
        # The end goes out before the clean-up, which the next run waits for.
        run.finish(failure)
        if run.env_vars and failure is None:
            await self._undo_env(kernel, run)

    async def _apply_env(self, kernel: Kernel, run: Run) -> None:
        sandbox_wide = self._env
        if sandbox_wide is None:
            sandbox_wide = await self._sandbox_env(run.access_token)
            if sandbox_wide:
                await kernel.set_env(sandbox_wide, [])
            self._env = sandbox_wide
        if run.env_vars:
            await kernel.set_env(run.env_vars, [])

    async def _undo_env(self, kernel: Kernel, run: Run) -> None:
        sandbox_wide = self._env or {}
        kept = {name: sandbox_wide[name] for name in run.env_vars if name in sandbox_wide}
        remove = [name for name in run.env_vars if name not in sandbox_wide]
        for _ in range(2):  # a late Ctrl-C may have hit the first try
            try:
                await kernel.set_env(kept, remove)
            except KernelDied:
                return
            except KernelFailed as error:
                log.warning("cannot restore the environment: %s", error)
            else:
                return

    async def _stop(self, run: Run) -> None:
        for step_seconds in _INTERRUPT_STEPS:
            if self._kernel is None:
                return
            self._kernel.interrupt()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step_seconds):
                    await run.done.wait()
                    return
        if self._kernel is not None:
            log.warning("a %s run ignored Ctrl-C; its kernel is restarted", self.language)
            await self._kernel.kill()

    # --- the kernel

    async def _live_kernel(self) -> Kernel:
        """The kernel, started if there is none. The caller has the turn. Raises: KernelFailed."""
        if self._is_closed:
            raise KernelFailed("the context is closed")
        if self._kernel is not None and not self._kernel.died.is_set():
            return self._kernel
        if self._kernel is not None:
            await self._kernel.kill()  # reap what is left of it
        if not os.path.isdir(self.cwd):  # noqa: ASYNC240, PTH112 one stat of a local path
            raise KernelFailed(f"directory '{self.cwd}' does not exist")
        kernel = make_kernel(self.language, self.cwd)
        await kernel.start()
        self._kernel, self._count, self._env = kernel, 0, None
        self._spawn(self._revive(kernel))
        return kernel

    async def _revive(self, kernel: Kernel) -> None:
        """Have a new kernel ready soon after this one has died."""
        await kernel.died.wait()
        async with self._turn:
            if self._kernel is kernel and not self._is_closed:
                with contextlib.suppress(KernelFailed):
                    await self._live_kernel()

    async def _drop_kernel(self, failure: Failure) -> None:
        if self._current is not None:
            self._current.ended_by = failure
        if self._kernel is not None:
            await self._kernel.kill()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Contexts:
    """All contexts, in the order of their creation, and which of them is a language's default."""

    def __init__(self, sandbox_env: SandboxEnv) -> None:
        self._sandbox_env = sandbox_env
        self._all: dict[str, Context] = {}
        self._defaults: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def open_defaults(self) -> None:
        await asyncio.gather(*(self.default(language) for language in WARM_LANGUAGES))
        ordered = [self._defaults[language] for language in WARM_LANGUAGES]
        self._all = {context_id: self._all[context_id] for context_id in ordered}

    def list(self) -> list[Context]:
        return list(self._all.values())

    def get(self, context_id: str) -> Context:
        """Raises: ContextNotFound."""
        try:
            return self._all[context_id]
        except KeyError:
            raise ContextNotFound(context_id) from None

    async def create(self, language: str | None, cwd: str | None) -> Context:
        """Raises: KernelFailed."""
        context = Context(
            context_id=str(uuid.uuid4()),
            language=normalise(language),
            cwd=cwd or DEFAULT_CWD,
            sandbox_env=self._sandbox_env,
        )
        await context.open()
        self._all[context.context_id] = context
        return context

    async def default(self, language: str | None) -> Context:
        """The language's default context, made on first use. Raises: KernelFailed."""
        name = normalise(language)
        async with self._locks.setdefault(name, asyncio.Lock()):
            context = self._all.get(self._defaults.get(name, ""))
            if context is None:
                context = await self.create(name, None)
                self._defaults[name] = context.context_id
            return context

    async def remove(self, context_id: str) -> None:
        """Raises: ContextNotFound."""
        context = self.get(context_id)
        del self._all[context_id]
        await context.close()

    async def close(self) -> None:
        for context in self.list():
            await context.close()
