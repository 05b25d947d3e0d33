"""Writes annotations/: miniature sets in the layouts of COCO, refer, gRefCOCO and LISA's ReasonSeg,
and expected.json: what the original packages read in them.

    python3 tests/golden/make_annotations.py       pycocotools 2.0.11, numpy 2.4.6, Pillow 13.0.0,
                                                   opencv-python-headless 5.0.0.93

Masks in expected.json are run lengths over the rows, first outside. COCO's are pycocotools'
(frPyObjects, merge, decode), ReasonSeg's are drawn with OpenCV by the rules of LISA's
get_mask_from_json.
"""
import collections
import json
import pathlib
import pickle
import random

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

HERE = pathlib.Path(__file__).parent / "annotations"
SIZES = [(84, 84), (84, 84), (96, 70), (84, 84)]


def rows_of(mask):
    runs, inside, count = [], 0, 0
    for value in np.asarray(mask, np.uint8).reshape(-1):
        if value != inside:
            runs.append(count)
            inside, count = int(value), 0
        count += 1
    return runs + [count]


def pixel_box(mask):
    """The first and last column and row with a pixel inside: left, top, right, bottom."""
    ys, xs = np.where(mask)
    return [int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())]


def write_json(path, value, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))


def draw_image(path, size, shapes):
    image = Image.new("RGB", size, (120, 130, 140))
    pen = ImageDraw.Draw(image)
    for colour, points in shapes:
        pen.polygon([tuple(p) for p in points], fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=60)


def decode(segmentation, width, height):
    """A segmentation's mask; several parts are united."""
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list):
        return coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width)))
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    parts = [coco.frPyObjects(p, height, width) if isinstance(p["counts"], list) else p
             for p in parts]
    return coco.decode(coco.merge(parts))


def instances(prefix):
    """Images, annotations and categories in COCO's layout."""
    rng = random.Random(7)
    images, annotations = [], []
    for i, (width, height) in enumerate(SIZES):
        images.append({"license": 1, "file_name": f"{prefix}{i + 1:012d}.jpg", "height": height,
                       "width": width, "id": 100 + i, "coco_url": "http://images/\"a\\b\""})

    def add(image, category, segmentation, crowd=0):
        info = images[image]
        mask = decode(segmentation, info["width"], info["height"])
        box = [float(v) for v in coco.toBbox(coco.encode(np.asfortranarray(mask)))]
        annotations.append({"segmentation": segmentation, "area": int(mask.sum()), "iscrowd": crowd,
                            "image_id": info["id"], "bbox": box, "category_id": category,
                            "id": 5000 + len(annotations)})

    # Polygons of several parts, and of one.
    add(0, 1, [[10.5, 10.25, 40.0, 12.5, 38.2, 44.9, 12.0, 40.0],
               [50.0, 50.0, 60.5, 50.0, 60.5, 58.0]])
    add(0, 1, [[60.0, 10.0, 80.0, 10.0, 80.0, 30.0, 60.0, 30.0]])
    add(0, 18, [[5.0, 60.0, 30.0, 62.0, 28.0, 80.0, 6.0, 78.0]])
    corners = []
    for i in range(9):
        for turn in (np.cos, np.sin):
            length = 30 * rng.uniform(.5, 1)
            corners.append(round(42 + length * float(turn(i / 9 * 6.283)), 2))
    add(1, 18, [corners])
    # Run lengths: compressed, a list, and a list of two.
    grid = np.zeros((70, 96), np.uint8, order="F")
    grid[10:40, 20:50] = 1
    packed = coco.encode(grid)
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    add(2, 1, packed)
    grid = np.zeros((70, 96), np.uint8, order="F")
    grid[5:20, 60:90] = 1
    grid[30:35, 60:90] = 1
    counts = rows_of(np.asfortranarray(grid).reshape(-1, order="F"))
    add(2, 1, {"size": [70, 96], "counts": counts}, crowd=1)
    other = coco.encode(grid)
    other = {"size": other["size"], "counts": other["counts"].decode()}
    add(2, 18, [packed, other])
    # A crowd alone.
    add(3, 1, {"size": [84, 84], "counts": [84 * 10 + 5, 60, 84 * 84 - 84 * 10 - 65]}, crowd=1)
    add(3, 18, [[20.0, 20.0, 60.0, 20.0, 60.0, 60.0, 20.0, 60.0]])
    return {"info": {"description": "miniature"}, "licenses": [], "images": images,
            "annotations": annotations,
            "categories": [{"supercategory": "person", "id": 1, "name": "person"},
                           {"supercategory": "animal", "id": 18, "name": "dog"}]}


