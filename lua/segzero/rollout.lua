-- rollout.lua - sampling: each prompt is computed once, then all its answers (of all groups) decode together over the shared
-- prompt cache.
--
--   rollout.generate(vl, inputs, {n =, temperature =, top_k =, top_p =, repetition_penalty =, max_new_tokens =, seed =,
--                                 stop_ids =, stop_strings =, row_ids =, max_cache_rows =, on_token =, on_text =, ignore_eos =})
--     -> for each input a list of n answers {ids =, text =, logprobs =, finish = "stop" | "length"}
--
-- Only what is asked for is done: a folder's generation_config.json counts for its stop ids alone (vl:generate reads the rest).
-- temperature 0 is greedy. ids end with the stop token that ended them; text leaves special tokens out. The random number of
-- a token depends on (seed, row id, answer number, position) alone, so an answer does not depend on its batch.
-- log-probabilities are those of softmax(logits / temperature) over the whole vocabulary: what the trainer computes.
-- stop_strings: an answer ends with the token that completes one of them, and nothing is cut off, as in transformers: what that
-- token has beyond stays, and the text may have begun in the prompt. on_text(i, piece, input): answer i's text as it is made,
-- whole characters only; the pieces together are text. on_token(answer, id): every token.
-- Vision tokens are never sampled. Prompts that do not fit max_cache_rows together are sampled one set after another.

local ffi = require "ffi"
local core = require "segzero.ffi"
local tensor = require "segzero.tensor"
local pack = require "segzero.pack"

local C, check = core.C, core.check

local M = {}

local DEFAULTS = { n = 1, temperature = 1, top_k = 0, top_p = 1, repetition_penalty = 1, max_new_tokens = 512, seed = 0, max_cache_rows = 1048576 }
local PREFILL_TOKENS = 8192      -- tokens of prompts computed in one stream

local function stop_set(vl, opts)
  local set = {}
  if opts.ignore_eos then return set end
  for _, id in ipairs(opts.stop_ids or vl:stop_ids()) do set[id] = true end
  return set
end

-- Vision tokens and the rows of the vocabulary that no token has: a model must not answer with a picture.
local function banned_tokens(vl)
  if vl.banned then return vl.banned end
  local banned = ffi.new("uint8_t[?]", vl.config.vocab)
  for _, name in ipairs { "vision_start_token_id", "vision_end_token_id", "vision_token_id", "image_token_id", "video_token_id" } do
    if vl[name] and vl[name] >= 0 and vl[name] < vl.config.vocab then banned[vl[name]] = 1 end
  end
  if vl:has_tokenizer() then
    for id = vl:tokenizer():size(), vl.config.vocab - 1 do banned[id] = 1 end
  end
  vl.banned = banned
  return banned
end

-- The growing state of a set of answers; one entry for each answer still running.
local function new_answer(group, index, row_id, prompt, room)
  return { group = group, index = index, row_id = row_id, prompt = prompt, room = room, ids = {}, logprobs = {}, waiting = {} }
end

