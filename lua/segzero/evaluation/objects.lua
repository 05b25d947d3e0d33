-- objects.lua - how evaluated lists of objects fit: counting, boxes matched one to one, and rows
-- without a target.
--
--   local s = objects.summary(records)     records of judge.lua with several=true
--     s.counting      share of rows with the right number of objects; an unreadable answer counts as
--                     a wrong number
--     s.count_error   mean absolute difference of the numbers
--     s.precision, s.recall      of boxes that overlap by more than half
--     s.n_acc         share of the rows without a target whose answer is empty; nil without such
--     s.no_target     how many those are
--   objects.line(s)                         the same in one line
--
-- Leaves out: average precision over thresholds, which needs scores of objects.

local cjson = require "cjson"

local M = {}

local null = cjson.null

local function number(v)
  if v == nil or v == null then return nil end
  return v
end

function M.summary(records)
  local right = 0
  local off = 0
  local true_boxes = 0
  local found_boxes = 0
  local matched = 0
  local no_target = 0
  local rightly_empty = 0
  for _, record in ipairs(records) do
    local expected = number(record.true_objects) or 0
    local found = number(record.found_objects)
    if found == expected then right = right + 1 end
    off = off + math.abs((found or 0) - expected)
    true_boxes = true_boxes + expected
    found_boxes = found_boxes + (found or 0)
    matched = matched + (number(record.matched) or 0)
    if number(record.true_objects) == 0 then
      no_target = no_target + 1
      if found == 0 then rightly_empty = rightly_empty + 1 end
    end
  end
  local function share(a, b) return b > 0 and a / b or 0 end
  return {
    counting = share(right, #records), count_error = share(off, #records),
    precision = share(matched, found_boxes), recall = share(matched, true_boxes),
    no_target = no_target, n_acc = no_target > 0 and rightly_empty / no_target or nil,
  }
end

-- counting=0.750 count_error=0.312 precision=0.640 recall=0.590 N-Acc=0.900 no_target=10
function M.line(s)
  local n_acc = "none"
  if s.n_acc then n_acc = ("%.3f"):format(s.n_acc) end
  return ("counting=%.3f count_error=%.3f precision=%.3f recall=%.3f N-Acc=%s no_target=%d"):format(
    s.counting, s.count_error, s.precision, s.recall, n_acc, s.no_target)
end

return M
