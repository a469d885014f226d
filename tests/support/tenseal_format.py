"""TenSEAL's protobuf envelopes (tenseal/proto/{tensealcontext,tensors}.proto), reduced to the fields in use."""

from __future__ import annotations

import struct

from secagg.backends import seal_format
from secagg.scheme.params import LatticeParams

_DOUBLE, _BYTES = 1, 2


def pack_parms(params: LatticeParams, primes: tuple[int, ...], minor: int, plain_modulus: int = 0) -> bytes:
    """Return EncryptionParameters as SEAL saves them."""
    moduli = b"".join(seal_format._object(struct.pack("<Q", value), minor) for value in (*primes, plain_modulus))
    scheme = seal_format._SCHEMES[params.scheme]
    head = struct.pack("<BQQ", scheme, params.poly_modulus_degree, len(primes))
    return seal_format._object(head + moduli, minor)


def pack_context(parms: bytes, secret_key: bytes, scale: float) -> bytes:
    """Return a TenSEALContextProto with a secret key and symmetric encryption, without any other key."""
    public = _tag(3, _DOUBLE) + struct.pack("<d", scale)
    private = _field(1, secret_key)
    return _field(1, parms) + _field(2, public) + _field(3, private) + _tag(4, 0) + b"\x01"


def pack_vector_prefix(slots: int, ciphertext_nbytes: int) -> bytes:
    """Return all of a CKKSVectorProto of one ciphertext that stands before it: the size, and the field's tag."""
    return _field(1, _varint(slots)) + _tag(2, _BYTES) + _varint(ciphertext_nbytes)


def pack_vector_suffix(scale: float) -> bytes:
    """Return what stands behind the ciphertext: the scale."""
    return _tag(3, _DOUBLE) + struct.pack("<d", scale)


def vector_ciphertext(blob: bytes) -> memoryview:
    """Return the ciphertext of a CKKSVectorProto of one block.

    Raises
    ------
    ValueError
        If the blob is not a vector of exactly one ciphertext.
    """
    view, place, found = memoryview(blob), 0, None
    while place < len(view):
        tag, place = view[place], place + 1
        if tag & 7 == _DOUBLE:
            place += 8
            continue
        if tag & 7 != _BYTES:
            raise ValueError(f"field tag {tag} in a CKKSVector")
        length, place = _read_varint(view, place)
        if tag >> 3 == 2:
            if found is not None:
                raise ValueError("a CKKSVector of several ciphertexts")
            found = view[place : place + length]
        place += length
    if found is None or place != len(view):
        raise ValueError("a CKKSVector without a whole ciphertext")
    return found


def _field(number: int, value: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(value)) + value


def _tag(number: int, wire_type: int) -> bytes:
    return bytes([number << 3 | wire_type])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while view[place] & 0x80:
        value |= (view[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | view[place] << shift, place + 1
