"""The API under https: a certificate and its key, read so that what is wrong with them is said."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from core.errors import ApiError
from core.settings import Settings


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM form. `key` None: the certificate's file holds it as well."""

    file: Path
    key: Path | None


def certificate(settings: Settings) -> Certificate | None:
    """What the settings name; None: plain http. Raises ApiError for what can't serve."""
    file, key = settings.api_ssl_certfile, settings.api_ssl_keyfile
    if file is None:
        if key is not None:
            raise ApiError(
                "There is a key for https, and no certificate.", hint="Set WORKBENCH_API_SSL_CERTFILE."
            )
        return None
    file, key = file.expanduser(), key.expanduser() if key else None
    for path in (file, key):
        if path is not None and not path.is_file():
            raise ApiError(f"{path} is no file: the API can't serve https.", hint="Check the path.")
    try:
        # without a password OpenSSL would ask for one at the terminal, and wait
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key, password=_no_password)
    except _Encrypted as error:
        raise ApiError(
            f"The key in {key or file} is encrypted.",
            hint="Give one without a password, readable to you alone.",
        ) from error
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise ApiError(
            f"The API can't serve https with {file}{f' and {key}' if key else ''}: {reason}.",
            hint="They must be a certificate with its chain and the key that belongs to it, in PEM form.",
        ) from error
    return Certificate(file, key)


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted
