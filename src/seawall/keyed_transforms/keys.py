"""Secret keys: read from a file or the environment, made once, never stored; orders and numbers drawn from them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from seawall.errors import UsageError

KEY_BYTES = 32
ENVIRONMENT = "env:"
MAKE = "make one with `seawall make-key FILE`"
CHECK_BYTES = 16


@dataclass(frozen=True)
class SecretKey:
    """A key of 32 bytes; no text form of it shows them.

    Args:
        secret: The bytes.

    Raises:
        UsageError: There are not 32 of them.

    Example:
        >>> SecretKey(bytes(32))
        SecretKey()
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise UsageError(f"key: expected {KEY_BYTES} bytes, got {len(self.secret)}; {MAKE}")

    def subkey(self, purpose: str) -> bytes:
        """Return 32 bytes for one purpose, by HMAC-SHA256; those of one purpose say nothing about those of another."""
        return hmac.digest(self.secret, purpose.encode(), "sha256")

    def check_value(self, salt: str) -> str:
        """Return a salted value by which a wrong key is noticed, as hexadecimal digits; the key does not follow from it."""
        return self.subkey(f"check {salt}")[:CHECK_BYTES].hex()

    def fits(self, salt: str, check: str) -> bool:
        """Return whether a check value is that of this key."""
        return hmac.compare_digest(self.check_value(salt), check)


def public_key(name: str) -> SecretKey:
    """Return the key of a name: no secret, for adversaries that guess and for surrogates."""
    return SecretKey(hashlib.sha256(f"seawall public key {name}".encode()).digest())


def read_key(source: str) -> SecretKey:
    """Read a key of 64 hexadecimal digits.

    Args:
        source: Path of a file, or "env:NAME" for an environment variable.

    Raises:
        UsageError: There is none, it is not hexadecimal, or it has another length. No message repeats what was read.
    """
    check_key_source(source)
    if source.startswith(ENVIRONMENT):
        name = source.removeprefix(ENVIRONMENT)
        text = os.environ.get(name, "")
        if not text:
            raise UsageError(
                f"key {source}: expected 64 hexadecimal digits in the variable {name}, got none; set it, or {MAKE}"
            )
    else:
        text = _read_text(Path(source))
    digits = text.strip()
    if not re.fullmatch(r"[0-9a-fA-F]*", digits):
        raise UsageError(f"key {source}: expected hexadecimal digits alone, got other characters; {MAKE}")
    if len(digits) != 2 * KEY_BYTES:
        raise UsageError(f"key {source}: expected {2 * KEY_BYTES} hexadecimal digits, got {len(digits)}; {MAKE}")
    return SecretKey(bytes.fromhex(digits))


def check_key_source(source: str) -> str:
    """Return a source of a key unless it is empty or is a key itself, which has no place in a recipe or a command.

    Raises:
        UsageError: It is one of the two; the text is not repeated.
    """
    if not source or source == ENVIRONMENT:
        raise UsageError(f"key: expected a file or env:NAME, got none; {MAKE}")
    if re.fullmatch(r"[0-9a-fA-F]{32,}", source):
        raise UsageError(
            "key: expected a file or env:NAME, got hexadecimal digits; if they are a key, it is in the history of this shell "
            f"or in a recipe now: {MAKE}, and name the file"
        )
    return source


def make_key_file(path: Path) -> None:
    """Write a new random key as 64 hexadecimal digits that the owner alone may read; an existing file stays.

    Raises:
        UsageError: The file exists, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as there:
        raise UsageError(
            f"{path}: expected no file, got one; it may be a key that weights need, so choose another name"
        ) from there
    except OSError as bad:
        raise UsageError(f"{path}: expected to write a key, got {bad.strerror or bad}; choose another folder") from bad
    with os.fdopen(handle, "w") as sink:
        sink.write(secrets.token_hex(KEY_BYTES) + "\n")
        sink.flush()
        os.fsync(sink.fileno())


def keyed_order(subkey: bytes, count: int) -> list[int]:
    """Return a permutation of 0 .. count - 1 drawn from a subkey, the same with every version of every library.

    The numbers are sorted by their HMAC-SHA256, which makes every permutation equally likely.
    """
    return sorted(range(count), key=lambda i: hmac.digest(subkey, i.to_bytes(4, "big"), "sha256"))


def keyed_half(subkey: bytes, count: int) -> list[bool]:
    """Return which positions a subkey selects: exactly half of them, of an odd count the smaller half."""
    chosen = set(keyed_order(subkey, count)[: count // 2])
    return [i in chosen for i in range(count)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError as bad:
        raise UsageError(f"key {path}: expected hexadecimal digits alone, got other bytes; {MAKE}") from bad
    except OSError as gone:
        raise UsageError(
            f"key {path}: expected a file with a key, got {gone.strerror or gone}; mend the path, or {MAKE}"
        ) from gone
