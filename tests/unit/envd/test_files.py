"""/files, /files/compose and the small endpoints."""

from __future__ import annotations

import gzip
import json
import time
from urllib.parse import quote

import pytest

from nodeagent.envd.signing import sign
from tests.unit.envd.asgi import TOKEN, make_client

HELLO = b"hello, sandbox\n" * 500
OCTETS = {"content-type": "application/octet-stream"}


def form(*parts: tuple[str, str | None, bytes]) -> tuple[dict[str, str], bytes]:
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"'
        body += f"--b0\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return {"content-type": "multipart/form-data; boundary=b0"}, body + b"--b0--\r\n"


# Downloads


async def test_download_identity() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a b.txt"] = HELLO
    answer = await client.ask("GET", "/files?path=a%20b.txt")
    assert (answer.status, answer.body) == (200, HELLO)
    assert answer.headers == {
        "vary": "Accept-Encoding",
        "content-disposition": 'inline; filename="a b.txt"',
        "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "accept-ranges": "bytes",
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(HELLO)),
    }


async def test_download_gzip() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a.bin"] = HELLO
    headers = {"accept-encoding": "gzip, deflate, br"}
    answer = await client.ask("GET", "/files?path=a.bin", headers=headers)
    assert gzip.decompress(answer.body) == HELLO
    assert len(answer.body) < len(HELLO)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_empty_file(encoding) -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/e"] = b""
    answer = await client.ask("GET", "/files?path=e", headers={"accept-encoding": encoding})
    assert answer.status == 200
    assert (gzip.decompress(answer.body) if encoding else answer.body) == b""


async def test_pseudo_files_are_read_to_their_end() -> None:
    client, _, _ = make_client()
    answer = await client.ask("GET", "/files?path=/proc/version")
    assert (answer.status, answer.body) == (200, b"Linux\n")
    assert "content-length" not in answer.headers


@pytest.mark.parametrize(
    ("header", "status", "content", "content_range"),
    [
        ("bytes=0-4", 206, b"01234", "bytes 0-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=5-2", 416, b"", "bytes */10"),
        ("lines=1-2", 416, b"", "bytes */10"),
    ],
)
async def test_ranges(header, status, content, content_range) -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a"] = b"0123456789"
    headers = {"range": header, "accept-encoding": "gzip"}
    answer = await client.ask("GET", "/files?path=a", headers=headers)
    assert (answer.status, answer.body) == (status, content)
    assert answer.headers["content-range"] == content_range


async def test_several_ranges() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a"] = b"0123456789"
    answer = await client.ask("GET", "/files?path=a", headers={"range": "bytes=0-1,8-9"})
    assert answer.status == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges; boundary=")
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert b"Content-Range: bytes 0-1/10\r\n\r\n01\r\n" in answer.body
    assert b"Content-Range: bytes 8-9/10\r\n\r\n89\r\n" in answer.body


async def test_conditional_requests() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a"] = b"0123456789"
    for headers, status in [
        ({"if-modified-since": "Tue, 14 Nov 2023 22:13:20 GMT"}, 304),
        ({"if-modified-since": "Tue, 14 Nov 2023 22:13:19 GMT"}, 200),
        ({"if-modified-since": "nonsense"}, 200),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"x"'}, 200),
        ({"if-unmodified-since": "Tue, 14 Nov 2023 22:13:19 GMT"}, 412),
        ({"range": "bytes=0-1", "if-range": "Tue, 14 Nov 2023 22:13:20 GMT"}, 206),
        ({"range": "bytes=0-1", "if-range": "Tue, 14 Nov 2023 22:13:19 GMT"}, 200),
    ]:
        answer = await client.ask("GET", "/files?path=a", headers=headers)
        assert answer.status == status, headers


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("nope", 404, "path '/home/user/nope' does not exist"),
        ("/tmp", 400, "path '/tmp' is a directory"),
        (
            "~ghost/x",
            400,
            "error expanding and resolving path '~ghost/x': cannot expand user-specific home dir",
        ),
    ],
)
async def test_download_errors(path, status, message) -> None:
    client, _, _ = make_client()
    answer = await client.ask("GET", f"/files?path={path}")
    assert (answer.status, answer.json()) == (status, {"code": status, "message": message})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_unknown_and_missing_user() -> None:
    client, _, _ = make_client()
    message = "error looking up user 'ghost': user: unknown user ghost"
    answer = await client.ask("GET", "/files?path=a&username=ghost")
    assert (answer.status, answer.json()) == (401, {"code": 401, "message": message})
    answer = await client.ask("POST", "/files?path=a&username=ghost", headers=OCTETS)
    assert (answer.status, answer.json()) == (401, {"code": 401, "message": message})
    client, _, _ = make_client(default_user="")
    assert (await client.ask("GET", "/files?path=a")).status == 400


