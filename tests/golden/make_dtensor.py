"""Checkpoints as Seg-Zero and EasyR1 leave them: one torch file for each rank, with DTensors.

Usage: python make_dtensor.py CASE [FOLDER (default: dtensor next to this file)]

CASE, and the versions it was run with:
  seg_zero   torch 2.6.0, transformers 4.51.3 (Seg-Zero's own pins): f32, untied, three ranks, so
             that sizes are not divisible; FSDP's sharded state dict
  one        the same versions: f32, tied, one rank, whose tensors are plain
  easyr1     torch 2.15.0, transformers 5.24.0: bf16, tied, a mesh ("ddp", "fsdp") of 2 x 2;
             get_model_state_dict
  lora       the same versions, peft 0.21.2: base bf16, adapters f32, two ranks

Writes FOLDER/CASE/actor/model_world_size_W_rank_R.pt, actor/huggingface/ (config and generation
config, as save_pretrained writes them), for lora actor/lora_adapter/adapter_config.json, and
  expected.safetensors   the merged weights in bf16: the whole model before it was sharded, under
                         the names that save_pretrained gives; for lora the base and the adapters
                         added in f32 and rounded once
  case.safetensors       s0.input_ids, s0.image_grid_thw, s0.position_ids, s0.pixel_values, and
                         s0.logits [T, vocab] f32 of transformers on the merged bf16 weights,
                         computed in f32

FSDP runs on the CPU with gloo. Weights are random; norms near 1. """
import functools
import json
import os
import sys
import warnings

if os.environ.get("PYTHONHASHSEED") != "0":       # pickles of meshes hold hashes of texts
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable] + sys.argv)

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardedStateDictConfig, ShardingStrategy, StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

warnings.simplefilter("ignore")
torch.set_num_threads(1)

IMAGE, VIDEO, VSTART, VEND, EOS = 60, 61, 62, 63, 64
CASES = {
    "seg_zero": dict(ranks=3, tie=False, dtype=torch.float32, mesh=(3,)),
    "one": dict(ranks=1, tie=True, dtype=torch.float32, mesh=(1,)),
    "easyr1": dict(ranks=4, tie=True, dtype=torch.bfloat16, mesh=(2, 2)),
    "lora": dict(ranks=2, tie=True, dtype=torch.bfloat16, mesh=(2,), lora=True),
}
TEXT = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=67, rms_norm_eps=1e-6, max_position_embeddings=512,
            eos_token_id=EOS, bos_token_id=None)
VISION = dict(depth=2, hidden_size=8, intermediate_size=12, num_heads=1, out_hidden_size=16,
              patch_size=4, window_size=16, fullatt_block_indexes=[1], tokens_per_second=2)
ROPE = [1, 1, 2]
PATCHES = (1, 4, 4)


def build_config(case):
    common = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VSTART,
                  vision_end_token_id=VEND, tie_word_embeddings=case["tie"],
                  vision_config=dict(VISION),
                  architectures=["Qwen2_5_VLForConditionalGeneration"])
    import transformers
    if transformers.__version__ < "4.52":
        rope = dict(type="mrope", mrope_section=ROPE)
        return Qwen2_5_VLConfig(**common, **TEXT, rope_scaling=rope, rope_theta=1e6,
                                torch_dtype="float32")
    rope = dict(rope_type="default", rope_theta=1e6, mrope_section=ROPE)
    return Qwen2_5_VLConfig(**common, text_config=dict(TEXT, rope_parameters=rope),
                            dtype="bfloat16")


def build_model(case):
    model = Qwen2_5_VLForConditionalGeneration(build_config(case))
    gen = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = torch.randn(p.shape, generator=gen)
            if p.dim() == 1:
                x = 0.1 * x + (1 if name.endswith(".weight") else 0)
            else:
                x = x * (0.5 if "embed_tokens" in name else p[0].numel() ** -0.5)
            p.copy_(x)
    model.tie_weights()
    return model.to(case["dtype"])


def add_adapters(model):
    import peft
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules="all-linear",
                             exclude_modules=r".*visual.*")
    model = peft.get_peft_model(model, config)
    gen = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.data = 0.3 * torch.randn(p.shape, generator=gen)
            else:
                p.data = p.to(torch.bfloat16)
    return model


def hub_name(name):
    name = name.replace("base_model.model.", "").replace(".base_layer.", ".")
    if name.startswith("model.visual."):
        return name[len("model."):]
    return name.replace("model.language_model.", "model.")


def merged(model, case):
    """The weights in bf16, as the whole model has them before it is sharded."""
    state = model.state_dict()
    out = {}
    for name, t in state.items():
        if ".lora_" in name or case["tie"] and name.endswith("lm_head.weight"):
            continue
        t = t.float()
        a = state.get(name.replace(".base_layer.weight", ".lora_A.default.weight"))
        if ".base_layer.weight" in name and a is not None:
            b = state[name.replace(".base_layer.weight", ".lora_B.default.weight")]
            t = t + 5 / 3 * (b.float() @ a.float())
        out[hub_name(name)] = t.to(torch.bfloat16).contiguous()
    return out


