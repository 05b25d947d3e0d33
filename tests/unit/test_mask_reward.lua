-- test_mask_reward.lua - masks in data sets, masks that the trainer lends to rewards, the reward
-- mask_iou, and gIoU, on a miniature policy and a SAM2 of random weights (64 px). What a mask
-- should be is asked of the predictor, one answer at a time.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local data = require "segzero.data"
local files = require "segzero.core.files"
local rollout = require "segzero.inference.rollout"
local records = require "segzero.train.records"
local runner = require "segzero.reward.runner"
local segment = require "segzero.inference.segmenter"
local tensor = require "segzero.core.tensor"
local mask_iou = require "rewards.mask_iou"
local terms = require "rewards.seg_terms"

local C = sz.core.C
local SAM2 = "tests/golden/sam2/S5"
local place = mini.folder()

-- ---- data sets ----
local function bytes(t)
  local out = {}
  local p = tensor.data(t)
  for i = 0, t:numel() - 1 do out[i + 1] = tonumber(p[i]) end
  return out
end

local folder = place .. "/set"
sz.refshapes.write_dataset(folder, { n = 3, first = 4, size = 84, seed = 42, split = "heldout" },
  sz.image.write_png)
-- Rows 4 to 6, where the masks of this SAM2 happen to meet the true ones.
local shapes, read = data.open("refshapes", { split = "heldout", size = 84, seed = 42, rows = 6 }),
  data.open(folder, {})
local made = { name = "three rows", count = function() return 3 end,
  row = function(_, i) return shapes:row(i + 3) end }
for i = 1, 3 do
  local a, b = made:row(i), read:row(i)
  local x, y = a.mask(), b.mask()
  check.equal({ x:dtype(), x:shape() }, { "u8", { 84, 84 } }, "a mask is u8 [h, w]")
  check.equal(bytes(x), bytes(y), "a folder brings the mask back: row " .. i)
  -- The tight box of the mask, corners inside, is the ground truth's.
  local x0 = 84
  local y0 = 84
  local x1 = -1
  local y1 = -1
  for at, v in ipairs(bytes(x)) do
    if v == 1 then
      local col = (at - 1) % 84
      local line = math.floor((at - 1) / 84)
      x0, y0, x1, y1 = math.min(x0, col), math.min(y0, line), math.max(x1, col), math.max(y1, line)
    end
  end
  check.equal({ x0, y0, x1, y1 }, (terms.read_truth(a.solution)), "its box is the solution's")
end

