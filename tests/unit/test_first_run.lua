-- test_first_run.lua - the default run: what the embedded model learns before it
-- (data/refshapes/tasks.lua), and what it says at its end that GRPO changed
-- (train/run/learned.lua).

local check = require "tests.support.check"
local answer = require "segzero.formats.answer"
local geometry = require "rewards.geometry"
local learned = require "segzero.train.run.learned"
local pretrain_shapes = require "segzero.config.pretrain_shapes"
local refshapes = require "segzero.data.refshapes"
local sz = require "segzero"
local tasks = require "segzero.data.refshapes.tasks"

local MODEL = sz.core.root .. "/models/tiny/qwen2.5-vl"

-- ---- pretraining ----
-- The exchanges of some batches, as text.
local function exchanges(args)
  local vl = sz.qwen_vl(MODEL)
  local tok = vl:tokenizer()
  local set = tasks.new(pretrain_shapes.settings(args), { tokenizer = tok, model = vl })
  local texts = {}
  for _ = 1, 6 do
    for _, group in ipairs((set:batch(1))) do
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

-- The true box of each problem and scene, by the scenes of the same settings.
local function true_boxes(rows, seed)
  local boxes = {}
  for index = 1, rows do
    local scene = refshapes.sample { seed = seed, index = index, size = 112, questions = 3 }
    for _, question in ipairs(scene.questions) do
      boxes[question.problem] = boxes[question.problem] or {}
      table.insert(boxes[question.problem], question.bbox)
    end
  end
  return boxes
end

check.case("full answers have the asked keys and say the question again", function()
  local list = full_ones(exchanges { "batch=20", "level2=0", "level3=0", "easy=0" })
  check.ok(#list > 90, "questions: " .. #list)
  for _, one in ipairs(list) do
    check.ok(one.found ~= nil, "readable: " .. one.text)
    for _, key in ipairs { "bbox", "points_1", "points_2" } do
      check.ok(one.text:find('"' .. key .. '": [', 1, true), one.text)
    end
    check.ok(one.text:find("One is " .. one.problem .. ".</think>", 1, true), one.text)
  end
end)

check.case("a share of the answers is rough, about the right shape", function()
  local list = full_ones(exchanges { "batch=20", "level2=0", "level3=0", "easy=0", "rough=0.7",
    "seed=3", "questions=3" })
  local boxes = true_boxes(200, 3)
  local exact = 0
  local around = 0
  for _, one in ipairs(list) do
    local b = one.found.bbox
    for _, t in ipairs(boxes[one.problem] or {}) do
      local iou = geometry.box_iou(b, t)
      if iou == 1 then
        exact = exact + 1
        break
      elseif iou < 0.5 and b[1] <= t[1] and b[2] <= t[2] and b[3] >= t[3] and b[4] >= t[4] then
        around = around + 1
        break
      end
    end
  end
  check.ok(#list > 90, "questions: " .. #list)
  check.ok(math.abs(exact / #list - 0.3) < 0.06, ("exact: %d of %d"):format(exact, #list))
  check.ok(around / #list > 0.6, ("around the shape: %d of %d"):format(around, #list))
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
  check.ok(lines[3]:find "%(gIoU%) .* 0%.300 %-> 0%.750   %+0%.450 %[%+0%.%d+, %+0%.%d+%]", lines[3])
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
  check.equal(learned.lines(rewards(1), rewards(1))[2], "  nothing that is measured changed", "same")

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
