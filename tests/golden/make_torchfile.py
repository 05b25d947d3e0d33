"""Golden torch.save files, and the names and shapes of SAM2 checkpoints in both namings.

Usage: python make_torchfile.py [FOLDER (default: torchfile next to this file)]

FOLDER/*.pt                 written by torch.save; some with features that are refused. legacy.pt holds a memory address and is
                            the one file that differs each time
FOLDER/expected.json        file -> tensor name -> {dtype, shape, values (flat, row-major)} as they should be read
FOLDER/sam2_names.json      original: {stem: {suffix: shape}} of SAM2.1 tiny, all of it; transformers: the same for the image
                            part; sizes: model -> the shapes that its config is derived from;
                            config: model -> that config (what of Sam2Config.to_dict() concerns the
                            network; but for tiny, vision_config only). "a.3-5.b" stands for a.3.b,
                            a.4.b and a.5.b, which have the same suffixes and shapes.
Needs the sam2 package and requirements.txt. Random values are small multiples of 1/8, exact in
every floating type here. """
import json
import os
import re
import sys
from collections import OrderedDict

import torch

torch.set_num_threads(1)
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                                         "torchfile")
os.makedirs(OUT, exist_ok=True)
generator = torch.Generator().manual_seed(7)
READ_AS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int32: "i32", torch.uint8: "u8",
           torch.bool: "u8",
           torch.float16: "f32", torch.float64: "f32", torch.int64: "i32"}
expected = {}


def values(*shape):
    return torch.randint(-40, 40, shape, generator=generator) / 8


def write(name, content, tensors=None, **options):
    torch.save(content, os.path.join(OUT, name), **options)
    if tensors is not None:
        expected[name] = {key: {"dtype": READ_AS[t.dtype], "shape": list(t.shape),
                                "values": t.detach().double().flatten().tolist()}
                          for key, t in tensors.items()}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # a parameter, buffers, one of them int64 with no dimension
        self.norm = torch.nn.BatchNorm1d(3)
        self.out = torch.nn.Linear(3, 2)


