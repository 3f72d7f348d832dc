"""One file over HTTP: streamed, bounded in size, time and tries, whole or absent.

    download("https://host/test.parquet", Path("test.parquet"), Limits())

Connection failures, stalls, truncation and 429 or 5xx answers are tried again while `retry_within_s` lasts;
other answers are final. Every failure is a DownloadError of one line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from stages.common.files import atomic_path

_CHUNK_BYTES = 1 << 16


class DownloadError(Exception):
    """Why a file could not be had, in one line; the HTTP status where there was an answer."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status


class _Transient(DownloadError):
    """A failure that another try may mend."""


@dataclass(frozen=True)
class Limits:
    """Seconds, bytes and tries. Without a network, all tries together end within about `retry_within_s`."""

    connect_s: float = 2.5
    stall_s: float = 10.0
    total_s: float = 120.0
    retry_within_s: float = 6.0
    backoff_s: float = 0.5
    attempts: int = 3
    max_bytes: int = 64 << 20


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether HF_HUB_OFFLINE asks for no network, as Hugging Face's libraries read it."""
    return environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def download(url: str, path: Path, limits: Limits, headers: Mapping[str, str] | None = None) -> None:
    """Write the body of `url` to `path`, or raise DownloadError and leave nothing."""
    started = time.monotonic()
    for attempt in range(limits.attempts):
        try:
            with atomic_path(path) as temporary:
                _fetch(url, temporary, limits, {**(headers or {}), "Accept-Encoding": "identity"}, started)
            return
        except _Transient as error:
            pause = limits.backoff_s * 2**attempt
            elapsed = time.monotonic() - started
            if attempt + 1 == limits.attempts or elapsed + pause > limits.retry_within_s:
                tries = "1 try" if attempt == 0 else f"{attempt + 1} tries"
                raise DownloadError(f"{error} ({tries})") from error
            time.sleep(pause)


def _fetch(url: str, path: Path, limits: Limits, headers: Mapping[str, str], started: float) -> None:
    timeout = (limits.connect_s, limits.stall_s)
    try:
        with requests.get(url, headers=headers, timeout=timeout, stream=True) as response:
            if response.status_code == 429 or response.status_code >= 500:
                raise _Transient(f"HTTP {response.status_code} from {url}")
            if response.status_code != 200:
                raise DownloadError(f"HTTP {response.status_code} from {url}", response.status_code)
            _write_body(response, path, limits, started)
    except requests.RequestException as error:
        raise _Transient(_short(error, url)) from error


def without_query(text: str) -> str:
    """`text` without what follows "?" in its addresses: a store's signed address lets anybody in."""
    return re.sub(r"\?[^\s'\")>]*", "", text)


def _write_body(response: requests.Response, path: Path, limits: Limits, started: float) -> None:
    announced = int(response.headers.get("Content-Length", 0)) or None
    if announced and announced > limits.max_bytes:
        raise DownloadError(f"{announced} bytes announced; at most {limits.max_bytes} are taken")
    received = 0
    name = Path(response.url.partition("?")[0]).name
    with (
        open(path, "wb") as stream,
        tqdm(total=announced, desc=name, unit="B", unit_scale=True, leave=False) as bar,
    ):
        for chunk in response.iter_content(_CHUNK_BYTES):
            received += len(chunk)
            if received > limits.max_bytes:
                raise DownloadError(f"more than {limits.max_bytes} bytes from {without_query(response.url)}")
            if time.monotonic() - started > limits.total_s:
                raise DownloadError(
                    f"{received} bytes in {limits.total_s:g} s, too slow: {without_query(response.url)}"
                )
            stream.write(chunk)
            bar.update(len(chunk))
    if announced is not None and received != announced:
        raise _Transient(f"truncated: {received} of {announced} bytes from {without_query(response.url)}")


def _short(error: requests.RequestException, url: str) -> str:
    """requests' messages nest the whole chain of causes; users need its kind and the address."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection in time to {url}"
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return f"no data in time from {url}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"truncated: the connection ended early: {url}"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {url}"
    return f"{type(error).__name__} from {url}"
