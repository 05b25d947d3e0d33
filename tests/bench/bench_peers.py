"""A checkpoint folder's model here, in transformers and in llama.cpp, by turns: first token,
decoding, memory.

Usage: python bench_peers.py MODEL_DIR [--peers limits,transformers,llama] [--dtype bf16|int8|int4]
[--rounds N] [--steps K] [--answers 1,8]
                             [--images N] [--gguf FILE] [--threads N] [--segzero COMMAND]
                             [--no-repack]
       a peer that this Python lacks is left out: torch and transformers; gguf, llama_cpp and torch
       (LLAMA_CPP_LIB_PATH names another build of its library)

Both programs of a pair keep the model loaded and run the same phase one right after the other, many
times, since a shared machine's speed changes within minutes; what counts is the ratio in a pair, of
which the median is printed with the least and the greatest.
  text_seconds      a prompt of 1000 random tokens to the first token (also what llama.cpp does: its
                    part is the language model only)
  prompt_seconds    the prompt of bench_model.json, 1000 tokens around an 840 x 840 image, vision
                    tower included (not llama.cpp)
  decode_N          tokens per second of N answers over that text prompt's cache, all together
  limits            not a program: decode_N and the rate of reading memory, text_seconds and
                    prompt_seconds and the rate of a matrix product, both measured by ours right
                    before and after the phase; of_limit 1 at best
  peak_bytes        the process' largest resident set, mapped weights included
Prints one JSON object a line: {name, value, peer, unit, faster, least, greatest, processor}; faster
above 1 is ours; processor: the same ratio by processor time, which a machine that others take time
from does not spoil. llama.cpp gets the folder's own weights in a GGUF file (bf16; with --dtype int8
its Q8_0, with int4 its Q4_K_M), written next to the folder once. Left out: sampling on the peers' side (any token does),
several images, llama.cpp's vision tower. """
import argparse
import ctypes
import glob
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "bench_model.json")) as f:
    WORK = json.load(f)["work"]
