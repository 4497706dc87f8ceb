"""A secret of 16 bytes in n shares, of which any t give it back and fewer tell nothing."""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

SECRET = 16
"""Bytes of a secret, and of each of its shares: an element of GF(2^128)."""


def split(secret: bytes, parties: int, threshold: int) -> list[bytes]:
    """The shares of parties 0 ... n-1: values at i + 1 of a random polynomial of degree t - 1 that is the secret at 0.

    Shamir 1979, 'How to share a secret'.
    """
    return [share for _, share in Shamir.split(threshold, parties, secret, ssss=False)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret from exactly t shares by party; something else from shares that do not belong together."""
    return Shamir.combine([(i + 1, share) for i, share in shares.items()], ssss=False)
