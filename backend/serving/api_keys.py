"""API keys: who may call. Several keys, out of options, the environment and a file, all of them equal.

Keys are kept as digests, so that a comparison takes the same time whatever the given one shares with a true one, its
length included. Used by server_options.py, thus by every server. Imports no torch."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.errors import ConfigError

ENVIRONMENT_VARIABLE = "MILLRACE_API_KEYS"
KEY_REFUSAL = "an API key is needed: authorization: Bearer KEY"
_SCHEME = b"bearer "


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """digests  SHA-256 of each key; empty: everybody may call"""

    digests: tuple[bytes, ...] = ()

    @staticmethod
    def of(keys: Iterable[str]) -> ApiKeys:
        """Raises ConfigError for a key that no HTTP header could carry."""
        digests = []
        for key in keys:
            if not (key and key.isascii() and key.isprintable() and " " not in key):
                raise ConfigError("an API key is empty or has spaces or other than printable ASCII characters; "
                                  "use letters, digits and - or _")
            digests.append(hashlib.sha256(key.encode()).digest())
        return ApiKeys(tuple(dict.fromkeys(digests)))

    def __bool__(self) -> bool:
        return bool(self.digests)

    def lets_in(self, authorization: str | bytes | None) -> bool:
        """Whether a request with this header may be answered; looks at every key, so it tells nothing by its time."""
        if not self.digests:
            return True
        given = authorization.encode() if isinstance(authorization, str) else authorization or b""
        is_bearer = given[:len(_SCHEME)].lower() == _SCHEME
        digest = hashlib.sha256(given[len(_SCHEME):]).digest()
        is_known = False
        for known in self.digests:
            is_known |= hmac.compare_digest(digest, known)
        return is_bearer and is_known


NO_KEYS = ApiKeys()


def collect_api_keys(given: Iterable[str], file: Path | None, environment: Mapping[str, str]) -> ApiKeys:
    """All keys from everywhere.

    given        values of --api_keys, each one or several with commas or spaces between them
    file         one key a line; empty lines and those that begin with # do not count
    environment  where MILLRACE_API_KEYS holds keys as `given` does
    Raises ConfigError for a file that cannot be read, and for a file or a value that holds no key: `--api_keys $KEY`
    with an empty KEY must not open the server."""
    given = tuple(given)
    texts = (*given, environment.get(ENVIRONMENT_VARIABLE, ""))
    keys = [key for text in texts for key in text.replace(",", " ").split()]
    if not all(text.replace(",", " ").strip() for text in given):
        raise ConfigError("--api_keys holds no key; give one, or leave the option out")
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"the API keys in {file} cannot be read ({reason}); name a text file with one key a "
                              "line") from None
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise ConfigError(f"{file} holds no API key; write one a line, or leave --api_key_file out")
        keys += from_file
    return ApiKeys.of(keys)
