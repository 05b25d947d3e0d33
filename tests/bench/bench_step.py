"""The peer's side of tests/bench/bench_step.lua: the same GRPO step by PyTorch and transformers,
written straightforwardly.

Usage: python bench_step.py DIR [--check] [--trl] [--dtype f32|bf16] [--threads N] [--micro-batch N]
                                [--prompts-timed N] [--answers-timed N] [--device cpu|cuda]

DIR is what `./segzero tests/bench/bench_step.lua save=DIR ...` wrote: both models, images,
prompts, the answers it sampled, advantages, gradients. One JSON object a line: {name, value, unit},
with `ours` and `faster` (bytes: `times`) where DIR/step.json has our figure in this dtype and with
as many threads, and `timed` where only part of the work was run and the seconds are multiplied.
  sampling_seconds    model.generate of all prompts in one batch, num_return_sequences=n, exactly as
                      many tokens as ours; --prompts-timed: that many of the prompts. A smaller
                      batch decodes less efficiently, so the scaled time is an upper bound
  old_seconds, reference_seconds
                      log-probabilities of the answers by full forward passes over prompt + answer;
                      each sample has its own copy of prompt and image, logits only of the answer
  update_seconds      forward and backward of the loss, micro-batches of --micro-batch samples
                      --answers-timed: that many of the samples in these three; all are equal work.
                      On a device each is run once before, to warm up
  optimizer_seconds   clip_grad_norm_ and torch.optim.AdamW with its defaults (with bf16 its moments
                      are bf16, ours f32 with f32 masters)
  step_seconds        the sum
  peak_bytes          the process' largest resident set; on a device torch's own count there,
                      device_memory in GiB
Where DIR/model has no weights (save_weights=false) both models get random ones, made on the device.
The log-probabilities are those of our answers, so that --check can compare; the ones generate()
made are thrown away. --check: no timing; loss, log-probabilities and the gradient of every
parameter against ours, in f32; fails above the tolerances below. --trl: one step of TRL's
GRPOTrainer on the same model and sizes (random words and image, a reward that is a pattern);
--prompts-timed scales everything but the optimizer. TRL takes the old log-probabilities from the
update's own forward when there is one update a rollout. Needs torch, transformers; --trl also trl
(tried with 1.16), pillow. Left out: prompts of different lengths, padding. """
import argparse
import json
import os
import resource
import sys
import time

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

# Both sides sum in f32 in other orders. test_grpo measured 5e-6 of a gradient's norm for that on
# small models; ten times that many layers and pairs leave room for 1e-4, while a wrong advantage,
# mask or position changes the gradient by percents.
CHECK_TOLERANCE = 1e-4
# A mean over tokens is as exact as a log-probability of one, 1e-5 at the worst.
LOSS_TOLERANCE = 1e-5


