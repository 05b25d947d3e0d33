-- comparing.lua - several ways to ask the same rows, as a table with intervals and a sheet of
-- images: lab.compare and lab.sweep.
--
--   local result = comparing.run(variants, options)
--     variants: {{name =, ask =, several =, generation = {..}}, ...}
--     options: policy, set, reward = f, reward_name, segmenter, frames, system_prompt, seed,
--       sheet = path or false
--     result.names, result.sheet = the path that was written
--     result[i]   {name =, reward = {mean, low, high}, best = the same of each row's best answer,
--                  difference = {mean, low, high} against the first one, parts = {name -> mean},
--                  length =, cut = share of answers without an end, rows = of asking.lua}
--     tostring(result), result:show()
--
-- An interval is the 2.5 and 97.5 percentiles over 2,000 resamples of rows
-- (evaluation/metrics.lua); a row counts with the mean of its answers. Differences are taken row by
-- row, so rows that are easy or hard do not widen them. Leaves out: several models at once.

local asking = require "segzero.lab.asking"
local metrics = require "segzero.evaluation.metrics"
local sheets = require "segzero.lab.sheets"
local text = require "segzero.workbench.text"
local visible = require "segzero.core.visible"

local M = {}

local RESAMPLES = 2000

-- ---- numbers ----
local function interval(values, seed)
  return metrics.mean(values, { resamples = RESAMPLES, seed = seed })
end

-- The mean and the highest score of each row.
local function row_scores(asked)
  local means = {}
  local bests = {}
  for i, row in ipairs(asked) do
    local sum = 0
    local best = -math.huge
    for _, one in ipairs(row.answers) do
      sum = sum + one.score
      best = math.max(best, one.score)
    end
    means[i] = sum / #row.answers
    bests[i] = best
  end
  return means, bests
end

local function over_answers(asked)
  local parts = {}
  local tokens = 0
  local cut = 0
  local count = 0
  for _, row in ipairs(asked) do
    for _, one in ipairs(row.answers) do
      count = count + 1
      tokens = tokens + #one.ids
      if one.finish ~= "stop" then cut = cut + 1 end
      for name, v in pairs(one.parts or {}) do parts[name] = (parts[name] or 0) + v end
    end
  end
  for name, sum in pairs(parts) do parts[name] = sum / count end
  return parts, tokens / count, cut / count
end

local function measured(variant, asked, seed)
  local means, bests = row_scores(asked)
  local one = { name = variant.name, rows = asked, means = means }
  one.reward = interval(means, seed)
  one.best = interval(bests, seed)
  one.parts, one.length, one.cut = over_answers(asked)
  return one
end

local function add_differences(result, seed)
  local first = result[1].means
  for i = 2, #result do
    local list = {}
    for k, v in ipairs(result[i].means) do list[k] = v - first[k] end
    result[i].difference = interval(list, seed)
  end
end

-- ---- the table ----
local function interval_text(v, form)
  if not v then return "" end
  form = form or "%.2f"
  return (form .. " [" .. form .. ", " .. form .. "]"):format(v[1], v[2], v[3])
end

local function part_names(result)
  local names = {}
  local seen = {}
  for _, one in ipairs(result) do
    for name in pairs(one.parts) do
      if not seen[name] then names[#names + 1] = name end
      seen[name] = true
    end
  end
  table.sort(names)
  return names
end

local function main_table(result)
  local head = { result.what, "reward", "tokens", "cut off" }
  if result.n > 1 then table.insert(head, 3, ("best of %d"):format(result.n)) end
  if #result > 1 then head[#head + 1] = "against the first" end
  local rows = { head }
  for i, one in ipairs(result) do
    local row = { one.name, interval_text(one.reward), ("%.0f"):format(one.length),
      ("%.0f %%"):format(100 * one.cut) }
    if result.n > 1 then table.insert(row, 3, ("%.2f"):format(one.best[1])) end
    if #result > 1 then row[#row + 1] = interval_text(one.difference, "%+.2f") end
    rows[i + 1] = row
  end
  return text.table(rows)
end

local function part_table(result)
  local names = part_names(result)
  if #names == 0 then return {} end
  local rows = { { result.what } }
  for k, name in ipairs(names) do rows[1][k + 1] = visible.line(name, 24) end
  for i, one in ipairs(result) do
    rows[i + 1] = { one.name }
    for k, name in ipairs(names) do
      rows[i + 1][k + 1] = one.parts[name] and ("%.2f"):format(one.parts[name]) or "-"
    end
  end
  return text.table(rows)
end

local function to_text(result)
  local lines = { ("%d rows of %s, %d answer%s each, reward %s; 95 %% intervals over rows"):format(
    result.count, result.set_name, result.n, result.n == 1 and "" or "s", result.reward_name) }
  for _, line in ipairs(main_table(result)) do lines[#lines + 1] = line end
  local parts = part_table(result)
  if #parts > 0 then lines[#lines + 1] = "" end
  for _, line in ipairs(parts) do lines[#lines + 1] = line end
  if result.sheet then lines[#lines + 1] = "images: " .. result.sheet end
  return table.concat(lines, "\n")
end

local mt = { __tostring = to_text, __index = { show = sheets.show_of "sheet" } }

-- ---- all of it ----
function M.run(variants, o)
  local path = sheets.path(o.sheet, o.what)
  local result = setmetatable({ what = o.what, n = variants[1].generation.n or 1,
    count = o.set:count(), set_name = o.set.name or "the set", reward_name = o.reward_name }, mt)
  for i, variant in ipairs(variants) do
    local asked = asking.run { policy = o.policy, set = o.set, ask = variant.ask,
      reward = o.reward, segmenter = o.segmenter, frames = o.frames,
      generation = variant.generation, system_prompt = o.system_prompt }
    result[i] = measured(variant, asked, o.seed)
  end
  add_differences(result, o.seed)
  if path then result.sheet = sheets.compare(path, o.set, result) end
  return result
end

return M
