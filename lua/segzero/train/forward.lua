-- forward.lua - runs a model over micro-batches of whole answers: log-probability and entropy of
-- every answer token.
--
--   forward.run(model, batch, options, f)        batch: one of micro_batches.split
--   forward.reference(model, batches, options, tick)
--                        sets sample.reference: a number for each token. tick(i), if given, is
--                        called after batch i
--
-- f(runs, logprob, entropy) -> loss, after     is called once; for a micro-batch with chunks, once
-- for each chunk and once more for answers of one token.
--   runs     {{sample =, first =, last =}, ...}: which answer tokens the tensors have, in this
--            order. Every call has whole answers, but an answer's tokens may be spread out
--   logprob, entropy     f32 [tokens]
--   loss     one element to call backward() on, or nil
--   after    nil, or a function that is called after the backward pass
-- options = {temperature =, recompute =, frozen_vision =}
--
-- A micro-batch without chunks is one packed stream. With chunks the prompt is a stream of its own,
-- which also predicts the first token of each answer, and each chunk is a stream that continues it
-- (inference/packing.lua). A chunk's loss needs the first tokens' log-probabilities too. There they
-- are leaves with the same values; the gradients that the leaves collect go into the prompt's
-- stream when its own backward pass runs, after all chunks. Leaves out: the loss (update.lua).

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local offload = require "segzero.models.offload"
local packing = require "segzero.inference.packing"
local timer = require "segzero.log.timer"

local M = {}

local function recording() return core.C.sz_grad_enabled() == 1 end

local function run_stream(model, groups, features, options, prefix)
  local stream = packing.stream(groups, model.image_token_id)
  local hidden = model:hidden(stream, features, {
    rows = stream.rows, prefix = prefix, recompute = options.recompute,
  })
  return model:logprob_of(hidden, stream.targets, options.temperature)
end

-- Features of the images in the micro-batch. A frozen tower runs without recording, because it has
-- no gradients.
local function run_vision(model, batch, options)
  local inputs = {}
  for i, group in ipairs(batch.groups) do inputs[i] = group.input end
  if options.frozen_vision then return tensor.no_grad(model.vision, model, inputs) end
  return model:vision(inputs, { recompute = options.recompute })
end

-- Runs backward down to tape length `from`; loss may be nil.
local function backward(loss, after, from)
  if not loss then return end
  timer.enter "backward"
  loss:backward(from)
  timer.enter "forward"
  if after then after() end
end

