-- learned.lua - what a run changed on its held-out rows, in plain words and with intervals.
--
--   learned.lines(before, after) -> list of lines      two results of evaluator.held_out
--
--   What was learned, on 256 held-out rows [95 % interval of the change]:
--     overlap of the masks with the true ones (gIoU)     0.371 -> 0.569   +0.197 [+0.137, +0.251]
--     ...
-- A figure's change is the mean over rows of the difference, so what differs between rows does not
-- widen its interval. Figures that are the same before and after are left out. The reward itself
-- has a line only if nothing else changed. An answer that lacks a part counts 0 there, as in logs.
-- Leaves out: several answers to a row; every record is the first answer.

local metrics = require "segzero.evaluation.metrics"

local M = {}

-- An IoU above this counts as a hit, as in Seg-Zero's rewards.
local HIT = 0.5

-- Words for the parts of Seg-Zero's rewards, if they are 0 or 1. Other parts have their own names.
local WORDS = {
  thinking_format = "answers in the asked format (thinking)",
  segmentation_format = "answers in the asked format (keys)",
  iou = "boxes that overlap the true one by more than half",
  points = "points close to the true ones",
  box_l1 = "boxes with sides close to the true ones",
}
local ORDER = { "iou", "box_l1", "points", "segmentation_format", "thinking_format" }

-- value(record) -> number or nil. Returns a line, or nil where the rows have no such figure.
local function change(name, before, after, value)
  local sums = { 0, 0 }
  local differences = {}
  for i, record in ipairs(before) do
    local old = value(record)
    local new = value(after[i])
    if not old or not new then return nil end
    sums[1] = sums[1] + old / #before
    sums[2] = sums[2] + new / #before
    differences[i] = new - old
  end
  local interval = metrics.mean(differences, {})
  if not interval then return nil end
  local line = "  %-50s %.3f -> %.3f   %+.3f [%+.3f, %+.3f]"
  return line:format(name, sums[1], sums[2], interval[1], interval[2], interval[3]), interval[1]
end

local function part_of(name)
  return function(record) return record.parts and record.parts[name] or 0 end
end

-- The names of the parts: Seg-Zero's first, then others in alphabetical order.
local function part_names(...)
  local known = {}
  local names = {}
  for _, name in ipairs(ORDER) do
    known[name] = true
    names[#names + 1] = name
  end
  local others = {}
  for _, records in ipairs { ... } do
    for _, record in ipairs(records) do
      for name in pairs(record.parts or {}) do
        if not known[name] then others[#others + 1] = name end
        known[name] = true
      end
    end
  end
  table.sort(others)
  for _, name in ipairs(others) do names[#names + 1] = name end
  return names
end

-- A part of vision_reasoner with one of these names may be 2.
local function words_of(name, ...)
  local value = part_of(name)
  for _, records in ipairs { ... } do
    for _, record in ipairs(records) do
      local v = value(record)
      if v ~= 0 and v ~= 1 then return name end
    end
  end
  return WORDS[name] or name
end

function M.lines(before, after)
  local old = before.records
  local new = after.records
  if #old == 0 or #old ~= #new then return {} end
  local head = "What was learned, on %d held-out rows [95 %% interval of the change]:"
  local lines = { head:format(#old) }
  local function add(...)
    local line, difference = change(...)
    if line and difference ~= 0 then lines[#lines + 1] = line end
  end
  add("masks that cover what is meant (IoU above 0.5)", old, new, function(record)
    if not record.iou then return nil end
    if record.iou > HIT then return 1 end
    return 0
  end)
  add("overlap of the masks with the true ones (gIoU)", old, new,
    function(record) return record.iou end)
  for _, name in ipairs(part_names(old, new)) do
    add(words_of(name, old, new), old, new, part_of(name))
  end
  if #lines == 1 then add("reward", old, new, function(record) return record.reward end) end
  if #lines == 1 then lines[2] = "  nothing that is measured changed" end
  return lines
end

return M
