-- replaying.lua - runs the steps of a finished run again, from the nearest checkpoint, and says
-- whether they give the same numbers.
--
--   local result = replaying.run(folder, step, {
--     say = f(text) or nil,            how far it is
--     before = f(t), after = f(t),     called right before and right after the step itself
--   })
--     result.source     of rebuilding.lua
--     result.steps      {{step =, answers = comparing.answers, metrics = the differences,
--                         compared = n}, ...}
--     result.weights    nil, or {path =, compared = n, different = {names}}: against the checkpoint
--                       of that very step
--     result.same       whether everything is equal; on every rank. The rest is rank 0's
--     result.other      what differs from how the run was started (runs/launches.lua)
--   replaying.lines(result) -> lines to print
--   replaying.check_step(folder, step)          refuses a step that the run's logs do not have
--
-- Leaves out: what may be the reason beyond a guess (lines names the likely one).

local cjson = require "cjson"
local checkpoint = require "segzero.train.run.checkpoint"
local checksum = require "segzero.core.checksum"
local comparing = require "segzero.recorder.comparing"
local jsonl = require "segzero.log.jsonl"
local launches = require "segzero.runs.launches"
local lora = require "segzero.models.lora"
local parallel = require "segzero.train.parallel"
local rebuilding = require "segzero.recorder.rebuilding"
local reloading = require "segzero.reward.reloading"
local rollouts = require "segzero.runs.rollouts"
local run_folder = require "segzero.runs.run_folder"
local safetensors = require "segzero.formats.safetensors"
local stop = require "segzero.core.stop"
local tensor = require "segzero.core.tensor"
local visible = require "segzero.core.visible"

local M = {}

