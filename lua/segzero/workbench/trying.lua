-- trying.lua - tries a reward on answers of known quality to the rows of a data set, and compares
-- it with another one.
--
--   local result = trying.run(reward, {
--     set =, rows = n, several =, seed =, segmenter = or nil, timeout = seconds,
--     against = f or nil })
--     result.items      of judging.lua, with row, kind, text and other = what `against` scored
--     result.good       those on which the reward did not fail
--     result.groups     the good ones of each row
--     result.bench      of judging.lua
--     result.unstable   an item that scored differently the second time, or nil
--   trying.lines(result, options) -> lines to print, and whether the reward failed somewhere
--       options: name, set_name, against = name or nil, worst = how many disagreements
--
-- Rows whose image cannot be read are errors. Leaves out: real answers (rescoring.lua).

local disagreement = require "segzero.workbench.disagreement"
local judging = require "segzero.workbench.judging"
local probes = require "segzero.workbench.probes"
local sources = require "segzero.data.sources"
local summary = require "segzero.workbench.summary"
local text = require "segzero.workbench.text"

local M = {}

-- The other reward's scores. One that fails on an answer has no opinion about it.
local function judge_other(bench, row, items)
  local copies = {}
  for i, item in ipairs(items) do copies[i] = { text = item.text } end
  bench:judge(row, copies)
  for i, item in ipairs(items) do item.other = copies[i].score end
end

-- Whether the first answer earns the same again.
local function check_stable(result, bench, row, item)
  if result.unstable or item.failure then return end
  local again = { text = item.text }
  bench:judge(row, { again })
  if again.score ~= item.score then
    result.unstable = { item = item, again = again.score }
  end
end

function M.run(reward, o)
  local result = { items = {}, good = {}, groups = {} }
  result.bench = judging.new { reward = reward, timeout = o.timeout, segmenter = o.segmenter }
  local second = judging.new { reward = reward, timeout = o.timeout, segmenter = o.segmenter }
  local other = o.against
    and judging.new { reward = o.against, timeout = o.timeout, segmenter = o.segmenter }
  local few = o.set
  if o.rows < few:count() then few = few:sample(o.rows, o.seed) end
  for i = 1, few:count() do
    local row = sources.read_row(few, i)
    local items = probes.of(row)
    result.bench:judge(row, items)
    check_stable(result, second, row, items[1])
    if other then judge_other(other, row, items) end
    local group = {}
    for _, item in ipairs(items) do
      item.row = row.id
      result.items[#result.items + 1] = item
      if not item.failure then
        result.good[#result.good + 1] = item
        group[#group + 1] = item
      end
    end
    result.groups[i] = group
    row.image:free()
  end
  result.rows = few:count()
  result.other_failures = other and other.failures or 0
  return result
end

-- ---- the text ----
local function add(lines, title, more)
  if #more == 0 then return end
  lines[#lines + 1] = ""
  if title then lines[#lines + 1] = title end
  for _, line in ipairs(more) do lines[#lines + 1] = line end
end

-- Only what both rewards judged.
local function compared(groups)
  local items = {}
  local lists = {}
  for i, group in ipairs(groups) do
    lists[i] = {}
    for _, item in ipairs(group) do
      if item.other then
        items[#items + 1] = item
        table.insert(lists[i], item)
      end
    end
  end
  return items, lists
end

function M.time_text(bench)
  return ("%s an answer, the slowest %s"):format(text.seconds(bench.seconds / bench.calls),
    text.seconds(bench.slowest))
end

function M.lines(result, o)
  local lines = { ("%s on %d rows of %s: %d answers, %s"):format(o.name, result.rows, o.set_name,
    #result.items, M.time_text(result.bench)) }
  add(lines, nil, summary.failures(result.items))
  add(lines, nil, summary.scores(result.good))
  add(lines, nil, summary.parts(result.good))
  add(lines, nil, summary.kinds(result.good, probes.kinds()))

  local concerns = summary.concerns(result.good)
  if result.unstable then
    concerns[#concerns + 1] = ("  the same answer to row %s earned %g and then %g: a run cannot be "
      .. "repeated"):format(tostring(result.unstable.item.row), result.unstable.item.score,
      result.unstable.again or 0 / 0)
  end
  add(lines, "look at this:", concerns)
  if o.against and #result.good > 0 then
    local items, groups = compared(result.groups)
    local d = disagreement.of(items, groups)
    add(lines, nil, summary.disagreement(d, o.against, o.worst))
    if result.other_failures > 0 then
      lines[#lines + 1] = ("  %s failed on %d of these answers"):format(o.against,
        result.other_failures)
    end
  end
  return lines, result.bench.failures > 0
end

return M
