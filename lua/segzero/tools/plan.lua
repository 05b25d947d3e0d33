-- plan.lua - how much memory a training run will take, said before anything is loaded.
--
--   local p = plan.of(cfg, {prompt = f})     cfg: a recipe's settings. p.peak, p.fits, p.parts, p.phases, p.device (bytes)
--   plan.print(p) / plan.advise(cfg, p)      the table; what else fits, or the smallest change of settings that would
--   plan.longer(cfg, p, input)               the plan for a step with this longer prompt; raises an error when it cannot fit
--   plan.check(cfg)                          raises an error with the numbers when the run cannot fit (a run on the CPU)
--
-- Sizes of what lasts (weights, reference, masters, moments, gradients, key-value cache) follow from config.json. Activations and workspace are
-- not modelled but counted: the trainer's own step runs on a model without memory behind its weights, with kernels left out
-- (sz_dry_run), and the arena says what it would have used. So which tensors the forward keeps is written in one place only, the model
-- code itself. What kernels ask for besides is in runtime/cpu/workspace.c.
-- Every prompt is taken to be as long as the longest of the first rows, and every answer as data.max_response_length: the most that a step can
-- need. `./segzero plan RECIPE ... answer_tokens=65` says what answers of that mean length take.
-- Leaves out: what other programs use, the file cache, CUDA.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local opening = require "segzero.models.opening"
local rollout = require "segzero.inference.rollout"
local vision_cache = require "segzero.inference.vision_cache"
local data = require "segzero.data"
local config = require "segzero.config"
local files = require "segzero.core.files"
local weights = require "segzero.models.weights"
local lora = require "segzero.models.lora"

local C, check = core.C, core.check

local M = {}

local WIDTH = { f32 = 4, bf16 = 2, int8 = 1 }
local GIB = 2 ^ 30
-- LuaJIT, libraries, oneDNN's primitives (some 50 kB for each shape of product), measured after a few steps of small models; a tokenizer's
-- tables take about this many times its file.
local PROGRAM, TOKENIZER = 60 * 2 ^ 20, 14
local ROWS_READ = 8

local function gib(bytes) return ("%.2f GiB"):format(bytes / GIB) end
M.gib = gib

-- ---- the machine ----
local function number_in(path, pattern)
  local file = io.open(path, "r")
  if not file then return nil end
  local text = file:read "*a"
  file:close()
  return tonumber(text:match(pattern))
end

-- What this process may use: all memory, or what a control group leaves of it; and what is free now.
function M.device()
  local total = (number_in("/proc/meminfo", "MemTotal:%s*(%d+) kB") or 0) * 1024
  local free = (number_in("/proc/meminfo", "MemAvailable:%s*(%d+) kB") or 0) * 1024
  local limit = number_in("/sys/fs/cgroup/memory.max", "^(%d+)")
  return { total = limit and math.min(limit, total) or total, free = free }
end

-- ---- a model without memory ----
local function bytes_of(list, width)
  local total = 0
  for _, w in ipairs(list) do
    local n = 1
    for _, d in ipairs(w.shape) do n = n * d end
    total = total + n * (type(width) == "function" and width(w, n) or width)
  end
  return total
end

-- The policy, with its adapters. They may freeze the tower: cfg is the caller's own copy.
local function meta_policy(cfg, dir)
  local model_cfg = cfg.worker.actor.model
  -- A wrong folder is the user's mistake: one line without our place.
  local ok, family = pcall(opening.family, dir)
  if not ok then error(family, 0) end
  return lora.configure(family.meta(dir, model_cfg.dtype), cfg, true)
end

-- ---- inputs ----
local function file_bytes(path)
  local file = io.open(path, "rb")
  local n = file and file:seek "end" or 0
  if file then file:close() end
  return n
end

-- A row's input as the model will read it, the longest of the first rows; and how many bytes of picture a row holds.
local function longest_input(cfg, vl, opts)
  local d = cfg.data
  local set = opts.train or data.open(d.train_files, { split = "train", size = d.refshapes_size, seed = d.seed, rows = d.refshapes_rows })
  local processor = vl:processor()
  processor.min_pixels, processor.max_pixels = d.min_pixels, d.max_pixels
  local longest, pixels = nil, 0
  for i = 1, math.min(ROWS_READ, set:count()) do
    local row = set:row(i)
    local ok, input = pcall(vl.process, vl, { { role = "system", content = d.system_prompt },
      { role = "user", content = { { type = "image", image = row.image }, { type = "text", text = opts.prompt(row.problem) } } } })
    if not ok then error(("row %s: %s"):format(tostring(row.id), core.plain(input)), 0) end
    pixels = math.max(pixels, row.image.width * row.image.height * 3 + input.pixel_values:numel() * 4)
    row.image:free()
    if not longest or #input.input_ids > #longest.input_ids then longest = input end
  end
  return longest, pixels
