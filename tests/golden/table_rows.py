"""What make_parquet.py, make_arrow.py and make_other_tables.py share: texts for their columns, and
NAME.jsonl, the rows of a table.

A line of NAME.jsonl is a row: bytes are {"b": hex}, structs {"s": {...}}, numbers that JSON lacks
{"f": "nan"}, integers from 2^53 on are texts. Leaves out: values, which each script draws itself.
"""
import json
import math

WORDS = ["red", "blue", "green circle", "caf\u00e9", "", "x" * 30]


def json_value(v):
    if isinstance(v, bytes):
        return {"b": v.hex()}
    if isinstance(v, float) and not math.isfinite(v):
        return {"f": str(v)}
    if isinstance(v, list):
        return [json_value(x) for x in v]
    if isinstance(v, dict):
        return {"s": {k: json_value(x) for k, x in v.items()}}
    if isinstance(v, int) and not isinstance(v, bool) and abs(v) >= 2 ** 53:
        return str(v)
    return v


def write_rows(path, rows):
    with open(path, "w") as f:
        for row in rows:
            f.write(json.dumps({k: json_value(v) for k, v in row.items()}) + "\n")