async def test_encodings_nobody_can_send() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a"] = b"0"
    headers = {"accept-encoding": "identity;q=0, gzip;q=0"}
    answer = await client.ask("GET", "/files?path=a", headers=headers)
    assert (answer.status, answer.json()["message"]) == (
        406,
        "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]",
    )
    headers = {"accept-encoding": "identity;q=0", "range": "bytes=0-"}
    answer = await client.ask("GET", "/files?path=a", headers=headers)
    assert (answer.status, answer.json()["message"]) == (
        406,
        "identity encoding not acceptable for Range or conditional request",
    )


# Uploads


async def test_octet_stream_upload() -> None:
    client, sandbox, _ = make_client()
    answer = await client.ask(
        "POST", "/files?path=d/a.bin", headers=OCTETS, body=[b"ab", b"", b"c"]
    )
    assert answer.status == 200
    assert answer.json() == [{"path": "/home/user/d/a.bin", "name": "a.bin", "type": "file"}]
    assert sandbox.link.files["/home/user/d/a.bin"] == b"abc"


async def test_octet_stream_needs_a_path() -> None:
    client, _, _ = make_client()
    answer = await client.ask("POST", "/files", headers=OCTETS, body=b"x")
    assert (answer.status, answer.json()["message"]) == (
        400,
        "path query parameter is required for raw body upload",
    )


async def test_multipart_upload_of_several_files_in_order() -> None:
    client, sandbox, _ = make_client()
    headers, body = form(
        ("file", "b/ü 1.txt", b"one"),
        ("other", "ignored", b"zzz"),
        ("file", "/tmp/two", b""),
    )
    for size in (len(body), 7, 1):  # however the body is cut
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        answer = await client.ask("POST", "/files", headers=headers, body=pieces)
        assert answer.json() == [
            {"path": "/home/user/b/ü 1.txt", "name": "ü 1.txt", "type": "file"},
            {"path": "/tmp/two", "name": "two", "type": "file"},
        ]
        assert sandbox.link.files == {"/home/user/b/ü 1.txt": b"one", "/tmp/two": b""}


async def test_multipart_with_a_query_path_needs_no_filename() -> None:
    client, _sandbox, _ = make_client()
    headers, body = form(("file", None, b"text"))
    answer = await client.ask("POST", "/files?path=x.txt", headers=headers, body=body)
    assert answer.json()[0]["path"] == "/home/user/x.txt"
    answer = await client.ask("POST", "/files", headers=headers, body=body)
    assert answer.status == 400


async def test_multipart_without_a_file_stores_nothing() -> None:
    client, sandbox, _ = make_client()
    headers, body = form(("text", None, b"x"))
    answer = await client.ask("POST", "/files", headers=headers, body=body)
    assert (answer.status, answer.body, sandbox.link.files) == (200, b"[]", {})


async def test_the_same_path_twice_is_refused_and_keeps_the_first() -> None:
    client, sandbox, _ = make_client()
    headers, body = form(("file", "a", b"first"), ("file", "/home/user/x/../a", b"second"))
    answer = await client.ask("POST", "/files", headers=headers, body=body)
    assert answer.status == 400
    assert answer.json()["message"].startswith(
        "you cannot upload multiple files to the same path '/home/user/a' in one upload request,"
        " only the first specified file was uploaded"
    )
    assert sandbox.link.files == {"/home/user/a": b"first"}


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", b"", 500),
        ("multipart/form-data; boundary=b0", b"garbage", 500),
        (
            "multipart/form-data; boundary=b0",
            b'--b0\r\nContent-Disposition: form-data; name="fi',
            500,
        ),
        ("text/plain", b"x", 400),
        ("", b"x", 400),
    ],
)
async def test_bad_bodies(content_type, body, status) -> None:
    client, sandbox, _ = make_client()
    headers = {"content-type": content_type}
    answer = await client.ask("POST", "/files", headers=headers, body=body)
    assert answer.status == status
    assert sandbox.link.files == {}
    assert answer.json()["message"].split(":")[0] in (
        "error parsing multipart form",
        "error reading form",
        "unsupported content type",
    )


async def test_directory_as_target() -> None:
    client, _, _ = make_client()
    answer = await client.ask("POST", "/files?path=/tmp", headers=OCTETS, body=b"x")
    assert (answer.status, answer.json()["message"]) == (400, "path is a directory: /tmp")


async def test_gzip_upload_in_pieces_and_members() -> None:
    client, sandbox, _ = make_client()
    packed = gzip.compress(HELLO) + gzip.compress(b"end")
    headers = {**OCTETS, "content-encoding": "gzip"}
    pieces = [packed[at : at + 10] for at in range(0, len(packed), 10)]
    answer = await client.ask("POST", "/files?path=a", headers=headers, body=pieces)
    assert answer.status == 200
    assert sandbox.link.files["/home/user/a"] == HELLO + b"end"