-- ---- what the run wrote ----
local function stored_answers(folder, step)
  local list = {}
  rollouts.each(folder .. "/rollouts.jsonl", function(record) list[#list + 1] = record end,
    { step = step, whole = true })
  return list
end

local function stored_metrics(folder, step)
  local file = io.open(folder .. "/metrics.jsonl", "rb")
  if not file then return nil end
  local found
  for line in file:lines() do
    if line:find(('"step":%d[,}]'):format(step)) then
      local ok, record = pcall(cjson.decode, line)
      if ok and record.step == step and record.reward then found = record end
    end
  end
  file:close()
  return found
end

-- ---- weights ----
local function same_bytes(a, b)
  if a:dtype() ~= b:dtype() then return false end
  local bytes = a:numel() * tensor.WIDTH[a:dtype()]
  local function sum(t)
    local host = t
    if t:device() ~= "cpu" then host = t:to { device = "cpu" } end
    return checksum.bytes(tensor.data(host), bytes)
  end
  return sum(a) == sum(b)
end

local function compare_weights(t, path)
  local mine
  local saved
  if t.policy.lora then
    mine = lora.parameters(t.policy)
    saved = lora.read(path)
  else
    mine = t.policy:parameters()
    saved = safetensors.load_folder(path)
  end
  local result = { path = path, compared = 0, different = {} }
  for name, weight in pairs(mine) do
    result.compared = result.compared + 1
    if not saved[name] or not same_bytes(weight, saved[name]) then
      table.insert(result.different, name)
    end
  end
  for name in pairs(saved) do
    if not mine[name] then table.insert(result.different, name) end
  end
  for _, weight in pairs(saved) do weight:free() end
  table.sort(result.different)
  return result
end

local function checkpoint_of(folder, step)
  for _, one in ipairs(checkpoint.list(folder)) do
    if one.step == step then return one.path end
  end
  return nil
end

-- ---- the steps ----
local function compare_step(result, step, rows, stats)
  local folder = result.source.folder
  local again = {}
  for i, record in ipairs(rows) do again[i] = cjson.decode(jsonl.text(record)) end
  local one = { step = step, answers = comparing.answers(stored_answers(folder, step), again) }
  one.metrics, one.compared = comparing.metrics(stored_metrics(folder, step) or {}, stats)
  one.same = one.answers.same and #one.metrics == 0
  result.same = result.same and one.same
  table.insert(result.steps, one)
end

local function one_step(result, t, sink, options)
  local folder = result.source.folder
  local step = t.global_step + 1
  local is_last = step == result.source.step
  t.reward = reloading.stored(folder, step, result.source.cfg.worker.reward) or t.reward
  if is_last and options.before then options.before(t) end
  local stats = t:step()
  if is_last and options.after then options.after(t) end
  t.parallel:on_root(function() compare_step(result, step, sink.rows, stats) end)
end

function M.check_step(folder, step)
  run_folder.check_run(folder)
  local steps = rollouts.steps(folder .. "/rollouts.jsonl")
  if steps[step] then return end
  if not steps.first then error(("%s/rollouts.jsonl has no answers"):format(folder), 0) end
  error(("step=%d is not in %s/rollouts.jsonl, which has the steps %d to %d"):format(step, folder,
    steps.first, steps.last), 0)
end

local function introduce(result, t, say)
  local source = result.source
  local count = source.step - source.from
  say(("%s: step %d again, from %s: %d step%s"):format(visible.line(source.folder), source.step,
    source.path or "the beginning", count, count == 1 and "" or "s"))
  for _, text in ipairs(source.notes) do say("note: " .. text) end
  local then_ = launches.at(source.folder, source.step)
  if not then_ then return end
  result.other = launches.differences(then_, launches.of(t))
  if #result.other > 0 then
    say("note: started in another way than the run: " .. table.concat(result.other, ", "))
  end
end

local function finish(result, t)
  local source = result.source
  local path = checkpoint_of(source.folder, source.step)
  if path and t.parallel.shards == 1 then
    result.weights = compare_weights(t, path)
    result.same = result.same and #result.weights.different == 0
  end
  return result.same
end

local function run(p, folder, step, options)
  M.check_step(folder, step)
  local result = { source = rebuilding.source(folder, step), steps = {}, same = true }
  local say = options.say or function() end
  local t, sink = rebuilding.trainer(result.source, p)
  introduce(result, t, say)
  while t.global_step < step do
    p:check_stop()
    one_step(result, t, sink, options)
    local one = result.steps[#result.steps]
    if one and t.global_step < step then
      say(("  step %d: %s"):format(one.step, one.same and "the same" or "other numbers"))
    end
  end
  result.same = p:on_root(function() return finish(result, t) end)
  rebuilding.free(t)
  return result
end

local function on_ranks(folder, step, options)
  run_folder.check_run(folder)
  local cfg = rebuilding.settings(folder, step)
  local p = parallel.new(cfg.trainer.collective_timeout,
    { shards = cfg.worker.rollout.tensor_parallel_size })
  return p:run(run, p, folder, step, options)
end

function M.run(folder, step, options)
  return stop.run(on_ranks, folder, step, options or {})
end

-- ---- the text ----
local function number(v)
  if type(v) == "number" then return ("%.9g"):format(v) end
  return visible.line(tostring(v), 60)
end

local function first_text(first)
  local token = first.token and (", token %d"):format(first.token) or ""
  return ("  first: %s of row %s, answer %s%s: %s, was %s"):format(first.what,
    visible.line(tostring(first.row), 60), tostring(first.answer), token, number(first.new),
    number(first.old))
end

local KINDS = { "tokens", "logprobs", "reward", "parts", "advantage", "other" }
local WORDS = { tokens = "tokens", logprobs = "log-probabilities", reward = "rewards",
  parts = "parts", advantage = "advantages", other = "texts or rows" }

local function counts_text(d)
  local words = {}
  for _, kind in ipairs(KINDS) do
    if d.counts[kind] then
      words[#words + 1] = ("other %s in %d of %d answers"):format(WORDS[kind], d.counts[kind],
        d.answers)
    end
  end
  return "  " .. table.concat(words, ", ")
end

local MOST_METRICS = 8

local function step_lines(lines, one)
  local d = one.answers
  if one.same then
    lines[#lines + 1] = ("step %d: the same bits: %d answers, %d tokens with log-probabilities, "
      .. "rewards and advantages, %d figures"):format(one.step, d.answers, d.tokens, one.compared)
    return
  end
  lines[#lines + 1] = ("step %d: not the same"):format(one.step)
  if d.first then
    lines[#lines + 1] = first_text(d.first)
    lines[#lines + 1] = counts_text(d)
  end
  if d.largest > 0 then
    lines[#lines + 1] = ("  largest difference of a log-probability where the tokens are the same: "
      .. "%.2g"):format(d.largest)
  end
  for i = 1, math.min(MOST_METRICS, #one.metrics) do
    local name, old, new = unpack(one.metrics[i])
    lines[#lines + 1] = ("  %s: %s, was %s"):format(name, number(new), number(old))
  end
end

-- The likely reason of the first difference.
local function guess(result)
  local counts
  for _, one in ipairs(result.steps) do
    if not one.same and not counts then counts = one.answers.counts end
  end
  if not counts then
    return "the same steps, but other weights: another optimizer state, --threads or machine"
  end
  if counts.other and not counts.tokens then
    return "likely: other rows, so the data set or the prompt is another one now"
  end
  if not counts.tokens and not counts.logprobs and (counts.reward or counts.parts) then
    return "likely: the reward is another one now, or a script gave the run its own"
  end
  if result.other and #result.other > 0 then
    return "likely: " .. table.concat(result.other, ", ")
  end
  return "likely: another machine than the run had, or models and data that changed"
end

function M.lines(result)
  local lines = {}
  local bad
  for _, one in ipairs(result.steps) do
    if not one.same and not bad then bad = one end
  end
  step_lines(lines, bad or result.steps[#result.steps])
  local weights = result.weights
  if weights and #weights.different == 0 then
    lines[#lines + 1] = ("the weights are those of %s: %d tensors"):format(weights.path,
      weights.compared)
  elseif weights then
    lines[#lines + 1] = ("%d of %d tensors are not those of %s, such as %s"):format(
      #weights.different, weights.compared, weights.path, weights.different[1])
  end
  if not result.same then lines[#lines + 1] = guess(result) end
  return lines
end

return M
