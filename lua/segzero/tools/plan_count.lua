-- plan_count.lua - the numbers of a memory plan, in bytes.
--
--   local plan = plan_count.total(cfg, state)     state: plan_state.read
--       {parts = {...}, arena = {sampling, reference, update}, phases = {...}, peak =, fits =,
--        prompt = tokens, largest = "what a micro-batch holds", device =, neighbours =,
--        needed = bytes that the ranks of this machine take together; of one process, peak}
--
-- Sizes of what lasts (weights, reference, masters, moments, gradients, key-value cache) follow
-- from config.json. Activations and workspace are not modelled but counted: the trainer's own step
-- runs on a model without memory behind its weights, with kernels left out (sz_dry_run), and the
-- arena says what it would have used. So which tensors the forward pass keeps is written in one
-- place only, the model code itself. The workspace of kernels is in the workspace column of
-- runtime/ops/ops.def.

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local rollout = require "segzero.inference.generate"
local vision_cache = require "segzero.inference.vision_cache"
local weights = require "segzero.models.weights"
local plan_state = require "segzero.tools.plan_state"
local forward = require "segzero.train.forward"
local trainer = require "segzero.train.trainer"
local update = require "segzero.train.update"

local C = core.C
local check = core.check

local M = {}

local GIB = 2 ^ 30
-- Bytes of an element of weights, moments and gradients; int8 moments have a scale for 256
-- elements.
local WIDTH = { f32 = 4, bf16 = 2, int8 = 1 }
local MOMENT_SCALE = 4 / 256
-- LuaJIT, libraries, oneDNN's primitives (about 50 kB for each shape of product), measured after a
-- few steps of small models; and how many times its file a tokenizer's tables take.
local PROGRAM = 60 * 2 ^ 20
local TOKENIZER = 4
-- Room on the device for pieces of offloaded state (runtime/ops/optim_offload.c).
local OFFLOAD_SLOTS = 144 * 2 ^ 20

-- The prompts of a replica, of all prompts.
local function share_of(prompts, state) return math.ceil(prompts / state.replicas) end

-- ---- the arena ----
-- n answers of `length` tokens to each of `prompts` prompts.
local function groups_of(input, prompts, n, length)
  local groups = {}
  local ids = {}
  local logprobs = {}
  for i = 1, length do
    ids[i] = 0
    logprobs[i] = 0
  end
  for p = 1, prompts do
    groups[p] = { input = input, samples = {} }
    for k = 1, n do groups[p].samples[k] = { ids = ids, logprobs = logprobs, advantage = 0 } end
  end
  return groups
end

-- Groups that the first micro-batch may hold, and one that it does not.
local function groups_that_count(prompts, max_tokens, group_tokens)
  return math.min(prompts, math.floor(max_tokens / group_tokens) + 1)
end

