"""Open the URL of an object store through obstore."""

import os
from datetime import timedelta
from typing import Any

from zarr.storage import ObjectStore

from zarrpipe.errors import ArgumentError
from zarrpipe.libraries import require

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "adl", "abfs", "abfss", "azure")
"""Schemes of URLs that are opened through obstore."""

_RETRIES: dict[str, Any] = {
    "max_retries": 10,
    "backoff": {
        "base": 2,
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
    },
    "retry_timeout": timedelta(seconds=30),
}
_CLIENT: dict[str, Any] = {"timeout": "30s", "connect_timeout": "5s"}


def is_object_url(url: str) -> bool:
    """Whether a URL is of an object store that obstore knows."""
    return url.partition("://")[0].lower() in SCHEMES


def open_url(url: str) -> ObjectStore[Any]:
    """Open an object store, with credentials from the environment or, for S3, as boto3 finds them.

    A request that fails is repeated for 30 seconds. Raises MissingLibraryError without obstore, and
    ArgumentError for a URL that it does not take.
    """
    stores = require("obstore.store", "s3")
    scheme, _, place = url.partition("://")
    known = {"s3a": "s3", "gcs": "gs", "azure": "az"}.get(scheme.lower(), scheme.lower())
    if not place.partition("/")[0]:
        raise ArgumentError(f"{url} names no bucket, expected a URL such as {known}://bucket/store")
    try:
        store = stores.from_url(
            f"{known}://{place.rstrip('/')}",
            retry_config=_RETRIES,
            client_options={**_CLIENT, "allow_http": _allows_http()},
            **(_boto3_credentials() if known == "s3" else {}),
        )
    except Exception as error:
        text = str(error).partition("\n")[0]
        raise ArgumentError(
            f"{url} is not a URL that obstore can open ({text}): expected one such as "
            f"{known}://bucket/store, and credentials in the environment"
        ) from error
    return ObjectStore(store)


def _allows_http() -> bool:
    """Whether the environment names an endpoint without TLS, or allows one."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
    plain = any(os.environ.get(name, "").startswith("http://") for name in names)
    return plain or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")


def _boto3_credentials() -> dict[str, Any]:
    """Credentials that boto3 finds, if it is installed and the environment has none."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    try:
        from boto3 import Session  # noqa: PLC0415  an optional library
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
    except ImportError:
        return {}
    session = Session()
    if session.get_credentials() is None:
        return {}
    return {"credential_provider": Boto3CredentialProvider(session)}
