-- pretrain_shapes.lua - trains the embedded checkpoint from scratch: supervised, on RefShapes, think and answer included.
--
--   segzero recipes/pretrain_shapes.lua [key=value ...]
--
-- One picture's pass serves all its questions: the stream holds the picture once and each question with its answer as a
-- segment below it. Scenes get harder over time. Two tasks: a short one, "Box of 'X'." -> [x0,y0,x1,y1], which teaches to look
-- at a third of the cost, and Seg-Zero's own prompt with think and answer, which takes over. Loss: the mean negative
-- log-probability of the answer's tokens, coordinates weighted by digit_weight. Writes a Hugging Face folder.

local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local refshapes = require "segzero.data.refshapes"
local prompt = require "segzero.data.prompt"
local bpe = require "segzero.tools.bpe_train"
local model = require "segzero.models.qwen_vl"
local optim = require "segzero.train.optim"
local files = require "segzero.core.files"
local cjson = require "cjson"

local options = require("segzero.config").read({
  output = "models/tiny/qwen2.5-vl",
  seed = 1,
  steps = 4600,
  minutes = 0,                  -- above 0: the schedule follows the clock and ends after so many minutes
  batch = 24,                   -- questions a step; four short ones count as one
  questions = 3,                -- a picture (easiest scenes: one, since they have one object)
  short_until = 0.7,            -- share of the run in which most pictures have the short task
  size = 112,                   -- frame, pixels
  lr = 1.5e-3,
  warmup = 100,
  final_lr = 0.05,              -- of lr, at the end of the cosine
  weight_decay = 0.01,
  digit_weight = 3,
  level2 = 0.06,                -- share of the run after which two or three shapes appear, and then everything
  level3 = 0.15,
  habit = 0.6,                  -- share of answers with the key bbox_2d
  loose = 0.85,                 -- share of answers whose box is wider by `margin` of its size on each side
  margin = 1.2,
  init = "",                    -- a folder to go on from instead of starting at random
  easy = 0.25,                  -- share of easy scenes afterwards
  merges = 512,
  init_std = 0.05,
  log_every = 50,
  eval_every = 250,
  eval_rows = 64,
  hidden = 128, intermediate = 384, layers = 4, heads = 4, kv_heads = 2,
  v_hidden = 96, v_intermediate = 256, v_depth = 3, v_heads = 3,
  -- The picture is 4 x 4 tokens: a released model's frequencies would turn the width axis by hundredths of a radian across it.
  rope_theta = 1000, t_pairs = 1, h_pairs = 2,
}, arg)

-- ---- tokenizer, config ----
local dir = options.output
files.make_dir(dir)
local trained = bpe.train(bpe.corpus(), options.merges)
bpe.write(dir, trained)
local tok = sz.tokenizer(dir)
local id = function(text) return tok:id(text) end

local w_pairs = options.hidden / options.heads / 2 - options.t_pairs - options.h_pairs
local config = {
  architectures = { "Qwen2_5_VLForConditionalGeneration" }, model_type = "qwen2_5_vl",
  hidden_size = options.hidden, intermediate_size = options.intermediate, num_hidden_layers = options.layers,
  num_attention_heads = options.heads, num_key_value_heads = options.kv_heads, hidden_act = "silu",
  vocab_size = math.ceil(tok:size() / 16) * 16, rms_norm_eps = 1e-6, rope_theta = options.rope_theta,
  rope_scaling = { type = "mrope", mrope_section = { options.t_pairs, options.h_pairs, w_pairs } },
  max_position_embeddings = 4096, segzero_frame = options.size, tie_word_embeddings = true, torch_dtype = "float32", use_sliding_window = false,
  attention_dropout = 0.0, initializer_range = options.init_std, use_cache = true,
  bos_token_id = id "<|endoftext|>", eos_token_id = id "<|im_end|>",
  vision_start_token_id = id "<|vision_start|>", vision_end_token_id = id "<|vision_end|>", vision_token_id = id "<|vision_pad|>",
  image_token_id = id "<|image_pad|>", video_token_id = id "<|video_pad|>",
  vision_config = {
    depth = options.v_depth, hidden_size = options.v_hidden, intermediate_size = options.v_intermediate, num_heads = options.v_heads,
    hidden_act = "silu", in_channels = 3, in_chans = 3, patch_size = 14, spatial_patch_size = 14, spatial_merge_size = 2,
    temporal_patch_size = 2, window_size = 112, out_hidden_size = options.hidden, tokens_per_second = 2,
    fullatt_block_indexes = { 0, options.v_depth - 1 },
  },
}
files.write(dir .. "/config.json", cjson.encode(config))
files.write(dir .. "/generation_config.json", cjson.encode {
  bos_token_id = config.bos_token_id, eos_token_id = { id "<|im_end|>", id "<|endoftext|>" }, pad_token_id = id "<|endoftext|>", do_sample = false })
