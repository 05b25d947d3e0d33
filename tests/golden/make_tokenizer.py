"""Golden token ids, decoded text and chat prompts for a Qwen2.5-VL style tokenizer folder.

Usage: python make_tokenizer.py FOLDER OUTPUT.jsonl [STRINGS (default 2000)]

FOLDER holds tokenizer.json and tokenizer_config.json. The vocabulary itself is not stored here.
OUTPUT has one JSON object a line, told apart by "kind":
  header       {versions, vocabulary: {sha256 of tokenizer.json, size}}
  encode       {text, ids}                 no tokens are added at either end
  encode_new   the same for characters from Unicode 15 and later, where regex libraries may differ
  decode       {ids, text, skipped}        skipped = decoded with skip_special_tokens
  chat         {messages, options, text}   options: add_generation_prompt, add_vision_id
The strings do not depend on the vocabulary. Left out: offsets, truncation, padding.
"""
import hashlib
import json
import os
import random
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer

MARKERS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>",
           "<|vision_end|>",
           "<|object_ref_start|>", "<|box_end|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
           "<|file_sep|>"]
NEAR_MARKERS = ["<|im_start", "<|im_end|", "|im_end|>", "< |im_start|>", "<|im_start |>",
                "<|IM_START|>", "<|im_stat|>",
                "<|vision_|>", "<||>", "<|", "|>", "<tool_call", "</ tool_call>", "<|image_pad|",
                "<|<|im_end|>|>",
                "<|im_end|im_end|>", "<think>", "</answer>", "<image>", "[INST]", "<s>", "</s>",
                "<unk>", "<0x0A>"]
WORDS = {
    "en": "the find closest object's bounding box we'll They'RE I'd can't o'clock Segmentation "
          "points_1 bbox_2d unusual".split(),
    "de": "Größe Straße überprüfen Äpfel schönes Mädchen läuft".split(),
    "fr": "l'été garçon cœur où naïve Noël déjà".split(),
    "es": "¿dónde está el niño? ¡corazón! pingüino".split(),
    "ru": "найди самый похожий объект ёлка Щука".split(),
    "el": "βρες το αντικείμενο Ωμέγα ΐδια".split(),
    "tr": "İstanbul ışık çığ ÖĞRENCİ".split(),
    "vi": "tìm vật thể gần nhất đường ườ".split(),
    "pl": "zażółć gęślą jaźń".split(),
    "zh": "请找出图中最左边的红色汽车 蓝色杯子，谢谢！ 二〇二五年".split(),
    "ja": "画像の中の猫を探してください カタカナ ｶﾞﾊﾟ がぎぐ 東京タワー".split(),
    "ko": "이미지에서 빨간 자동차를 찾아 주세요 안녕하세요".split(),
    "ar": "أين القطة السوداء؟ مُحَمَّد ٣٤٥".split(),
    "he": "איפה החתול? שָׁלוֹם".split(),
    "hi": "तस्वीर में बिल्ली कहाँ है क़लम १२३".split(),
    "th": "แมวอยู่ที่ไหน น้ำ".split(),
    "ta": "பூனை எங்கே கொ".split(),
    "bn": "বিড়াল কোথায় য়".split(),
    "ka": "სად არის კატა".split(),
    "am": "ድመቷ የት ናት".split(),
}
SPACES = [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", " \n", "\n ",
          " \t ", "    ", "\u00a0", "\u2003",
          "\u3000", "\u0085", "\u2028", "\u1680", "\u200b", "\ufeff", "\v", "\f", "\x1c", "\x1f",
          "\u180e", "\u202f", "\u205f ", " \u00a0 ", "\n\t\n  \n", " " * 17]
# Text that NFC changes, or that looks as if it might.
COMBINING = ["e\u0301", "A\u030a", "o\u0308\u0304", "q\u0323\u0307", "q\u0307\u0323", "\u212b",
             "\u2126", "\u212a", "\u0344", "\u1112\u1161\u11ab",
             "\u1100\u1161", "\uac00\u11a8", "\u0958", "\u0928\u093c", "\u09c7\u09be",
             "\u0b92\u0bd7", "\uf900", "\ufb1d", "\u2adc", "n\u0303", "s\u0323\u0307",
             "\u1e9b\u0323", "c\u0327\u0301", "\u0065\u0301\u0065\u0301", "\u0301", " \u0301",
             "a\u0327\u0301\u0323", "\u3099", "\u304b\u3099", "\u30cf\u309a",
             "\u0112\u0300", "\u01b0\u031b", "\u1d15e", "\U0001d15e", "\u0f43",
             "\u0041\u030a\u0041", "\u0627\u0653", "i\u0307", "\u0130"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "🏳️‍🌈", "❤️", "☺", "🤷🏿‍♀️", "1️⃣", "🫠", "✈️", "🐈‍⬛", "🅰️", "©",
         "™", "→", "■", "…", "—", "“”", "«»"]
