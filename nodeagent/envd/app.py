"""envd of one sandbox: CORS, then the access token, then the route. Serves port 49983."""

from __future__ import annotations

import logging

from nodeagent.envd import connect, files, filesystem, process, signing
from nodeagent.envd.state import state_of
from nodeagent.errors import AgentError
from nodeagent.http import NO_STORE, ClientGone, Request
from nodeagent.sandbox import LiveSandbox, Node

logger = logging.getLogger(__name__)

ENVD_PORT = 49983
CORS_METHODS = {"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"}
EXPOSED = (
    b"Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, "
    b"X-Content-Type-Options"
)
# Their own rules (signatures), or none.
WITHOUT_TOKEN = {("GET", "/health"), ("GET", "/files"), ("POST", "/files")}
UNAUTHORIZED = (
    "unauthorized access, please provide a valid access token or method signing if supported"
)
METHODS = {**process.methods(), **filesystem.methods()}


async def serve(node: Node, sandbox: LiveSandbox, request: Request) -> None:
    """Raises: ClientGone."""
    if await _answer_cors(request):
        return
    if not _has_token(sandbox, request):
        await request.answer_error(401, UNAUTHORIZED)
        return
    state = state_of(sandbox)
    if state.adoption is not None and not state.adoption.done() and request.path != "/health":
        await state.wait_adopted()
    method = METHODS.get(request.path)
    if method is not None:
        await connect.serve(node, sandbox, request, method)
        return
    try:
        await _serve_plain(node, sandbox, request)
    except AgentError as error:
        if request.response_started:
            # Too late for a status: the client must see that the answer is not whole.
            request.exchange.reset()
            return
        await request.answer_error(files.status_of(error), error.message)
    except ClientGone:
        raise
    except Exception:
        logger.exception("A request failed", extra={"sandbox_id": sandbox.sandbox_id})
        if request.response_started:
            request.exchange.reset()
            return
        await request.answer_error(500, "internal error")


async def _answer_cors(request: Request) -> bool:
    """Add what browsers ask for; True when the request was only a preflight."""
    origin = request.header(b"origin")
    wanted = request.header(b"access-control-request-method")
    if request.method == "OPTIONS" and wanted is not None:
        vary = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
        headers = [(b"vary", vary)]
        if origin is not None and wanted.upper() in CORS_METHODS:
            headers += [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-allow-methods", wanted.upper().encode("latin-1")),
                (b"access-control-max-age", b"7200"),
            ]
            if names := request.header(b"access-control-request-headers"):
                headers.append((b"access-control-allow-headers", names.encode("latin-1")))
        await request.answer(204, headers)
        return True
    if origin is not None:
        request.extra_headers = [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"Origin"),
        ]
    return False


def _has_token(sandbox: LiveSandbox, request: Request) -> bool:
    token = sandbox.spec.envd_access_token
    if not token or (request.method, request.path) in WITHOUT_TOKEN:
        return True
    given = request.header(b"x-access-token")
    return given is not None and signing.same_secret(given, token)


async def _serve_plain(node: Node, sandbox: LiveSandbox, request: Request) -> None:
    match request.path, request.method:
        case "/health", "GET":
            await request.answer(204, NO_STORE)
        case "/envs", "GET":
            await request.answer_json(200, sandbox.env(), NO_STORE)
        case "/metrics", "GET":
            await _metrics(node, sandbox, request)
        case "/files", "GET":
            await files.get_file(sandbox, request)
        case "/files", "POST":
            await files.post_files(sandbox, request)
        case "/files/compose", "POST":
            await files.compose(sandbox, request)
        case "/health" | "/envs" | "/metrics", _:
            await _refuse_method(request, b"GET")
        case "/files", _:
            await _refuse_method(request, b"GET, POST")
        case "/files/compose", _:
            await _refuse_method(request, b"POST")
        case _:
            await request.answer_text(404, "404 page not found\n")


async def _refuse_method(request: Request, allowed: bytes) -> None:
    await request.answer(405, [(b"allow", allowed)])


async def _metrics(node: Node, sandbox: LiveSandbox, request: Request) -> None:
    sample = await node.sample(sandbox)
    mib = 1024 * 1024
    value = {
        "ts": int(sample.at),
        "cpu_count": sample.cpu_count,
        "cpu_used_pct": round(sample.cpu_used_pct, 2),
        "mem_total": sample.mem_total,
        "mem_used": sample.mem_used,
        "mem_cache": sample.mem_cache,
        "mem_total_mib": sample.mem_total // mib,
        "mem_used_mib": sample.mem_used // mib,
        "disk_used": sample.disk_used,
        "disk_total": sample.disk_total,
    }
    await request.answer_json(200, value, NO_STORE)
