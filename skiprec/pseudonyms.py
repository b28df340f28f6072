"""Ids replaced by keyed hashes: the same id and key give the same pseudonym, and none can be found without the key."""

import hmac
from pathlib import Path

import pyarrow as pa

from skiprec.errors import ConfigError

LEAST_KEY_BYTES = 16
PSEUDONYM_LETTERS = 32
"""Hexadecimal: 128 bits of HMAC-SHA256."""


def read_key(path: Path) -> bytes:
    """A key from a file: all of its bytes but line ends after them.

    Raises:
        ConfigError: If it cannot be read, or is too short to be a secret.
    """
    try:
        key = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}), expected a file with a secret key") from error
    if len(key) < LEAST_KEY_BYTES:
        raise ConfigError(
            f"{path}: holds {len(key)} bytes, expected at least {LEAST_KEY_BYTES} that nobody can guess; for example "
            "from `openssl rand -hex 32`"
        )
    return key


def pseudonyms(ids: pa.StringArray, key: bytes, kind: str) -> pa.StringArray:
    """The pseudonyms of ids.

    Args:
        ids: Texts.
        key: The secret.
        kind: What they name: the same text as an item and as a session has two pseudonyms.
    """
    encoded = ids.dictionary_encode()
    hashed = [pseudonym(text, key, kind) for text in encoded.dictionary.to_pylist()]
    return pa.array(hashed, pa.string()).take(encoded.indices) if hashed else ids


def pseudonym(text: str, key: bytes, kind: str) -> str:
    """That of one id."""
    return hmac.digest(key, f"{kind}\0{text}".encode(), "sha256").hex()[:PSEUDONYM_LETTERS]


def key_check(key: bytes) -> str:
    """A value by which two keys can be told apart, and that says nothing of either."""
    return pseudonym("", key, "check")[:8]
