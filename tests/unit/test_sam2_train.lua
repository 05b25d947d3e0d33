-- test_sam2_train.lua - training SAM2: the losses against the reference package's numbers, a
-- miniature of 64 pixels that learns, a frozen encoder that does not change, the recipe from
-- scratch and on a folder, and the quality of the embedded checkpoint.
--
--   ./segzero tests/unit/test_sam2_train.lua
--
-- Leaves out: the network's own numbers and gradients (test_sam2.lua).

local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local mask_loss = require "segzero.algorithms.mask_loss"
local optim = require "segzero.train.optim"
local refshapes = require "segzero.data.refshapes"
local tensor = require "segzero.core.tensor"

local RECIPE = "recipes/sam2_finetune.lua"
local SIDE = 84         -- of the scenes that the miniature is trained on

local place = mini.folder()

-- ---- losses ----

-- From MultiStepMultiMasksAndIous of SAM2's training code (weights 20, 1, 1, 1, L1 of all scores,
-- object loss with gamma 0 and no alpha), run with torch 2.15 on these inputs, stretched by torch's
-- interpolate. "multi" got masks 1 to 3, "single" mask 0. The third truth is empty. f32 sums: 1e-5.
-- rows: the masks with a gradient; dx: four of the logits' gradients, from element `at` on.
local GOLDEN = {
  multi = {
    mask = 0.1313797, dice = 0.3813757, iou = 0.2322254, object = 0.9951764, total = 4.236372,
    dx_sum = 1.4859557, rows = { [2] = true, [8] = true }, at = 16,
    dx = { -0.0505799, -0.0128467, 0.0169962, 0.0695301 }, diou = { 0, 1 / 9, -1 / 9, 1 / 9 },
  },
  single = {
    mask = 0.2724036, dice = 0.3377333, iou = 0.2494020, object = 0.9951764, total = 7.0303836,
    dx_sum = 3.6595943, rows = { [1] = true, [5] = true }, at = 0,
    dx = { 0.0848619, 0.2265428, 0.0481309, 0.0158747 }, diou = { 1 / 3, 0, 0, 0 },
  },
}
local LOSS_TOL = 1e-5
local PROMPTS = 3
local MASKS = 4         -- for each prompt
local MASK_SIDE = 4
local TRUTH_SIDE = 6

-- A tensor of n numbers f(i), i from 0.
local function fill(n, f)
  local t = {}
  for i = 0, n - 1 do t[i + 1] = f(i) end
  return tensor.new(t)
end

-- The inputs of the recorded run: logits, scores and object scores with gradients, and the truth.
local function golden_inputs()
  local pixels = TRUTH_SIDE * TRUTH_SIDE
  local logits = fill(PROMPTS * MASKS * MASK_SIDE * MASK_SIDE, function(i)
    return 3 * math.sin(0.37 * i * i + i)
  end)
  local iou = fill(PROMPTS * MASKS, function(i) return 0.5 + 0.45 * math.sin(2.1 * i) end)
  local object = tensor.new { 0.8, -0.4, 1.5 }
  local truth = fill(PROMPTS * pixels, function(i)
    local p = math.floor(i / pixels)
    local j = i % pixels
    if p < 2 and (j * 7 + p * 3) % 5 < 2 then return 1 end
    return 0
  end)
  for _, t in ipairs { logits, iou, object } do t:requires_grad(true) end
  return logits, iou, object, truth:reshape(PROMPTS, TRUTH_SIDE, TRUTH_SIDE)
end

-- The sum of magnitudes, and which masks have a gradient.
local function summary(dx)
  local sum = 0
  local rows = {}
  local pixels = MASK_SIDE * MASK_SIDE
  for i, v in ipairs(dx) do
    sum = sum + math.abs(v)
    if v ~= 0 then rows[math.floor((i - 1) / pixels) + 1] = true end
  end
  return sum, rows
end