def size_of(data, image_id):
    for info in data["images"]:
        if info["id"] == image_id:
            return info["width"], info["height"]
    raise KeyError(image_id)


def union(data, annotations):
    if not annotations:
        return None
    width, height = size_of(data, annotations[0]["image_id"])
    total = np.zeros((height, width), bool)
    for one in annotations:
        total |= decode(one["segmentation"], width, height).astype(bool)
    return rows_of(total)


def expect_coco(data):
    out = []
    for info in data["images"]:
        for category in data["categories"]:
            found = [a for a in data["annotations"]
                     if a["image_id"] == info["id"] and a["category_id"] == category["id"]]
            plain = [a for a in found if not a["iscrowd"]]
            if not plain:
                continue
            out.append({"id": f"{info['id']}_{category['id']}", "text": category["name"],
                        "ann_id": ",".join(str(a["id"]) for a in plain), "size": [info["width"],
                                                                                 info["height"]],
                        "boxes": [[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2],
                                   a["bbox"][1] + a["bbox"][3]] for a in plain],
                        "mask": union(data, plain),
                        "ignore": union(data, [a for a in found if a["iscrowd"]])})
    return out


def write_images(folder, data):
    colours = [(200, 40, 40), (40, 160, 60), (50, 60, 200)]
    for info in data["images"]:
        shapes = []
        for a in data["annotations"]:
            parts = a["segmentation"]
            is_polygons = isinstance(parts, list) and isinstance(parts[0], list)
            if a["image_id"] == info["id"] and is_polygons:
                for part in parts:
                    shapes.append((colours[a["id"] % 3], np.reshape(part, (-1, 2)).tolist()))
        draw_image(folder / info["file_name"], (info["width"], info["height"]), shapes)


def ref(number, ann, image, split, texts, numpy=False):
    whole = np.int64 if numpy else int
    first = 10 * number
    return {"sent_ids": [first + i for i in range(len(texts))],
            "file_name": f"COCO_train2014_{image:012d}_{ann}.jpg", "ann_id": whole(ann),
            "ref_id": whole(number), "image_id": whole(image), "split": split,
            "category_id": 1, "sentences": [
                {"tokens": t.lower().rstrip(".").split(), "raw": t, "sent_id": first + i,
                 "sent": t.lower().rstrip(".")} for i, t in enumerate(texts)]}


def refer_sets(data):
    umd = [ref(1, 5000, 100, "train", ["The left shape.", "a shape in two parts"]),
           ref(2, 5001, 100, "train", ["square on the right"]),
           ref(3, 5002, 100, "val", ["the low one"]),
           ref(4, 5003, 101, "train", ["A star, it's \"odd\""]),
           ref(5, 5004, 102, "test", ["caf\u00e9 table"]),
           ref(6, 5006, 102, "val", ["both boxes", "the two boxes"]),
           ref(7, 5008, 103, "train", ["the square"])]
    unc = [ref(11, 5000, 100, "train", ["left"], numpy=True),
           ref(12, 5001, 100, "testA", ["right"], numpy=True),
           ref(13, 5003, 101, "testB", ["star"], numpy=True),
           ref(14, 5008, 103, "testAB", ["square", "box"], numpy=True),
           ref(15, 5002, 100, "val", ["low"], numpy=True)]
    return umd, unc


