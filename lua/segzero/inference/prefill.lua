-- prefill.lua - fills the cache: computes prompts with their images and the tokens of readmitted
-- answers, and samples the first token of every new answer.
--
--   prefill.run(call, chunk)      chunk: what the scheduler admits ({prompts, started, resumed})
--   prefill.release(call, groups) frees what groups and images still hold, at the end of a call
--
-- call is one call of generate (generate.lua): vl, opts, cache, stats, images, most. call.images is
-- vision_cache.share(inputs): each image goes through the vision tower once per call. An entry has
--   computed    its features as part of this stream's result, valid until the stream ends
--   tensor      a copy for later streams, or features that the vision cache keeps
--   kept        the vision cache owns tensor

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local sampling = require "segzero.inference.sampling"
local streams = require "segzero.inference.streams"
local vision_cache = require "segzero.inference.vision_cache"

local C = core.C

local M = {}

-- ---- image features ----
-- The entries of the inputs' images, and those of them that must go through the tower now.
local function entries_of(call, inputs)
  local entries = {}
  local fresh = {}
  for _, input in ipairs(inputs) do
    local e = call.images[input]
    if e then
      entries[#entries + 1] = e
      if not e.tensor then
        e.tensor = vision_cache.get(call.vl, e.input)
        e.kept = e.tensor ~= nil
      end
      if not e.tensor and not e.pending then
        e.pending = true
        fresh[#fresh + 1] = e
      end
    end
  end
  return entries, fresh
end

-- Features of the images of a stream's prompts, in the order of their tokens; nil without images.
local function features_of(call, inputs)
  local vl = call.vl
  local entries, fresh = entries_of(call, inputs)
  if #entries == 0 then return nil end

  -- Run the new images through the tower together.
  local all
  if #fresh > 0 then
    local list = {}
    for i, e in ipairs(fresh) do list[i] = e.input end
    all = vl:vision(list)
    local first = 0
    for _, e in ipairs(fresh) do
      local n = vl:vision_tokens(e.input)
      e.pending = nil
      e.computed = all:narrow(first, n)
      first = first + n
    end
  end
  call.stats.images = call.stats.images + #fresh

  local parts = {}
  for i, e in ipairs(entries) do
    parts[i] = e.tensor or e.computed
    e.left = e.left - 1
  end
  if #fresh == #entries then return all end
  return vision_cache.concatenate(parts)
end

-- After a stream: keeps the features that other rows or the caller need, and releases the rest.
local function keep_features(call, inputs)
  for _, input in ipairs(inputs) do
    local e = call.images[input]
    if e and e.computed then
      e.kept = call.opts.keep_vision
      if e.kept or e.left > 0 then e.tensor = e.computed:clone() end
      e.computed = nil
    end
    if e and e.kept then vision_cache.put(call.vl, input, e.tensor) end
    if e and not e.kept and e.tensor and e.left <= 0 then
      e.tensor:free()
      e.tensor = nil
    end
  end
end

-- ---- first tokens ----
-- answers[i] follows the prompt whose last state is row prompt_row[i] of hidden. The logits are
-- computed once per prompt.
local function first_tokens(call, hidden, answers, prompt_row)
  local start = C.sz_seconds()
  local logits = call.vl:logits(hidden):gather_rows(packing.list(prompt_row))
  call:add_time("prefill", start)
  sampling.sample(call, answers, logits)
end

-- New answers by group.
local function by_group(started)
  local waiting = {}
  for _, a in ipairs(started) do
    waiting[a.group] = waiting[a.group] or {}
    table.insert(waiting[a.group], a)
  end
  return waiting
end

-- The prompts of a stream and the answers that start from them: {inputs, groups, last_rows,
-- answers, prompt_row}. Removes these answers from `waiting`.
local function wanted_of(call, pieces, waiting)
  local w = { inputs = {}, groups = {}, last_rows = {}, answers = {}, prompt_row = {} }
  for _, p in ipairs(pieces) do
    call.stats.prompt_tokens = call.stats.prompt_tokens + p.count
    local g = p.group
    if not p.answer then
      w.inputs[#w.inputs + 1] = g.input
      if not g.hidden and waiting[g] then
        w.groups[#w.groups + 1] = g
        w.last_rows[#w.last_rows + 1] = p.last
        for _, a in ipairs(waiting[g]) do
          w.answers[#w.answers + 1] = a
          w.prompt_row[#w.prompt_row + 1] = #w.groups - 1
        end
        waiting[g] = nil
      end
    end
  end
  return w
end

-- Computes one stream of pieces.
local function run_stream(call, pieces, waiting)
  local start = C.sz_seconds()
  local stream = streams.stream_of(call.vl, pieces)
  local wanted = wanted_of(call, pieces, waiting)
  local features = features_of(call, wanted.inputs)
  start = call:add_time("vision", start)

  local rows = wanted.last_rows
  if #rows == 0 then rows = { 0 } end
  local hidden = call.vl:hidden(stream, features, {
    rows = packing.list(rows), cache = call.cache, cache_rows = stream.cache_rows,
  })
  keep_features(call, wanted.inputs)
  -- A group whose answers do not all start now needs its prompt's last state again.
  for i, g in ipairs(wanted.groups) do
    if g.started < call.opts.n then g.hidden = hidden:narrow(i - 1, 1):clone() end
  end
  call:add_time("prefill", start)
  if #wanted.answers > 0 then first_tokens(call, hidden, wanted.answers, wanted.prompt_row) end
end

function M.run(call, chunk)
  local waiting = by_group(chunk.started)
  for _, pieces in ipairs(streams.split(chunk, call.most)) do
    tensor.step(run_stream, call, pieces, waiting)
  end
  -- Answers of prompts that were computed earlier.
  for g, answers in pairs(waiting) do
    local prompt_row = {}
    for i = 1, #answers do prompt_row[i] = 0 end
    tensor.step(first_tokens, call, g.hidden, answers, prompt_row)
    if g.started == call.opts.n then
      g.hidden:free()
      g.hidden = nil
    end
  end
end

function M.release(call, groups)
  for _, g in ipairs(groups) do
    if g.hidden then g.hidden:free() end
  end
  for _, e in pairs(call.images) do
    if e.tensor and not e.kept then e.tensor:free() end
  end
end

return M