def shard(model, case, rank, folder):
    names = ("ddp", "fsdp") if len(case["mesh"]) == 2 else ("fsdp",)
    mesh = init_device_mesh("cpu", case["mesh"], mesh_dim_names=names)
    strategy = ShardingStrategy.FULL_SHARD
    if len(case["mesh"]) == 2:
        strategy = ShardingStrategy.HYBRID_SHARD
    kinds = {type(m) for m in model.modules()
             if type(m).__name__ in ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=kinds)
    if case.get("lora"):
        from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy
        leaf = functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda m: len(
            list(m.named_children())) == 0 and getattr(m, "weight", None) is not None
            and m.weight.requires_grad)
        policy = functools.partial(_or_policy, policies=[leaf, policy])
    fsdp = FSDP(model, sharding_strategy=strategy, auto_wrap_policy=policy, device_mesh=mesh,
                device_id=torch.device("cpu"), use_orig_params=False)
    if torch.__version__ < "2.7":
        config = ShardedStateDictConfig(offload_to_cpu=True)
        with FSDP.state_dict_type(fsdp, StateDictType.SHARDED_STATE_DICT, config):
            state = fsdp.state_dict()
    else:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
        state = get_model_state_dict(fsdp, options=StateDictOptions(cpu_offload=True))
    torch.save(state, os.path.join(folder, f"model_world_size_{case['ranks']}_rank_{rank}.pt"))
    if case.get("lora"):
        from dataclasses import asdict
        if rank == 0:
            path = os.path.join(folder, "lora_adapter")
            os.makedirs(path, exist_ok=True)
            config = asdict(model.peft_config["default"])
            config["task_type"] = getattr(config["task_type"], "value", config["task_type"])
            config["peft_type"] = config["peft_type"].value
            config["target_modules"] = sorted(config["target_modules"])
            with open(os.path.join(path, "adapter_config.json"), "w") as f:
                json.dump(config, f, ensure_ascii=False, indent=4)


def work(rank, name, folder):
    case = CASES[name]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29561", RANK=str(rank),
                      WORLD_SIZE=str(case["ranks"]))
    dist.init_process_group("gloo", rank=rank, world_size=case["ranks"])
    model = build_model(case)
    if case.get("lora"):
        model = add_adapters(model)
    actor = os.path.join(folder, "actor")
    if rank == 0:
        path = os.path.join(actor, "huggingface")
        os.makedirs(path, exist_ok=True)
        model.config.save_pretrained(path)
        if torch.__version__ >= "2.7":
            model.generation_config.save_pretrained(path)
        save_file(merged(model, case), os.path.join(folder, "expected.safetensors"))
    dist.barrier()
    shard(model, case, rank, actor)
    dist.barrier()
    dist.destroy_process_group()


def logits(name, folder):
    case = CASES[name]
    model = Qwen2_5_VLForConditionalGeneration(build_config(case)).float().eval()
    weights = load_file(os.path.join(folder, "expected.safetensors"))
    state = {}
    for key in model.state_dict():
        own = hub_name(key)
        if own == "lm_head.weight" and case["tie"]:
            own = "model.embed_tokens.weight"
        state[key] = weights[own].float()
    model.load_state_dict(state)
    gen = torch.Generator().manual_seed(13)
    grid = torch.tensor([PATCHES])
    count = PATCHES[1] * PATCHES[2] // 4
    ids = torch.randint(0, 60, (9,), generator=gen).tolist()
    ids = torch.tensor([ids[:2] + [VSTART] + [IMAGE] * count + [VEND] + ids[2:]])
    pixels = torch.randn(PATCHES[1] * PATCHES[2], 3 * 2 * 4 * 4, generator=gen)
    extra = {}
    if torch.__version__ >= "2.7":
        extra = dict(mm_token_type_ids=(ids == IMAGE).int())
        find = model.model.get_rope_index
    else:
        find = model.get_rope_index
    mask = torch.ones_like(ids)
    positions = find(input_ids=ids, image_grid_thw=grid, attention_mask=mask, **extra)[0]
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, position_ids=positions)
    save_file({"s0.input_ids": ids[0].int(), "s0.image_grid_thw": grid.int(),
               "s0.position_ids": positions[:, 0].int().contiguous(), "s0.pixel_values": pixels,
               "s0.logits": out.logits[0].float().contiguous()},
              os.path.join(folder, "case.safetensors"))


if __name__ == "__main__":
    name = sys.argv[1]
    here = os.path.dirname(os.path.abspath(__file__))
    root = sys.argv[2] if len(sys.argv) > 2 else os.path.join(here, "dtensor")
    folder = os.path.join(root, name)
    os.makedirs(os.path.join(folder, "actor"), exist_ok=True)
    mp.spawn(work, (name, folder), CASES[name]["ranks"])
    logits(name, folder)
