#!/usr/bin/env python3
"""Writes the fixtures of tests/unit/test_rewards.lua: what Seg-Zero's own reward functions say
about well-formed, malformed and mutated answers, and what Python's json and int() say about the
pieces they are made of.

    git clone https://github.com/dvlab-research/Seg-Zero && git -C Seg-Zero checkout 77f9ea5
    python3 tests/golden/make_rewards.py Seg-Zero [--cases 3600] [--seed 1] [--out tests/golden]

rewards.jsonl: {"text", "gt", "strict": [5 terms], "loose": [5 terms]}, terms in the order
thinking_format, segmentation_format, iou, points, box_l1. pyjson.jsonl: {"json": text, "value":
canonical form or null when json.loads raises} and {"int": text, "value": int(text) as %.17g or
null}. The originals are imported from the checkout; none of their code is here. Written with Python
3.11; the same seed gives the same files. Left out: nesting between 900 and 1100 levels, where
Python's answer depends on the depth of the caller's stack. """
import argparse
import importlib.util
import json
import os
import random
import sys
import unicodedata

TERMS = ("thinking_format", "segmentation_format", "iou", "point_l1", "box_l1")
GT = "<box>(10,20),(110,220)</box><points>(40,60),(80,160)</points>"
SPACES = [" ", "\t", "\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003",
          "\u200b", "\u2028", "\u202f",
          "\u205f", "\u3000", "\ufeff", "\u180e"]
NUMBERS = ["0", "-0", "-0.0", "01", "+1", "1.", ".5", "1.5", "1e2", "1E+2", "4e1", "400e-1", "1e-2",
           "1e", "0x10", "1_0", "NaN", "nan",
           "Infinity", "-Infinity", "-NaN", "+Infinity", "inf", "1e400", "-1e400",
           "1e99999999999999999999",
           "-1e-99999999999999999999", "0e99999999999999999999", "true", "false", "null", "True",
           "None", '"40"', '" 60 "', '"1_0"',
           '"-5"', '"+7"', '"4.5"', '"\u0664\u0660"', '"\uff14\uff10"', '"\u00b2"', '"40\\u00a0"',
           '"\\u001c40"', '"40\\n"', "[40]",
           "[]", '""', '"x"', "{", "123456789012345678901234567890", "9007199254740993",
           "9007199254740992", "1e308", "-1", "-0.9",
           "0.9999999999999999", "39.999999999999999999", "9.75", "110.49", "\u0664", "1,2", "- 1",
           "--1", "1e5.5", "\ud7ff"]
KEYS = ["bbox", "points_1", "points_2", "BBox", "bbox_2d", "my_bbox", "points", "Points_3",
        "point_1", "point_2d", "POINT", "bbox_points",
        "points_bbox", "b\\u0062ox", "\\u0062box", "points\\u005f1", "poi\u0130nts", "po\u0130nts",
        "bbo\u212a", "points_1 ", "\ud83d\ude00bbox",
        "label", "", "b box", "poınts", "po\\u0069nts_2", "bbox\\", "\\ud83d bbox", "point\\nts",
        "\uff42box"]
VALUES = ['"1234"', '"57"', '"5"', '"\\ud83d\\ude0012"', '"\\ud83d34"', '"\U0001f6002"', "null",
          "true", "7", "[]", "[[]]", "[1,2,3]",
          '["40","60"]', "[40,60,70]", "[40.9,60.9]", "[true,false]", "[NaN,1]", "[1e400,1]",
          '"40"', "[40 ,\n60]", "[40,60,]", "[,40]",
          "[40 60]", '"a\tb"', '"\\x41"', '"\\u12"', '"\\u00g0"', "'a'", "{}", '"}"', '"{"',
          "[\u00a040,60]", "[40,60]]", '"\u0664\u0665"',
          '"\\ud800\\u0041"', '"\\ud800\\udc0"', '"\\ud83d\\ue000"', '"\\udbff\\udfff2"',
          '"\\udc00\\ud800"', '"\x7f\x80"', "// no\n1"]
TOKENS = ["<think>", "</think>", "<answer>", "</answer>", "{", "}", "[", "]", '"', "'", ":", ",",
          "{}", "{x}", "\\", "\n", "bbox", "points",
          "think", "{ }", "<think></think>", "</answer>\n", "<answer></answer>", "\u00e9",
          "\U0001f600", "\x00", "0", "-", ".", "e5"]


