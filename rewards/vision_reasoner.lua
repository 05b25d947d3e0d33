-- vision_reasoner.lua - VisionReasoner's reward for several objects (compute_score:
-- vision_reasoner), 0 to 7.
--
--   local reward = require "rewards.vision_reasoner"
--   local score, parts, why = reward(response_text, ground_truth, sample)
--
-- An answer is
--   <think>...</think><answer>[{"bbox_2d": [10,20,110,220], "point_2d": [40,60]}, ...]</answer>
-- and a ground truth the same list without the tags. parts:
--   thinking_format      0 or 1, as in seg_strict.lua
--   segmentation_format  0 to 2, the objects' mean of: "bbox_2d" is a list of 4, "point_2d" of 2
--   accuracy             0 to 3: objects are matched one to one so that the sum of their scores
--                        (object_pairs.lua) is largest; it is divided by the larger of both numbers
--   non_repeat           1, or 0 if the text, split at full stops, repeats itself twice
-- Both lists are cut to 120 objects. Empty lists have no accuracy: a rightly empty answer scores 2.
-- sample may be nil; its frame is that of seg_strict.lua. why(part) says why a part is 0
-- (reasons.lua).
--
-- The original is Python that runs each part in its own try. What raises there (a key that is
-- missing, a string among the numbers, lists of several lengths) leaves the part as it was: the
-- format keeps what the objects before have earned, the accuracy is 0.
-- Leaves out: masks (mask_iou.lua).

local answer = require "segzero.formats.answer"
local assignment = require "segzero.core.assignment"
local number_arrays = require "rewards.number_arrays"
local object_pairs = require "rewards.object_pairs"
local pyjson = require "segzero.formats.pyjson"
local pytext = require "segzero.formats.pytext"
local reasons = require "rewards.reasons"
local terms = require "rewards.seg_terms"

local MAX_OBJECTS = 120
local MAX_PAIR_SCORE = 3

local function is_kind(value, kind) return type(value) == "table" and value.kind == kind end

-- ---- the format ----
-- Python's `word in item`; nil where it raises.
local function contains(item, word)
  if type(item) == "string" then return item:find(word, 1, true) ~= nil end
  if is_kind(item, "object") then return item.map[word] ~= nil end
  if not is_kind(item, "array") then return nil end
  for _, v in ipairs(item) do
    if v == word then return true end
  end
  return false
end

-- 1 or 0 for the key `word` of an item with n numbers; nil where Python raises.
local function key_score(item, word, n)
  local found = contains(item, word)
  if found == nil then return nil end
  if not found then return 0 end
  if not is_kind(item, "object") then return nil end
  if terms.is_list(item.map[word], n) then return 1 end
  return 0
end

local function format_score(list)
  -- Python also walks over a string or an object, and none of their characters or keys scores.
  if not is_kind(list, "array") then return 0 end
  local sum = 0
  for _, item in ipairs(list) do
    local box = key_score(item, "bbox_2d", 4)
    local point = box and key_score(item, "point_2d", 2)
    if not point then break end
    sum = sum + (box + point) / #list
  end
  return sum
end

-- ---- the accuracy ----
-- The first 120 boxes and points of a list of objects as arrays. nil: there are none, an object
-- lacks a key, or they are no arrays of numbers.
local function read_objects(list)
  if not is_kind(list, "array") or #list == 0 then return nil end
  local boxes = {}
  local points = {}
  for i, item in ipairs(list) do
    if not is_kind(item, "object") then return nil end
    local box = item.map.bbox_2d
    local point = item.map.point_2d
    if box == nil or point == nil then return nil end
    if i <= MAX_OBJECTS then
      boxes[i] = box
      points[i] = point
    end
  end
  local objects = { boxes = number_arrays.read(boxes), points = number_arrays.read(points) }
  if not objects.boxes or not objects.points then return nil end
  return objects
end

local function has_large(objects) return objects.boxes.large or objects.points.large end

-- The objects of an answer's and a truth's text; nil where one has none. Large numbers are read
-- again, exactly, if the frame is the original's.
local function read_both(body, list, ground_truth, space)
  local answered = read_objects(list)
  local true_ones = answered and read_objects(pyjson.decode(ground_truth))
  if not true_ones then return nil end
  if space.original and (has_large(answered) or has_large(true_ones)) then
    answered = read_objects(pyjson.decode(body, number_arrays.token))
    true_ones = answered and read_objects(pyjson.decode(ground_truth, number_arrays.token))
    if not true_ones then return nil end
  end
  return answered, true_ones
end

local function accuracy(body, list, ground_truth, space)
  local answered, true_ones = read_both(body, list, ground_truth, space)
  if not answered then return 0 end
  local scores = object_pairs.scores(answered, true_ones, space)
  if not scores then return 0 end
  local m = #answered.boxes
  local n = #true_ones.boxes
  local costs = scores
  for i = 1, m do
    for j = 1, n do costs[i][j] = MAX_PAIR_SCORE - scores[i][j] end
  end
  local _, cost = assignment.solve(costs, m, n)
  return (math.min(m, n) * MAX_PAIR_SCORE - cost) / math.max(m, n)
end

-- ---- repetition ----
local function non_repeat(text)
  local seen = {}
  local repeats = 0
  for part in text:gmatch "[^.]+" do
    local sentence = pytext.strip(part)
    if sentence ~= "" then
      if seen[sentence] then repeats = repeats + 1 end
      if repeats >= 2 then return 0 end
      seen[sentence] = true
    end
  end
  return 1
end

return function(response_text, ground_truth, sample)
  local space = terms.space(response_text, ground_truth, sample, 2)
  local parts = { thinking_format = 0, segmentation_format = 0, accuracy = 0,
    non_repeat = non_repeat(response_text) }
  if terms.has_thinking_format(response_text) then parts.thinking_format = 1 end
  local body = answer.body(response_text)
  local list = body and pyjson.decode(body)
  if list then
    parts.segmentation_format = format_score(list)
    parts.accuracy = accuracy(body, list, ground_truth, space)
  end
  local score = parts.thinking_format + parts.segmentation_format + parts.accuracy
  return score + parts.non_repeat, parts, reasons.several(response_text, ground_truth)
end