async def test_gzip_of_a_whole_form() -> None:
    client, sandbox, _ = make_client()
    headers, body = form(("file", "a", HELLO))
    headers["content-encoding"] = "gzip"
    await client.ask("POST", "/files", headers=headers, body=gzip.compress(body))
    assert sandbox.link.files == {"/home/user/a": HELLO}


@pytest.mark.parametrize("body", [gzip.compress(HELLO)[:-9], b"not gzip at all", b"\x1f\x8b"])
async def test_broken_gzip(body) -> None:
    client, _, _ = make_client()
    headers = {**OCTETS, "content-encoding": "gzip"}
    answer = await client.ask("POST", "/files?path=a", headers=headers, body=body)
    assert answer.status == 400
    assert answer.json()["message"].startswith("error decompressing request body: ")


async def test_unknown_content_encoding() -> None:
    client, _, _ = make_client()
    headers = {**OCTETS, "content-encoding": "br"}
    answer = await client.ask("POST", "/files?path=a", headers=headers, body=b"x")
    assert (answer.status, answer.json()["message"]) == (
        400,
        "error decompressing request body: unsupported Content-Encoding: br, supported: [gzip]",
    )


async def test_metadata_is_stored_and_returned() -> None:
    client, _, _ = make_client()
    headers = {**OCTETS, "X-Metadata-Author": "me", "X-Metadata-n": "1"}
    answer = await client.ask("POST", "/files?path=a", headers=headers, body=b"x")
    assert answer.json()[0]["metadata"] == {"author": "me", "n": "1"}
    answer = await client.ask("POST", "/files?path=a", headers=OCTETS, body=b"x")
    assert "metadata" not in answer.json()[0]


@pytest.mark.parametrize(
    "header",
    [
        {"X-Metadata-": "v"},
        {"X-Metadata-" + "k" * 247: "v"},
        {"X-Metadata-k": "caf\xe9"},
        {"X-Metadata-k": "tab\there"},
        {"X-Metadata-k": "v" * 4090},
    ],
)
async def test_bad_metadata_writes_nothing(header) -> None:
    client, sandbox, _ = make_client()
    answer = await client.ask("POST", "/files?path=a", headers={**OCTETS, **header}, body=b"x")
    assert answer.status == 400
    assert answer.json()["message"].startswith("invalid metadata: ")
    assert sandbox.link.files == {}


async def test_a_full_disk_is_507() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.is_full = True
    answer = await client.ask("POST", "/files?path=a", headers=OCTETS, body=b"xyz")
    assert (answer.status, answer.json()) == (
        507,
        {"code": 507, "message": "not enough disk space available"},
    )
    headers = {**OCTETS, "content-length": "3"}
    answer = await client.ask("POST", "/files?path=a", headers=headers, body=b"xyz")
    message = "attempted to write 3 bytes: not enough disk space available"
    assert answer.json()["message"] == message


# Access


def signed(
    path: str, operation: str, *, user: str | None = None, expires: int | None = None
) -> str:
    signature = sign(
        path=path, operation=operation, username=user or "", token=TOKEN, expiration=expires
    )
    query = f"/files?path={quote(path)}&signature={quote(signature, safe='')}"
    if user is not None:
        query += f"&username={user}"
    if expires is not None:
        query += f"&signature_expiration={expires}"
    return query


async def test_signed_urls() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/root/a b"] = b"1"
    later, earlier = int(time.time()) + 100, int(time.time()) - 100
    for expires in (None, later):
        url = signed("a b", "read", user="root", expires=expires)
        answer = await client.ask("GET", url, token=None)
        assert (answer.status, answer.body) == (200, b"1")
    headers, body = form(("file", None, b"2"))
    url = signed("up", "write", expires=later)
    answer = await client.ask("POST", url, token=None, headers=headers, body=body)
    assert answer.json() == [{"path": "/home/user/up", "name": "up", "type": "file"}]
    for url, message in [
        ("/files?path=a", "missing signature query parameter"),
        (signed("a b", "read", user="root") + "x", "invalid signature"),
        (signed("a b", "write", user="root"), "invalid signature"),
        (signed("a b", "read", user="root", expires=earlier), "signature is already expired"),
        (signed("a b", "read") + f"&signature_expiration={later}", "invalid signature"),
    ]:
        answer = await client.ask("GET", url, token=None)
        assert (answer.status, answer.json()) == (401, {"code": 401, "message": message})
    answer = await client.ask("GET", url, token="wrong")
    assert answer.json()["message"] == "access token present in header but does not match"
    url = signed("a b", "read") + "&signature_expiration=soon"
    assert (await client.ask("GET", url, token=None)).status == 400