-- ---- stop strings ----
-- {strings =, longest =}, or nil without any.
local function stop_texts(vl, strings)
  if strings == nil or #strings == 0 then return nil end
  if not vl:has_tokenizer() then error("generate: stop_strings need a tokenizer", 0) end
  local longest = 0
  for _, s in ipairs(strings) do
    if type(s) ~= "string" or s == "" then error("generate: stop_strings are texts, got " .. tostring(s), 0) end
    longest = math.max(longest, #s)
  end
  return { strings = strings, longest = longest }
end

-- The last bytes before a token, as many as a stop string may have there.
local function keep_tail(texts, bytes) return bytes:sub(math.max(1, #bytes - texts.longest + 2)) end

local function prompt_tail(vl, texts, input_ids)
  local tail, i = "", #input_ids
  while i > 0 and #tail < texts.longest - 1 do
    tail = vl:tokenizer():bytes(input_ids[i]) .. tail
    i = i - 1
  end
  return keep_tail(texts, tail)
end

-- Whether token id completes a stop string: one that ends inside the token's bytes.
local function completes(vl, texts, a, id)
  a.tail = a.tail or prompt_tail(vl, texts, a.prompt.input.input_ids)
  local before = #a.tail
  local bytes = a.tail .. vl:tokenizer():bytes(id)
  a.tail = keep_tail(texts, bytes)
  for _, s in ipairs(texts.strings) do
    if bytes:find(s, math.max(1, before - #s + 2), true) then return true end
  end
  return false
end

-- ---- text as it is made ----
-- Hands on what is whole: tokens that end inside a character wait for the rest of it (their text ends in U+FFFD).
local function show(vl, a, id, on_text)
  a.waiting[#a.waiting + 1] = id
  local piece = vl:tokenizer():decode(a.waiting, { skip_special_tokens = true })
  if not a.finish and piece:sub(-3) == "\239\191\189" then return end
  a.waiting = {}
  if piece ~= "" then on_text(a.index, piece, a.group) end
end

-- Runs the prompts in streams of up to PREFILL_TOKENS; returns the hidden state of each prompt's last token [g, h] (heap).
local function prefill(vl, groups, cache)
  local hidden = {}
  local from = 1
  while from <= #groups do
    local to, tokens = from, #groups[from].input.input_ids
    while to < #groups and tokens + #groups[to + 1].input.input_ids <= PREFILL_TOKENS do
      to = to + 1
      tokens = tokens + #groups[to].input.input_ids
    end
    local part, inputs = {}, {}
    for i = from, to do
      part[#part + 1] = { input = groups[i].input, answers = {} }
      inputs[#inputs + 1] = groups[i].input
    end
    hidden[#hidden + 1] = tensor.step(function()
      local stream = pack.stream(part, vl.image_token_id)
      local cache_rows, rows = pack.ints(tokens)
      local lasts, last = pack.ints(#part)
      local segments = tensor.data(stream.segments)
      local at = 0
      for i, g in ipairs(part) do
        local length, first = #g.input.input_ids, groups[from + i - 1].first_row
        for k = 0, length - 1 do rows[at + k] = first + k end
        pack.segment(segments, i - 1, at, length, first, length, 0, 0)
        at = at + length
        last[i - 1] = at - 1
      end
      return vl:hidden(stream, vl:vision(inputs), { rows = lasts, cache = cache, cache_rows = cache_rows }):clone()
    end)
    from = to + 1
  end
  return hidden
end

-- One stream with one token for each running answer; returns the hidden states [a, h].
local function decode(vl, running, cache)
  local count = #running
  local stream = {}
  local ids, positions, segments, rows, cache_rows
  stream.ids, ids = pack.ints(count)
  stream.positions, positions = pack.ints(3, count)
  stream.segments, segments = pack.ints(count, 6)
  cache_rows, rows = pack.ints(count)
  for i, a in ipairs(running) do
    local produced = #a.ids
    ids[i - 1] = a.ids[produced]
    for axis = 0, 2 do positions[axis * count + i - 1] = a.prompt.input.next_position + produced - 1 end
    rows[i - 1] = a.room + produced - 1
    pack.segment(segments, i - 1, i - 1, 1, a.room, produced, a.prompt.first_row, #a.prompt.input.input_ids)
  end
  return vl:hidden(stream, nil, { cache = cache, cache_rows = cache_rows })
end

-- Which tokens stand in the prompt or the answer, u8 [rows, vocab], for the repetition penalty.
local function seen_tokens(vl, running)
  local vocab = vl.config.vocab
  local seen = tensor.zeros({ #running, vocab }, { dtype = "u8" })
  local p = tensor.data(seen)
  for i, a in ipairs(running) do
    local row = p + (i - 1) * vocab
    for _, id in ipairs(a.prompt.input.input_ids) do row[id] = 1 end
    for _, id in ipairs(a.ids) do row[id] = 1 end
  end
  return seen, p
end

-- Samples a token for each running answer from logits [a, vocab]; returns the answers that go on.
local function sample(vl, running, logits, settings, opts, stops)
  local count = #running
  local row_id, answer, position = ffi.new("int64_t[?]", count), ffi.new("int32_t[?]", count), ffi.new("int32_t[?]", count)
  local token, logprob = ffi.new("int32_t[?]", count), ffi.new("float[?]", count)
  for i, a in ipairs(running) do
    row_id[i - 1], answer[i - 1], position[i - 1] = a.row_id, a.index - 1, #a.ids
  end
  local seen, seen_data
  if opts.repetition_penalty ~= 1 then seen, seen_data = seen_tokens(vl, running) end
  check(C.sz_sample(logits.ptr, settings, banned_tokens(vl), seen_data, row_id, answer, position, token, logprob))
  local going = {}
  for i, a in ipairs(running) do
    local id = token[i - 1]
    a.ids[#a.ids + 1] = id
    a.logprobs[#a.logprobs + 1] = logprob[i - 1]
    if stops[id] or stops.texts and completes(vl, stops.texts, a, id) then a.finish = "stop"
    elseif #a.ids >= opts.max_new_tokens then a.finish = "length"
    else going[#going + 1] = a end
    if opts.on_token then opts.on_token(a, id) end
    if opts.on_text then show(vl, a, id, opts.on_text) end
  end
  if seen then seen:free() end
  return going
end

-- Samples one set of groups that fit the cache together.
local function run(vl, groups, opts, settings, stops)
  local rows, answers = 0, {}
  for _, g in ipairs(groups) do
    g.first_row = rows
    rows = rows + #g.input.input_ids
    g.answers = {}
    for i = 1, opts.n do
      local a = new_answer(g.number, i, g.row_id, g, rows)
      rows = rows + opts.max_new_tokens
      g.answers[i], answers[#answers + 1] = a, a
    end
  end
  local cache = M.cache(vl, rows)
  local hidden = prefill(vl, groups, cache)
  local running = answers
  tensor.step(function()
    -- Every answer of a group starts from the same hidden state: the logits are computed once and repeated.
    local going, at = {}, 0
    for _, h in ipairs(hidden) do
      local here = h:shape()[1]
      local which, w = pack.ints(here * opts.n)
      local part = {}
      for i = 0, here * opts.n - 1 do
        w[i] = math.floor(i / opts.n)
        part[i + 1] = answers[at + i + 1]
      end
      at = at + here * opts.n
      for _, a in ipairs(sample(vl, part, vl:logits(h):gather_rows(which), settings, opts, stops)) do going[#going + 1] = a end
      h:free()
    end
    running = going
  end)
  while #running > 0 do
    tensor.step(function()
      running = sample(vl, running, vl:logits(decode(vl, running, cache)), settings, opts, stops)
    end)
    if C.sz_interrupt_pending() ~= 0 then
      C.sz_interrupt_set(0)
      error("interrupted", 0)
    end
  end
end

-- One cache is kept for each model and grown when needed, with some room so that prompts of other lengths fit it too: after a few
-- training steps none is allocated.
function M.cache(vl, rows)
  if not vl.cache or C.sz_cache_rows(vl.cache) < rows then
    rows = math.ceil(rows * 1.0625 / 256) * 256
    if vl.cache then C.sz_cache_free(ffi.gc(vl.cache, nil)) end
    vl.cache = nil
    vl.cache = ffi.gc(check(C.sz_qwen_cache(vl.c, rows)), C.sz_cache_free)
  end
  return vl.cache
end

M.max_cache_rows = DEFAULTS.max_cache_rows

-- Gives the cache's pages back to the system: an update that follows has the memory. The next generate() takes them again.
function M.rest(vl)
  if vl.cache then C.sz_cache_clear(vl.cache) end
end

-- For plans (sz_count_only): what sampling runs, once: the longest stream of prompts, the first tokens, and one token of every answer.
function M.count(vl, input, prompts, n)
  local length = #input.input_ids
  local together = math.max(1, math.min(prompts, math.floor(PREFILL_TOKENS / length)))
  local groups, running = {}, {}
  for i = 1, together do groups[i] = { input = input, first_row = (i - 1) * length } end
  local cache = ffi.gc(check(C.sz_qwen_cache(vl.c, together * length + 1)), C.sz_cache_free)
  local hidden = prefill(vl, groups, cache)
  for i = 1, prompts * n do running[i] = { ids = { 0 }, prompt = groups[1], room = together * length } end
  tensor.step(function()
    local which, w = pack.ints(prompts * n)
    for i = 0, prompts * n - 1 do w[i] = 0 end
    for _, h in ipairs(hidden) do
      vl:logits(h):gather_rows(which)
      h:free()
    end
  end)
  tensor.step(function() vl:logits(decode(vl, running, cache)) end)
  C.sz_cache_free(ffi.gc(cache, nil))
end

function M.generate(vl, inputs, options)
  local opts = {}
  for k, v in pairs(DEFAULTS) do opts[k] = v end
  for k, v in pairs(options or {}) do opts[k] = v end
  if opts.max_new_tokens < 1 or opts.n < 1 then error("generate: n and max_new_tokens must be at least 1", 2) end
  local settings = ffi.new("sz_sampling", { temperature = opts.temperature, top_k = opts.top_k, top_p = opts.top_p,
    repetition_penalty = opts.repetition_penalty, seed = opts.seed })
  local stops = stop_set(vl, opts)
  local ok, texts = pcall(stop_texts, vl, opts.stop_strings)
  if not ok then error(texts, 2) end
  stops.texts = texts
  if opts.on_text and not vl:has_tokenizer() then error("generate: on_text needs a tokenizer", 2) end

  local groups = {}
  for i, input in ipairs(inputs) do
    groups[i] = { input = input, number = i, row_id = opts.row_ids and opts.row_ids[i] or i - 1 }
  end
  tensor.no_grad(function()
    local from = 1
    while from <= #groups do
      local set, rows = {}, 0
      repeat
        local g = groups[from + #set]
        rows = rows + #g.input.input_ids + opts.n * opts.max_new_tokens
        if #set > 0 and rows > opts.max_cache_rows then break end
        set[#set + 1] = g
      until from + #set > #groups
      run(vl, set, opts, settings, stops)
      from = from + #set
    end
  end)

  local tokenizer = vl:has_tokenizer() and vl:tokenizer() or nil      -- without one, answers have ids only
  local out = {}
  for i, g in ipairs(groups) do
    out[i] = {}
    for k, a in ipairs(g.answers) do
      out[i][k] = { ids = a.ids, logprobs = a.logprobs, finish = a.finish, text = tokenizer and tokenizer:decode(a.ids, { skip_special_tokens = true }) }
    end
  end
  return out
end

return M
