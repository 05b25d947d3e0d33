-- test_first_run.lua - the default run: what the embedded model learns before it
-- (data/refshapes/tasks.lua), and what it says at its end that GRPO changed
-- (train/run/learned.lua).

local check = require "tests.support.check"
local answer = require "segzero.formats.answer"
local geometry = require "rewards.geometry"
local learned = require "segzero.train.run.learned"
local packing = require "segzero.inference.packing"
local pretrain = require "segzero.train.supervised.pretrain"
local pretrain_shapes = require "segzero.config.pretrain_shapes"
local refshapes = require "segzero.data.refshapes"
local sz = require "segzero"
local tasks = require "segzero.data.refshapes.tasks"
local tensor = require "segzero.core.tensor"

local MODEL = sz.core.root .. "/models/tiny/qwen2.5-vl"

-- ---- pretraining ----
-- The exchanges of some batches, as text. progress: of the run, 0 to 1.
local function exchanges(args, progress)
  local vl = sz.qwen_vl(MODEL)
  local tok = vl:tokenizer()
  local set = tasks.new(pretrain_shapes.settings(args), { tokenizer = tok, model = vl })
  local texts = {}
  for _ = 1, 6 do
    for _, group in ipairs((set:batch(progress or 1))) do
      for _, ids in ipairs(group.answers) do texts[#texts + 1] = tok:decode(ids) end
      group.input.pixel_values:free()
      group.input.position_ids:free()
    end
  end
  vl:free()
  return texts
end

-- Seg-Zero's exchanges: {{problem =, text =, found =}, ...}
local function full_ones(texts)
  local list = {}
  for _, text in ipairs(texts) do
    local problem = text:match "^Please find '([^']*)'"
    local reply = text:match "<|im_start|>assistant\n(.*)<|im_end|>$"
    if problem then
      list[#list + 1] = { problem = problem, text = reply, found = answer.parse(reply) }
    end
  end
  return list
end

-- What the reasoning of a scene's answers says: the list of shapes from left to right, and the
-- place of each object.
local function true_reasoning(scene)
  local order = {}
  for i, o in ipairs(scene.objects) do order[i] = o end
  table.sort(order, function(a, b) return a.cx < b.cx or a.cx == b.cx and a.cy < b.cy end)
  local names = {}
  local places = {}
  for i, o in ipairs(order) do
    local b = o.bbox
    places[o] = ("(%d,%d)"):format(math.floor((b[1] + b[3]) / 2), math.floor((b[2] + b[4]) / 2))
    names[i] = ("%s %s %s %s"):format(places[o], o.size, o.colour, o.kind)
  end
  return ": " .. table.concat(names, ", ") .. ". It is the one at ", places
end

-- The true boxes and reasonings of each problem, by the scenes of the same settings.
local function truths(rows, seed)
  local all = {}
  for index = 1, rows do
    local scene = refshapes.sample { seed = seed, index = index, size = 112, questions = 3 }
    local list, places = true_reasoning(scene)
    for _, question in ipairs(scene.questions) do
      all[question.problem] = all[question.problem] or {}
      table.insert(all[question.problem], { box = question.bbox,
        reasoning = list .. places[scene.objects[question.target]] .. "." })
    end
  end
  return all
end

-- Whether one of the scenes that this was asked of has this reasoning.
local function is_true(known, problem, text)
  for _, truth in ipairs(known[problem] or {}) do
    if text:find(truth.reasoning, 1, true) then return true end
  end
  return false
end

check.case("full answers have the asked keys, and reasoning that names every shape", function()
  local list = full_ones(exchanges { "batch=20", "level2=0", "level3=0", "easy=0", "quick=0",
    "seed=3" })
  local known = truths(200, 3)
  check.ok(#list > 90, "questions: " .. #list)
  for _, one in ipairs(list) do
    check.ok(one.found ~= nil, "readable: " .. one.text)
    for _, key in ipairs { "bbox", "points_1", "points_2" } do
      check.ok(one.text:find('"' .. key .. '": [', 1, true), one.text)
    end
    check.ok(is_true(known, one.problem, one.text), one.problem .. ": " .. one.text)
  end
end)

check.case("short questions ask for a shape or for the box at a place", function()
  local texts = exchanges({ "batch=20", "level2=0", "level3=0", "easy=0", "short_until=1",
    "seed=3" }, 0.5)
  local known = truths(300, 3)
  local found = 0
  local boxes = 0
  for _, text in ipairs(texts) do
    local reply = text:match "<|im_start|>assistant\n(.*)<|im_end|>$"
    local problem = text:match "^Find '([^']*)'%."
    local x, y = text:match "^Box at %((%d+),(%d+)%)%."
    if problem then
      found = found + 1
      check.ok(is_true(known, problem, reply), problem .. ": " .. reply)
      check.ok(reply:find "%. %[%d+,%d+,%d+,%d+%]$", reply)
    elseif x then
      boxes = boxes + 1
      local x0, y0, x1, y1 = reply:match "^%[(%d+),(%d+),(%d+),(%d+)%]$"
      check.equal(math.floor((x0 + x1) / 2), tonumber(x), "the middle of the box")
      check.equal(math.floor((y0 + y1) / 2), tonumber(y), "the middle of the box")
    end
  end
  check.ok(found > 50 and boxes > 50, ("%d shapes, %d boxes"):format(found, boxes))
end)

check.case("a share of the answers is quick: no list, and a rough box about the right "
  .. "shape", function()
  local list = full_ones(exchanges { "batch=20", "level2=0", "level3=0", "easy=0", "quick=0.8",
    "seed=3", "questions=3" })
  local known = truths(200, 3)
  local shares = { three = 0.8 / 3, four = 0.8 * 2 / 3, five = 0.8, six = 0.8 }
  local counts = {}
  for _, one in ipairs(list) do
    local number, stop = one.text:match "There are (%w+) shapes([.:])"
    local count = counts[number] or { all = 0, quick = 0 }
    counts[number] = count
    count.all = count.all + 1
    local b = one.found.bbox
    local fits = false
    for _, truth in ipairs(known[one.problem] or {}) do
      local t = truth.box
      local iou = geometry.box_iou(b, t)
      if stop == ":" then
        fits = fits or iou == 1
      else
        fits = fits
          or iou < 0.5 and b[1] <= t[1] and b[2] <= t[2] and b[3] >= t[3] and b[4] >= t[4]
      end
    end
    if stop == "." then
      count.quick = count.quick + 1
      check.ok(one.text:find "shapes%. It is the one at %(%d+,%d+%)%.</think>", one.text)
    end
    check.ok(fits, one.problem .. ": " .. one.text)
  end
  check.ok(#list > 90, "questions: " .. #list)
  for number, share in pairs(shares) do
    local count = counts[number]
    local got = count.quick / count.all
    check.ok(math.abs(got - share) < 0.2, ("%s: %d of %d are quick"):format(number, count.quick,
      count.all))
  end
end)

check.case("the place of the shape that is meant weighs most in the loss", function()
  local vl = sz.qwen_vl(MODEL)
  local tok = vl:tokenizer()
  local options = pretrain_shapes.settings { "digit_weight=2", "choice_weight=5" }
  local trainer = pretrain.new(vl, tok, options, {})
  local ids = tok:encode "(57,30) red cross. It is the one at (57,30). [1,2]"
  local targets = packing.list(ids)
  local weights, total = trainer:token_weights(targets)
  local digits = {}
  local rest = 0
  for i, id in ipairs(ids) do
    local weight = tensor.data(weights)[i - 1]
    if tok:decode { id }:find "^%d$" then
      digits[#digits + 1] = weight
    else
      rest = rest + 1
      check.equal(weight, 1, tok:decode { id })
    end
  end
  check.equal(digits, { 2, 2, 2, 2, 5, 5, 5, 5, 2, 2 }, "digits")
  check.equal(total, rest + 6 * 2 + 4 * 5, "the sum")
  vl:free()
end)

-- ---- what was learned ----
local function result(ious, hits)
  local records = {}
  for i, iou in ipairs(ious) do
    records[i] = { iou = iou, parts = { iou = hits[i], segmentation_format = 1, own = i } }
  end
  return { records = records }
end

check.case("what a run changed, in words and with intervals", function()
  local before = result({ 0.2, 0.4, 0.6, 0 }, { 0, 0, 1, 0 })
  local after = result({ 0.7, 0.9, 0.6, 0.8 }, { 1, 1, 1, 1 })
  local lines = learned.lines(before, after)
  check.equal(#lines, 4, table.concat(lines, "\n"))
  check.ok(lines[1]:find("on 4 held-out rows", 1, true), lines[1])
  check.ok(lines[2]:find "masks that cover .* 0%.250 %-> 1%.000   %+0%.750 %[", lines[2])
  check.ok(lines[3]:find "%(gIoU%) .* 0%.300 %-> 0%.750   %+0%.450 %[%+0%.%d+, %+0%.%d+%]",
    lines[3])
  check.ok(lines[4]:find "boxes that overlap .* 0%.250 %-> 1%.000", lines[4])
  for _, line in ipairs(lines) do check.ok(#line <= 100, "100 columns: " .. line) end
end)

check.case("no masks, nothing changed, another number of rows", function()
  local one = result({ 0.5, 0.5 }, { 1, 0 })
  check.equal(learned.lines(one, one)[2], "  nothing that is measured changed", "the same")
  for _, record in ipairs(one.records) do record.iou = nil end
  local other = result({ 0.5, 0.5 }, { 1, 1 })
  local lines = learned.lines(one, other)
  check.equal(#lines, 2, "no line of masks: " .. table.concat(lines, "\n"))
  check.equal(learned.lines(one, result({ 1 }, { 1 })), {}, "other rows")
end)

check.case("a reward without parts, with parts of some answers, with parts over 1", function()
  local function rewards(...)
    local records = {}
    for i, v in ipairs { ... } do records[i] = { reward = v } end
    return { records = records }
  end
  local lines = learned.lines(rewards(0, 1), rewards(1, 1))
  check.equal(#lines, 2, table.concat(lines, "\n"))
  check.ok(lines[2]:find "^  reward  .* 0%.500 %-> 1%.000", lines[2])
  check.equal(learned.lines(rewards(1), rewards(1))[2], "  nothing that is measured changed",
    "same")

  local before = rewards(1, 1)
  local after = rewards(2, 3)
  before.records[2].parts = { segmentation_format = 1 }
  after.records[1].parts = { segmentation_format = 2 }
  after.records[2].parts = { segmentation_format = 2, late = 1 }
  lines = learned.lines(before, after)
  check.equal(#lines, 3, table.concat(lines, "\n"))
  check.ok(lines[2]:find "^  segmentation_format  .* 0%.500 %-> 2%.000", lines[2])
  check.ok(lines[3]:find "^  late  .* 0%.000 %-> 0%.500", lines[3])
end)

check.finish()