async def test_signed_url_finds_its_sandbox_without_any_routing() -> None:
    client, sandbox, node = make_client()
    node.add("other", envd_access_token="o" * 64)
    sandbox.link.files["/home/user/a"] = b"1"
    client.sandbox = None
    answer = await client.ask("GET", signed("a", "read"), token=None)
    assert (answer.status, answer.body) == (200, b"1")
    answer = await client.ask("GET", signed("a", "write"), token=None)
    assert (answer.status, answer.json()["message"]) == (401, "invalid signature")


async def test_the_token_guards_everything_else() -> None:
    client, _, _ = make_client()
    message = (
        "unauthorized access, please provide a valid access token or method signing if supported"
    )
    for method, path in [
        ("GET", "/envs"),
        ("GET", "/metrics"),
        ("POST", "/files/compose"),
        ("POST", "/process.Process/List"),
        ("POST", "/process.Process/Start"),
        ("POST", "/filesystem.Filesystem/Stat"),
        ("POST", "/health"),
        ("GET", "/nothing"),
    ]:
        for token in (None, "", "wrong", TOKEN[:-1], "é"):
            answer = await client.ask(method, path, token=token)
            assert answer.status == 401, path
            assert answer.json() == {"code": 401, "message": message}
            assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (await client.ask("GET", "/health", token=None)).status == 204


async def test_an_open_sandbox_needs_no_token() -> None:
    client, sandbox, _ = make_client(envd_access_token=None)
    sandbox.link.files["/home/user/a"] = b"1"
    assert (await client.ask("GET", "/files?path=a", token=None)).status == 200
    assert (await client.ask("GET", "/envs", token="any")).status == 200


# The rest


async def test_health_envs_metrics() -> None:
    client, _, _ = make_client(env_vars={"A": "1"})
    answer = await client.ask("GET", "/health")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers == {"cache-control": "no-store"}
    answer = await client.ask("GET", "/envs")
    assert answer.json()["A"] == "1"
    answer = await client.ask("GET", "/metrics")
    assert answer.json() == {
        "ts": 1700000000,
        "cpu_count": 2,
        "cpu_used_pct": 12.35,
        "mem_total": 512 << 20,
        "mem_used": 64 << 20,
        "mem_cache": 1 << 20,
        "mem_total_mib": 512,
        "mem_used_mib": 64,
        "disk_used": 1 << 30,
        "disk_total": 10 << 30,
    }


async def test_unknown_paths_and_methods() -> None:
    client, _, _ = make_client()
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("POST", "/process.Process/Nothing", 404),
        ("GET", "/process.Process/List", 405),
        ("DELETE", "/files", 405),
        ("POST", "/health", 405),
        ("PUT", "/files/compose", 405),
        ("OPTIONS", "/files", 405),
    ]:
        assert (await client.ask(method, path)).status == status, path


async def test_cors() -> None:
    client, _, _ = make_client()
    preflight = {
        "origin": "https://app.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "connect-protocol-version,x-access-token",
    }
    answer = await client.ask("OPTIONS", "/process.Process/List", headers=preflight, token=None)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-max-age"] == "7200"
    assert (
        answer.headers["access-control-allow-headers"]
        == preflight["access-control-request-headers"]
    )
    origin = {"origin": "https://app.test"}
    answer = await client.ask("GET", "/envs", headers=origin, token=None)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, "*")
    assert "Grpc-Status" in answer.headers["access-control-expose-headers"]


async def test_compose() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files |= {"/home/user/1": b"a", "/home/user/2": b"b"}
    wanted = {"source_paths": ["1", "2"], "destination": "/tmp/all"}
    body = json.dumps(wanted).encode()
    answer = await client.ask("POST", "/files/compose", body=body)
    assert answer.json() == {"path": "/tmp/all", "name": "all", "type": "file"}
    assert sandbox.link.files == {"/tmp/all": b"ab"}
    answer = await client.ask("POST", "/files/compose", body=body)
    assert (answer.status, answer.json()["message"]) == (
        404,
        "source file not found: /home/user/1",
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "invalid request body: "),
        (b"[]", "invalid request body: "),
        (b'{"source_paths":[1],"destination":"x"}', "invalid request body: "),
        (b'{"source_paths":[],"destination":"x"}', "source_paths must not be empty"),
        (b'{"source_paths":["a"]}', "destination is required"),
    ],
)
async def test_compose_bad_input(body, message) -> None:
    client, _, _ = make_client()
    answer = await client.ask("POST", "/files/compose", body=body)
    assert answer.status == 400
    assert answer.json()["message"].startswith(message)
