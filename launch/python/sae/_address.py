"""What a user types for a place, taken apart by the rules of loader/src/store/address.rs, key.rs and variable.rs: one text means the same place to the
program and to this package, or is refused by both.

In a path and in a key text stands for itself. `file://` is a URL of the web, whose names are percent-encoded.
"""

from __future__ import annotations

import os
import pathlib
import re
import urllib.parse
from typing import Any, NamedTuple

AZURE = ("az", "azure", "abfs", "abfss", "wasb", "wasbs")
_BUCKETS = ("s3", "s3a", "gs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$[{(]*([A-Za-z_][A-Za-z0-9_]*)")
# Names that signatures and tokens have in queries.
_SECRET = re.compile(
    r"(?:sig|signature|token|access_token|key|api_key|apikey|secret|password|credential|awsaccesskeyid|googleaccessid|x-amz-.*|x-goog-.*)=", re.IGNORECASE
)


class Address(NamedTuple):
    """A place."""

    scheme: str
    """In small letters; empty for one on this machine."""
    authority: str
    """The bucket or container, with whatever stands beside it."""
    path: str
    """The path on this machine, or the key below which the place lies."""


def parse(text: str | os.PathLike[str]) -> Address:
    """Takes a path or URL apart.

    Raises:
        ValueError: for what names no place that can be read and written from Python.
    """
    typed = _text(text)
    found = _SCHEME.fullmatch(typed)
    if found is None:
        return Address("", "", _expanded(typed))
    scheme, (authority, _, path) = found[1].lower(), found[2].partition("/")
    if _has_query(scheme, typed):
        raise ValueError(_credentials(scheme))
    # Azure writes the container where others write a user.
    user, at, _ = authority.rpartition("@")
    if at and (scheme not in AZURE or ":" in user):
        raise ValueError(_credentials(scheme))
    if scheme == "file":
        return Address("", "", _expanded(_of_file(typed, authority, path)))
    if scheme not in (*_BUCKETS, *AZURE):
        raise ValueError(f"{typed}: {scheme}:// is not read or written from Python: give a path, file://, s3://, gs:// or az://")
    if not authority:
        raise ValueError(f"{typed}: no bucket: write {scheme}://BUCKET/PREFIX")
    if scheme in _BUCKETS and not re.fullmatch(r"[A-Za-z0-9._-]+", authority):
        server = "and where it is not the provider's own set the server's address in the environment (AWS_ENDPOINT)"
        raise ValueError(f"{typed}: no bucket is called {authority}: write {scheme}://BUCKET/PREFIX, {server}")
    key = path.removesuffix("/")
    if problem := _unnamed(key):
        raise ValueError(f"{typed!r}: {problem}, and no object is read or written by such a key: choose another")
    return Address(scheme, authority, key)


def _text(text: Any) -> str:
    path = os.fspath(text) if isinstance(text, os.PathLike) else text
    if not isinstance(path, str):
        raise ValueError(f"{text!r} is no path or URL: a string is needed, or a path of pathlib")
    if not path:
        raise ValueError("empty path: give a folder or a URL such as s3://bucket/prefix")
    return path


def _has_query(scheme: str, text: str) -> bool:
    """Whether a URL carries a query that may hold a key. In keys `?` is a character, and only names that signatures have count."""
    names_a_value = re.compile(r"[^=/]*=") if scheme in ("file", "http", "https") else None
    behind = text.split("?")[1:]
    if names_a_value:
        return any(names_a_value.match(rest) for rest in behind)
    return any(_SECRET.match(pair) for rest in behind for pair in rest.split("&"))


def _credentials(scheme: str) -> str:
    return f"{scheme}://…: credentials and queries do not belong in a URL: set them in the environment (AWS_ACCESS_KEY_ID …)"


def _of_file(typed: str, authority: str, path: str) -> str:
    if authority not in ("", "localhost") or not path and not typed.endswith("/"):
        raise ValueError(f"{typed}: write file:///absolute/path")
    if "#" in typed:
        raise ValueError(f"{typed}: what stands behind a `#` is not asked for: write %23 where it belongs to a name")
    try:
        return "/" + urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{typed} is not percent-encoded UTF-8") from error


def _expanded(path: str) -> str:
    """A local path, in which no variable stands that a shell would have replaced; a folder that is called so may."""
    for found in _VARIABLE.finditer(path):
        end = path.find("/", found.start())
        if not pathlib.Path(path if end < 0 else path[:end]).exists():
            raise ValueError(f"{path}: ${found[1]} is a variable that nothing has replaced, and there is no path of that name: use os.path.expandvars")
    return path


def _unnamed(key: str) -> str | None:
    """What is wrong with a key that cannot be named."""
    parts = key.split("/") if key else []
    if "" in parts:
        return "a part of the key is empty (`//`)"
    if "." in parts or ".." in parts:
        return "a part of the key is `.` or `..`"
    return "a control character is in the key" if re.search(r"[\x00-\x1f\x7f]", key) else None
