"""A small httpbin on port 8080: says what it was asked, in the JSON shape of go-httpbin.

Header and query values are lists, because both may come more than once.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT = 8080
MAX_BYTES = 100 * 1024
MAX_DELAY_SECONDS = 10.0
MAX_LINES = 100


class Server(ThreadingHTTPServer):
    """On IPv4 and IPv6."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def serve(self) -> None:
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with contextlib.suppress(ValueError):
            match parts:
                case [""]:
                    return self.answer({"name": "httpbin"})
                case ["headers"]:
                    return self.answer({"headers": self.all_headers()})
                case ["ip"]:
                    return self.answer({"origin": self.client_address[0]})
                case ["user-agent"]:
                    return self.answer({"user-agent": self.headers.get("User-Agent", "")})
                case ["get" | "post" | "put" | "patch" | "delete" as method]:
                    if method.upper() != self.command and not (
                        method == "get" and self.command == "HEAD"
                    ):
                        return self.answer({"error": "method not allowed"}, status=405)
                    return self.answer(self.echo(url.query, body))
                case ["anything", *_]:
                    return self.answer(self.echo(url.query, body))
                case ["status", code]:
                    return self.answer(None, status=int(code))
                case ["delay", seconds]:
                    time.sleep(min(MAX_DELAY_SECONDS, max(0.0, float(seconds))))
                    return self.answer(self.echo(url.query, body))
                case ["bytes", count]:
                    content = os.urandom(min(MAX_BYTES, max(0, int(count))))
                    return self.send(content, "application/octet-stream")
                case ["stream", count]:
                    return self.stream(min(MAX_LINES, max(0, int(count))), url.query)
                case ["uuid"]:
                    return self.answer({"uuid": os.urandom(16).hex()})
        return self.answer({"error": "not found"}, status=404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = serve

    def all_headers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            found.setdefault("-".join(word.capitalize() for word in name.split("-")), []).append(
                value
            )
        return found

    def echo(self, query: str, body: bytes) -> dict[str, Any]:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            kind = self.headers.get("Content-Type", "application/octet-stream")
            text = f"data:{kind};base64,{base64.b64encode(body).decode()}"
        parsed: Any = None
        with contextlib.suppress(ValueError):
            parsed = json.loads(body)
        is_form = "form-urlencoded" in self.headers.get("Content-Type", "")
        host = self.headers.get("Host", "localhost")
        return {
            "args": parse_qs(query, keep_blank_values=True),
            "data": "" if is_form else text,
            "files": {},
            "form": parse_qs(text, keep_blank_values=True) if is_form else {},
            "headers": self.all_headers(),
            "json": parsed,
            "method": self.command,
            "origin": self.client_address[0],
            "url": f"http://{host}{self.path}",
        }

    def answer(self, value: Any, *, status: int = 200) -> None:
        if not 200 <= status <= 599:
            value, status = {"error": "invalid status code"}, 400
        content = b"" if value is None else json.dumps(value, indent=2).encode() + b"\n"
        self.send(content, "application/json; charset=utf-8", status=status)

    def send(self, content: bytes, kind: str, *, status: int = 200) -> None:
        has_body = status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        self.send_response(status)
        self.send_header("Access-Control-Allow-Origin", "*")
        if has_body:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(content)

    def stream(self, count: int, query: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(count):
            line = json.dumps({"id": number, **self.echo(query, b"")}).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    Server(("::", PORT), Handler).serve_forever()
