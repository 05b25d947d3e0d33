-- test_rewards.lua - the rewards in rewards/: Seg-Zero's two single-object rewards against the
-- Python originals (golden/rewards.jsonl), the JSON and int() readers against Python's
-- (golden/pyjson.jsonl; golden/make_rewards.py writes both), and by hand what the originals lack:
-- frames, errors, bytes that are not UTF-8.
--
--   ./segzero tests/unit/test_rewards.lua
--
-- Comparisons are exact: every term is 0 or 1 and numbers are printed with 17 digits.

local cjson = require "cjson"
local check = require "tests.support.check"
local checks = require "tests.support.reward_checks"
local geometry = require "rewards.geometry"
local loose = require "rewards.seg"
local pyjson = require "segzero.formats.pyjson"
local pytext = require "segzero.formats.pytext"
local strict = require "rewards.seg_strict"

local TERMS = { "thinking_format", "segmentation_format", "iou", "points", "box_l1" }

local function lines(path)
  local file = assert(io.open(path, "rb"))
  return function()
    local line = file:read "*l"
    if line then return cjson.decode(line) end
    file:close()
    return nil
  end
end

-- The terms as text, such as "1 1 0 0 1".
local function score_list(reward, text, gt, sample)
  local score, parts = reward(text, gt, sample)
  local list = {}
  local sum = 0
  for k, term in ipairs(TERMS) do
    list[k] = parts[term]
    sum = sum + parts[term]
  end
  if score ~= sum then return "score " .. tostring(score) .. " is not the sum" end
  return table.concat(list, " ")
end

-- ---- values in the form that make_rewards.py prints ----

-- The sign of a zero is left out: Python's integer -0 has none, a double has.
local function number(v)
  if v ~= v then return "nan" end
  if v == 0 then v = 0 end
  return ("%.17g"):format(v)
end

