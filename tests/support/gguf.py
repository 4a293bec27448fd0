"""GGUF v3 files, read and written with numpy alone.

The writer makes the models of the tests; the reader feeds the float64 reference. Neither shares a
line with the program under test. Tensors are numpy arrays in row-major order, (rows, columns); in
the file the dimensions stand the other way round, as GGUF has it.
"""
import struct
from dataclasses import dataclass

import numpy as np

MAGIC = 0x46554747
ALIGNMENT = 32
BLOCK = 32  # elements of a block of the simple quantised types
SUPER_BLOCK = 256  # of a K-quant

# Value types of metadata.
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
           U64: "<Q", I64: "<q", F64: "<d"}

# Tensor types: name -> (id, elements of a block, bytes of a block).
TENSOR_TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, BLOCK, 18),
    "Q4_1": (3, BLOCK, 20),
    "Q5_0": (6, BLOCK, 22),
    "Q5_1": (7, BLOCK, 24),
    "Q8_0": (8, BLOCK, 34),
    "Q4_K": (12, SUPER_BLOCK, 144),
    "Q5_K": (13, SUPER_BLOCK, 176),
    "Q6_K": (14, SUPER_BLOCK, 210),
    "BF16": (30, 1, 2),
}
TYPE_NAMES = {row[0]: name for name, row in TENSOR_TYPES.items()}


# ------------------------------------------------------------------------------------- encoding

def _f16_bytes(x):
    return np.asarray(x, "<f2").reshape(-1, 1).view(np.uint8)


def _nibbles(q):
    """(n, 32) values 0..15 -> (n, 16) bytes: low nibbles are elements 0-15, high ones 16-31."""
    q = q.astype(np.uint8)
    return q[:, :16] | q[:, 16:] << 4


def _fifth_bits(q):
    """(n, 32) values 0..31 -> (n, 4) bytes: bit i is the fifth bit of element i."""
    bits = (q.astype(np.uint32) >> 4 & 1) << np.arange(BLOCK, dtype=np.uint32)
    return bits.sum(1, dtype=np.uint32).astype("<u4").reshape(-1, 1).view(np.uint8)


def _encode_symmetric(x, bits):
    """d = the value of largest magnitude / -2^(bits-1), q = x/d + 2^(bits-1)."""
    half = 1 << (bits - 1)
    peak = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    d = (peak / -half).astype(np.float16)
    inverse = np.divide(1.0, d, out=np.zeros(d.shape), where=d != 0)
    return d, np.clip(np.rint(x * inverse) + half, 0, 2 * half - 1)


def _encode_affine(x, bits):
    """d and m span the block's range, q = (x - m)/d."""
    top = (1 << bits) - 1
    m = x.min(1, keepdims=True).astype(np.float16)
    d = ((x.max(1, keepdims=True) - m) / top).astype(np.float16)
    inverse = np.divide(1.0, d, out=np.zeros(d.shape), where=d != 0)
    return d, m, np.clip(np.rint((x - m) * inverse), 0, top)


def encode(x, kind):
    """Bytes of a float array in a tensor type. The row length is a multiple of the block."""
    x = np.asarray(x, np.float64)
    if kind == "F32":
        return x.astype("<f4").tobytes()
    if kind == "F16":
        return x.astype("<f2").tobytes()
    if kind == "BF16":
        u = x.astype("<f4").view("<u4").astype(np.uint64)
        return (u + 0x7FFF + (u >> 16 & 1) >> 16).astype("<u2").tobytes()  # to nearest, ties to even
    if x.shape[-1] % BLOCK:
        raise ValueError(f"{kind}: a row of {x.shape[-1]} elements is no whole number of blocks")
    x = x.reshape(-1, BLOCK)
    if kind == "Q8_0":
        d = (np.abs(x).max(1, keepdims=True) / 127).astype(np.float16)
        inverse = np.divide(1.0, d, out=np.zeros(d.shape), where=d != 0)
        q = np.clip(np.rint(x * inverse), -127, 127).astype(np.int8).view(np.uint8)
        parts = [_f16_bytes(d), q]
    elif kind == "Q4_0":
        d, q = _encode_symmetric(x, 4)
        parts = [_f16_bytes(d), _nibbles(q)]
    elif kind == "Q4_1":
        d, m, q = _encode_affine(x, 4)
        parts = [_f16_bytes(d), _f16_bytes(m), _nibbles(q)]
    elif kind == "Q5_0":
        d, q = _encode_symmetric(x, 5)
        parts = [_f16_bytes(d), _fifth_bits(q), _nibbles(q.astype(np.uint8) & 15)]
    elif kind == "Q5_1":
        d, m, q = _encode_affine(x, 5)
        parts = [_f16_bytes(d), _f16_bytes(m), _fifth_bits(q), _nibbles(q.astype(np.uint8) & 15)]
    else:
        raise ValueError(f"no encoder for {kind}")
    return np.concatenate(parts, 1).tobytes()


# ------------------------------------------------------------------------------------- decoding

def _scale(blocks, at):
    return blocks[:, at:at + 2].copy().view("<f2").astype(np.float64)


def _low_high(packed):
    return np.concatenate([packed & 15, packed >> 4], 1).astype(np.float64)


def _bit_field(packed):
    bits = packed.copy().view("<u4") >> np.arange(BLOCK, dtype=np.uint32) & 1
    return bits.astype(np.float64) * 16


