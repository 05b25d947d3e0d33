"""Golden file of generation: what transformers' generate answers with the settings a generation_config.json may have.

Usage: python make_generate.py [OUT (default: generate.json beside this file)]

Reads committed checkpoints, so make_qwen_vl.py need not run again: Q1, Q2, V1, V2 of qwen_vl/ and qwen2_vl/ with their
recorded prompts (one with pictures each), and models/tiny/qwen2.5-vl, which has a tokenizer, with text prompts. f32, greedy.

{"cases": [{model, sequence | prompt, settings, ids, lead}], "text": ...}: `settings` are the keys of generation_config.json
(repetition_penalty, eos_token_id, max_new_tokens, stop_strings); `ids` end with the token that stopped it; `text` is the
decoded answer where there is a tokenizer; `lead` is the smallest distance, after the penalty, of a chosen token from the
next one. No lead is under 2e-4, twenty times what f32 rounding moves a logit, so the tokens must be equal.
Left out: sampling (the random numbers differ), beams.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "..", "..", "models", "tiny", "qwen2.5-vl")
LEAST_LEAD = 2e-4
RANDOM = [("qwen_vl/Q1", Qwen2_5_VLForConditionalGeneration), ("qwen_vl/Q2", Qwen2_5_VLForConditionalGeneration),
          ("qwen2_vl/V1", Qwen2VLForConditionalGeneration), ("qwen2_vl/V2", Qwen2VLForConditionalGeneration)]
PICTURE_TOKEN = 250                # of the random checkpoints (make_qwen_vl.py)
VISION = [250, 251, 252, 253]      # never sampled by segzero, so transformers gets them as suppress_tokens


def load(cls, folder):
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config = transformers.GenerationConfig()      # only the case's own settings count
    return model


def run(model, inputs, settings, tokenizer=None, banned=None):
    keys = dict(settings, suppress_tokens=banned)
    keys.setdefault("eos_token_id", None)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, pad_token_id=0, tokenizer=tokenizer, return_dict_in_generate=True,
                             output_scores=True, **keys)
    ids = out.sequences[0, inputs["input_ids"].shape[1]:].tolist()
    lead = min((s[0].topk(2).values[0] - s[0].topk(2).values[1]).item() for s in out.scores)
    assert lead >= LEAST_LEAD, (settings, lead)
    return ids, lead


def random_cases(folder, cls):
    model = load(cls, os.path.join(HERE, folder))
    with open(os.path.join(HERE, folder, "case.json")) as f:
        case = json.load(f)
    tensors = load_file(os.path.join(HERE, folder, "case.safetensors"))
    pixels = load_file(os.path.join(HERE, "qwen_vl", "pixels.safetensors"))
    number, sequence = next((i, s) for i, s in enumerate(case["sequences"]) if s.get("greedy"))
    ids = tensors[sequence["prefix"] + "input_ids"].long()[None]
    inputs = dict(input_ids=ids, mm_token_type_ids=(ids == PICTURE_TOKEN).int(), attention_mask=torch.ones_like(ids),
                  image_grid_thw=tensors[sequence["prefix"] + "image_grid_thw"].long(),
                  pixel_values=torch.cat([(pixels[n].float() - 128) / 64 for n in sequence["pictures"]]))
    plain = sequence["greedy"]["ids"]
    settings = [dict(repetition_penalty=p, max_new_tokens=16) for p in (1.05, 1.3, 0.8)]
    settings.append(dict(repetition_penalty=1.3, max_new_tokens=3))
    # Several stop tokens, of which the plain answer has one in the middle.
    settings.append(dict(eos_token_id=[254, plain[5]], max_new_tokens=16))
    for s in settings:
        got, lead = run(model, inputs, s, banned=VISION)
        yield dict(model="tests/golden/" + folder, sequence=number, settings=s, ids=got, lead=lead)


def text_cases():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = load(Qwen2_5_VLForConditionalGeneration, TINY)
    eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for question in ("Where is the red circle?", "Naïve café: the blue square left of the green star"):
        prompt = "<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        base = dict(eos_token_id=eos, max_new_tokens=48)
        whole, _ = run(model, inputs, base, tokenizer)
        text = tokenizer.decode(whole, skip_special_tokens=True)
        pieces = [tokenizer.decode([i]) for i in whole]
        long = max(range(4, len(pieces) - 4), key=lambda i: len(pieces[i]))
        across = pieces[long - 1][-1] + pieces[long][:2]
        stops = [
            [text[12:17]],                             # somewhere in the answer
            [across],                                  # begins in one token, ends within the next: that one stays whole
            [pieces[long][1:-1] or pieces[long]],      # inside one token
            ["assistant\n" + text[:2]],                # begins in the prompt
            ["no such text", text[20:23]],             # several, the second occurs
            ["no such text"],
            ["<|im_end|>"],                            # the text of a special token
        ]
        for s in stops:
            yield case(model, tokenizer, inputs, prompt, dict(base, stop_strings=s))
        for p in (1.05, 1.2):
            yield case(model, tokenizer, inputs, prompt, dict(base, repetition_penalty=p))


def case(model, tokenizer, inputs, prompt, settings):
    got, lead = run(model, inputs, settings, tokenizer)
    return dict(model="models/tiny/qwen2.5-vl", prompt=prompt, settings=settings, ids=got,
                text=tokenizer.decode(got, skip_special_tokens=True), lead=lead)


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "generate.json")
    cases = [c for folder, cls in RANDOM for c in random_cases(folder, cls)] + list(text_cases())
    with open(out, "w") as f:
        f.write("[" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]\n")
    for c in cases:
        print(c["model"], c["settings"], len(c["ids"]), "tokens, lead %.1e" % c["lead"], repr(c.get("text", "")))


if __name__ == "__main__":
    main()
