-- generate.lua - sz.rollout: answers to many prompts. Each prompt is computed once for its answers,
-- the answers of many groups decode together, and a finished answer frees its cache blocks for the
-- next one.
--
--   rollout.generate(vl, inputs, options)
--     -> for each input a list of n answers {ids =, text =, logprobs =, finish = "stop" | "length"}
--     -> stats {tokens =, prompt_tokens =, steps =, images =, peak_running =, refills =,
--               preemptions =, moved_rows =, seconds = {vision =, prefill =, decode =, sampling =}}
--
-- Options, with their defaults:
--   n = 1, temperature = 1 (0 is greedy), top_k = 0, top_p = 1, repetition_penalty = 1,
--   max_new_tokens = 512, seed = 0
--   min_new_tokens   no stop id is sampled before; or min_length, which counts the prompt too
--   row_ids          one number per input. The random number of a token depends only on (seed, row
--                    id, answer number, position), so an answer does not depend on its batch
--   stop_ids         ids that end an answer; the default is vl:stop_ids()
--   ignore_eos       answers do not end at stop_ids
--   stop_strings     an answer ends with the token that completes one of them; the text is not cut
--   cache_gib = 4    limit of the cache on the CPU, in GiB
--   gpu_memory_utilization = 0.6    limit of the cache on a GPU, as a share of its free memory
--   keep_vision      keeps image features in the vision cache (vision_cache.lua); the caller uses
--                    them before the tower changes, and frees them
-- Callbacks:
--   on_token(answer, id)           every token
--   on_text(i, piece, input)       text of answer i while it is generated, in whole characters; the
--                                  pieces joined are its text
--   on_answer(input, answer, i)    an answer has finished
--   on_group(input, answers)       all answers of an input have finished, while others still decode
-- An error in a callback ends the call.
--
-- The cache always has room for one prompt and one whole answer; scheduler.lua decides which
-- answers are in it. Only the stop ids of a folder's generation_config.json are used here
-- (vl:generate reads the rest). ids end with the stop token; text omits special tokens.
-- Log-probabilities are those of softmax(logits / temperature) over the whole vocabulary, as the
-- trainer computes them. Vision tokens are never sampled.
--
--   rollout.count(vl, input, prompts, n)       for the memory plan: runs once what sampling runs
--   rollout.release_cache(vl), rollout.row_bytes(vl), rollout.cache_rows(...)      cache_size.lua

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local lock_step = require "segzero.core.lock_step"
local tensor = require "segzero.core.tensor"
local answer_text = require "segzero.inference.answer_text"
local cache_size = require "segzero.inference.cache_size"
local generation_config = require "segzero.inference.generation_config"
local packing = require "segzero.inference.packing"
local prefill = require "segzero.inference.prefill"
local sampling = require "segzero.inference.sampling"
local scheduler = require "segzero.inference.scheduler"
local streams = require "segzero.inference.streams"
local vision_cache = require "segzero.inference.vision_cache"

local C = core.C
local check = core.check

local M = {}

M.row_bytes = cache_size.row_bytes
M.cache_rows = cache_size.rows

local DEFAULTS = {
  n = 1, temperature = 1, top_k = 0, top_p = 1, repetition_penalty = 1, max_new_tokens = 512,
  seed = 0,
  cache_gib = 4, gpu_memory_utilization = 0.6,
}
local OPTIONS = options.set(generation_config.ROLLOUT)
local PREFILL_TOKENS = 8192      -- tokens of prompts computed in one stream
local BLOCK = scheduler.BLOCK

-- ---- one call ----
local methods = {}
local mt = { __index = methods }

-- Adds the time since `start` to a phase and returns the time now. Waits for the device first, so
-- that the next phase is not charged for this one's work; complete: the device has finished
-- already.
function methods:add_time(phase, start, complete)
  if self.vl.device ~= "cpu" and not complete then check(C.sz_device_synchronise()) end
  local now = C.sz_seconds()
  self.stats.seconds[phase] = self.stats.seconds[phase] + now - start
  return now
end

