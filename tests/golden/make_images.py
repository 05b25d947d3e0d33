"""Image files of every kind that segzero reads, with the pixels that Pillow and transformers make.

Usage: python make_images.py [OUTDIR (default: images next to this file)]      writes the fixtures
       python make_images.py --compare SEGZERO [DIR]      writes all files to DIR and compares

The pixels are those of transformers' processors: Pillow's exif_transpose, then transparency on
white and RGB (convert_to_rgb); of a GIF only convert("RGB"). OUTDIR gets some of the files and
cases.json: [{file, width, height, hash}], hash = FNV-1a (32 bits) of the RGB bytes. --compare
makes all files, lets the program SEGZERO read them, and prints how many are equal, by kind.
Left out: files that must fail (tests/unit/test_image.lua), masks (test_load_mask.lua).
"""
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps, features

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = []               # (kind, name, bytes, kept as a fixture)


def add(kind, name, data, keep=False):
    FILES.append((kind, name, data, keep))


def scene(w, h, seed, channels=3):
    """A smooth image with hard edges and some noise: [h, w, channels] u8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    planes = [np.sin(x / rng.uniform(3, 15) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(3, 15))
              for _ in range(channels)]
    base = (np.stack(planes, -1) * 100 + 128 + rng.normal(0, 6, (h, w, channels))).clip(0, 255)
    base = base.astype(np.uint8)
    for _ in range(3):
        x0, y0 = int(rng.integers(0, w)), int(rng.integers(0, h))
        base[y0:y0 + h // 3 + 1, x0:x0 + w // 3 + 1] = rng.integers(0, 256, channels)
    return base


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# ---- JPEG ----

def orientation_exif(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def orientation_tiff(kind, count, value, order="<"):
    """EXIF's TIFF block with a text before the orientation, whose type is `kind`. value: bytes."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    end = 8 + 2 + 2 * 12 + 4
    if len(value) > 4:
        field = struct.pack(order + "I", end)
        tail = value
    else:
        field = value.ljust(4, b"\0")
        tail = b""
    make = struct.pack(order + "HHI", 0x010F, 2, 3) + b"ab\0\0"
    entry = struct.pack(order + "HHI", 0x0112, kind, count) + field
    return head + struct.pack(order + "H", 2) + make + entry + bytes(4) + tail


# (name, TIFF's type, count, value as struct's format, the numbers)
ENTRIES = [
    ("byte", 1, 1, "B", [6]), ("ascii", 2, 2, "2s", [b"6"]), ("short", 3, 1, "H", [6]),
    ("short_two", 3, 2, "2H", [6, 3]), ("short_three", 3, 3, "3H", [8, 3, 1]),
    ("short_none", 3, 0, "H", [6]), ("long", 4, 1, "I", [6]), ("long_two", 4, 2, "2I", [5, 1]),
    ("rational", 5, 1, "2I", [12, 2]), ("rational_half", 5, 1, "2I", [13, 2]),
    ("rational_zero", 5, 1, "2I", [6, 0]), ("sbyte", 6, 1, "b", [6]),
    ("undefined", 7, 1, "B", [6]), ("sshort", 8, 1, "h", [6]), ("sshort_minus", 8, 1, "h", [-6]),
    ("slong", 9, 1, "i", [7]), ("srational", 10, 1, "2i", [-16, -2]), ("float", 11, 1, "f", [6]),
    ("float_part", 11, 1, "f", [6.5]), ("float_nan", 11, 1, "f", [float("nan")]),
    ("double", 12, 1, "d", [8]), ("ifd", 13, 1, "I", [6]), ("unknown", 14, 1, "I", [6]),
    ("long8", 16, 1, "Q", [6]), ("nine", 3, 1, "H", [9]),
]


