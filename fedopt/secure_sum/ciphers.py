"""What is taken from cryptography: agreement on keys, derived keys, sealed letters, and streams of words."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

KEY = 32
"""Bytes of every key here, public ones too."""
NONCE = 12
SEALED = NONCE + 16
"""Bytes that sealing adds: a nonce before, a tag behind."""


class Pair(NamedTuple):
    """A private key of X25519 and the public one."""

    private: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"Pair(public={self.public.hex()})"  # so that no log shows the private one


def pair() -> Pair:
    """A new pair from the system's random numbers."""
    key = X25519PrivateKey.generate()
    return Pair(key.private_bytes_raw(), key.public_key().public_bytes_raw())


def agreed(private: bytes, public: bytes) -> bytes:
    """The secret that the two owners share (X25519, RFC 7748, section 6.1), not yet fit as a key.

    Raises ValueError for a public key that would make the same secret with everybody's private one.
    """
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def derived(secret: bytes, purpose: str, *numbers: int, salt: bytes | None = None) -> bytes:
    """A key that tells nothing of the secret, nor of the key for any other purpose or numbers (HKDF, RFC 5869)."""
    about = " ".join(["fedopt secure sum", purpose, *map(str, numbers)])
    return HKDF(SHA256(), KEY, salt, about.encode()).derive(secret)


def seal(key: bytes, text: bytes) -> bytes:
    """A random nonce and the text under ChaCha20-Poly1305 (RFC 8439)."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """The text, or None if one bit of it was changed or the key is another."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE], sealed[NONCE:], None)
    except (InvalidTag, ValueError):
        return None


def words(seed: bytes, d: int) -> Tensor:
    """The first d words of the keystream of ChaCha20 (RFC 8439), little-endian, nonce and first counter 0; int64 `[d]`.

    A seed is for one stream, so the nonce need not vary.
    """
    stream = bytearray(8 * d)
    Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor().update_into(bytes(8 * d), stream)
    return torch.from_numpy(np.frombuffer(stream, dtype="<i8").astype(np.int64, copy=False))
