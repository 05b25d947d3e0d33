-- rollout.lua - sampling: each prompt is computed once for its answers, the answers of many groups decode together, and the place
-- of one that has ended is taken at once.
--
--   rollout.generate(vl, inputs, {n =, temperature =, top_k =, top_p =, repetition_penalty =, max_new_tokens =, seed =,
--                                 stop_ids =, stop_strings =, row_ids =, ignore_eos =, on_token =, on_text =, on_answer =, on_group =,
--                                 cache_gib =, gpu_memory_utilization =, keep_vision =})
--     -> for each input a list of n answers {ids =, text =, logprobs =, finish = "stop" | "length"}
--     -> stats {tokens =, prompt_tokens =, steps =, pictures =, peak_running =, refills =, preemptions =, moved_rows =,
--               seconds = {vision =, prefill =, decode =, sampling =}}
--
-- Only what is asked for is done: a folder's generation_config.json counts for its stop ids alone (vl:generate reads the rest).
-- temperature 0 is greedy. ids end with the stop token that ended them; text leaves special tokens out. The random number of
-- a token depends on (seed, row id, answer number, position) alone, so an answer does not depend on its batch.
-- log-probabilities are those of softmax(logits / temperature) over the whole vocabulary: what the trainer computes.
-- stop_strings: an answer ends with the token that completes one of them, and nothing is cut off, as in transformers: what that
-- token has beyond stays, and the text may have begun in the prompt. on_text(i, piece, input): answer i's text as it is made,
-- whole characters only; the pieces together are text. on_token(answer, id): every token. on_answer(input, answer, i): an answer
-- that has ended, on_group(input, answers): the last of its group has; others still decode, and an error ends the call.
-- Vision tokens are never sampled. The cache has at most cache_gib GiB, on a device gpu_memory_utilization of what was free there,
-- but room for one prompt and one whole answer; scheduler.lua says who is in it. keep_vision: the tower's results stay with the
-- inputs (features.lua), for a caller that needs them again before the tower changes, and frees them.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local vision_cache = require "segzero.inference.vision_cache"
local scheduler = require "segzero.inference.scheduler"

local C, check = core.C, core.check

local M = {}

local DEFAULTS = { n = 1, temperature = 1, top_k = 0, top_p = 1, repetition_penalty = 1, max_new_tokens = 512, seed = 0,
  cache_gib = 4, gpu_memory_utilization = 0.6 }
local PREFILL_TOKENS = 8192      -- tokens of prompts computed in one stream
local BLOCK = scheduler.BLOCK

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

local function new_answer(group, index) return { group = group, index = index, ids = {}, logprobs = {}, waiting = {} } end

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
  a.tail = a.tail or prompt_tail(vl, texts, a.group.input.input_ids)
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
  if piece ~= "" then on_text(a.index, piece, a.group.number) end
end