def torch_files():
    net = Net()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(values(*p.shape))
    state = net.state_dict()                          # an OrderedDict that carries _metadata
    for protocol in (2, 5):
        write(f"module{protocol}.pt", {"model": state, "epoch": 3}, state, pickle_protocol=protocol)
    optimizer = torch.optim.AdamW([net.out.bias])
    net.out(net.norm(values(4, 3))).sum().backward()
    optimizer.step()
    write("training.pt", {"model": dict(net.state_dict()), "optimizer": optimizer.state_dict(),
                          "loss": {"all": [0.5, -1e300]},
                          "big": 2 ** 80, "negative": -5, "nothing": None, "yes": True,
                          "both": {1, 2},
                          "odd": torch.zeros(2, dtype=torch.int16)}, net.state_dict())
    a, b = values(2, 3), values(4)
    write("bare.pt", OrderedDict(a=a, b=b), {"a": a, "b": b})
    write("nested.pt", {"net": {"a": a, "parts": [b, {"c": a + 1}]},
                        "model": {"note": "no tensor here"}, 7: b + 1},
          {"net.a": a, "net.parts.0": b, "net.parts.1.c": a + 1, "7": b + 1})
    parameters = {"w": torch.nn.Parameter(values(2, 2)),
                  "frozen": torch.nn.Parameter(values(3), requires_grad=False)}
    write("parameters.pt", {"model": parameters}, parameters)

    kinds = {str(d).split(".")[1]: values(3, 2).to(d)
             for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
    kinds["half_special"] = torch.tensor([65504, -2 ** -24, 2 ** -15, 0.333251953125, -1.5],
                                         dtype=torch.float16)
    kinds["int32"] = torch.tensor([-2 ** 31, 2 ** 31 - 1], dtype=torch.int32)
    kinds["int64"] = torch.tensor([[-2 ** 31], [2 ** 31 - 1]])
    kinds["uint8"] = torch.tensor([0, 255, 7], dtype=torch.uint8)
    kinds["bool"] = torch.tensor([True, False, True])
    kinds["scalar"] = torch.tensor(2.5)
    kinds["empty"] = torch.zeros(0, 4)
    kinds["size"] = torch.zeros(3, 2)
    write("dtypes.pt", {"model": kinds, "shape": kinds["size"].shape}, kinds)

    base = values(4, 6)
    half = values(3, 5, 2).half()
    views = {"base": base, "row": base[2], "column": base[:, 4], "part": base[1:3, 2:5],
             "transposed": base.t(), "step": base[::2, 1::3],
             "repeated": base[0, :2].expand(3, 2), "half": half.permute(2, 0, 1),
             "half_tail": half[1:],
             "indices": torch.arange(12).reshape(3, 4).t(), "one": base[3:4, 5:6], "channels_last":
             values(2, 3, 2, 2).to(memory_format=torch.channels_last), "none_left": base[2:2].t()}
    write("views.pt", {"model": views}, views)

    write("int16.pt", {"w": torch.zeros(2, dtype=torch.int16)})
    write("uint16.pt", {"w": torch.zeros(2, dtype=torch.uint16)})          # _rebuild_tensor_v3
    write("big64.pt", {"ids": torch.tensor([1, 2 ** 31])})
    write("legacy.pt", {"w": a}, _use_new_zipfile_serialization=False)
    write("network.pt", torch.nn.ReLU())


# ---- SAM2 ----
SIZES = {"tiny": "sam2.1_hiera_t", "small": "sam2.1_hiera_s", "base_plus": "sam2.1_hiera_b+",
         "large": "sam2.1_hiera_l"}
# what the conversion to transformers sets for each published model; tiny is the default of the classes
HIERA = {
    "tiny": {},
    "small": dict(blocks_per_stage=[1, 2, 11, 2], global_attention_blocks=[7, 10, 13]),
    "base_plus": dict(hidden_size=112, embed_dim_per_stage=[112, 224, 448, 896],
                      num_attention_heads_per_stage=[2, 4, 8, 16],
                      num_attention_heads=2, blocks_per_stage=[2, 3, 16, 3],
                      global_attention_blocks=[12, 16, 20],
                      window_positional_embedding_background_size=[14, 14]),
    "large": dict(hidden_size=144, embed_dim_per_stage=[144, 288, 576, 1152],
                  num_attention_heads_per_stage=[2, 4, 8, 16],
                  num_attention_heads=2, blocks_per_stage=[2, 6, 36, 4],
                  global_attention_blocks=[23, 33, 43],
                  window_size_per_stage=[8, 4, 16, 8]),
}
CHANNELS = {"base_plus": [896, 448, 224, 112], "large": [1152, 576, 288, 144]}
OF_NO_CONCERN = {"transformers_version", "architectures", "output_hidden_states", "return_dict",
                 "dtype", "chunk_size_feed_forward",
                 "is_encoder_decoder", "id2label", "label2id", "problem_type", "initializer_range",
                 "_name_or_path", "output_attentions"}


def folded(state):
    stems = {}
    for name, t in state.items():
        stem, _, suffix = name.rpartition(".")
        stems.setdefault(stem, {})[suffix] = list(t.shape)
    runs = {}      # (before, after the first number, shapes) -> numbers
    out = {}
    for stem, shapes in stems.items():
        m = re.fullmatch(r"(.*?\.)(\d+)(|\..*)", stem)
        if m:
            runs.setdefault((m[1], m[3], json.dumps(shapes)), []).append(int(m[2]))
        else:
            out[stem] = shapes
    for (before, after, shapes), numbers in runs.items():
        while numbers:
            n = next((i for i, v in enumerate(numbers) if v != numbers[0] + i), len(numbers))
            number = str(numbers[0]) if n == 1 else f"{numbers[0]}-{numbers[n - 1]}"
            out[before + number + after] = json.loads(shapes)
            numbers = numbers[n:]
    return out


def concerning(config):
    if not isinstance(config, dict):
        return config
    return {key: concerning(value) for key, value in config.items() if key not in OF_NO_CONCERN}


def config_needs(name):
    if name.startswith("image_encoder.trunk.blocks."):
        return name.endswith(("qkv.weight",
                              ".proj.weight")) and ".attn.proj." not in name or name.endswith(
                                  "blocks.0.mlp.layers.0.weight")
    return name.endswith(("pos_embed", "patch_embed.proj.weight", ".conv.weight"))


def sam2_names():
    from sam2.build_sam import build_sam2
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig
    out = {"sizes": {}, "config": {}}
    for size, yaml in SIZES.items():
        state = build_sam2(f"configs/sam2.1/{yaml}.yaml", device="cpu").state_dict()
        backbone = Sam2HieraDetConfig(**HIERA[size])
        vision = {"backbone_channel_list": CHANNELS[size]} if size in CHANNELS else {}
        config = Sam2Config(vision_config=Sam2VisionConfig(backbone_config=backbone, **vision))
        with torch.device("meta"):
            other = Sam2Model(config).state_dict()
        # The four point rows become one matrix, the Fourier matrix gets a second name.
        image = [n for n in state if n.startswith(("image_encoder.", "sam_", "no_mem_embed"))]
        assert len(other) == len(image) - 3 + 1, (size, len(other), len(image))
        out["config"][size] = concerning(config.to_dict())
        if size != "tiny":
            assert all(v == out["config"]["tiny"][k] for k,
                       v in out["config"][size].items() if k != "vision_config")
            out["config"][size] = {"vision_config": out["config"][size]["vision_config"]}
        if size == "tiny":
            out["original"], out["transformers"] = folded(state), folded(other)
        else:
            out["sizes"][size] = folded({n: t for n,
                                         t in state.items() if config_needs(n)
                                         and not n.startswith("mem")})
    with open(os.path.join(OUT, "sam2_names.json"), "w") as file:
        json.dump(out, file, separators=(",", ":"), sort_keys=True)
        file.write("\n")


torch_files()
with open(os.path.join(OUT, "expected.json"), "w") as file:
    json.dump(expected, file, separators=(",", ":"), sort_keys=True)
    file.write("\n")
sam2_names()