def exif_segment(data):
    body = b"Exif\0\0" + data
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def carrier_files():
    """Orientations of unusual types, in several segments and in compressed XMP."""
    jpeg = encode(Image.fromarray(scene(12, 7, 60)), "JPEG")
    image = encode(Image.fromarray(scene(12, 7, 60)), "PNG")
    kept = {"byte", "short_two", "short_three", "rational", "sshort", "float", "double"}
    for name, kind, count, form, numbers in ENTRIES:
        for order in "<>":
            tiff = orientation_tiff(kind, count, struct.pack(order + form, *numbers), order)
            tail = "" if order == "<" else "_big"
            keep = name in kept and order == ("<" if kind % 2 else ">")
            add("exif type", f"exif_{name}{tail}.jpg", jpeg[:2] + exif_segment(tiff) + jpeg[2:],
                keep=keep)
            add("exif type", f"exif_{name}{tail}.png", with_chunk(image, chunk(b"eXIf", tiff)))

    # One block in several segments, the value in the last; a block of its own in the second does
    # not count.
    tiff = orientation_tiff(3, 3, struct.pack("<3H", 6, 1, 1))
    for cuts in ((9,), (24, 30), (len(tiff) - 6,), (0,)):
        parts = [tiff[i:j] for i, j in zip((0,) + cuts, cuts + (len(tiff),))]
        add("exif split", f"exif_split_{cuts[-1]}.jpg",
            jpeg[:2] + b"".join(exif_segment(p) for p in parts) + jpeg[2:], keep=cuts[-1] == 30)
    none = b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    add("exif split", "exif_second.jpg",
        jpeg[:2] + exif_segment(none) + exif_segment(tiff) + jpeg[2:], keep=True)

    # XMP: packed, after a language, cut off, damaged, of two chunks.
    text = b"<x tiff:Orientation=\"6\"/>"
    packed = zlib.compress(text)
    long = zlib.compress(b" " * 200000 + text)
    name = b"XML:com.adobe.xmp\0"
    for kind, bodies in (
            ("packed", [b"\1\0\0\0" + packed]),
            ("packed_long", [b"\1\0\0\0" + long]),
            ("packed_cut", [b"\1\0\0\0" + packed[:-3]]),
            ("packed_bad", [b"\1\0\0\0" + packed[:-1] + b"\0"]),
            ("packed_method", [b"\1\1\0\0" + packed]),
            ("language", [b"\0\0en\0words\0" + text]),
            ("packed_language", [b"\1\0en\0words\0" + packed]),
            ("packed_not", [b"\1\0\0\0" + text]),
            ("no_language", [b"\0\0" + text]),
            ("two", [b"\0\0\0\0" + text, b"\1\0\0\0" + zlib.compress(text.replace(b"6", b"3"))])):
        extra = b"".join(chunk(b"iTXt", name + body) for body in bodies)
        add("xmp packed", f"xmp_{kind}.png", with_chunk(image, extra),
            keep=kind in ("packed", "packed_long", "packed_bad"))


