-- miniature.lua - a Qwen2.5-VL of random weights with a tokenizer of its own, small enough that
-- whole training runs are tests.
--
--   local mini = require "tests.support.miniature"
--   local dir = mini.folder()                 a new temporary folder
--   mini.write(dir .. "/model", {std = 0.3, config = {...}})   a model folder; returns its path
--   local cfg = mini.settings{"worker.rollout.n=2"}            the recipe's defaults, made small,
--                                                              then these
--   local t = mini.trainer(cfg, {model = path, folder = nil, reference = true})
--   mini.steps(t, n)                          n checked steps; their reports without times, which
--                                             differ from run to run
--   mini.bytes(tensor)                        what it holds, as a string
--   local text, status = mini.run{"recipes/refcocog_grpo.lua", "key=value"}
--       a ./segzero of its own, one thread
--   mini.remove()                             all folders made
--
-- Images are RefShapes of 84 pixels (9 tokens). Weights are wide enough (std 0.3) that answers
-- differ between prompts. Left out: anything a trained model would say; rewards here count letters.

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local bpe = require "segzero.tools.bpe_train"
local model = require "segzero.models.qwen_vl"
local files = require "segzero.core.files"
local trainer = require "segzero.train.trainer"
local data = require "segzero.data"
local tensor = require "segzero.core.tensor"
local prompt = require "segzero.data.prompt"
local lora = require "segzero.models.lora"
local host = require "segzero.host"

local M = { size = 84 }

-- Nothing here is large enough to share between threads, and on a busy machine they would wait for
-- each other.
sz.core.C.sz_set_threads(1)

local folders = {}

local function quoted(s) return "'" .. s:gsub("'", "'\\''") .. "'" end
M.quoted = quoted

