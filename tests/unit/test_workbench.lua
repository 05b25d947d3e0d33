-- test_workbench.lua - the parts of `segzero reward`: probes, histograms, pairs of two rewards, the
-- reader of rollouts.jsonl, the words of a command; and set:sample.

local check = require "tests.support.check"
local command = require "segzero.config.command"
local disagreement = require "segzero.workbench.disagreement"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local probes = require "segzero.workbench.probes"
local reasons = require "segzero.reward.reasons"
local rollouts = require "segzero.runs.rollouts"
local runner = require "segzero.reward.runner"
local strict = require "rewards.seg_strict"
local sz = require "segzero"
local text = require "segzero.workbench.text"
local vision_reasoner = require "rewards.vision_reasoner"

local function open(name)
  return sz.data.open(name, { split = "heldout", size = 112, seed = 42, rows = 32 })
end

local function ids(set)
  local list = {}
  for i = 1, set:count() do
    local row = set:row(i)
    list[i] = row.id
    row.image:free()
  end
  return table.concat(list, " ")
end

check.case("a sample is a set of some rows, the same for the same seed", function()
  local set = open "refshapes"
  check.equal(ids(set:sample(4)), "heldout-5 heldout-8 heldout-11 heldout-16", "seed 0")
  check.equal(ids(set:sample(4)), ids(set:sample(4, 0)), "again")
  check.ok(ids(set:sample(4, 1)) ~= ids(set:sample(4)), "another seed")
  check.equal(set:sample(32):count(), 32, "all rows")
  check.equal(ids(set:sample(32)), ids(set), "in the order of the set")
  check.equal(set:sample(6):sample(2):count(), 2, "a sample of a sample")
  check.raises(function() set:sample(33) end, "33 rows of a data set that has 32", "too many")
  check.raises(function() set:sample(0) end, "is 0, expected a whole number from 1", "none")
  check.raises(function() set:sample(2, 0.5) end, "the seed is 0.5", "a seed")
end)

-- ---- probes ----
-- The score of each kind on one row.
local function scores(reward, set, i)
  local row = set:row(i)
  local out = {}
  for _, probe in ipairs(probes.of(row)) do
    out[probe.kind] = (reward(probe.text, row.solution, row))
  end
  row.image:free()
  return out
end

check.case("probes of one object earn what their kind deserves", function()
  local set = open "refshapes"
  for i = 1, 4 do
    local got = scores(strict, set, i)
    check.equal(got.perfect, 5, "perfect")
    check.equal(got["perfect, long thinking"], 5, "long thinking")
    check.equal(got["no tags"], 4, "no tags")
    check.equal(got["other keys"], 1, "other keys")
    check.equal(got.empty, 0, "empty")
    check.equal(got["cut off"], 0, "cut off")
    check.ok(got["wrong place"] <= 3, "wrong place")
    check.equal(got["one object missing"], nil, "a kind of lists")
  end
end)

check.case("probes of several objects, and of none", function()
  local set = open "refshapes_multi"
  local full = 0
  local none = 0
  for i = 1, 16 do
    local row = set:row(i)
    row.image:free()
    local got = scores(vision_reasoner, set, i)
    if row.solution == "[]" then
      none = none + 1
      check.equal(got.perfect, 2, "a rightly empty list, as in the original")
      check.equal(got["wrong place"], nil, "nothing to move")
    else
      full = full + 1
      check.equal(got.perfect, 7, "perfect")
      check.ok(got["one object missing"] < 7, "one is missing")
    end
  end
  check.ok(full > 5, "rows with objects")
  check.ok(none >= 1, "rows without objects")
end)

check.case("numbers are spoilt inside the first box, whatever the keys are called", function()
  for name, key in pairs { refshapes = "bbox", refshapes_multi = "bbox_2d" } do
    local row = open(name):row(1)
    local texts = {}
    for _, probe in ipairs(probes.of(row)) do texts[probe.kind] = probe.text end
    row.image:free()
    for kind, begin in pairs { ["not a number"] = "[NaN, ",
      ["huge numbers"] = "[1e400, 1e400, " } do
      local expected = ('{"%s": %s'):format(key, begin)
      check.ok(texts[kind]:find(expected, 1, true), kind .. ": " .. texts[kind])
      check.ok(not texts[kind]:gsub("%[NaN", "[1", 1):find "NaN", "once")
    end
  end
end)