-- One more token for each running answer.
local function advance(call, running)
  local start = C.sz_seconds()
  local stream = streams.decode(call.vl, running)
  local has_decode = call.vl.device ~= "cpu" and call.vl.decode
  if has_decode and sampling.decodes_together(call, running) then
    call:add_time("decode", start, true)
    sampling.decode(call, running, stream)
  else
    local hidden = call.vl:hidden(stream, nil, { cache = call.cache,
      cache_rows = stream.cache_rows })
    local logits = call.vl:logits(hidden)
    call:add_time("decode", start)
    sampling.sample(call, running, logits)
  end
  call.stats.steps = call.stats.steps + 1
end

-- Hands out finished answers. Callbacks run between decode steps, outside our scopes.
local function deliver(call, ended)
  local vl = call.vl
  local opts = call.opts
  local tokenizer                 -- without one, answers have ids only
  if vl:has_tokenizer() then tokenizer = vl:tokenizer() end
  for _, a in ipairs(ended) do
    local g = a.group
    local result = { ids = a.ids, logprobs = a.logprobs, finish = a.finish }
    if tokenizer then result.text = tokenizer:decode(a.ids, { skip_special_tokens = true }) end
    g.results[a.index] = result
    if opts.on_answer then opts.on_answer(g.number, result, a.index) end
    g.delivered = (g.delivered or 0) + 1
    if opts.on_group and g.delivered == opts.n then opts.on_group(g.number, g.results) end
  end
end

local function run(call, groups, blocks)
  local s = scheduler.new(groups, {
    n = call.opts.n, max_new_tokens = call.opts.max_new_tokens, blocks = blocks,
    move = function(to, from, count) call.cache:move(to * BLOCK, from * BLOCK, count * BLOCK) end,
  })
  while not s:finished() do
    local chunk = s:admit()
    if chunk then
      prefill.run(call, chunk)
      deliver(call, s:settle())
    end
    if #s.running > 0 then
      s:grow()
      tensor.step(advance, call, s.running)
      deliver(call, s:settle())
    end
    if C.sz_interrupt_pending() ~= 0 then
      C.sz_interrupt_set(0)
      error("interrupted", 0)
    end
  end
  for k, v in pairs(s.stats) do call.stats[k] = v end
  call.stats.moved_rows = s.pool.moved * BLOCK
end