function M.folder()
  local pipe = assert(io.popen "mktemp -d")
  local path = pipe:read "*l"
  pipe:close()
  folders[#folders + 1] = path
  return path
end

function M.remove()
  for _, path in ipairs(folders) do os.execute("rm -rf " .. quoted(path)) end
  folders = {}
end

function M.copy(from, to)
  assert(os.execute("cp -r " .. quoted(from) .. " " .. quoted(to)) == 0)
  return to
end

local trained
local function tokenizer_into(dir)
  trained = trained or bpe.train(bpe.corpus(6), 96)
  bpe.write(dir, trained)
  return sz.tokenizer(dir)
end

-- A config.json's table; changes: keys that differ.
function M.config(tok, changes)
  local json = {
    architectures = { "Qwen2_5_VLForConditionalGeneration" }, model_type = "qwen2_5_vl",
    hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 2,
    num_key_value_heads = 1,
    hidden_act = "silu", vocab_size = math.ceil(tok:size() / 16) * 16, rms_norm_eps = 1e-6,
    rope_theta = 1000,
    rope_scaling = { type = "mrope", mrope_section = { 2, 3, 3 } }, max_position_embeddings = 4096,
    tie_word_embeddings = true,
    torch_dtype = "float32", use_sliding_window = false, use_cache = true, segzero_frame = M.size,
    bos_token_id = tok:id "<|endoftext|>", eos_token_id = tok:id "<|im_end|>",
    vision_start_token_id = tok:id "<|vision_start|>",
    vision_end_token_id = tok:id "<|vision_end|>",
    vision_token_id = tok:id "<|vision_pad|>", image_token_id = tok:id "<|image_pad|>",
    video_token_id = tok:id "<|video_pad|>",
    vision_config = { depth = 2, hidden_size = 32, intermediate_size = 48, num_heads = 2,
      hidden_act = "silu", in_channels = 3, in_chans = 3,
      patch_size = 14, spatial_patch_size = 14, spatial_merge_size = 2, temporal_patch_size = 2,
      window_size = 112, out_hidden_size = 32,
      tokens_per_second = 2, fullatt_block_indexes = { 1 } },
  }
  for k, v in pairs(changes or {}) do json[k] = v end
  return json
end

function M.write(dir, opts)
  opts = opts or {}
  files.make_dir(dir)
  local tok = tokenizer_into(dir)
  local json = M.config(tok, opts.config)
  files.write(dir .. "/config.json", cjson.encode(json))
  files.write(dir .. "/generation_config.json", cjson.encode {
    bos_token_id = json.bos_token_id,
      eos_token_id = { tok:id "<|im_end|>", tok:id "<|endoftext|>" },
      pad_token_id = tok:id "<|endoftext|>" })
  files.write(dir .. "/preprocessor_config.json", cjson.encode {
    image_processor_type = "Qwen2VLImageProcessor", min_pixels = 3136, max_pixels = 12845056,
    patch_size = 14, temporal_patch_size = 2, merge_size = 2,
    image_mean = { 0.48145466, 0.4578275, 0.40821073 },
      image_std = { 0.26862954, 0.26130258, 0.27577711 } })
  tok:free()
  local vl = model.random(json, { std = opts.std or 0.3, seed = opts.seed or 7 })
  vl.dir = dir
  if opts.change then opts.change(vl) end
  vl:save(dir)
  vl:free()
  return dir
end

-- Settings of a small run: 2 prompts x 3 answers of at most 8 tokens.
M.arguments = { "data.train_files=refshapes", "data.val_files=refshapes", "data.refshapes_size=84",
  "data.refshapes_rows=7",
  "data.refshapes_val_rows=3", "data.rollout_batch_size=2", "data.max_response_length=8",
    "worker.actor.global_batch_size=2", "worker.rollout.n=3",
  "worker.actor.optim.lr=1e-2", "worker.actor.max_tokens_per_micro_batch=100000",
    "trainer.val_before_train=false", "trainer.test_freq=0",
  "trainer.save_freq=2" }

function M.settings(args)
  local all = {}
  for _, list in ipairs { M.arguments, args or {} } do
    for _, a in ipairs(list) do all[#all + 1] = a end
  end
  return (require("recipes.refcocog_grpo").schema:read(all))
end

-- A reward that differs between any two answers: random answers earn nothing from a real one, and
-- equal rewards no gradient.
function M.reward(text)
  local sum = 0
  for i = 1, #text do sum = sum + text:byte(i) % 7 end
  return sum % 11, { letters = #text }
end
M.reward_source = [[
return function(text)
  local sum = 0
  for i = 1, #text do sum = sum + text:byte(i) % 7 end
  return sum % 11, { letters = #text }
end
]]

function M.rows(cfg, split)
  return data.open("refshapes",
    { split = split or "train", size = M.size, seed = cfg.data.seed,
    rows = cfg.data.refshapes_rows })
end

-- opts: model (a folder), dtype, reference = true; the rest goes to trainer.new: train, held_out,
-- reward, folder, segmenter, plan, hooks, prefetch, total_steps (4).
function M.trainer(cfg, opts)
  local policy = sz.model(opts.model, { dtype = opts.dtype })
  lora.configure(policy, cfg)
  local of_trainer = { config = cfg, policy = policy, prompt = prompt.seg_zero, total_steps = 4 }
  for name, v in pairs(opts) do of_trainer[name] = v end
  of_trainer.reward = opts.reward or M.reward
  of_trainer.train = opts.train or M.rows(cfg)
  if opts.reference and policy.lora then
    of_trainer.reference = lora.reference(policy)
  elseif opts.reference then
    local offload = cfg.worker.ref.offload.param_offload
    of_trainer.reference = sz.model(opts.model, { dtype = opts.dtype, offload = offload })
  end
  return trainer.new(of_trainer)
end

-- bf16: cached and packed passes sum in another order, and a hidden value may land on the other
-- side of a rounding: 1 part in 256 of it. Over 12 seeds of 4 steps the largest difference is 1e-6
-- where none does and up to 1.3e-2 where some do.
local TOLERANCE = { f32 = 1e-4, bf16 = 2e-2 }

function M.steps(t, n)
  local seen = {}
  for i = 1, n do
    local s = t:step()
    check.ok(s.mismatch < TOLERANCE[t.policy.dtype],
      ("step %d: sampler and trainer differ by %.1e"):format(s.step, s.mismatch))
    check.ok(s.grad_norm > 0 and s.grad_norm < math.huge, "step " .. s.step .. " has a gradient")
    s.seconds = nil
    s.machine = nil
    s.time = nil
    seen[i] = s
  end
  return seen
end

function M.bytes(t)
  return ffi.string(ffi.cast("char *", tensor.data(t)), t:numel() * tensor.WIDTH[t:dtype()])
end

-- A prompt with the image of one RefShapes row.
function M.input(vl, index, text)
  local row = data.open("refshapes",
    { split = "train", size = M.size, seed = 3, rows = 100 }):row(index)
  local inp = vl:process { { role = "user",
    content = { { type = "image", image = row.image },
    { type = "text", text = text or row.problem } } } }
  row.image:free()
  return inp
end

-- Output (both streams) and exit status of ./segzero with these arguments.
function M.run(args)
  local parts = { quoted(host.executable), "--threads 1" }
  for _, a in ipairs(args) do parts[#parts + 1] = quoted(a) end
  local pipe = assert(io.popen("{ " .. table.concat(parts, " ") .. "; } 2>&1; echo \"exit $?\""))
  local output = pipe:read "*a"
  pipe:close()
  local text, status = output:match "^(.*)exit (%d+)\n$"
  return text or output, tonumber(status) or -1
end

-- The same with the small run's arguments before `args`.
function M.recipe(dir, args)
  local all = { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. dir }
  for _, list in ipairs { M.arguments, args } do
    for _, a in ipairs(list) do all[#all + 1] = a end
  end
  return M.run(all)
end

return M
