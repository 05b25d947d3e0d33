-- explaining.lua - everything that is known of the answers to one row of one step: image, parts and
-- why they are 0, advantage, and what the update did to each answer's log-probability.
--
--   explaining.rows(folder, step) -> {{row =, problem =, rewards = {..}}, ...}     of the step
--   local e = explaining.run(folder, step, row, { replay = true, image = path or nil, say = f })
--     e.row, e.problem, e.solution, e.estimator, e.mean, e.std, e.image = the path that was written
--     e.answers   {{answer =, text =, reward =, parts =, why = {part = words}, advantage =, ids =,
--                   finish =, before = {log-probabilities}, after = {..}, tokens = {texts}}, ...}
--     e.replay    of replaying.lua, or nil; e.notes
--   explaining.lines(e) -> lines to print
--
-- row: an id, or the number at its end. before and after are those of the policy right before and
-- right after the step, at the step's temperature, from a replay of it.
-- Leaves out: the held-out rows.

local coordinates = require "segzero.data.coordinates"
local disagreement = require "segzero.workbench.disagreement"
local forward = require "segzero.train.forward"
local inputs = require "segzero.train.inputs"
local judging = require "segzero.workbench.judging"
local marks = require "segzero.report.marks"
local reasons = require "segzero.reward.reasons"
local rebuilding = require "segzero.recorder.rebuilding"
local replaying = require "segzero.recorder.replaying"
local rollouts = require "segzero.runs.rollouts"
local row_numbers = require "segzero.data.row_numbers"
local sources = require "segzero.data.sources"
local stored_rows = require "segzero.workbench.stored_rows"
local tensor = require "segzero.core.tensor"
local text = require "segzero.workbench.text"
local update = require "segzero.train.update"
local visible = require "segzero.core.visible"

local M = {}