def _six_bit_scales(packed):
    """The 12 bytes of a Q4_K or Q5_K super-block: 8 scales and 8 minima of 6 bits each."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, rest & 15 | (low >> 6) << 4], 1)
    minimum = np.concatenate([high & 63, rest >> 4 | (high >> 6) << 4], 1)
    return scale.astype(np.float64), minimum.astype(np.float64)


def _decode_k45(blocks, five):
    scale, minimum = _six_bit_scales(blocks[:, 4:16])
    quants = blocks[:, 48 if five else 16:].reshape(-1, 4, BLOCK)  # 4 groups of low and high nibbles
    q = np.stack([quants & 15, quants >> 4], 2).reshape(-1, 8, BLOCK).astype(np.float64)
    if five:
        bit = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        q += 16.0 * bit
    d, dmin = _scale(blocks, 0), _scale(blocks, 2)
    return (d[:, :, None] * scale[:, :, None] * q) - dmin[:, :, None] * minimum[:, :, None]


def _decode_q6_k(blocks):
    low = blocks[:, :128].reshape(-1, 2, 2, BLOCK)  # halves of 128 elements, two runs of 32 bytes
    high = blocks[:, 128:192].reshape(-1, 2, BLOCK)
    scale = blocks[:, 192:208].copy().view(np.int8).reshape(-1, SUPER_BLOCK // 16, 1)
    nibble = np.concatenate([low & 15, low >> 4], 2)  # four runs of 32 elements in order
    top = np.stack([high >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    q = (nibble | top << 4).astype(np.float64) - 32
    q = q.reshape(-1, SUPER_BLOCK // 16, 16)
    return _scale(blocks, 208)[:, :, None] * scale * q


def decode(raw, kind, shape):
    """float64 array of the tensor's bytes."""
    if kind == "F32":
        return np.frombuffer(raw, "<f4").astype(np.float64).reshape(shape)
    if kind == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float64).reshape(shape)
    if kind == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.astype("<u4").view("<f4").astype(np.float64).reshape(shape)
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, TENSOR_TYPES[kind][2])
    if kind == "Q8_0":
        x = _scale(blocks, 0) * blocks[:, 2:].copy().view(np.int8)
    elif kind == "Q4_0":
        x = _scale(blocks, 0) * (_low_high(blocks[:, 2:]) - 8)
    elif kind == "Q4_1":
        x = _scale(blocks, 0) * _low_high(blocks[:, 4:]) + _scale(blocks, 2)
    elif kind == "Q5_0":
        x = _scale(blocks, 0) * (_low_high(blocks[:, 6:]) + _bit_field(blocks[:, 2:6]) - 16)
    elif kind == "Q5_1":
        x = _scale(blocks, 0) * (_low_high(blocks[:, 8:]) + _bit_field(blocks[:, 4:8]))
        x += _scale(blocks, 2)
    elif kind in ("Q4_K", "Q5_K"):
        x = _decode_k45(blocks, kind == "Q5_K")
    elif kind == "Q6_K":
        x = _decode_q6_k(blocks)
    else:
        raise ValueError(f"no decoder for {kind}")
    return x.reshape(shape)


# ------------------------------------------------------------------------------------- the file

def _string(s):
    raw = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind, value):
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        element, values = value
        head = struct.pack("<IQ", element, len(values))
        return head + b"".join(_value(element, v) for v in values)
    return struct.pack(SCALARS[kind], value)


def write(path, metadata, tensors):
    """metadata: key -> (type, value), an array's value being (element type, list).
    tensors: name -> (array, tensor type name)."""
    head = struct.pack("<IIQQ", MAGIC, 3, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        head += _string(key) + struct.pack("<I", kind) + _value(kind, value)
    data = b""
    for name, (array, kind) in tensors.items():
        shape = array.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", TENSOR_TYPES[kind][0], len(data))
        raw = encode(array, kind)
        data += raw + bytes(-len(raw) % ALIGNMENT)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGNMENT) + data)


@dataclass
class Gguf:
    metadata: dict  # key -> value
    tensors: dict  # name -> (tensor type name, shape, bytes)

    def tensor(self, name):
        """float64 array, or None."""
        if name not in self.tensors:
            return None
        kind, shape, raw = self.tensors[name]
        return decode(raw, kind, shape)


class _Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, fmt):
        values = struct.unpack_from(fmt, self.data, self.at)
        self.at += struct.calcsize(fmt)
        return values if len(values) > 1 else values[0]

    def string(self):
        n = self.take("<Q")
        self.at += n
        return self.data[self.at - n:self.at].decode("utf-8", "surrogateescape")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(SCALARS[kind])
        element, n = self.take("<IQ")
        return [self.value(element) for _ in range(n)]


def read(path):
    with open(path, "rb") as f:
        r = _Reader(f.read())
    magic, version, n_tensors, n_keys = r.take("<IIQQ")
    if magic != MAGIC or version != 3:
        raise ValueError(f"{path}: not a GGUF v3 file")
    metadata = {}
    for _ in range(n_keys):
        key = r.string()
        metadata[key] = r.value(r.take("<I"))
    table = []
    for _ in range(n_tensors):
        name = r.string()
        shape = [r.take("<Q") for _ in range(r.take("<I"))][::-1]
        table.append((name, shape, *r.take("<IQ")))
    align = metadata.get("general.alignment", ALIGNMENT)
    base = r.at + -r.at % align
    tensors = {}
    for name, shape, kind, offset in table:
        kind = TYPE_NAMES[kind]
        _, elements, size = TENSOR_TYPES[kind]
        n = int(np.prod(shape)) // elements * size
        tensors[name] = (kind, tuple(shape), r.data[base + offset:base + offset + n])
    return Gguf(metadata, tensors)
