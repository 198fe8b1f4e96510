"""Small ICC profiles made from their numbers, and the colours that they mean by the formulas, without any library."""

import struct

import numpy as np

# XYZ of the primaries, adapted to D50, a column each.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
D50 = np.array([0.9642, 1.0, 0.8249])
ADOBE_GAMMA = 563 / 256


def linear(values):
    """sRGB's curve: encoded to linear, both in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values):
    """The way back, clipped, in 0 .. 255."""
    values = np.clip(values, 0, 1)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def rgb_profile(primaries, gamma=None):
    """An RGB profile of three primaries; the curve is sRGB's unless a gamma is given."""
    curve = _gamma(gamma) if gamma else _curve(linear(np.linspace(0, 1, 1024)))
    tags = {b"wtpt": _xyz(D50)}
    for i, letter in enumerate((b"r", b"g", b"b")):
        tags |= {letter + b"XYZ": _xyz(primaries[:, i]), letter + b"TRC": curve}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma):
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": _gamma(gamma)})


def cmyk_profile(lab_of):
    """A press's profile; `lab_of` gives (L, a, b) for each of the 16 ways to print inks wholly or not at all."""
    nodes = [lab_of(*(int(bit) for bit in f"{i:04b}")) for i in range(16)]
    table = bytes(round(v) for L, a, b in nodes for v in (L * 2.55, a + 128, b + 128))
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + straight * 4 + table + straight * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": lut})


def srgb_of_lab(L, a, b):
    """CIE L*a*b* under D50 as sRGB in 0 .. 255."""
    f = (L + 16) / 116
    f = np.array([f + a / 500, f, f - b / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encoded(np.linalg.solve(SRGB, xyz))


def _profile(kind, space, connection, tags):
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)} | tags
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI", at + len(body), b"none", 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:]
    return head.ljust(128, b"\0") + table + body


def _xyz(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def _gamma(gamma):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _curve(values):
    return b"curv" + bytes(4) + struct.pack(f">I{len(values)}H", len(values), *np.rint(values * 65535).astype(int))
