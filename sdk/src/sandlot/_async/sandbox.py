from __future__ import annotations

import uuid
from collections.abc import Mapping

from sandlot import _wire
from sandlot._async.commands import AsyncCommands
from sandlot._async.files import AsyncFiles
from sandlot._async.transport import AsyncTransport
from sandlot._errors import NotFound
from sandlot._models import SandboxHandle, SandboxInfo


class AsyncSandbox:
    """A running sandbox. As a context manager it is killed at the end of the block."""

    def __init__(self, transport: AsyncTransport, handle: SandboxHandle) -> None:
        self._transport = transport
        self._handle = handle
        self.commands = AsyncCommands(transport, handle)
        self.files = AsyncFiles(transport, handle)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sandbox_id!r})"

    @property
    def sandbox_id(self) -> str:
        return self._handle.sandbox_id

    @property
    def template_id(self) -> str:
        return self._handle.template_id

    @property
    def traffic_token(self) -> str | None:
        """What a request to a private port carries in its `e2b-traffic-access-token` header."""
        return self._handle.traffic_token

    @classmethod
    async def create(
        cls,
        template: str = "base",
        *,
        timeout_seconds: int | None = None,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        allow_internet_access: bool | None = None,
        api_key: str | None = None,
        api_url: str | None = None,
        sandbox_url: str | None = None,
        domain: str | None = None,
        request_timeout_seconds: float | None = None,
    ) -> AsyncSandbox:
        """Start a sandbox of a template; it ends `timeout_seconds` (server default: 300) later.

        Raises: NotFound (the template), QuotaExceeded, InvalidArgument, Unauthenticated,
        Unavailable.
        """
        config = _wire.Config.resolve(
            api_key=api_key,
            api_url=api_url,
            sandbox_url=sandbox_url,
            domain=domain,
            request_timeout_seconds=request_timeout_seconds,
        )
        request = _wire.create_sandbox(
            config,
            template=template,
            timeout_seconds=timeout_seconds,
            metadata=metadata,
            envs=envs,
            allow_internet_access=allow_internet_access,
            idempotency_key=str(uuid.uuid4()),
        )
        return await cls._open(config, request)

    @classmethod
    async def connect(
        cls,
        sandbox_id: str,
        *,
        timeout_seconds: int | None = None,
        api_key: str | None = None,
        api_url: str | None = None,
        sandbox_url: str | None = None,
        domain: str | None = None,
        request_timeout_seconds: float | None = None,
    ) -> AsyncSandbox:
        """Take up a sandbox by id, resuming it when paused; its life is extended, never shortened.

        Raises: NotFound, QuotaExceeded, Unauthenticated, Unavailable.
        """
        config = _wire.Config.resolve(
            api_key=api_key,
            api_url=api_url,
            sandbox_url=sandbox_url,
            domain=domain,
            request_timeout_seconds=request_timeout_seconds,
        )
        request = _wire.connect_sandbox(config, sandbox_id, timeout_seconds=timeout_seconds)
        return await cls._open(config, request)

    @classmethod
    async def _open(cls, config: _wire.Config, request: _wire.Request) -> AsyncSandbox:
        transport = AsyncTransport(config)
        try:
            handle = _wire.parse_handle(await transport.send(request))
        except BaseException:
            await transport.aclose()
            raise
        return cls(transport, handle)

    async def info(self) -> SandboxInfo:
        """Raises: NotFound when it has ended."""
        request = _wire.get_sandbox(self._transport.config, self.sandbox_id)
        return _wire.parse_info(await self._transport.send(request))

    async def is_running(self) -> bool:
        return await self.commands.is_sandbox_running()

    async def set_timeout(self, timeout_seconds: int) -> None:
        """Make it end `timeout_seconds` from now, sooner or later than before."""
        request = _wire.set_timeout(self._transport.config, self.sandbox_id, timeout_seconds)
        await self._transport.send(request)

    def get_host(self, port: int) -> str:
        """The public host of a port, without a scheme."""
        return self._transport.config.host(self._handle, port)

    async def kill(self) -> bool:
        """End it now; False when it had ended already."""
        request = _wire.kill_sandbox(self._transport.config, self.sandbox_id)
        try:
            await self._transport.send(request)
        except NotFound:
            return False
        return True

    async def close(self) -> None:
        """Let go of the connections; the sandbox lives on until its deadline."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.kill()
        finally:
            await self.close()
