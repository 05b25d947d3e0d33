"""Golden file for model folders from outside: variants of models/tiny/qwen2.5-vl and what
transformers, PEFT and tokenizers make of them.

Usage: python make_folders.py [OUTFILE (default: folders.json beside this file)]

Needs torch, transformers, peft, safetensors (requirements.txt; transformers 5.24.0), and
torchvision for the processors. Writes lists of cases; a case has the edits that the test repeats, and the numbers:

  logits      {name, remove: [key], set: {key: value}, vision: {key: value}, image: bool, logits}
              edits of config.json (top level, and vision_config); logits: the first 8 of the last
              token, of TEXT or of an image of 4 x 6 patches and two words
  nested      the same for a config whose language model's keys are under text_config
  adapters    {name, config: {key: value}, logits}: a LoRA of rank 2 on q_proj and v_proj, whose
              elements are sines: a[i, j] = 0.2 sin(1 + i + 3 j), b[i, j] = 0.2 sin(2 + 2 i + j),
              plus 0.1 per layer in the sine
  tokens      {name, config: {...}, files: {name: json}, text, ids}: edits of tokenizer_config.json
              (null removes a key) and files beside it
  chats       {name, files, remove, text}: a user's question as the processor renders it
  grids       {name, files, remove, width, height, grid}: of AutoImageProcessor
"""
import json
import os
import shutil
import sys
import tempfile
import warnings

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer,
                          Qwen2_5_VLForConditionalGeneration)
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "..", "..", "models", "tiny", "qwen2.5-vl")
TEXT = "<|im_start|>user\nwhere is the red circle?<|im_end|>\n<|im_start|>assistant\n"
SECTION = [1, 2, 13]


def folder(without=()):
    path = tempfile.mkdtemp()
    for name in os.listdir(TINY):
        if name not in without:
            shutil.copy(os.path.join(TINY, name), path)
    return path


def read(path, name):
    with open(os.path.join(path, name)) as f:
        return json.load(f)


def write(path, name, value):
    with open(os.path.join(path, name), "w") as f:
        if isinstance(value, str):
            f.write(value)
        else:
            json.dump(value, f)


def rounded(row):
    return [round(float(x), 5) for x in row[:8]]


def run(path, image=False, adapter=None):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32,
                                                               attn_implementation="eager").eval()
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    inputs = {}
    ids = tokenizer(TEXT)["input_ids"]
    if image:
        pad = read(TINY, "config.json")["image_token_id"]
        start = read(TINY, "config.json")["vision_start_token_id"]
        ids = [start] + [pad] * 6 + [start + 1] + tokenizer("red circle")["input_ids"]
        rows = torch.arange(24)[:, None]
        columns = torch.arange(1176)[None, :]
        inputs["pixel_values"] = ((7 * rows + 3 * columns) % 256 - 128) / 64
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 6]])
        inputs["mm_token_type_ids"] = torch.tensor([[int(i == pad) for i in ids]])
    with torch.no_grad():
        return rounded(model(input_ids=torch.tensor([ids]), **inputs).logits[0, -1])


# ---- config.json ----
def rope(**keys):
    return {"rope_scaling": dict(keys, mrope_section=SECTION)}


def parameters(**keys):
    return {"rope_parameters": dict(keys, mrope_section=SECTION)}


OLD_ROPE = ["rope_scaling", "rope_theta"]
CONFIGS = [
    ("as it is", [], {}, {}, False),
    ("as it is, an image", [], {}, {}, True),
    ("another theta", [], {"rope_theta": 50000}, {}, False),
    ("rope_type default", [], rope(rope_type="default"), {}, False),
    ("no type", [], rope(), {}, False),
    ("yarn", [], rope(type="yarn", factor=4, original_max_position_embeddings=32), {}, False),
    ("yarn, an image", [], rope(type="yarn", factor=4, original_max_position_embeddings=32), {},
     True),
    ("yarn, factor 2.5", [], rope(rope_type="yarn", factor=2.5,
                                  original_max_position_embeddings=100), {}, False),
    ("yarn from max_position_embeddings", [], rope(rope_type="yarn", factor=8), {}, False),
    ("yarn, not truncated", [], rope(rope_type="yarn", factor=4, truncate=False,
                                     original_max_position_embeddings=32), {}, False),
    ("yarn, attention_factor", [], rope(rope_type="yarn", factor=4, attention_factor=0.7,
                                        original_max_position_embeddings=32), {}, False),
    ("yarn, mscale", [], rope(rope_type="yarn", factor=4, mscale=0.8, mscale_all_dim=0.3,
                              original_max_position_embeddings=32), {}, False),
    ("yarn, betas", [], rope(rope_type="yarn", factor=4, beta_fast=8, beta_slow=0.5,
                             original_max_position_embeddings=64), {}, False),
    ("linear", [], rope(type="linear", factor=3), {}, False),
    ("linear, an image", [], rope(type="linear", factor=3), {}, True),
    ("rope_parameters", OLD_ROPE, parameters(rope_type="default", rope_theta=700), {}, False),
    ("rope_parameters, yarn", OLD_ROPE, parameters(rope_type="yarn", rope_theta=1000, factor=4,
                                                   original_max_position_embeddings=32), {}, False),
    ("rope_parameters, linear", OLD_ROPE, parameters(rope_type="linear", rope_theta=1000, factor=2),
     {}, False),
    ("rope_scaling before rope_parameters", [], dict(rope(type="linear", factor=3),
                                                     **parameters(rope_type="default")), {}, False),
    ("windows without effect", [], {"use_sliding_window": True, "sliding_window": 4,
                                    "max_window_layers": 4}, {}, False),
    ("windows off", [], {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
     {}, False),
    ("full layer_types", [], {"layer_types": ["full_attention"] * 4, "use_sliding_window": True,
                              "sliding_window": 4}, {}, False),
    ("vision rope_theta", [], {}, {"rope_theta": 50}, True),
    ("vision rope_parameters", [], {}, {"rope_parameters": {"rope_type": "axial",
                                                            "rope_theta": 50}}, True),
    ("vision windows of 28", [], {}, {"window_size": 28, "fullatt_block_indexes": [1]}, True),
    ("eps", [], {"rms_norm_eps": 1e-2}, {}, False),
]
TEXT_KEYS = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "hidden_act", "vocab_size", "rms_norm_eps", "rope_scaling",
             "rope_theta", "max_position_embeddings", "use_sliding_window", "bos_token_id",
             "eos_token_id"]