def load(checkout, name, function):
    path = os.path.join(checkout, "verl", "utils", "reward_score", name + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def score(text, gt):
        terms = [getattr(module, "seg_%s_reward" % term) for term in TERMS]
        row = [int(f(text)) if "format" in f.__name__ else int(f(text, gt)) for f in terms]
        assert sum(row) == getattr(module, function)(text, gt)
        return row
    return score


def obj(pairs, sep=", ", colon=": "):
    return "{" + sep.join('"%s"%s%s' % (k, colon, v) for k, v in pairs) + "}"


def wrap(answer, think="a b", gap=""):
    return "<think>%s</think>%s<answer>%s</answer>" % (think, gap, answer)


GOOD = [("bbox", "[10,20,110,220]"), ("points_1", "[40,60]"), ("points_2", "[80,160]")]


def fixed_cases():
    """Every listed oddity, one at a time, in each place it can stand."""
    good = obj(GOOD)
    yield wrap(good)
    yield ""
    for odd in (" " + wrap(good), wrap(good) + "\n", good, wrap(good.replace('"', "'")),
                wrap(good, "{x} b"), wrap(good, "{}"), wrap(good, ""),
                wrap(""), wrap(good) + wrap(good), wrap(good) + "<answer></answer>",
                "<think></think><answer></answer>", "<think></answer>",
                "<think></think></think><answer></answer>",
                "<think>a</think>b</think> <answer></answer>", "<think></think><answer></answe",
                "<think></think><answer>/answer>", "<think></think><answer</answer>",
                wrap("{" + good + "}"), wrap("[" + good + "]"),
                wrap(good + "}"), wrap("{}" * 3 + good), wrap("{" * 5), "{", "{}", "{a", "}{",
                "{ }", "{{}", wrap("```json\n" + good + "\n```"),
                "<THINK>a</THINK><answer>b</answer>", wrap(good, "\U0001f600\u00e9\n\n"),
                wrap("\ufeff" + good), wrap(good[:-1])):
        yield odd
    for space in SPACES:
        yield wrap(good, gap=space)
        yield wrap(good, gap=space * 2 + "\n" + space)
        yield wrap(obj(GOOD, "," + space, ":" + space))
        yield wrap(obj(GOOD, space + ",", space + ":"))
        yield wrap("{" + space + good[1:-1] + space + "}")
        yield wrap(good.replace("40", '"%s40%s"' % (space, space)))
    for number in NUMBERS:
        for old in ("10,20", "20,110", "110,220", "220]", "[40", "60]", "[80", "160]"):
            new = {"10,20": number + ",20", "20,110": number + ",110",
                   "110,220": number + ",220"}.get(
                old, number + "]" if old.endswith("]") else "[" + number)
            yield wrap(good.replace(old, new))
        yield wrap(obj([("bbox", "[0,0,%s,%s]" % (number, number))] + GOOD[1:]))
        yield wrap(obj(GOOD[:1] + [("points_1", "[%s,60]" % number),
                                   ("points_2", "[80,%s]" % number)]))
        yield wrap(obj(GOOD + [("extra", number)]))
    for value in VALUES:
        for at in range(3):
            pairs = list(GOOD)
            pairs[at] = (pairs[at][0], value)
            yield wrap(obj(pairs))
            yield wrap(obj(GOOD + [(GOOD[at][0], value)]))
            yield wrap(obj([(GOOD[at][0], value)] + GOOD))
        yield wrap(obj([("bbox", "[0,0,100,100]"), ("points_1", value),
                        ("points_2",
                         value)])), "<box>(0,0),(100,100)</box><points>(5,7),(5,7)</points>"
    for key in KEYS:
        for at in range(3):
            pairs = list(GOOD)
            pairs[at] = (key, pairs[at][1])
            yield wrap(obj(pairs))
            yield wrap(obj([(key, "[1,2]")] + GOOD))
            yield wrap(obj(GOOD[:2] + [(key, "[80,160]")] + GOOD[2:]))
    for digits in (4300, 4301):
        yield wrap(obj(GOOD + [("extra", "-" + "1" * digits)]))
        yield wrap(obj([GOOD[0], ("points_1", '["%s40",60]' % ("0" * (digits - 2))), GOOD[2]]))
    for zeros in (4298, 4299):
        yield wrap(good), GT.replace("(10", "(" + "0" * zeros + "10")
    for depth in (900, 1100):
        yield wrap(obj(GOOD + [("extra", "[" * depth + "]" * depth)]))
    for gt in ("", "<box>(10,20),(110,220)</box>", "<points>(40,60),(80,160)</points>",
               " \n" + GT + " ", "x" + GT, GT.replace(",", ", "),
               GT.replace("10", "-10"), GT.replace("10", "10.0"), GT.replace("4", "\u0664"),
               GT.replace("4", "\u00b2"), GT.upper(),
               "<box>(1\u00e9,2),(3,4)</box>" + GT, "<box>(0,0),(5,5)</box>" + GT,
               "<box>(<box>(10,20),(110,220)</box>",
               GT.replace("(", "["), GT.replace("<box>(10,20)", "<box>(0010,0020)"),
               "<points>(1,2),(3,4)</points>" + GT, "(10,20),(110,220)"):
        yield wrap(good), gt
    # Around each threshold, and boxes that only touch, are inside out, or have no width.
    for d in range(8, 13):
        for f in ("%d", "%d.25", "%d.0", "%de0", "%d.999999999999999999"):
            s = [f % (v + d) for v in (10, 20, 110, 220)]
            yield wrap(obj([("bbox", "[" + ",".join(s) + "]")] + GOOD[1:]))
    for y in list(range(85, 125)) + list(range(215, 223)):
        yield wrap(obj([("bbox", "[10,20,110,%d]" % y)] + GOOD[1:]))
        yield wrap(obj([("bbox", "[0,0,840,840]"), ("points_1", "[%d,60]" % (y + 42)),
                        ("points_2", "[%d,160]" % (y + 82))]))
    yield wrap(obj([("bbox", "[0,0,9,4]")])), "<box>(0,0),(9,9)</box>"
    yield wrap(obj([("bbox", "[0,0,9,5]")])), "<box>(0,0),(9,9)</box>"
    for low in ("-0.9", "-1", "-1e-9"):
        yield wrap(obj([("bbox", "[0,0,110,220]"), ("points_1", "[%s,60]" % low), GOOD[2]]))
    for box in ("110,20,210,220", "110,220,10,20", "10,20,10,20", "111,20,112,220",
                "10,220,110,221", "-5,-5,840,840", "10,20,110,20.5"):
        yield wrap(obj([("bbox", "[" + box + "]")] + GOOD[1:]))


def random_case(r):
    """A plausible answer near a random truth, then mutated zero to four times."""
    x1, y1 = r.randrange(0, 600), r.randrange(0, 600)
    x2, y2 = x1 + r.randrange(1, 240), y1 + r.randrange(1, 240)
    inside = lambda: (r.randint(x1, x2), r.randint(y1, y2))
    (a, b), (c, d) = inside(), inside()
    gt = "<box>(%d,%d),(%d,%d)</box><points>(%d,%d),(%d,%d)</points>" % (x1, y1, x2, y2, a, b, c, d)
    spread = r.choice([0, 3, 8, 12, 20, 60])

    def near(v):
        v += r.randint(-spread, spread)
        style = r.random()
        if style < 0.75:
            return str(v)
        if style < 0.9:
            return "%.*f" % (r.randint(0, 4), v + r.random())
        if style < 0.93:
            return repr(v * 1.0) if r.random() < 0.5 else "%e" % v
        if style < 0.96:
            return '"%s"' % v
        return r.choice(NUMBERS)

    box = [near(v) for v in (x1, y1, x2, y2)]
    points = [[near(a), near(b)], [near(c), near(d)]]
    if r.random() < 0.3:
        points.reverse()
    pairs = [("bbox", box)] + [("points_%d" % (i + 1), p) for i, p in enumerate(points)]
    pairs = [(k, "[" + r.choice([",", ", "]).join(v) + "]") for k, v in pairs]
    if r.random() < 0.25:
        at = r.randrange(3)
        pairs[at] = (r.choice(KEYS), pairs[at][1])
    if r.random() < 0.25:
        pairs.insert(r.randrange(4),
                     (r.choice(KEYS), r.choice(VALUES + NUMBERS + [v for _, v in pairs])))
    if r.random() < 0.1:
        r.shuffle(pairs)
    answer = obj(pairs, r.choice([",", ", ", ",\n  "]), r.choice([":", ": ", " : "]))
    if r.random() < 0.05:
        answer += r.choice([answer, "{}", "{x}", "\n"])
    text = wrap(answer, r.choice(["", "a", "x { y", "a </think> b", "ok {}", "\n"])
                if r.random() < 0.2 else "it", r.choice(["", "", "", "\n", " "]))
    for _ in range(r.choice([0, 0, 0, 1, 1, 2, 3, 4])):
        text = mutate(r, text)
    return text, gt


def mutate(r, text):
    i = r.randrange(len(text) + 1)
    j = min(len(text), i + r.choice([1, 1, 1, 2, 5, 12]))
    kind = r.randrange(7)
    if kind == 0:
        return text[:i] + text[j:]
    if kind == 1:
        return text[:i] + r.choice(TOKENS) + text[i:]
    if kind == 2:
        return text[:i] + r.choice(SPACES) + text[i:]
    if kind == 3:
        return text[:i] + text[i:j] * 2 + text[j:]
    if kind == 4:
        k = r.randrange(len(text) + 1)
        i, k = min(i, k), max(i, k)
        return text[:i] + text[k:k + 3] + text[i + 3:k] + text[i:i + 3] + text[k + 3:]
    if kind == 5:
        token = r.choice(TOKENS[:14])
        return text.replace(token, r.choice(TOKENS + SPACES), r.choice([1, 1, -1]))
    return text[:i] + r.choice(NUMBERS) + text[j:]


def encodable(text):
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


def canonical(v):
    if isinstance(v, dict):
        return "{" + ",".join(canonical(k) + ":" + canonical(x) for k, x in v.items()) + "}"
    if isinstance(v, list):
        return "[" + ",".join(map(canonical, v)) + "]"
    if isinstance(v, str):
        return "s" + ".".join("%x" % ord(c) for c in v)
    if v is None or v is True or v is False:
        return str(v)
    try:
        v = float(v)
    except OverflowError:
        v = float("inf") if v > 0 else float("-inf")
    # Lua numbers have no integer zero, so the sign of a zero is left out.
    return "nan" if v != v else "%.17g" % (v or 0)


def json_texts(r):
    good = ["null", " true ", "[]", "{}", "[1, [2.5, {\"a\": []}], \"x\"]",
            '{"a": {"b": null}, "a": 1, "c": [false]}', '"\\u00e9\\ud83d\\ude00\\ud83d"',
            "[{\"bbox_2d\": [1,2,3,4], \"point_2d\": [5,6]}]", "", " ", "\ufeff[]", "[] x", "[]]",
            "{\"a\":1,}", "[1,]", "nul", "NaN", "-Infinity", "NaN1",
            "[" * 900 + "]" * 900, "[" * 1100 + "]" * 1100, "0." + "0" * 5000 + "1e5001",
            "1" * 900 + "e-899", "0.5" + "0" * 900 + "1"]
    for text in good + NUMBERS + VALUES + ["\x00", '"\x00"', '"\\u0000"', "[1\x00]", '"\x1f"',
                                           '"\x7f"', "\x0b1", "\xa01"]:
        yield text
        yield "[" + text + "]"
    for _ in range(400):
        text = r.choice(good[:8]
                        + [obj(GOOD), "[" + ",".join(NUMBERS[i] for i in (0, 7, 8, 10, 16)) + "]"])
        for _ in range(r.randrange(1, 4)):
            text = mutate(r, text)
        yield text
    for _ in range(200):
        # Decimals next to the middle between two doubles, where rounding is hardest.
        x = r.uniform(1, 2) * 2.0 ** r.randint(-1070, 1000)
        yield r.choice(["%.17g", "%.16g", "%.25e", "%.40g"]) % x
        yield "%de%d" % (r.getrandbits(r.choice([30, 60, 80, 200])), r.randint(-350, 300))


def int_texts():
    yield from ["1\u00a0", "\u200312\u3000", "\x1c12", "\x1c\uff11", "12\x85", "1__0", "1_0", "_1",
                "1_", "+5", "- 5", "+_1", "", " ", "+", "--1", "0_0", "12\x00",
                "\uff11_\uff12", "1 2", "0x10", "1.0", "\u00bd", "\u4e00", "9" * 30, "0" * 4300,
                "0" * 4301, "1_" * 2149 + "1", "\t\n\x0b\x0c\r 7 \r"]
    for c in range(0x110000):
        if unicodedata.category(chr(c)) == "Nd" and unicodedata.decimal(chr(c)) in (0, 9):
            yield chr(c)
        elif chr(c).isspace():
            yield "1" + chr(c)


def attempt(f, text):
    try:
        value = f(text)
    except (ValueError, RecursionError):
        return None
    # Only to print what was nested as deeply as the default limit let json.loads go.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10000)
    printed = canonical(value)
    sys.setrecursionlimit(limit)
    return printed


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    print("%s: %d cases, %d bytes" % (path, len(rows), os.path.getsize(path)))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="a checkout of Seg-Zero at 77f9ea5")
    parser.add_argument("--cases", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=os.path.dirname(os.path.abspath(__file__)))
    args = parser.parse_args()
    strict = load(args.checkout, "seg_restrict", "seg_strict_compute_score")
    loose = load(args.checkout, "seg", "seg_compute_score")
    r = random.Random(args.seed)

    rows, seen = [], set()
    fixed = ((c, GT) if isinstance(c, str) else c for c in fixed_cases())
    while len(rows) < args.cases:
        case = next(fixed, None) or random_case(r)
        if case in seen or not encodable(case[0]):
            continue
        seen.add(case)
        rows.append({"text": case[0], "gt": case[1], "strict": strict(*case),
                     "loose": loose(*case)})
    write(os.path.join(args.out, "rewards.jsonl"), rows)

    pieces = [{"json": t, "value": attempt(json.loads, t)} for t in json_texts(r) if encodable(t)]
    pieces += [{"int": t, "value": attempt(int, t)} for t in int_texts()]
    write(os.path.join(args.out, "pyjson.jsonl"), pieces)
    for name in ("strict", "loose"):
        print(name, "ones per term", [sum(row[name][k] for row in rows) for k in range(5)])


if __name__ == "__main__":
    main()
