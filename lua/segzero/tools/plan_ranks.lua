-- plan_ranks.lua - the plan of a run on several ranks that are not here: a cluster's. Which
-- arguments it takes, and what the ranks send to each other in a step.
--
--   local asked, settings = plan_ranks.read(args)
--       takes --ranks W, device_gib=G (memory of each rank's GPU), gb_per_second=B and
--       answer_tokens=N out of the arguments of `segzero plan`: {ranks =, device = bytes, rate =,
--       answer =}
--   plan_ranks.split(cfg, ranks) -> {shards =, replicas =}
--       an error with the numbers that would do if worker.rollout.tensor_parallel_size does not
--       divide the ranks
--   plan_ranks.check(cfg, asked, ranks)     an error if there are more replicas than prompts, or if
--                                           what was asked has no meaning for this run
--   plan_ranks.parameters(cfg, trained) -> plan_wire's list; trained: weights, or adapters
--   plan_ranks.work(cfg, plan) -> plan_wire's work for prompts and answers of the plan's lengths
--   plan_ranks.print(cfg, plan)         the table
--
-- The lengths are the plan's: every prompt the longest, every answer as long as it may be. Seconds
-- are bytes by rate: sums in one pass wait for each other, and nothing is overlapped.
-- Leaves out: memory (plan_count.lua); time of computing.

local mistake = require "segzero.core.mistake"
local wire = require "segzero.tools.plan_wire"

local M = {}

local GIB = 2 ^ 30
local GB = 1e9
local WIDTH = { f32 = 4, bf16 = 2 }
-- Bytes a second of one rank: 10 and 100 Gbit/s Ethernet, PCIe 4, NVLink.
local RATES = { 1.25, 12.5, 25, 300 }
local LATENCY = 20e-6           -- seconds of one collective, besides its bytes

-- ---- arguments ----
local function positive(name, text)
  local n = tonumber(text)
  if n and n > 0 then return n end
  mistake.raise(("plan: %s expects a number above 0, got '%s'"):format(name, text))
end

local MOST = 2 ^ 20
local function count(name, text)
  local n = tonumber(text)
  if n and n >= 1 and n % 1 == 0 and n <= MOST then return n end
  mistake.raise(("plan: %s expects a whole number from 1, got '%s'"):format(name, text))
end

function M.read(args)
  local asked, rest = {}, {}
  local i = 1
  while i <= #args do
    local name, value = args[i]:match "^([%w_%-]+)=(.*)$"
    name = name or args[i]
    if name == "--ranks" then
      if not value then
        i = i + 1
        value = args[i] or ""
      end
      asked.ranks = count(name, value)
    elseif name == "answer_tokens" and value then
      asked.answer = count(name, value)
    elseif name == "device_gib" and value then
      asked.device = positive(name, value) * GIB
    elseif name == "gb_per_second" and value then
      asked.rate = positive(name, value)
    else
      rest[#rest + 1] = args[i]
    end
    i = i + 1
  end
  return asked, rest
end

-- ---- the split ----
local function divisors(n)
  local list = {}
  for d = 1, n do
    if n % d == 0 then list[#list + 1] = d end
  end
  return table.concat(list, ", ")
end

function M.split(cfg, ranks)
  local shards = cfg.worker.rollout.tensor_parallel_size or 1
  if ranks == 1 then shards = 1 end
  if ranks % shards ~= 0 then
    error(("worker.rollout.tensor_parallel_size=%d does not divide %d ranks: %s would do")
      :format(shards, ranks, divisors(ranks)), 0)
  end
  return { shards = shards, replicas = ranks / shards }
end

function M.check(cfg, asked, ranks)
  local replicas = M.split(cfg, ranks).replicas
  local batch = cfg.data.rollout_batch_size
  local most = cfg.data.max_response_length
  if replicas > batch then
    error(("data.rollout_batch_size=%d, and there are %d replicas: each needs a prompt")
      :format(batch, replicas), 0)
  end
  if asked.answer and asked.answer > most then
    local message = "plan: answer_tokens=%d is more than data.max_response_length=%d, where "
      .. "answers end"
    mistake.raise(message:format(asked.answer, most))
  end
  if asked.rate and ranks == 1 then
    mistake.raise("plan: gb_per_second is about several ranks, one sends nothing: add --ranks W")
  end
end

-- ---- what is sent ----
function M.parameters(cfg, trained)
  local actor = cfg.worker.actor
  local adapted = actor.model.lora.rank > 0
  local list = {}
  for i, w in ipairs(trained) do
    local n = 1
    for _, size in ipairs(w.shape) do n = n * size end
    local p = { elements = n, gradient = 4, weight = 4, adds = 1 }
    if not adapted then
      p.weight = WIDTH[actor.model.dtype]
      if #w.shape > 1 then p.gradient = WIDTH[actor.grad_dtype] end
      -- Copies of a slice, and whole weights whose gradients are parts (train/shards.lua).
      if w.copies > 1 and (w.slice or w.adds) then p.adds = w.copies end
    end
    list[i] = p
  end
  return list
end

function M.model(cfg, vl, trained)
  return { layers = vl.dims.layers, hidden = vl.dims.hidden, vocab = vl.dims.vocab,
    width = WIDTH[cfg.worker.actor.model.dtype],
    recompute = cfg.worker.actor.model.enable_gradient_checkpointing,
    parameters = M.parameters(cfg, trained) }
end

function M.work(cfg, state)
  local n = cfg.worker.rollout.n
  local answer = state.answer or cfg.data.max_response_length
  local prompts = cfg.data.rollout_batch_size
  local prompt = #state.input.input_ids
  local updates = math.max(1, math.floor(prompts / cfg.worker.actor.global_batch_size))
  local stream = { tokens = prompt + n * (answer - 1), rows = n * answer, times = prompts }
  local passes = { stream }
  local pictured = 0
  if state.input.pixel_values then pictured = state.vl:vision_tokens(state.input) * prompts end
  local again = cfg.worker.actor.freeze_vision_tower and 0 or pictured
  return {
    shards = state.shards, replicas = state.replicas, updates = updates,
    shard_state = cfg.worker.actor.optim.shard_state,
    update = passes, reference = state.reference and passes or {},
    sampling = { { tokens = prompt, rows = 1, times = prompts },
      { tokens = n * prompts / state.replicas, rows = n * prompts / state.replicas,
        times = (answer - 1) * state.replicas } },
    image_tokens = { sampling = pictured, reference = state.reference and again or 0,
      update = again },
  }
end

function M.wire(cfg, state, trained)
  return wire.step(M.model(cfg, state.vl, trained), M.work(cfg, state))
end

-- ---- text ----
local function gb(bytes) return ("%.2f GB"):format(bytes / GB) end

local function counted(n, word)
  if n == 1 then return "1 " .. word end
  return ("%d %ss"):format(n, word)
end

function M.print(cfg, plan, trained, rate)
  local state = plan.state
  local ranks = state.shards * state.replicas
  print(("%d ranks: %s of %s; what a rank sends in a step"):format(ranks,
    counted(state.replicas, "replica"), counted(state.shards, "shard")))
  local list = M.wire(cfg, state, trained)
  for _, row in ipairs(list) do
    print(("  %-34s %12s  %d collectives"):format(row.name, gb(row.bytes / ranks), row.calls))
  end
  local bytes, calls = wire.total(list, ranks)
  print(("  %-34s %12s  %d collectives"):format("together", gb(bytes), calls))
  for _, each in ipairs(rate and { rate } or RATES) do
    print(("  at %6.2f GB/s and %d us %12.1f s"):format(each, LATENCY * 1e6,
      bytes / each / GB + calls * LATENCY))
  end
end

return M