check.case("a solution without boxes is answered as it is", function()
  local row = { solution = "three", image = sz.image.new(20, 20) }
  local list = probes.of(row)
  check.equal(#list, 5, "kinds")
  check.ok(list[1].text:find("<answer>three</answer>", 1, true), "the perfect one")
end)

check.case("a mask stands for a solution without boxes", function()
  local rows = { { 0, 0, 0, 0 }, { 0, 1, 1, 0 }, { 0, 1, 1, 0 } }
  local function mask() return sz.tensor(rows, { dtype = "u8" }) end
  local row = { solution = "", image = sz.image.new(4, 3), mask = mask }
  local list = probes.of(row)
  check.ok(#list > 5, "kinds with boxes")
  check.ok(list[1].text:find('"bbox": [1, 1, 2, 2]', 1, true),
    "the box around it: " .. list[1].text)
end)

-- ---- numbers as text ----
check.case("a histogram has a line for each value, or for ranges", function()
  check.equal(table.concat(text.histogram { 1, 0, 1, 1 }, "\n"),
    "  0 |############## 1\n  1 |######################################## 3", "two values")
  local many = {}
  for i = 0, 99 do many[i + 1] = i / 10 end
  local lines = text.histogram(many)
  check.equal(#lines, 8, "ranges")
  check.ok(lines[1]:find "^%s+0 to 1%.238 |#+ 13$", "the first range: " .. lines[1])
  check.equal(#text.histogram {}, 0, "nothing")
  local s = text.statistics { 0, 0, 3 }
  check.equal(s.mean, 1, "mean")
  check.near(s.std, math.sqrt(2), 1e-12, "std")
  check.near(s.zero, 2 / 3, 1e-12, "share of 0")
end)

-- ---- two rewards ----
check.case("two rewards are compared by pairs of one question", function()
  local function item(score, other) return { score = score, other = other } end
  local a = { item(1, 3), item(2, 2), item(2, 1) }
  local b = { item(5, 5), item(0, 0) }
  local all = { a[1], a[2], a[3], b[1], b[2] }
  local d = disagreement.of(all, { a, b })
  check.equal(d.pairs, 4, "pairs that one of the two tells apart")
  check.near(d.flipped, 2 / 4, 1e-12, "in the other order")
  check.near(d.lost, 1 / 4, 1e-12, "equal here")
  check.equal(d.list[1], a[1], "the largest difference first")
  check.near(d.list[1].gap, 3 / 5 - 1 / 5, 1e-12, "its size")
  check.ok(not disagreement.same(all), "not the same")
  check.ok(disagreement.same { item(1 / 3, tonumber(("%.14g"):format(1 / 3))) }, "as a log has it")
end)

-- ---- words for a 0 ----
check.case("a reward's third result says why a part is 0", function()
  local truth = "<box>(10,20),(50,60)</box><points>(20,30),(40,50)</points>"
  local _, parts, why = strict("hello", truth, { frame = 112 })
  local zeros = reasons.zeros(parts, why)
  check.equal(zeros.thinking_format, "the text does not begin with <think>", "format")
  check.equal(zeros.iou, "there is no JSON object in the answer", "iou")
  check.equal(reasons.text(why, "another"), nil, "an unknown part")
  check.equal(reasons.text({ iou = "far off" }, "iou"), "far off", "a table")
  check.equal(reasons.text(function() error "x" end, "iou"), nil, "a function that fails")

  local row = { id = "a", problem = "p", solution = truth }
  local sample = { text = "x" }
  local function reward() return 0, { near = 0 }, { near = "far off" } end
  local rules = runner.rules { timeout = 1, on_error = "stop" }
  runner.score(reward, row, sample, rules)
  check.equal(sample.why, nil, "a run keeps no words")
  rules.keep_why = true
  runner.score(reward, row, sample, rules)
  check.equal(sample.why.near, "far off", "the workbench does")
end)

-- ---- rollouts.jsonl ----
local function line(step, row, answer, more)
  return files.json { step = step, row = row, answer = answer, text = "\"step\":9", reward = 1,
    ids = { 1, 2 }, logprobs = { -1, -2 }, problem = more, parts = { iou = 1 } }
end

check.case("rollouts.jsonl is read by prompts, without what is long", function()
  local path = os.tmpname()
  files.write(path, table.concat({ line(1, "a", 1), line(1, "a", 2), line(1, "b", 1),
    line(2, "a", 1), line(2, "a", 1), '{"step":2,"row":"c","te' }, "\n"))
  local seen = {}
  rollouts.groups(path, function(group)
    seen[#seen + 1] = ("%d%s%d"):format(group.step, group.row, #group.records)
  end)
  check.equal(table.concat(seen, " "), "1a2 1b1 2a1 2a1", "groups; a row may be drawn twice")
  local lengths = {}
  rollouts.each(path, function(record) lengths[#lengths + 1] = #record.ids end,
    { step = 1, whole = true })
  check.equal(table.concat(lengths, " "), "2 2 2", "one step, whole")
  rollouts.each(path, function(record)
    check.equal(#record.ids, 0, "without token ids")
    return false
  end)
  check.equal(rollouts.steps(path).last, 2, "the last step")

  -- The last line may be cut anywhere while a run writes it, and a whole one may have no end.
  local last = line(3, "a", 1)
  for _, cut in ipairs { '"step":3', "}", "," } do
    local begin = last:sub(1, (select(2, last:find(cut, 1, true))))
    if begin ~= last then
      files.write(path, line(1, "a", 1) .. "\n" .. begin)
      check.equal(rollouts.steps(path).last, 1, "cut after " .. cut)
      rollouts.each(path, function(record) check.equal(record.step, 1, "cut after " .. cut) end)
    end
  end
  files.write(path, line(1, "a", 1) .. "\n" .. last)
  check.equal(rollouts.steps(path).last, 3, "a last line without an end")
  files.write(path, "{}\n" .. line(1, "a", 1) .. "\n")
  check.raises(function() rollouts.steps(path) end, ":1: not an answer of a run", "a damaged line")
  folders.remove_file(path)
end)

-- ---- words of a command ----
check.case("a command tells words from settings", function()
  local schema = require("segzero.config.reward").schema
  local function split(...)
    local settings, words = command.split(schema, { ... })
    return table.concat(settings, " ") .. " | " .. table.concat(words, " ")
  end
  check.equal(split("a.lua", "--watch", "b.lua"), "--watch | a.lua b.lua", "a flag")
  check.equal(split("--replay", "runs/x", "a.lua"), "--replay runs/x | a.lua", "an option")
  check.equal(split("a.lua", "rows=4", "--step=2"), "rows=4 --step=2 | a.lua", "settings")
end)

check.finish()
