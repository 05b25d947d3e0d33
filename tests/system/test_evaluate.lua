-- test_evaluate.lua - gIoU, cIoU and their intervals against numbers computed by hand; which
-- failures count under which protocol; parts and merging; result files; bad settings. Most runs
-- have a SAM2 in place that fills the answered box, and a policy that says what its row asks for,
-- so that every number is known; one run has the miniature policy and the golden SAM2.

local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local metrics = require "segzero.evaluation.metrics"
local segment = require "segzero.inference.segmenter"
local evaluate = require "recipes.evaluate"

local place = mini.folder()
local policy = mini.write(place .. "/policy")
local SAM2 = "tests/golden/sam2/S5"

local function results(folder)
  local list = {}
  for line in io.lines(folder .. "/results.jsonl") do list[#list + 1] = cjson.decode(line) end
  return list
end
local function json(path) return cjson.decode(assert(files.read(path))) end

-- ---- metrics ----
local function record(inside, either, kind, hit)
  return { intersection = inside, union = either, failure_kind = kind, box_hit = hit or false }
end
local rows = { record(30, 60, nil, true), record(0, 100, "answer"), record(0, 40, "sam2"),
  record(0, 0, "iou", true), record(50, 200) }
local function values(s) return { s.gIoU[1], s.cIoU[1], s.box[1] } end

local fixed = metrics.summary(rows, "fixed")
check.near(values(fixed), { (0.5 + 0.25) / 5, 80 / 400, 2 / 5 }, 1e-12, "fixed")
check.equal({ fixed.rows, fixed.failed, fixed.errors, fixed.skipped }, { 5, 1, 2, 0 }, "counts")
local theirs = metrics.summary(rows, "segzero")
check.near(values(theirs), { 0.75 / 4, 80 / 400, 1 / 4 }, 1e-12, "segzero")
check.equal({ theirs.rows, theirs.skipped }, { 5, 1 }, "segzero leaves out what cannot be compared")
local reasoner = metrics.summary(rows, "visionreasoner")
check.near(values(reasoner), { 0.75 / 3, 80 / 360, 1 / 3 }, 1e-12, "visionreasoner")
check.equal(reasoner.skipped, 2, "visionreasoner leaves out failures of SAM2, too")
check.raises(function() metrics.summary(rows, "none") end, "unknown protocol 'none'",
  "an unknown protocol")
check.equal(metrics.line(metrics.summary({}, "fixed")),
  "gIoU=none [none, none] cIoU=none [none, none] box=none [none, none] rows=0 failed=0 errors=0 "
    .. "skipped=0 protocol=fixed", "nothing to count")

local same = metrics.summary({ record(1, 4), record(2, 8), record(5, 20) }, "fixed")
check.equal({ same.gIoU, same.cIoU }, { { 0.25, 0.25, 0.25 }, { 0.25, 0.25, 0.25 } },
  "equal rows leave no doubt")

local many = {}
for i = 1, 400 do many[i] = record(i % 2 * 10, 10) end
local a, b = metrics.summary(many, "fixed"), metrics.summary(many, "fixed")
check.equal(a, b, "the same intervals every time")
check.ok(a.gIoU[2] ~= metrics.summary(many, "fixed", { seed = 1 }).gIoU[2],
  "another seed gives other resamples")
-- A mean of 400 halves has a deviation of 0.025. 1,000 resamples know a 2.5 % percentile to about
-- 0.0015.
check.near({ a.gIoU[2], a.gIoU[3] }, { 0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025 }, 0.006,
  "the interval is that of a mean")

-- Row against row: 400 rows of which 40 get better by 1 and nothing else changes. The mean
-- difference is 0.1, its deviation sqrt(0.1 * 0.9 / 400) = 0.015, though the values themselves have
-- 0.025.
local better = {}
for i = 1, 400 do
  better[i] = record(i % 2 * 10 + (i % 2 == 0 and i % 10 == 0 and 10 or 0), 10, nil, true)
end
local change = metrics.difference(many, better)
check.near({ change.gIoU[1], change.gIoU[2], change.gIoU[3], change.cIoU[3], change.box[3] },
  { 0.5, 0.6, 0.1, 0.1, 1 }, 1e-12, "differences")
check.near({ change.gIoU[4], change.gIoU[5] }, { 0.1 - 1.96 * 0.015, 0.1 + 1.96 * 0.015 }, 0.006,
  "the interval is that of the differences")
check.raises(function() metrics.difference(many, {}) end, "400 rows against 0", "other rows")
check.equal(metrics.difference_line(metrics.difference({ record(1, 4) }, { record(2, 4) },
  { masks = false })),
  "gIoU none  cIoU none  box 0.000 -> 0.000: +0.000 [+0.000, +0.000]  rows=1", "its line")
check.equal({ evaluate.part_of(10, 0, 3) }, { 1, 3 }, "part 0")
check.equal({ evaluate.part_of(10, 2, 3) }, { 7, 10 }, "the last part takes the rest")

-- ---- a data set of known answers: images 168 x 84, seen as 84 x 84, so that x counts double
-- ---- The true mask is 40 x 20 pixels. The stand-in for SAM2 fills the box; x0 = 2 makes it fail.
local folder = place .. "/set"
files.make_dir(folder)
local W = 168
local H = 84
local function write_mask(name, w, h, x0, y0, x1, y1)
  local p = ffi.new("uint8_t[?]", w * h)
  for y = y0, y1 do
    for x = x0, x1 do p[y * w + x] = 255 end
  end
  sz.image.write_png(folder .. "/" .. name, w, h, 1, p)
end
sz.image.write_png(folder .. "/photo.png", W, H, 3, ffi.new("uint8_t[?]", W * H * 3))
write_mask("mask.png", W, H, 20, 10, 59, 29)
write_mask("empty.png", W, H, 1, 1, 0, 0)
write_mask("small.png", 84, 84, 20, 10, 59, 29)

local RIGHT, HALF, NOTHING, FAILS = "[10,10,29,29]", "[10,10,19,29]", "[40,40,30,30]",
  "[1,10,29,29]"
local CASES = {
  { "mask.png", RIGHT }, { "mask.png", HALF }, { "mask.png", nil }, { "mask.png", FAILS },
  { "empty.png", NOTHING }, { "small.png", RIGHT }, { "mask.png", RIGHT, "gone.png" },
}
local lines = {}
for i, case in ipairs(CASES) do
  lines[i] = cjson.encode { id = "row" .. i, problem = "Row " .. i .. ".",
    solution = "<box>(20,10),(59,29)</box><points>(30,15),(40,20)</points>",
    image = case[3] or "photo.png", mask = case[1] }
end
files.write(folder .. "/data.jsonl", table.concat(lines, "\n"))

local function said(number, several)
  local bbox = CASES[number][2]
  if not bbox then return "<think>hm</think> I cannot say" end
  if several then
    return ('<think>hm</think><answer>[{"bbox_2d": %s, "point_2d": [15,15]}]</answer>'):format(bbox)
  end
  return ('<think>hm</think><answer>{"bbox": %s, "points_1": [15,15], "points_2": [20,20]}'
    .. '</answer>'):format(bbox)
end

local stand_in = {}
function stand_in.embed(_, img)
  return { width = img.width, height = img.height, free = function() end }
end
function stand_in.masks(_, f, answers)
  local box = answers[1].bbox or answers[1][1].bbox
  if box[1] == 2 then error("the stand-in fails", 0) end
  local mask = sz.tensor.zeros({ f.height, f.width }, { dtype = "u8" })
  local p = sz.tensor.data(mask)
  for y = box[2], box[4] do
    for x = box[1], box[3] do p[y * f.width + x] = 1 end
  end
  return { { mask = mask, score = 0.5 } }
end

local asked = {}                                   -- how many rows each call of generate had
local real = { generate = sz.rollout.generate, new = segment.new }
local function with_stand_ins(f)
  sz.rollout.generate = function(_, inputs)
    asked[#asked + 1] = #inputs
    local out = {}
    for i, input in ipairs(inputs) do
      out[i] = { { text = said(tonumber(input.text:match "row (%d+)"),
        input.text:find("bbox_2d", 1, true)) } }
    end
    return out
  end
  segment.new = function() return setmetatable(stand_in, { __index = { sam = "a stand-in" } }) end
  local ok, why = pcall(f)
  sz.rollout.generate, segment.new = real.generate, real.new
  check.ok(ok, "a run with stand-ins: " .. tostring(why))
end

local runs = 0
local function run(args)
  runs = runs + 1
  local out = place .. "/run" .. runs
  local all = { "model_path=" .. policy, "sam2_path=" .. SAM2, "data=" .. folder,
    "output_path=" .. out }
  for _, arg in ipairs(args) do all[#all + 1] = arg end
  return evaluate.run(all), out
end

with_stand_ins(function()
  local s, out = run { "val_batch_size=3" }
  check.equal(asked, { 3, 3 },
    "batches of val_batch_size answers; the row without an image is not asked about")
  -- Row 1 answers x = 20 .. 58: 39 of 40 columns; row 2 x = 20 .. 38: 19. Boxes of more than half:
  -- rows 1, 4 (780 of 1160), 6.
  check.near(values(s), { (39 / 40 + 19 / 40) / 7, 58 * 20 / (4 * 800), 3 / 7 }, 1e-12,
    "fixed denominator")
  check.equal({ s.rows, s.failed, s.errors, s.skipped }, { 7, 1, 4, 0 }, "counts")
  local r = results(out)
  check.equal(#r, 7, "a line for each row")
  check.equal({ r[1].index, r[1].id, r[1].problem, r[1].think, r[1].bbox, r[1].points },
    { 1, "row1", "Row 1.", "hm", { 20, 10, 58, 29 }, { { 30, 15 }, { 40, 20 } } },
    "in the image's pixels")
  check.equal({ r[1].intersection, r[1].union, r[1].iou, r[1].score, r[1].failure },
    { 780, 800, 0.975, 0.5, cjson.null }, "row 1")
  check.ok(r[1].seconds >= 0 and r[1].text:find("points_2", 1, true), "text and seconds")
  for i, kind in pairs { [3] = "answer", [4] = "sam2", [5] = "iou", [6] = "iou",
    [7] = "image" } do
    check.equal({ r[i].failure_kind, r[i].iou, r[i].intersection }, { kind, 0, 0 }, "row " .. i)
    check.ok(#r[i].failure > 5, "a reason")
  end
  check.equal({ r[3].union, r[4].union }, { 800, 800 },
    "a failed row's union is the true mask's area")
  check.ok(r[6].failure:find("84 x 84", 1, true), "sizes are said: " .. r[6].failure)
  check.ok(r[7].failure:find("gone.png", 1, true), "the missing image is named: " .. r[7].failure)
  for _, name in ipairs { "worst", "best" } do
    check.ok(sz.image.load(out .. "/" .. name .. ".png").width > 300, name .. ".png is an image")
  end
  local summary = json(out .. "/summary.json")
  check.near({ summary.gIoU.value, summary.gIoU.low, summary.gIoU.high }, s.gIoU, 1e-12,
    "summary.json")
  local cfg = json(out .. "/config.json")
  check.equal({ cfg.frame, cfg.total, cfg.masks, cfg.model_path }, { 84, 7, true, policy },
    "config.json")

  local other = run { "protocol=segzero" }
  check.near(values(other), { 1.45 / 5, 58 * 20 / (4 * 800), 2 / 5 }, 1e-12, "protocol=segzero")
  check.equal({ other.rows, other.failed, other.errors, other.skipped }, { 7, 1, 4, 2 },
    "segzero's counts")
  local third, lists = run { "protocol=visionreasoner" }
  check.near(values(third), { 1.45 / 4, 58 * 20 / (3 * 800), 1 / 4 }, 1e-12,
    "protocol=visionreasoner")
  check.equal({ third.failed, third.skipped }, { 1, 3 }, "visionreasoner's counts")
  check.equal(results(lists)[1].bbox, { { 20, 10, 58, 29 } }, "lists of boxes")

  -- Rows that cannot be used: refused, or left out.
  check.raises(function() run { "on_bad_row=error" } end,
    "data=.*/set: 3 of 7 rows cannot be used: the image cannot be read in 1, "
    .. "the mask cannot be used in 2", "on_bad_row=error")
  local rest = run { "on_bad_row=skip" }
  check.equal({ rest.rows, rest.errors }, { 4, 1 }, "on_bad_row=skip; SAM2's own failure stays")

  -- The oracle's box is the true one.
  local best = run { "oracle=true", "rows=3" }
  check.near(values(best), { 1, 1, 1 }, 0, "oracle")

  -- Three parts, merged in any order, are one run.
  local parts = {}
  for part = 0, 2 do
    local _, dir = run { "parts=3", "part=" .. part }
    parts[part + 1] = dir
  end
  check.equal(#results(parts[3]), 3, "the last part takes the rest")
  local merged, dir = run { ("merge=%s,%s,%s"):format(parts[3], parts[1], parts[2]) }
  check.equal(metrics.line(merged), metrics.line(s), "merged parts are one run")
  for i, one in ipairs(results(dir)) do
    check.equal({ one.index, one.intersection, one.union },
      { r[i].index, r[i].intersection, r[i].union }, "row " .. i .. " merged")
  end
  check.equal(metrics.line((run { ("merge=%s,%s,%s"):format(parts[1], parts[2], parts[3]),
    "protocol=segzero" })), metrics.line(other), "merged under another protocol")
  check.raises(function() run { ("merge=%s,%s"):format(parts[1], parts[3]) } end,
    "hold 5 of 7 rows; row 3 is the first", "a part is missing")
  check.raises(function() run { ("merge=%s,%s"):format(parts[1], parts[1]) } end, "row 1 is in",
    "a part is there twice")
  check.raises(function() run { ("merge=%s,%s"):format(parts[1], lists) } end,
    "several is false in", "runs that differ")
  check.raises(function() run { "merge=" .. parts[1] .. "," .. folder } end, "holds no evaluation",
    "no run")

  -- Against another run of the same rows.
  local ceiling, truth = run { "oracle=true" }
  local _, whole = run {}
  local d = run { ("compare=%s,%s"):format(whole, truth) }
  check.near({ d.gIoU[1], d.gIoU[3] }, { s.gIoU[1], ceiling.gIoU[1] - s.gIoU[1] }, 1e-12,
    "compared")
  check.ok(d.rows == 7 and d.gIoU[3] > 0 and d.gIoU[4] >= 0, "the truth is worse in no row")
  check.raises(function() run { ("compare=%s,%s"):format(whole, parts[1]) } end, "last is 7 in",
    "other rows")
  check.raises(function() run { "compare=" .. whole } end, "compare: expected two folders, got 1",
    "one folder")

  -- Data without masks.
  local bare = place .. "/bare"
  files.make_dir(bare)
  files.write(bare .. "/data.jsonl", (lines[1]:gsub(',?"mask":"mask.png"', ""):gsub("{,",
    "{"):gsub("photo.png", "../set/photo.png")))
  local boxes, where = run { "data=" .. bare }
  check.equal({ boxes.gIoU == nil, boxes.box[1], results(where)[1].iou }, { true, 1, cjson.null },
    "boxes alone")
  check.ok(files.exists(where .. "/worst.png"), "with images")
end)

-- When a batch fails, its rows are tried one by one.
with_stand_ins(function()
  local given = sz.rollout.generate
  sz.rollout.generate = function(vl, inputs)
    if #inputs > 1 or inputs[1].text:find("row 2", 1, true) then error("no luck") end
    return given(vl, inputs)
  end
  local s, out = run { "rows=3" }
  check.equal({ s.failed, s.errors, results(out)[2].failure_kind, results(out)[2].failure },
    { 1, 1, "image", "no luck" }, "one bad row costs one row")
  check.near(s.gIoU[1], 0.975 / 3, 1e-12, "and the others count")
end)

-- ---- the program itself: random weights answer nothing that can be read ----
local function program(args)
  return mini.run { "recipes/evaluate.lua", "model_path=" .. policy,
    "output_path=" .. place .. "/program", unpack(args) }
end
local text, status = program { "sam2_path=" .. SAM2, "data=refshapes", "rows=3", "max_new_tokens=6",
  "val_batch_size=2" }
check.equal(status, 0, text)
check.equal(text:match "([^\n]*)\n$",
  "gIoU=0.000 [0.000, 0.000] cIoU=0.000 [0.000, 0.000] box=0.000 [0.000, 0.000] rows=3 failed=3 "
    .. "errors=0 skipped=0 protocol=fixed", "the last line")
check.ok(text:find("ETA", 1, true), "progress with an ETA")
for _, r in ipairs(results(place .. "/program")) do
  check.ok(r.union > 20 and r.failure_kind == "answer", "the true mask's area stands for the row")
end
text, status = program { "sam2_path=none", "rows=2", "max_new_tokens=6" }
check.ok(status == 0 and text:find("only boxes", 1, true) and text:find("gIoU=none [none, none]", 1,
  true), "without SAM2:\n" .. text)
check.ok(files.exists(place .. "/program-2/results.jsonl"), "a run does not write over another")
text, status = program { "sam2_path=" .. SAM2, "oracle=true", "rows=2" }
check.ok(status == 0 and text:find("rows=2 failed=0 errors=0", 1, true) and text:match "box=1.000",
  "SAM2 itself on true boxes:\n" .. text)

-- ---- bad settings, before anything is written ----
local before = mini.quoted(place .. "/bad")
for _, case in ipairs {
  { "unknown setting 'row': did you mean 'rows'", "row=3" },
  { "protocol is 'theirs', expected one of: fixed, segzero, visionreasoner", "protocol=theirs" },
  { "protocol=segzero reads one object: set several=false", "protocol=segzero", "several=true" },
  { "part is 2, expected 0 to 1 because parts=2", "parts=2", "part=2" },
  { "rows is 0, expected a whole number from 1", "rows=0" },
  { "dtype is 'f16'", "dtype=f16" },
  { "model_path: no model in /nowhere", "model_path=/nowhere" },
  { "sam2_path: ", "sam2_path=/nowhere" },
  { "data: /nowhere: there is no such file or folder", "data=/nowhere" },
  { "the model would resize it to 112 x 112", "frame=100" },
  { "oracle=true needs SAM2", "oracle=true", "sam2_path=none" },
} do
  local args = { "model_path=" .. policy, "sam2_path=" .. SAM2, "rows=2",
    "output_path=" .. place .. "/bad" }
  for i = 2, #case do args[#args + 1] = case[i] end
  local ok, why = pcall(evaluate.run, args)
  check.ok(not ok and tostring(why):find(case[1], 1, true),
    ("'%s' is said: %s"):format(case[1], tostring(why)))
end
check.equal(os.execute("test -e " .. before) == 0, false, "no run folder is left behind")

-- ---- an image that is damaged behind its header ----
check.case("a row that cannot be read is counted and named", function()
  local dir = place .. "/damaged"
  files.make_dir(dir)
  local img = sz.image.new(84, 84)
  img:save(dir .. "/whole.png")
  img:free()
  local whole = files.read(dir .. "/whole.png")
  files.write(dir .. "/cut.png", whole:sub(1, -40))
  local line = '{"id": "%s", "problem": "it", "image": "%s.png", "solution": '
    .. '"<box>(1,2),(30,40)</box><points>(5,6),(7,8)</points>"}\n'
  files.write(dir .. "/data.jsonl", line:format("first", "whole") .. line:format("second", "cut"))
  local said, rc = mini.run { "recipes/evaluate.lua", "model_path=" .. policy, "data=" .. dir,
    "sam2_path=none", "max_new_tokens=4", "resamples=2", "output_path=" .. place .. "/damaged_out" }
  check.equal(rc, 0, said)
  check.ok(said:find("row 2 is an error: [^\n]*cut.png: cannot decode the image"), said)
  check.ok(said:find("rows=2 failed=1 errors=1", 1, true), said)
end)

mini.remove()
check.finish()
