"""One address of a server: its connection, and which of its failures pass."""

import asyncio
import json
import time
from typing import Any

import httpx

from .protocol import TeacherError


_PASSING = (408, 425, 429)  # and every 5xx
_CONNECT_TIMEOUT = 10.0  # seconds


class Unavailable(Exception):
    """The server does not answer now, and may do so later.

    Args:
        cause: for messages. status: HTTP status, where there was an answer. retry_after: seconds the server asked for.
    """

    def __init__(self, cause: str, status: int | None = None, retry_after: float | None = None):
        super().__init__(cause)
        self.status = status
        self.retry_after = retry_after


class Endpoint:
    """A vLLM server at one address.

    Args:
        url: as http://host:8000, with or without /v1. api_key: sent as a bearer token, and shown nowhere.
        timeout: seconds to wait for one answer.

    Raises:
        ValueError: for a key that no header can hold.

    Attributes:
        in_flight: requests under way. root: where the model there was loaded from, once that is known.
        verified: whether the model behind the address is known to be the right one.
        failed_at: when it last failed (`time.monotonic()`), or `None`. cause: why.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float):
        self.url = url.rstrip("/").removesuffix("/v1")
        key = (api_key or "").strip()  # one read from a file ends in a newline
        if not (key.isascii() and key.isprintable()):
            raise ValueError(  # here, because the HTTP library would show it
                "The API key has characters that an HTTP header cannot hold. Correct the environment variable VLLM_API_KEY."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT)),
            limits=httpx.Limits(max_connections=None),
        )
        self.lock = asyncio.Lock()
        self.in_flight = 0
        self.root: str | None = None
        self.verified = False
        self.failed_at: float | None = None
        self.cause = ""

    async def get(self, path: str) -> Any:
        return await self._request("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._request("POST", path, body)

    async def close(self) -> None:
        await self._client.aclose()

    def set_aside(self, cause: str) -> None:
        """After a failure: to be verified before it is used again."""
        self.verified = False
        self.failed_at = time.monotonic()
        self.cause = cause

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """The answer as JSON.

        Raises:
            Unavailable: for no answer, a cut one, and a status that passes. TeacherError: for a refusal.
        """
        self.in_flight += 1
        try:
            response = await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise Unavailable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        finally:
            self.in_flight -= 1
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
            raise Unavailable(f"an answer that is not JSON ({error})") from error


def _message(response: httpx.Response) -> str:
    """vLLM's own words, or the beginning of the body."""
    try:
        return str(response.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() else None
