"""One question to the judge behind an OpenAI-compatible endpoint, with retries. Standard library only.

The key comes from an environment variable, goes into one header, and is in no message, log or file.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from adalora_bench.errors import AssetError, UserError

_log = logging.getLogger(__name__)

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP answers that a later attempt may not get
_LONGEST_WAIT = 60.0
_LARGEST_REPLY = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model answers.

    Attributes:
        url: the endpoint up to its version, "https://api.example.org/v1".
        model: the name that the endpoint knows it by.
        key_env: NAME of the environment variable that holds the key; None where none is needed.
        attempts: tries for one answer, each after a longer wait than the last.
        timeout: seconds for one try.
    """

    url: str
    model: str
    key_env: str | None = None
    attempts: int = 6
    timeout: float = 120.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserError("judge.url must be an http or https address such as https://api.example.org/v1.")
        if not self.model:
            raise UserError("judge.model='' must name a model that the endpoint knows.")
        if self.attempts < 1 or not self.timeout > 0:
            raise UserError(
                f"judge.attempts={self.attempts} and judge.timeout={self.timeout} must be above 0."
            )

    @property
    def host(self) -> str:
        """What may be said of the address: an address can hold a password."""
        return urlsplit(self.url).hostname or ""

    def key(self) -> str | None:
        """The key. UserError names the variable, never what it holds."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(
                f"the environment variable {self.key_env} (judge.key_env) is not set; it must hold the key."
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError(f"the key in {self.key_env} holds a blank, a line break or no ASCII.")
        return key


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is an error instead."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def ask(
    messages: list[dict[str, str]],
    endpoint: Endpoint,
    key: str | None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The reply to a conversation so far, at temperature 0.

    Raises:
        AssetError: no usable reply in `attempts` tries.
        UserError: a refusal that stays: a wrong key, an unknown model.
    """
    body = {"model": endpoint.model, "messages": messages, "temperature": 0, "max_tokens": 2048}
    headers = {"Content-Type": "application/json", "User-Agent": "adalora_bench"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    address = f"{endpoint.url.rstrip('/')}/chat/completions"
    request = Request(address, json.dumps(body).encode(), headers, method="POST")
    opener = build_opener(_NoRedirect)
    reason = ""
    for attempt in range(endpoint.attempts):
        wait = min(_LONGEST_WAIT, 2.0**attempt) * (1 + random.random() / 4)
        try:
            with opener.open(request, timeout=endpoint.timeout) as response:
                return _reply(response.read(_LARGEST_REPLY))
        except HTTPError as error:
            reason = f"HTTP {error.code}{_complaint(error, key)}"
            if error.code not in _PASSING:
                raise UserError(f"the judge at {endpoint.host} refuses ({reason}).") from None
            wait = _asked_to_wait(error.headers.get("Retry-After"), wait)
        except (URLError, HTTPException, OSError, ValueError) as error:
            reason = _hidden(str(getattr(error, "reason", error)) or type(error).__name__, key)
        if attempt + 1 < endpoint.attempts:
            _log.info("the judge at %s: %s; again in %.0f s", endpoint.host, reason, wait)
            sleep(wait)
    raise AssetError(f"the judge at {endpoint.host} gave no answer in {endpoint.attempts} tries ({reason})")


def _reply(content: bytes) -> str:
    """The text of a chat completion; "" where the model said nothing. ValueError: it is none."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError("an answer that is no chat completion") from error
    return text if isinstance(text, str) else ""


def _complaint(error: HTTPError, key: str | None) -> str:
    """What the server says of its refusal, behind a colon; "" where it says nothing."""
    try:
        with error:
            said = _hidden(error.read(2000).decode("utf-8", "replace"), key)
    except (HTTPException, OSError):
        return ""  # the connection broke while it complained; the number of the refusal is known
    return f": {said}" if said else ""


def _asked_to_wait(header: str | None, otherwise: float) -> float:
    """The server's own wish in seconds, within reason; its other form, a date, is not read."""
    if header is None or not re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return otherwise
    return min(_LONGEST_WAIT, float(header))


def _hidden(text: str, key: str | None) -> str:
    """One short line in which the key cannot be read: some servers repeat it in their complaint."""
    line = " ".join(text.split())
    return (line.replace(key, "***") if key else line)[:300]
