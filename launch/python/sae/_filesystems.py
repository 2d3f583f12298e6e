"""Arrow's file systems for object storage, with the variables of the environment that the program reads too (loader/src/store/environment.rs).
Credentials beyond them are found by Arrow as the tools of each provider find theirs.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import pyarrow as pa
import pyarrow.fs

from ._address import AZURE, Address
from ._errors import StoreError

# For so long GCS is asked again where SAE_PATIENCE does not say; Arrow's own limit is a quarter of an hour.
_PATIENCE_S = 60
_AZURE_HOSTS = ("dfs.core.windows.net", "blob.core.windows.net")


def of(address: Address) -> tuple[Any, str]:
    """The file system of an address, and the folder there.

    Raises:
        ValueError: where the environment or this pyarrow does not suffice for it.
        StoreError: where Arrow cannot make one.
    """
    try:
        if address.scheme in AZURE:
            fs, bucket = _azure(address)
        else:
            fs, bucket = (_gcs() if address.scheme == "gs" else _s3()), address.authority
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{address.scheme}://{address.authority}: {error}") from error
    return fs, f"{bucket}/{address.path}".rstrip("/")


def _arrow(name: str) -> Any:
    """A class of Arrow's.

    Raises:
        ValueError: where this pyarrow was built without it, or is from before it.
    """
    try:
        return getattr(pa.fs, name)
    except (AttributeError, ImportError):
        raise ValueError(f"pyarrow {pa.__version__} has no {name}: install a newer one (pip install --upgrade pyarrow)") from None


def _first(*names: str) -> str | None:
    """The first of some variables that is set to something."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _server(address: str) -> tuple[str, str]:
    """Scheme and host of a server's address."""
    scheme, _, host = address.rpartition("://")
    return scheme or "https", host.rstrip("/")


def _s3() -> Any:
    options: dict[str, Any] = {}
    if endpoint := _first("AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        options["scheme"], options["endpoint_override"] = _server(endpoint)
    if region := _first("AWS_REGION", "AWS_DEFAULT_REGION"):
        options["region"] = region
    if _first("AWS_SKIP_SIGNATURE") == "true":
        options["anonymous"] = True
    return _arrow("S3FileSystem")(**options)


def _gcs() -> Any:
    patience = _first("SAE_PATIENCE") or ""
    limit = datetime.timedelta(seconds=int(patience) if patience.isdecimal() else _PATIENCE_S)
    return _arrow("GcsFileSystem")(anonymous=_first("GOOGLE_SKIP_SIGNATURE") == "true", retry_time_limit=limit)


def _azure(address: Address) -> tuple[Any, str]:
    """Of `CONTAINER`, in the account that the environment names, or of `CONTAINER@ACCOUNT.dfs.core.windows.net`."""
    make = _arrow("AzureFileSystem")
    container, at, host = address.authority.partition("@")
    account, _, domain = host.partition(".")
    if at and (not container or not account or domain not in _AZURE_HOSTS):
        raise ValueError(f"{address.scheme}://{address.authority}: write {address.scheme}://CONTAINER@ACCOUNT.{_AZURE_HOSTS[0]}/PREFIX")
    named = account or _first("AZURE_STORAGE_ACCOUNT_NAME")
    if not named:
        raise ValueError(f"{address.scheme}://{container}: set AZURE_STORAGE_ACCOUNT_NAME, or write {address.scheme}://{container}@ACCOUNT.{_AZURE_HOSTS[0]}/PREFIX")
    options: dict[str, Any] = {
        "account_key": _first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY"),
        "sas_token": _first("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
    }
    if options["account_key"]:
        options["sas_token"] = None
    identity = {name: _first(f"AZURE_STORAGE_{name.upper()}", f"AZURE_{name.upper()}") for name in ("tenant_id", "client_id", "client_secret")}
    if all(identity.values()):
        options |= identity
    if endpoint := _first("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"):
        scheme, authority = _server(endpoint)
        options |= {f"{service}_storage_{of}": value for service in ("blob", "dfs") for of, value in (("scheme", scheme), ("authority", authority))}
    try:
        return make(named, **{name: value for name, value in options.items() if value is not None}), container
    except TypeError as error:
        raise ValueError(f"pyarrow {pa.__version__} does not take these credentials of Azure: install a newer one: {error}") from error