def jpeg_files():
    sizes = [(16, 16), (17, 13), (33, 7), (1, 1), (64, 47), (8, 31), (2, 3), (100, 75)]
    for i, (w, h) in enumerate(sizes):
        image = Image.fromarray(scene(w, h, i))
        for sub, name in ((0, "444"), (1, "422"), (2, "420"), ("4:1:1", "411")):
            for progressive in (False, True):
                tail = "_progressive" if progressive else ""
                add("jpeg", f"{name}_{w}x{h}{tail}.jpg",
                    encode(image, "JPEG", quality=80, subsampling=sub, progressive=progressive),
                    keep=i in (1, 4) and name != "411" and (i == 1 or not progressive))
        add("jpeg grey", f"grey_{w}x{h}.jpg", encode(image.convert("L"), "JPEG"), keep=i == 1)
        add("jpeg cmyk", f"cmyk_{w}x{h}.jpg", encode(image.convert("CMYK"), "JPEG", quality=90),
            keep=i == 1)
    photo = Image.fromarray(scene(61, 45, 50))
    for quality in (1, 5, 10, 20, 30, 40, 50, 60, 70, 85, 90, 95, 100):
        add("jpeg quality", f"quality_{quality}.jpg", encode(photo, "JPEG", quality=quality),
            keep=quality in (1, 100))
    for value in range(1, 9):
        data = encode(photo, "JPEG", exif=orientation_exif(value), quality=60)
        add("jpeg exif", f"exif_{value}.jpg", data, keep=True)
    for rows in (1, 2):
        data = encode(photo, "JPEG", restart_marker_rows=rows)
        add("jpeg restart", f"restart_{rows}.jpg", data, keep=rows == 1)
    add("jpeg restart", "restart_blocks.jpg", encode(photo, "JPEG", restart_marker_blocks=3))
    add("jpeg optimized", "optimized.jpg", encode(photo, "JPEG", optimize=True))
    add("jpeg rgb", "kept_rgb.jpg", encode(photo, "JPEG", keep_rgb=True), keep=True)
    plain = encode(photo.convert("CMYK"), "JPEG")
    add("jpeg cmyk", "cmyk_no_adobe.jpg", without_segment(plain, 0xEE), keep=True)
    add("jpeg cmyk", "ycck.jpg", as_ycck(plain), keep=True)
    whole = encode(photo, "JPEG")
    add("jpeg end", "no_end_marker_kept.jpg", whole + b"trailing bytes")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"6\"/>"
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    add("jpeg exif", "xmp_6.jpg", whole[:2] + segment + whole[2:], keep=True)


def without_segment(data, marker):
    """The JPEG without its segments of this marker."""
    at = 2
    out = data[:2]
    while data[at + 1] != 0xDA:
        length = struct.unpack(">H", data[at + 2:at + 4])[0]
        if data[at + 1] != marker:
            out += data[at:at + 2 + length]
        at += 2 + length
    return out + data[at:]


def as_ycck(data):
    """The CMYK JPEG with Adobe's transform flag 2: read as YCCK."""
    at = data.index(b"Adobe")
    return data[:at + 11] + b"\2" + data[at + 12:]


# ---- PNG ----

def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(w, h, depth, kind, rows, extra=b"", interlaced=False):
    """A PNG of packed rows (bytes); `rows` of an interlaced one are those of its passes."""
    header = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, int(interlaced))
    data = b"".join(b"\0" + row for row in rows)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra +
            chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def pack(values, depth):
    """One row of samples [n] as bytes."""
    if depth == 16:
        return values.astype(">u2").tobytes()
    if depth == 8:
        return values.astype(np.uint8).tobytes()
    bits = ((values[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(-1)).tobytes()


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2)]


def png_of(samples, depth, kind, extra=b"", interlaced=False):
    """samples: [h, w, channels]."""
    h, w, _ = samples.shape
    parts = [samples]
    if interlaced:
        parts = [samples[y0::dy, x0::dx] for x0, y0, dx, dy in PASSES]
    rows = [pack(row.reshape(-1).astype(np.int64), depth) for part in parts if part.shape[1]
            for row in part]
    return png(w, h, depth, kind, rows, extra, interlaced)