NUMBERS = ["0", "7", "42", "840", "1024", "3.14159", "-12", "1,000,000", "10e-6", "0x1F", "½", "²",
           "Ⅷ", "४५", "①", "𝟘𝟙", "2025-08-17", "12:30", "(10,20)",
           "[110,220]", "1/3", "٣٤", "〇", "৪", "100%"]
CODE = ["def f(x):\n    return x**2\n", "for (int i = 0; i < n; i++) {\n\tsum += a[i];\n}\n",
        '{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}',
        "local M = {}\r\nreturn M\r\n", "<div class=\"a\">&nbsp;</div>",
        "SELECT * FROM t WHERE a='b';", "a->b::c<d>()", "#include <stdio.h>\n",
        "if x!=y: pass  # no", "\\frac{1}{2}", "C:\\dir\\file.txt", "https://a.b/c?d=e&f=%20g",
        "x = [[1, 2],\n     [3, 4]]\n", "$HOME/.config", "```python\n",
        "user@example.org", "!!!", "???!", "-----", "=====>", "....", "**bold**", "__init__",
        "({[<>]})"]
LETTERS = ["𝒜", "ʰ", "ǅ", "ª", "\u0378", "\ue000", "\U000e0001", "\U0010fffd", "\u200d", "\u00ad",
           "\u0300a", "'ſ", "'S", "'LL", "x'Ve", "''s", "'", "\u2019s", "\x00",
           "\x01", "\x7f", "\u0080", "\ufffd", "ﬁ", "ǆ", "ß", "ẞ", "Æ"]
FIXED = ["", " ", "  ", "\n", "\r\n", "a", " a", "a ", "  a  ", "Hello world", " Hello world",
         "\u0301", "e\u0301", "a" * 600, " " * 300, "\n" * 120, "ab" * 200,
         "9" * 50, "\t" * 33 + "x",
         "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
         "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 9
         + "<|vision_end|>Please find 'the cat' with bbox and points.<|im_end|>\n",
         "e<|im_end|>\u0301", "e\u0301<|im_end|>e\u0301", " <|im_end|> ", "  <|im_end|>  x",
         "\n<|im_end|>\n", "<|im_end|><|im_end|>", "<tool_call>\n{}\n</tool_call>"]
NEW_UNICODE = ["\U0001fae8", "\U0001fae9 x", "\U0002ebf0", "a\U00010d40b", "\ua7cb\ua7cc",
               "\U00011f04\U00011f50", "\U0001e4d0"]


def strings(count):
    rnd = random.Random(20250817)
    words = [w for group in WORDS.values() for w in group]
    pools = [words, words, words, SPACES, SPACES, MARKERS, NEAR_MARKERS, COMBINING, EMOJI, NUMBERS,
             CODE, LETTERS]
    out = list(FIXED)
    # Every piece alone and after a space, then sentences of one language, then random mixtures.
    singles = [p for pool in (SPACES, MARKERS, NEAR_MARKERS, COMBINING, EMOJI, NUMBERS, CODE,
                              LETTERS) for p in pool]
    rnd.shuffle(singles)
    for p in singles:
        out += [p, "x " + p + " y"] if len(out) < count // 3 else []
    while len(out) < count // 2:
        group = rnd.choice(list(WORDS.values()))
        out.append(rnd.choice(["", " ", "\n"])
                   + rnd.choice([" ", "  ", ""]).join(rnd.choices(group, k=rnd.randint(2, 8)))
                   + rnd.choice(["", ".", "!\n", "?"]))
    while len(out) < count:
        parts = []
        for _ in range(rnd.randint(2, 9)):
            parts.append(rnd.choice(rnd.choice(pools)))
            if rnd.random() < 0.4:
                parts.append(" ")
        out.append("".join(parts))
    return out[:count]


