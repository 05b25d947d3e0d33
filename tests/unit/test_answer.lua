-- test_answer.lua - answers read from text, and scaled: by hand what Seg-Zero's and
-- VisionReasoner's Python does with each.
--
--   ./segzero tests/unit/test_answer.lua

local check = require "tests.support.check"
local answer = require "segzero.formats.answer"

local GOOD = '<think>It is red.</think><answer>{"bbox": [10,100,200,210], "points_1": [30,110], "points_2": [35,180]}</answer>'

-- ---- one object ----
check.equal(answer.parse(GOOD),
  { think = "It is red.", bbox = { 10, 100, 200, 210 }, points = { { 30, 110 }, { 35, 180 } } },
  "plain")

local function one(json, think)
  return answer.parse((think or "<think>t</think>") .. "<answer>" .. json .. "</answer>")
end
local function parsed(json, bbox, points, name)
  local a, why = one(json)
  check.equal(a and { a.bbox, a.points } or why, { bbox, points }, name)
end
local function refused(text, pattern, name)
  local a, why = answer.parse(text)
  check.ok(a == nil and type(why) == "string" and why:find(pattern), name .. ": " .. tostring(why))
end

parsed('{"bbox":[1.9,-1.9,3,4],"points_1":[5.5,6],"points_2":[7,8]}', { 1, -1, 3, 4 },
  { { 5, 6 }, { 7, 8 } }, "numbers are cut toward zero")
parsed('{"bbox":["1"," 2 ",3,true],"points_1":"57","points_2":[7,8,9]}', { 1, 2, 3, 1 },
  { { 5, 7 }, { 7, 8 } }, "what int() and indexing take")
parsed('{"bbox":"1234","points_1":[5,6],"points_2":[7,8]}', { 1, 2, 3, 4 }, { { 5, 6 }, { 7, 8 } },
  "a string of four digits is four numbers")
parsed('{"My_BBox_2d":[1,2,3,4],"bbox":[9,9,9,9],"b_points":[5,6],"POINTS":[7,8],"points_3":[0,0]}',
  { 1, 2, 3, 4 }, { { 5, 6 }, { 7, 8 } }, "first keys that contain the words")
parsed('{"bbox":[0,0,0,0],"points_1":[5,6],"bbox":[1,2,3,4],"points_2":[7,8]}', { 1, 2, 3, 4 },
  { { 5, 6 }, { 7, 8 } }, "a repeated key takes its last value")
parsed('{} {"bbox":[1,2,3,4],"points_1":[5,6],"points_2":[7,8]}', { 1, 2, 3, 4 },
  { { 5, 6 }, { 7, 8 } }, "{} is not {[^}]+}")
parsed('{\n "bbox": [1, 2, 3, 4],\n "points_1": [5, 6], "points_2": [7, 8]\n}', { 1, 2, 3, 4 },
  { { 5, 6 }, { 7, 8 } }, "over several lines")

refused("", "no {", "empty")
refused("<think>t</think>", "no {", "no answer")
refused(GOOD:gsub('"', "'"), "not JSON", "single quotes")
refused("<think>{x}</think>" .. GOOD, "not JSON",
  "the first {...} counts, also inside the thinking")
refused("<think>t</think>" .. '{"bbox":[1,2,3,4],"points_1":[5,6]', "no {", "no closing brace")
refused("<think>t</think>" .. '{"bbox":[1,2,3,4],"points_1":[5,6]}', "1 of 2", "one point")
refused("<think>t</think>" .. '{"bbox":[1,2,3,4],"point_1":[5,6],"point_2":[7,8]}', "0 of 2",
  "point without s")
refused("<think>t</think>" .. '{"box":[1,2,3,4],"points_1":[5,6],"points_2":[7,8]}', "bbox",
  "no bbox")
refused("<think>t</think>" .. '{"bbox":[1,2,3],"points_1":[5,6],"points_2":[7,8]}', "3 numbers",
  "three numbers")
refused("<think>t</think>" .. '{"bbox":[1,2,3,4,5],"points_1":[5,6],"points_2":[7,8]}', "5 numbers",
  "five numbers")
refused("<think>t</think>" .. '{"bbox":[1,2],"BBOX":[1,2,3,4],"points_1":[5,6],"points_2":[7,8]}',
  "2 numbers", "only the first bbox key counts")
refused("<think>t</think>" .. '{"bbox":7,"points_1":[5,6],"points_2":[7,8]}', "no numbers",
  "a number for a box")
refused("<think>t</think>" .. '{"bbox":null,"points_1":[5,6],"points_2":[7,8]}', "no numbers",
  "null for a box")