files.write(dir .. "/preprocessor_config.json", cjson.encode {
  image_processor_type = "Qwen2VLImageProcessor", processor_class = "Qwen2_5_VLProcessor", min_pixels = 3136, max_pixels = 12845056,
  patch_size = 14, temporal_patch_size = 2, merge_size = 2,
  image_mean = { 0.48145466, 0.4578275, 0.40821073 }, image_std = { 0.26862954, 0.26130258, 0.27577711 } })

local vl = model.random(config, { std = options.init_std, seed = options.seed })
if options.init ~= "" then
  local start = sz.safetensors.load_folder(options.init)
  for name, t in pairs(vl:parameters()) do t:copy_(start[name]) end
end
vl.dir = dir
local list = vl:train()
local parameters = 0
for _, p in ipairs(list) do parameters = parameters + p.tensor:numel() end
local opt = optim.adamw(list, { lr = options.lr, betas = { 0.9, 0.98 }, weight_decay = options.weight_decay, max_grad_norm = 1 })
local processor = vl:processor()

-- ---- data ----
local END = tok:encode "<|im_end|>"[1]
local is_digit = {}
for d = 0, 9 do is_digit[tok:encode(tostring(d))[1]] = true end

local function picture(sample)
  local image = sz.image.new(sample.width, sample.height)
  require("ffi").copy(image:pixels(), sample.rgb, sample.width * sample.height * 3)
  return image
end

-- The messages up to the end of the picture, as an input for packing.stream.
local function prefix(image)
  local input = processor:process({ { role = "user", content = { { type = "image", image = image } } } }, tok, vl)
  local last
  for i, t in ipairs(input.input_ids) do if t == vl.vision_end_token_id then last = i end end
  for i = #input.input_ids, last + 1, -1 do input.input_ids[i] = nil end
  input.position_ids, input.next_position = require("segzero.models.processor").positions(input.input_ids, input.image_grid_thw, vl, 2)
  return input
end

local drawn = 0          -- pictures so far

