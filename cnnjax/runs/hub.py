"""Repositories of the Hugging Face Hub, in the layout of its cache, which is used but never written to."""

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from cnnjax.data.fetch import Remote, fetch, is_whole
from cnnjax.data.files import (
    atomic_write,
    check_kind,
    expanded,
    make_cache_folder,
    read_file,
    read_json,
    sha256_of,
)
from cnnjax.data.web import NoNetwork, get_json, send
from cnnjax.errors import UserError, listed

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DIGITS = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
COMMIT = re.compile("[0-9a-f]{40}")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
SHARD = re.compile(r"\w[\w.-]*\.safetensors")


def endpoint() -> str:
    """The Hub's address: $HF_ENDPOINT, as its own library has it."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def token() -> str:
    """$HF_TOKEN; a UserError, without it, if no header can hold it."""
    value = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", value):
        raise UserError("HF_TOKEN contains a character that tokens do not have; copy it again")
    return value


def cache() -> Path:
    """The cache of the Hub's own library."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return expanded(given or Path(home, "hub"))


def snapshot(repository: str, revision: str = "main") -> Path:
    """A folder with config.json and the weights of a repository, each file checked.

    Of several networks the newest commit is asked for; without one the last that is known is used.

    Raises:
      NoNetwork: it is not here; the error says what to fetch by hand, and where it goes.
      UserError: there is no such repository, or it has no such files.
    """
    if not NAME.fullmatch(repository) or not REVISION.fullmatch(revision) or ".." in repository + revision:
        raise UserError(
            f"hf:{repository}@{revision} is not a repository; allowed: hf:USER/NAME, or with @REVISION"
        )
    folder = f"models--{repository.replace('/', '--')}"
    places = make_cache_folder("weights") / folder, cache() / folder
    if COMMIT.fullmatch(revision) and (here := _known(places, revision)):
        return here
    try:
        commit, files = _listing(repository, revision)
    except NoNetwork as error:
        if here := _known(places, revision):
            return here
        address = f"{endpoint()}/{repository}/resolve/{revision}"
        by_hand = f"download {address}/{CONFIG} and {address}/{WEIGHTS} by hand"
        raise NoNetwork(
            f"{error}; {by_hand} and put them into {places[0] / 'snapshots' / revision}"
        ) from None
    for place in places:
        if (there := _whole(place / "snapshots" / commit, files)) and place != places[0]:
            return there
    here = places[0] / "snapshots" / commit
    for name in [CONFIG, WEIGHTS if WEIGHTS in files else INDEX]:
        _get(repository, commit, name, files, here)
    if WEIGHTS not in files:
        for name in shards(here):
            _get(repository, commit, name, files, here)
    (places[0] / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(places[0] / "refs" / revision, commit)
    return here


def shards(folder: Path) -> list[str]:
    """The names of the weight files in a folder."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    names = read_json(folder / INDEX).get("weight_map")
    values = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    if not values or not all(SHARD.fullmatch(name) for name in values):
        raise UserError(f"{folder / INDEX} is damaged: its weight_map does not name files next to it")
    return values


def _known(places: tuple[Path, ...], revision: str) -> Path | None:
    """The folder of the commit that a revision was when it was last seen; UserError if a file is damaged."""
    for place in places:
        ref = place / "refs" / revision
        commit = read_file(ref, 1000).decode("ascii", "replace").strip() if ref.is_file() else revision
        here = place / "snapshots" / commit
        if not REVISION.fullmatch(commit) or not (here / CONFIG).is_file():
            continue
        names = [CONFIG, *([INDEX] if (here / INDEX).is_file() else []), *shards(here)]
        if not all((here / name).is_file() for name in names):
            continue
        for name in names:  # a file is a link to one that is named by its sum, unless it was put here by hand
            digits = Path(os.path.realpath(here / name)).name
            if DIGITS.fullmatch(digits) and not is_whole(here / name, Remote("", None, digits)):
                raise UserError(f"{os.path.realpath(here / name)} is damaged; delete it and try again")
        return here
    return None


def _listing(repository: str, revision: str) -> tuple[str, dict[str, Remote]]:
    """The commit that a revision is, and its files with size and sum."""
    address = f"{endpoint()}/api/models/{repository}/revision/{revision.replace('/', '%2F')}?blobs=true"
    answer, files = get_json(address, token()), {}
    commit, siblings = str(answer.get("sha")), answer.get("siblings")
    if not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise UserError(f"{endpoint()} is not a Hub: it names no commit of {repository}")
    for each in siblings:
        facts = each if isinstance(each, Mapping) else {}
        large = facts.get("lfs")
        digits = str(large.get("sha256") if isinstance(large, Mapping) else facts.get("blobId"))
        name, size = str(facts.get("rfilename")), facts.get("size")
        if DIGITS.fullmatch(digits) and isinstance(size, int):
            at = f"{endpoint()}/{repository}/resolve/{commit}/{name}"
            files[name] = Remote(at, size, digits, token())
    if CONFIG not in files or not {WEIGHTS, INDEX} & files.keys():
        here = listed([str(each.get("rfilename")) for each in siblings if isinstance(each, Mapping)])
        raise UserError(f"hf:{repository} has no {CONFIG} with {WEIGHTS} or {INDEX}; it has {here}")
    return commit, files


def _whole(folder: Path, files: Mapping[str, Remote]) -> Path | None:
    """The folder, if all that is needed is in it and is what the Hub says."""
    needed = [CONFIG, WEIGHTS if WEIGHTS in files else INDEX]
    if not all(is_whole(folder / name, files[name]) for name in needed):
        return None
    more = [] if WEIGHTS in files else shards(folder)
    return folder if all(name in files and is_whole(folder / name, files[name]) for name in more) else None


def _get(repository: str, commit: str, name: str, files: Mapping[str, Remote], folder: Path) -> None:
    """Fetches one file, and links to it under its name in a folder of the commit."""
    if name not in files:
        raise UserError(f"hf:{repository}@{commit} has no {name}, which its {INDEX} names")
    blob, link = folder.parents[1] / "blobs" / files[name].digits, folder / name
    if is_whole(link, files[name]):
        return
    fetch(files[name], blob)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{name}.{os.getpid()}"
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(blob, folder))
    os.replace(new, link)


class Action(TypedDict):
    """A request that Git LFS asks for."""

    href: str
    header: NotRequired[dict[str, str]]


class Actions(TypedDict, total=False):
    """What is to be done for one file, nothing if it is there."""

    upload: Action
    verify: Action


class Object(TypedDict):
    """A file of an answer of Git LFS."""

    actions: NotRequired[Actions]


class Batch(TypedDict):
    """An answer of Git LFS."""

    objects: list[Object]


def upload(repository: str, folder: Path, names: Sequence[str], *, private: bool = False) -> None:
    """Puts files into a repository in one commit; it is made if it is missing. Raises as `snapshot` does."""
    user, _, name = repository.partition("/")
    made = {"type": "model", "organization": user, "name": name, "private": private}
    _post("/api/repos/create", json.dumps(made), also=(409,))  # it is there
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "A cnnjax network"}}]
    for each in names:
        if each == WEIGHTS:
            value = {"path": each, "algo": "sha256", **_put(repository, folder / each)}
            lines.append({"key": "lfsFile", "value": value})
        else:
            content = base64.b64encode((folder / each).read_bytes()).decode()
            lines.append({"key": "file", "value": {"path": each, "content": content, "encoding": "base64"}})
    body = "\n".join(map(json.dumps, lines))
    _post(f"/api/models/{repository}/commit/main", body, "application/x-ndjson")


def _put(repository: str, file: Path) -> dict[str, object]:
    """Puts a large file on the Hub by the protocol of Git LFS; its name and size there."""
    large: dict[str, object] = {"oid": sha256_of(file), "size": file.stat().st_size}
    asked = {"operation": "upload", "transfers": ["basic"], "objects": [large], "hash_algo": "sha256"}
    path, kind = f"/{repository}.git/info/lfs/objects/batch", "application/vnd.git-lfs+json"
    answer = _post(path, json.dumps(asked), kind)
    try:
        check_kind(answer, Batch)
    except ValueError as error:
        raise UserError(f"{endpoint()}{path}: invalid response: {error}") from None
    objects = cast(Batch, answer)["objects"]
    actions = objects[0].get("actions", {}) if objects else {}
    if action := actions.get("upload"):
        with file.open("rb") as content:
            send("PUT", action["href"], content, action.get("header", {}))
    if action := actions.get("verify"):
        own = token() if action["href"].startswith(f"{endpoint()}/") else ""
        headers = {"Content-Type": kind, **action.get("header", {})}
        send("POST", action["href"], json.dumps(large).encode(), headers, own)
    return large


def _post(path: str, body: str, kind: str = "application/json", also: tuple[int, ...] = ()) -> object:
    headers = {"Content-Type": kind, "Accept": kind if "lfs" in kind else "application/json"}
    return send("POST", f"{endpoint()}{path}", body.encode(), headers, token(), also)
