"""No compression: the float32 wire form."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedopt.registry import declare
from fedopt.types import FedoptError

_TAG = b"f32\0"
_HEADER = struct.Struct("<4sQ")  # tag, number of entries


@declare(kind="exact")
@dataclass(frozen=True)
class none:
    r"""Every entry as a little-endian IEEE 754 float32, behind a header of 12 bytes.

        payload = "f32\0" · d as uint64 · x₁ … x_d as float32,    12 + 4 d bytes

    Exact for float32, bit by bit; a float64 vector is rounded to the nearest float32.
    """

    def encode(self, x: Tensor, key: Tensor) -> bytes:
        """`x [d]` -> payload; the key plays no part. Raises FedoptError for anything but a vector of floats."""
        if x.dim() != 1 or not x.is_floating_point():
            raise FedoptError(f"a vector of floats [d] is needed, {list(x.shape)} of {x.dtype} was given")
        entries = x.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        return _HEADER.pack(_TAG, x.numel()) + entries.astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes, numel: int) -> Tensor:
        """Payload -> `[numel]` float32.

        The length is what `numel` asks for, never what the payload claims. Raises FedoptError for a payload of
        another length, another format or another number of entries.
        """
        if len(payload) != self.nbytes(numel):
            raise FedoptError(
                f"a payload of {self.nbytes(numel)} bytes is needed for {numel} entries in float32, one of"
                f" {len(payload)} bytes was given; do both ends have the same model and the same [compression]?"
            )
        tag, claimed = _HEADER.unpack_from(payload)
        if tag != _TAG or claimed != numel:
            raise FedoptError(
                f"a payload with tag {_TAG!r} and {numel} entries is needed, one with tag {tag!r} and {claimed} entries"
                " was given; do both ends have the same model and the same [compression]?"
            )
        # a copy, because the bytes are read-only
        return torch.from_numpy(np.frombuffer(payload, dtype="<f4", offset=_HEADER.size).astype(np.float32))

    def nbytes(self, numel: int) -> int:
        """12 + 4 numel."""
        return _HEADER.size + 4 * numel
