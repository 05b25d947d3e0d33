"""SAM2's video model as transformers saves it: the form in which the hub's folders
(facebook/sam2.1-hiera-large and the others) hold SAM2 since 2025.

Usage: python make_sam2_video.py [FOLDER (default: sam2 next to this file)]

Reads FOLDER/S5, an image model. Writes FOLDER/S5_video.json: config, the config.json of a
Sam2VideoModel with the same image part; and video, name -> shape of its weights that the image model
lacks. Both are what save_pretrained writes. Sam2Model.from_pretrained gives the image model back from
such a folder, which is checked here. Made with torch 2.15.0, transformers 5.24.0. """
import json
import os
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

here = os.path.dirname(os.path.abspath(__file__))
root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "sam2")
image = Sam2Config.from_pretrained(os.path.join(root, "S5"))
weights = load_file(os.path.join(root, "S5", "model.safetensors"))
width = image.vision_config.fpn_hidden_size

torch.manual_seed(3)
config = Sam2VideoConfig(
    vision_config=image.vision_config.to_dict(),
    prompt_encoder_config=image.prompt_encoder_config.to_dict(),
    mask_decoder_config=image.mask_decoder_config.to_dict(),
    image_size=image.prompt_encoder_config.image_size, num_maskmem=2,
    memory_attention_hidden_size=width, memory_attention_num_layers=1,
    memory_attention_num_attention_heads=1, memory_attention_feed_forward_hidden_size=8,
    memory_attention_rope_feat_sizes=[4, 4], memory_encoder_hidden_size=width,
    memory_encoder_output_channels=8, mask_downsampler_embed_dim=width, memory_fuser_num_layers=1,
    memory_fuser_embed_dim=width, memory_fuser_intermediate_dim=8, memory_fuser_kernel_size=3,
    memory_fuser_padding=1, dtype="bfloat16")
model = Sam2VideoModel(config).bfloat16()
missing, extra = model.load_state_dict(weights, strict=False)
assert not extra, extra
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    saved = load_file(os.path.join(folder, "model.safetensors"))
    with open(os.path.join(folder, "config.json")) as f:
        text = f.read()
    again = Sam2Model.from_pretrained(folder, dtype=torch.bfloat16)
    for name, t in again.state_dict().items():
        assert torch.equal(t, weights[name]), name
for name, t in weights.items():
    assert torch.equal(saved[name], t), name
video = {name: t for name, t in saved.items() if name not in weights}
assert set(video) == set(missing), set(video) ^ set(missing)
shapes = {name: list(t.shape) for name, t in sorted(video.items())}
with open(os.path.join(root, "S5_video.json"), "w") as f:
    json.dump({"config": json.loads(text), "video": shapes}, f, separators=(",", ":"), sort_keys=True)
    f.write("\n")
print(len(video), "tensors")
