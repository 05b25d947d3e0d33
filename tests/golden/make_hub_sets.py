"""Miniature sets in the exact schemas of the sets on the hub that Seg-Zero, VisionReasoner and
EasyR1 train and evaluate on.

Usage: python make_hub_sets.py [FOLDER (default: hub_sets next to this file)]

refCOCOg_2k_840/data/train-*.parquet   id, problem, solution (one box, two points),
                                       image (840x840 PNG), img_height, img_width
VisionReasoner_multi_object/           the same columns, solutions are JSON lists:
                                       data/train-*.parquet as on the hub
VisionReasoner_multi_object_saved/     the same as save_to_disk leaves it: dataset_dict.json and
                                       train/*.arrow
ReasonSeg_val, ReasonSeg_test          image (JPEG), text, mask list<list<bool>>, image_id, ann_id,
                                       img_height, img_width; split test
refcoco_val/                           the same and bbox, four numbers
coco_val/                              no mask: cat_id, and bbox, a list of boxes
counting/                              no mask: count
geometry3k/                            images (a list), problem, answer; splits train and test
expected.json                          rows, boxes and pixel counts that the tests compare

Every set has the card (README.md) that push_to_hub writes, with its splits and features. Column
names and types are those of the published cards and of the scripts that make the sets; the types
of bbox, cat_id and count come from the code that reads them. The sets on the hub were written by
versions that call a list Sequence; datasets 5 calls it List, in the metadata alone.
Written with datasets 5.2.0, pyarrow 26.0.1, Pillow 13.0.0, numpy 2.4.6. The same bytes each time.
"""
import io
import json
import os
import shutil
import sys

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image as Pillow

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "hub_sets")
if os.path.isdir(OUT):
    shutil.rmtree(OUT)
os.makedirs(OUT)

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}
FRAME = 840


