#!/usr/bin/env python3
"""Writes the fixture of tests/unit/test_vision_reasoner.lua: what VisionReasoner's own reward says
about right, wrong, malformed and mutated answers with several objects.

    git clone https://github.com/dvlab-research/Seg-Zero && git -C Seg-Zero checkout 42a3345
    python3 tests/golden/make_vision_reasoner.py Seg-Zero [--cases 700] [--seed 1] [--out FILE]

vision_reasoner.jsonl: {"text", "gt", "terms": [format, accuracy, non_repeat], "score"}, numbers as
repr() prints them. The original is imported from the checkout; none of its code is here. Written
with Python 3.11, numpy 2.4 and scipy 1.17 (numpy 1.26 gives the same); the same seed gives the same
file. Left out: nesting between 900 and 1100 levels (make_rewards.py says why), true boxes of 8
numbers. """
import argparse
import importlib.util
import json
import math
import os
import random
import warnings

import make_rewards as single

BIG = ["4294967295", "4294967296", "9223372036854775807", "9223372036854775808",
       "-9223372036854775808", "-9223372036854775809", "18446744073709551615",
       "18446744073709551616", "1" + "0" * 30, "-1" + "0" * 30, "1" + "0" * 308, "2" + "0" * 308,
       "1" + "0" * 400, "4294967295.0", "1e10", "1e154", "1e200", "3037000500", "-3037000500",
       "6074001000", "16777217", "16777216", "94906267", "1099511627776"]
ITEMS = ["null", "true", "7", '"a"', '"bbox_2d"', '"x point_2d"', "[]", "{}", '["bbox_2d"]',
         '["point_2d", 1]', '[["bbox_2d"]]', '{"bbox_2d": [1,2,3,4]}', '{"point_2d": [1,2]}',
         '{"bbox_2d": null, "point_2d": null}', '{"bbox_2d": {}, "point_2d": []}',
         '{"bbox_2d": "1234", "point_2d": "12"}', '{"BBox_2d": [1,2,3,4], "point_2d": [1,2]}',
         '{"bbox_2d": [1,2,3,4,5,6,7,8], "point_2d": [1,2]}',
         '{"bbox_2d": [[1],[2],[3],[4]], "point_2d": [[1],[2]]}',
         '{"bbox_2d": [1,2,3,4], "point_2d": [5]}', '{"bbox_2d": [1,2,3,4], "point_2d": [1,2,3]}']
BODIES = ["", "[]", "{}", '""', "null", "true", "3", "NaN", '"bbox_2d"', '{"bbox_2d": [1,2,3,4]}',
          '{"a bbox_2d": 1, "point_2d": [1,2]}', "[[]]", "[[[]]]", '["a", "b"]', "[1, 2]", "[{}]",
          "[{}, {}]", '["bbox_2d"]', "[null]", "[" * 1100 + "]" * 1100]
SENTENCES = ["It is red", "It is red ", " It is red", "it is red", "", " ", "\n", "It\u00a0is red",
             "\u2003It is red", "\x1cIt is red", "It is red\x85", "\u200bIt is red", "Two", "Three",
             "\u00e9", "\U0001f600"]
GT_ODD = ["", "[]", "{}", "null", "x", '[{"bbox_2d": [1,2,3,4]}]', '[{"point_2d": [1,2]}]', "[1]",
          '"ab"', '[{"bbox_2d": [true,false,true,true], "point_2d": [true,true]}]',
          '[{"bbox_2d": [0,0,1.5,2], "point_2d": [1,1.5]}]',
          '[{"bbox_2d": [1,2,3], "point_2d": [1,2]}]', '[{"bbox_2d": [1,2,3,4], "point_2d": [2]}]',
          '[{"bbox_2d": [1,2,3,4], "point_2d": [2,3,4]}]',
          '[{"bbox_2d": [0,0,4294967295,4294967295], "point_2d": [2,3]}]',
          '[{"bbox_2d": [0,0,1e400,NaN], "point_2d": [2,3]}]',
          '[{"bbox_2d": [0,0,' + "1" + "0" * 30 + ',9], "point_2d": [2,3]}]',
          "<box>(10,20),(110,220)</box><points>(40,60),(80,160)</points>"]