def expect_refer(title, refs, data, split):
    out = []
    for one in refs:
        if one["split"] != split:
            continue
        ids = one["ann_id"] if isinstance(one["ann_id"], list) else [one["ann_id"]]
        found = [a for i in ids for a in data["annotations"] if a["id"] == i]
        out.append({"id": f"{title}_{one['ref_id']}",
                    "texts": [s["sent"] for s in one["sentences"]],
                    "objects": len(found), "mask": union(data, found),
                    "pixel_boxes": [pixel_box(decode(a["segmentation"],
                                                     *size_of(data, a["image_id"])))
                                    for a in found],
                    "ann_id": ",".join(str(a["id"]) for a in found) or "-1"})
    return out


def grefs():
    def one(number, anns, image, split, texts):
        made = ref(number, 0, image, split, texts)
        made.update(ann_id=anns, no_target=anns == [-1], category_id=[1] * len(anns))
        return made
    return [one(21, [5000, 5001], 100, "train", ["everything above", "the two on top"]),
            one(22, [-1], 101, "train", ["a red bicycle"]),
            one(23, [5003], 101, "train", ["the star"]),
            one(24, [5008], 103, "val", ["the square"]),
            one(25, [-1], 103, "val", ["the dog on the left", "no such thing"]),
            one(26, [5000, 5001, 5002], 100, "val", ["all three"])]


def lisa_mask(shapes, width, height):
    """Values 0, 1 (target) and 255 (ignore) as LISA draws them."""
    def draw(canvas, points, value):
        corners = np.array([points], dtype=np.int32)
        cv2.polylines(canvas, corners, True, value, 1)
        cv2.fillPoly(canvas, corners, value)

    kept = [s for s in shapes if s["label"].lower() != "flag"]
    areas = []
    for shape in kept:
        canvas = np.zeros((height, width), np.uint8)
        draw(canvas, shape["points"], 1)
        areas.append(canvas.sum())
    mask = np.zeros((height, width), np.uint8)
    for i in np.argsort(areas)[::-1]:
        draw(mask, kept[i]["points"], 255 if "ignore" in kept[i]["label"].lower() else 1)
    return mask


def star(rng, cx, cy, radius):
    points = []
    for i in range(11):
        r = radius * rng.uniform(0.4, 1)
        angle = i / 11 * 6.283
        points.append([cx + r * float(np.cos(angle)), cy + r * float(np.sin(angle))])
    return points


def reasonseg():
    rng = random.Random(11)
    sets = {}
    square = [[20, 20], [60, 20], [60, 60], [20, 60]]
    sets["train"] = {
        "a_1": ((84, 84), ["what stands out?", "the thing that you would hold"], False,
                [("target", star(rng, 40, 40, 35))]),
        "b_2": ((96, 70), ["Where would one sit?"], True,
                [("target", star(rng, 30, 30, 25)), ("target", star(rng, 70, 40, 20))]),
    }
    sets["val"] = {
        # The ignored region is on top where it is the smaller one.
        "c_3": ((84, 84), ["the part that is lit", "not used here"], True,
                [("ignore", [[30, 30], [50, 30], [50, 50], [30, 50]]), ("target", square),
                 ("flag", [[0, 0], [10, 0], [10, 10]])]),
        # The target is on top, and leaves the image.
        "d_4": ((84, 84), ["caf\u00e9 \u2013 the cup"], True,
                [("target", star(rng, 80, 40, 25)),
                 ("Ignore", [[45, 5], [83, 5], [83, 80], [45, 80]])]),
        "e_5": ((96, 70), ["the line"], False,
                [("target", [[5.7, 5.2], [80.9, 60.4]]), ("ignore", [[90, 10]])]),
    }
    expected = {}
    for split, entries in sets.items():
        for stem, (size, texts, is_sentence, shapes) in entries.items():
            shapes = [{"label": label, "points": points, "image_name": stem + ".jpg"}
                      for label, points in shapes]
            encoding = "cp1252" if stem == "d_4" else "utf-8"
            write_json(HERE / "ReasonSeg" / split / (stem + ".json"),
                       {"shapes": shapes, "text": texts, "is_sentence": is_sentence}, encoding)
            drawn = [((200, 60, 60), s["points"]) for s in shapes if len(s["points"]) > 1]
            draw_image(HERE / "ReasonSeg" / split / (stem + ".jpg"), size, drawn)
            mask = lisa_mask(shapes, *size)
            expected[stem] = {"texts": texts, "is_sentence": is_sentence, "size": size,
                              "pixel_box": pixel_box(mask == 1),
                              "mask": rows_of(mask == 1),
                              "ignore": rows_of(mask == 255) if (mask == 255).any() else None}
    return expected


