-- comparing.lua - what a run wrote about a step, against the same step run again.
--
--   local d = comparing.answers(stored, again)     lists of records of rollouts.jsonl (decoded)
--     d.answers, d.tokens        how many were compared
--     d.same                     whether everything is equal
--     d.counts                   {tokens =, logprobs =, reward =, parts =, advantage =, other =}:
--                                answers that differ in it
--     d.first                    nil, or {what =, row =, answer =, token = nil or its place,
--                                old =, new =}: the first number that differs
--     d.largest                  the largest difference of two log-probabilities
--   comparing.metrics(stored, again) -> {{name, old, new}, ...} of numbers that differ, and how
--                                many were compared. Times are left out
--
-- Numbers are compared as their lines have them: 14 digits, which hold every f32 exactly.
-- Leaves out: weights (replaying.lua).

local cjson = require "cjson"
local names = require "segzero.log.names"

local M = {}

local function note(d, key, first)
  d.same = false
  d.counts[key] = (d.counts[key] or 0) + 1
  d.first = d.first or first
end

-- The first place where two lists differ; nil if they are equal.
local function first_difference(a, b)
  for i = 1, math.max(#a, #b) do
    if a[i] ~= b[i] then return i end
  end
  return nil
end

local function list_of(v)
  if type(v) == "table" then return v end
  return { v }
end

local function compare_lists(d, key, stored, again)
  local a = list_of(stored[key])
  local b = list_of(again[key])
  local place = first_difference(a, b)
  if not place then return false end
  local at
  if #a > 1 or #b > 1 then at = place end
  note(d, key == "ids" and "tokens" or key, { what = key, row = stored.row,
    answer = stored.answer, token = at, old = a[place], new = b[place] })
  return true
end

local function compare_parts(d, stored, again)
  local a = list_of(stored.parts)
  local b = list_of(again.parts)
  local keys = {}
  for _, t in ipairs { a, b } do
    for key in pairs(t) do keys[#keys + 1] = key end
  end
  table.sort(keys, function(x, y) return tostring(x) < tostring(y) end)
  for _, key in ipairs(keys) do
    if a[key] ~= b[key] then
      note(d, "parts", { what = "part " .. tostring(key), row = stored.row,
        answer = stored.answer, old = a[key], new = b[key] })
      return
    end
  end
end

local function compare_other(d, stored, again)
  for _, key in ipairs { "row", "answer", "text", "finish", "problem", "solution" } do
    if stored[key] ~= again[key] then
      note(d, "other", { what = key, row = stored.row, answer = stored.answer, old = stored[key],
        new = again[key] })
      return
    end
  end
end

local function compare_one(d, stored, again)
  d.answers = d.answers + 1
  d.tokens = d.tokens + #(stored.ids or {})
  local other_tokens = compare_lists(d, "ids", stored, again)
  compare_lists(d, "logprobs", stored, again)
  if not other_tokens then
    for i, v in ipairs(stored.logprobs or {}) do
      d.largest = math.max(d.largest, math.abs(v - ((again.logprobs or {})[i] or v)))
    end
  end
  compare_other(d, stored, again)
  compare_lists(d, "reward", stored, again)
  compare_parts(d, stored, again)
  compare_lists(d, "advantage", stored, again)
end

function M.answers(stored, again)
  local d = { answers = 0, tokens = 0, same = true, counts = {}, largest = 0 }
  for i = 1, math.max(#stored, #again) do
    if stored[i] and again[i] then
      compare_one(d, stored[i], again[i])
    else
      local one = stored[i] or again[i]
      note(d, "other", { what = "number of answers", row = one.row, answer = one.answer,
        old = #stored, new = #again })
      break
    end
  end
  return d
end

-- ---- the numbers of a step ----
-- Not of the step's arithmetic.
local OTHER = { seconds = true, time = true, step = true }

local function is_compared(name, value)
  if OTHER[name] or names.is_verl(name) then return false end
  return type(value) == "number" or type(value) == "string"
end

function M.metrics(stored, again)
  local list = {}
  local count = 0
  local keys = {}
  for key, value in pairs(stored) do
    if is_compared(key, value) and again[key] ~= nil then keys[#keys + 1] = key end
  end
  table.sort(keys)
  local read = cjson.decode(require("segzero.log.jsonl").text(again))
  for _, key in ipairs(keys) do
    count = count + 1
    if stored[key] ~= read[key] then list[#list + 1] = { key, stored[key], read[key] } end
  end
  return list, count
end

return M
