-- summary.lua - what `segzero reward` prints: scores, parts, times, what looks wrong, and where two
-- rewards disagree.
--
--   summary.scores(items) -> lines       items: of judging.lua, without those that failed
--   summary.parts(items) -> lines
--   summary.kinds(items, order) -> lines the mean score of each kind of probe
--   summary.failures(items) -> lines     of those that failed
--   summary.concerns(items) -> lines     of probes: what a reward should not do
--   summary.disagreement(d, name, most) -> lines      d: of disagreement.lua
--
-- Leaves out: running rewards (judging.lua).

local reasons = require "segzero.reward.reasons"
local text = require "segzero.workbench.text"
local visible = require "segzero.core.visible"

local M = {}

local number = text.number

local function scores_of(items)
  local list = {}
  for i, item in ipairs(items) do list[i] = item.score end
  return list
end

local function append(lines, more)
  for _, line in ipairs(more) do lines[#lines + 1] = line end
  return lines
end

function M.scores(items)
  local values = scores_of(items)
  if #values == 0 then return {} end
  local s = text.statistics(values)
  local lines = { ("score: mean %s, std %s, min %s, max %s"):format(number(s.mean), number(s.std),
    number(s.min), number(s.max)) }
  return append(lines, text.histogram(values))
end

-- ---- parts ----
local function part_values(items)
  local names = {}
  local values = {}
  for _, item in ipairs(items) do
    for name, v in pairs(item.parts or {}) do
      if not values[name] then
        names[#names + 1] = name
        values[name] = {}
      end
      table.insert(values[name], v)
    end
  end
  table.sort(names)
  return names, values
end

function M.parts(items)
  local names, values = part_values(items)
  if #names == 0 then return {} end
  local rows = { { "part", "mean", "std", "min", "max", "share of 0" } }
  for _, name in ipairs(names) do
    local s = text.statistics(values[name])
    rows[#rows + 1] = { visible.line(name, 40), number(s.mean), number(s.std), number(s.min),
      number(s.max), ("%.0f %%"):format(100 * s.zero) }
  end
  return text.table(rows)
end

-- ---- kinds ----
local function means_by_kind(items)
  local sums = {}
  local counts = {}
  for _, item in ipairs(items) do
    sums[item.kind] = (sums[item.kind] or 0) + item.score
    counts[item.kind] = (counts[item.kind] or 0) + 1
  end
  for kind, sum in pairs(sums) do sums[kind] = sum / counts[kind] end
  return sums
end

function M.kinds(items, order)
  if #items == 0 then return {} end
  local means = means_by_kind(items)
  local rows = { { "answer", "mean score" } }
  for _, kind in ipairs(order) do
    if means[kind] then rows[#rows + 1] = { kind, number(means[kind]) } end
  end
  return text.table(rows)
end

-- ---- what looks wrong ----
local function parts_missing(items)
  local names, values = part_values(items)
  for _, name in ipairs(names) do
    if #values[name] < #items then return name, #items - #values[name] end
  end
end

-- How much more each kind earns than the perfect answers to the same rows.
local function over_perfect(items)
  local perfect = {}
  for _, item in ipairs(items) do
    if item.kind == "perfect" then perfect[item.row] = item.score end
  end
  local sums = {}
  local counts = {}
  for _, item in ipairs(items) do
    if perfect[item.row] then
      sums[item.kind] = (sums[item.kind] or 0) + item.score - perfect[item.row]
      counts[item.kind] = (counts[item.kind] or 0) + 1
    end
  end
  for kind, sum in pairs(sums) do sums[kind] = sum / counts[kind] end
  return sums
end

local NOTABLE = 0.01            -- of the range of all scores

function M.concerns(items)
  local lines = {}
  local function add(line, ...) lines[#lines + 1] = "  " .. line:format(...) end
  local values = scores_of(items)
  if #values == 0 then return lines end
  local s = text.statistics(values)
  if s.std == 0 then
    add("every answer earns %s: a run would learn nothing", number(s.min))
    return lines
  end
  local over = over_perfect(items)
  for kind, more in pairs(over) do
    if more > NOTABLE * (s.max - s.min) then
      add("'%s' earns %s more than a perfect answer to the same row", kind, number(more))
    end
  end
  if over["wrong place"] == 0 then add "a box in the wrong place earns as much as the right one" end
  if over.empty == 0 then add "an empty answer earns as much as a perfect one" end
  local name, count = parts_missing(items)
  if name then
    add("%d answers have no part '%s': a run's mean of it divides by all answers", count,
      visible.line(name, 40))
  end
  table.sort(lines)
  return lines
end

local MOST_FAILURES = 3

function M.failures(items)
  local lines = {}
  local kinds = {}
  local shown = 0
  local count = 0
  for _, item in ipairs(items) do
    if item.failure then
      count = count + 1
      -- What comes after the answer is the user's traceback.
      local plain = item.failure:gsub("%d+", "0")
      local kind = plain:match "\n  answer:[^\n]*\n(.*)$" or plain:match "^[^\n]*"
      if not kinds[kind] and shown < MOST_FAILURES then
        shown = shown + 1
        lines[#lines + 1] = item.kind and ("on the answer '%s':"):format(item.kind) or nil
        for line in item.failure:gmatch "[^\n]+" do lines[#lines + 1] = "  " .. line end
      end
      kinds[kind] = true
    end
  end
  if count > 0 then
    table.insert(lines, 1, ("the reward failed on %d of %d answers"):format(count, #items))
  end
  return lines
end

-- ---- two rewards ----
local function zero_words(item)
  local words = {}
  for name, why in pairs(reasons.zeros(item.parts, item.why)) do
    words[#words + 1] = ("%s is 0: %s"):format(name, visible.line(why, 120))
  end
  table.sort(words)
  return words
end

local function shown_item(lines, item)
  local where = { "row " .. visible.line(tostring(item.row), 60) }
  if item.step then table.insert(where, 1, "step " .. item.step) end
  where[#where + 1] = item.kind
  lines[#lines + 1] = ("  %s against %s, %s"):format(number(item.score), number(item.other),
    table.concat(where, ", "))
  lines[#lines + 1] = "      " .. visible.line(item.text, 86)
  for _, words in ipairs(zero_words(item)) do lines[#lines + 1] = "      " .. words end
end

function M.disagreement(d, name, most)
  local lines = {}
  if d.pairs > 0 then
    local pairs_text = "against %s: %d pairs of answers to one question, %.0f %% in the other "
      .. "order, %.0f %% equal here"
    lines[1] = pairs_text:format(name, d.pairs, 100 * d.flipped, 100 * d.lost)
  else
    lines[1] = ("against %s: neither tells two answers to one question apart"):format(name)
  end
  for i = 1, math.min(most, #d.list) do
    if d.list[i].gap > 0 then shown_item(lines, d.list[i]) end
  end
  return lines
end

return M
