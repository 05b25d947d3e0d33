-- test_answer.lua - answers read from text, and scaled. The expected values are worked out by hand
-- from what Seg-Zero's and VisionReasoner's Python does with each text.
--
--   ./segzero tests/unit/test_answer.lua

local check = require "tests.support.check"
local answer = require "segzero.formats.answer"

local THINK = "<think>t</think>"
local GOOD = "<think>It is red.</think><answer>"
  .. '{"bbox": [10,100,200,210], "points_1": [30,110], "points_2": [35,180]}</answer>'

check.case("an answer of one object", function()
  local want = {
    think = "It is red.",
    bbox = { 10, 100, 200, 210 },
    points = { { 30, 110 }, { 35, 180 } },
  }
  check.equal(answer.parse(GOOD), want, "the plain form")
  local after_other = answer.parse("<think>x<y</think>" .. GOOD)
  check.equal(after_other.think, "It is red.", "the first thinking without a < counts")
end)

check.case("JSON that Python's int() and indexing accept", function()
  local function parsed(json, bbox, points, name)
    local a, why = answer.parse(THINK .. "<answer>" .. json .. "</answer>")
    check.equal(a and { a.bbox, a.points } or why, { bbox, points }, name)
  end
  local BOX = { 1, 2, 3, 4 }
  local POINTS = { { 5, 6 }, { 7, 8 } }
  parsed('{"bbox":[1.9,-1.9,3,4],"points_1":[5.5,6],"points_2":[7,8]}', { 1, -1, 3, 4 }, POINTS,
    "numbers are cut toward zero")
  parsed('{"bbox":["1"," 2 ",3,true],"points_1":"57","points_2":[7,8,9]}', { 1, 2, 3, 1 },
    { { 5, 7 }, { 7, 8 } }, "strings, true, a string as a point, a third coordinate")
  parsed('{"bbox":"1234","points_1":[5,6],"points_2":[7,8]}', BOX, POINTS,
    "a string of four digits is four numbers")
  parsed('{"My_BBox_2d":[1,2,3,4],"bbox":[9,9,9,9],"b_points":[5,6],"POINTS":[7,8],'
    .. '"points_3":[0,0]}', BOX, POINTS, "the first keys that contain the words")
  parsed('{"bbox":[0,0,0,0],"points_1":[5,6],"bbox":[1,2,3,4],"points_2":[7,8]}', BOX, POINTS,
    "a repeated key takes its last value")
  parsed('{} {"bbox":[1,2,3,4],"points_1":[5,6],"points_2":[7,8]}', BOX, POINTS,
    "an empty {} is passed over")
  parsed('{\n "bbox": [1, 2, 3, 4],\n "points_1": [5, 6], "points_2": [7, 8]\n}', BOX, POINTS,
    "over several lines")
end)

check.case("texts that the Python scripts refuse", function()
  local function refused(text, pattern, name)
    local a, why = answer.parse(text)
    local good = a == nil and type(why) == "string" and why:find(pattern)
    check.ok(good, name .. ": " .. tostring(why))
  end
  refused("", "no {", "empty")
  refused(THINK, "no {", "no answer")
  refused(GOOD:gsub('"', "'"), "not JSON", "single quotes")
  refused("<think>{x}</think>" .. GOOD, "not JSON", "the first {...} is inside the thinking")
  refused((GOOD:gsub("<think>.*</think>", "")), "think", "no thinking")
  refused((GOOD:gsub("It is red.", "")), "think", "empty thinking")
  refused((GOOD:gsub("It is red.", "a < b")), "think", "a < in the thinking")

  -- Boxes.
  refused(THINK .. '{"bbox":[1,2,3,4],"points_1":[5,6]', "no {", "no closing brace")
  local POINTS = '"points_1":[5,6],"points_2":[7,8]}'
  refused(THINK .. '{"box":[1,2,3,4],' .. POINTS, "bbox", "no bbox")
  refused(THINK .. '{"bbox":[1,2,3],' .. POINTS, "3 numbers", "three numbers")
  refused(THINK .. '{"bbox":[1,2,3,4,5],' .. POINTS, "5 numbers", "five numbers")
  refused(THINK .. '{"bbox":[1,2],"BBOX":[1,2,3,4],' .. POINTS, "2 numbers",
    "only the first bbox key counts")
  refused(THINK .. '{"bbox":7,' .. POINTS, "no numbers", "a number for a box")
  refused(THINK .. '{"bbox":null,' .. POINTS, "no numbers", "null for a box")
  refused(THINK .. '{"bbox":[1,2,NaN,4],' .. POINTS, "4 numbers", "NaN")
  refused(THINK .. '{"bbox":[1,2,1e400,4],' .. POINTS, "4 numbers", "infinity")
  refused(THINK .. '{"bbox":[1,2,1e308,4],' .. POINTS, "4 numbers", "infinite once it is scaled")
  refused(THINK .. '{"bbox":[1,2,3,"4.5"],' .. POINTS, "4 numbers", "int('4.5') raises")

  -- Points.
  local BOX = THINK .. '{"bbox":[1,2,3,4],'
  refused(BOX .. '"points_1":[5,6]}', "1 of 2", "one point")
  refused(BOX .. '"point_1":[5,6],"point_2":[7,8]}', "0 of 2", "point without s")
  refused(BOX .. '"points_1":[5],"points_2":[7,8]}', "points_1", "a point of one number")
  refused(BOX .. '"points_1":[5,6],"points_2":{}}', "not JSON", "the text ends at the first brace")
  check.raises(function() answer.parse(nil) end, "test_answer.*nil, not a string", "no text")
end)