PROMPT = WORK["text_tokens_before"] + 2 + (WORK["image_size"][0] // 28) * (
    WORK["image_size"][1] // 28) + WORK["text_tokens_after"]


NEEDS = dict(limits=[], transformers=["torch", "transformers"],
             llama=["torch", "safetensors", "gguf", "llama_cpp"])


# ---- the peers: prompt (transformers), answers(n), steps(k), as in bench_serve.lua ----
class Transformers:
    def __init__(self, args):
        import torch
        import transformers
        self.torch = torch
        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
        transformers.utils.logging.set_verbosity_error()
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(args.model,
                                                                              dtype=torch.bfloat16,
                                                                              attn_implementation="sdpa").eval()
        config = self.model.config
        image, side = config.image_token_id, config.vision_config.patch_size
        self.text = torch.randint(0, image, (1, PROMPT))
        h, w = (s // side for s in WORK["image_size"])
        word = lambda n: torch.randint(0, image, (n,)).tolist()
        ids = word(WORK["text_tokens_before"]) + [config.vision_start_token_id] + [image] * (
            h * w // 4) + [config.vision_end_token_id]
        ids = torch.tensor([ids + word(WORK["text_tokens_after"])])
        self.image = dict(input_ids=ids, mm_token_type_ids=(ids == image).int(),
                            image_grid_thw=torch.tensor([[1, h, w]]),
                            pixel_values=torch.randn(h * w, 1176).to(torch.bfloat16))

    def prompt(self, _):
        self.model(**self.image, use_cache=True, logits_to_keep=1)

    def answers(self, n):
        out = self.model(input_ids=self.text, use_cache=True, logits_to_keep=1)
        self.cache, self.position = out.past_key_values, PROMPT
        if n > 1:
            self.cache.batch_repeat_interleave(n)
        self.token = out.logits[:, -1].argmax(-1, keepdim=True).repeat(n, 1)

    def steps(self, k):
        for _ in range(k):
            at = self.torch.full((3, len(self.token), 1), self.position)
            out = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True,
                             position_ids=at)
            self.token = out.logits[:, -1].argmax(-1, keepdim=True)
            self.position += 1


GGUF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
              "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight", "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight", "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
}
GGUF_WHOLE = {"model.embed_tokens.weight": "token_embd.weight",
              "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def gguf_name(name):
    name = name.replace("model.language_model.", "model.")
    if name.startswith("model.layers."):
        _, _, index, rest = name.split(".", 3)
        return f"blk.{index}.{GGUF_LAYER[rest]}"
    return GGUF_WHOLE.get(name)


def write_gguf(folder, path, dtype):
    """The folder's language model; every matrix in bf16 or Q8_0, vectors in f32. The tokenizer is a
    list of made-up words."""
    import gguf
    import torch
    from safetensors import safe_open
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    text = dict(config, **config.get("text_config", {}))
    rope = text.get("rope_scaling") or text["rope_parameters"]
    kind = dict(bf16=gguf.GGMLQuantizationType.BF16, int8=gguf.GGMLQuantizationType.Q8_0)[dtype]
    out = gguf.GGUFWriter(path, "qwen2vl")
    out.add_block_count(text["num_hidden_layers"])
    out.add_context_length(text.get("max_position_embeddings", 32768))
    out.add_embedding_length(text["hidden_size"])
    out.add_feed_forward_length(text["intermediate_size"])
    out.add_head_count(text["num_attention_heads"])
    out.add_head_count_kv(text["num_key_value_heads"])
    out.add_layer_norm_rms_eps(text["rms_norm_eps"])
    out.add_rope_freq_base(text.get("rope_theta") or rope["rope_theta"])
    out.add_rope_dimension_sections(list(rope["mrope_section"]) + [0])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if dtype == "bf16"
                      else gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([f"t{i}" for i in range(text["vocab_size"])])
    out.add_token_types([gguf.TokenType.NORMAL] * text["vocab_size"])
    out.add_token_merges(["t 0"])
    for shard in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with safe_open(shard, "pt") as f:
            for name in f.keys():
                to = gguf_name(name)
                if not to or to == "output.weight" and text.get("tie_word_embeddings"):
                    continue
                t = f.get_tensor(name).float()
                if t.ndim == 1:
                    out.add_tensor(to, t.numpy())
                else:
                    data = gguf.quants.quantize(t.numpy(), kind)
                    out.add_tensor(to, data, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_q4(args):
    """A Q4_K_M file, which llama.cpp makes of the bf16 one."""
    import llama_cpp as lc
    bf16 = f"{args.model.rstrip('/')}.bf16.gguf"
    if not os.path.exists(bf16):
        write_gguf(args.model, bf16 + ".part", "bf16")
        os.rename(bf16 + ".part", bf16)
    params = lc.llama_model_quantize_default_params()
    params.ftype = lc.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread = args.threads
    if lc.llama_model_quantize(bf16.encode(), (args.gguf + ".part").encode(), params) != 0:
        raise SystemExit(f"llama.cpp does not quantize {bf16}")


class Llama:
    def __init__(self, args):
        import llama_cpp as lc
        self.lc = lc
        lc.llama_backend_init()
        self.quiet = lc.llama_log_callback(lambda level, text, user: None)
        lc.llama_log_set(self.quiet, ctypes.c_void_p())
        params = lc.llama_model_default_params()
        params.use_mmap = True
        params.use_extra_bufts = args.repack
        self.weights = lc.llama_model_load_from_file(args.gguf.encode(), params)
        if not self.weights:
            raise SystemExit(f"llama.cpp does not load {args.gguf}")
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 4096, 4096, 512, 8
        params.n_threads = params.n_threads_batch = args.threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = True
        self.ctx = lc.llama_init_from_model(self.weights, params)
        self.batch = lc.llama_batch_init(4096, 0, 8)
        self.pick = random.Random(1)
        self.words = 30000

    def run(self, tokens):
        """tokens: (position, sequence, logits wanted)"""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (position, sequence, wanted) in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = self.pick.randrange(
                self.words), position, 1, sequence, wanted
        if self.lc.llama_decode(self.ctx, b) != 0:
            raise SystemExit("llama_decode failed")
        self.lc.llama_synchronize(self.ctx)

    def answers(self, n):
        self.lc.llama_memory_clear(self.lc.llama_get_memory(self.ctx), True)
        self.run([(i, 0, i == PROMPT - 1) for i in range(PROMPT)])
        for s in range(1, n):
            self.lc.llama_memory_seq_cp(self.lc.llama_get_memory(self.ctx), 0, s, -1, -1)
        self.count, self.position = n, PROMPT

    def steps(self, k):
        for _ in range(k):
            self.run([(self.position, s, True) for s in range(self.count)])
            self.position += 1


def serve(args):
    peer = dict(transformers=Transformers, llama=Llama)[args.serve](args)
    print(json.dumps(dict(ready=True)), flush=True)
    for line in sys.stdin:
        verb, _, word = line.strip().partition(" ")
        if verb == "quit":
            return
        if verb == "peak":
            print(json.dumps(dict(bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)),
                  flush=True)
            continue
        wall, processor = time.perf_counter(), time.process_time()
        getattr(peer, verb)(word if verb == "prompt" else int(word))
        print(json.dumps(dict(seconds=time.perf_counter() - wall,
                              processor=time.process_time() - processor)), flush=True)


# ---- the pairs ----
class Program:
    def __init__(self, command):
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.command)} ended")
        return json.loads(line)

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def quit(self):
        self.process.communicate("quit\n")


def compare(name, pairs, unit, tokens=None):
    """pairs: (ours, the peer's) replies of the same work; tokens: of each, where the figure is a
    rate"""
    ratio = [b["seconds"] / a["seconds"] for a, b in pairs]
    processor = statistics.median(b["processor"] / a["processor"] for a, b in pairs)
    ours, peer = (statistics.median(p[i]["seconds"] for p in pairs) for i in (0, 1))
    if tokens:
        ours, peer = tokens / ours, tokens / peer
    print(json.dumps(dict(name=name, value=round(ours, 3), peer=round(peer, 3), unit=unit,
                          faster=round(statistics.median(ratio), 2),
                          least=round(min(ratio), 2), greatest=round(max(ratio), 2),
                          processor=round(processor, 2))), flush=True)


def segzero(args):
    return [args.segzero, os.path.join(HERE, "bench_serve.lua"), "model=" + args.model,
            "dtype=" + args.dtype, f"threads={args.threads}"]


def run_pair(args, name, ours, peer):
    print(json.dumps(dict(peer=name)), flush=True)
    prompts = []
    for n in map(int, args.answers.split(",")):
        prompts.append((ours.ask(f"answers {n}"), peer.ask(f"answers {n}")))
        ours.ask("steps 1"), peer.ask("steps 1")
        pairs = [(ours.ask(f"steps {args.steps}"), peer.ask(f"steps {args.steps}"))
                 for _ in range(args.rounds)]
        compare(f"decode_{n}", pairs, "tokens/s", n * args.steps)
    compare("text_seconds", prompts[-1:], "s")            # the first one also reads the file
    if name != "llama" and args.images > 0:
        compare("prompt_seconds",
                [(ours.ask("prompt image"), peer.ask("prompt image"))
                 for _ in range(args.images)], "s")
    a, b = ours.ask("peak")["bytes"], peer.ask("peak")["bytes"]
    print(json.dumps(dict(name="peak_bytes", value=a, peer=b, unit="bytes",
                          smaller=round(b / a, 2))), flush=True)


def around(ours, limit, command):
    """(reply, mean rate of the limit before and after)"""
    before = ours.ask(limit)["rate"]
    reply = ours.ask(command)
    return reply, (before + ours.ask(limit)["rate"]) / 2


def run_limits(args, ours):
    print(json.dumps(dict(peer="limits")), flush=True)

    def show(name, ratios):
        print(json.dumps(dict(name=name, of_limit=round(statistics.median(ratios), 3),
                              least=round(min(ratios), 3),
                              greatest=round(max(ratios), 3))), flush=True)

    for n in map(int, args.answers.split(",")):
        first, rate = around(ours, "matmul", f"answers {n}")
        ours.ask("steps 1")
        ratios = []
        for _ in range(args.rounds):
            reply, read = around(ours, "read", f"steps {args.steps}")
            ratios.append(first["bytes"] * args.steps / reply["seconds"] / read)
        show(f"decode_{n}", ratios)
    show("text_seconds", [first["operations"] / first["seconds"] / rate])
    show("prompt_seconds", [r["operations"] / r["seconds"] / m for r,
                            m in [around(ours, "matmul", "prompt image")]])


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model")
    args.add_argument("--peers", default="limits,transformers,llama")
    args.add_argument("--dtype", choices=["bf16", "int8", "int4"], default="bf16")
    args.add_argument("--rounds", type=int, default=8)
    args.add_argument("--steps", type=int, default=4)
    args.add_argument("--answers", default="1,8")
    args.add_argument("--images", type=int, default=1)
    args.add_argument("--gguf")
    args.add_argument("--threads", type=int, default=WORK["threads"])
    args.add_argument("--segzero", default=os.path.join(HERE, "..", "..", "segzero"))
    args.add_argument("--no-repack", dest="repack", action="store_false",
                      help="llama.cpp without its repacked weights, AMX among them")
    args.add_argument("--serve", help=argparse.SUPPRESS)
    args = args.parse_args()
    args.gguf = args.gguf or f"{args.model.rstrip('/')}.{args.dtype}.gguf"
    if args.serve:
        return serve(args)
    for name in args.peers.split(","):
        lacks = [m for m in NEEDS[name] if importlib.util.find_spec(m) is None]
        if lacks:
            print(f"skip: {name} ({sys.executable} has no {', '.join(lacks)})", flush=True)
            continue
        if name == "llama" and not os.path.exists(args.gguf):
            if args.dtype == "int4":
                write_q4(args)
            else:
                write_gguf(args.model, args.gguf + ".part", args.dtype)
            os.rename(args.gguf + ".part", args.gguf)
        if name == "limits":
            ours = Program(segzero(args))
            run_limits(args, ours)
            ours.quit()
            continue
        peer = Program([sys.executable, os.path.abspath(__file__), args.model, "--serve", name,
                        "--gguf", args.gguf, "--threads", str(args.threads)]
                       + ([] if args.repack else ["--no-repack"]))
        ours = Program(segzero(args))
        run_pair(args, name, ours, peer)
        ours.quit(), peer.quit()


if __name__ == "__main__":
    main()