def pickles():
    value = {"text": "it's \"q\" \n \u00e9 \u2603 \U0001f600 \\", "tuple": ("a", 2, 3.5, -7),
             "none": None, "yes": True, "no": False, "big": 2 ** 40, "negative": -2 ** 40,
             "int64": np.int64(77),
             "float32": np.float32(1.5), "uint8": np.uint8(200), "bool": np.bool_(True),
             "bytes": b"\xff\x00a\xc3\xa9", "kind": "a key", "n": "another", 3: "three",
             True: "yes",
             "ordered": collections.OrderedDict([("x", 1), ("y", 2)]), "empty_list": [],
             "empty_dict": {}, "empty_tuple": (), "infinite": float("inf")}
    folder = HERE / "pickles"
    folder.mkdir(parents=True, exist_ok=True)
    for protocol in range(6):
        (folder / f"plain{protocol}.p").write_bytes(pickle.dumps([value, value], protocol=protocol))


def polygons():
    """Polygons of which every second one leaves the image, and the pixels that OpenCV fills."""
    rng = random.Random(3)
    out = []
    for i in range(60):
        width, height = rng.randint(1, 24), rng.randint(1, 24)
        over = 15 * (i % 2)
        points = []
        for _ in range(rng.choice([1, 2, 3, 4, 5, 7, 12])):
            points.append([round(rng.uniform(-over, width + over), 2),
                           round(rng.uniform(-over, height + over), 2)])
        mask = np.zeros((height, width), np.uint8)
        corners = np.array([points], dtype=np.int32)
        cv2.polylines(mask, corners, True, 1, 1)
        cv2.fillPoly(mask, corners, 1)
        out.append({"width": width, "height": height, "points": points,
                    "pixels": "".join(str(v) for v in mask.reshape(-1))})
    write_json(HERE / "polygons.json", out)


def main():
    data = instances("")
    write_json(HERE / "coco/annotations/instances_val2017.json", data)
    write_images(HERE / "coco/val2017", data)
    expected = {"coco": expect_coco(data)}

    data = instances("COCO_train2014_")
    root = HERE / "refer_seg"
    write_images(root / "images/train2014", data)
    umd, unc = refer_sets(data)
    for name, refs, who, protocol in (("refcocog", umd, "umd", 2), ("refcoco+", unc, "unc", 0),
                                      ("refcocog", umd[:3], "google", 4)):
        write_json(root / name / "instances.json", data)
        (root / name / f"refs({who}).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    write_json(root / "grefcoco/instances.json", data)
    write_json(root / "grefcoco/grefs(unc).json", grefs())
    for key, name, refs, split in (("refcocog@train", "refcocog", umd, "train"),
                                   ("refcocog@val", "refcocog", umd, "val"),
                                   ("refcocog@test", "refcocog", umd, "test"),
                                   ("refcoco+@train", "refcoco+", unc, "train"),
                                   ("grefcoco@train", "grefcoco", grefs(), "train"),
                                   ("grefcoco@val", "grefcoco", grefs(), "val")):
        expected[key] = expect_refer(name, refs, data, split)
    expected["ReasonSeg"] = reasonseg()
    write_json(HERE / "expected.json", expected)
    pickles()
    polygons()


main()