def edited(config, remove, put, vision):
    for key in remove:
        del config[key]
    config.update(put)
    config["vision_config"].update(vision)
    return config


def nest(config):
    inner = {key: config.pop(key) for key in TEXT_KEYS if key in config}
    inner["model_type"] = "qwen2_5_vl_text"
    inner["tie_word_embeddings"] = config.pop("tie_word_embeddings")
    config["text_config"] = inner
    return config


def logits():
    out = []
    for name, remove, put, vision, image in CONFIGS:
        path = folder()
        write(path, "config.json", edited(read(path, "config.json"), remove, put, vision))
        out.append({"name": name, "remove": remove, "set": put, "vision": vision, "image": image,
                    "logits": run(path, image)})
        shutil.rmtree(path)
    return out


def nested():
    path = folder()
    write(path, "config.json", nest(read(path, "config.json")))
    plain = {"name": "text_config", "keys": TEXT_KEYS, "logits": run(path)}
    # As transformers writes it today.
    AutoConfig.from_pretrained(path).save_pretrained(path)
    config = read(path, "config.json")
    saved = {"name": "as saved by transformers 5", "config": config, "logits": run(path)}
    shutil.rmtree(path)
    return [plain, saved]


# ---- adapters ----
ADAPTERS = [
    ("plain", {}),
    ("rslora", {"use_rslora": True}),
    ("alpha_pattern", {"alpha_pattern": {"layers.1.self_attn.q_proj": 40, "v_proj": 1}}),
    ("initialised by eva", {"init_lora_weights": "eva"}),
    ("initialised by gaussian", {"init_lora_weights": "gaussian"}),
]


def sines(rows, columns, layer, first, by_row, by_column):
    i = torch.arange(rows, dtype=torch.float64)[:, None]
    j = torch.arange(columns, dtype=torch.float64)[None, :]
    return (0.2 * torch.sin(first + by_row * i + by_column * j + 0.1 * layer)).float()


def adapters():
    out = []
    for name, extra in ADAPTERS:
        path = tempfile.mkdtemp()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none",
                  "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        write(path, "adapter_config.json", dict(config, **extra))
        tensors = {}
        for layer in range(4):
            for module, rows in (("q_proj", 128), ("v_proj", 64)):
                front = f"base_model.model.model.language_model.layers.{layer}.self_attn.{module}"
                tensors[front + ".lora_A.weight"] = sines(2, 128, layer, 1, 1, 3).contiguous()
                tensors[front + ".lora_B.weight"] = sines(rows, 2, layer, 2, 2, 1).contiguous()
        save_file(tensors, os.path.join(path, "adapter_model.safetensors"))
        out.append({"name": name, "config": extra, "logits": run(TINY, adapter=path)})
        shutil.rmtree(path)
    return out


# ---- tokenizers ----
def token(content, special=True, normalized=False):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": normalized,
            "single_word": False, "special": special}


def more(*entries):
    decoder = read(TINY, "tokenizer_config.json")["added_tokens_decoder"]
    return dict(decoder, **dict(entries))