-- ---- whole groups ----
local function run_whole(model, batch, options, f)
  local packed = {}
  local runs = {}
  for i, group in ipairs(batch.groups) do
    packed[i] = { input = group.input, answers = {} }
    for k, sample in ipairs(group.samples) do
      packed[i].answers[k] = sample.ids
      runs[#runs + 1] = { sample = sample, first = 1, last = #sample.ids }
    end
  end
  local features = run_vision(model, batch, options)
  local logprob, entropy = run_stream(model, packed, features, options)
  local loss, after = f(runs, logprob, entropy)
  backward(loss, after, 0)
end

-- ---- a group in chunks ----
-- f32 [a] and f32 [b] -> [a + b], with gradients.
local function concatenated(x, y)
  local a = x:numel()
  local b = y:numel()
  local places = {}
  for i = 1, b do places[i] = a + i - 1 end
  local padded = x:reshape(a, 1):pad_rows(b)
  return padded:index_copy(packing.list(places), y:reshape(b, 1)):reshape(a + b)
end

-- f32 [n] -> its elements at these places (from 0), with a gradient.
local function picked(x, places)
  return x:reshape(x:numel(), 1):gather_rows(packing.list(places)):reshape(#places)
end

local function read(t)
  local host = t:values()
  local data = tensor.data(host)
  local list = {}
  for i = 1, host:numel() do list[i] = data[i - 1] end
  return list
end

-- A leaf with these values. It collects a gradient if gradients are recorded.
local function leaf_of(values, device)
  local t = tensor.new(values, { device = device })
  if recording() then t:requires_grad(true) end
  return t
end

-- One chunk: its samples' later tokens are a stream; their first tokens are leaves. first =
-- {logprob =, entropy =, place = {[sample] = i}}, values by number. Returns nothing; the leaves'
-- gradients go to grads.logprob, grads.entropy.
local function run_chunk(model, group, chunk, prefix, options, first, grads, f)
  local from = tensor.recorded()
  local ids = {}
  local runs = {}
  local logprobs = {}
  local entropies = {}
  for k, sample in ipairs(chunk) do
    local place = first.place[sample]
    ids[k] = sample.ids
    runs[k] = { sample = sample, first = 1, last = 1 }
    logprobs[k] = first.logprob[place]
    entropies[k] = first.entropy[place]
  end
  for _, sample in ipairs(chunk) do
    runs[#runs + 1] = { sample = sample, first = 2, last = #sample.ids }
  end

  local continuation = { input = group.input, answers = ids, continues = true }
  local logprob, entropy = run_stream(model, { continuation }, nil, options, prefix)
  local device = logprob:device()
  local leaves = { logprob = leaf_of(logprobs, device), entropy = leaf_of(entropies, device) }
  local loss, after = f(runs, concatenated(leaves.logprob, logprob),
    concatenated(leaves.entropy, entropy))
  backward(loss, after, from)

  for name, leaf in pairs(leaves) do
    local grad = leaf:grad()
    local values = grad and read(grad) or {}
    for k, sample in ipairs(chunk) do grads[name][first.place[sample]] = values[k] or 0 end
  end
end

-- The sum of gradient * tensor over the first tokens: its gradient is what the chunks' leaves
-- collected.
local function first_token_loss(logprob, entropy, grads)
  local device = logprob:device()
  local by_logprob = logprob * tensor.new(grads.logprob, { device = device })
  local by_entropy = entropy * tensor.new(grads.entropy, { device = device })
  return by_logprob:sum() + by_entropy:sum()
end

local function run_chunks(model, batch, options, f)
  local group = batch.groups[1]
  local prompt = { input = group.input, answers = {} }
  local grads = { logprob = {}, entropy = {} }
  local place = {}
  local alone = {}                  -- answers of one token: runs, and their places
  local alone_places = {}
  for k, sample in ipairs(group.samples) do
    prompt.answers[k] = { sample.ids[1] }
    place[sample] = k
    grads.logprob[k] = 0
    grads.entropy[k] = 0
    if #sample.ids == 1 then
      alone[#alone + 1] = { sample = sample, first = 1, last = 1 }
      alone_places[#alone] = k - 1
    end
  end

  -- The prompt and the first tokens; the keys and values that the chunks see are kept in prefix.
  local prefix = {}
  local features = run_vision(model, batch, options)
  local logprob, entropy = run_stream(model, { prompt }, features, options, prefix)
  local first = { logprob = read(logprob), entropy = read(entropy), place = place }
  for _, chunk in ipairs(batch.chunks) do
    tensor.step(run_chunk, model, group, chunk, prefix, options, first, grads, f)
  end

  -- The prompt's backward pass comes last, when all chunks have added gradients to its keys, values
  -- and first tokens.
  local loss, after
  if #alone > 0 then
    loss, after = f(alone, picked(logprob, alone_places), picked(entropy, alone_places))
  end
  if recording() then
    local rest = first_token_loss(logprob, entropy, grads)
    if loss then rest = loss + rest end
    loss = rest
  end
  backward(loss, after, 0)
end

function M.run(model, batch, options, f)
  local run = run_whole
  if batch.chunks then run = run_chunks end
  tensor.step(run, model, batch, options, f)
end

-- ---- the reference ----
local function keep_reference(runs, logprob)
  local values = read(logprob)
  local at = 0
  for _, run in ipairs(runs) do
    run.sample.reference = run.sample.reference or {}
    for i = run.first, run.last do
      at = at + 1
      run.sample.reference[i] = values[at]
    end
  end
end

function M.reference(model, batches, options, tick)
  local before = timer.enter "reference"
  offload.using(model, function()
    for i, batch in ipairs(batches) do
      tensor.no_grad(M.run, model, batch, options, keep_reference)
      if tick then tick(i) end
    end
  end)
  timer.enter(before)
end

return M
