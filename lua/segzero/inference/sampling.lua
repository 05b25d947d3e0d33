-- sampling.lua - samples one token for each of several answers.
--
--   sampling.sample(call, answers, logits)            from logits f32 [answers, vocab]
--   sampling.decode(call, answers, stream)            on a GPU: runs the network on their last
--                                                     tokens and samples in one call (vl:decode);
--                                                     if sampling.decodes_together(call, answers)
--
-- call is one call of generate (generate.lua): vl, opts, settings, stops, cache, stats. Tokens and
-- log-probabilities are appended to the answers; those that end get a finish.
-- An answer with fewer tokens than min_new_tokens (or a prompt with it than min_length) gets no
-- stop token: transformers gives those -inf, too.
-- A model that is split over shards samples on the first one, and all get its tokens.
-- The random number of a token depends on (seed, row id, answer number, position) only.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local lock_step = require "segzero.core.lock_step"
local answer_text = require "segzero.inference.answer_text"
local packing = require "segzero.inference.packing"

local C = core.C
local check = core.check

local M = {}

-- Which tokens the prompt or the answer contains, u8 [rows, vocab], for the repetition penalty.
local function seen_tokens(vl, answers)
  local vocab = vl.dims.vocab
  local seen = tensor.zeros({ #answers, vocab }, { dtype = "u8" })
  local p = tensor.data(seen)
  for i, a in ipairs(answers) do
    local row = p + (i - 1) * vocab
    for _, id in ipairs(a.group.input.input_ids) do row[id] = 1 end
    for _, id in ipairs(a.ids) do row[id] = 1 end
  end
  return seen
end

-- Whether an answer may not end yet.
local function is_short(call, a)
  local least = call.opts.min_new_tokens
  if not least and call.opts.min_length then
    least = call.opts.min_length - #a.group.input.input_ids
  end
  return least ~= nil and #a.ids < least
end

-- {{answers =, places = in the list, is_short =}, ...}: those that may end and those that may not.
local function by_length(call, answers)
  if not call.opts.min_new_tokens and not call.opts.min_length then
    return { { answers = answers } }
  end
  local may_end = { answers = {}, places = {}, is_short = false }
  local short = { answers = {}, places = {}, is_short = true }
  for i, a in ipairs(answers) do
    local part = may_end
    if is_short(call, a) then part = short end
    table.insert(part.answers, a)
    table.insert(part.places, i - 1)
  end
  local parts = {}
  for _, part in ipairs { may_end, short } do
    if #part.answers > 0 then parts[#parts + 1] = part end
  end
  return parts
end

-- The model's banned tokens, with the stop tokens for answers that may not end.
local function banned_tokens(call, without_stops)
  local banned = call.vl:banned_tokens()
  if not without_stops then return banned end
  if not call.banned_with_stops then
    local vocab = call.vl.dims.vocab
    local copy = ffi.new("uint8_t[?]", vocab)
    ffi.copy(copy, banned, vocab)
    for id in pairs(call.stops.ids) do
      if id >= 0 and id < vocab then copy[id] = 1 end
    end
    call.banned_with_stops = copy
  end
  return call.banned_with_stops
end

-- The arguments of sz_sample as C arrays.
local function new_draw(call, answers, without_stops)
  local count = #answers
  local draw = {
    sampling = call.settings,
    banned = banned_tokens(call, without_stops),
    row_id = ffi.new("int64_t[?]", count),
    answer_id = ffi.new("int32_t[?]", count),
    position = ffi.new("int32_t[?]", count),
    token = ffi.new("int32_t[?]", count),
    logprob = ffi.new("float[?]", count),
  }
  for i, a in ipairs(answers) do
    draw.row_id[i - 1] = a.group.row_id
    draw.answer_id[i - 1] = a.index - 1
    draw.position[i - 1] = #a.ids
  end
  if call.opts.repetition_penalty ~= 1 then
    draw.seen_tensor = seen_tokens(call.vl, answers)
    draw.seen = tensor.data(draw.seen_tensor)
  end
  return draw
end

local function finish_of(call, a, id)
  local stops = call.stops
  if stops.ids[id] then return "stop" end
  if stops.texts and answer_text.completes(call.vl, stops.texts, a, id) then return "stop" end
  if #a.ids >= call.opts.max_new_tokens then return "length" end
end

-- Appends the sampled tokens to the answers.
local function take(call, answers, draw)
  local opts = call.opts
  for i, a in ipairs(answers) do
    local id = draw.token[i - 1]
    a.ids[#a.ids + 1] = id
    a.logprobs[#a.logprobs + 1] = draw.logprob[i - 1]
    a.finish = finish_of(call, a, id)
    if opts.on_token then opts.on_token(a, id) end
    if opts.on_text then answer_text.show(call.vl, a, id, opts.on_text) end
  end
  if draw.seen_tensor then draw.seen_tensor:free() end
  call.stats.tokens = call.stats.tokens + #answers
end

local function draw_from(call, part, logits)
  local draw = new_draw(call, part.answers, part.is_short)
  local shards = call.vl.shards
  lock_step.tokens(shards and shards.group, draw, #part.answers, function()
    check(C.sz_sample(logits.ptr, draw.sampling, draw.banned, draw.seen, draw.row_id,
      draw.answer_id, draw.position, draw.token, draw.logprob))
  end)
  take(call, part.answers, draw)
end

function M.sample(call, answers, logits)
  local start = C.sz_seconds()
  local parts = by_length(call, answers)
  for _, part in ipairs(parts) do
    local rows = logits
    if #parts > 1 then rows = logits:gather_rows(packing.list(part.places)) end
    draw_from(call, part, rows)
  end
  call:add_time("sampling", start, true)
end

-- Whether one call of decode can sample for all of them.
function M.decodes_together(call, answers)
  return #by_length(call, answers) == 1
end

function M.decode(call, answers, stream)
  local start = C.sz_seconds()
  local draw = new_draw(call, answers, is_short(call, answers[1]))
  local ok, why = pcall(call.vl.decode, call.vl, stream, call.cache, draw)
  -- Shards have all logits, and sample the same; the first one's tokens count on any device.
  local shards = call.vl.shards
  lock_step.tokens(shards and shards.group, draw, #answers, function()
    if not ok then error(why, 0) end
  end)
  if not ok then error(why, 0) end
  start = call:add_time("decode", start, true)
  take(call, answers, draw)
  call:add_time("sampling", start, true)
end

return M
