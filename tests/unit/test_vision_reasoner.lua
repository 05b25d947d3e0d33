-- test_vision_reasoner.lua - rewards/vision_reasoner.lua against the Python original
-- (golden/vision_reasoner.jsonl, which golden/make_vision_reasoner.py writes), and by hand what the
-- original lacks: frames, errors, bytes that are not UTF-8, the time of long answers.
--
--   ./segzero tests/unit/test_vision_reasoner.lua
--
-- Comparisons are exact, to the last bit of the sums.

local cjson = require "cjson"
local check = require "tests.support.check"
local checks = require "tests.support.reward_checks"
local reward = require "rewards.vision_reasoner"

local function number(text) return ("%.17g"):format(tonumber(text)) end

-- Format, accuracy, non_repeat and score as text.
local function results(text, gt, sample)
  local score, parts = reward(text, gt, sample)
  local format = parts.thinking_format + parts.segmentation_format
  local list = {}
  for i, v in ipairs { format, parts.accuracy, parts.non_repeat, score } do list[i] = number(v) end
  return table.concat(list, " ")
end

check.case("scores equal the Python original's", function()
  local compared = 0
  local accurate = 0
  for line in io.lines "tests/golden/vision_reasoner.jsonl" do
    local case = cjson.decode(line)
    local want = {}
    for i, v in ipairs(case.terms) do want[i] = number(v) end
    want[4] = number(case.score)
    check.equal(results(case.text, case.gt), table.concat(want, " "),
      ("%q, ground truth %q"):format(case.text:sub(1, 400), case.gt:sub(1, 200)))
    compared = compared + 1
    if tonumber(case.terms[2]) > 0 then accurate = accurate + 1 end
  end
  check.equal(compared, 700, "texts compared")
  check.ok(accurate >= 150, accurate .. " of them have an accuracy above 0")
end)

-- ---- by hand ----

local GT = '[{"bbox_2d": [10,20,110,220], "point_2d": [40,60]}]'
local ANSWER = '<think>a</think><answer>[{"bbox_2d": [%s], "point_2d": [%s]}]</answer>'

-- At side 420 a box may be off by less than 5 pixels and a point by less than 15; at 1680, 20 and
-- 60.
check.case("distances count in the sample's frame", function()
  local function expect(text, frame, accuracy, name)
    local _, parts = reward(text, GT, frame and { frame = frame })
    check.equal(parts.accuracy, accuracy, name)
  end
  local off5 = ANSWER:format("15,25,115,225", "40,60")
  local off15 = ANSWER:format("25,35,125,235", "40,60")
  local far = ANSWER:format("10,20,110,220", "60,60")
  expect(off5, nil, 3, "box off by 5")
  expect(off5, 840, 3, "box off by 5, side 840")
  expect(off5, { width = 840, height = 840 }, 3, "box off by 5, 840 x 840")
  expect(off5, 420, 2, "box off by 5, side 420")
  expect(off15, 840, 2, "box off by 15")
  expect(off15, 1680, 3, "box off by 15, side 1680")
  expect(far, 840, 3, "point off by 20")
  expect(far, 420, 2, "point off by 20, side 420")
  -- In 1680 x 840 only x counts half: 15 pixels of x and of y are 7.5 and 15 in 840 x 840.
  expect(off15, { width = 1680, height = 840 }, 2, "box off by 15, 1680 x 840")
  expect(ANSWER:format("25,20,125,220", "40,60"), { width = 1680, height = 840 }, 3, "off in x")
end)

check.case("objects are matched one to one", function()
  local two = '[{"bbox_2d": [10,20,110,220], "point_2d": [40,60]}, '
    .. '{"bbox_2d": [300,310,420,400], "point_2d": [350,350]}]'
  local function accuracy(answer, gt)
    local _, parts = reward("<answer>" .. answer .. "</answer>", gt)
    return parts.accuracy
  end
  check.equal(accuracy(two, two), 3, "both")
  local first, second = two:match "^%[({.-}), ({.-})%]$"
  check.equal(accuracy(("[%s, %s]"):format(second, first), two), 3, "in the other order")
  check.equal(accuracy(("[%s]"):format(second), two), 1.5, "one of two")
  check.equal(accuracy(("[%s, %s]"):format(first, first), two), 1.5, "the same twice")
  check.equal(accuracy(("[%s, %s, %s]"):format(first, second, first), two), 2, "one too many")
  check.equal(accuracy("[]", "[]"), 0, "rightly empty")
end)

check.case("wrong arguments are errors at the caller's line", function()
  local function blames(...) checks.blames(reward, ...) end
  blames("response_text must be a string, got nil", nil, GT)
  blames("ground_truth must be a string, got table", "", {})
  blames("sample.frame", "", GT, { frame = "840" })
end)

check.case("bytes that are not UTF-8 get a score", function()
  local below = checks.numbers(12345)
  local text = ANSWER:format("10,20,110,220", "40,60")
  for _ = 1, 2000 do
    local t = text
    for _ = 1, 1 + below(4) do
      t = checks.damage(below, t)
    end
    local ok, got = pcall(reward, t, GT)
    check.ok(ok and got >= 0 and got <= 7, ("%s on %q"):format(tostring(got), t))
  end
end)

check.case("very long texts are read in linear time", function()
  local object = '{"bbox_2d": [10,20,110,220], "point_2d": [40,60]}'
  local many = "[" .. (object .. ","):rep(20000) .. object .. "]"
  local texts = {
    "<answer>" .. many .. "</answer>",
    "<answer>" .. ("\t"):rep(1e6) .. "</answer>",
    "<answer>" .. ("a \t"):rep(3e5) .. "</answer>",
    ("a."):rep(1e6),
    (" ."):rep(1e6),
    ("<answer>"):rep(1e5),
  }
  local started = os.clock()
  for _, text in ipairs(texts) do check.ok(reward(text, many) ~= nil, "long text") end
  local seconds = os.clock() - started
  check.ok(seconds < 20, ("long texts took %.1f s"):format(seconds))
end)

check.finish()
