"""Requests to servers: what they answer, or why not in one line; secrets go to their own host alone."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urljoin, urlsplit

from cnnjax.data.files import parse_json
from cnnjax.errors import UserError

if TYPE_CHECKING:
    from requests import Response

SECONDS = 30.0  # that a server may be silent
PAUSE = 2.0  # seconds before a busy server is asked again
REDIRECTS = 5
MOST_JSON = 2**24


class NoNetwork(UserError):
    """No answer, or none is asked for as the user says so."""


def offline() -> bool:
    """Whether the user forbids the network, by --offline, $CNNJAX_OFFLINE or $HF_HUB_OFFLINE."""
    values = (os.environ.get(name, "") for name in ("CNNJAX_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def get_json(address: str, token: str = "") -> dict[str, object]:
    """The JSON value at an address; raises as `fetch` does."""
    import urllib3

    with answer(address, {}, token) as response:
        try:
            data = b"".join(chunks(response, MOST_JSON, address))
        except urllib3.exceptions.HTTPError as error:
            raise NoNetwork(f"{shown(address)}: {cause(error)}") from None
    try:
        return parse_json(data, dict)
    except ValueError as error:
        raise UserError(f"{shown(address)}: invalid response: {error}") from None


def send(
    method: str,
    address: str,
    body: bytes | BinaryIO,
    headers: Mapping[str, str],
    token: str = "",
    also: Sequence[int] = (),
) -> object:
    """Sends a body and returns the JSON object of the answer, {} if it is none; raises as `fetch` does.

    The statuses in `also` are no errors.
    """
    if offline():
        raise NoNetwork(f"{shown(address)}: the network is not used (--offline)")
    import requests

    _origin(address)
    own = {**headers, "User-Agent": "cnnjax"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with requests.request(
            method,
            address,
            data=body,
            headers=own,
            timeout=SECONDS,
            allow_redirects=False,
            auth=lambda request: request,
        ) as response:
            if response.status_code >= 300 and response.status_code not in also:
                raise UserError(f"{shown(address)}: {_refusal(response.status_code)}")
            return parse_json(response.content) if response.content.startswith(b"{") else {}
    except requests.RequestException as error:
        raise NoNetwork(f"{shown(address)}: {cause(error)}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(address)}: invalid response: {error}") from None


def version(address: str) -> str:
    """What tells one file at an address from the next: its server's tag, date and size of it."""
    with answer(address, {}, "") as response:
        return " ".join(
            response.headers.get(name, "") for name in ("etag", "last-modified", "content-length")
        )


def shown(address: str) -> str:
    """An address as errors and records have it: without what may be a secret."""
    return address.partition("?")[0]


@contextlib.contextmanager
def answer(address: str, headers: dict[str, str], token: str) -> Iterator["Response"]:
    """The successful response of an address, past redirects; the token goes to its own host alone."""
    if offline():
        raise NoNetwork(f"{shown(address)}: the network is not used (--offline)")
    import requests

    here, own = address, _origin(address)
    headers = {**headers, "Accept-Encoding": "identity", "User-Agent": "cnnjax"}  # sums are of whole files
    with requests.Session() as session:
        for attempt in range(2 * REDIRECTS):
            secret = {"Authorization": f"Bearer {token}"} if token and _origin(here) == own else {}
            try:
                response = session.get(
                    here,
                    headers=headers | secret,
                    stream=True,
                    timeout=SECONDS,
                    allow_redirects=False,
                    auth=lambda request: request,  # none of ~/.netrc
                )
            except requests.RequestException as error:
                raise NoNetwork(f"{shown(address)}: {cause(error)}") from None
            except ValueError:  # of the library, which reads the address to go on to
                raise UserError(f"{shown(address)}: it redirects to no address") from None
            with response:
                if response.is_redirect:
                    here = urljoin(here, response.headers["location"])
                    if _origin(here)[0] != own[0] and own[0] == "https":
                        raise UserError(f"{shown(address)}: it redirects to an address without https")
                elif response.status_code in (429, 500, 502, 503, 504) and not attempt:
                    time.sleep(PAUSE)
                elif response.status_code in (200, 206, *[416] * ("Range" in headers)):
                    yield response
                    return
                else:
                    raise UserError(f"{shown(address)}: {_refusal(response.status_code)}")
    raise UserError(f"{shown(address)}: it redirects more than {REDIRECTS} times")


def _refusal(status: int) -> str:
    if status in (401, 403):
        return f"{status}, private or missing; if it is private, set HF_TOKEN"
    return "404, no such file" if status == 404 else f"the server answered {status}"


def _origin(address: str) -> tuple[str, str, int | None]:
    """(scheme, host, port) of an address; a UserError if it is none of http or https without a password."""
    try:
        parts = urlsplit(address)
        origin = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        origin = "", "", None
    if origin[0] not in ("http", "https") or not origin[1] or "@" in parts.netloc:
        raise UserError(
            f"{shown(address).rpartition('@')[2]} is not an address of the form https://host/file"
        )
    return origin


def chunks(response: "Response", most: int, address: str) -> Iterator[bytes]:
    while chunk := response.raw.read1(
        2**18
    ):  # what has come, where `iter_content` waits for more and loses it
        most -= len(chunk)
        if most < 0:
            raise UserError(f"{shown(address)}: it is longer than its server announced")
        yield chunk


def cause(error: BaseException) -> BaseException:
    """The first error of a chain: what the system said."""
    while error.__context__ is not None:
        error = error.__context__
    return error
