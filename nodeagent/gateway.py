"""The public door of a node: which sandbox and port a request is for, and who answers it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from nodeagent import edge_errors, routing
from nodeagent.edge_errors import EdgeError
from nodeagent.envd import app as envd
from nodeagent.envd.signing import is_signed_by, same_secret
from nodeagent.envd.state import state_of
from nodeagent.errors import (
    AgentError,
    Conflict,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from nodeagent.http import ClientGone, Receive, Request, Scope, Send
from nodeagent.http_protocol import GatewayProtocol
from nodeagent.proxy import FORWARDED_HEADER, Proxy, SandboxPort
from nodeagent.remote import ControlPlane, PeerGateway, Peers
from nodeagent.sandbox import LiveSandbox, Node
from nodeagent.upstream import BadUpstream, Destination
from nodeagent.wire import NodeSandboxState

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 600
DRAIN_SECONDS = 5
BACKLOG = 2048
TRAFFIC_TOKEN_HEADER = b"e2b-traffic-access-token"


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """`tls_port` is served when certificate and key are given, beside `port`.

    domain: where `api.{domain}` and, if it has a dot, `{domain}` itself mean the control plane.
    max_connections: open requests per sandbox, 0 for no limit.
    """

    host: str = "0.0.0.0"  # noqa: S104 - the public door
    port: int = 8001
    tls_port: int = 443
    tls_cert: Path | None = None
    tls_key: Path | None = None
    domain: str = ""
    control_plane_url: str = ""
    max_connections: int = 0

    @property
    def has_tls(self) -> bool:
        return self.tls_cert is not None and self.tls_key is not None


class Refused(Exception):
    """The request ends at the edge."""

    def __init__(self, error: EdgeError) -> None:
        super().__init__(error.message)
        self.error = error


class Gateway:
    """An ASGI application, and the server for it."""

    def __init__(self, node: Node, settings: GatewaySettings, peers: Peers | None = None) -> None:
        self._node = node
        self._settings = settings
        self._peers = peers
        self._proxy = Proxy()
        self._socket: socket.socket | None = None
        self._tls_socket: socket.socket | None = None
        self._control_plane: ControlPlane | None = None
        self._control_plane_hosts: set[str] = set()
        if settings.domain and settings.control_plane_url:
            self._control_plane = ControlPlane(settings.control_plane_url)
            self._control_plane_hosts = routing.control_plane_hosts(settings.domain)

    # Serving

    def bind(self) -> int:
        """Take the ports; connections wait until `serve`. Returns `port`. Raises: OSError."""
        if self._socket is None:
            self._socket = self._listen(self._settings.port)
        if self._tls_socket is None and self._settings.has_tls:
            self._tls_socket = self._listen(self._settings.tls_port)
        return _port_of(self._socket)

    @property
    def tls_port(self) -> int:
        """The port of TLS once it is bound, else 0."""
        return 0 if self._tls_socket is None else _port_of(self._tls_socket)

    def _listen(self, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        return socket.create_server((self._settings.host, port), family=family, backlog=BACKLOG)

    async def serve(self) -> None:
        """Serve until cancelled, then let answers under way finish for a moment."""
        self.bind()
        servers = [(_Server(self._config()), self._socket)]
        if self._tls_socket is not None:
            servers.append((_Server(self._config(is_tls=True)), self._tls_socket))
        serving = asyncio.gather(
            *(server.serve([listener]) for server, listener in servers if listener is not None)
        )
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            for server, _ in servers:
                server.should_exit = True
            await asyncio.wait([serving])
            raise
        finally:
            self._proxy.close()
            if self._peers is not None:
                self._peers.close()
            self._socket = self._tls_socket = None

    def _config(self, *, is_tls: bool = False) -> uvicorn.Config:
        config = uvicorn.Config(
            self,
            http=GatewayProtocol,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ssl_certfile=str(self._settings.tls_cert) if is_tls else None,
            ssl_keyfile=str(self._settings.tls_key) if is_tls else None,
        )
        config.load()
        if config.ssl is not None:
            config.ssl.set_alpn_protocols(["h2", "http/1.1"])
        return config

    # Answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            await self._answer(request)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not request.exchange.is_gone:
                raise
        except Exception:
            logger.exception("The gateway failed")
            if request.response_started:
                request.exchange.reset()
            else:
                await request.answer_text(500, "internal error")

    async def _answer(self, request: Request) -> None:
        control_plane = self._control_plane_for(request)
        if control_plane is not None:
            await self._forward(control_plane, request, "The control plane is not answering")
            return
        try:
            target = self._find_target(request)
            if target.port == envd.ENVD_PORT and routing.is_internal(request.path):
                raise Refused(edge_errors.endpoint_reserved(request.path))
            sandbox = self._node.find(target.sandbox_id)
            if sandbox is None:
                peer = await self._find_peer(target, request)
                await self._forward(peer, request, "The sandbox's node is not answering")
                return
            sandbox = await self._admit(sandbox, target.port, request)
        except Refused as refused:
            await edge_errors.answer(request, refused.error)
            return
        except routing.MissingHeader as error:
            await request.answer_text(400, error.message)
            return
        except InvalidArgument as error:
            await request.answer_json(400, {"code": 400, "message": error.message})
            return
        # From here on a kill or pause of the sandbox resets this connection.
        abort = request.exchange.reset
        sandbox.aborts.add(abort)
        try:
            if target.port == envd.ENVD_PORT:
                await envd.serve(self._node, sandbox, request)
            else:
                await self._serve_port(sandbox, target.port, request)
        finally:
            sandbox.aborts.discard(abort)

    async def _serve_port(self, sandbox: LiveSandbox, port: int, request: Request) -> None:
        await state_of(sandbox).wait_adopted()  # it may look for the sandbox's variables
        try:
            await self._proxy.serve(SandboxPort(sandbox, port), request)
        except AgentError as error:
            if request.response_started:
                request.exchange.reset()
                return
            if isinstance(error, Unavailable):
                answer = edge_errors.port_closed(sandbox.sandbox_id, port)
            elif isinstance(error, BadUpstream):
                answer = edge_errors.bad_service(sandbox.sandbox_id, port, error.message)
            else:
                logger.warning(
                    "A port could not be reached: %s",
                    error.message,
                    extra={"sandbox_id": sandbox.sandbox_id},
                )
                answer = edge_errors.bad_service(sandbox.sandbox_id, port, "it cannot be reached")
            await edge_errors.answer(request, answer)

    async def _forward(self, server: Destination, request: Request, sorry: str) -> None:
        """To another server of ours. What it cannot answer is answered with `sorry`."""
        try:
            await self._proxy.serve(server, request)
        except AgentError as error:
            if request.response_started:
                request.exchange.reset()
                return
            logger.warning("A request could not be forwarded: %s", error.message)
            await edge_errors.answer(request, edge_errors.not_answering(sorry))

    # Routing

    def _control_plane_for(self, request: Request) -> ControlPlane | None:
        host = routing.host_name(request.header(b"host") or "")
        if host not in self._control_plane_hosts or request.header(routing.SANDBOX_HEADER):
            return None
        return self._control_plane

    async def _find_peer(self, target: routing.Target, request: Request) -> PeerGateway:
        """The gateway of the node that has the sandbox. Raises: Refused."""
        if self._peers is not None and request.header(FORWARDED_HEADER) is None:
            url = await self._peers.gateway_of(target.sandbox_id)
            if url is not None:
                return PeerGateway(url)
        raise Refused(edge_errors.not_found(target.sandbox_id))

    async def _admit(self, sandbox: LiveSandbox, port: int, request: Request) -> LiveSandbox:
        """The sandbox, awake and open to this request. Raises: Refused."""
        if not _is_running(sandbox):
            sandbox = await self._wake(sandbox, port, request)
        if port != envd.ENVD_PORT:
            _check_traffic_token(sandbox, request)
        limit = self._settings.max_connections
        if limit and len(sandbox.aborts) >= limit and request.path != "/health":
            raise Refused(edge_errors.too_many_connections(sandbox.sandbox_id, limit))
        return sandbox

    def _find_target(self, request: Request) -> routing.Target:
        try:
            return routing.find_target(
                request.header(b"host") or "",
                request.header(routing.SANDBOX_HEADER),
                request.header(routing.PORT_HEADER),
            )
        except routing.MissingHeader:
            raise
        except InvalidArgument:
            # With one URL for all sandboxes a signed file link names none: its signature tells.
            if request.path != "/files" or "signature" not in request.query:
                raise
            return self._find_signed(request)

    def _find_signed(self, request: Request) -> routing.Target:
        operation = "read" if request.method == "GET" else "write"
        for sandbox in self._node.all():
            token = sandbox.spec.envd_access_token
            if token and is_signed_by(request.query, operation=operation, token=token):
                return routing.Target(sandbox.sandbox_id, envd.ENVD_PORT)
        raise Refused(EdgeError(status=401, title="Invalid Signature", message="invalid signature"))

    async def _wake(self, sandbox: LiveSandbox, port: int, request: Request) -> LiveSandbox:
        """Resume a paused sandbox for this request. Raises: Refused."""
        sandbox_id, spec = sandbox.sandbox_id, sandbox.spec
        is_paused = sandbox.state is NodeSandboxState.PAUSED
        if not spec.auto_resume or (is_paused and not sandbox.keeps_memory):
            raise Refused(edge_errors.not_found(sandbox_id))
        if not _may_wake(sandbox, port, request):
            raise Refused(edge_errors.resume_refused(sandbox_id))
        try:
            await self._node.wake(sandbox)
        except NotFound:
            raise Refused(edge_errors.not_found(sandbox_id)) from None
        except Conflict:
            raise Refused(edge_errors.in_transition(sandbox_id)) from None
        except QuotaExceeded as error:
            raise Refused(edge_errors.limit_reached(sandbox_id, error.message)) from None
        awake = self._node.find(sandbox_id)
        if awake is None or not _is_running(awake):
            raise Refused(edge_errors.not_found(sandbox_id))
        return awake


def _port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _is_running(sandbox: LiveSandbox) -> bool:
    return sandbox.is_routable and sandbox.state is NodeSandboxState.RUNNING


def _may_wake(sandbox: LiveSandbox, port: int, request: Request) -> bool:
    if port == envd.ENVD_PORT:
        header, expected = b"x-access-token", sandbox.spec.envd_access_token
    elif sandbox.spec.network.allow_public_traffic:
        return True
    else:
        header, expected = TRAFFIC_TOKEN_HEADER, sandbox.spec.traffic_access_token
    if not expected:
        return port == envd.ENVD_PORT
    return same_secret(request.header(header) or "", expected)


def _check_traffic_token(sandbox: LiveSandbox, request: Request) -> None:
    """Raises: Refused."""
    if sandbox.spec.network.allow_public_traffic:
        return
    given = request.header(TRAFFIC_TOKEN_HEADER)
    if not given:
        raise Refused(edge_errors.traffic_token_missing(sandbox.sandbox_id))
    expected = sandbox.spec.traffic_access_token
    if not expected or not same_secret(given, expected):
        raise Refused(edge_errors.traffic_token_invalid(sandbox.sandbox_id))


class _Server(uvicorn.Server):
    """Signals belong to the agent, not to one of its doors."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