check.case("an answer of one object is scaled like Python's round()", function()
  local halves = { 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999999999999994, 2.4, 2.6 }
  local rounded = {}
  for i, x in ipairs(halves) do rounded[i] = answer.round(x) end
  check.equal(rounded, { 0, 2, 2, 0, -2, 0, 2, 3 }, "round()")

  local a = { think = "t", bbox = { 1, 2, 3, 5 }, points = { { 5, 7 }, { 420, 839 } } }
  check.equal(answer.scale(a, 0.5, 1.5),
    { think = "t", bbox = { 0, 3, 2, 8 }, points = { { 2, 10 }, { 210, 1258 } } },
    "halves go to the even side")
  check.equal(answer.scale(a, 1), a, "factor 1")
  check.equal(answer.scale(answer.parse(GOOD), 640 / 840, 480 / 840).bbox, { 8, 57, 152, 120 },
    "840 to 640 x 480")
  check.raises(function() answer.scale(a, 0) end, "positive number, got 0", "factor 0")
end)

check.case("an answer of several objects", function()
  local list = answer.parse_list('<think>Two.</think> <answer>\n '
    .. '[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, '
    .. '{"bbox_2d": [1.5,2,3,4,5], "point_2d": [true,-7]}] \n</answer>')
  check.equal(list, {
    think = "Two.",
    { bbox = { 10, 100, 200, 210 }, point = { 30, 110 } },
    { bbox = { 1.5, 2, 3, 4 }, point = { 1, -7 } },
  }, "two objects")
  check.equal(answer.scale_list(list, 0.5, 0.25), {
    think = "Two.",
    { bbox = { 5, 25, 100, 53 }, point = { 15, 28 } },
    { bbox = { 1, 1, 2, 1 }, point = { 1, -1 } },
  }, "v * factor + 0.5, cut toward zero")
  check.equal(answer.parse_list("<answer>[]</answer>"), { think = "" },
    "an empty list, no thinking")
  check.equal(answer.parse_list("<answer>\194\160[]\226\128\131</answer>"), { think = "" },
    "white space outside ASCII")
end)

check.case("lists of objects that the Python scripts refuse", function()
  local function refused(text, pattern, name)
    local list, why = answer.parse_list(text)
    check.ok(list == nil and why:find(pattern), name .. ": " .. tostring(why))
  end
  local function object(json) return "<answer>[" .. json .. "]</answer>" end
  refused("[]", "no <answer>", "no tags")
  refused("<answer>[]", "no <answer>", "not closed")
  refused("<answer>[{'bbox_2d': 1}]</answer>", "not JSON", "single quotes")
  refused("<answer> </answer>", "not JSON", "nothing")
  refused('<answer>{"bbox_2d": [1,2,3,4]}</answer>', "not a list", "an object")
  refused("<answer>5</answer>", "not a list", "a number")
  refused(object "1", "object 1", "a list of numbers")
  refused(object '{"bbox_2d": [1,2,3,4]}', "object 1 .*point_2d", "no point")
  refused(object '{"bbox_2d": [1,2,3], "point_2d": [1,2]}', "object 1 .*bbox_2d", "a short box")
  refused(object '{"bbox_2d": ["1",2,3,4], "point_2d": [1,2]}', "bbox_2d", "a string in a box")
  refused(object '{"bbox_2d": [1,2,3,4], "point_2d": [NaN,2]}', "point_2d", "NaN in a point")
  refused(object '{"bbox_2d": [1,2,3,4], "point_2d": [-1e308,2]}', "point_2d", "a huge point")
end)

check.case("lists of boxes whose points may be missing", function()
  local list = answer.parse_boxes('<answer>[{"bbox_2d": [1,2,3,4]}, '
    .. '{"bbox_2d": [5,6,7,8], "point_2d": [6,7]}]</answer>')
  check.equal(answer.scale_list(list, 2, 10), { think = "", { bbox = { 2, 20, 6, 40 } },
    { bbox = { 10, 60, 14, 80 }, point = { 12, 70 } } }, "scaled")
  local none, why = answer.parse_boxes '<answer>[{"point_2d": [6,7]}]</answer>'
  check.equal({ none, why }, { nil, 'object 1 of the answer has no "bbox_2d" of 4 numbers' },
    "a box may not")
end)

check.finish()