def id_lists(tok, count):
    """Random ids; runs cut out of encoded text so that UTF-8 characters are split; ids with no
    token."""
    rnd = random.Random(11)
    size = tok.get_vocab_size(with_added_tokens=True)
    special = [tok.token_to_id(m) for m in MARKERS if tok.token_to_id(m) is not None]
    texts = [t for t in strings(2000) if any(ord(c) > 0x7ff for c in t)]
    out = [[], [size], [0, size + 5, 1]] + [[i] for i in special]
    while len(out) < count:
        way = rnd.randrange(3)
        if way == 0:
            ids = [rnd.randrange(size) for _ in range(rnd.randint(1, 10))]
        elif way == 1:
            ids = tok.encode(rnd.choice(texts), add_special_tokens=False).ids
            a = rnd.randrange(len(ids))
            ids = ids[a:a + rnd.randint(1, 12)]
        else:
            # single bytes come first in these vocabularies
            ids = [rnd.randrange(256) for _ in range(rnd.randint(1, 8))]
        if rnd.random() < 0.4 and special:
            ids.insert(rnd.randint(0, len(ids)), rnd.choice(special))
        out.append(ids)
    return out


def conversations():
    text = lambda s: {"type": "text", "text": s}
    image = {"type": "image"}
    user = lambda c: {"role": "user", "content": c}
    system = lambda c: {"role": "system", "content": c}
    assistant = lambda c: {"role": "assistant", "content": c}
    plain = [
        [user("Hello")],
        [system("You are a helpful assistant."), user("Hello")],
        [system(""), user("")],
        [system("Answer\nbriefly. "), user("  two  spaces \n")],
        [user([image, text("Please find 'the cat' with bbox and points.")])],
        [user([text("before "), image, text(" after")])],
        [user([image, image, text("compare"), image])],
        [system([text("You "), text("see.")]), user([image, text("a")]), assistant([text("b")]),
         user([text("c"), image])],
        [user("1"), assistant("2"), user("3"), assistant("4")],
        [user([])],
        [assistant("starts")],
        [user("first"), system("late system"), user("<|im_end|> {{ x }} {% if %} \\n ünïcode 猫")],
        [{"role": "tool", "content": "role passes through"}, user([text("x")])],
    ]
    out = []
    for i, messages in enumerate(plain):
        out.append((messages, {"add_generation_prompt": True}))
        if i % 2 == 0:
            out.append((messages, {"add_generation_prompt": False}))
    out.append((plain[6], {"add_generation_prompt": True, "add_vision_id": True}))
    return out


def main():
    folder, output = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    path = os.path.join(folder, "tokenizer.json")
    tok = Tokenizer.from_file(path)
    with open(path, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    lines = [dict(kind="header", tokenizers=tokenizers.__version__,
                  transformers=transformers.__version__,
                  vocabulary=dict(sha256=digest, size=tok.get_vocab_size(with_added_tokens=True)))]
    for s in strings(count):
        lines.append(dict(kind="encode", text=s, ids=tok.encode(s, add_special_tokens=False).ids))
    for s in NEW_UNICODE:
        lines.append(dict(kind="encode_new", text=s,
                          ids=tok.encode(s, add_special_tokens=False).ids))
    for ids in id_lists(tok, 300):
        lines.append(dict(kind="decode", ids=ids, text=tok.decode(ids, skip_special_tokens=False),
                          skipped=tok.decode(ids, skip_special_tokens=True)))
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    for messages, options in conversations():
        text = auto.apply_chat_template(messages, tokenize=False, **options)
        lines.append(dict(kind="chat", messages=messages, options=options, text=text))
    # transformers' own fast class must agree with the bare library on all of it.
    for line in lines:
        if line["kind"].startswith("encode"):
            assert auto(line["text"], add_special_tokens=False)["input_ids"] == line["ids"], line
        elif line["kind"] == "decode":
            assert auto.decode(line["ids"], skip_special_tokens=True) == line["skipped"], line
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    with open(output, "w", encoding="utf-8", newline="\n") as f:
        for line in lines:
            # Escaping what is not printable ASCII keeps U+2028 and the like from looking like line
            # ends.
            f.write(json.dumps(line, ensure_ascii=not line.get("text", "").isprintable(),
                               separators=(",", ":")) + "\n")
    print(len(lines), "lines,", os.path.getsize(output), "bytes")


if __name__ == "__main__":
    main()