local lines = {}
for line in io.lines(folder .. "/data.jsonl") do lines[#lines + 1] = line end
local function changed(name, change)
  local path = mini.copy(folder, place .. "/" .. name)
  local text = { unpack(lines) }
  change(text, path)
  files.write(path .. "/data.jsonl", table.concat(text, "\n") .. "\n")
  return path
end
local function raises(pattern, name, change, i)
  local path = changed(name, change)
  check.raises(function() data.open(path, {}):row(i).mask() end, name .. "/data.jsonl:" .. pattern,
    name)
end
local second = cjson.decode(lines[2]).mask
raises("2: the mask masks/heldout_42_000005_1.png has 40 x 84 pixels, the image 84 x 84", "size",
  function(_, path) sz.image.new(40, 84):save(path .. "/" .. second) end, 2)
raises("2: .*masks/heldout_42_000005_1.png", "gone",
  function(_, path) os.remove(path .. "/" .. second) end, 2)
raises("2: the column 'mask' is number, expected a string", "kind",
  function(t) t[2] = t[2]:gsub('"mask": "[^"]*"', '"mask": 7') end, 1)
raises("3: the column 'mask' is missing, but line 1 has one", "mixed",
  function(t) t[3] = t[3]:gsub('"mask": "[^"]*", ', "") end, 1)
local bare = changed("bare", function(t)
  for i = 1, #t do t[i] = t[i]:gsub('"mask": "[^"]*"', '"mask": null') end
end)
check.equal(data.open(bare, {}):row(1).mask, nil, "a set without masks")
local grey = changed("grey", function(_, path)
  local img = sz.image.new(84, 84)
  local p = img:pixels()
  p[0] = 1
  p[4] = 128
  img:save(path .. "/" .. second)
end)
check.equal({ unpack(bytes(data.open(grey, {}):row(2).mask()), 1, 3) }, { 1, 1, 0 },
  "anything but 0 is inside")

-- ---- a segmenter that counts ----
local sam = sz.sam2(SAM2)
local real, calls = segment.new(sam), nil
local counted = {
  embed = function(_, img)
    calls.embed = calls.embed + 1
    return real:embed(img)
  end,
  masks = function(_, f, list)
    calls.masks[#calls.masks + 1] = #list
    return real:masks(f, list)
  end,
}
local function reset() calls = { embed = 0, masks = {} } end

-- IoU of what the predictor makes of a box and two points, in the image's pixels, with the row's
-- true mask.
local function expected_iou(row, box, p1, p2)
  sam:set_image(row.image)
  local r = sam:predict { box = box, points = { p1, p2 }, labels = { 1, 1 }, multimask = true }
  local truth = row.mask()
  local best, n = sam.best(r), row.image.width * row.image.height
  local p, q = tensor.data(r.masks) + (best - 1) * n, tensor.data(truth)
  local inside = 0
  local either = 0
  for i = 0, n - 1 do
    if p[i] == 1 and q[i] == 1 then inside = inside + 1 end
    if p[i] == 1 or q[i] == 1 then either = either + 1 end
  end
  return either > 0 and inside / either or 0
end

local function written(box, p1, p2, keys)
  keys = keys or { "bbox", "points_1", "points_2" }
  local object = ('{"%s": [%d,%d,%d,%d], "%s": [%d,%d], "%s": [%d,%d]}'):format(keys[1], box[1],
    box[2], box[3], box[4], keys[2], p1[1], p1[2],
    keys[3], p2[1], p2[2])
  return ("<think>so</think><answer>%s</answer>"):format(object)
end

local dir = mini.write(place .. "/model")
local cfg = mini.settings {}
local t = mini.trainer(cfg, { model = dir, reward = mask_iou, segmenter = counted })

-- An image of another size than the frame that answers count in: 126 x 84 seen as 840 x 840.
local function wide_row()
  local row = made:row(1)
  local img = row.image:resize(126, 84)
  row.image:free()
  row.image = img
  row.frame = 840
  row.number = 1
  function row.mask()
    local m = tensor.zeros({ 84, 126 }, { dtype = "u8" })
    for line = 20, 59 do
      for col = 30, 99 do tensor.data(m)[line * 126 + col] = 1 end
    end
    return m
  end
  return row
end

local function group(row, texts)
  local g = { row = row, samples = {} }
  for i, text in ipairs(texts) do
    g.samples[i] = { text = text, ids = { 1, 2 }, finish = "stop" }
  end
  return g
end

-- Two different answers, one of them twice, one with loose keys, one without thinking, one that is
-- nothing.
local row = made:row(1)
local box = { 28, 5, 49, 68 }
local other = { 5, 5, 30, 40 }
local p1 = { 34, 24 }
local p2 = { 30, 52 }
local p3 = { 12, 20 }
local texts = { written(box, p1, p2), written(other, p3, p3), written(box, p1, p2),
  written(other, p3, p3, { "my_bbox", "points_a", "points_b" }),
  (written(box, p1, p2):gsub("<think>so</think>", "")),
    "<think>no</think><answer>nothing</answer>" }
reset()
local g = group(row, texts)
local function score(list)
  for _, one in ipairs(list) do runner.score_group(t.reward, one, t.segmenter) end
end
score { g }
local sums = records.means { g }
check.equal(calls, { embed = 1, masks = { 2 } },
  "one image embedded, one decoder call of the different answers")
local iou, iou_other = expected_iou(row, box, p1, p2), expected_iou(row, other, p3, p3)
check.ok(iou > 0.05 and iou_other > 0.05 and iou ~= iou_other,
  ("the two masks are worth %.3f and %.3f"):format(iou, iou_other))
local wanted = { { 1, 1, iou }, { 1, 1, iou_other }, { 1, 1, iou }, { 1, 0, iou_other },
  { 0, 1, 0 }, { 1, 0, 0 } }
local mean = 0
for i, w in ipairs(wanted) do
  local a = g.samples[i]
  check.equal(a.parts, { thinking_format = w[1], segmentation_format = w[2], mask_iou = w[3] },
    "parts of answer " .. i)
  check.near(a.score, w[1] + w[2] + 3 * w[3], 1e-12, "score of answer " .. i)
  mean = mean + w[3] / #wanted
end
check.near(sums["reward/mask_iou"], mean, 1e-12, "the mean of the part")
check.equal({ row.segment, type(row.mask) }, { nil, "function" },
  "row.segment is gone after the rewards, row.mask stays")

local wide = wide_row()
g = group(wide, { written({ 200, 240, 700, 701 }, { 300, 400 }, { 555, 555 }) })
score { g }
-- 840 -> 126 and 84: 700 * 0.15 = 105, 701 * 0.1 = 70.1, 555 * 0.15 = 83.25, 555 * 0.1 = 55.5 (to
-- the even 56).
check.near(g.samples[1].parts.mask_iou,
  expected_iou(wide, { 30, 24, 105, 70 }, { 45, 40 }, { 83, 56 }), 1e-12,
  "answers are scaled from the frame")

reset()
local far = group(made:row(1),
  { written({ 0, 0, 1, 1 }, p1, p2):gsub("%[0,0,1,1%]", "[0,0,1e300,1]"),
  (written({ 60, 60, 5, 5 }, { -9, -9 }, { 400, 9 })) })
score { far }
check.ok(far.samples[1].score >= 2 and far.samples[2].score >= 2,
  "boxes far away or inside out are wrong answers, no errors")

-- Several rows: each its own image; a reward that asks for none costs none; nothing is left.
reset()
local function two()
  return { group(made:row(1), texts), group(made:row(2), { texts[1], texts[6] }) }
end
score(two())
check.equal(calls, { embed = 2, masks = { 2, 1 } }, "one embedding and one call a row")
reset()
t.reward = mini.reward
score(two())
check.equal(calls, { embed = 0, masks = {} }, "a reward that asks for no mask")
t.reward = function(text, _, r)
  if text == texts[6] then return 0 end
  local list = r.segment { { bbox = box, point = p1 }, { bbox = other, point = p3 } }
  check.equal(list:shape(), { 84, 84 }, "several objects")
  return 1
end
score { group(made:row(1), { texts[6], texts[6] .. "." }) }
local groups = two()
t.reward = mask_iou
collectgarbage()
local live = tonumber(C.sz_live_bytes())
score(groups)
check.equal(tonumber(C.sz_live_bytes()), live, "features and masks are freed")

-- ---- errors ----
check.raises(function() mask_iou(texts[1], row.solution) end,
  "mask_iou needs SAM2: give worker.reward.sam2_path", "no row")
check.raises(function() mask_iou(texts[1], row.solution, row) end,
  "mask_iou needs SAM2: give worker.reward.sam2_path", "no SAM2")
check.raises(function() mask_iou(texts[1], row.solution, { id = "r7", segment = print }) end,
  "row r7 has no mask; the data set needs the column 'mask'",
  "no mask")
t.segmenter = nil
check.raises(function() score { group(made:row(1), texts) } end,
  "the reward failed on row heldout%-4.*give worker.reward.sam2_path", "through the trainer")
t.segmenter = counted
check.raises(function() score { group(data.open(bare, {}):row(1), texts) } end,
  "row heldout_42_000004_1 has no mask", "the row is named")

-- ---- gIoU ----
-- The policy's words are random; here the rows are given answers: a good prompt, nothing, and the
-- truth.
local generate = rollout.generate
local function answering(words)
  local at = 0
  rollout.generate = function(...)
    local all = generate(...)
    for _, samples in ipairs(all) do
      for _, a in ipairs(samples) do
        at = at + 1
        a.text = words(at)
      end
    end
    return all
  end
end
local function truth_text(i)
  local b, p = terms.read_truth(made:row(i).solution)
  return written(b, p[1], p[2])
end
local replies = { texts[1], texts[6], truth_text(3) }
t.held_out = made
t.options.evaluation.batch = 2
local function true_iou(i)
  local r = made:row(i)
  local b, p = terms.read_truth(r.solution)
  return expected_iou(r, b, p[1], p[2])
end
local want_giou = (expected_iou(made:row(1), box, p1, p2) + 0 + true_iou(3)) / 3
check.ok(want_giou > 0.05, "the rows are worth something")
local want_ceiling = (true_iou(1) + true_iou(2) + true_iou(3)) / 3
for round, reward in ipairs { mask_iou, mini.reward } do
  answering(function(i) return replies[i] end)
  reset()
  t.reward = reward
  t.ceiling = nil
  local _, parts, rated, giou = t:evaluate()
  check.near(giou, want_giou, 1e-12, "gIoU is the mean over all rows, unreadable answers with 0")
  check.near(t.ceiling, want_ceiling, 1e-12, "the ceiling is that of the true boxes and points")
  check.equal(calls, { embed = 3, masks = { 2, 1, 1 } },
    "answer and truth in one call, nothing twice")
  check.near({ rated[1].iou, rated[2].iou }, { expected_iou(made:row(1), box, p1, p2), 0 }, 1e-12,
    "records carry their IoU")
  if round == 1 then
    check.near(parts.mask_iou, want_giou, 1e-12, "and the reward's part is the same number")
  end
end
answering(function(i) return replies[i] end)
reset()
local _, _, kept, again = t:evaluate(2)
check.near(again, want_giou, 1e-12, "again")
check.equal({ kept[1].mask:shape(), kept[2].mask, kept[3].mask }, { { 84, 84 }, nil, nil },
  "two records keep their masks, if they have one")
check.equal(calls, { embed = 2, masks = { 1, 1 } },
  "the ceiling is computed once, and an image without an answer is not embedded")
for _, case in ipairs { { "a set without masks", function() t.held_out,
  t.reward = data.open(bare, {}), mini.reward end },
  { "no SAM2", function() t.held_out, t.segmenter = made, nil end } } do
  case[2]()
  answering(function(i) return replies[i] end)
  local _, _, list, giou = t:evaluate()
  check.equal({ giou, list[1].iou }, { nil, nil }, case[1] .. ": no gIoU")
end

-- ---- two runs of the same seed ----
-- Training text that depends on the sampled tokens, so that the answers' boxes differ and are
-- repeated exactly by a second run.
local function train()
  local function rewrite(samples)
    for _, a in ipairs(samples) do
      local h = 0
      for _, id in ipairs(a.ids) do h = (h * 31 + id) % 1009 end
      a.text = written({ h % 40, h % 37, 40 + h % 43, 40 + h % 41 }, { 20 + h % 30, 20 + h % 29 },
        { 20 + h % 23, 20 + h % 19 })
    end
  end
  rollout.generate = function(vl, inputs, opts)
    local judge = opts.on_group
    opts.on_group = judge and function(i, samples)
      rewrite(samples)
      judge(i, samples)
    end
    local all, stats = generate(vl, inputs, opts)
    for _, samples in ipairs(all) do rewrite(samples) end
    return all, stats
  end
  local run = mini.trainer(mini.settings {},
    { model = dir, reward = mask_iou, reference = true, held_out = made, segmenter = real })
  local seen = {}
  for step = 1, 3 do
    local s = run:step()
    s.seconds = nil
    s.machine = nil
    s.time = nil
    seen[step] = s
  end
  seen[4] = { run:evaluate() }
  return seen
end
local a, b = train(), train()
check.equal(a, b, "two runs report the same")
check.ok(a[2]["reward/mask_iou"] > 0 and a[4][4] > 0,
  ("real masks: %.3f in training, %.3f held out"):format(a[2]["reward/mask_iou"], a[4][4]))
rollout.generate = generate

-- ---- the program ----
local function recipe(script, run, args)
  local all = { script, "worker.actor.model.model_path=" .. dir }
  local own = { "trainer.max_steps=1", "trainer.val_before_train=true", "trainer.save_freq=-1",
    "trainer.save_checkpoint_path=" .. place .. "/" .. run }
  for _, list in ipairs { mini.arguments, own, args } do
    for _, arg in ipairs(list) do all[#all + 1] = arg end
  end
  return mini.run(all)
end
local text, status = recipe("recipes/mask_grpo.lua", "masks",
  { "worker.reward.sam2_path=" .. SAM2 })
check.equal(status, 0, "mask_grpo runs: " .. text:sub(-400))
local giou_line = "\nheld%-out gIoU: before=0%.000 after=0%.000 ceiling=0%.%d%d%d rows=3 seed=42\n"
check.ok(text:find(giou_line), "gIoU's line: " .. text)
check.ok(text:find "\nheld%-out reward: before=[%d.]+ after=[%d.]+ rows=3 seed=42\n",
  "next to the reward's")
local metrics = {}
for line in io.lines(place .. "/masks/metrics.jsonl") do
  metrics[#metrics + 1] = cjson.decode(line)
end
check.equal({ #metrics, metrics[1].held_out_giou, metrics[3].held_out_giou,
  metrics[2]["reward/mask_iou"] }, { 3, 0, 0, 0 }, "metrics.jsonl")
check.ok(metrics[1].held_out_ceiling_giou > 0, "with the ceiling")
check.equal(cjson.decode(files.read(place .. "/masks/config.json")).worker.reward,
  { reward_type = "function", compute_score = "mask_iou", sam2_path = SAM2,
    timeout = 10, on_error = "stop", reload = true, reward_function_kwargs = {} },
  "config.json names them")

text, status = recipe("recipes/refcocog_grpo.lua", "boxes",
  { "worker.reward.sam2_path=" .. SAM2, "trainer.val_before_train=false" })
check.ok(status == 0 and text:find "\nheld%-out gIoU: before=none after=0%.000 ceiling=0%.",
  "the other rewards have it too: " .. text:sub(-300))
text, status = recipe("recipes/mask_grpo.lua", "none", {})
check.ok(status ~= 0
  and text:find("compute_score=mask_iou needs a SAM2 model: give worker.reward.sam2_path", 1, true),
  "no SAM2: " .. text)
text, status = recipe("recipes/mask_grpo.lua", "wrong", { "worker.reward.sam2_path=" .. dir })
check.ok(status ~= 0 and text:find("is a qwen2_5_vl model; name a SAM2 folder", 1, true),
  "another model: " .. text)
text, status = recipe("recipes/refcocog_grpo.lua", "plain", {})
check.ok(status == 0 and not text:find "gIoU", "without SAM2 there is no gIoU: " .. text)

mini.remove()
check.finish()
