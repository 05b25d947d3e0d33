-- plan_wire.lua - how many bytes the ranks of a training step send to each other, by a formula.
--
--   local list = plan_wire.step(model, work)
--       {{name =, bytes = of all ranks together, calls = collectives of one rank}, ...}
--   local bytes, calls = plan_wire.total(list, ranks)      of one rank, on average
--
-- model: layers, hidden, vocab; width = bytes of an activation; recompute = with gradient
--   checkpointing; parameters = a list for gradients and weights: {elements =, gradient =, weight =
--   bytes of an element, adds = copies whose gradients are added}, one shard's
-- work: replicas (D), shards (T), shard_state, updates = optimizer steps; and streams of tokens of
--   all replicas together: {{tokens =, rows = those that predict a token, times = 1}, ...}
--   reference, update    packed groups: a prompt of p tokens and answers of a tokens each are
--                        p + sum(a - 1) tokens and sum(a) rows
--   sampling             prompts and decode steps; rows: of logits
--   image_tokens         of the vision passes of sampling, reference, update; 0: none
--
-- A sum of n bytes over T ranks sends 2 (T - 1) n together, and a gathering of n bytes (T - 1) n.
-- In a split model a layer's forward pass has two sums of [tokens, hidden], its backward pass two
-- more, and recomputing two more; the last layer's second half works on the wanted rows only. The
-- embedding is one sum. Log-probabilities are three numbers of each shard for a row; the sampler
-- gathers whole rows of logits. Between replicas gradients go to the rank that updates them
-- ((D - 1) n), and the weights come back.
-- Leaves out: values of Lua, such as sampled texts and metrics, which are a few kB for an answer;
-- the sums of adapters' narrow products in a split model.

local M = {}

local F32 = 4
local STATISTICS = 3            -- numbers of a shard for a row: maximum, sum, target

local function sum(ranks, bytes) return 2 * (ranks - 1) * bytes end
local function gather(ranks, bytes) return (ranks - 1) * bytes end

-- Sums of [tokens, hidden] in all layers: `each` in a layer, of which `wanted` are of the wanted
-- rows only in the last one.
local function in_layers(m, stream, each, wanted)
  local rows = math.min(stream.rows, stream.tokens)
  local tokens = each * m.layers * stream.tokens - wanted * (stream.tokens - rows)
  return tokens * m.hidden * m.width, each * m.layers
end

local function forward(m, stream)
  local bytes, calls = in_layers(m, stream, 2, 2)
  return bytes + stream.tokens * m.hidden * m.width, calls + 1
end

-- Forward, backward and what is computed again; the head's gradient of its input too.
local function trained(m, stream)
  local bytes, calls = forward(m, stream)
  -- The input of queries, keys and values is whole in the last layer, too.
  local back, back_calls = in_layers(m, stream, 2, 1)
  bytes = bytes + back + stream.rows * m.hidden * m.width
  calls = calls + back_calls + 1
  if not m.recompute then return bytes, calls end
  local again, again_calls = in_layers(m, stream, 2, 2)
  return bytes + again, calls + again_calls
end

-- The streams of a pass: bytes of all ranks. head(rows): what a shard's head sends together.
local function pass(streams, shards, f, head)
  local bytes = 0
  local calls = 0
  for _, stream in ipairs(streams) do
    local sums, count = f(stream)
    local times = stream.times or 1
    bytes = bytes + times * (sum(shards, sums) + gather(shards, head(stream.rows)))
    calls = calls + times * (count + 1)
  end
  return bytes, calls
end

local function inside(m, work, list)
  local shards = work.shards
  local function add(name, bytes, calls)
    list[#list + 1] = { name = name, bytes = bytes, calls = calls / work.replicas }
  end
  local function statistics(rows) return shards * STATISTICS * rows * F32 end
  local function logits(rows) return m.vocab * rows * F32 end
  local function forward_of(stream) return forward(m, stream) end
  local function trained_of(stream) return trained(m, stream) end
  local feature = m.hidden * m.width
  local images = work.image_tokens
  local bytes, calls = pass(work.sampling, shards, forward_of, logits)
  add("sampling", bytes + gather(shards, images.sampling * feature), calls)
  bytes, calls = pass(work.reference, shards, forward_of, statistics)
  add("reference", bytes + gather(shards, images.reference * feature), calls)
  bytes, calls = pass(work.update, shards, trained_of, statistics)
  add("update", bytes + gather(shards, images.update * feature), calls)
end

-- Gradients of slices that several shards have, and of what is whole, where they are parts.
local function copies(m, work, list)
  local bytes = 0
  local calls = 0
  for _, p in ipairs(m.parameters) do
    if p.adds > 1 then
      -- Each of the shards / adds groups adds up its own slice.
      local groups = work.shards / p.adds
      bytes = bytes + groups * sum(p.adds, p.elements * p.gradient)
      calls = calls + 1
    end
  end
  if calls == 0 then return end
  list[#list + 1] = { name = "gradients of repeated parts", calls = calls * work.updates,
    bytes = bytes * work.replicas * work.updates }
end

local function between(m, work, list)
  local gradients = 0
  local weights = 0
  for _, p in ipairs(m.parameters) do
    gradients = gradients + p.elements * p.gradient
    weights = weights + p.elements * p.weight
  end
  local groups = work.shards * work.updates
  if not work.shard_state then
    list[#list + 1] = { name = "gradients, to all replicas", calls = #m.parameters * work.updates,
      bytes = groups * sum(work.replicas, gradients) }
    return
  end
  list[#list + 1] = { name = "gradients, to their owners", calls = work.updates,
    bytes = groups * gather(work.replicas, gradients) }
  list[#list + 1] = { name = "weights, back to all", calls = work.updates,
    bytes = groups * gather(work.replicas, weights) }
end

function M.step(m, work)
  local list = {}
  if work.shards > 1 then
    inside(m, work, list)
    copies(m, work, list)
  end
  if work.replicas > 1 then between(m, work, list) end
  return list
end

function M.total(list, ranks)
  local bytes = 0
  local calls = 0
  for _, row in ipairs(list) do
    bytes = bytes + row.bytes
    calls = calls + row.calls
  end
  return bytes / ranks, calls
end

return M
