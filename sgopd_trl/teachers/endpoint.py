"""One address of a server: its connection, which of its failures pass, and how it is doing."""

import asyncio
import json
import time
from typing import Any

import httpx

from .completions import BrokenAnswer, Unavailable
from .protocol import TeacherError


_PASSING = (408, 425, 429)  # and every 5xx
_CONNECT_TIMEOUT = 10.0  # seconds
_GET_TIMEOUT = 30.0  # seconds; no model is asked, so whoever takes longer hangs
_PROBE_TIMEOUT = 120.0  # seconds; on a busy server a probe waits behind what several runs have asked for


class Endpoint:
    """A vLLM server at one address.

    Args:
        url: as http://host:8000, with or without /v1. api_key: sent as a bearer token, and shown nowhere.
        timeout: seconds to wait for one answer.

    Raises:
        ValueError: for a key that no header can hold.

    Attributes:
        probe_timeout: seconds to wait for the answer to a probe. With a check's other request this is at most half of
            `timeout`, so that a check and a request behind it take `timeout` together.
        root: where the model there was loaded from, once that is known.
        in_flight: requests under way. chosen: number of the last request that was sent here, of all servers'.
        verified: whether the model behind the address is known to be the right one.
        failed_at: when it last failed (`time.monotonic()`), or `None` once it has answered again. error: why.
        check: the check under way, or the last one. refusal: what it found that will not pass.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float):
        self.url = url.rstrip("/").removesuffix("/v1")
        key = (api_key or "").strip()  # one read from a file ends in a newline
        if not (key.isascii() and key.isprintable()):
            raise ValueError(  # here, because the HTTP library would show it
                "The API key has characters that an HTTP header cannot hold. Correct the environment variable VLLM_API_KEY."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.timeout = timeout
        self.probe_timeout = min(timeout / 4, _PROBE_TIMEOUT)
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            # Of the whole answer `_request` keeps the time: httpx would start anew with every byte
            timeout=httpx.Timeout(None, connect=min(timeout, _CONNECT_TIMEOUT)),
            limits=httpx.Limits(max_connections=None),
        )
        self.root: str | None = None
        self.in_flight = self.chosen = 0
        self.verified = False
        self.failed_at: float | None = None
        self.error: Unavailable | None = None
        self.check: asyncio.Task[None] | None = None
        self.refusal: Exception | None = None

    async def get(self, path: str) -> Any:
        return await self._request("GET", path, None, min(self.timeout / 4, _GET_TIMEOUT))

    async def post(self, path: str, body: dict[str, Any], timeout: float | None = None) -> Any:
        """`timeout`: seconds, where they are not the endpoint's."""
        return await self._request("POST", path, body, self.timeout if timeout is None else timeout)

    async def close(self) -> None:
        if self.check is not None:
            self.check.cancel()
        await self._client.aclose()

    def set_aside(self, error: Unavailable) -> None:
        """After a failure: to be checked before it is used again."""
        self.verified = False
        self.failed_at = time.monotonic()
        self.error = error

    def recovered(self) -> None:
        self.failed_at = self.error = None

    async def _request(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        """The answer as JSON.

        Raises:
            Unavailable: for no answer, a cut one, and a status that passes. TeacherError: for a refusal.
        """
        try:
            async with asyncio.timeout(timeout):
                response = await self._client.request(method, path, json=body)
        except TimeoutError as error:
            raise Unavailable(f"no answer in {round(timeout, 1):g} s") from error
        except httpx.RequestError as error:
            raise Unavailable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if response.status_code in _PASSING or response.status_code >= 500:
            raise Unavailable(
                f"HTTP {response.status_code}: {_message(response)}", response.status_code, _retry_after(response)
            )
        if response.status_code in (401, 403):
            raise TeacherError(
                f"HTTP {response.status_code}: set the environment variable VLLM_API_KEY to the key that the server was "
                "started with"
            )
        if response.status_code >= 400:
            raise TeacherError(f"HTTP {response.status_code}: {_message(response)}")
        try:
            return response.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BrokenAnswer(f"an answer that is not JSON ({error})") from error


def _message(response: httpx.Response) -> str:
    """vLLM's own words, or the beginning of the body."""
    try:
        return str(response.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdecimal() else None