def png_files():
    kinds = {0: ("grey", 1, (1, 2, 4, 8, 16)), 2: ("rgb", 3, (8, 16)), 3: ("palette", 1, (1, 2, 4, 8)),
             4: ("grey_alpha", 2, (8, 16)), 6: ("rgba", 4, (8, 16))}
    rng = np.random.default_rng(7)
    for kind, (name, channels, depths) in kinds.items():
        for depth in depths:
            for w, h in ((19, 11), (1, 1), (5, 3), (32, 9)):
                samples = rng.integers(0, 1 << depth, (h, w, channels))
                palette = chunk(b"PLTE", rng.integers(0, 256, 3 << depth, np.uint8).tobytes()) \
                    if kind == 3 else b""
                for interlaced in (False, True):
                    tail = "_interlaced" if interlaced else ""
                    add("png", f"{name}{depth}_{w}x{h}{tail}.png",
                        png_of(samples, depth, kind, palette, interlaced),
                        keep=w == 19 and (not interlaced or depth in (1, 16) or kind == 6))
                transparent = trns(kind, depth, samples, rng)
                if transparent:
                    add("png tRNS", f"{name}{depth}_{w}x{h}_trns.png",
                        png_of(samples, depth, kind, palette + transparent),
                        keep=w == 19 and depth in (1, 8))
    photo = Image.fromarray(scene(61, 45, 51))
    for value in range(1, 9):
        add("png exif", f"exif_{value}.png", encode(photo, "PNG", exif=orientation_exif(value)),
            keep=value == 6)
    text = b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>8</tiff:Orientation>"
    add("png exif", "xmp_8.png", with_chunk(encode(photo, "PNG"), chunk(b"iTXt", text)))
    raw = orientation_exif(3)
    digits = raw.hex()
    lines = "\n".join(digits[i:i + 72] for i in range(0, len(digits), 72))
    body = f"\nexif\n{len(raw):8d}\n{lines}\n".encode()
    for name, data in ((b"tEXt", body), (b"zTXt", b"\0" + zlib.compress(body))):
        add("png exif", f"profile_{name.decode()}.png",
            with_chunk(encode(photo, "PNG"), chunk(name, b"Raw profile type exif\0" + data)))
    small = png_of(rng.integers(0, 16, (6, 9, 1)), 4, 3, chunk(b"PLTE", bytes(range(15))))
    add("png palette", "short_palette.png", small, keep=True)
    whole = encode(photo, "PNG")
    add("png end", "no_iend.png", whole[:-12], keep=False)
    for level in (0, 1, 9):
        add("png level", f"level_{level}.png", encode(photo, "PNG", compress_level=level))


def trns(kind, depth, samples, rng):
    """A tRNS chunk whose colour is in the image; None if the kind has none."""
    if kind == 3:
        return chunk(b"tRNS", rng.integers(0, 256, 1 << depth, np.uint8).tobytes())
    if kind == 0:
        return chunk(b"tRNS", struct.pack(">H", int(samples[0, 0, 0])))
    if kind == 2:
        return chunk(b"tRNS", struct.pack(">HHH", *(int(v) for v in samples[0, 0])))
    return None


def key_files():
    """Transparent colours of grey and RGB, which Pillow compares without scaling."""
    for depth in (1, 2, 4, 8, 16):
        last = (1 << depth) - 1
        samples = np.arange(16).reshape(2, 8, 1) * max(1, min(last, 255) // 15) % (last + 1)
        for key in (0, 1, 2, 4, 5, 15, 17, 34, 85, 170, 255, 256, 257, 290, 65535):
            data = png_of(samples, depth, 0, chunk(b"tRNS", struct.pack(">H", key)))
            add("png key", f"grey{depth}_key_{key}.png", data,
                keep=(depth, key) in ((1, 2), (2, 2), (4, 4), (4, 17), (8, 290)))
            if depth >= 8:
                colours = np.repeat(samples, 3, 2)
                data = png_of(colours, depth, 2, chunk(b"tRNS", struct.pack(">3H", *[key] * 3)))
                add("png key", f"rgb{depth}_key_{key}.png", data, keep=(depth, key) == (16, 17))


def with_chunk(data, extra):
    """The PNG with a chunk after its header."""
    return data[:33] + extra + data[33:]


# ---- the others ----

def webp_files():
    for i, (w, h) in enumerate([(16, 16), (17, 13), (1, 1), (63, 41), (40, 90)]):
        image = Image.fromarray(scene(w, h, 100 + i))
        alpha = Image.fromarray(scene(w, h, 200 + i, 4))
        for quality in (10, 75, 100):
            add("webp lossy", f"lossy_{w}x{h}_{quality}.webp",
                encode(image, "WEBP", quality=quality), keep=i == 1 and quality == 75)
            add("webp lossy alpha", f"lossy_alpha_{w}x{h}_{quality}.webp",
                encode(alpha, "WEBP", quality=quality), keep=i == 1 and quality == 75)
        add("webp lossless", f"lossless_{w}x{h}.webp", encode(image, "WEBP", lossless=True),
            keep=i == 1)
        add("webp lossless alpha", f"lossless_alpha_{w}x{h}.webp",
            encode(alpha, "WEBP", lossless=True, exact=True), keep=i == 1)
    photo = Image.fromarray(scene(30, 20, 300))
    for value in (3, 6):
        add("webp exif", f"exif_{value}.webp", encode(photo, "WEBP", exif=orientation_exif(value)),
            keep=value == 6)
    frames = [Image.fromarray(scene(24, 18, 310 + i, 4)) for i in range(3)]
    for lossless in (False, True):
        add("webp animated", f"animated_{lossless}.webp",
            encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless),
            keep=lossless)


