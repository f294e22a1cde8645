"""The web process: HTTP to Django on a pool of threads, websockets to Channels."""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup(set_prefix=False)

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core import signals  # noqa: E402
from django.core.exceptions import RequestAborted  # noqa: E402
from django.core.handlers.asgi import ASGIHandler, get_script_prefix  # noqa: E402
from django.db import close_old_connections  # noqa: E402
from django.http import FileResponse, HttpResponse  # noqa: E402
from django.urls import set_script_prefix  # noqa: E402

from config.paths import keep_encoded_slashes  # noqa: E402
from config.websockets import websocket_urlpatterns  # noqa: E402
from sandboxes import live  # noqa: E402
from templates_app.uploads import UPLOAD_PATH, receive_upload  # noqa: E402

RESERVED_THREADS = 4
RESERVED_PREFIXES = ("/internal/", "/health")


class BodyTooLarge(Exception):
    """The request's body passed the limit while it was read."""


class ThreadedASGIHandler(ASGIHandler):
    """Django's handler with one thread hop a request, onto threads that stay.

    Django's own gives every request a new thread, so a new database connection, and hops between
    loop and thread at each change from sync to async middleware. A kept thread keeps its
    connection, and the whole synchronous chain runs in one go.
    """

    def __init__(self) -> None:
        super(ASGIHandler, self).__init__()
        self.load_middleware(is_async=False)
        self.threads = ThreadPoolExecutor(settings.WEB_THREADS, thread_name_prefix="web")
        # Nodes must be heard, and health told, while every other thread waits for a slow node.
        self.reserved_threads = ThreadPoolExecutor(RESERVED_THREADS, thread_name_prefix="inner")
        self.has_started = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self.has_started:
            self.has_started = True
            live.serve_on(asyncio.get_running_loop())
        await self.handle(scope, receive, send)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        scope = {**scope, "path": keep_encoded_slashes(scope.get("raw_path", b""), scope["path"])}
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        except BodyTooLarge:
            refusal = HttpResponse("request too large", status=413, content_type="text/plain")
            refusal["Connection"] = "close"
            await self.send_response(refusal, send)
            return
        loop = asyncio.get_running_loop()
        # A caller that hangs up does not stop the work: a create half done must be finished or
        # undone.
        try:
            is_inner = scope["path"].startswith(RESERVED_PREFIXES)
            threads = self.reserved_threads if is_inner else self.threads
            response = await loop.run_in_executor(threads, self._respond, scope, body)
            if response.streaming and not response.is_async:
                await self._send_stream(response, receive, send)
            else:
                await self.send_response(response, send)
                if response.streaming:
                    await loop.run_in_executor(self.threads, response.close)
        finally:
            body.close()

    async def _send_stream(self, response: Any, receive: Any, send: Any) -> None:
        """Part by part, made in one thread. Django would make the whole list of parts first."""
        loop = asyncio.get_running_loop()
        headers = [
            *((name.encode("ascii"), text.encode("latin1")) for name, text in response.items()),
            *(
                (b"Set-Cookie", cookie.OutputString().encode("ascii"))
                for cookie in response.cookies.values()
            ),
        ]
        start = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        await send(start)
        hang_up = asyncio.ensure_future(receive())  # nothing else can come any more

        def make_and_send() -> None:
            try:
                for part in response.streaming_content:
                    if hang_up.done():
                        return
                    message = {"type": "http.response.body", "body": part, "more_body": True}
                    asyncio.run_coroutine_threadsafe(send(message), loop).result()
            finally:
                response.close()

        try:
            await loop.run_in_executor(self.threads, make_and_send)
            await send({"type": "http.response.body"})
        finally:
            hang_up.cancel()

    def _respond(self, scope: Any, body: Any) -> Any:
        """Runs in a thread, with that thread's database connection."""
        set_script_prefix(get_script_prefix(scope))
        signals.request_started.send(sender=self.__class__, scope=scope)
        request, refusal = self.create_request(scope, body)
        response: Any = refusal if request is None else self.get_response(request)
        response._handler_class = self.__class__
        if response.streaming:
            if isinstance(response, FileResponse):
                response.block_size = self.chunk_size
            close_old_connections()  # the stream may be made in another thread
        else:
            # Here rather than after sending: it gives this thread's connection back.
            signals.request_finished.send(sender=self.__class__)
        return response

    async def read_body(self, receive: Any) -> Any:
        body = tempfile.SpooledTemporaryFile(max_size=settings.FILE_UPLOAD_MAX_MEMORY_SIZE)  # noqa: SIM115 the caller closes it
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                body.close()
                raise RequestAborted
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > settings.MAX_BODY_BYTES:
                body.close()
                raise BodyTooLarge
            body.write(chunk)
            if not message.get("more_body", False):
                body.seek(0)
                return body


http_application = ThreadedASGIHandler()


async def route_http(scope: Any, receive: Any, send: Any) -> None:
    """Uploads of build files go round Django, which would hold each as a whole first."""
    if scope["path"].startswith(UPLOAD_PATH):
        await receive_upload(scope, receive, send)
    else:
        await http_application(scope, receive, send)


application = ProtocolTypeRouter(
    {
        "http": route_http,
        "websocket": AllowedHostsOriginValidator(
            AuthMiddlewareStack(URLRouter(websocket_urlpatterns()))
        ),
    }
)