def load(checkout):
    path = os.path.join(checkout, "verl", "utils", "reward_score", "vision_reasoner.py")
    spec = importlib.util.spec_from_file_location("vision_reasoner", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def score(text, gt):
        terms = [module.vision_reasoner_format_reward(text),
                 module.vision_reasoner_accuracy_reward(text, gt),
                 module.vision_reasoner_non_repeat_reward(text)]
        total = module.vision_reasoner_compute_score(text, gt)
        assert terms[0] + terms[1] + terms[2] == total and math.isfinite(total)
        return [repr(float(t)) for t in terms], repr(float(total))
    return score


def item(box, point, r=None):
    """One object; box and point are lists of texts."""
    pairs = [("bbox_2d", "[" + ", ".join(box) + "]"), ("point_2d", "[" + ",".join(point) + "]")]
    if r and r.random() < 0.1:
        pairs.reverse()
    return single.obj(pairs)


def listed(items):
    return "[" + ", ".join(items) + "]"


GOOD = item(["10", "20", "110", "220"], ["40", "60"])
SECOND = item(["300", "310", "420", "400"], ["350", "350"])
GT = listed([GOOD, SECOND])


def fixed_cases():
    """Every listed oddity, one at a time."""
    wrap = single.wrap
    both = listed([GOOD, SECOND])
    yield wrap(both), GT
    yield "", GT
    for body in BODIES:
        yield wrap(body), GT
        yield wrap(body + " "), "[]"
        yield wrap(body) + wrap(both), GT
    for gt in GT_ODD:
        yield wrap(both), gt
        yield wrap(gt), gt
        yield wrap(listed([GOOD])), gt
    for odd in ITEMS:
        yield wrap(listed([GOOD, odd])), GT
        yield wrap(listed([odd, GOOD, SECOND])), GT
        yield wrap(listed([GOOD, odd, SECOND])), GT
        yield wrap(listed([odd])), GT
        yield wrap(listed([odd, odd])), GT
    for number in BIG + single.NUMBERS:
        for k in range(4):
            box = ["10", "20", "110", "220"]
            box[k] = number
            yield wrap(listed([item(box, ["40", "60"]), SECOND])), GT
        yield wrap(listed([item(["0", "0", number, number], ["40", "60"])])), GT
        yield wrap(listed([item([number] * 4, [number] * 2)])), GT
        yield wrap(listed([item(["0.0", "0", number, number], ["40", "60"]), SECOND])), GT
        yield wrap(listed([item(["NaN", "0", number, "5"], ["40", "60"]), SECOND])), GT
        yield wrap(listed([item(["10", "20", "110", "220"], [number, "60"]), SECOND])), GT
        yield wrap(listed([item(["10", "20", "110", "220"], [number, number])])), GT
    for space in single.SPACES:
        yield "<think>a</think>" + space + "<answer>" + space + both + space * 2 + "</answer>", GT
        yield wrap(both, "a." + space + "a." + space + "a"), GT
        yield wrap(both.replace(" ", space)), GT
    for n in (119, 120, 121, 122, 240):
        yield wrap(listed([GOOD] * n)), GT
        yield wrap(listed([SECOND] * (n - 1) + [GOOD])), GT
        yield wrap(both), listed([GOOD] * (n - 1) + [SECOND])
        yield wrap(listed([GOOD] * n + ["{}"])), GT
        yield wrap(listed([GOOD] * n + [item(["1"], ["x"])])), GT
    for count in range(1, 5):
        for sentence in SENTENCES:
            yield wrap(both, ".".join([sentence] * count)), GT
            yield wrap(both, "It is red." + ".".join([sentence] * count) + ".Two.Two"), GT
    # Around each threshold.
    for d in range(6, 13):
        for f in ("%d", "%d.25", "%d.9", "%d.0", "%de0", "%d.999999999999999999"):
            box = [f % (v + d) for v in (10, 20, 110, 220)]
            yield wrap(listed([item(box, ["40", "60"])])), GT
            yield wrap(listed([item(["10", "20", "110", "220"], [f % (40 + 3 * d), "60"])])), GT
    for a, b, c, e in ((9.9, 10.1, 9.8, 10.2), (10.1, 9.9, 10.2, 9.8), (9.7, 10.3, 10.4, 9.6),
                       (9.1, 10.9, 10.0, 10.0), (0.1, 0.2, 0.3, 39.4), (39.4, 0.3, 0.2, 0.1)):
        box = [repr(v) for v in (10 + a, 20 + b, 110 + c, 220 + e)]
        yield wrap(listed([item(box, ["58", "84"]), item(box, ["58.0", "83.99999"])])), GT
    for point in (["58", "84"], ["64", "78"], ["10", "20"], ["9.99", "60"], ["39.9", "89.9"],
                  ["40", "90"], ["true", "60"], ["true", "false"], ["40", "60", "1"], ["40"]):
        yield wrap(listed([item(["10", "20", "110", "220"], point)])), GT
    for box in ("110,20,210,220", "110,220,10,20", "10,20,10,20", "111,20,112,220",
                "10,20,110,119", "10,20,110,120", "10,20,9,19", "-5,-5,840,840", "0,0,0,0",
                "true,true,true,false", "true,20,110,220"):
        yield wrap(listed(['{"bbox_2d": [%s], "point_2d": [40,60]}' % box, SECOND])), GT
        yield wrap(listed(['{"bbox_2d": [%s], "point_2d": [true,60]}' % box])), GT


def random_objects(r):
    """A truth of objects that may share pixels, as lists of integers."""
    objects = []
    count = r.choice([1, 1, 2, 2, 3, 4, 6, 9, 15])
    for _ in range(count):
        if objects and r.random() < 0.3:
            (x1, y1, x2, y2), _ = r.choice(objects)
            x1, y1 = x1 + r.randint(-8, 8), y1 + r.randint(-8, 8)
            x2, y2 = x2 + r.randint(-8, 8), y2 + r.randint(-8, 8)
        else:
            x1, y1 = r.randrange(0, 600), r.randrange(0, 600)
            x2, y2 = x1 + r.randrange(1, 240), y1 + r.randrange(1, 240)
        point = (r.randint(min(x1, x2), max(x1, x2)), r.randint(min(y1, y2), max(y1, y2)))
        objects.append(((x1, y1, x2, y2), point))
    return objects


def random_case(r):
    """A plausible answer near a random truth, then mutated zero to four times."""
    objects = random_objects(r)
    gt = json.dumps([{"bbox_2d": list(b), "point_2d": list(p)} for b, p in objects])
    spread = r.choice([0, 3, 8, 12, 20, 60])
    odd = r.choice([0, 0, 0, 0.02, 0.1])

    def near(v):
        v += r.randint(-spread, spread)
        style = r.random()
        if r.random() < odd:
            return r.choice(single.NUMBERS + BIG)
        if style < 0.85:
            return str(v)
        return "%.*f" % (r.randint(0, 4), v + r.random())

    items = [item([near(v) for v in b], [near(v) for v in p], r) for b, p in objects]
    for _ in range(r.choice([0, 0, 0, 1, 2])):
        items.insert(r.randrange(len(items) + 1), r.choice(items))
    if r.random() < 0.3 and len(items) > 1:
        items.pop(r.randrange(len(items)))
    if r.random() < 0.3:
        r.shuffle(items)
    if r.random() < 0.2:
        items.insert(r.randrange(len(items) + 1), r.choice(ITEMS))
    if r.random() < 0.02:
        items = items * 60
    body = listed(items)
    if r.random() < 0.05:
        body = r.choice(["```json\n" + body + "\n```", "[" + body + "]", '{"a": ' + body + "}"])
    think = ".".join(r.choice(SENTENCES) for _ in range(r.randrange(6)))
    text = single.wrap(body, think, r.choice(["", "", "\n", " "]))
    if r.random() < 0.05:
        text += r.choice([text, single.wrap("[]"), "<answer>[]</answer>"])
    for _ in range(r.choice([0, 0, 0, 1, 1, 2, 3, 4])):
        text = single.mutate(r, text)
    if r.random() < 0.03:
        gt = r.choice(GT_ODD)
    return text, gt


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="a checkout of Seg-Zero at 42a3345")
    parser.add_argument("--cases", type=int, default=700)
    parser.add_argument("--seed", type=int, default=1)
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--out", default=os.path.join(here, "vision_reasoner.jsonl"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    score = load(args.checkout)
    r = random.Random(args.seed)
    fixed = list(fixed_cases())
    # The committed file holds some of the fixed cases and none that is very long; a larger run
    # holds all.
    small = len(fixed) > args.cases * 0.6
    if small:
        fixed = r.sample(fixed, int(args.cases * 0.6))
    rows, seen = [], set()
    while len(rows) < args.cases:
        case = fixed.pop(0) if fixed else random_case(r)
        if case in seen or not single.encodable(case[0]):
            continue
        if small and len(case[0]) + len(case[1]) > 9000:
            continue
        seen.add(case)
        terms, total = score(*case)
        rows.append({"text": case[0], "gt": case[1], "terms": terms, "score": total})
    single.write(args.out, rows)
    positive = sum(float(row["terms"][1]) > 0 for row in rows)
    print("accuracy above 0 in %d of %d" % (positive, len(rows)))


if __name__ == "__main__":
    main()
