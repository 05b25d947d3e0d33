-- plan.lua - computes how much memory a training run needs, before anything is loaded.
--
--   local p = plan.of(cfg, {prompt = f})     cfg: a recipe's settings. p.peak, p.needed, p.fits,
--                                            p.parts, p.phases, p.device (bytes). Of several
--                                            ranks peak is one's, and needed what those of this
--                                            machine take together
--   plan.print(p)                            prints the table
--   plan.advise(cfg, p)                      prints what else fits, or the smallest change of
--                                            settings that would make it fit
--   plan.longer(cfg, p, input)               the plan for a step with this longer prompt; an error
--                                            if it cannot fit. Also p.longer
--   plan.check(cfg, opts)                    an error with the numbers if a run on the CPU cannot
--                                            fit
--
-- Every prompt is taken to be as long as the longest of the first rows, and every answer as
-- data.max_response_length: the most that a step can need. `./segzero plan RECIPE ...
-- answer_tokens=65` says what answers of that mean length take, and --ranks W device_gib=G what one
-- of W ranks of a cluster needs and sends (plan_ranks.lua). How the numbers are found:
-- plan_count.lua.
-- Leaves out: what other programs use, the file cache, CUDA.

local config = require "segzero.config"
local console = require "segzero.log.console"
local mistake = require "segzero.core.mistake"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local plan_count = require "segzero.tools.plan_count"
local plan_ranks = require "segzero.tools.plan_ranks"
local plan_state = require "segzero.tools.plan_state"
local train_options = require "segzero.train.options"

local M = {}

local GIB = 2 ^ 30
local ANSWER = "data.max_response_length"

local function gib(bytes) return ("%.2f GiB"):format(bytes / GIB) end
M.gib = gib

M.device = plan_state.device

local function copy(t)
  if type(t) ~= "table" then return t end
  local out = {}
  for k, v in pairs(t) do out[k] = copy(v) end
  return out
end