refused("<think>t</think>" .. '{"bbox":[1,2,NaN,4],"points_1":[5,6],"points_2":[7,8]}', "4 numbers",
  "NaN")
refused("<think>t</think>" .. '{"bbox":[1,2,1e400,4],"points_1":[5,6],"points_2":[7,8]}',
  "4 numbers", "infinity")
refused("<think>t</think>" .. '{"bbox":[1,2,3,"4.5"],"points_1":[5,6],"points_2":[7,8]}',
  "4 numbers", "int('4.5') raises")
refused("<think>t</think>" .. '{"bbox":[1,2,3,4],"points_1":[5],"points_2":[7,8]}', "points_1",
  "half a point")
refused("<think>t</think>" .. '{"bbox":[1,2,3,4],"points_1":[5,6],"points_2":{}}', "not JSON",
  "the piece ends at the first brace")
refused((GOOD:gsub("<think>.*</think>", "")), "think", "no thinking")
refused((GOOD:gsub("It is red.", "")), "think", "empty thinking")
refused((GOOD:gsub("It is red.", "a < b")), "think", "a < in the thinking")
check.equal(answer.parse("<think>x<y</think>" .. GOOD).think, "It is red.",
  "the first thinking that has no <")
check.raises(function() answer.parse(nil) end, "test_answer.*nil, not a string", "no text")

-- ---- scaling ----
check.equal({ answer.round(0.5), answer.round(1.5), answer.round(2.5), answer.round(-0.5),
  answer.round(-1.5), answer.round(0.49999999999999994),
  answer.round(2.4), answer.round(2.6) }, { 0, 2, 2, 0, -2, 0, 2, 3 }, "round() as in Python")
local a = { think = "t", bbox = { 1, 2, 3, 5 }, points = { { 5, 7 }, { 420, 839 } } }
check.equal(answer.scale(a, 0.5, 1.5),
  { think = "t", bbox = { 0, 3, 2, 8 }, points = { { 2, 10 }, { 210, 1258 } } },
  "halves go to the even side")
check.equal(answer.scale(a, 1), a, "factor 1")
check.equal(answer.scale(answer.parse(GOOD), 640 / 840, 480 / 840).bbox, { 8, 57, 152, 120 },
  "840 to 640 x 480")
check.raises(function() answer.scale(a, 0) end, "positive number, got 0", "factor 0")

-- ---- several objects ----
local LIST = '<think>Two.</think> <answer>\n [{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, {"bbox_2d": [1.5,2,3,4,5], "point_2d": [true,-7]}] \n</answer>'
check.equal(answer.parse_list(LIST),
  { think = "Two.", { bbox = { 10, 100, 200, 210 }, point = { 30, 110 } },
  { bbox = { 1.5, 2, 3, 4 }, point = { 1, -7 } } }, "list")
check.equal(answer.scale_list(answer.parse_list(LIST), 0.5, 0.25),
  { think = "Two.", { bbox = { 5, 25, 100, 53 }, point = { 15, 28 } },
  { bbox = { 1, 1, 2, 1 }, point = { 1, -1 } } }, "v * factor + 0.5, cut toward zero")
check.equal(answer.parse_list("<answer>[]</answer>"), { think = "" }, "an empty list, no thinking")
check.equal(answer.parse_list("<answer>\194\160[]\226\128\131</answer>"), { think = "" },
  "white space of other scripts")
for name, case in pairs {
  ["no tags"] = { "[]", "no <answer>" }, ["not closed"] = { "<answer>[]", "no <answer>" },
    ["single quotes"] = { "<answer>[{'bbox_2d': 1}]</answer>", "not JSON" },
  ["an object"] = { '<answer>{"bbox_2d": [1,2,3,4]}</answer>', "not a list" },
    ["a number"] = { "<answer>5</answer>", "not a list" },
  ["nothing"] = { "<answer> </answer>", "not JSON" },
    ["no point"] = { '<answer>[{"bbox_2d": [1,2,3,4]}]</answer>', "object 1 .*point_2d" },
  ["short box"] = { '<answer>[{"bbox_2d": [1,2,3], "point_2d": [1,2]}]</answer>',
    "object 1 .*bbox_2d" },
  ["strings"] = { '<answer>[{"bbox_2d": ["1",2,3,4], "point_2d": [1,2]}]</answer>', "bbox_2d" },
    ["a list of numbers"] = { "<answer>[1]</answer>", "object 1" },
  ["NaN"] = { '<answer>[{"bbox_2d": [1,2,3,4], "point_2d": [NaN,2]}]</answer>', "point_2d" },
} do
  local list, why = answer.parse_list(case[1])
  check.ok(list == nil and why:find(case[2]), name .. ": " .. tostring(why))
end

check.finish()