-- The answers of all groups when a call ended early: whole ones, and the beginnings of others with
-- finish "interrupted". Empty ones are left out.
local function answers_so_far(call, groups)
  local list = {}
  for _, g in ipairs(groups) do
    for k, a in ipairs(g.answers) do
      local result = g.results[k]
      if not result and #a.ids > 0 then
        result = { ids = a.ids, logprobs = a.logprobs, finish = "interrupted" }
        local text = { skip_special_tokens = true }
        if call.vl:has_tokenizer() then result.text = call.vl:tokenizer():decode(a.ids, text) end
      end
      list[#list + 1] = result
    end
  end
  return list
end

-- ---- the entry point ----
local function is_count(v) return v >= 1 and v % 1 == 0 end

-- Checks the options and fills in defaults.
local function read_options(vl, given, level)
  level = level + 1
  options.check("generate", given, OPTIONS, level)
  local opts = {}
  for k, v in pairs(DEFAULTS) do opts[k] = v end
  for k, v in pairs(given or {}) do opts[k] = v end
  if not is_count(opts.max_new_tokens) or not is_count(opts.n) then
    error("generate: n and max_new_tokens must be whole numbers of at least 1", level)
  end
  if opts.on_text and not vl:has_tokenizer() then
    error("generate: on_text needs a tokenizer", level)
  end
  return opts
end

-- {ids = {[id] = true}, texts = stop strings | nil}
local function read_stops(vl, opts, level)
  local stops = { ids = {} }
  local ids = opts.stop_ids
  if opts.ignore_eos then ids = {} end
  for _, id in ipairs(ids or vl:stop_ids()) do stops.ids[id] = true end
  local ok, texts = pcall(answer_text.stop_strings, vl, opts.stop_strings)
  if not ok then error(texts, level + 1) end
  stops.texts = texts
  return stops
end

local function new_stats()
  return {
    tokens = 0, prompt_tokens = 0, steps = 0, images = 0, peak_running = 0, refills = 0,
    preemptions = 0, moved_rows = 0, seconds = { vision = 0, prefill = 0, decode = 0,
    sampling = 0 },
  }
end

local function new_groups(inputs, opts)
  local groups = {}
  for i, input in ipairs(inputs) do
    local row_id = i - 1
    if opts.row_ids and opts.row_ids[i] then row_id = opts.row_ids[i] end
    local g = { input = input, number = i, row_id = row_id, answers = {}, results = {} }
    for k = 1, opts.n do
      g.answers[k] = { group = g, index = k, ids = {}, logprobs = {}, waiting = {} }
    end
    groups[i] = g
  end
  return groups
end

function M.generate(vl, inputs, given)
  local opts = read_options(vl, given, 2)
  local stops = read_stops(vl, opts, 2)
  local stats = new_stats()
  if #inputs == 0 then return {}, stats end

  -- Size the cache for these prompts, and find the longest stream of prompts.
  local groups = new_groups(inputs, opts)
  local lengths = {}
  local tokens = 0
  local longest = 0
  for i, input in ipairs(inputs) do
    lengths[i] = #input.input_ids
    tokens = tokens + lengths[i]
    longest = math.max(longest, lengths[i])
  end
  local limit = cache_size.limit(vl, opts)
  local rows = cache_size.rows(vl, lengths, opts.n, opts.max_new_tokens, limit)
  rows = lock_step.least(vl.shards and vl.shards.group, rows)
  local call = setmetatable({
    vl = vl, opts = opts, stops = stops, stats = stats,
    settings = ffi.new("sz_sampling", {
      temperature = opts.temperature, top_k = opts.top_k, top_p = opts.top_p,
      repetition_penalty = opts.repetition_penalty, seed = opts.seed,
    }),
    images = vision_cache.share(inputs),
    most = math.max(longest, math.min(PREFILL_TOKENS, tokens)),
    cache = vl:cache_for(rows),
  }, mt)

  local ok, why = pcall(tensor.no_grad, run, call, groups, rows / BLOCK)
  prefill.release(call, groups)
  if not ok then
    local on_stopped = generation_config.on_stopped
    if on_stopped then on_stopped(answers_so_far(call, groups)) end
    error(why, 0)
  end
  local results = {}
  for i, g in ipairs(groups) do results[i] = g.results end
  return results, stats
end

-- Frees the cache's memory, for instance before an update. The next generate() allocates it again.
function M.release_cache(vl) vl:release_cache() end

-- ---- for plans ----
-- Runs each part of sampling once, under sz_dry_run: the longest stream of prompts, the first
-- tokens, and one token of every answer.
function M.count(vl, input, prompts, n)
  local length = #input.input_ids
  local together = math.max(1, math.min(prompts, math.floor(PREFILL_TOKENS / length)))
  local blocks = math.ceil(length / BLOCK)
  local count = math.min(prompts * n, scheduler.MAX_RUNNING)
  local cache = vl:new_cache((together * blocks + 1) * BLOCK)
  local groups = {}
  local running = {}
  local pieces = {}
  local inputs = {}
  local last_rows = {}
  local prompt_row = {}
  for i = 1, together do
    groups[i] = { input = input, range = { start = (i - 1) * blocks } }
    pieces[i] = { group = groups[i], first = 0, count = length }
    inputs[i] = input
    last_rows[i] = i * length - 1
  end
  for i = 1, count do
    running[i] = { ids = { 0 }, group = groups[1], range = { start = together * blocks } }
    prompt_row[i] = 0
  end
  tensor.step(function()
    local stream = streams.stream_of(vl, pieces)
    local hidden = vl:hidden(stream, vl:vision(inputs), {
      rows = packing.list(last_rows), cache = cache, cache_rows = stream.cache_rows,
    })
    vl:logits(hidden):gather_rows(packing.list(prompt_row))
  end)
  tensor.step(function()
    local stream = streams.decode(vl, running)
    vl:logits(vl:hidden(stream, nil, { cache = cache, cache_rows = stream.cache_rows }))
  end)
  cache:free()
end

return M
