"""Sends `_wire` requests with httpx: pooled connections, one deadline per call, bounded retries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from sandlot import _wire
from sandlot._errors import RequestTimeout


class Transport:
    def __init__(self, config: _wire.Config) -> None:
        self.config = config
        self._http = httpx.Client(follow_redirects=False)

    def send(
        self, request: _wire.Request, *, timeout_seconds: float | None = None
    ) -> _wire.Reply:
        """The reply of a success. All tries together take at most `timeout_seconds`.

        Raises: SandlotError and its kin, by what the server said.
        """
        limit = self.config.request_timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + limit
        attempt = 0
        while True:
            reply = None
            try:
                reply = self._once(request, deadline)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure: Exception = _wire.lost(error)
            except httpx.TimeoutException as error:
                raise RequestTimeout(f"no answer within {limit:g} s") from error
            except httpx.HTTPError as error:
                raise _wire.lost(error) from error
            delay = None
            if reply is None or reply.status >= 300:
                delay = _wire.retry_delay_seconds(request, reply, attempt)
            if delay is None or time.monotonic() + delay >= deadline:
                if reply is None:
                    raise failure
                return _wire.check(reply)
            time.sleep(delay)
            attempt += 1

    def _once(self, request: _wire.Request, deadline: float) -> _wire.Reply:
        answer = self._http.request(
            request.method,
            request.url,
            headers=request.headers,
            params=request.params or None,
            content=request.content,
            timeout=max(0.001, deadline - time.monotonic()),
        )
        return _wire.Reply(answer.status_code, answer.headers, answer.content)

    @contextmanager
    def stream(self, request: _wire.Request) -> Iterator[Iterator[bytes]]:
        """The body of a success, as it comes. Never retried: the server may have begun."""
        timeout = httpx.Timeout(
            self.config.request_timeout_seconds, read=_wire.STREAM_SILENCE_SECONDS
        )
        try:
            with self._http.stream(
                request.method,
                request.url,
                headers=request.headers,
                params=request.params or None,
                content=request.content,
                timeout=timeout,
            ) as answer:
                if answer.status_code >= 300:
                    body = answer.read()
                    _wire.check(_wire.Reply(answer.status_code, answer.headers, body))
                yield self._chunks(answer)
        except httpx.TimeoutException as error:
            raise RequestTimeout("no answer in time") from error
        except httpx.HTTPError as error:
            raise _wire.lost(error) from error

    @staticmethod
    def _chunks(answer: httpx.Response) -> Iterator[bytes]:
        try:
            for chunk in answer.iter_raw():
                yield chunk
        except httpx.TimeoutException as error:
            raise RequestTimeout("the sandbox went silent") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _wire.lost(error) from error

    def close(self) -> None:
        self._http.close()