def gif_files():
    for i, (w, h) in enumerate([(16, 16), (17, 13), (1, 1), (63, 41), (40, 9), (3, 100)]):
        image = Image.fromarray(scene(w, h, 400 + i))
        for colours in (2, 5, 16, 256):
            indexed = image.quantize(colours)
            for interlaced in (0, 1):
                add("gif", f"gif_{w}x{h}_{colours}_{interlaced}.gif",
                    encode(indexed, "GIF", interlace=interlaced),
                    keep=i == 1 and colours in (5, 256) and bool(interlaced))
        add("gif transparent", f"transparent_{w}x{h}.gif",
            encode(image.quantize(8), "GIF", transparency=3), keep=i == 1)
        add("gif grey", f"gif_grey_{w}x{h}.gif", encode(image.convert("L"), "GIF"))
    frames = [Image.fromarray(scene(24, 18, 410 + i)).quantize(16) for i in range(3)]
    add("gif animated", "animated.gif", encode(frames[0], "GIF", save_all=True,
                                               append_images=frames[1:]), keep=True)
    whole = encode(Image.fromarray(scene(10, 8, 420)).quantize(4), "GIF")
    add("gif screen", "larger_screen.gif", whole[:6] + struct.pack("<HH", 14, 12) + whole[10:],
        keep=True)
    large = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 90), np.uint8))
    add("gif", "noise.gif", encode(large, "GIF"))


def bmp(w, h, bits, pixels, palette=b"", compression=0, header=40, masks=b"", colours=0,
        from_top=False):
    if header == 12:
        info = struct.pack("<IHHHH", 12, w, h, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, w, -h if from_top else h, 1, bits, compression,
                           len(pixels), 0, 0, colours, 0)
        info += masks if header > 40 else b""
        info += bytes(header - len(info))
    if header == 40:
        info += masks
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + palette + pixels


def padded(row):
    return row + bytes(-len(row) % 4)