-- ---- the network over the cache ----
-- A piece is some consecutive tokens of a prompt or of an answer, to be run with what stands before them in the cache:
-- {group =, answer = a | nil, first = tokens before, count =}. Several make one stream; cache_rows: where each token's keys go.
local function stream_of(vl, pieces)
  local total, pictures = 0, 0
  for _, p in ipairs(pieces) do
    total = total + p.count
    for _, id in ipairs(p.answer and {} or p.group.input.input_ids) do
      if id == vl.image_token_id then pictures = pictures + 1 end
    end
  end
  local s, ids, positions, segments, rows, image_rows = {}
  s.ids, ids = packing.ints(total)
  s.positions, positions = packing.ints(3, total)
  s.segments, segments = packing.ints(#pieces, 6)
  s.cache_rows, rows = packing.ints(total)
  if pictures > 0 then s.image_rows, image_rows = packing.ints(pictures) end
  local at, picture = 0, 0
  for i, p in ipairs(pieces) do
    local input, first, count = p.group.input, p.first, p.count
    local prompt_row, length = p.group.range.start * BLOCK, #input.input_ids
    local list = p.answer and p.answer.ids or input.input_ids
    local row = p.answer and p.answer.range.start * BLOCK or prompt_row
    local places = not p.answer and tensor.data(input.position_ids)
    for k = 0, count - 1 do
      local id = list[first + k + 1]
      ids[at + k], rows[at + k] = id, row + first + k
      for axis = 0, 2 do positions[axis * total + at + k] = places and places[axis * length + k] or input.next_position + first + k end
      if places and id == vl.image_token_id then
        image_rows[picture] = at + k
        picture = picture + 1
      end
    end
    packing.segment(segments, i - 1, at, count, row, first + count, p.answer and prompt_row or 0, p.answer and length or 0)
    at = at + count
    p.last = at - 1
  end
  return s
end

-- One stream with one token for each running answer.
local function decode_stream(vl, running)
  local pieces = {}
  for i, a in ipairs(running) do pieces[i] = { group = a.group, answer = a, first = #a.ids - 1, count = 1 } end
  return stream_of(vl, pieces)
end

-- Its hidden states [a, h].
local function decode(vl, running, cache)
  local stream = decode_stream(vl, running)
  return vl:hidden(stream, nil, { cache = cache, cache_rows = stream.cache_rows })
end

-- Pieces in streams of up to `most` tokens: prompts whole, the tokens of answers that come back cut where a stream is full.
local function in_streams(chunk, most)
  local streams, tokens = {}, math.huge
  local function put(piece)
    if tokens + piece.count > most then
      streams[#streams + 1] = {}
      tokens = 0
    end
    table.insert(streams[#streams], piece)
    tokens = tokens + piece.count
  end
  for _, g in ipairs(chunk.prompts) do put { group = g, first = 0, count = #g.input.input_ids } end
  for _, a in ipairs(chunk.resumed) do
    local done, all = 0, #a.ids - 1
    while done < all do
      local count = math.min(all - done, tokens < most and most - tokens or most)
      put { group = a.group, answer = a, first = done, count = count }
      done = done + count
    end
  end
  return streams
end

-- Which tokens stand in the prompt or the answer, u8 [rows, vocab], for the repetition penalty.
local function seen_tokens(vl, answers)
  local vocab = vl.config.vocab
  local seen = tensor.zeros({ #answers, vocab }, { dtype = "u8" })
  local p = tensor.data(seen)
  for i, a in ipairs(answers) do
    local row = p + (i - 1) * vocab
    for _, id in ipairs(a.group.input.input_ids) do row[id] = 1 end
    for _, id in ipairs(a.ids) do row[id] = 1 end
  end
  return seen, p
end

-- ---- one call of generate ----
-- {vl, opts, settings, stops, cache, stats, pictures, most = tokens of a stream of prompts}
local methods = {}
local mt = { __index = methods }

-- Adds the time since `from` to a phase and returns now. What a device has been given is waited for: the next phase would do it. done: it is.
function methods:spent(phase, from, done)
  if self.vl.device ~= "cpu" and not done then check(C.sz_device_synchronise()) end
  local now = C.sz_seconds()
  self.stats.seconds[phase] = self.stats.seconds[phase] + now - from
  return now
end

-- Samples a token for each of these answers from logits [answers, vocab], or, on a device, from the stream of their last tokens; those that end
-- get a finish.
function methods:sample(answers, logits, stream)
  local vl, opts, stops = self.vl, self.opts, self.stops
  local count, start = #answers, C.sz_seconds()
  local row_id, answer, position = ffi.new("int64_t[?]", count), ffi.new("int32_t[?]", count), ffi.new("int32_t[?]", count)
  local token, logprob = ffi.new("int32_t[?]", count), ffi.new("float[?]", count)
  for i, a in ipairs(answers) do
    row_id[i - 1], answer[i - 1], position[i - 1] = a.group.row_id, a.index - 1, #a.ids
  end
  local seen, seen_data
  if opts.repetition_penalty ~= 1 then seen, seen_data = seen_tokens(vl, answers) end
  if logits then
    check(C.sz_sample(logits.ptr, self.settings, banned_tokens(vl), seen_data, row_id, answer, position, token, logprob))
  else
    check(C.sz_qwen_decode(vl.c, stream.ids.ptr, stream.positions.ptr, stream.segments.ptr, self.cache, stream.cache_rows.ptr, self.settings,
      banned_tokens(vl), seen_data, row_id, answer, position, token, logprob))
    start = self:spent("decode", start, true)
  end
  for i, a in ipairs(answers) do
    local id = token[i - 1]
    a.ids[#a.ids + 1] = id
    a.logprobs[#a.logprobs + 1] = logprob[i - 1]
    if stops[id] or stops.texts and completes(vl, stops.texts, a, id) then a.finish = "stop"
    elseif #a.ids >= opts.max_new_tokens then a.finish = "length" end
    if opts.on_token then opts.on_token(a, id) end
    if opts.on_text then show(vl, a, id, opts.on_text) end
  end
  if seen then seen:free() end
  self.stats.tokens = self.stats.tokens + count
  self:spent("sampling", start, true)
end

-- First tokens: answers[i] follows the prompt whose last state is row which[i] of hidden. The logits are computed once a prompt.
function methods:start(hidden, answers, which)
  local from = C.sz_seconds()
  local logits = self.vl:logits(hidden):gather_rows(packing.list(which))
  self:spent("prefill", from)
  self:sample(answers, logits)
end

-- Features of the pictures of a stream's prompts; each picture goes through the tower once a call.
function methods:features(inputs)
  local vl, entries, fresh, list = self.vl, {}, {}, {}
  for _, input in ipairs(inputs) do
    local e = self.pictures[input]
    if e then
      entries[#entries + 1] = e
      if not e.tensor and vision_cache.get(vl, e.input) then e.tensor, e.kept = vision_cache.get(vl, e.input), true end
      if not e.tensor and not e.here then
        e.here, fresh[#fresh + 1], list[#list + 1] = true, e, e.input
      end
    end
  end
  if #entries == 0 then return nil end
  local all, at, parts = #fresh > 0 and vl:vision(list), 0, {}
  self.stats.images = self.stats.images + #fresh
  for _, e in ipairs(fresh) do
    local n = vision_cache.tokens(vl, e.input)
    e.here = all:narrow(at, n)
    at = at + n
  end
  for i, e in ipairs(entries) do
    parts[i] = e.tensor or e.here
    e.left = e.left - 1
  end
  return #fresh == #entries and all or vision_cache.concatenate(parts)
end

-- After the stream: keeps what other rows or the caller want, lets go of the rest.
function methods:keep_features(inputs)
  for _, input in ipairs(inputs) do
    local e = self.pictures[input]
    if e and e.here then
      e.kept = self.opts.keep_vision
      if e.kept or e.left > 0 then e.tensor = e.here:clone() end
      e.here = nil
    end
    if e and e.kept then vision_cache.put(self.vl, input, e.tensor) end
    if e and not e.kept and e.tensor and e.left <= 0 then
      e.tensor:free()
      e.tensor = nil
    end
  end
end

-- What entered: prompts and the tokens of answers that come back go into the cache, and every new answer gets its first token.
function methods:enter(chunk)
  local vl, by_group = self.vl, {}
  for _, a in ipairs(chunk.started) do
    by_group[a.group] = by_group[a.group] or {}
    table.insert(by_group[a.group], a)
  end
  for _, pieces in ipairs(in_streams(chunk, self.most)) do
    tensor.step(function()
      local from, inputs, lasts, answers, which, groups = C.sz_seconds(), {}, {}, {}, {}, {}
      local stream = stream_of(vl, pieces)
      for _, p in ipairs(pieces) do
        self.stats.prompt_tokens = self.stats.prompt_tokens + p.count
        if not p.answer then
          inputs[#inputs + 1] = p.group.input
          if not p.group.hidden and by_group[p.group] then
            lasts[#lasts + 1], groups[#groups + 1] = p.last, p.group
            for _, a in ipairs(by_group[p.group]) do answers[#answers + 1], which[#which + 1] = a, #lasts - 1 end
            by_group[p.group] = nil
          end
        end
      end
      local seen = self:features(inputs)
      from = self:spent("vision", from)
      local hidden = vl:hidden(stream, seen, { rows = packing.list(#lasts > 0 and lasts or { 0 }), cache = self.cache, cache_rows = stream.cache_rows })
      self:keep_features(inputs)
      -- A group whose answers do not all start now will want its prompt's last state again.
      for i, g in ipairs(groups) do
        if g.started < self.opts.n then g.hidden = hidden:narrow(i - 1, 1):clone() end
      end
      self:spent("prefill", from)
      if #answers > 0 then self:start(hidden, answers, which) end
    end)
  end
  for g, answers in pairs(by_group) do
    tensor.step(function()
      local which = {}
      for i = 1, #answers do which[i] = 0 end
      self:start(g.hidden, answers, which)
    end)
    if g.started == self.opts.n then
      g.hidden:free()
      g.hidden = nil
    end
  end
end

function methods:advance(running)
  tensor.step(function()
    local from = C.sz_seconds()
    if self.vl.device == "cpu" then
      local logits = self.vl:logits(decode(self.vl, running, self.cache))
      self:spent("decode", from)
      self:sample(running, logits)
    else
      local stream = decode_stream(self.vl, running)
      self:spent("decode", from, true)
      self:sample(running, nil, stream)
    end
  end)
  self.stats.steps = self.stats.steps + 1
end

-- Hands out what has ended. Callbacks run between steps, so what they compute is theirs.
function methods:deliver(ended)
  local vl, opts = self.vl, self.opts
  local tokenizer = vl:has_tokenizer() and vl:tokenizer() or nil      -- without one, answers have ids only
  for _, a in ipairs(ended) do
    local g = a.group
    local result = { ids = a.ids, logprobs = a.logprobs, finish = a.finish, text = tokenizer and tokenizer:decode(a.ids, { skip_special_tokens = true }) }
    g.results[a.index] = result
    if opts.on_answer then opts.on_answer(g.number, result, a.index) end
    g.delivered = (g.delivered or 0) + 1
    if opts.on_group and g.delivered == opts.n then opts.on_group(g.number, g.results) end
  end
end

function methods:run(groups, blocks)
  local plan = scheduler.new(groups, { n = self.opts.n, max_new_tokens = self.opts.max_new_tokens, blocks = blocks,
    move = function(to, from, count) check(C.sz_cache_move(self.cache, to * BLOCK, from * BLOCK, count * BLOCK)) end })
  while not plan:finished() do
    local chunk = plan:admit()
    if chunk then
      self:enter(chunk)
      self:deliver(plan:settle())
    end
    if #plan.running > 0 then
      plan:grow()
      self:advance(plan.running)
      self:deliver(plan:settle())
    end
    if C.sz_interrupt_pending() ~= 0 then
      C.sz_interrupt_set(0)
      error("interrupted", 0)
    end
  end
  for k, v in pairs(plan.stats) do self.stats[k] = v end
  self.stats.moved_rows = plan.pool.moved * BLOCK
end

-- ---- the cache ----
function M.row_bytes(vl)
  local c = vl.config
  return 2 * c.layers * c.kv_heads * c.head_dim * tensor.WIDTH[vl.dtype]
end

-- Rows that sampling takes for prompts of these lengths: what they can use, within the limit.
function M.cache_rows(vl, lengths, n, max_new_tokens, bytes)
  return scheduler.rows(lengths, n, max_new_tokens, bytes / M.row_bytes(vl) + 1e-3)     -- a limit that was made of rows stays one
end

-- On a device: a part of what was free there when this model was first sampled from.
local function cache_bytes(vl, opts)
  if vl.device == "cpu" then return opts.cache_gib * 2 ^ 30 end
  vl.device_free = vl.device_free or tonumber(C.sz_device_available(C.SZ_CUDA))
  return opts.gpu_memory_utilization * math.max(0, vl.device_free)
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

-- Gives the cache's memory back: an update that follows has it. The next generate() takes it again.
function M.release_cache(vl)
  if not vl.cache then return end
  if vl.device == "cpu" then return C.sz_cache_clear(vl.cache) end
  C.sz_cache_free(ffi.gc(vl.cache, nil))
  vl.cache = nil
end

-- ---- entry points ----
-- For plans (sz_dry_run): what sampling runs, once: the longest stream of prompts, the first tokens, and one token of every answer.
function M.count(vl, input, prompts, n)
  local length = #input.input_ids
  local together = math.max(1, math.min(prompts, math.floor(PREFILL_TOKENS / length)))
  local blocks, count = math.ceil(length / BLOCK), math.min(prompts * n, scheduler.MAX_RUNNING)
  local cache = ffi.gc(check(C.sz_qwen_cache(vl.c, (together * blocks + 1) * BLOCK)), C.sz_cache_free)
  local groups, running, pieces, inputs, lasts, which = {}, {}, {}, {}, {}, {}
  for i = 1, together do
    groups[i] = { input = input, range = { start = (i - 1) * blocks } }
    pieces[i], inputs[i], lasts[i] = { group = groups[i], first = 0, count = length }, input, i * length - 1
  end
  for i = 1, count do
    running[i] = { ids = { 0 }, group = groups[1], range = { start = together * blocks } }
    which[i] = 0
  end
  tensor.step(function()
    local stream = stream_of(vl, pieces)
    local hidden = vl:hidden(stream, vl:vision(inputs), { rows = packing.list(lasts), cache = cache, cache_rows = stream.cache_rows })
    vl:logits(hidden):gather_rows(packing.list(which))
  end)
  tensor.step(function() vl:logits(decode(vl, running, cache)) end)
  C.sz_cache_free(ffi.gc(cache, nil))
end

function M.generate(vl, inputs, options)
  local opts = {}
  for k, v in pairs(DEFAULTS) do opts[k] = v end
  for k, v in pairs(options or {}) do opts[k] = v end
  if opts.max_new_tokens < 1 or opts.max_new_tokens % 1 ~= 0 or opts.n < 1 or opts.n % 1 ~= 0 then
    error("generate: n and max_new_tokens must be whole numbers of at least 1", 2)
  end
  local settings = ffi.new("sz_sampling", { temperature = opts.temperature, top_k = opts.top_k, top_p = opts.top_p,
    repetition_penalty = opts.repetition_penalty, seed = opts.seed })
  local stops = stop_set(vl, opts)
  local ok, texts = pcall(stop_texts, vl, opts.stop_strings)
  if not ok then error(texts, 2) end
  stops.texts = texts
  if opts.on_text and not vl:has_tokenizer() then error("generate: on_text needs a tokenizer", 2) end

  local stats = { tokens = 0, prompt_tokens = 0, steps = 0, images = 0, peak_running = 0, refills = 0, preemptions = 0, moved_rows = 0,
    seconds = { vision = 0, prefill = 0, decode = 0, sampling = 0 } }
  if #inputs == 0 then return {}, stats end
  local groups, lengths, tokens, longest = {}, {}, 0, 0
  for i, input in ipairs(inputs) do
    local g = { input = input, number = i, row_id = opts.row_ids and opts.row_ids[i] or i - 1, answers = {}, results = {} }
    for k = 1, opts.n do g.answers[k] = new_answer(g, k) end
    groups[i], lengths[i] = g, #input.input_ids
    tokens, longest = tokens + lengths[i], math.max(longest, lengths[i])
  end
  local rows = M.cache_rows(vl, lengths, opts.n, opts.max_new_tokens, cache_bytes(vl, opts))
  local call = setmetatable({ vl = vl, opts = opts, settings = settings, stops = stops, stats = stats,
    pictures = vision_cache.share(inputs), most = math.max(longest, math.min(PREFILL_TOKENS, tokens)), cache = M.cache(vl, rows) }, mt)
  local done, why = pcall(tensor.no_grad, call.run, call, groups, rows / BLOCK)
  for _, g in ipairs(groups) do
    if g.hidden then g.hidden:free() end
  end
  for _, e in pairs(call.pictures) do
    if e.tensor and not e.kept then e.tensor:free() end
  end
  if not done then error(why, 0) end
  local out = {}
  for i, g in ipairs(groups) do out[i] = g.results end
  return out, stats
end

return M
