-- test_refshapes_multi.lua - RefShapes with any number of objects in a question
-- (data/refshapes/several.lua), checked against the scene; the data source refshapes_multi; lists
-- in the reward mask_iou and in drawings.
--
--   ./segzero tests/unit/test_refshapes_multi.lua

local cjson = require "cjson"
local check = require "tests.support.check"
local data = require "segzero.data"
local mask_iou = require "rewards.mask_iou"
local refshapes = require "segzero.data.refshapes"
local reward = require "rewards.vision_reasoner"
local tensor = require "segzero.core.tensor"
local truth = require "segzero.data.truth"

local SIZE = 84

local function sample(index, empty, split)
  return refshapes.sample { seed = 5, index = index, size = SIZE, split = split or "train",
    several = { empty = empty } }
end

-- The objects that "all the small red circles" names, by the words alone.
local function named(text, objects)
  local words = {}
  for word in text:gmatch "%a+" do words[word] = true end
  local list = {}
  for i, o in ipairs(objects) do
    local function fits(value, values)
      for _, v in ipairs(values) do
        if words[v] or words[v .. "s"] or words[v .. "es"] then
          return words[value] or words[value .. "s"] or words[value .. "es"]
        end
      end
      return true
    end
    if fits(o.size, { "small", "large" }) and fits(o.colour, refshapes.colours)
      and fits(o.kind, refshapes.kinds) then
      list[#list + 1] = i
    end
  end
  return list
end

check.case("a question's objects are those that it names", function()
  local kinds = { all = 0, union = 0, one = 0, empty = 0 }
  for index = 1, 400 do
    local s = sample(index, 0.2)
    local q = s.questions[1]
    check.equal(#s.questions, 1, "questions")
    local sorted = { unpack(q.targets) }
    table.sort(sorted)
    if q.problem:find "^all the " then
      check.equal(sorted, named(q.problem, s.objects), q.problem)
    end
    if #q.targets == 0 then
      kinds.empty = kinds.empty + 1
    elseif q.problem:find "^all the " then
      kinds.all = kinds.all + 1
      check.ok(#q.targets >= 2, q.problem)
    elseif q.problem:find "^'.+' and '.+'$" then
      kinds.union = kinds.union + 1
      check.equal(#q.targets, 2, q.problem)
    else
      kinds.one = kinds.one + 1
      check.equal(#q.targets, 1, q.problem)
    end
  end
  for kind, count in pairs(kinds) do
    check.ok(count >= 40, ("%d of 400 questions are '%s'"):format(count, kind))
  end
  for index = 1, 60 do
    check.ok(#sample(index, 0).questions[1].targets > 0, "empty = 0: every question has a target")
  end
end)

check.case("the solution scores in full, and the mask is the union", function()
  for index = 1, 60 do
    local s = sample(index, 0.2, "heldout")
    local q = s.questions[1]
    local objects = cjson.decode(q.solution)
    check.equal(#objects, #q.targets, "objects of the solution")
    local answer = "<think>" .. q.think .. "</think><answer>" .. q.answer .. "</answer>"
    local score = reward(answer, q.solution, { frame = SIZE })
    local want = 7
    if #q.targets == 0 then want = 2 end
    check.equal(score, want, q.problem)
    local mask = q.mask()
    local pixels = 0
    for i = 0, SIZE * SIZE - 1 do pixels = pixels + mask[i] end
    local sum = 0
    for _, object in ipairs(objects) do
      local b = object.bbox_2d
      for y = b[2], b[4] do
        for x = b[1], b[3] do sum = sum + mask[y * SIZE + x] end
      end
      check.equal(mask[object.point_2d[2] * SIZE + object.point_2d[1]], 1,
        "a point is on its object")
    end
    -- Boxes of objects never overlap, so each pixel of the mask is in exactly one of them.
    check.equal(sum, pixels, "pixels in the boxes")
  end
end)

check.case("the same numbers give the same questions, and other scenes stay", function()
  for index = 1, 20 do
    local a = sample(index, 0.1)
    local b = sample(index, 0.1)
    check.equal(a.questions[1].solution, b.questions[1].solution, "twice the same")
    local single = refshapes.sample { seed = 5, index = index, size = SIZE }
    check.equal(#single.objects, #a.objects, "objects of the scene")
  end
end)

check.case("the data source", function()
  local options = { split = "heldout", size = SIZE, seed = 3, rows = 50 }
  local set = data.open("refshapes_multi", options)
  check.equal(set:count(), 50, "rows")
  local empty = 0
  for i = 1, 50 do
    local row = set:row(i)
    check.ok(truth.is_list(row.solution), row.solution)
    local objects = truth.objects(row)
    if #objects == 0 then empty = empty + 1 end
    local mask = row.mask()
    check.equal(mask:shape(), { SIZE, SIZE }, "mask")
    mask:free()
    row.image:free()
  end
  check.ok(empty >= 1 and empty <= 15, empty .. " of 50 rows have no target")
end)

-- segment() draws the boxes, so the masks are known.
local function with_boxes(row)
  row.segment = function(found)
    local mask = tensor.zeros({ SIZE, SIZE }, { dtype = "u8" })
    local pixels = tensor.data(mask)
    for _, object in ipairs(found) do
      local b = object.bbox
      for y = b[2], b[4] do
        for x = b[1], b[3] do pixels[y * SIZE + x] = 1 end
      end
    end
    return mask
  end
  return row
end

check.case("mask_iou of lists", function()
  local solution = '[{"bbox_2d": [0,0,9,9], "point_2d": [5,5]}, '
    .. '{"bbox_2d": [20,20,29,29], "point_2d": [25,25]}]'
  local function row_of(boxes)
    local row = { id = "r", frame = SIZE }
    with_boxes(row)
    row.mask = function() return row.segment(boxes) end
    return row
  end
  local both = row_of { { bbox = { 0, 0, 9, 9 } }, { bbox = { 20, 20, 29, 29 } } }
  local none = row_of {}
  local function score(answer, gt, row)
    return (mask_iou("<think>a</think><answer>" .. answer .. "</answer>", gt, row))
  end
  local first = '[{"bbox_2d": [0,0,9,9], "point_2d": [5,5]}]'
  check.equal(score(solution, solution, both), 5, "both objects")
  check.equal(score(first, solution, both), 3.5, "one of two: half of the union")
  check.equal(score("[]", solution, both), 2, "wrongly empty")
  check.equal(score("[]", "[]", none), 5, "rightly empty")
  check.equal(score(first, "[]", none), 2, "an object that is not there")
  check.equal(score("{}x", "[]", none), 1, "an answer that cannot be read")
end)

check.finish()
