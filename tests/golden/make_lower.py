"""Writes lower.json: pairs of a text and its str.lower(), for the questions in prompts.

Usage, from the repository's root: python tests/golden/make_lower.py       (Python 3.11, Unicode 14; the standard library alone)

Words whose capital sigma does and does not end them, the one letter that becomes two, and 400
random texts of letters with and without case, marks and punctuation. """
import json
import random

LETTERS = list("ABCDEFGabc .,:'ÉÀÖİΣσςΑΒαбГДℵKÅȺϴẞ\u0301\u00ad\u02b0^`日本🚗\u2019-1ǅ")
WORDS = ["ÉTÉ", "ΟΔΥΣΣΕΥΣ", "ΑΣ", "Σ", "ΑΣ.", "ΑΣ.Β", "Α'Σ", "İSTANBUL", "STRASSE ẞ", "ΣΑ ΑΣ Σ",
         "ΑΣ\u0301", "\u0301Σ", "1Σ", "AΣ1", ""]

random.seed(5)
texts = WORDS + ["".join(random.choice(LETTERS) for _ in range(random.randint(1, 9)))
                 for _ in range(400)]
with open("tests/golden/lower.json", "w", encoding="utf-8") as file:
    file.write("[\n" + ",\n".join(json.dumps([t, t.lower()]) for t in texts) + "\n]\n")