end

-- n answers of `length` tokens to each of `prompts` prompts.
local function groups_of(input, prompts, n, length)
  local groups, ids, logprobs = {}, {}, {}
  for i = 1, length do ids[i], logprobs[i] = 0, 0 end
  for p = 1, prompts do
    groups[p] = { input = input, samples = {} }
    for k = 1, n do groups[p].samples[k] = { ids = ids, logprobs = logprobs, advantage = 0 } end
  end
  return groups
end

-- ---- counting ----
-- Tokens of an input's pictures.
local function vision_tokens(input, vl) return input.pixel_values and vision_cache.tokens(vl, input) or 0 end

-- Bytes of arena that f() uses; nothing is computed.
local function counted(f)
  check(C.sz_arena_release())
  C.sz_dry_run(1)
  local ok, why = pcall(f)
  C.sz_dry_run(0)
  local used = tonumber(C.sz_arena_used(1))
  check(C.sz_arena_release())
  collectgarbage()
  if not ok then error(why, 0) end
  return used
end

-- Arena of sampling, of the reference's pass, and of the update, for these settings. state: what of() has read.
local function count_arena(cfg, state)
  local trainer = require "segzero.train.trainer"
  local actor, r, d = cfg.worker.actor, cfg.worker.rollout, cfg.data
  local vl = meta_policy(cfg, state.dir)
  local train_batch, n, length = d.rollout_batch_size, r.n, state.answer or d.max_response_length
  local list = vl:train(actor.freeze_vision_tower and function(name) return not vl:is_vision_weight(name) end or nil)
  local groups = groups_of(state.input, math.min(train_batch, actor.global_batch_size), n, length)
  local reference = state.kl and (vl.lora and lora.reference(vl) or vl) or nil
  local bare, arena = trainer.bare { config = cfg, policy = vl, reference = reference }, {}
  local first = bare:micro_batches(groups, "update")[1]      -- none has more groups, or longer parts
  for _, p in ipairs(list) do check(C.sz_tensor_set_grad_dtype(p.tensor.ptr, tensor.dtype_code(actor.grad_dtype))) end
  arena.reference = counted(function() bare:reference_log_probs(bare:micro_batches(groups, "experience")[1].groups) end)
  local samples = {}
  for _, g in ipairs(first.groups) do
    for _, a in ipairs(g.samples) do
      samples[#samples + 1], a.reference = a, a.logprobs
    end
  end
  -- A frozen tower's results are there from sampling on.
  if actor.freeze_vision_tower and state.input.pixel_values then
    vision_cache.put(vl, state.input, tensor.meta({ vision_tokens(state.input, vl), vl.dims.hidden }, vl.dtype))
  end
  arena.update = counted(function() bare:accumulate(first, { tokens = #samples * length, answers = #samples }) end)
  vision_cache.free { state.input }
  arena.sampling = counted(function() tensor.no_grad(rollout.count, vl, state.input, math.max(1, train_batch), n) end)
  for _, p in ipairs(list) do p.tensor:free() end
  vl:free()
  return arena, first.chunks and ("a group, its answers %d at a time"):format(#first.chunks[1])
    or ("up to %d group%s"):format(#first.groups, #first.groups == 1 and "" or "s")
end

-- A model held in 8 bits: each linear layer of the language model, and the logits' head beside its bf16, in bytes and a scale for 128.
local function int8_bytes(vl)
  local head = vl.config.tied == 1 and "model.embed_tokens.weight" or "lm_head.weight"
  return bytes_of(vl.weights, function(w)
    if w.name == head then return 2 + 1 + 1 / 32 end
    return w.name:match "^model%.layers%..*proj%.weight$" and 1 + 1 / 32 or 2
  end)
end

-- Rows that no answer reaches are pages that are not there.
local function cache_bytes(cfg, vl, prompt, prompts, n, answer)
  local lengths = {}
  for i = 1, prompts do lengths[i] = prompt end
  return rollout.row_bytes(vl) * rollout.cache_rows(vl, lengths, n, answer or cfg.data.max_response_length, cfg.worker.rollout.cache_gib * GIB)
end

-- Everything but the arena, from shapes alone.
local function sizes(cfg, state)
  local actor, vl = cfg.worker.actor, state.vl
  local dtype, o = actor.model.dtype, actor.optim
  local trained = {}
  for _, w in ipairs(vl.lora and {} or vl.weights) do
    if not (actor.freeze_vision_tower and vl:is_vision_weight(w.name)) then trained[#trained + 1] = w end
  end
  for _, a in ipairs(vl.lora and vl.lora.list or {}) do
    trained[#trained + 1], trained[#trained + 2] = { shape = a.a:shape() }, { shape = a.b:shape() }
  end
  local p = {}
  p.weights = bytes_of(vl.weights, WIDTH[dtype])
  p.adapters = vl.lora and bytes_of(trained, 4) or 0
  local reference = cfg.worker.ref.model.dtype or dtype
  p.reference = state.kl and not vl.lora and (reference == "int8" and int8_bytes(vl) or bytes_of(vl.weights, WIDTH[reference])) or 0
  p.masters = dtype == "bf16" and o.master_weights and not vl.lora and bytes_of(trained, 4) or 0
  p.moments = bytes_of(trained, 2 * WIDTH[o.state_dtype]) + (o.state_dtype == "int8" and bytes_of(trained, 2 * 4 / 256) or 0)
  p.gradients = bytes_of(trained, function(w) return #w.shape > 1 and WIDTH[actor.grad_dtype] or 4 end)
  local prompt = #state.input.input_ids
  p.cache = math.max(cache_bytes(cfg, vl, prompt, cfg.data.rollout_batch_size, cfg.worker.rollout.n, state.answer),
    state.evaluates and cache_bytes(cfg, vl, prompt, math.min(cfg.data.val_batch_size, state.val_rows), 1, state.answer) or 0)
  -- Those of the batch at hand, and of the next one, which is read meanwhile.
  p.pictures = (math.max(cfg.data.rollout_batch_size, state.evaluates and math.min(cfg.data.val_batch_size, state.val_rows) or 0)
    + cfg.data.rollout_batch_size) * state.pixels
  if actor.freeze_vision_tower then
    p.pictures = p.pictures + cfg.data.rollout_batch_size * vision_tokens(state.input, vl) * vl.dims.hidden * WIDTH[dtype]
  end
  p.program = PROGRAM + TOKENIZER * file_bytes(state.dir .. "/tokenizer.json") + state.sam2
  return p
end

local function total(cfg, state)
  local p = sizes(cfg, state)
  local arena, largest = count_arena(cfg, state)
  local lasting = p.weights + p.adapters + p.reference + p.masters + p.moments + p.pictures + p.program
  -- The arena keeps what its largest phase needed; the cache and the gradients are there in their own phase only.
  local most = math.max(arena.sampling, arena.reference, arena.update)
  local plan = { longer = M.longer, parts = p, arena = arena, largest = largest, prompt = #state.input.input_ids, device = state.device }
  plan.phases = { sampling = lasting + p.cache + most, reference = lasting + p.gradients + most, update = lasting + p.gradients + most }
  plan.peak = math.max(plan.phases.sampling, plan.phases.update)
  plan.fits = plan.peak <= state.device.total
  return plan
end

local function folder_bytes(dir)
  local sum = 0
  for path in io.popen("ls -d '" .. dir:gsub("'", "'\\''") .. "'/*.safetensors 2>/dev/null"):lines() do sum = sum + file_bytes(path) end
  return sum
end

local function read(cfg, opts)
  local actor, d = cfg.worker.actor, cfg.data
  local state = { dir = actor.model.model_path, device = M.device(), answer = opts.answer }
  state.vl = meta_policy(cfg, state.dir)
  state.input, state.pixels = longest_input(cfg, state.vl, { train = opts.train, prompt = opts.prompt or require("segzero.data.prompt").seg_zero })
  state.kl = actor.use_kl_loss and actor.kl_loss_coef ~= 0
  state.evaluates = d.val_files ~= "" and (cfg.trainer.val_before_train or cfg.trainer.test_freq > 0 or not cfg.trainer.val_only)
  state.val_rows = d.val_files == "refshapes" and d.refshapes_val_rows or d.val_batch_size
  local sam2 = cfg.worker.reward.sam2_path
  -- SAM2's weights, f32, and as much again for a picture's features and its arena.
  state.sam2 = sam2 ~= "" and 2 * (files.exists(sam2 .. "/config.json") and folder_bytes(sam2) or file_bytes(sam2)) or 0
  return state
end

local function copy(t)
  if type(t) ~= "table" then return t end
  local out = {}
  for k, v in pairs(t) do out[k] = copy(v) end
  return out
end

function M.of(settings, opts)
  local cfg = copy(settings)
  local state = read(cfg, opts or {})
  local plan = total(cfg, state)
  plan.state = state
  return plan
end

-- ---- what would fit ----
local function with(cfg, state, changes)
  local changed = copy(cfg)
  for _, change in ipairs(changes) do config.set(changed, change[1], change[2]) end
  local s = copy(state)
  s.vl, s.input = meta_policy(changed, state.dir), state.input
  s.kl = changed.worker.actor.use_kl_loss and changed.worker.actor.kl_loss_coef ~= 0
  return total(changed, s)
end

-- The largest whole number up to `most` that fits as this setting; nil when 1 does not.
local function largest(cfg, state, key, least, most)
  local function fits(v) return with(cfg, state, { { key, v } }).fits end
  if not fits(least) then return nil end
  local low, high = least, least
  while high < most and fits(math.min(2 * high, most)) do high = math.min(2 * high, most) end
  if high >= most then return most, true end
  low, high = high, math.min(2 * high, most)
  while high - low > math.max(1, low / 16) do
    local middle = math.floor((low + high) / 2)
    if fits(middle) then low = middle else high = middle end
  end
  return low
end

-- In the order in which they cost least: time, then what is trained, then accuracy.
local function remedies(cfg, prompt)
  local a, list = cfg.worker.actor, {}
  local function add(...) list[#list + 1] = { ... } end
  if not a.model.enable_gradient_checkpointing then add { "worker.actor.model.enable_gradient_checkpointing", true } end
  local adapted = a.model.lora.rank > 0
  if not a.freeze_vision_tower and not adapted then add { "worker.actor.freeze_vision_tower", true } end
  if a.use_kl_loss and not adapted and cfg.worker.ref.model.dtype ~= "int8" then add { "worker.ref.model.dtype", "int8" } end
  if a.use_kl_loss then add { "worker.actor.use_kl_loss", false } end
  if a.grad_dtype ~= "bf16" then add { "worker.actor.grad_dtype", "bf16" } end
  if a.optim.state_dtype ~= "int8" then add { "worker.actor.optim.state_dtype", "int8" } end
  if a.model.dtype ~= "bf16" then add({ "worker.actor.model.dtype", "bf16" }, { "worker.actor.optim.master_weights", false })
  elseif a.optim.master_weights then add { "worker.actor.optim.master_weights", false } end
  -- A group at a time, then an answer.
  for _, answers in ipairs { cfg.worker.rollout.n, 1 } do
    local tokens = prompt + answers * cfg.data.max_response_length
    if a.max_tokens_per_micro_batch > tokens then add { "worker.actor.max_tokens_per_micro_batch", tokens } end
  end
  return list
end

local function settings_text(changes)
  local out = {}
  for i, c in ipairs(changes) do out[i] = c[1] .. "=" .. tostring(c[2]) end
  return table.concat(out, " ")
end

-- The first single change that makes the run fit, else the first few together; nil when all of them do not.
function M.remedy(cfg, plan)
  local list = remedies(cfg, plan.prompt)
  for _, changes in ipairs(list) do
    local p = with(cfg, plan.state, changes)
    if p.fits then return settings_text(changes), p end
  end
  local all = {}
  for _, changes in ipairs(list) do
    for _, c in ipairs(changes) do all[#all + 1] = c end
    local p = with(cfg, plan.state, all)
    if p.fits then return settings_text(all), p end
  end
  if cfg.worker.actor.model.lora.rank == 0 then       -- trains something else, and less
    local least = { { "worker.actor.model.lora.rank", 16 } }
    local p = with(cfg, plan.state, least)
    if p.fits then return settings_text(least), p end
  end
  return nil, with(cfg, plan.state, all)
end

-- ---- text ----
function M.print(plan)
  local p, a = plan.parts, plan.arena
  print(("memory of one run, prompts of %d tokens, micro-batches of %s"):format(plan.prompt, plan.largest))
  local function line(name, bytes, note) print(("  %-34s %12s  %s"):format(name, gib(bytes), note or "")) end
  line("weights", p.weights)
  if p.adapters > 0 then line("adapters", p.adapters) end
  line("reference", p.reference, p.adapters > 0 and "the policy without its adapters" or "shares the file's pages until the policy's are written to")
  line("masters", p.masters)
  line("optimizer's moments", p.moments)
  line("gradients", p.gradients, "in the update")
  line("key-value cache", p.cache, "in sampling")
  line("activations and workspace: sampling", a.sampling)
  line("  reference", a.reference)
  line("  update", a.update)
  line("pictures", p.pictures)
  line("program, tokenizer, SAM2", p.program)
  line("sampling", plan.phases.sampling)
  line("update", plan.phases.update)
  line("peak", plan.peak, plan.phases.update >= plan.phases.sampling and "in the update" or "in sampling")
  line("this machine", plan.device.total, ("%s free now"):format(gib(plan.device.free)))
end

function M.advise(cfg, plan)
  if plan.fits then
    local function say(text, key, least, most)
      local v, open = largest(cfg, plan.state, key, least, most)
      print(("  largest %-26s %12s  %s"):format(text, v and (open and "over " or "") .. tostring(v) or "none", key))
    end
    say("micro-batch (tokens)", "worker.actor.max_tokens_per_micro_batch", plan.prompt, 262144)
    say("answer (tokens)", "data.max_response_length", 1, 16384)
    say("rollout batch (prompts)", "data.rollout_batch_size", 1, 1024)
    print(("the run fits: %s of %s"):format(gib(plan.peak), gib(plan.device.total)))
    return
  end
  print(("the run does not fit: %s of %s"):format(gib(plan.peak), gib(plan.device.total)))
  local text, p = M.remedy(cfg, plan)
  if text then print(("it would with %s: %s"):format(text, gib(p.peak)))
  else print(("nor with every setting that saves memory: %s"):format(gib(p.peak))) end
end

function M.check(cfg, opts)
  if tensor.model_device() ~= "cpu" then return nil end     -- what a device holds is not counted
  local plan = M.of(cfg, opts)
  if plan.fits then
    if plan.peak > plan.device.free then
      print(("memory: the run will take %s, %s are free now"):format(gib(plan.peak), gib(plan.device.free)))
    end
    return plan
  end
  local text, p = M.remedy(cfg, plan)
  error(("the run would take %s of memory, this machine has %s (./segzero plan ... shows what takes it). %s. To run all the same: " ..
    "trainer.check_memory=false"):format(gib(plan.peak), gib(plan.device.total),
    text and ("It would fit with %s (%s)"):format(text, gib(p.peak)) or "No setting makes it fit"), 0)
end

-- The plan for a prompt that is longer than those that it was made for; an error with the numbers when a step with it would not fit.
function M.longer(cfg, plan, input)
  local state = {}
  for k, v in pairs(plan.state) do state[k] = v end
  state.input = input
  if input.pixel_values then
    local bytes = input.pixel_values:numel() * 4
    for _, p in ipairs(input.images) do bytes = bytes + p.width * p.height * 3 end
    state.pixels = math.max(state.pixels, bytes)
  end
  local p = total(cfg, state)
  p.state = state
  if not p.fits then
    error(("the prompt has %d tokens, a step with it would take %s of memory and this machine has %s (to try all the same: " ..
      "trainer.check_memory=false)"):format(#input.input_ids, gib(p.peak), gib(p.device.total)), 0)
  end
  return p
end

-- `segzero plan RECIPE key=value ...`: recipe is a module with settings(args) and, optionally, a name.
function M.main(args)
  local path = args[1]
  if not path then error("plan: which recipe? ./segzero plan recipes/refcocog_grpo.lua key=value ...", 0) end
  local name = path:gsub("%.lua$", ""):gsub("/", ".")
  local ok, recipe = pcall(require, name)
  if not ok and recipe:find("module '" .. name .. "' not found", 1, true) then error(("plan: there is no recipe %s"):format(path), 0) end
  if not ok then error(("plan: %s does not load: %s"):format(path, recipe), 0) end
  if type(recipe) ~= "table" or not recipe.settings then error(("plan: %s has no settings to plan with"):format(path), 0) end
  local settings, answer = {}, nil
  for i = 2, #args do
    local n = args[i]:match "^answer_tokens=(%d+)$"
    if n then answer = tonumber(n) else settings[#settings + 1] = args[i] end
  end
  local cfg = recipe.settings(settings)
  local plan = M.of(cfg, { answer = answer })
  M.print(plan)
  M.advise(cfg, plan)
  return plan
end

return M
