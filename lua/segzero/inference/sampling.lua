-- sampling.lua - samples one token for each of several answers.
--
--   sampling.sample(call, answers, logits)            from logits f32 [answers, vocab]
--   sampling.decode(call, answers, stream)            on a GPU: runs the network on their last
--                                                     tokens and samples in one call (vl:decode)
--
-- call is one call of generate (generate.lua): vl, opts, settings, stops, cache, stats. Tokens and
-- log-probabilities are appended to the answers; those that end get a finish.
-- The random number of a token depends on (seed, row id, answer number, position) only.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local answer_text = require "segzero.inference.answer_text"

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

-- The arguments of sz_sample as C arrays.
local function new_draw(call, answers)
  local count = #answers
  local draw = {
    sampling = call.settings,
    banned = call.vl:banned_tokens(),
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

function M.sample(call, answers, logits)
  local start = C.sz_seconds()
  local draw = new_draw(call, answers)
  check(C.sz_sample(logits.ptr, draw.sampling, draw.banned, draw.seen, draw.row_id, draw.answer_id,
    draw.position, draw.token, draw.logprob))
  take(call, answers, draw)
  call:add_time("sampling", start, true)
end

function M.decode(call, answers, stream)
  local start = C.sz_seconds()
  local draw = new_draw(call, answers)
  call.vl:decode(stream, call.cache, draw)
  start = call:add_time("decode", start, true)
  take(call, answers, draw)
  call:add_time("sampling", start, true)
end

return M
