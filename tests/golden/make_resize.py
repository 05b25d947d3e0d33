"""Golden resizes: Pillow's Image.resize with BILINEAR and BICUBIC, whole image, no box, no
reducing gap.

Usage: python make_resize.py [OUTPUT (default: resize.safetensors next to this file)]

OUTPUT holds u8 tensors [h, w, 3] (RGB) and [h, w] (L). For case k: "k.src", and "k.bilinear.HxW"
and "k.bicubic.HxW" for each target size (height x width). Pillow rounds to u8 after each of its two
passes, so equality is exact. """
import os
import sys

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# (mode, kind, source h x w, targets h x w)
CASES = [
    ("RGB", "noise", (16, 16),
     [(16, 16), (32, 32), (8, 8), (16, 23), (23, 16), (5, 16), (16, 5), (1, 1), (7, 29)]),
    ("RGB", "noise", (17, 31), [(28, 28), (45, 52), (9, 40), (40, 9), (17, 62), (34, 31), (3, 3)]),
    ("RGB", "noise", (31, 5), [(10, 10), (31, 1), (1, 5), (62, 11), (2, 50)]),
    ("RGB", "noise", (1, 1), [(1, 1), (5, 7), (1, 9), (9, 1)]),
    ("RGB", "noise", (1, 40), [(1, 13), (1, 77), (4, 40), (6, 11)]),
    ("RGB", "noise", (40, 1), [(13, 1), (77, 1), (40, 4), (11, 6)]),
    ("RGB", "noise", (2, 3), [(50, 40), (3, 2), (1, 2)]),
    ("RGB", "noise", (60, 47), [(28, 28), (13, 47), (60, 11), (7, 9), (61, 48)]),
    ("RGB", "edges", (24, 24), [(60, 60), (17, 19), (25, 23), (8, 50)]),
    ("RGB", "noise", (3, 300), [(3, 28), (28, 28), (3, 299)]),
    ("RGB", "noise", (300, 3), [(28, 3), (28, 28), (301, 3)]),
    ("L", "noise", (19, 23), [(19, 23), (28, 14), (11, 46), (5, 3), (1, 23)]),
    ("L", "edges", (33, 20), [(66, 40), (16, 10), (34, 21), (7, 20)]),
    ("L", "noise", (1, 7), [(3, 3), (1, 30)]),
    ("RGB", "noise", (96, 64), [(1, 64), (20, 15), (96, 7)]),
]


def source(mode, kind, size, rng):
    shape = size + (3,) if mode == "RGB" else size
    if kind == "noise":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    # Hard black and white edges: bicubic overshoots there and must be clipped.
    return np.where(rng.random(shape) < 0.5, 0, 255).astype(np.uint8).repeat(3, 0)[: size[0]]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    output = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "resize.safetensors")
    rng = np.random.default_rng(5)
    out = {}
    for k, (mode, kind, size, targets) in enumerate(CASES):
        src = source(mode, kind, size, rng)
        out[f"{k}.src"] = src
        for h, w in targets:
            for name, code in FILTERS.items():
                got = np.asarray(Image.fromarray(src, mode=None).resize((w, h), code))
                assert got.shape[:2] == (h, w) and got.dtype == np.uint8
                out[f"{k}.{name}.{h}x{w}"] = got.copy()
    save_file(out, output, {"pillow": PIL.__version__})
    print(len(out), "tensors,", os.path.getsize(output), "bytes")


if __name__ == "__main__":
    main()
