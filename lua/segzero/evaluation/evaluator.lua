-- evaluator.lua - greedy answers to the rows of a data set, judged one by one. Training and
-- recipes/evaluate.lua share it.
--
--   evaluator.run{set =, first =, last =, batch =, judge =, policy =, input =, generation =,
--                 ahead =, tolerant =, parallel =}
--     judge(entry, is_batch_end)   is called for each row in order
--     policy        nil: no model runs, and no entry has an answer
--     input(row)    what vl:process returns for the row
--     generation    options of inference/generate.lua
--     ahead         how many rows of the next batch are prefetched; nil: none
--     resize        the size that input() resizes their images to first; nil: none
--     parallel      who does what on several ranks (train/parallel.lua); nil: one rank. All shards
--                   of a replica evaluate the same rows
--     tolerant      a row that cannot be read, or that the policy fails on, has entry.failure; a
--                   row that cannot be read is {index =}. Otherwise the first failure is an error
--   An entry is {index =, row =, input =, answer = {text =, ids =, ...}, answers = all of
--   generation.n, failure =, seconds =};
--   seconds is the row's share of the time that asking its batch took. The evaluator frees
--   row.image and input after judge().
--
--   evaluator.held_out(t, keep)    the held-out rows of a trainer
--     -> {reward =, reward_errors =, parts =, records =, giou =, ceiling =}
--     reward, parts   means over all rows, and over the answers of a row if there are several
--     reward_errors   with worker.reward.on_error=zero: answers that the reward failed on
--     records         id, index, problem, solution, text, reward, parts, iou, mask of each row, and
--                     in the image's pixels found (the answer, nil if it cannot be read) and truth
--                     (a list of objects); the first `keep` records have a mask, which the caller
--                     frees
--     giou            nil without a SAM2 model or masks; the mean over all rows of intersection /
--                     union, 0 for an answer that cannot be read
--     ceiling         the gIoU of the true boxes and points, as recipes/evaluate.lua oracle=true
--                     finds it; computed once
-- Leaves out: sampling several answers to a row.

local core = require "segzero.core.ffi"
local answer = require "segzero.formats.answer"
local coordinates = require "segzero.data.coordinates"
local inputs = require "segzero.train.inputs"
local masks = require "segzero.reward.masks"
local prefetch = require "segzero.data.prefetch"
local progress = require "segzero.log.progress"
local inference = require "segzero.inference.generate"
local runner = require "segzero.reward.runner"
local stop = require "segzero.core.stop"
local truth = require "segzero.data.truth"

local M = {}

local now = core.C.sz_seconds

-- An error's message without its position in this library and without a traceback. Ctrl-C is raised
-- again.
function M.reason(message)
  local text = tostring(message):gsub("\nstack traceback.*", "")
  if core.is_interrupt(text) then error(text, 0) end
  return (text:gsub("^[^\n]-%.lua:%d+: ", ""))
end

-- Returns f's result. If f fails, returns nil and the reason if e.tolerant, else raises the error.
local function attempt(e, f, ...)
  if not e.tolerant then return f(...) end
  local ok, result = pcall(f, ...)
  if ok then return result end
  -- What one shard alone has met is no fault of the row.
  if e.parallel and not e.parallel:seen_by_all() then error(result, 0) end
  return nil, M.reason(result)
end

-- The same for what each shard does by itself.
local function attempt_alike(e, f, ...)
  if not e.parallel then return attempt(e, f, ...) end
  return attempt(e, e.parallel.alike, e.parallel, f, ...)
end

local function load_entry(e, queue, index)
  local row, failure = attempt_alike(e, queue.take, queue, e.set, index)
  local entry = { index = index, row = row or { index = index }, failure = failure }
  if row and e.policy then entry.input, entry.failure = attempt_alike(e, e.input, row) end
  return entry
end

-- The options with the rows' numbers, which key the sampled tokens.
local function sampled(generation, entries)
  local options = { row_ids = {} }
  for name, value in pairs(generation) do options[name] = value end
  for i, entry in ipairs(entries) do options.row_ids[i] = entry.index end
  return options
end