-- ---- the step's rows ----
local function groups_of(folder, step)
  replaying.check_step(folder, step)
  local list = {}
  rollouts.groups(folder .. "/rollouts.jsonl", function(group) list[#list + 1] = group end,
    { step = step, whole = true })
  return list
end

local function rewards_of(group)
  local list = {}
  for i, record in ipairs(group.records) do list[i] = record.reward end
  return list
end

function M.rows(folder, step)
  local list = {}
  for i, group in ipairs(groups_of(folder, step)) do
    list[i] = { row = group.row, problem = group.records[1].problem, rewards = rewards_of(group) }
  end
  return list
end

local function names_of(groups)
  local names = {}
  for i, group in ipairs(groups) do names[i] = visible.line(group.row, 60) end
  return table.concat(names, ", ")
end

-- The groups of one row: two, if the step drew it twice.
local function find(groups, step, wanted)
  local by_id = {}
  local by_number = {}
  for _, group in ipairs(groups) do
    if group.row == wanted then by_id[#by_id + 1] = group end
    if group.row:match "(%d+)$" == wanted then by_number[#by_number + 1] = group end
  end
  if #by_id > 0 then return by_id end
  if #by_number == 0 then
    error(("step %d has no row %s; its rows: %s"):format(step, visible.line(wanted, 60),
      names_of(groups)), 0)
  end
  for _, group in ipairs(by_number) do
    if group.row ~= by_number[1].row then
      error(("row=%s may be one of: %s"):format(wanted, names_of(by_number)), 0)
    end
  end
  return by_number
end

-- ---- what the reward says ----
local function advantage_of(v)
  if type(v) ~= "table" then return v end
  local sum = 0
  for _, x in ipairs(v) do sum = sum + x end
  return sum / #v
end

local function answers_of(group)
  local list = {}
  for i, record in ipairs(group.records) do
    list[i] = { answer = record.answer, text = record.text, reward = record.reward,
      parts = type(record.parts) == "table" and record.parts or {}, ids = record.ids,
      finish = record.finish, advantage = advantage_of(record.advantage), why = {} }
  end
  return list
end

-- The reward once more, for its words. Parts that it gives differently now are a note.
local function add_reasons(e, cfg, row, complete)
  local o = cfg.worker.reward
  local ok, reward = pcall(rebuilding.reward, e.folder, e.step, cfg)
  if not ok then
    e.notes[#e.notes + 1] = "no words for the parts: " .. visible.line(tostring(reward), 200)
    return
  end
  local bench = judging.new { reward = reward, timeout = o.timeout,
    segmenter = judging.segmenter(o.sam2_path) }
  local items = {}
  for i, one in ipairs(e.answers) do items[i] = { text = one.text, other = one.reward } end
  bench:judge(row, items, not complete)
  local judged = {}
  for i, item in ipairs(items) do
    if item.score then
      judged[#judged + 1] = item
      e.answers[i].why = reasons.zeros(item.parts, item.why)
    end
  end
  if #judged < #items or not disagreement.same(judged) then
    e.notes[#e.notes + 1] = "the reward gives other scores now than in the run"
  end
end

-- ---- the image ----
-- The first box and the points of some marks, in the image's pixels; nil without a box.
local function to_image(row, found)
  if not found or not found.boxes[1] then return nil end
  return coordinates.to_image(row, { bbox = found.boxes[1], points = found.points })
end

local function tile_of(row, one)
  local several = marks.several(row.solution)
  local answered = to_image(row, (marks.answer(one.text, several)))
  local true_one = to_image(row, marks.solution(row.solution))
  return { image = row.image, truth = true_one and true_one.bbox,
    bbox = answered and answered.bbox, points = answered and answered.points,
    label = ("answer %s: reward %s, advantage %+.2f"):format(tostring(one.answer),
      text.number(one.reward), one.advantage or 0),
    text = one.text, parts = one.parts, zeros = one.why }
end

local function write_image(e, row, path)
  local draw = require "segzero.tools.draw"
  local tiles = {}
  for i, one in ipairs(e.answers) do tiles[i] = tile_of(row, one) end
  local sheet = draw.sheet(tiles, math.min(4, #tiles),
    { title = e.problem, subtitle = ("step %d, row %s"):format(e.step, e.row) })
  sheet:save(path)
  sheet:free()
  e.image = path
end

local function image_path(folder, step, row)
  local name = row:gsub("[^%w_.-]", "_"):sub(1, 80)
  return ("%s/why_step_%d_%s.png"):format(folder, step, name)
end

-- ---- what the update did ----
-- The log-probabilities of the answers' tokens by the trainer's policy as it is now.
local function logprobs_now(t, row, answers)
  local samples = {}
  for i, one in ipairs(answers) do samples[i] = { ids = one.ids } end
  local group = { row = row, input = row.input, samples = samples }
  local lists = {}
  local function keep(runs, logprob)
    local host = logprob
    if host:device() ~= "cpu" then host = host:to { device = "cpu" } end
    local values = host:totable()
    local at = 0
    for _, run in ipairs(runs) do
      lists[run.sample] = lists[run.sample] or {}
      for i = run.first, run.last do
        at = at + 1
        lists[run.sample][i] = values[at]
      end
    end
  end
  for _, batch in ipairs(t:micro_batches({ group }, "experience")) do
    tensor.no_grad(forward.run, t.policy, batch, update.forward_options(t), keep)
  end
  local out = {}
  for i, sample in ipairs(samples) do out[i] = lists[sample] end
  return out
end

local function token_texts(t, ids)
  local tokenizer = t.policy:tokenizer()
  local texts = {}
  for i, id in ipairs(ids) do texts[i] = tokenizer:decode { id } end
  return texts
end

local function prepared(t, id)
  local i = row_numbers.new(t.train):of(id)
  if not i then error(("the data set has no row %s"):format(id), 0) end
  local row = sources.read_row(t.train, i)
  return inputs.prepare(row, t.policy, t.prompt, t.options.input)
end

local function add_update(e, folder, options)
  local function measure(t, key)
    local row = prepared(t, e.row)
    local lists = logprobs_now(t, row, e.answers)
    inputs.release { row }
    for i, one in ipairs(e.answers) do
      one[key] = lists[i]
      one.tokens = one.tokens or token_texts(t, one.ids)
    end
  end
  e.replay = replaying.run(folder, e.step, { say = options.say,
    before = function(t) measure(t, "before") end,
    after = function(t) measure(t, "after") end })
end

-- ---- all of it ----
function M.run(folder, step, wanted, options)
  local found = find(groups_of(folder, step), step, wanted)
  local group = found[1]
  local first = group.records[1]
  local cfg = rebuilding.settings(folder, step)
  local s = text.statistics(rewards_of(group))
  local e = { folder = folder, step = step, row = group.row, problem = first.problem,
    solution = first.solution, estimator = cfg.algorithm.adv_estimator, mean = s.mean,
    std = s.std, answers = answers_of(group), notes = {} }
  if #found > 1 then
    e.notes[1] = ("the step drew this row %d times; these are the answers of the first time")
      :format(#found)
  end

  local stored = stored_rows.open(cfg)
  local row, complete = stored:row(group.row, first)
  for _, note in ipairs(stored:notes()) do e.notes[#e.notes + 1] = note end
  add_reasons(e, cfg, row, complete)
  if complete then
    write_image(e, row, options.image or image_path(folder, step, group.row))
  end
  stored:release(row)
  if options.replay then add_update(e, folder, options) end
  return e
end

-- ---- the text ----
local function sum(list)
  local total = 0
  for _, v in ipairs(list) do total = total + v end
  return total
end

-- The token whose log-probability changed most.
local function most_changed(one)
  local best = 1
  local function change(i) return math.abs(one.after[i] - one.before[i]) end
  for i = 2, #one.before do
    if change(i) > change(best) then best = i end
  end
  return best
end

local function update_line(one)
  local before = sum(one.before)
  local after = sum(one.after)
  local i = most_changed(one)
  local times = math.exp(after - before)
  return ("  update: log-probability %.4f -> %.4f (%+.4f, %.3g times as likely); most at token %d "
    .. "%q, %+.4f"):format(before, after, after - before, times, i,
    visible.line(one.tokens[i], 20), one.after[i] - one.before[i])
end

local function parts_line(one)
  local names = {}
  for name in pairs(one.parts) do names[#names + 1] = name end
  table.sort(names)
  local words = {}
  for i, name in ipairs(names) do
    words[i] = ("%s %s"):format(visible.line(name, 40), text.number(one.parts[name]))
  end
  return "  parts: " .. table.concat(words, ", "), names
end

local function answer_lines(lines, one)
  lines[#lines + 1] = ""
  lines[#lines + 1] = ("answer %s: reward %s, advantage %+.4f%s"):format(tostring(one.answer),
    text.number(one.reward), one.advantage or 0,
    one.finish == "length" and ", cut off at the limit" or "")
  lines[#lines + 1] = "  " .. visible.text(one.text)
  local parts, names = parts_line(one)
  if #names > 0 then lines[#lines + 1] = parts end
  for _, name in ipairs(names) do
    if one.why[name] then
      lines[#lines + 1] = ("  %s is 0: %s"):format(name, visible.line(one.why[name], 200))
    end
  end
  if one.before then lines[#lines + 1] = update_line(one) end
end

function M.lines(e)
  local lines = { ("step %d, row %s: %s"):format(e.step, visible.line(e.row, 60),
    visible.line(e.problem)), "  truth: " .. visible.line(tostring(e.solution), 300) }
  if e.image then lines[#lines + 1] = "  image: " .. e.image end
  lines[#lines + 1] = ("  %d answers: reward mean %s, std %s; advantages by %s"):format(#e.answers,
    text.number(e.mean), text.number(e.std), tostring(e.estimator))
  for _, note in ipairs(e.notes) do lines[#lines + 1] = "  note: " .. visible.line(note, 300) end
  for _, one in ipairs(e.answers) do answer_lines(lines, one) end
  if e.replay then
    lines[#lines + 1] = ""
    if e.replay.same then
      lines[#lines + 1] = "the replay gives the same bits as the run"
    else
      for _, line in ipairs(replaying.lines(e.replay)) do lines[#lines + 1] = line end
    end
  end
  return lines
end

return M
