-- Tests rewards/: Seg-Zero's two single-object rewards against the Python originals (golden/rewards.jsonl), the JSON and int()
-- readers against Python's (golden/pyjson.jsonl; both from golden/make_rewards.py), and by hand what the originals lack: frames,
-- errors, bytes that are not UTF-8.
--
--   luajit tests/unit/test_rewards.lua [rewards.jsonl [pyjson.jsonl]]        (from the repository's root)
--
-- Comparisons are exact: every term is 0 or 1 and numbers are printed with 17 digits.

package.path = "./?.lua;./lua/?.lua;./lua/?/init.lua;" .. package.path

local cjson = require "cjson"
local geometry = require "rewards.geometry"
local loose = require "rewards.seg"
local pyjson = require "segzero.formats.pyjson"
local pytext = require "segzero.formats.pytext"
local strict = require "rewards.seg_strict"

local TERMS = {"thinking_format", "segmentation_format", "iou", "points", "box_l1"}

local cases, failures = 0, 0

local function check(ok, message, ...)
  cases = cases + 1
  if ok then return end
  failures = failures + 1
  if failures <= 10 then print("MISMATCH " .. message:format(...)) end
end

local function lines(path)
  local file = assert(io.open(path, "rb"))
  return function()
    local line = file:read("*l")
    if not line then
      file:close()
      return nil
    end
    return cjson.decode(line)
  end
end

local function score_list(reward, text, gt, sample)
  local score, parts = reward(text, gt, sample)
  local list, sum = {}, 0
  for k, term in ipairs(TERMS) do
    list[k] = parts[term]
    sum = sum + parts[term]
  end
  if score ~= sum then return "score " .. tostring(score) .. " is not the sum" end
  return table.concat(list, " ")
end

-- The form that make_rewards.py prints. The sign of a zero is left out: Python's integer -0 has none, a double has.
local function number(v)
  if v ~= v then return "nan" end
  return ("%.17g"):format(v == 0 and 0 or v)
end

local function canonical(v)
  if v == pyjson.null then return "None" end
  if v == true then return "True" end
  if v == false then return "False" end
  if type(v) == "number" then return number(v) end
  local out = {}
  if type(v) == "string" then
    local i = 1
    while i <= #v do
      local c, after = pytext.codepoint(v, i)
      out[#out + 1] = ("%x"):format(c)
      i = after
    end
    return "s" .. table.concat(out, ".")
  end
  if v.kind == "array" then
    for k, x in ipairs(v) do out[k] = canonical(x) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  for k, key in ipairs(v.keys) do out[k] = canonical(key) .. ":" .. canonical(v.map[key]) end
  return "{" .. table.concat(out, ",") .. "}"
end

local function test_rewards(path)
  for case in lines(path) do
    for name, reward in pairs{strict = strict, loose = loose} do
      local want, got = table.concat(case[name], " "), score_list(reward, case.text, case.gt)
      check(got == want, "%s: got %s want %s\n  text %q\n  gt %q", name, got, want, case.text:sub(1, 400), case.gt:sub(1, 200))
    end
  end
end

local function test_pieces(path)
  for case in lines(path) do
    local want, got = case.value, cjson.null
    if case.json then
      local value = pyjson.decode(case.json)
      if value ~= nil then got = canonical(value) end
    else
      local value = pytext.parse_int(case.int)
      if value then got = number(value) end
    end
    check(got == want, "%s %q: got %s want %s", case.json and "json" or "int", (case.json or case.int):sub(1, 200),
      tostring(got):sub(1, 200), tostring(want):sub(1, 200))
  end
end

local GT = "<box>(10,20),(110,220)</box><points>(40,60),(80,160)</points>"
local GOOD = '<think>a</think><answer>{"bbox": [%s], "points_1": [%s], "points_2": [%s]}</answer>'

local function test_frame()
  -- At side 420 the box may be off by less than 5 pixels and the points by less than 50; at 1680, 20 and 200.
  local function expect(text, frame, want)
    local got = score_list(strict, text, GT, frame and {frame = frame})
    check(got == want, "frame %s: got %s want %s\n  %s", tostring(frame), got, want, text)
  end
  local off5, off4 = GOOD:format("15,25,115,225", "40,60", "80,160"), GOOD:format("14,24,114,224", "40,60", "80,160")
  local off15 = GOOD:format("25,35,125,235", "40,60", "80,160")
  local far = GOOD:format("10,20,110,220", "90,60", "80,110")
  local further = GOOD:format("10,20,310,220", "190,60", "230,160")
  expect(off5, nil, "1 1 1 1 1")
  expect(off5, 840, "1 1 1 1 1")
  expect(off5, 420, "1 1 1 1 0")
  expect(off4, 420, "1 1 1 1 1")
  expect(off15, 840, "1 1 1 1 0")
  expect(off15, 1680, "1 1 1 1 1")
  expect(far, 840, "1 1 1 1 1")
  expect(far, 420, "1 1 1 0 1")
  expect(further, 840, "1 1 0 0 0")
  expect(further, 1680, "1 1 0 1 0")
  check(score_list(strict, off5, GT, {}) == "1 1 1 1 1", "a sample without a frame")
end

local function test_errors()
  local function blames(what, ...)
    local args = {...}
    local ok, message = pcall(function()
      local score = strict(args[1], args[2], args[3])
      return score
    end)
    check(not ok and tostring(message):find(what, 1, true) and tostring(message):find("test_rewards.lua", 1, true),
      "wanted an error with %q at this file, got %s", what, tostring(message))
  end
  blames("response_text must be a string, got nil", nil, GT)
  blames("ground_truth must be a string, got table", "", {})
  blames("sample.frame", "", GT, {frame = "840"})
  blames("sample.frame", "", GT, {frame = 0 / 0})
  blames("sample.frame", "", GT, {frame = 0})
end

-- Bytes that no Python string could hold: any score will do, an error will not.
local function test_bytes()
  local seed = 12345
  local function below(n)
    seed = (seed * 16807) % 2147483647
    return seed % n
  end
  local text = GOOD:format('"\217\164",20,110,220', '"40\194\160",60', "80,160")
  for _ = 1, 3000 do
    local t, g = text, GT
    for _ = 1, 1 + below(4) do
      local i = 1 + below(#t)
      t = t:sub(1, i - 1) .. string.char(below(256)) .. t:sub(i + below(2))
      local k = 1 + below(#g)
      g = g:sub(1, k - 1) .. string.char(below(256)) .. g:sub(k + below(2))
    end
    for _, reward in ipairs{strict, loose} do
      local ok, got = pcall(score_list, reward, t, g)
      check(ok and got:find("^[01] [01] [01] [01] [01]$"), "bytes: %s on %q", tostring(got), t)
    end
  end
end

local function test_geometry()
  local function equal(got, want, what)
    check(got == want, "%s: got %s want %s", what, tostring(got), tostring(want))
  end
  equal(geometry.box_iou({0, 0, 9, 9}, {0, 0, 9, 9}), 1, "iou of a box with itself")
  equal(geometry.box_iou({0, 0, 9, 9}, {0, 0, 9, 4}), 0.5, "iou counts both border pixels")
  equal(geometry.box_iou({0, 0, 9, 9}, {9, 0, 19, 9}), 0, "boxes that share an edge")
  equal(geometry.box_iou({0, 0, -1, 5}, {0, 0, -1, 5}), 0, "boxes without area")
  equal(geometry.box_l1({0, 0, 4, 4}, {1, 2, 3, 4}), 1, "l1")
  equal(geometry.point_in_box({4, 0}, {0, 0, 4, 4}), true, "a corner is inside")
  equal(geometry.point_in_box({5, 0}, {0, 0, 4, 4}), false, "outside")
  equal(geometry.point_distance({0, 0}, {3, 4}), 5, "distance")
  equal(geometry.pair_distance({0, 0}, {10, 0}, {10, 0}, {0, 0}), 0, "pairs are not ordered")
end

-- Exponents up to and beyond what tonumber() counts to.
local function test_far_numbers()
  local zeros = ("0"):rep(70000)
  local function expect(text, want)
    local got = pyjson.decode(text)
    check(got == want, "%s...%s: got %s want %s", text:sub(1, 8), text:sub(-8), tostring(got), tostring(want))
  end
  expect("15" .. zeros .. "e-70001", 1.5)
  expect("-0." .. zeros .. "25e70001", -2.5)
  expect("0.10e99999999", math.huge)
  expect("-1E+99999999", -math.huge)
  expect("-1e-99999999", 0)
  expect("-0.00e99999999", 0)
  expect("-1e" .. zeros .. "2", -100)
end

-- Quadratic readers would take minutes here.
local function test_long()
  local started = os.clock()
  for _, text in ipairs{
    ("{"):rep(1e6), ("<think>"):rep(1e5), "<think>" .. ("</think> "):rep(2e5) .. "</answer>", "{" .. ('"'):rep(1e6) .. "}",
    "<think>" .. ("</think>" .. (" "):rep(99)):rep(1e4) .. "</answer>", '{"a":[' .. ("1,"):rep(2e5) .. "1]}",
  } do
    check(score_list(strict, text, GT) ~= nil, "long text")
    check(score_list(loose, text, text) ~= nil, "long ground truth")
  end
  check(os.clock() - started < 20, "long texts took %.1f s", os.clock() - started)
end

test_rewards(arg[1] or "tests/golden/rewards.jsonl")
test_pieces(arg[2] or "tests/golden/pyjson.jsonl")
test_frame()
test_errors()
test_bytes()
test_geometry()
test_far_numbers()
test_long()
print(("test_rewards: %d checks, %d failed"):format(cases, failures))
os.exit(failures == 0 and 0 or 1)