for name, want in pairs(GOLDEN) do
  check.case("the loss equals the package's: " .. name, function()
    local logits, iou, object, truth = golden_inputs()
    local output = {
      logits = logits:reshape(PROMPTS, MASKS, MASK_SIDE, MASK_SIDE),
      iou = iou:reshape(PROMPTS, MASKS),
      object = object:reshape(PROMPTS, 1),
    }
    local total, parts = mask_loss.sam2(output, truth, { modes = { name, name, name } })
    total:backward()
    for _, key in ipairs { "mask", "dice", "iou", "object", "total" } do
      check.near(parts[key], want[key], LOSS_TOL, name .. ", " .. key)
    end

    -- The gradients.
    local dx = logits:grad():totable()
    local sum, rows = summary(dx)
    check.near(sum, want.dx_sum, LOSS_TOL, name .. ", the logits' gradient: sum of magnitudes")
    for row = 1, PROMPTS * MASKS do
      local label = ("%s, whether mask %d has a gradient"):format(name, row)
      check.equal(rows[row], want.rows[row], label)
    end
    local four = { unpack(dx, want.at + 1, want.at + 4) }
    check.near(four, want.dx, LOSS_TOL, name .. ", the logits' gradient")
    local scores = { unpack(iou:grad():totable(), 1, 4) }
    check.near(scores, want.diou, LOSS_TOL, name .. ", the scores' gradient")
    check.near(object:grad():totable(), { -0.1033419, -0.1995625, 0.2725248 }, LOSS_TOL,
      name .. ", the object scores' gradient")
  end)
end

check.case("losses of huge logits are finite", function()
  local logits = tensor.new { { 300, -300, 300, -300 } }:requires_grad(true)
  local focal = mask_loss.focal(logits, tensor.new { { 1, 0, 0, 1 } })
  focal:sum():backward()
  check.near(focal:item(), (0.75 * 300 + 0.25 * 300) / 4, 1e-3, "focal loss")
  check.near(logits:grad():totable()[1], { 0, 0, 0.75 / 4, -0.25 / 4 }, 1e-5, "and its gradient")
  local dice = mask_loss.dice(tensor.new { { 300, -300 } }, tensor.new { { 1, 0 } })
  check.near(dice:item(), 0, 1e-6, "dice loss of a right mask")
end)

check.case("IoU counts values above 0", function()
  local logits = tensor.new { { 1, 1, -1, 0 }, { -1, -1, -1, -1 } }
  local truth = tensor.new { { 1, 0, 1, 1 }, { 0, 0, 0, 0 } }
  check.equal(mask_loss.iou_of(logits, truth), { 0.25, 0 }, "IoU from values")
end)

check.case("truths and prompts must be equally many", function()
  local output = {
    logits = tensor.zeros { 1, 4, 2, 2 },
    iou = tensor.zeros { 1, 4 },
    object = tensor.zeros { 1, 1 },
  }
  check.raises(function() mask_loss.sam2(output, tensor.zeros { 2, 2, 2 }) end,
    "truth has 2 masks, out has 1 prompts", "too many truths")
end)

-- ---- a miniature learns one batch by heart ----

local scratch = place .. "/scratch"     -- the miniature's folder
local scratch_text                      -- what the recipe printed when it made that folder
local scratch_status

-- Runs the recipe from scratch, once for all cases.
local function make_scratch()
  if scratch_text then return end
  scratch_text, scratch_status = mini.run {
    RECIPE, "output=" .. scratch, "steps=2", "log_every=1", "size=" .. SIDE, "eval_images=2",
    "samples=2", "image_size=64", "width=8", "hidden=32", "mlp=32", "decoder_heads=2",
    "blocks=1,1,2,1", "global_blocks=3", "windows=8,4,4,2", "images=2", "prompts=2",
  }
end

check.case("the recipe trains from scratch", function()
  make_scratch()
  local text = scratch_text
  check.equal(scratch_status, 0, "exit status: " .. text:sub(-300))
  local reported = text:find("step 2 ", 1, true) and text:find("saved ", 1, true)
  check.ok(reported, "it reports steps and the saved model")
  check.ok(files.exists(scratch .. "/samples.png"), "it writes a sheet of samples")
end)

local function bytes(t) return ffi.string(ffi.cast("char *", tensor.data(t)), t:numel() * 4) end

local function is_encoder(name)
  if name == "no_memory_embedding" or name:match "^vision_encoder%." then return true end
  return name:match "conv_s[01]%." ~= nil
end

local function is_decoder(name) return not is_encoder(name) end

local scene = refshapes.sample { seed = 5, index = 1, size = SIDE, level = 2, questions = 2 }

