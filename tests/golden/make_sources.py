"""Miniature data sets in the schemas of Seg-Zero's, VisionReasoner's and EasyR1's sets on the hub.

Usage: python make_sources.py [FOLDER (default: sources next to this file)]

refcocog/data/train-*.parquet          id, problem, solution, image, img_height, img_width
multi/data/train-*.parquet             the same; solutions are JSON lists of objects, two shards
reasonseg/data/test-*.parquet          image, text, mask list<list<bool>>, image_id, ann_id, sizes
saved, saved_multi                     what save_to_disk writes: with and without splits
easyr1/{train,test}.parquet            images (a list), problem, answer
verl.parquet                           prompt (messages), images, reward_model.ground_truth
paths/rows.parquet                     images as paths; masks as PNG bytes
mask_forms.parquet                     masks as run lengths
file.arrow                             an Arrow file with a footer
large_*.parquet                        byte arrays of 150 KB by a formula, which test_sources.lua has
                                       too: with a dictionary, plain, and in pages of version 2
expected.json                          sizes, boxes and pixel sums that the tests compare

Written with datasets 5.2.0, pyarrow 26.0.1, Pillow 13.0.0, numpy 2.4.6. The fingerprints in
state.json differ from run to run.
"""
import io
import json
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as Pillow

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "sources")
if os.path.isdir(OUT):
    shutil.rmtree(OUT)
os.makedirs(OUT)

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}


def scene(i, width=84, height=84):
    """A filled circle on grey: its image, its mask, its box, the colour's name."""
    name = list(COLOURS)[i % 3]
    y, x = np.mgrid[:height, :width]
    cx, cy, r = 30 + 5 * i, 40 - 3 * i, 14 + i
    mask = (x - cx) ** 2 + (y - cy) ** 2 <= r * r
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[mask] = COLOURS[name]
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())]
    return pixels, mask, box, name


def png(pixels):
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def training_row(i, multi):
    pixels, _, box, name = scene(i)
    cx, cy = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    one = (f"<box>({box[0]},{box[1]}),({box[2]},{box[3]})</box>"
           f"<points>({cx},{cy}),({cx},{cy - 3})</points>")
    many = json.dumps([{"bbox_2d": box, "point_2d": [cx, cy]}])
    return {"id": f"refcocog_900719925474099{i}_0", "problem": f"the {name} circle",
            "solution": many if multi else one,
            "image": {"bytes": png(pixels), "path": None}, "img_height": 84, "img_width": 84}


training = Features({
    "id": Value("string"), "problem": Value("string"), "solution": Value("string"),
    "image": Image(), "img_height": Value("int64"), "img_width": Value("int64")})
single = Dataset.from_list([training_row(i, False) for i in range(3)], features=training)
multi = Dataset.from_list([training_row(i, True) for i in range(4)], features=training)


def hub(name, split, data, shards=1):
    folder = os.path.join(OUT, name, "data")
    os.makedirs(folder, exist_ok=True)
    for k in range(shards):
        part = data.shard(shards, k, contiguous=True)
        part.to_parquet(os.path.join(folder, f"{split}-{k:05d}-of-{shards:05d}.parquet"))


hub("refcocog", "train", single)
hub("multi", "train", multi, 2)

# Evaluation, at an image's own size.
rows, expected = [], []
for i in range(3):
    pixels, mask, box, name = scene(i, 112, 84)
    rows.append({"image": {"bytes": png(pixels), "path": f"{i}.png"}, "text": f"the {name} circle",
                 "mask": mask.tolist(), "image_id": f"image_{i}", "ann_id": f"00{i}",
                 "img_height": 84, "img_width": 112})
    expected.append({"width": 112, "height": 84, "box": box, "inside": int(mask.sum()),
                     "pixels": int(pixels.astype(np.int64).sum())})
reasonseg = Dataset.from_list(rows, features=Features({
    "image": Image(), "text": Value("string"), "mask": Sequence(Sequence(Value("bool"))),
    "image_id": Value("string"), "ann_id": Value("string"), "img_height": Value("int64"),
    "img_width": Value("int64")}))
hub("reasonseg", "test", reasonseg)

# save_to_disk.
DatasetDict({"train": multi, "test": single}).save_to_disk(os.path.join(OUT, "saved"), num_shards={
    "train": 2, "test": 1})
reasonseg.save_to_disk(os.path.join(OUT, "saved_masks"))

# EasyR1: a list of images.
os.makedirs(os.path.join(OUT, "easyr1"))
for split, first in ("train", 0), ("test", 2):
    table = Dataset.from_list([
        {"images": [{"bytes": png(scene(i)[0]), "path": None}],
         "problem": f"<image>the {scene(i)[3]} circle",
         "answer": training_row(i, False)["solution"]} for i in range(first, first + 2)],
        features=Features({"images": Sequence(Image()), "problem": Value("string"),
                           "answer": Value("string")}))
    table.to_parquet(os.path.join(OUT, "easyr1", split + ".parquet"))

# veRL: messages, and a struct that holds the ground truth.
messages = [[{"content": "Be brief.", "role": "system"}], []]
pq.write_table(pa.Table.from_pylist([
    {"data_source": "miniature", "images": [{"bytes": png(scene(i)[0]), "path": None}],
     "prompt": messages[i] + [{"content": f"<image>the {scene(i)[3]} circle", "role": "user"}],
     "ability": "seg", "extra_info": {"index": i, "split": "train"},
     "reward_model": {"ground_truth": training_row(i, False)["solution"], "style": "rule"}}
    for i in range(2)]), os.path.join(OUT, "verl.parquet"))

# Images as paths, masks as PNG.
os.makedirs(os.path.join(OUT, "paths", "images"))
plain = []
for i in range(2):
    pixels, mask, box, name = scene(i)
    Pillow.fromarray(pixels).save(os.path.join(OUT, "paths", "images", f"{i}.png"), optimize=True)
    plain.append({"id": 2 ** 60 + i, "question": f"the {name} circle",
                  "picture": f"images/{i}.png", "solution": training_row(i, False)["solution"],
                  "mask": png(mask.astype(np.uint8) * 255)})
pq.write_table(pa.Table.from_pylist(plain), os.path.join(OUT, "paths", "rows.parquet"))

# Run lengths, column by column, as COCO has them; an Arrow file.
lengths = []
for i in range(2):
    pixels, mask, box, name = scene(i)
    flat = mask.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))) if flat[0] == 0 else None
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    lengths.append({"image": {"bytes": png(pixels), "path": None}, "text": f"the {name} circle",
                    "mask": {"size": [84, 84], "counts": counts}})
table = pa.Table.from_pylist(lengths)
pq.write_table(table, os.path.join(OUT, "mask_forms.parquet"))
with pa.ipc.new_file(os.path.join(OUT, "file.arrow"), table.schema) as writer:
    writer.write_table(table)



def large(i):
    if i in (2, 5):
        return None if i == 2 else b""
    return bytes((j * j // 7 + i) % 251 if j < 1000 else (j // 1000 + i) % 256
                 for j in range(180000 + 1000 * i))


values = pa.table({"value": pa.array([large(i) for i in range(8)], pa.binary())})
for name, options in (("dictionary", {}), ("plain", {"use_dictionary": False}),
                      ("v2", {"use_dictionary": False, "data_page_version": "2.0"})):
    pq.write_table(values, os.path.join(OUT, f"large_{name}.parquet"), **options)

with open(os.path.join(OUT, "expected.json"), "w") as file:
    json.dump({"reasonseg": expected,
               "inside": [int(scene(i)[1].sum()) for i in range(2)]}, file)