# ---- scenes: squares on grey ----
def paint(width, height, squares):
    """squares: [(colour, x, y, side)]. Returns the RGB pixels and one mask a square."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    masks = []
    for colour, x, y, side in squares:
        mask = np.zeros((height, width), bool)
        mask[y:y + side, x:x + side] = True
        pixels[mask] = COLOURS[colour]
        masks.append(mask)
    return pixels, masks


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())]


def encoded(pixels, kind):
    out = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 90}
    Pillow.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


# ---- writing as push_to_hub and save_to_disk do ----
def publish(name, splits):
    """One Parquet file a split, and the card."""
    folder = os.path.join(OUT, name)
    os.makedirs(os.path.join(folder, "data"))
    configs, infos = [], None
    for split, data in splits.items():
        data.to_parquet(os.path.join(folder, "data", f"{split}-00000-of-00001.parquet"))
        configs.append({"split": split, "path": f"data/{split}-*"})
        infos = data.info
    card = DatasetCardData()
    DatasetInfosDict({"default": infos}).to_dataset_card_data(card)
    MetadataConfigs({"default": {"data_files": configs}}).to_dataset_card_data(card)
    DatasetCard(f"---\n{card}\n---\n").save(os.path.join(folder, "README.md"))


def rows(list_of_rows, features, fingerprint):
    in_order = [{name: row[name] for name in features} for row in list_of_rows]
    data = Dataset.from_list(in_order, features=Features(features))
    data._fingerprint = fingerprint           # by default it differs from run to run
    return data


# ---- training sets ----
TRAINING = {"id": Value("string"), "problem": Value("string"), "solution": Value("string"),
            "image": Image(), "img_height": Value("int64"), "img_width": Value("int64")}


def training_image(squares):
    pixels, masks = paint(FRAME, FRAME, squares)
    return {"bytes": encoded(pixels, "PNG"), "path": None}, [box_of(m) for m in masks]


single = []
for i, (colour, x, y, side) in enumerate([("red", 100, 60, 300), ("blue", 420, 400, 250)]):
    image, (box,) = training_image([(colour, x, y, side)])
    c = side // 2
    single.append({
        "id": f"refcocog_{1719310 + i}_{200 + i}", "problem": f"the {colour} square",
        "solution": f"<box>({box[0]},{box[1]}),({box[2]},{box[3]})</box>"
                    f"<points>({x + c},{y + c}),({x + c // 2},{y + c})</points>",
        "image": image, "img_height": 480, "img_width": 640})
publish("refCOCOg_2k_840", {"train": rows(single, TRAINING, "a" * 16)})

several = []
SCENES = [[("red", 80, 500, 200), ("green", 500, 90, 260)], [("blue", 300, 300, 220)]]
for i, squares in enumerate(SCENES):
    image, boxes = training_image(squares)
    sentences = [f"the {colour} square" for colour, _, _, _ in squares]
    objects = [{"bbox_2d": b, "point_2d": [(b[0] + b[2]) // 2, (b[1] + b[3]) // 2]} for b in boxes]
    several.append({
        "id": "refcocog_" + "_".join(str(51000 + 10 * i + k) for k in range(len(squares))),
        "problem": "'" + "' and '".join(sentences) + "'",
        "solution": json.dumps(objects),
        "image": image, "img_height": 640, "img_width": 427})
multi = rows(several, TRAINING, "b" * 16)
publish("VisionReasoner_multi_object", {"train": multi})
DatasetDict({"train": multi}).save_to_disk(os.path.join(OUT, "VisionReasoner_multi_object_saved"))


# ---- evaluation sets: images at their own sizes, JPEG ----
HEAD = {"image": Image(), "text": Value("string")}
TAIL = {"image_id": Value("string"), "ann_id": Value("string"), "img_height": Value("int64"),
        "img_width": Value("int64")}
MASK = {"mask": Sequence(Sequence(Value("bool")))}
expected = {}


def evaluation_row(i, grey=False):
    """Landscape, portrait, landscape, ...; the mask is the first square."""
    width, height = ((128, 96), (90, 120))[i % 2]
    colours = list(COLOURS)
    target = (colours[i % 3], 10 + 5 * i, 8 + 4 * i, 30)
    pixels, masks = paint(width, height, [target, (colours[(i + 1) % 3], 60, 60, 20)])
    if grey:
        pixels = np.asarray(Pillow.fromarray(pixels).convert("L"))
    row = {"image": {"bytes": encoded(pixels, "JPEG"), "path": f"{i:06d}.jpg"},
           "text": f"The {colours[i % 3]} square.", "image_id": f"{4000 + i}",
           "ann_id": f"{90 + i}", "img_height": height, "img_width": width}
    return row, masks


def masked(name, n, box=False, fingerprint="c" * 16):
    table, facts = [], []
    for i in range(n):
        row, masks = evaluation_row(i, grey=i == 2)
        row["mask"] = masks[0].tolist()
        if box:
            row["bbox"] = box_of(masks[0])
        table.append(row)
        facts.append({"width": row["img_width"], "height": row["img_height"],
                      "box": box_of(masks[0]), "inside": int(masks[0].sum())})
    features = {**HEAD, **MASK, **TAIL}
    if box:
        features["bbox"] = Sequence(Value("int64"))
    publish(name, {"test": rows(table, features, fingerprint)})
    expected[name] = facts


masked("ReasonSeg_val", 2)
masked("ReasonSeg_test", 3)
masked("refcoco_val", 2, box=True)

boxes, counts = [], []
for i in range(2):
    row, masks = evaluation_row(i)
    found = [box_of(m) for m in masks]
    boxes.append({**row, "text": "square", "cat_id": 1,
                  "bbox": [[float(v) for v in b] for b in found[:2 - i]]})
    counts.append({**row, "text": "how many squares are there?", "count": len(found)})
BOXES = {"bbox": Sequence(Sequence(Value("float64"))), "cat_id": Value("int64")}
publish("coco_val", {"test": rows(boxes, {**HEAD, **TAIL, **BOXES}, "d" * 16)})
publish("counting", {"test": rows(counts, {**HEAD, **TAIL, "count": Value("int64")}, "e" * 16)})
expected["coco_val"] = [row["bbox"] for row in boxes]
expected["counting"] = [row["count"] for row in counts]

# ---- EasyR1 ----
geometry = []
for i in range(2):
    pixels, _ = paint(120, 100, [("red", 20, 20, 30 + 10 * i)])
    geometry.append({"images": [{"bytes": encoded(pixels, "PNG"), "path": None}],
                     "problem": "<image>Find the side of the square.", "answer": str(30 + 10 * i)})
EASY = {"images": Sequence(Image()), "problem": Value("string"), "answer": Value("string")}
publish("geometry3k", {"train": rows(geometry, EASY, "f" * 16),
                       "test": rows(geometry[:1], EASY, "f" * 16)})

with open(os.path.join(OUT, "expected.json"), "w") as file:
    json.dump(expected, file, indent=1)
    file.write("\n")