SEG = "a <seg> b"
TOKENS = [
    ("as it is", {}, {}, SEG),
    ("in added_tokens_decoder", {"added_tokens_decoder": more(("599", token("<seg>")))}, {}, SEG),
    ("with another id", {"added_tokens_decoder": more(("650", token("<seg>")))}, {}, SEG),
    ("two of them", {"added_tokens_decoder": more(("600", token("<b>")), ("599", token("<seg>")))},
     {}, "<b><seg><seg"),
    ("found in the normalised text",
     {"added_tokens_decoder": more(("599", token("<seg>", False, True)))}, {},
     "a<seg>\u0338b<seg>"),
    ("found in the raw text", {"added_tokens_decoder": more(("599", token("<seg>")))}, {},
     "a<seg>\u0338b<seg>"),
    ("added_tokens.json beside added_tokens_decoder", {}, {"added_tokens.json": {"<seg>": 599}},
     SEG),
    ("added_tokens.json alone", {"added_tokens_decoder": None},
     {"added_tokens.json": {"<seg>": 599}}, SEG),
    ("additional_special_tokens", {"additional_special_tokens": ["<seg>", "<|im_end|>"]}, {}, SEG),
    ("extra_special_tokens", {"extra_special_tokens": {"seg_token": "<seg>"}}, {}, SEG),
    ("an end that is new", {"eos_token": "<seg>"}, {}, SEG),
    ("special_tokens_map.json beside added_tokens_decoder", {},
     {"special_tokens_map.json": {"additional_special_tokens": ["<seg>"]}}, SEG),
    ("special_tokens_map.json alone", {"added_tokens_decoder": None},
     {"special_tokens_map.json": {"additional_special_tokens": ["<seg>"]}}, SEG),
    ("marks in the wrong order", {}, {}, "e\u0316\u0301\u0316 \u1e0b\u0323"),
    ("many marks", {}, {}, "e" + "\u0301" * 40 + "\u0316" * 40),
]


def tokens():
    out = []
    for name, config, files, text in TOKENS:
        path = folder(["model.safetensors"])
        edit = read(path, "tokenizer_config.json")
        for key, value in config.items():
            edit.pop(key, None)
            if value is not None:
                edit[key] = value
        write(path, "tokenizer_config.json", edit)
        for file, value in files.items():
            write(path, file, value)
        ids = AutoTokenizer.from_pretrained(path)(text)["input_ids"]
        out.append({"name": name, "config": config, "files": files, "text": text, "ids": ids})
        shutil.rmtree(path)
    return out


# ---- templates and processors ----
TEMPLATE = read(TINY, "chat_template.json")["chat_template"]
OTHER = TEMPLATE.replace("You are a helpful assistant.", "You see very well.")
START = TEMPLATE.index("{% if loop.first")
BARE = TEMPLATE[:START] + TEMPLATE[TEMPLATE.index("<|im_start|>{{ message['role'] }}"):]
CHATS = [
    ("Qwen-VL's", {}, []),
    ("another system message", {"chat_template.json": {"chat_template": OTHER}}, []),
    ("no system message", {"chat_template.json": {"chat_template": BARE}}, []),
    ("jinja", {"chat_template.jinja": OTHER}, ["chat_template.json"]),
    ("processor_config.json", {"processor_config.json": {"chat_template": OTHER}}, []),
]
SIZE = {"shortest_edge": 6272, "longest_edge": 9408}
IMAGE = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2,
         "temporal_patch_size": 2}
GRIDS = [
    ("as it is", {}, []),
    ("size", {"preprocessor_config.json": dict(IMAGE, size=SIZE)}, []),
    ("size and max_pixels",
     {"preprocessor_config.json": dict(IMAGE, size=SIZE, max_pixels=7000)}, []),
    ("no limits", {"preprocessor_config.json": IMAGE}, []),
    ("processor_config.json alone", {"processor_config.json": {"image_processor": dict(
        IMAGE, size=SIZE)}}, ["preprocessor_config.json"]),
    ("processor_config.json beside", {"processor_config.json": {"image_processor": dict(
        IMAGE, size=SIZE)}}, []),
    ("processor_config.json without images", {"processor_config.json": {
        "processor_class": "Qwen2_5_VLProcessor"}}, []),
]


def opened(kind, files, remove):
    path = folder(["model.safetensors"] + remove)
    for file, value in files.items():
        write(path, file, value)
    found = kind.from_pretrained(path)
    shutil.rmtree(path)
    return found


def chats():
    out = []
    for name, files, remove in CHATS:
        text = opened(AutoProcessor, files, remove).apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "where?"}]}],
            add_generation_prompt=True, tokenize=False)
        out.append({"name": name, "files": files, "remove": remove, "text": text})
    return out


def grids():
    out = []
    for name, files, remove in GRIDS:
        images = opened(AutoImageProcessor, files, remove)
        for width, height in ((56, 84), (300, 200), (1400, 1300)):
            grid = images(images=[Image.new("RGB", (width, height))])["image_grid_thw"]
            out.append({"name": name, "files": files, "remove": remove, "width": width,
                        "height": height, "grid": [int(x) for x in grid[0]]})
    return out


def main():
    import peft
    import tokenizers
    import transformers
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "folders.json")
    packages = (torch, transformers, peft, tokenizers)
    result = {"versions": {m.__name__: m.__version__ for m in packages},
              "logits": logits(), "nested": nested(), "adapters": adapters(), "tokens": tokens(),
              "chats": chats(), "grids": grids()}
    lines = []
    for key, value in result.items():
        if isinstance(value, list):
            rows = ",\n".join("  " + json.dumps(row) for row in value)
            lines.append(f'"{key}": [\n{rows}\n]')
        else:
            lines.append(f'"{key}": {json.dumps(value)}')
    with open(out, "w") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")


main()