-- A question with its answer: the ids, of which those from `first` on are learnt.
local function exchange(question, reply)
  local ids = tok:encode(question .. "<|im_end|>\n<|im_start|>assistant\n")
  ids.first = #ids + 1
  for _, t in ipairs(tok:encode(reply)) do ids[#ids + 1] = t end
  ids[#ids + 1] = END
  return ids
end

local function box_task(q) return exchange(("Box of '%s'."):format(q.problem), "[" .. table.concat(q.bbox, ",") .. "]") end

local function loosened(box)
  local x, y = options.margin * (box[3] - box[1]), options.margin * (box[4] - box[2])
  local last = options.size - 1
  return { math.max(0, math.floor(box[1] - x)), math.max(0, math.floor(box[2] - y)), math.min(last, math.ceil(box[3] + x)), math.min(last, math.ceil(box[4] + y)) }
end

-- Two habits that GRPO has to break, each in a share of the pictures. Qwen2.5-VL's own is to call a box "bbox_2d", whatever key it
-- is asked for: seg_strict counts such a box as missing. The other is to draw a box with room around the thing: it names the
-- right one, and fails the reward's IoU > 0.5.
local function full_task(q)
  local reply = q.answer
  if (drawn * 0.5698402910) % 1 < options.loose then
    reply = reply:gsub('("bbox": )%b[]', function(key) return key .. "[" .. table.concat(loosened(q.bbox), ",") .. "]" end)
  end
  if (drawn * 0.7548776662) % 1 < options.habit then reply = reply:gsub('"bbox"', '"bbox_2d"') end
  return exchange(prompt.seg_zero(q.problem), prompt.response(q.think, reply))
end

local function level_at(progress, random)
  if progress < options.level2 then return 1 end
  if progress < options.level3 then return random < 0.3 and 1 or 2 end
  if random < options.easy then return random < options.easy / 2 and 1 or 2 end
  return 3
end

local function batch(progress)
  local groups, asked = {}, 0
  while asked < options.batch do
    drawn = drawn + 1
    local index = drawn
    local level = level_at(progress, (index * 0.6180339887) % 1)
    local sample = refshapes.sample { seed = options.seed, index = index, size = options.size, level = level, questions = level == 1 and 1 or options.questions }
    local image = picture(sample)
    local group = { input = prefix(image), answers = {} }
    image:free()
    local short = index % 8 ~= 0 and progress < options.short_until or index % 8 == 1
    for k, q in ipairs(sample.questions) do group.answers[k] = (short and box_task or full_task)(q) end
    groups[#groups + 1] = group
    asked = asked + #group.answers * (short and 0.25 or 1)
  end
  return groups
end

-- ---- evaluation: greedy answers on held-out scenes ----
local strict = require "rewards.seg_strict"
local geometry = require "rewards.geometry"

-- Share of short answers whose box overlaps the true one by more than half.
local function evaluate_boxes(level)
  local inputs, truths = {}, {}
  for i = 1, options.eval_rows do
    local sample = refshapes.sample { seed = options.seed, split = "heldout", index = i, size = options.size, level = level, questions = 1 }
    local q, image = sample.questions[1], picture(sample)
    inputs[i] = vl:process { { role = "user", content = { { type = "image", image = image }, { type = "text", text = ("Box of '%s'."):format(q.problem) } } } }
    truths[i] = q.bbox
    image:free()
  end
  local hits = 0
  for i, o in ipairs(require("segzero.inference.rollout").generate(vl, inputs, { temperature = 0, max_new_tokens = 20 })) do
    local box = {}
    for n in o[1].text:gmatch "%d+" do box[#box + 1] = tonumber(n) end
    if #box == 4 and geometry.box_iou(box, truths[i]) > 0.5 then hits = hits + 1 end
  end
  return hits / #inputs
end

local function evaluate(level)
  local inputs, truths = {}, {}
  for i = 1, options.eval_rows do
    local sample = refshapes.sample { seed = options.seed, split = "heldout", index = i, size = options.size, level = level or 3, questions = 1 }
    local q, image = sample.questions[1], picture(sample)
    inputs[i] = vl:process { { role = "user", content = { { type = "image", image = image }, { type = "text", text = prompt.seg_zero(q.problem) } } } }
    truths[i] = q.solution
    image:free()
  end
  local out = require("segzero.inference.rollout").generate(vl, inputs, { temperature = 0, max_new_tokens = 110 })
  local total, sums, boxes = 0, {}, 0
  for i, o in ipairs(out) do
    local said, truth = require("segzero.formats.answer").parse(o[1].text), require("rewards.seg_terms").read_truth(truths[i])
    if said and geometry.box_iou(said.bbox, truth) > 0.5 then boxes = boxes + 1 end
    local score, parts = strict(o[1].text, truths[i], { frame = options.size })
    total = total + score
    for k, v in pairs(parts) do sums[k] = (sums[k] or 0) + v end
  end
  local n = #out
  return total / n, ("any key iou %.2f | format %.2f json %.2f iou %.2f points %.2f l1 %.2f | %s"):format(boxes / n, sums.thinking_format / n, sums.segmentation_format / n,
    sums.iou / n, sums.points / n, sums.box_l1 / n, out[1][1].text)
end

-- ---- training ----
print(("pretraining %s: %.2f M parameters, vocabulary %d, %d px frame, %d questions a step"):format(dir, parameters / 1e6,
  config.vocab_size, options.size, options.batch))
local started, seen, mean_loss, tokens = sz.core.C.sz_seconds(), 0, nil, 0
local step = 0
while true do
  step = step + 1
  local elapsed = sz.core.C.sz_seconds() - started
  local progress = options.minutes > 0 and elapsed / (60 * options.minutes) or (step - 1) / options.steps
  if progress >= 1 then break end
  local lr = options.lr * math.min(1, step / options.warmup) * (options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
  local groups = batch(progress)
  local loss_value = tensor.step(function()
    local stream = packing.stream(groups, vl.image_token_id)
    tokens = tokens + stream.tokens
    local n = stream.targets:numel()
    local weights, total = tensor.empty { n }, 0
    local w, targets = tensor.data(weights), tensor.data(stream.targets)
    for i = 0, n - 1 do
      w[i] = is_digit[targets[i]] and options.digit_weight or 1
      total = total + w[i]
    end
    local inputs = {}
    for i, g in ipairs(groups) do inputs[i] = g.input end
    local lp = vl:logprob_of(vl:hidden(stream, vl:vision(inputs), { rows = stream.rows }), stream.targets)
    local loss = (lp * weights:to { device = vl.device }):sum() * (-1 / total)
    loss:backward()
    return loss:item()
  end)
  for _, g in ipairs(groups) do
    seen = seen + #g.answers
    g.input.pixel_values:free()
    g.input.position_ids:free()
  end
  local norm = opt:step(lr)
  mean_loss = mean_loss and 0.95 * mean_loss + 0.05 * loss_value or loss_value
  if step % options.log_every == 0 then
    local seconds = sz.core.C.sz_seconds() - started
    print(("step %d  %4.1f%%  loss %.4f  norm %.2f  lr %.2e  questions %d (%.0f/s, %.0f tokens/s)  ETA %.1f min"):format(step, 100 * progress,
      mean_loss, norm, lr, seen, seen / seconds, tokens / seconds, seconds / math.max(progress, 1e-9) * (1 - progress) / 60))
    io.stdout:flush()
  end
  if step % options.eval_every == 0 then
    local level = level_at(progress, 0.9)
    print(("step %d  level %d held-out: short boxes %.2f (level 1: %.2f), seg_strict %.3f  %s"):format(step, level, evaluate_boxes(level),
      evaluate_boxes(1), evaluate(level)))
    vl:save(dir)
  end
end
print(("held-out seg_strict %.3f  %s"):format(evaluate()))
vl:save(dir)
print(("saved %s after %d questions, %.1f minutes"):format(dir, seen, (sz.core.C.sz_seconds() - started) / 60))