-- Sets entry.answer. If a batch fails, its rows are asked one by one to find the one that fails.
local function ask(e, entries)
  local asked = {}
  local list = {}
  for _, entry in ipairs(entries) do
    if entry.input then
      asked[#asked + 1] = entry
      list[#list + 1] = entry.input
    end
  end
  if #list == 0 then return end
  local generation = e.generation
  local temperature = generation.temperature
  if temperature and temperature > 0 then generation = sampled(generation, asked) end
  local answers, failure = attempt(e, inference.generate, e.policy, list, generation)
  for i, entry in ipairs(asked) do
    local one = answers and answers[i]
    if not answers then
      entry.failure = failure
      if #asked > 1 then
        local alone
        alone, entry.failure = attempt(e, inference.generate, e.policy, { entry.input },
          e.generation)
        one = alone and alone[1]
      end
    end
    entry.answers = one
    entry.answer = one and one[1]
  end
end

local function release(entries)
  local rows = {}
  for _, entry in ipairs(entries) do
    entry.row.input = entry.input
    if entry.row.image then rows[#rows + 1] = entry.row end
  end
  inputs.release(rows)
end

function M.run(e)
  local queue = prefetch.new(e.policy, e.resize)
  for first = e.first, e.last, e.batch do
    if not e.parallel or e.parallel.shards == 1 then stop.check() end
    local started = now()
    local last = math.min(first + e.batch - 1, e.last)
    local entries = {}
    for index = first, last do entries[#entries + 1] = load_entry(e, queue, index) end
    for index = last + 1, math.min(last + (e.ahead or 0), e.last) do queue:request(e.set, index) end
    ask(e, entries)
    local seconds = (now() - started) / #entries
    for k, entry in ipairs(entries) do
      entry.seconds = seconds
      e.judge(entry, k == #entries)
    end
    release(entries)
  end
end

-- ---- the held-out rows of a training run ----
-- The true objects in the image's pixels; the box around the mask if the solution names none and a
-- mask may be read. nil if there are none.
local function true_objects(row, reads_mask)
  local mask
  if reads_mask and row.mask and not truth.has_objects(row) then mask = row.mask() end
  local ok, objects = pcall(truth.objects, row, mask)
  if mask then mask:free() end
  if ok then return objects end
  return nil
end

-- SAM2's prompt of these objects, or nil.
local function prompt_of(objects)
  local ok, prompt = pcall(truth.as_answer, objects, #objects ~= 1)
  if ok then return prompt end
  return nil
end

-- The IoU of the answer's mask with the true one and, with a true prompt, that of its mask.
local function judge_mask(row, found, true_prompt)
  if not row.mask then
    error(("row %s has no mask, but other held-out rows have one"):format(tostring(row.id)), 0)
  end
  local iou = 0
  if found then iou = masks.iou(row, found) end
  local ceiling = true_prompt and masks.true_iou(row)
  return iou, ceiling
end

-- Judges one answer to a row; returns the row's record, and the IoU of the true prompt's mask.
local function judge_row(t, row, sample, with_masks, keep_mask)
  local found = answer.read(sample.text, truth.is_list(row.solution))
  local needs_ceiling = with_masks and not t.ceiling
  local objects = true_objects(row, needs_ceiling)
  local true_prompt
  if t.segmenter then
    if needs_ceiling and objects then true_prompt = prompt_of(objects) end
    masks.lend(t.segmenter, row, { found }, true_prompt)
  end
  runner.score(t.reward, row, sample, t.scoring)

  local record = {
    id = row.id, index = row.index, problem = row.problem, solution = row.solution,
    text = sample.text, reward = sample.score, parts = sample.parts,
    found = found and coordinates.to_image(row, found), truth = objects,
  }
  local ceiling
  if with_masks then
    record.iou, ceiling = judge_mask(row, found, true_prompt)
    if found and keep_mask then record.mask = row.segment(found):clone() end
  end
  masks.take_back(row)
  return record, ceiling
end

-- Adds a judged answer to the sums. rows: how many answers there are in all.
local function add(sums, record, ceiling, rows)
  sums.reward = sums.reward + record.reward
  for name, v in pairs(record.parts or {}) do
    sums.parts[name] = (sums.parts[name] or 0) + v / rows
  end
  sums.iou = sums.iou + (record.iou or 0)
  sums.ceiling = sums.ceiling + (ceiling or 0)
  if ceiling then sums.readable = sums.readable + 1 end
end

-- Evaluates this replica's share of the held-out rows -> {{record =, ceiling =}, ...}, an entry for
-- each answer, and whether rows have masks.
local function judge_share(t, first, last, keep)
  local o = t.options.evaluation
  local judged = {}
  local with_masks

  local tick = progress.new(t, "evaluation", last - first + 1, "rows")
  local function judge(entry)
    if with_masks == nil then with_masks = t.segmenter ~= nil and entry.row.mask ~= nil end
    local keep_mask = entry.index <= (keep or 0)
    for k, one in ipairs(entry.answers) do
      local record, ceiling = judge_row(t, entry.row, one, with_masks, keep_mask and k == 1)
      judged[#judged + 1] = { record = record, ceiling = ceiling, is_first = k == 1 }
    end
    tick(entry.index - first + 1)
  end
  -- A replica's first shard judges.
  local function judge_on_first(entry)
    t.parallel:from_first(function() judge(entry) end)
  end

  M.run {
    set = t.held_out, first = first, last = last, batch = o.batch, policy = t.policy,
    judge = judge_on_first, parallel = t.parallel,
    input = function(row) return inputs.prepare(row, t.policy, t.prompt, t.options.input).input end,
    generation = {
      n = o.n, temperature = o.temperature, top_p = o.top_p, top_k = o.top_k, seed = o.seed,
      max_new_tokens = o.max_new_tokens, cache_gib = o.cache_gib,
      gpu_memory_utilization = o.gpu_memory_utilization,
    },
    -- As many as the memory plan allows for.
    ahead = math.min(o.batch, t.options.rows.batch), resize = t.options.input.frames.resize,
  }
  return judged, with_masks
end

function M.held_out(t, keep)
  local rows = t.held_out:count()
  local shares = t.parallel:join_judged(function()
    local first, last = t.parallel:share_of(rows)
    local judged, with_masks = judge_share(t, first, last, keep)
    return { judged = judged, with_masks = with_masks,
      errors = t.scoring and runner.take_errors(t.scoring) }
  end)

  -- Sums in the order of the rows, on any number of ranks.
  local records = {}
  local answers = rows * t.options.evaluation.n
  local sums = { reward = 0, parts = {}, iou = 0, ceiling = 0, readable = 0 }
  for _, one in ipairs(shares.judged) do
    add(sums, one.record, one.ceiling, answers)
    if one.is_first then records[#records + 1] = one.record end
  end
  if sums.readable > 0 then t.ceiling = sums.ceiling / answers end
  return {
    reward_errors = shares.errors,
    reward = sums.reward / answers, parts = sums.parts, records = records,
    giou = shares.with_masks and sums.iou / answers or nil, ceiling = t.ceiling,
  }
end

return M