def bmp_files():
    rng = np.random.default_rng(11)
    for w, h in ((13, 9), (1, 1), (32, 4), (5, 7)):
        colours = rng.integers(0, 256, (256, 4), np.uint8)
        for from_top in (False, True):
            tail = "_top" if from_top else ""
            for bits in (1, 4, 8):
                rows = [padded(pack(rng.integers(0, 1 << bits, w), bits)) for _ in range(h)]
                add("bmp palette", f"bmp{bits}_{w}x{h}{tail}.bmp",
                    bmp(w, h, bits, b"".join(rows), colours[:1 << bits].tobytes(),
                        from_top=from_top), keep=w == 13 and not from_top)
            for bits in (16, 24, 32):
                rows = [padded(rng.bytes(w * bits // 8)) for _ in range(h)]
                add("bmp", f"bmp{bits}_{w}x{h}{tail}.bmp",
                    bmp(w, h, bits, b"".join(rows), from_top=from_top),
                    keep=w == 13 and (from_top or bits == 16))
        rows = b"".join(padded(rng.bytes(w * 3)) for _ in range(h))
        add("bmp os2", f"os2_24_{w}x{h}.bmp", bmp(w, h, 24, rows, header=12), keep=w == 13)
        rows = b"".join(padded(pack(rng.integers(0, 16, w), 4)) for _ in range(h))
        add("bmp os2", f"os2_4_{w}x{h}.bmp",
            bmp(w, h, 4, rows, colours[:16, :3].tobytes(), header=12), keep=w == 13)
        for name, masks in (("565", (0xf800, 0x7e0, 0x1f)), ("555", (0x7c00, 0x3e0, 0x1f))):
            rows = b"".join(padded(rng.bytes(w * 2)) for _ in range(h))
            add("bmp masks", f"masks{name}_{w}x{h}.bmp",
                bmp(w, h, 16, rows, compression=3, masks=struct.pack("<3I", *masks)),
                keep=w == 13 and name == "565")
        for name, masks in (("rgba", (0xff, 0xff00, 0xff0000, 0xff000000)),
                            ("bgra", (0xff0000, 0xff00, 0xff, 0xff000000)),
                            ("abgr", (0xff000000, 0xff0000, 0xff00, 0xff)),
                            ("bgrx", (0xff0000, 0xff00, 0xff, 0)), ("none", (0, 0, 0, 0))):
            add("bmp masks", f"masks_{name}_{w}x{h}.bmp",
                bmp(w, h, 32, rng.bytes(w * h * 4), compression=3, header=124,
                    masks=struct.pack("<4I", *masks)), keep=w == 13 and name == "rgba")
        for bits in (8, 4):
            indexes = rng.integers(0, 1 << bits, (h, w)) // (1 if w < 8 else 3)
            add("bmp runs", f"runs{bits}_{w}x{h}.bmp",
                bmp(w, h, bits, run_lengths(indexes, bits, rng), colours[:1 << bits].tobytes(),
                    compression=1 if bits == 8 else 2), keep=w == 13)


def run_lengths(indexes, bits, rng):
    """Runs and plain pixels by turns, an end mark after each row."""
    out = b""
    for row in indexes:
        at = 0
        while at < len(row):
            n = int(min(len(row) - at, rng.integers(1, 9)))
            if n >= 3 and rng.random() < 0.5:
                plain = pack(row[at:at + n], bits)
                out += bytes([0, n]) + plain + bytes(len(plain) % 2)
                at += n
            else:
                value = int(row[at])
                same = 1
                while at + same < len(row) and row[at + same] == value and same < 255:
                    same += 1
                out += bytes([same, value if bits == 8 else value * 17])
                at += same
        out += b"\0\0"
    return out + b"\0\1"


def pnm_files():
    rng = np.random.default_rng(13)
    for w, h in ((13, 9), (1, 1), (40, 3)):
        for maximum in (1, 7, 100, 255, 256, 1000, 65535):
            for kind, channels in ((5, 1), (6, 3)):
                samples = rng.integers(0, maximum + 1, (h, w, channels))
                data = samples.astype(">u2" if maximum > 255 else np.uint8).tobytes()
                head = f"P{kind}\n# a comment\n{w} {h}\n{maximum}\n".encode()
                add("pnm", f"p{kind}_{w}x{h}_{maximum}.pnm", head + data,
                    keep=w == 13 and maximum in (7, 255, 1000, 65535))
                text = " ".join(str(v) for v in samples.reshape(-1))
                head = f"P{kind - 3} {w}\n{h} {maximum} # the largest\n".encode()
                add("pnm text", f"p{kind - 3}_{w}x{h}_{maximum}.pnm", head + text.encode() + b"\n",
                    keep=w == 13 and maximum in (7, 65535))
        bits = rng.integers(0, 2, (h, w))
        rows = b"".join(pack(row, 1) for row in bits)
        add("pnm bits", f"p4_{w}x{h}.pbm", f"P4 {w} {h}\n".encode() + rows, keep=w == 13)
        text = "\n".join("".join(str(v) for v in row) for row in bits)
        add("pnm bits", f"p1_{w}x{h}.pbm", f"P1\n{w} {h}\n{text}\n".encode(), keep=w == 13)


# ---- what the reference makes of them ----

def reference(data):
    """RGB [h, w, 3] as transformers makes it (image_transforms.convert_to_rgb)."""
    image = Image.open(io.BytesIO(data))
    is_gif = image.format == "GIF"
    image = ImageOps.exif_transpose(image)
    has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
    if has_alpha and not is_gif:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def fnv(data):
    value = 0x811c9dc5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xffffffff
    return f"{value:08x}"


def write_fixtures(out):
    os.makedirs(out, exist_ok=True)
    cases = []
    for _, name, data, keep in FILES:
        if not keep:
            continue
        pixels = reference(data)
        with open(os.path.join(out, name), "wb") as f:
            f.write(data)
        cases.append({"file": name, "width": pixels.shape[1], "height": pixels.shape[0],
                      "hash": fnv(pixels.tobytes())})
    with open(os.path.join(out, "cases.json"), "w") as f:
        f.write("[\n" + ",\n".join("  " + json.dumps(c) for c in cases) + "\n]\n")
    print(f"{len(cases)} files, {sum(os.path.getsize(os.path.join(out, c['file'])) for c in cases)} bytes")
    print("Pillow", PIL.__version__, "libjpeg-turbo", features.version("libjpeg_turbo"), "libwebp",
          features.version("webp"))


READER = """
local sz = require "segzero"
local ffi = require "ffi"
for name in io.lines() do
  local ok, img = pcall(sz.image.load, arg[1] .. "/" .. name)
  local out = assert(io.open(arg[1] .. "/" .. name .. ".raw", "wb"))
  if ok then
    out:write(("%d %d\\n"):format(img.width, img.height))
    out:write(ffi.string(img:pixels(), img.width * img.height * 3))
    img:free()
  else
    out:write("error " .. img .. "\\n")
  end
  out:close()
end
"""


def compare(program, folder):
    os.makedirs(folder, exist_ok=True)
    for _, name, data, _ in FILES:
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)
    script = os.path.join(folder, "reader.lua")
    with open(script, "w") as f:
        f.write(READER)
    names = "\n".join(name for _, name, _, _ in FILES)
    subprocess.run([program, "--threads", "1", script, folder], input=names.encode(), check=True)

    counts = {}
    for kind, name, data, _ in FILES:
        with open(os.path.join(folder, name + ".raw"), "rb") as f:
            head = f.readline().decode().split()
            raw = f.read()
        try:
            want = reference(data)
        except Exception as error:      # Pillow refuses it: so must the program
            want = None
            good = head[0] == "error"
            print(f"{name}: Pillow says {error}, the program {' '.join(head)}")
        if want is not None:
            good = head[0] != "error" and raw == want.tobytes() and \
                [int(v) for v in head] == [want.shape[1], want.shape[0]]
            if not good and head[0] != "error" and len(raw) == want.size:
                off = np.abs(np.frombuffer(raw, np.uint8).astype(int) - want.reshape(-1))
                print(f"{name}: {(off > 0).sum()} of {off.size} bytes differ, by up to {off.max()}")
            elif not good:
                print(f"{name}: {want.shape[1]} x {want.shape[0]} expected, got {' '.join(head)}")
        total, equal = counts.get(kind, (0, 0))
        counts[kind] = (total + 1, equal + good)
    for kind, (total, equal) in sorted(counts.items()):
        print(f"{kind:22} {equal:4} of {total:4} equal")
    total = sum(t for t, _ in counts.values())
    equal = sum(e for _, e in counts.values())
    print(f"{'all':22} {equal:4} of {total:4} equal")
    return 0 if equal == total else 1


def main():
    for make in (jpeg_files, carrier_files, png_files, key_files, webp_files, gif_files,
                 bmp_files, pnm_files):
        make()
    if len(sys.argv) > 2 and sys.argv[1] == "--compare":
        folder = sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp()
        return compare(sys.argv[2], folder)
    write_fixtures(sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "images"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