local function image_of(sample)
  local image = sz.image.new(sample.width, sample.height)
  ffi.copy(image:pixels(), sample.rgb, sample.width * sample.height * 3)
  return image
end

-- The scene's questions as prompts of their boxes, and the true masks [questions, SIDE, SIDE].
local function batch()
  local scale = 64 / SIDE
  local pixels = SIDE * SIDE
  local truth = tensor.empty { #scene.questions, SIDE, SIDE }
  local prompts = {}
  for p, question in ipairs(scene.questions) do
    local b = question.bbox
    local corners = {
      { b[1] * scale, b[2] * scale, 2 }, { b[3] * scale, b[4] * scale, 3 }, { 0, 0, -1 },
    }
    prompts[p] = { image = 1, points = corners }
    local row = tensor.data(truth) + (p - 1) * pixels
    local mask = question.mask()
    for i = 0, pixels - 1 do row[i] = mask[i] end
  end
  return prompts, truth
end

-- The loss of the scene; its gradients are added to the model's parameters.
local function backward(sam, image, frozen)
  return tensor.step(function()
    local function encode() return sam:encode(sam:pixels(image)) end
    local features
    if frozen then
      features = tensor.no_grad(encode)
    else
      features = encode()
    end
    local prompts, truth = batch()
    local total, parts = mask_loss.sam2(sam:decode(features, prompts), truth)
    total:backward()
    return parts.total
  end)
end

-- Trains the miniature on one scene for 25 steps and checks which weights change; returns it.
local function learn(frozen)
  make_scratch()
  local name = "all weights"
  local sam = sz.sam2(scratch)
  local list
  if frozen then
    name = "frozen encoder"
    list = sam:train(is_decoder)
  else
    list = sam:train()
  end
  local before = {}
  for parameter, t in pairs(sam:parameters()) do before[parameter] = bytes(t) end

  -- The loss falls.
  local image = image_of(scene)
  local opt = optim.adamw(list, { lr = 3e-3, weight_decay = 0.01, max_grad_norm = 1 })
  local first
  local last
  for _ = 1, 25 do
    last = backward(sam, image, frozen)
    opt:step()
    first = first or last
  end
  check.ok(last < 0.75 * first, ("%s: the loss falls (%.3f to %.3f)"):format(name, first, last))

  -- The trained weights change, the others do not.
  local encoder_kept = 0
  local decoder_changed = 0
  for parameter, t in pairs(sam:parameters()) do
    local equal = bytes(t) == before[parameter]
    if not is_encoder(parameter) then
      if not equal then decoder_changed = decoder_changed + 1 end
    else
      if equal then encoder_kept = encoder_kept + 1 end
      if frozen then check.ok(equal, parameter .. " stays bit for bit") end
    end
  end
  check.ok(decoder_changed > 60, "the decoder's weights change")
  if not frozen then check.ok(encoder_kept == 0, "and all of the encoder's") end
  return sam
end

check.case("a miniature learns with a frozen encoder", function() learn(true) end)

check.case("a miniature learns, and its saved folder gives the same bits", function()
  local sam = learn(false)
  local image = image_of(scene)
  local function answer(model)
    model:set_image(image)
    local r = model:predict { box = scene.questions[1].bbox, points = scene.questions[1].points }
    return { r.scores, bytes(r.low_res) }
  end
  sam:save(place .. "/saved")
  check.equal(answer(sz.sam2(place .. "/saved")), answer(sam), "saved and loaded, the same bits")
end)

-- ---- the recipe on a user's folder, with a frozen encoder ----

-- Writes a data set whose rows name their masks' files; returns its folder.
local function write_folder()
  local folder = place .. "/data"
  refshapes.write_dataset(folder, { n = 6, size = SIDE, seed = 3 }, sz.image.write_png)
  local lines = {}
  for line in io.lines(folder .. "/data.jsonl") do
    local row = cjson.decode(line)
    row.mask = "masks/" .. row.id .. ".png"
    lines[#lines + 1] = cjson.encode(row)
  end
  files.write(folder .. "/data.jsonl", table.concat(lines, "\n") .. "\n")
  return folder
end

check.case("the recipe fine-tunes on a folder", function()
  make_scratch()
  local folder = write_folder()
  local tuned = place .. "/tuned"
  local again = place .. "/again"
  local function tune(output)
    return mini.run {
      RECIPE, "model_path=" .. scratch, "train_files=" .. folder, "output=" .. output,
      "freeze_encoder=true", "steps=2", "images=2", "eval_images=1", "samples=0",
    }
  end
  local text, status = tune(tuned)
  check.equal(status, 0, "fine-tuning on a folder: " .. text:sub(-300))
  check.ok(text:find("loss at 16 px", 1, true), "the loss is at the low-resolution masks' side")

  -- Which tensors changed.
  local after = sz.safetensors.load_folder(tuned)
  local encoder_changed = {}
  local changed = 0
  for name, t in pairs(sz.safetensors.load_folder(scratch)) do
    if bytes(t) ~= bytes(after[name]) then
      changed = changed + 1
      if is_encoder(name) then encoder_changed[#encoder_changed + 1] = name end
    end
  end
  check.equal(encoder_changed, {}, "the encoder's tensors are the same bytes")
  check.ok(changed > 60, "the others changed")

  tune(again)
  local one = files.read(tuned .. "/model.safetensors")
  local other = files.read(again .. "/model.safetensors")
  check.ok(one == other, "the same run gives the same file")
end)

-- Each step's first lines of numbers say what was trained, so equal prompts give equal files.
check.case("points of solutions count in solution_frame", function()
  make_scratch()
  local folder = write_folder()
  local doubled = place .. "/doubled"
  mini.copy(folder, doubled)
  local lines = {}
  for line in io.lines(folder .. "/data.jsonl") do
    local row = cjson.decode(line)
    row.solution = row.solution:gsub("%d+", function(n) return tostring(2 * tonumber(n)) end)
    lines[#lines + 1] = cjson.encode(row)
  end
  files.write(doubled .. "/data.jsonl", table.concat(lines, "\n") .. "\n")
  local function tune(name, from, ...)
    local output = place .. "/frame-" .. name
    local text, status = mini.run { RECIPE, "model_path=" .. scratch, "train_files=" .. from,
      "output=" .. output, "freeze_encoder=true", "steps=2", "images=3", "eval_images=1",
      "samples=0", "box=0", "box_points=1", ... }
    check.equal(status, 0, name .. ": " .. text:sub(-300))
    return files.read(output .. "/model.safetensors"), text
  end
  local plain = tune("plain", folder)
  local size = ("%dx%d"):format(2 * SIDE, 2 * SIDE)
  check.ok(tune("stated", doubled, "solution_frame=" .. size) == plain, "the same points")
  local other, said = tune("auto", doubled)
  check.ok(other ~= plain, "without it they are other points")
  check.equal(select(2, said:gsub("solution_frame=840x840 if they count in that", "")), 1,
    "said once: " .. said)
end)

check.case("the recipe refuses an unknown setting", function()
  local text, status = mini.run { RECIPE, "nothing=1" }
  local named = text:find("unknown setting 'nothing'", 1, true)
  check.ok(status ~= 0 and named, "it fails and names the setting")
end)

-- ---- the embedded checkpoint ----

local function iou(mask, truth, pixels)
  local inter = 0
  local union = 0
  for i = 0, pixels - 1 do
    if mask[i] + truth[i] == 2 then inter = inter + 1 end
    if mask[i] + truth[i] > 0 then union = union + 1 end
  end
  return inter / union
end

check.case("the embedded checkpoint finds true boxes' masks", function()
  if not files.exists "models/tiny/sam2/config.json" then return check.skip "models/tiny/sam2" end
  local side = 112
  local pixels = side * side
  local tiny = sz.sam2 "models/tiny/sam2"
  local sum = 0
  local n = 0
  for i = 1, 6 do
    local sample = refshapes.sample {
      seed = 77, split = "heldout", index = i, size = side, level = 3, questions = 4,
    }
    local image = image_of(sample)
    tiny:set_image(image)
    for _, question in ipairs(sample.questions) do
      local r = tiny:predict { box = question.bbox, points = question.points }
      local mask = tensor.data(r.masks) + (tiny.best(r) - 1) * pixels
      sum = sum + iou(mask, question.mask(), pixels)
      n = n + 1
    end
    image:free()
  end
  local name = ("masks of true boxes and points: mean IoU %.3f of %d"):format(sum / n, n)
  check.ok(sum / n > 0.9, name)
end)

mini.remove()
check.finish()
