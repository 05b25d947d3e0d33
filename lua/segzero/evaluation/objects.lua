-- objects.lua - how evaluated lists of objects fit: counting, boxes matched one to one, and rows
-- without a target.
--
--   local s = objects.summary(records)     records of judge.lua with several=true
--     s.counted       rows that state how many objects there are; nil below without any
--     s.counting      share of them with the right number of objects; an unreadable answer counts
--                     as a wrong number
--     s.count_error   mean absolute difference of the numbers (VisionReasoner's mae)
--     s.count_rmse    root of the mean squared difference
--     s.precision, s.recall      of boxes that overlap by more than half
--     s.no_target     rows without a target: no true object, or a true mask with nothing inside
--     s.n_acc         share of them whose answer is an empty list; nil without such rows
--     s.t_acc         share of the other rows whose answer names an object; an unreadable answer
--                     names none
--   objects.line(s)                         the same in one line
--
-- N-Acc and T-Acc are gRefCOCO's. Leaves out: average precision (coco_ap.lua).

local value_or = require("segzero.evaluation.fields").value_or

local M = {}

local function share(a, b)
  if b > 0 then return a / b end
  return 0
end

-- How many objects there are and how many the answer names.
local function add_count(sums, expected, found)
  if not expected then return end
  local off = math.abs((found or 0) - expected)
  sums.counted = sums.counted + 1
  sums.off = sums.off + off
  sums.squared = sums.squared + off ^ 2
  if found == expected then sums.right = sums.right + 1 end
end

local function add_target(sums, expected, found)
  if expected == 0 then
    sums.no_target = sums.no_target + 1
    if found == 0 then sums.rightly_empty = sums.rightly_empty + 1 end
  else
    sums.target = sums.target + 1
    if found and found > 0 then sums.named = sums.named + 1 end
  end
end

function M.summary(records)
  local sums = { counted = 0, right = 0, off = 0, squared = 0, no_target = 0, rightly_empty = 0,
    target = 0, named = 0, true_boxes = 0, found_boxes = 0, matched = 0 }
  for _, record in ipairs(records) do
    local expected = value_or(record.true_objects, nil)
    local found = value_or(record.found_objects, nil)
    add_count(sums, expected, found)
    add_target(sums, expected, found)
    sums.true_boxes = sums.true_boxes + (expected or 0)
    sums.found_boxes = sums.found_boxes + (found or 0)
    sums.matched = sums.matched + value_or(record.matched, 0)
  end
  local s = { counted = sums.counted, no_target = sums.no_target }
  if sums.counted > 0 then
    s.counting = sums.right / sums.counted
    s.count_error = sums.off / sums.counted
    s.count_rmse = math.sqrt(sums.squared / sums.counted)
    s.precision = share(sums.matched, sums.found_boxes)
    s.recall = share(sums.matched, sums.true_boxes)
  end
  if sums.no_target > 0 then s.n_acc = sums.rightly_empty / sums.no_target end
  if sums.target > 0 then s.t_acc = sums.named / sums.target end
  return s
end

local NAMES = {
  { "counting", "counting" }, { "count_error", "count_error" }, { "precision", "precision" },
  { "recall", "recall" }, { "N-Acc", "n_acc" }, { "T-Acc", "t_acc" },
}

-- counting=0.750 count_error=0.312 precision=0.640 recall=0.590 N-Acc=0.900 T-Acc=1.000 no_target=9
function M.line(s)
  local parts = {}
  for i, name in ipairs(NAMES) do
    local v = s[name[2]]
    parts[i] = name[1] .. "=none"
    if v then parts[i] = ("%s=%.3f"):format(name[1], v) end
  end
  return ("%s no_target=%d"):format(table.concat(parts, " "), s.no_target)
end

return M
