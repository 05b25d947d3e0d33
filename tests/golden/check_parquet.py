"""A check by hand: Parquet files that segzero writes, read by pyarrow and by `datasets`.

Usage: python check_parquet.py [SEGZERO (default: ./segzero)] [FILES (default: 40)]

Run it from the root of the tree. Writes random rows of all types, with nulls at every level, values
of megabytes, one to many row groups, packed and not, and compares all values, the features, and
that images decode. Then `datasets` loads a folder that recipes/prepare_data.lua wrote, whose rows
and pixels are those of prepare_rows.json.
Ran with pyarrow 26.0.1, datasets 5.2.0, Pillow 13.0.0.
"""
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import zlib

import datasets
import pyarrow.parquet as pq
from PIL import Image

SEGZERO = sys.argv[1] if len(sys.argv) > 1 else "./segzero"
FILES = int(sys.argv[2]) if len(sys.argv) > 2 else 40
COLUMNS = [("s", "string"), ("bin", "binary"), ("n", "int64"), ("d", "double"), ("b", "bool"),
           ("image", "image"), ("mask", "list<list<bool>>"), ("bbox", "list<double>"),
           ("images", "list<image>"), ("deep", "list<list<list<int64>>>"),
           ("names", "list<string>")]

# Bytes are hexadecimal in the JSON.
LUA = r"""
local cjson = require "cjson"
local writer = require "segzero.formats.parquet_writer"
local function bytes(v)
  if type(v) ~= "string" then return v end
  return (v:gsub("..", function(h) return string.char(tonumber(h, 16)) end))
end
local function image(v)
  if type(v) == "table" then v.bytes = bytes(v.bytes) end
  return v
end
local job = cjson.decode(io.open(arg[1]):read "*a")
local w = writer.create(arg[2], job.columns, job.options)
for _, row in ipairs(job.rows) do
  row.bin = bytes(row.bin)
  row.image = image(row.image)
  if type(row.images) == "table" then for _, one in ipairs(row.images) do image(one) end end
  w:row(row)
end
w:finish()
"""


def png(r):
    out = io.BytesIO()
    Image.new("RGB", (r.randrange(1, 9), 3), (r.randrange(256), 7, 9)).save(out, "PNG")
    return out.getvalue()


def value(r, kind, nulls):
    if r.random() < nulls:
        return None
    if kind.startswith("list<"):
        return [value(r, kind[5:-1], nulls) for _ in range(r.choice([0, 1, 2, 3, 9, 20]))]
    if kind == "string":
        return r.choice(["", "red", "caf\u00e9 \U0001f600", "x" * 300, str(r.random())])
    if kind == "binary":
        return r.randbytes(r.choice([0, 1, 30, 500000, 1500000]) if r.random() < .1 else 9)
    if kind == "int64":
        return r.choice([0, -1, 2 ** 63 - 1, -2 ** 63, r.randint(-2 ** 40, 2 ** 40)])
    if kind == "double":
        return r.choice([0.0, -1.5, r.random(), 1e300, r.randint(0, 99)]) + 0.0
    if kind == "bool":
        return r.random() < .5
    return {"bytes": png(r) if r.random() > nulls else None, "path": r.choice([None, "a.png"])}


def plain(v):
    """As the JSON for Lua has it."""
    if isinstance(v, bytes):
        return v.hex()
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    if isinstance(v, list):
        return [plain(x) for x in v]
    if isinstance(v, int) and not isinstance(v, bool) and abs(v) >= 2 ** 53:
        return str(v)
    return v


def check_datasets(path, rows, folder):
    data = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=folder)
    kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
    assert kinds["image"] == "Image" and kinds["images"] == "List", kinds
    assert data.features["mask"].feature.feature.dtype == "bool", data.features
    assert list(data.features) == [name for name, _ in COLUMNS]
    for row, want in zip(data, rows):
        if want["image"] and want["image"]["bytes"]:
            image = Image.open(io.BytesIO(want["image"]["bytes"]))
            assert row["image"].tobytes() == image.tobytes()
        assert row["mask"] == want["mask"] and row["bbox"] == want["bbox"]
        assert row["n"] == want["n"] and row["s"] == want["s"]


def check_prepared(folder):
    out = os.path.join(folder, "prepared")
    subprocess.check_call([SEGZERO, "recipes/prepare_data.lua", "output=" + out, "several=true",
                           "rows_per_file=2",
                           "data=tests/golden/annotations/refer_seg/refcocog@train"])
    data = datasets.load_dataset(out, split="train", cache_dir=folder)
    with open("tests/golden/prepare_rows.json") as file:
        want = json.load(file)["refcocog several"]
    assert len(data) == len(want)
    for row, w in zip(data, want):
        assert (row["problem"], row["solution"]) == (w["problem"], w["solution"])
        assert (row["img_height"], row["img_width"]) == (w["height"], w["width"])
        assert row["image"].mode == "RGB" and zlib.crc32(row["image"].tobytes()) == w["sum"]
    print(f"prepared: {len(data)} rows, equal")


def main():
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "write.lua")
        with open(script, "w") as file:
            file.write(LUA)
        for i in range(FILES):
            r = random.Random(i)
            nulls = r.choice([0, .2, .2, 1])
            n = r.choice([0, 1, 5, 120, 230])
            rows = [{name: value(r, kind, nulls) for name, kind in COLUMNS} for _ in range(n)]
            options = {"compression": r.choice(["snappy", "none"]),
                       "rows_per_group": r.choice([1, 7, 100, 1000])}
            job = os.path.join(folder, f"{i}.json")
            path = os.path.join(folder, f"{i}.parquet")
            with open(job, "w") as file:
                json.dump({"columns": COLUMNS, "options": options, "rows": plain(rows)}, file)
            subprocess.check_call([SEGZERO, script, job, path])

            file = pq.ParquetFile(path, page_checksum_verification=True)
            groups = -(-n // options["rows_per_group"])
            assert file.metadata.num_row_groups == groups, (file.metadata.num_row_groups, groups)
            got = file.read().to_pylist()
            assert got == rows, f"file {i}"
            if n and nulls == 0:
                check_datasets(path, rows, folder)
            print(f"file {i}: {n} rows, {file.metadata.num_row_groups} groups, equal")
        check_prepared(folder)


main()
