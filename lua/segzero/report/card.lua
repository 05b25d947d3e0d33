-- card.lua - one answer as the page shows it, as JSON text.
--
--   card.json(pick, context) -> text
--     pick     of answers.lua
--     context  {reward = worker.reward.compute_score, frame = of this row or nil}
--
-- {"tags": ["best"], "row": , "answer": , "problem": , "text": , "reward": , "parts": {},
--  "zeros": {part: why}, "advantage": , "finish": , "group": [rewards], "truth": marks,
--  "found": marks or absent, "unread": why, "frame": [width, height]}
--
-- Texts are cut to 8,000 bytes, and their control characters are shown (core/visible.lua). If the
-- frame is not known, it is the square that holds all marks, with "guessed": true.
-- Leaves out: the image (thumbnails.lua).

local cjson = require "cjson"
local files = require "segzero.core.files"
local marks = require "segzero.report.marks"
local visible = require "segzero.core.visible"
local why = require "segzero.report.why"

local M = {}

local MOST_TEXT = 8000
local MOST_GROUP = 256          -- rewards of one prompt that are shown

local function shown(text, most)
  if type(text) ~= "string" then return nil end
  if #text > most then text = text:sub(1, most) .. " ... (cut)" end
  return visible.text(text)
end

local function number(v)
  if type(v) ~= "number" or v ~= v or math.abs(v) == math.huge then return nil end
  return tonumber(("%.6g"):format(v))
end

local function numbers(t)
  local out = {}
  if type(t) ~= "table" then return out end
  for name, v in pairs(t) do out[shown(tostring(name), 100)] = number(v) end
  return out
end

-- Estimators may give each token an advantage of its own: then their mean is shown.
local function advantage_of(v)
  if type(v) ~= "table" then return number(v) end
  local sum = 0
  for _, x in ipairs(v) do sum = sum + (number(x) or 0) end
  if #v == 0 then return nil end
  return number(sum / #v)
end

local function group_of(rewards)
  local out = {}
  for i = 1, math.min(#rewards, MOST_GROUP) do out[i] = number(rewards[i]) end
  return out
end

-- cjson writes an empty table as an object.
local function lists_of(found)
  local out = {}
  for _, kind in ipairs { "boxes", "points" } do
    if #found[kind] > 0 then out[kind] = found[kind] end
  end
  return out
end

local function frame_of(found, true_marks, known)
  if known then return { known.width, known.height }, nil end
  local side = math.ceil(marks.extent { found or { boxes = {}, points = {} }, true_marks } * 1.05)
  return { side, side }, true
end

function M.json(pick, context)
  local record = cjson.decode(pick.line)
  local text = record.text
  if type(text) ~= "string" then text = "" end
  local solution = record.solution
  local true_marks = marks.solution(solution)
  local found, unread = marks.answer(text, marks.several(solution))
  local zeros = why.zeros { reward = context.reward, text = text, solution = solution,
    parts = record.parts, frame = context.frame }
  for name, words in pairs(zeros) do zeros[name] = visible.line(words, 300) end
  local frame, guessed = frame_of(found, true_marks, context.frame)
  return files.json {
    tags = pick.tags, row = shown(tostring(record.row), 200), answer = number(record.answer),
    problem = shown(record.problem, MOST_TEXT), solution = shown(solution, MOST_TEXT),
    text = shown(text, MOST_TEXT), reward = number(record.reward), parts = numbers(record.parts),
    zeros = zeros, advantage = advantage_of(record.advantage),
    finish = shown(record.finish, 20), group = group_of(pick.group), truth = lists_of(true_marks),
    found = found and lists_of(found), unread = unread and visible.line(unread, 300),
    frame = frame, guessed = guessed,
  }
end

return M