local function codepoints(text)
  local out = {}
  local i = 1
  while i <= #text do
    local code, after = pytext.codepoint(text, i)
    out[#out + 1] = ("%x"):format(code)
    i = after
  end
  return "s" .. table.concat(out, ".")
end

local function canonical(v)
  if v == pyjson.null then return "None" end
  if v == true then return "True" end
  if v == false then return "False" end
  if type(v) == "number" then return number(v) end
  if type(v) == "string" then return codepoints(v) end
  local out = {}
  if v.kind == "array" then
    for k, x in ipairs(v) do out[k] = canonical(x) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  for k, key in ipairs(v.keys) do out[k] = canonical(key) .. ":" .. canonical(v.map[key]) end
  return "{" .. table.concat(out, ",") .. "}"
end

-- ---- against Python ----

check.case("scores equal the Python originals'", function()
  local compared = 0
  for case in lines "tests/golden/rewards.jsonl" do
    for name, reward in pairs { strict = strict, loose = loose } do
      local label = ("%s on %q, ground truth %q"):format(name, case.text:sub(1, 400),
        case.gt:sub(1, 200))
      check.equal(score_list(reward, case.text, case.gt), table.concat(case[name], " "), label)
      compared = compared + 1
    end
  end
  check.equal(compared, 2 * 3600, "scores compared")
end)

check.case("JSON and int() are read as Python reads them", function()
  local compared = { json = 0, int = 0 }
  for case in lines "tests/golden/pyjson.jsonl" do
    local got = cjson.null
    local kind = "int"
    if case.json then
      kind = "json"
      local value = pyjson.decode(case.json)
      if value ~= nil then got = canonical(value) end
    else
      local value = pytext.parse_int(case.int)
      if value then got = number(value) end
    end
    compared[kind] = compared[kind] + 1
    check.equal(got, case.value, ("%s(%q)"):format(kind, case[kind]:sub(1, 200)))
  end
  check.equal(compared, { json = 1078, int = 190 }, "texts compared")
end)

-- ---- by hand ----

local GT = "<box>(10,20),(110,220)</box><points>(40,60),(80,160)</points>"
local GOOD = '<think>a</think><answer>{"bbox": [%s], "points_1": [%s], "points_2": [%s]}</answer>'

-- At side 420 the box may be off by less than 5 pixels and the points by less than 50; at 1680, 20
-- and 200.
check.case("distances count in the sample's frame", function()
  local function expect(text, frame, want, name)
    local sample = frame and { frame = frame }
    check.equal(score_list(strict, text, GT, sample), want, name .. ", frame " .. tostring(frame))
  end

  local off4 = GOOD:format("14,24,114,224", "40,60", "80,160")
  local off5 = GOOD:format("15,25,115,225", "40,60", "80,160")
  local off15 = GOOD:format("25,35,125,235", "40,60", "80,160")
  expect(off4, 420, "1 1 1 1 1", "box off by 4")
  expect(off5, nil, "1 1 1 1 1", "box off by 5")
  expect(off5, 840, "1 1 1 1 1", "box off by 5")
  expect(off5, 420, "1 1 1 1 0", "box off by 5")
  expect(off15, 840, "1 1 1 1 0", "box off by 15")
  expect(off15, 1680, "1 1 1 1 1", "box off by 15")

  local far = GOOD:format("10,20,110,220", "90,60", "80,110")
  local further = GOOD:format("10,20,310,220", "190,60", "230,160")
  expect(far, 840, "1 1 1 1 1", "points off by 50")
  expect(far, 420, "1 1 1 0 1", "points off by 50")
  expect(further, 840, "1 1 0 0 0", "points off by 150")
  expect(further, 1680, "1 1 0 1 0", "points off by 150")
  check.equal(score_list(strict, off5, GT, {}), "1 1 1 1 1", "a sample without a frame")
end)

check.case("wrong arguments are errors at the caller's line", function()
  local function blames(...) checks.blames(strict, ...) end
  blames("response_text must be a string, got nil", nil, GT)
  blames("ground_truth must be a string, got table", "", {})
  blames("sample.frame", "", GT, { frame = "840" })
  blames("sample.frame", "", GT, { frame = 0 / 0 })
  blames("sample.frame", "", GT, { frame = 0 })
end)

-- Bytes that no Python string could hold: any score will do, an error will not.
check.case("bytes that are not UTF-8 get a score", function()
  local below = checks.numbers(12345)
  local text = GOOD:format('"\217\164",20,110,220', '"40\194\160",60', "80,160")
  for _ = 1, 3000 do
    local t = text
    local g = GT
    for _ = 1, 1 + below(4) do
      t = checks.damage(below, t)
      g = checks.damage(below, g)
    end
    for _, reward in ipairs { strict, loose } do
      local ok, got = pcall(score_list, reward, t, g)
      local good = ok and got:find "^[01] [01] [01] [01] [01]$"
      check.ok(good, ("%s on %q"):format(tostring(got), t))
    end
  end
end)

check.case("geometry of boxes and points", function()
  check.equal(geometry.box_iou({ 0, 0, 9, 9 }, { 0, 0, 9, 9 }), 1, "iou of a box with itself")
  check.equal(geometry.box_iou({ 0, 0, 9, 9 }, { 0, 0, 9, 4 }), 0.5,
    "iou counts both border pixels")
  check.equal(geometry.box_iou({ 0, 0, 9, 9 }, { 9, 0, 19, 9 }), 0, "boxes that share an edge")
  check.equal(geometry.box_iou({ 0, 0, -1, 5 }, { 0, 0, -1, 5 }), 0, "boxes without area")
  check.equal(geometry.box_l1({ 0, 0, 4, 4 }, { 1, 2, 3, 4 }), 1, "l1")
  check.equal(geometry.point_in_box({ 4, 0 }, { 0, 0, 4, 4 }), true, "a corner is inside")
  check.equal(geometry.point_in_box({ 5, 0 }, { 0, 0, 4, 4 }), false,
    "a point to the right is outside")
  check.equal(geometry.point_distance({ 0, 0 }, { 3, 4 }), 5, "distance")
  check.equal(geometry.pair_distance({ 0, 0 }, { 10, 0 }, { 10, 0 }, { 0, 0 }), 0,
    "pairs have no order")
end)

-- Exponents up to and beyond what tonumber() counts to.
check.case("numbers with very large exponents", function()
  local zeros = ("0"):rep(70000)
  local function expect(text, want)
    check.equal(pyjson.decode(text), want, text:sub(1, 8) .. "..." .. text:sub(-8))
  end
  expect("15" .. zeros .. "e-70001", 1.5)
  expect("-0." .. zeros .. "25e70001", -2.5)
  expect("0.10e99999999", math.huge)
  expect("-1E+99999999", -math.huge)
  expect("-1e-99999999", 0)
  expect("-0.00e99999999", 0)
  expect("-1e" .. zeros .. "2", -100)
end)

-- Readers of quadratic cost would take minutes here.
check.case("very long texts are read in linear time", function()
  local texts = {
    ("{"):rep(1e6),
    ("<think>"):rep(1e5),
    "<think>" .. ("</think> "):rep(2e5) .. "</answer>",
    "{" .. ('"'):rep(1e6) .. "}",
    "<think>" .. ("</think>" .. (" "):rep(99)):rep(1e4) .. "</answer>",
    '{"a":[' .. ("1,"):rep(2e5) .. "1]}",
  }
  local started = os.clock()
  for _, text in ipairs(texts) do
    check.ok(score_list(strict, text, GT) ~= nil, "long text")
    check.ok(score_list(loose, text, text) ~= nil, "long ground truth")
  end
  local seconds = os.clock() - started
  check.ok(seconds < 20, ("long texts took %.1f s"):format(seconds))
end)

check.finish()