class Case:
    """The saved step. samples: (ids of prompt and answer, image number, answer) in order."""

    def __init__(self, folder, device):
        self.device = device
        with open(os.path.join(folder, "step.json")) as f:
            self.json = json.load(f)
        # seconds by phase, bytes: where the two runs compare
        self.ours, self.peak = {}, None
        self.folder, self.pixels = folder, load_file(os.path.join(folder, "pixels.safetensors"))
        settings = self.json["settings"]
        self.actor, self.temperature = settings["worker"]["actor"], settings["worker"]["rollout"][
            "temperature"]
        self.groups = self.json["groups"]
        self.n = len(self.groups[0]["answers"])
        self.samples = [(g, i, a) for i, g in enumerate(self.groups) for a in g["answers"]]
        self.prompt = len(self.groups[0]["input_ids"])
        self.answer = len(self.samples[0][2]["ids"])
        self.tokens = sum(len(a["ids"]) for _, _, a in self.samples)
        if any(len(g["input_ids"]) != self.prompt
               for g in self.groups) or self.tokens != self.answer * len(self.samples):
            sys.exit("prompts and answers must have one length each: nothing is padded here")

    def load(self, which, dtype):
        folder = os.path.join(self.folder, which)
        if any(name.endswith(".safetensors") for name in os.listdir(folder)):
            return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype,
                                                               attn_implementation="sdpa").to(
                                                                   self.device)
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device(self.device):
            return AutoModelForImageTextToText.from_config(config, dtype=dtype,
                                                           attn_implementation="sdpa")

    def inputs(self, model, parts, with_answers):
        """Model inputs of samples, each with its own copy of the prompt and image."""
        ids = torch.tensor([g["input_ids"] + (a["ids"] if with_answers else []) for g, _,
                            a in parts])
        made = dict(input_ids=ids, attention_mask=torch.ones_like(ids),
                    mm_token_type_ids=(ids == model.config.image_token_id).int(),
                    pixel_values=torch.cat([self.pixels[f"pixels.{i}"] for _, i, _ in parts]).to(
                        model.dtype),
                    image_grid_thw=torch.tensor([g["grid"][0] for g, _, _ in parts]))
        return {name: t.to(self.device) for name, t in made.items()}

    def log_probs(self, model, parts):
        """Log-probabilities of the answers [b, t] and entropies of the distributions they were
        drawn from."""
        out = model(**self.inputs(model, parts, True), use_cache=False,
                    logits_to_keep=self.answer + 1)
        log_p = torch.log_softmax(out.logits[:, :-1].float() / self.temperature, -1)
        answers = torch.tensor([a["ids"] for _, _, a in parts], device=self.device)
        return log_p.gather(2, answers[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)

    def loss(self, lp, entropy, old, reference, parts):
        """These samples' part of the loss: mean over all tokens of the step (loss_avg_mode token),
        k3 as Seg-Zero clamps it."""
        advantage = torch.tensor([[a["advantage"]] for _, _, a in parts], device=self.device)
        ratio, clip = torch.exp(lp - old), self.actor["clip_ratio"]
        policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
        d = reference - lp
        kl = (d.exp() - d - 1).clamp(-10, 10)
        return (policy



























































                + self.actor["kl_loss_coef"] * kl - self.actor["entropy_coeff"] * entropy).sum() / self.tokens

    def batches(self, size, count=None):
        parts = self.samples[:count]
        return [parts[i:i + size] for i in range(0, len(parts), size)]


def show(case, name, value, unit, ours=None, timed=None):
    row = dict(name=name, value=round(value, 4), unit=unit)
    if ours:
        row["ours"] = round(ours, 4)
        row["faster" if unit == "s" else "times"] = round(value / ours, 2)
    if timed:
        row["timed"] = timed
    print(json.dumps(row), flush=True)


def wait():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Watch:
    def __enter__(self):
        wait()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        wait()
        self.seconds = time.perf_counter() - self.start


def scaled(seconds, part, whole, what):
    return seconds * whole / part, None if part == whole else f"{part} of {whole} {what}"


# ---- the step ----
def step(case, args, dtype):
    policy, reference = case.load("model", dtype), case.load("reference",
                                                             dtype).requires_grad_(False)
    policy.eval()                                        # no dropout in it; as generate wants
    ours, total = case.ours, 0.0
    prompts, samples = args.prompts_timed or len(case.groups), args.answers_timed or len(
        case.samples)

    firsts = [case.samples[i * case.n] for i in range(prompts)]
    policy.generation_config.eos_token_id = None
    policy.generation_config.pad_token_id = 0

    def sample(firsts, length):
        return policy.generate(**case.inputs(policy, firsts, False), do_sample=True,
                               temperature=case.temperature, top_k=0, top_p=1.0,
                               num_return_sequences=case.n, min_new_tokens=length,
                               max_new_tokens=length)
    with torch.no_grad():
        if case.device == "cuda":
            sample(firsts[:1], min(4, case.answer))
        with Watch() as w:
            out = sample(firsts, case.answer)
    if out.shape != (prompts * case.n, case.prompt + case.answer):
        sys.exit(f"generate returned {tuple(out.shape)}")
    seconds, timed = scaled(w.seconds, prompts, len(case.groups), "prompts")
    total += seconds
    show(case, "sampling_seconds", seconds, "s", ours.get("sampling"), timed)

    parts, passes = case.batches(args.micro_batch, samples), {}
    for name, model in (("old", policy), ("reference", reference)):
        with torch.no_grad():
            if case.device == "cuda":
                case.log_probs(model, parts[0])
        with Watch() as w, torch.no_grad():
            passes[name] = [case.log_probs(model, part)[0] for part in parts]
        seconds, timed = scaled(w.seconds, samples, len(case.samples), "samples")
        total += seconds
        show(case, name + "_seconds", seconds, "s", ours.get("reference") if name == "reference"
             else None, timed)

    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6,
                                  weight_decay=case.actor["optim"]["weight_decay"])

    def learn(i):
        lp, entropy = case.log_probs(policy, parts[i])
        case.loss(lp, entropy, passes["old"][i], passes["reference"][i], parts[i]).backward()
    if case.device == "cuda":
        learn(0)
        optimizer.zero_grad()
    with Watch() as w:
        for i in range(len(parts)):
            learn(i)
    seconds, timed = scaled(w.seconds, samples, len(case.samples), "samples")
    total += seconds
    show(case, "update_seconds", seconds, "s", ours.get("update"), timed)

    with Watch() as w:
        torch.nn.utils.clip_grad_norm_(policy.parameters(), case.actor["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
    total += w.seconds
    show(case, "optimizer_seconds", w.seconds, "s", ours.get("optimizer"))
    part = "parts of it scaled" if prompts < len(case.groups) or samples < len(
        case.samples) else None
    show(case, "step_seconds", total, "s", ours.get("step"), part)
    if case.device == "cuda":
        show(case, "device_memory", torch.cuda.max_memory_allocated() / 2 ** 30, "GiB",
             case.peak and case.peak / 2 ** 30)
    else:
        show(case, "peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "bytes",
             case.peak)


# ---- the same gradient ----
def check(case, args):
    policy, reference = case.load("model", torch.float32), case.load("reference",
                                                                     torch.float32).requires_grad_(
                                                                         False)
    gradients = load_file(os.path.join(case.folder, "gradients.safetensors"))
    total, worst_lp = 0.0, 0.0
    for part in case.batches(args.micro_batch):
        lp, entropy = case.log_probs(policy, part)
        with torch.no_grad():
            ref = case.log_probs(reference, part)[0]
        old = torch.tensor([a["logprobs"] for _, _, a in part], device=case.device)
        loss = case.loss(lp, entropy, old, ref, part)
        loss.backward()
        total += loss.item()
        worst_lp = max(worst_lp, (lp - old).abs().max().item())
    difference, norm, worst, seen = 0.0, 0.0, (0.0, ""), set()
    squares = {}
    for name, p in policy.named_parameters():
        ours = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        if ours not in gradients:
            sys.exit(f"check: no gradient of ours for {name}")
        seen.add(ours)
        g, mine = p.grad.double(), gradients[ours].double().to(p.device)
        d = ((mine.reshape(g.shape) - g) ** 2).sum().item()
        squares[ours] = (d, (g ** 2).sum().item())
        difference, norm = difference + d, norm + squares[ours][1]
    if set(gradients) - seen:
        sys.exit(f"check: gradients that transformers has not: {sorted(set(gradients) - seen)}")
    for name, (d, s) in squares.items():
        # A parameter whose gradient is rounding alone (a key's bias) says nothing by itself: it
        # counts in the whole.
        if s > 1e-8 * norm:
            worst = max(worst, ((d / s) ** 0.5, name))
    relative, our_loss = (difference / norm) ** 0.5, case.json["stats"]["loss"]
    print(json.dumps(dict(name="check_loss", ours=our_loss, value=total,
                          difference=abs(our_loss - total))))
    print(json.dumps(dict(name="check_logprobs", largest_difference=worst_lp, tokens=case.tokens)))
    print(json.dumps(dict(name="check_gradient", parameters=len(seen), relative_difference=relative,
                          norm=norm ** 0.5,
                          worst_parameter=worst[1], worst=worst[0], tolerance=CHECK_TOLERANCE)))
    if not (relative <= CHECK_TOLERANCE and abs(our_loss - total) <= LOSS_TOLERANCE):
        sys.exit("check: loss or gradient differ")


# ---- TRL ----
def word_processor(config, side):
    """A processor of words w0, w1, ... and Qwen's markers, for a model that has no tokenizer."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    vocab = {f"w{i}": i for i in range(config.text_config.vocab_size)}
    eos = config.text_config.vocab_size - 1
    special = {"<|image_pad|>": config.image_token_id, "<|video_pad|>": config.video_token_id,
               "<|vision_start|>": config.vision_start_token_id,
               "<|vision_end|>": config.vision_end_token_id, "<|im_end|>": eos}
    for name, i in special.items():
        del vocab[f"w{i}"]
        vocab[name] = i
    words = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0",
                                                     eos_token="<|im_end|>", pad_token="<|im_end|>",
                                                     padding_side="left",
                                                     extra_special_tokens={
                                                         "image_token": "<|image_pad|>",
                                                     "video_token": "<|video_pad|>",
                                                                           "vision_bos_token": "<|vision_start|>",
                                                     "vision_eos_token": "<|vision_end|>"})
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in "
        "m.content %}"
                "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} "
                "{{ c.text }}{% endif %}"
                "{% endfor %}{% endif %}{% endfor %}")
    vision, pixels = config.vision_config, side * side
    images = transformers.Qwen2VLImageProcessor(patch_size=vision.patch_size,
                                                  merge_size=vision.spatial_merge_size,
                                                  temporal_patch_size=vision.temporal_patch_size,
                                                  min_pixels=pixels, max_pixels=pixels)
    videos = transformers.Qwen2VLVideoProcessor()
    return transformers.Qwen2_5_VLProcessor(image_processor=images, tokenizer=tokenizer,
                                            video_processor=videos, chat_template=template)


def trl(case, args, dtype):
    import numpy
    from datasets import Dataset
    from PIL import Image
    from trl import GRPOConfig, GRPOTrainer
    folder = os.path.join(case.folder, "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    grid = case.groups[0]["grid"][0]
    side = grid[1] * config.vision_config.patch_size
    unit = config.vision_config.spatial_merge_size ** 2
    text = case.prompt - grid[1] * grid[2] // unit - 2
    prompts = args.prompts_timed or len(case.groups)
    random = numpy.random.default_rng(1)
    rows = [
        dict(prompt=[dict(role="user",
                          content=" ".join(f"w{i}"
                                           for i in random.integers(0, config.image_token_id,
                                                                    text)))],
                 image=Image.fromarray(random.integers(0, 256, (side, side, 3),
                                                       dtype=numpy.uint8))) for _ in range(prompts)]
    passes = prompts * case.n // args.micro_batch
    if passes * args.micro_batch != prompts * case.n:
        sys.exit("--micro-batch must divide the samples")
    # No micro-batch recomputes: neither do the other two runs. beta, clip and loss are the
    # recipe's.
    settings = GRPOConfig(output_dir=os.path.join(case.folder, "trl"), use_cpu=True, bf16=False,
                          fp16=False, report_to=[], save_strategy="no",
                          per_device_train_batch_size=args.micro_batch,
                          gradient_accumulation_steps=passes, steps_per_generation=passes,
                          num_generations=case.n, max_completion_length=case.answer, max_steps=1,
                          beta=case.actor["kl_loss_coef"],
                          epsilon=case.actor["clip_ratio"], loss_type="dapo", learning_rate=1e-6,
                          max_grad_norm=1.0,
                          gradient_checkpointing=False, temperature=case.temperature, top_k=0,
                          top_p=1.0, shuffle_dataset=False, disable_tqdm=True,
                          generation_kwargs=dict(min_new_tokens=case.answer,
                                                 suppress_tokens=[config.image_token_id,
                                                                  config.video_token_id,
                                                                  config.vision_start_token_id,
                                                                  config.vision_end_token_id]),
                          model_init_kwargs=dict(dtype=dtype, attn_implementation="sdpa"))
    spent, lengths = {}, []

    def watch(owner, name, phase):
        f = getattr(owner, name)

        def timed(*a, **k):
            with Watch() as w:
                out = f(*a, **k)
            spent[phase] = spent.get(phase, 0.0) + w.seconds
            return out
        setattr(owner, name, timed)

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_pre_optimizer_step(self, *_, **__):
            self.before = time.perf_counter()

        def on_optimizer_step(self, *_, **__):
            spent["optimizer"] = time.perf_counter() - self.before

        def on_step_end(self, *_, **__):
            spent["step"] = time.perf_counter() - self.start

    def reward(completions, completion_ids, **_):
        lengths.extend(len(ids) for ids in completion_ids)
        return [float(i * 5 % 7) for i in range(len(completions))]

    trainer = GRPOTrainer(model=folder, reward_funcs=reward, args=settings,
                          train_dataset=Dataset.from_list(rows),
                          processing_class=word_processor(config, side), callbacks=[Clock()])
    sizes = []
    watch(trainer, "_generate_single_turn", "sampling")
    watch(trainer, "_generate_and_score_completions", "scoring")
    watch(trainer, "training_step", "training")
    forward = trainer._get_per_token_logps_and_entropies

    def log_probs(model, ids, *a, **k):
        sizes.append(tuple(ids.shape))
        with Watch() as w:
            out = forward(model, ids, *a, **k)
        if not torch.is_grad_enabled():
            spent["reference"] = spent.get("reference", 0.0) + w.seconds
        return out
    trainer._get_per_token_logps_and_entropies = log_probs
    trainer.train()
    if set(lengths) != {case.answer} or any(s[1] != case.prompt + case.answer for s in sizes):
        sys.exit(
            f"trl: other work: answers of {sorted(set(lengths))} tokens, sequences "
            f"{sorted(set(sizes))}, expected {case.prompt} + {case.answer}")
    ours, whole = case.ours, len(case.groups)
    spent["update"] = spent["training"] - spent["scoring"]
    for name in ("sampling", "reference", "update"):
        seconds, timed = scaled(spent.get(name, 0.0), prompts, whole, "prompts")
        show(case, f"trl_{name}_seconds", seconds, "s", ours.get(name), timed)
    show(case, "trl_optimizer_seconds", spent["optimizer"], "s", ours.get("optimizer"))
    seconds, timed = scaled(spent["step"] - spent["optimizer"], prompts, whole, "prompts")
    show(case, "trl_step_seconds", seconds + spent["optimizer"], "s", ours.get("step"), timed)
    show(case, "trl_peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "bytes",
         case.peak)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("folder")
    args.add_argument("--check", action="store_true")
    args.add_argument("--trl", action="store_true")
    args.add_argument("--dtype", choices=["f32", "bf16"], help="default: what ours was run in")
    args.add_argument("--threads", type=int)
    args.add_argument("--micro-batch", type=int, default=2)
    args.add_argument("--prompts-timed", type=int)
    args.add_argument("--answers-timed", type=int)
    args.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="not with --trl")
    args = args.parse_args()
    case = Case(args.folder, args.device)
    name, threads = args.dtype or case.json["dtype"], args.threads or case.json["threads"]
    if (name, threads, args.device) == (case.json["dtype"], case.json["threads"],
                                        case.json.get("device", "cpu")):
        case.ours, case.peak = case.json["seconds"], case.json["peak"]
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[name]
    if args.check:
        check(case, args)
    elif args.trl:
        trl(case, args, dtype)
    else:
        step(case, args, dtype)


if __name__ == "__main__":
    main()