local function shallow(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return out
end

local function total(cfg, state)
  local plan = plan_count.total(cfg, state)
  plan.state = state
  plan.longer = M.longer
  return plan
end

local OPTIONS = options.set { "prompt", "train", "answer", "ranks", "neighbours", "device" }

function M.of(settings, opts)
  opts = options.check("plan", opts, OPTIONS, 2)
  local cfg = copy(settings)
  return total(cfg, plan_state.read(cfg, opts, opts.device or M.device()))
end

-- ---- what would fit ----
local function with(cfg, state, changes)
  local changed = copy(cfg)
  for _, change in ipairs(changes) do config.set(changed, change[1], change[2]) end
  local s = shallow(state)
  s.vl = plan_state.meta_policy(changed, state.dir, state.shards)
  s.reference = train_options.uses_reference(changed)
  return total(changed, s)
end

-- The largest whole number from `least` to `most` that fits as this setting; nil when `least` does
-- not. The second result says that `most` fits.
local function largest(cfg, state, key, least, most)
  local function fits(v) return with(cfg, state, { { key, v } }).fits end
  if not fits(least) then return nil end
  -- Double while it fits, then halve the interval.
  local low = least
  while low < most and fits(math.min(2 * low, most)) do low = math.min(2 * low, most) end
  if low >= most then return most, true end
  local high = math.min(2 * low, most)
  while high - low > math.max(1, low / 16) do
    local middle = math.floor((low + high) / 2)
    if fits(middle) then low = middle else high = middle end
  end
  return low
end

-- Changes of settings, cheapest first: they cost time, then trained weights, then accuracy.
local function remedies(cfg, prompt, device)
  local a = cfg.worker.actor
  local list = {}
  local function add(...) list[#list + 1] = { ... } end
  local adapted = a.model.lora.rank > 0
  local has_reference = train_options.uses_reference(cfg)
  if device.is_given then
    add { "worker.ref.offload.param_offload", true }
    add({ "worker.actor.offload.optimizer_offload", true },
      { "worker.actor.offload.param_offload", true })
  end
  if not a.model.enable_gradient_checkpointing then
    add { "worker.actor.model.enable_gradient_checkpointing", true }
  end
  if not a.freeze_vision_tower and not adapted then
    add { "worker.actor.freeze_vision_tower", true }
  end
  if has_reference and not adapted then
    local dtype = cfg.worker.ref.model.dtype
    if dtype ~= "int8" and dtype ~= "int4" then add { "worker.ref.model.dtype", "int8" } end
    if dtype ~= "int4" and not device.is_given then add { "worker.ref.model.dtype", "int4" } end
  end
  if a.use_kl_loss then add { "worker.actor.use_kl_loss", false } end
  if a.grad_dtype ~= "bf16" then add { "worker.actor.grad_dtype", "bf16" } end
  if a.optim.state_dtype ~= "int8" then add { "worker.actor.optim.state_dtype", "int8" } end
  local no_masters = { "worker.actor.optim.master_weights", false }
  if a.model.dtype ~= "bf16" then
    add({ "worker.actor.model.dtype", "bf16" }, no_masters)
  elseif a.optim.master_weights then
    add(no_masters)
  end
  -- One group at a time, then one answer.
  for _, answers in ipairs { cfg.worker.rollout.n, 1 } do
    local tokens = prompt + answers * cfg.data.max_response_length
    if a.max_tokens_per_micro_batch > tokens then
      add { "worker.actor.max_tokens_per_micro_batch", tokens }
    end
  end
  return list
end

local function settings_text(changes)
  local out = {}
  for i, c in ipairs(changes) do out[i] = c[1] .. "=" .. tostring(c[2]) end
  return table.concat(out, " ")
end

-- The first single change that makes the run fit, else the first few together: text, plan. nil and
-- the plan with all of them when even that does not fit.
function M.remedy(cfg, plan)
  local list = remedies(cfg, plan.prompt, plan.device)
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
  -- Adapters train something else, and less.
  if cfg.worker.actor.model.lora.rank == 0 then
    local adapters = { { "worker.actor.model.lora.rank", 16 } }
    local p = with(cfg, plan.state, adapters)
    if p.fits then return settings_text(adapters), p end
  end
  return nil, with(cfg, plan.state, all)
end

-- ---- text ----
function M.print(plan)
  local p = plan.parts
  local a = plan.arena
  print(("memory of one run, prompts of %d tokens, micro-batches of %s"):format(plan.prompt,
    plan.largest))
  local function line(name, bytes, note)
    print(("  %-34s %12s  %s"):format(name, gib(bytes), note or ""))
  end
  local reference_note = "shares the file's pages until the policy's are written to"
  if p.adapters > 0 then reference_note = "the policy without its adapters" end
  line("weights", p.weights)
  if p.adapters > 0 then line("adapters", p.adapters) end
  line("reference", p.reference, reference_note)
  line("masters", p.masters)
  line("optimizer's moments", p.moments)
  line("gradients", p.gradients, "in the update")
  line("key-value cache", p.cache, "in sampling")
  line("activations and workspace: sampling", a.sampling)
  line("  reference", a.reference)
  line("  update", a.update)
  line("images", p.images)
  line("program, tokenizer, SAM2", p.program)
  line("sampling", plan.phases.sampling)
  line("update", plan.phases.update)
  local peak_note = "in the reference's pass"
  if plan.peak == plan.phases.sampling then peak_note = "in sampling" end
  if plan.peak == plan.phases.update then peak_note = "in the update" end
  line("peak", plan.peak, peak_note)
  if plan.neighbours > 1 then
    line(("the %d ranks of this machine"):format(plan.neighbours), plan.needed)
  end
  if p.host > 0 then line("in host memory", p.host, "not in these sums") end
  if plan.device.is_given then
    line("the GPU of a rank", plan.device.total)
  else
    line("this machine", plan.device.total, ("%s free now"):format(gib(plan.device.free)))
  end
end

local function print_largest(cfg, plan, text, key, least, most)
  local v, open = largest(cfg, plan.state, key, least, math.max(least, most))
  local shown = "none"
  if v then shown = tostring(v) end
  if open then shown = "over " .. shown end
  print(("  largest %-26s %12s  %s"):format(text, shown, key))
end

function M.advise(cfg, plan)
  local machine = gib(plan.device.total)
  if plan.fits then
    local tokens = "worker.actor.max_tokens_per_micro_batch"
    -- From the present numbers on, which fit. Shorter answers may need more: a micro-batch holds
    -- more images then.
    local actor, batch = cfg.worker.actor, cfg.data.rollout_batch_size
    print_largest(cfg, plan, "micro-batch (tokens)", tokens, actor.max_tokens_per_micro_batch,
      262144)
    if not plan.state.answer then
      print_largest(cfg, plan, "answer (tokens)", ANSWER, cfg.data.max_response_length, 16384)
    end
    print_largest(cfg, plan, "rollout batch (prompts)", "data.rollout_batch_size", batch, 1024)
    print(("the run fits: %s of %s"):format(gib(plan.needed), machine))
    return
  end
  print(("the run does not fit: %s of %s"):format(gib(plan.needed), machine))
  local text, p = M.remedy(cfg, plan)
  if text then
    print(("it fits with %s: %s"):format(text, gib(p.needed)))
  else
    local longest = largest(cfg, plan.state, ANSWER, 1, cfg.data.max_response_length)
    if longest then print(("it fits with %s=%d"):format(ANSWER, longest)) end
    print(("even with every memory-saving setting the run needs %s"):format(gib(p.needed)))
  end
end

-- ---- checks ----
function M.check(cfg, opts)
  if tensor.model_device() ~= "cpu" then return nil end     -- what a device holds is not counted
  local plan = M.of(cfg, opts)
  if plan.fits then
    if plan.needed > plan.device.free then
      local text = "memory: the run will take %s, and %s are free now"
      console.say(text:format(gib(plan.needed), gib(plan.device.free)))
    end
    return plan
  end
  local text, p = M.remedy(cfg, plan)
  local cure = "No setting makes it fit"
  if text then
    cure = ("It would fit with %s (%s)"):format(text, gib(p.needed))
  else
    local longest = largest(cfg, plan.state, ANSWER, 1, cfg.data.max_response_length)
    if longest then cure = ("It would fit with %s=%d"):format(ANSWER, longest) end
  end
  local message = "the run would take %s of memory, this machine has %s (./segzero plan ... shows "
    .. "the parts). %s. To run anyway: trainer.check_memory=false"
  error(message:format(gib(plan.needed), gib(plan.device.total), cure), 0)
end

function M.longer(cfg, plan, input)
  local state = shallow(plan.state)
  state.input = input
  if input.pixel_values then
    local bytes = input.pixel_values:numel() * 4
    for _, p in ipairs(input.images) do bytes = bytes + p.width * p.height * 3 end
    state.image_bytes = math.max(state.image_bytes, bytes)
  end
  local p = total(cfg, state)
  if not p.fits then
    local message = "the prompt has %d tokens, a step with it would take %s of memory and this "
      .. "machine has %s (to try anyway: trainer.check_memory=false)"
    error(message:format(#input.input_ids, gib(p.needed), gib(p.device.total)), 0)
  end
  return p
end

-- ---- the command ----
local function load_recipe(path)
  local name = path:gsub("%.lua$", ""):gsub("/", ".")
  local ok, recipe = pcall(require, name)
  if not ok and recipe:find("module '" .. name .. "' not found", 1, true) then
    mistake.raise(("plan: there is no recipe %s"):format(path))
  end
  if not ok then error(("plan: %s does not load: %s"):format(path, recipe), 0) end
  if type(recipe) ~= "table" or not recipe.settings then
    mistake.raise(("plan: %s has no settings to plan with"):format(path))
  end
  return recipe
end

-- `segzero plan RECIPE key=value ...`: recipe is a module with settings(args).
local function main(args, opts)
  local path = args[1]
  if not path then
    mistake.raise "plan: name a recipe: ./segzero plan recipes/refcocog_grpo.lua key=value ..."
  end
  local recipe = load_recipe(path)
  local asked, settings = plan_ranks.read { select(2, unpack(args)) }
  local cfg = mistake.reading(recipe.settings, settings)
  if not cfg.worker then
    mistake.raise(("plan: %s is no recipe of GRPO, which is what is planned"):format(path))
  end
  opts.answer = asked.answer
  if asked.ranks then
    opts.ranks = asked.ranks
    opts.neighbours = asked.ranks
  end
  -- A GPU belongs to one rank.
  if asked.device then
    opts.device = { total = asked.device, free = asked.device, is_given = true }
    opts.neighbours = 1
  end
  plan_ranks.check(cfg, asked, opts.ranks or 1)
  local plan = M.of(cfg, opts)
  M.print(plan)
  if (opts.ranks or 1) > 1 then
    plan_ranks.print(cfg, plan, plan_count.trained_shapes(cfg, plan.state.vl), asked.rate)
  end
  M.advise(cfg, plan)
  return plan
end

-- Of several ranks the first one makes the plan, and the others wait for it. Returns the plan, nil
-- on those, and whether the run fits, on all.
function M.main(args)
  local ranks = require "segzero.core.ranks"
  if not ranks.launched() then
    local plan = main(args, {})
    return plan, plan.fits
  end
  local world = ranks.world()
  local plan
  if world:rank() == 0 then
    plan = main(args, { ranks = world:size(), neighbours = world:neighbours() })
  end
  return plan, world:share(plan and plan.fits)
end

-- `segzero plan`: exit status 1 if the run does not fit, so that a job's script can ask.
function M.command(args)
  local _, fits = M.main(args)
  if not fits then os.exit(1) end
end

return M
