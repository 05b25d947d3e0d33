"""Golden file of generation: what transformers' generate answers with the settings a
generation_config.json may have.

Usage: python make_generate.py [OUT (default: generate.json next to this file)]

Reads committed checkpoints, so make_qwen_vl.py need not run again: Q1, Q2, V1, V2 of qwen_vl/ and
qwen2_vl/ with their recorded prompts (one with images each); and the tokenizer of
models/tiny/qwen2.5-vl, not its weights, which may change.

A list of two kinds of cases. {model, sequence, settings, ids, lead}: greedy in f32; `settings` are
keys of generation_config.json, `ids` end with the token that stopped it, `lead` is the smallest
distance, after the penalty, of a chosen token from the next one. No lead is under 2e-4, twenty
times what f32 rounding moves a logit, so the tokens must be equal. {prompt, said, stop_strings,
count, text}: were the tokens `said` one after the other, generate would stop after `count` of them
(StopStringCriteria), and `text` is what they decode to. Left out: sampling (the random numbers
differ), beams. """
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer, StopStringCriteria, Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration)

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "..", "..", "models", "tiny", "qwen2.5-vl")
LEAST_LEAD = 2e-4
RANDOM = [("qwen_vl/Q1", Qwen2_5_VLForConditionalGeneration),
          ("qwen_vl/Q2", Qwen2_5_VLForConditionalGeneration),
          ("qwen2_vl/V1", Qwen2VLForConditionalGeneration),
          ("qwen2_vl/V2", Qwen2VLForConditionalGeneration)]
IMAGE_TOKEN = 250                # of the random checkpoints (make_qwen_vl.py)
# never sampled by segzero, so transformers gets them as suppress_tokens
VISION = [250, 251, 252, 253]


def load(cls, folder):
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    # only the case's own settings count
    model.generation_config = transformers.GenerationConfig()
    return model


def run(model, inputs, settings, banned):
    keys = dict(settings, suppress_tokens=banned)
    keys.setdefault("eos_token_id", None)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, pad_token_id=0,
                             return_dict_in_generate=True,
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
    inputs = dict(input_ids=ids, mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
                  attention_mask=torch.ones_like(ids),
                  image_grid_thw=tensors[sequence["prefix"] + "image_grid_thw"].long(),
                  pixel_values=torch.cat([(pixels[n].float() - 128) / 64
                                          for n in sequence["images"]]))
    plain = sequence["greedy"]["ids"]
    settings = [dict(repetition_penalty=p, max_new_tokens=16) for p in (1.05, 1.3, 0.8)]
    settings.append(dict(repetition_penalty=1.3, max_new_tokens=3))
    # Several stop tokens, of which the plain answer has one in the middle.
    settings.append(dict(eos_token_id=[254, plain[5]], max_new_tokens=16))
    # Stop tokens that come too early.
    settings.append(dict(eos_token_id=[254, plain[5]], min_new_tokens=9, max_new_tokens=16))
    settings.append(dict(eos_token_id=[plain[1], plain[7]], min_length=ids.shape[1] + 5,
                         max_new_tokens=16))
    for s in settings:
        got, lead = run(model, inputs, s, VISION)
        yield dict(model="tests/golden/" + folder, sequence=number, settings=s, ids=got, lead=lead)


def text_cases():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    prompt = "<|im_start|>user\nWhere is the red circle?<|im_end|>\n<|im_start|>assistant\n"
    answer = 'The naïve 🙂 circle left of the star.\n<answer>{"bbox": [12,34,56,78], "points_1": [30,41]}</answer><|im_end|>'
    ids, said = tokenizer(prompt).input_ids, tokenizer(answer).input_ids
    pieces = [tokenizer.decode([i]) for i in said]
    long = max(range(4, len(pieces) - 4), key=lambda i: len(pieces[i]))
    for stops in [
        ["</answer>"],
        # begins in one token, ends within another: that one stays whole
        ["🙂 ci"],
        [pieces[long][1:-1]],                          # inside one token
        ["assistant\nThe"],                            # begins in the prompt
        ["assistant\n"],                               # in the prompt alone: does not count
        ["🙂"], ["ï"],                                 # characters of several tokens
        ["no such text", "bbox", "star"],              # several: the first to come
        ["no such text"],
        ["</answer><|im_end|>"],                       # the text of a special token
        ["e"], ["\n"],
    ]:
        criteria = StopStringCriteria(tokenizer, stops)
        count = next((n for n in range(1, len(said) + 1)
                      if criteria(torch.tensor([ids + said[:n]]), None).item()), len(said))
        yield dict(prompt=prompt, said=said, stop_strings=stops, count=count,
                   text=tokenizer.decode(said[:count], skip_special_tokens=True))


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "generate.json")
    cases = [c for folder, cls in RANDOM for c in random_cases(folder, cls)] + list(text_cases())
    with open(out, "w") as f:
        f.write("[" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]\n")
    for c in cases:
        print(c.get("model", "text"), c.get("settings", c.get("stop_strings")), c.get("lead", ""),
              repr(c.get("text", "")))


if __name__ == "__main__":
    main()
