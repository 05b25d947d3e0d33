"""Tables whose solutions and ids are no texts, and the texts that Python makes of them.

Usage: python make_values.py [FOLDER (default: values next to this file)]

rows.parquet, rows.arrow    image, problem, and a column for each type: "f64", "list", ...
rows.jsonl                  a row for each JSON value: problem, image, solution; want: its text
expected.json               {column: [text or null, ...]}

Scalars are str(value); lists, structs and maps json.dumps(value, ensure_ascii=False), with str()
of dates and times. Datetimes of Parquet are in UTC or have no zone, as segzero does not read
ARROW:schema. Written with pyarrow 26.0.1. Leaves out: durations.
"""
import base64
import datetime
import decimal
import json
import math
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "values")
os.makedirs(OUT, exist_ok=True)

# A PNG of one pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")

D = decimal.Decimal
item = pa.struct([("z", pa.list_(pa.int64())), ("a", pa.float64()), ("m", pa.string())])
COLUMNS = {
    "f64": pa.array([0.1, 5.0, 1 / 3, 1e22, 1e16, 0.0001, 0.00001, math.nan, -math.inf, -0.0,
                     2.0 ** -44, 5e-324]),
    "f32": pa.array([0.1, 2.5, -0.0, math.inf, 16777216.0, 1e-7], pa.float32()),
    "f16": pa.array([np.float16(v) for v in (2.5, 0.1, -0.0, math.inf, math.nan, 6e-8, 65504)],
                    pa.float16()),
    "i64": pa.array([5, -7, 2 ** 60, None]),
    "bool": pa.array([True, False]),
    "list": pa.array([[1, 2], [], [None, 2 ** 60], None], pa.list_(pa.int64())),
    "halves": pa.array([[np.float16(0.5), None], []], pa.list_(pa.float16())),
    "struct": pa.array([{"z": [], "a": 0.1, "m": "<box>\u00e9</box>"},
                        {"z": None, "a": 5.0, "m": None},
                        {"z": [1], "a": math.nan, "m": 'a "b" \\ \n\t\x01\x7f'}], item),
    "objects": pa.array([[{"z": [1, 2], "a": 1e-7, "m": "x"}, None], []], pa.list_(item)),
    "dec32": pa.array([D("12.50"), D("-0.05"), D("0.00")], pa.decimal128(6, 2)),
    "dec128": pa.array([D("12345678901234567890123.45"), D("-12.50"), None], pa.decimal128(38, 2)),
    "whole": pa.array([D("-120"), D("7")], pa.decimal128(20, 0)),
    "date32": pa.array([19753, -1, -719162, 2932896, -25509], pa.int32()).view(pa.date32()),
    "date64": pa.array([86400000, -86400000, 951782400000]).view(pa.date64()),
    "s": pa.array([1706702400, -1, -62135596800, 253402300799], pa.timestamp("s")),
    "ms": pa.array([1706702400123, -1, -1000], pa.timestamp("ms")),
    "us": pa.array([1706702400000500, -1, 500000], pa.timestamp("us")),
    "ns": pa.array([1706702400123456789, -1, 1000, -2 ** 63 + 1, 2 ** 63 - 1], pa.timestamp("ns")),
    "utc": pa.array([1706702400000000, -1, None], pa.timestamp("us", "UTC")),
    "time_s": pa.array([0, 86399], pa.time32("s")),
    "time_ms": pa.array([43200500, 1], pa.time32("ms")),
    "time_us": pa.array([43200500000, 1], pa.time64("us")),
    "time_ns": pa.array([43200500000999, 1000], pa.time64("ns")),
    "days": pa.array([[datetime.date(2024, 1, 31), None], []], pa.list_(pa.date32())),
    "map": pa.array([[("a", 1), ("b", None)], []], pa.map_(pa.string(), pa.int64())),
}
# Values of maps are pairs in pyarrow.
MAPS = {"map"}
ROWS = max(len(column) for column in COLUMNS.values())


def plain(value):
    return str(value) if isinstance(value, datetime.date) else float(value)


def text(value):
    if value is None:
        return None
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=plain)
    return str(float(value)) if isinstance(value, np.floating) else str(value)


image = pa.array([{"bytes": PNG, "path": None}] * ROWS)
table = pa.table({"problem": ["q"] * ROWS, "image": image} | {
    name: pa.concat_arrays([column, pa.nulls(ROWS - len(column), column.type)])
    for name, column in COLUMNS.items()})
pq.write_table(table, os.path.join(OUT, "rows.parquet"))
# Zones that only Arrow's own format is read with.
zones = {zone: pa.array([1706702400500000, -1], pa.timestamp("us", zone))
         for zone in ("+02:00", "-05:30", "Europe/Berlin")}
for zone, column in zones.items():
    rest = pa.nulls(ROWS - len(column), column.type)
    table = table.append_column(zone, pa.concat_arrays([column, rest]))
with pa.ipc.new_stream(os.path.join(OUT, "rows.arrow"), table.schema) as writer:
    writer.write_table(table)

# JSON: what is written, and its text. A number keeps its digits.
url = "data:image/png;base64," + base64.b64encode(PNG).decode()
LINES = [("0.10", "0.10"), ("5", "5"), ("1e22", "1e22"), ("12345678901234567890",) * 2,
         ("true", "True"), ("false", "False"), ("[]", "[]"), ("{}", "{}"),
         ("[1,2 , 3.50]", "[1, 2, 3.50]"),
         ('{"z":[],"a":null,"m":"<box>\\u00e9<\\/box>, [x]: 1"}',
          '{"z": [], "a": null, "m": "<box>\u00e9</box>, [x]: 1"}'),
         ('{"ground_truth": 0.10, "style":"rule"}', "0.10"),
         ('{"style":"rule","ground_truth":[{"b":1,"a":"\\""}]}', '[{"b": 1, "a": "\\""}]')]
with open(os.path.join(OUT, "rows.jsonl"), "w") as file:
    for written, want in LINES:
        file.write('{"problem": "q", "image": "%s", "answer": %s, "want": %s}\n'
                   % (url, written, json.dumps(want)))
with open(os.path.join(OUT, "expected.json"), "w") as file:
    json.dump({name: [text(dict(v) if name in MAPS else v) for v in column.to_pylist()]
               for name, column in COLUMNS.items()}, file, indent=0)
    file.write("\n")