-- Full chunks are alike. The second one adds to the gradients that the first one made, a third one
-- takes no more than the second, and the last one may be smaller.
local function distinct_chunks(batch)
  local chunks = batch.chunks
  if not chunks or #chunks <= 3 then return batch end
  return { groups = batch.groups, chunks = { chunks[1], chunks[2], chunks[#chunks] } }
end

-- Bytes of arena that f() uses, in a dry run.
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

local function vision_tokens(input, vl)
  if not input.pixel_values then return 0 end
  return vl:vision_tokens(input)
end

-- The weights that are trained, as parameters with the gradients' dtype.
local function trained_list(cfg, vl)
  local actor = cfg.worker.actor
  local filter
  if actor.freeze_vision_tower then
    function filter(name) return not vl:is_vision_weight(name) end
  end
  local list = vl:train(filter)
  local code = tensor.dtype_code(actor.grad_dtype)
  for _, p in ipairs(list) do check(C.sz_tensor_set_grad_dtype(p.tensor.ptr, code)) end
  return list
end

local function reference_of(vl, state)
  if not state.reference then return nil end
  if vl.lora then return require("segzero.models.lora").reference(vl) end
  return vl
end

local function describe(batch)
  if batch.chunks then return ("a group, its answers %d at a time"):format(#batch.chunks[1]) end
  return ("up to %d group%s"):format(#batch.groups, #batch.groups == 1 and "" or "s")
end

-- Arena of sampling, of the reference's pass and of the update with answers of `length` tokens; and
-- what a micro-batch holds. share: of the limit of tokens in a micro-batch.
local function count_arena_of(cfg, state, length, share)
  local actor = cfg.worker.actor
  local d = cfg.data
  local n = cfg.worker.rollout.n
  local vl = plan_state.meta_policy(cfg, state.dir, state.shards)
  local list = trained_list(cfg, vl)
  local prompts = math.min(d.rollout_batch_size, actor.global_batch_size)
  prompts = math.ceil(prompts / state.replicas)
  local bare = trainer.bare { config = cfg, policy = vl, reference = reference_of(vl, state) }
  local limits = bare.options.micro_batches
  limits.max_tokens = math.max(1, math.floor(limits.max_tokens * share))
  local group_tokens = #state.input.input_ids + n * length
  local count = groups_that_count(prompts, limits.max_tokens, group_tokens)
  local groups = groups_of(state.input, count, n, length)
  local first = bare:micro_batches(groups, "update")[1]      -- the largest
  local arena = {}

  arena.reference = counted(function()
    if not bare.reference then return end
    local batch = distinct_chunks(bare:micro_batches(groups, "experience")[1])
    forward.reference(bare.reference, { batch }, update.forward_options(bare))
  end)

  local samples = 0
  for _, g in ipairs(first.groups) do
    for _, a in ipairs(g.samples) do
      samples = samples + 1
      a.reference = a.logprobs
    end
  end
  -- A frozen tower's features exist since sampling.
  if actor.freeze_vision_tower and state.input.pixel_values then
    local shape = { vision_tokens(state.input, vl), vl.dims.hidden }
    vision_cache.put(vl, state.input, tensor.meta(shape, vl.dtype))
  end
  arena.update = counted(function()
    bare:accumulate(distinct_chunks(first), { tokens = samples * length, answers = samples })
  end)
  vision_cache.free { state.input }

  arena.sampling = counted(function()
    tensor.no_grad(rollout.count, vl, state.input, share_of(d.rollout_batch_size, state), n)
  end)
  for _, p in ipairs(list) do p.tensor:free() end
  vl:free()
  return arena, describe(first)
end

-- Longer answers are not counted token by token: what they take grows by as much for each token, if
-- a micro-batch holds as many answers.
local COUNTED = 2 ^ 16

local function count_arena(cfg, state)
  local length = state.answer or cfg.data.max_response_length
  if length <= COUNTED then return count_arena_of(cfg, state, length, 1) end
  local half = count_arena_of(cfg, state, COUNTED / 2, COUNTED / 2 / length)
  local arena, largest = count_arena_of(cfg, state, COUNTED, COUNTED / length)
  for name, bytes in pairs(arena) do
    local slope = math.max(0, bytes - half[name]) / (COUNTED / 2)
    arena[name] = bytes + slope * (length - COUNTED)
  end
  return arena, largest
end

-- ---- what lasts for the whole run ----
-- Weights that are trained, or the adapters instead.
function M.trained_shapes(cfg, vl)
  local out = {}
  if vl.lora then
    for _, a in ipairs(vl.lora.list) do
      out[#out + 1] = { shape = a.a:shape() }
      out[#out + 1] = { shape = a.b:shape() }
    end
    return out
  end
  local frozen = cfg.worker.actor.freeze_vision_tower
  for _, w in ipairs(vl.weights) do
    if not (frozen and vl:is_vision_weight(w.name)) then out[#out + 1] = w end
  end
  return out
end

-- Rows that no answer reaches are pages that are never touched.
local function cache_bytes(cfg, state, prompts, n)
  local lengths = {}
  for i = 1, share_of(prompts, state) do lengths[i] = #state.input.input_ids end
  local answer = state.answer or cfg.data.max_response_length
  local rows = rollout.cache_rows(state.vl, lengths, n, answer, cfg.worker.rollout.cache_gib * GIB)
  return rollout.row_bytes(state.vl) * rows
end

local function evaluated_rows(cfg, state)
  if not state.evaluates then return 0 end
  return math.min(cfg.data.val_batch_size, state.val_rows)
end

local function largest_cache(cfg, state)
  local train = cache_bytes(cfg, state, cfg.data.rollout_batch_size, cfg.worker.rollout.n)
  local rows = evaluated_rows(cfg, state)
  if rows == 0 then return train end
  return math.max(train, cache_bytes(cfg, state, rows, 1))
end

-- Images of this batch and of the next one, which is read meanwhile; and a frozen tower's features.
local function image_bytes(cfg, state)
  local batch = share_of(cfg.data.rollout_batch_size, state)
  local held_out = share_of(evaluated_rows(cfg, state), state)
  local bytes = (math.max(batch, held_out) + batch) * state.image_bytes
  if not cfg.worker.actor.freeze_vision_tower then return bytes end
  local vl = state.vl
  local width = WIDTH[vl.dtype]
  return bytes + batch * vision_tokens(state.input, vl) * vl.dims.hidden * width
end

-- Everything but the arena, from shapes alone.
local function sizes(cfg, state)
  local actor = cfg.worker.actor
  local vl = state.vl
  local dtype = actor.model.dtype
  local optim = actor.optim
  local trained = M.trained_shapes(cfg, vl)
  local p = { adapters = 0, reference = 0, masters = 0 }
  p.weights = vl:weight_bytes(dtype, true)
  if vl.lora then p.adapters = weights.bytes(trained, 4) end
  if state.reference and not vl.lora then
    p.reference = vl:weight_bytes(cfg.worker.ref.model.dtype or dtype)
  end
  if dtype == "bf16" and optim.master_weights and not vl.lora then
    p.masters = weights.bytes(trained, 4)
  end
  p.moments = weights.bytes(trained, 2 * WIDTH[optim.state_dtype])
  if optim.state_dtype == "int8" then
    p.moments = p.moments + weights.bytes(trained, 2 * MOMENT_SCALE)
  end
  -- Of several replicas each has a part of the optimizer's state.
  if optim.shard_state then
    p.masters = math.ceil(p.masters / state.replicas)
    p.moments = math.ceil(p.moments / state.replicas)
  end
  p.gradients = weights.bytes(trained, function(w)
    if #w.shape > 1 then return WIDTH[actor.grad_dtype] end
    return 4
  end)
  p.cache = largest_cache(cfg, state)
  p.images = image_bytes(cfg, state)
  local tokenizer = plan_state.file_bytes(state.dir .. "/tokenizer.json")
  p.program = PROGRAM + TOKENIZER * tokenizer + state.sam2
  return p
end

-- Pages of the model's file that the ranks of a machine share: they are never written to. Untrained
-- weights that are converted are counted too, so a run is rather accepted than refused.
local function shared_bytes(cfg, state, p)
  local vl = state.vl
  -- Packed weights are each rank's own.
  if vl.quantized then
    return weights.bytes(vl.weights, function(w)
      if w.linear and not w.vision then return 0 end
      return WIDTH[vl.dtype]
    end)
  end
  if vl.lora then return p.weights end
  local width = WIDTH[cfg.worker.actor.model.dtype]
  local untrained = p.weights - weights.bytes(M.trained_shapes(cfg, vl), width)
  return p.reference + math.max(0, untrained)
end

-- What is in host memory: the optimizer's state, of which an update copies one parameter after
-- another to the device; and the reference, which is on the device in its own pass.
local function host_bytes(cfg, state, p)
  local own = cfg.worker.actor.offload
  if not state.device.is_given then return 0, 0 end
  local optimizer = 0
  if own.optimizer_offload then optimizer = p.moments end
  if own.param_offload then optimizer = optimizer + p.masters end
  optimizer = math.max(0, optimizer - OFFLOAD_SLOTS)
  local reference = 0
  if cfg.worker.ref.offload.param_offload then reference = p.reference end
  return optimizer, reference
end

-- ---- the plan ----
function M.total(cfg, state)
  local p = sizes(cfg, state)
  local optimizer, reference = host_bytes(cfg, state, p)
  p.host = optimizer + reference
  local arena, largest = count_arena(cfg, state)
  local lasting = p.weights + p.adapters + p.reference + p.masters + p.moments + p.images
    + p.program
  -- The arena keeps what its largest phase needed; the cache and the gradients exist in their own
  -- phase only.
  local most = math.max(arena.sampling, arena.reference, arena.update)
  local plan = {
    parts = p, arena = arena, largest = largest, prompt = #state.input.input_ids,
    device = state.device, neighbours = state.neighbours,
  }
  plan.phases = {
    sampling = lasting + p.cache + most - optimizer - reference,
    reference = lasting + p.gradients + most - optimizer,
    update = lasting + p.gradients + most - optimizer - reference,
  }
  plan.peak = math.max(plan.phases.sampling, plan.phases.reference, plan.phases.update)
  local own = plan.peak - shared_bytes(cfg, state, p)
  plan.needed = plan.peak + (state.neighbours - 1) * own
  plan.fits = plan.needed <= state.device.total
  return plan
end

return M
