-- test_sam2_train.lua - training SAM2: the losses against the reference package's numbers, a
-- miniature of 64 pixels that learns, a frozen encoder that stays, the recipe from scratch and on a
-- folder, and what the embedded checkpoint can do.

local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local loss = require "segzero.algorithms.mask_loss"
local optim = require "segzero.train.optim"
local refshapes = require "segzero.data.refshapes"
local tensor = require "segzero.core.tensor"

local place = mini.folder()

local function fill(n, f)
  local t = {}
  for i = 0, n - 1 do t[i + 1] = f(i) end
  return tensor.new(t)
end

-- ---- losses ----
-- From MultiStepMultiMasksAndIous of SAM2's training code (weights 20, 1, 1, 1, L1 of all scores,
-- object loss with gamma 0 and no alpha), run with torch 2.15 on these inputs, stretched by torch's
-- interpolate; "multi" got masks 1 to 3, "single" mask 0. The third truth is empty. f32 sums: 1e-5.
local GOLDEN = {
  multi = { mask = 0.1313797, dice = 0.3813757, iou = 0.2322254, object = 0.9951764, total = 4.236372, dx_sum = 1.4859557,
    rows = { [2] = true, [8] = true }, at = 16, dx = { -0.0505799, -0.0128467, 0.0169962, 0.0695301 }, diou = { 0, 1 / 9, -1 / 9, 1 / 9 } },
  single = { mask = 0.2724036, dice = 0.3377333, iou = 0.2494020, object = 0.9951764, total = 7.0303836, dx_sum = 3.6595943,
    rows = { [1] = true, [5] = true }, at = 0, dx = { 0.0848619, 0.2265428, 0.0481309, 0.0158747 }, diou = { 1 / 3, 0, 0, 0 } },
}
local P, m, s, h = 3, 4, 4, 6
for name, want in pairs(GOLDEN) do
  local x = fill(P * m * s * s, function(i) return 3 * math.sin(0.37 * i * i + i) end):requires_grad(true)
  local iou = fill(P * m, function(i) return 0.5 + 0.45 * math.sin(2.1 * i) end):requires_grad(true)
  local object = tensor.new { 0.8, -0.4, 1.5 }:requires_grad(true)
  local truth = fill(P * h * h, function(i)
    local p, j = math.floor(i / (h * h)), i % (h * h)
    return p < 2 and (j * 7 + p * 3) % 5 < 2 and 1 or 0
  end)
  local total, parts = loss.sam2({ logits = x:reshape(P, m, s, s), iou = iou:reshape(P, m), object = object:reshape(P, 1) }, truth:reshape(P, h, h),
    { modes = { name, name, name } })
  total:backward()
  for _, key in ipairs { "mask", "dice", "iou", "object", "total" } do check.near(parts[key], want[key], 1e-5, name .. ", " .. key) end
  local dx, sum, rows = x:grad():totable(), 0, {}
  for i, v in ipairs(dx) do
    sum = sum + math.abs(v)
    if v ~= 0 then rows[math.floor((i - 1) / 16) + 1] = true end
  end
  check.near(sum, want.dx_sum, 1e-5, name .. ", the logits' gradient: sum of magnitudes")
  for row = 1, P * m do check.equal(rows[row], want.rows[row], ("%s, which masks have a gradient: %d"):format(name, row)) end
  check.near({ dx[want.at + 1], dx[want.at + 2], dx[want.at + 3], dx[want.at + 4] }, want.dx, 1e-5, name .. ", the logits' gradient")
  check.near({ unpack(iou:grad():totable(), 1, 4) }, want.diou, 1e-5, name .. ", the scores' gradient")
  check.near(object:grad():totable(), { -0.1033419, -0.1995625, 0.2725248 }, 1e-5, name .. ", the object scores' gradient")
end

local extreme = tensor.new { { 300, -300, 300, -300 } }:requires_grad(true)
local focal = loss.focal(extreme, tensor.new { { 1, 0, 0, 1 } })
focal:sum():backward()
check.near(focal:item(), (0.75 * 300 + 0.25 * 300) / 4, 1e-3, "focal loss of huge logits")
check.near(extreme:grad():totable()[1], { 0, 0, 0.75 / 4, -0.25 / 4 }, 1e-5, "and its gradient")
check.near(loss.dice(tensor.new { { 300, -300 } }, tensor.new { { 1, 0 } }):item(), 0, 1e-6, "dice loss of a right mask")
check.equal(loss.iou_of(tensor.new { { 1, 1, -1, 0 }, { -1, -1, -1, -1 } }, tensor.new { { 1, 0, 1, 1 }, { 0, 0, 0, 0 } }), { 0.25, 0 },
  "IoU from values")
local function too_many()
  loss.sam2({ logits = tensor.zeros { 1, 4, 2, 2 }, iou = tensor.zeros { 1, 4 }, object = tensor.zeros { 1, 1 } }, tensor.zeros { 2, 2, 2 })
end
check.raises(too_many, "truth has 2 masks, out has 1 prompts", "too many truths")

-- ---- a miniature learns one batch by heart ----
local text, status = mini.run { "recipes/sam2_finetune.lua", "output=" .. place .. "/scratch", "steps=2", "log_every=1", "size=84", "eval_pictures=2", "samples=2",
  "image_size=64", "width=8", "hidden=32", "mlp=32", "decoder_heads=2", "blocks=1,1,2,1", "global_blocks=3", "windows=8,4,4,2", "pictures=2", "prompts=2" }
check.equal(status, 0, "the recipe runs from scratch: " .. text:sub(-300))
check.ok(text:find("step 2 ", 1, true) and text:find("saved ", 1, true), "and reports")
check.ok(files.exists(place .. "/scratch/samples.png"), "with a sheet of samples")

local function bytes(t) return ffi.string(ffi.cast("char *", tensor.data(t)), t:numel() * 4) end
local function of_encoder(name) return name:match "^vision_encoder%." or name == "no_memory_embedding" or name:match "conv_s[01]%." end

local scene = refshapes.sample { seed = 5, index = 1, size = 84, level = 2, questions = 2 }
local picture = sz.image.new(84, 84)
ffi.copy(picture:pixels(), scene.rgb, 84 * 84 * 3)
local function learn(frozen)
  local sam = sz.sam2(place .. "/scratch")
  local list = sam:train(frozen and function(name) return not of_encoder(name) end or nil)
  local before = {}
  for name, t in pairs(sam:parameters()) do before[name] = bytes(t) end
  local opt = optim.adamw(list, { lr = 3e-3, weight_decay = 0.01, max_grad_norm = 1 })
  local first, last
  for _ = 1, 25 do
    last = tensor.step(function()
      local encode = function() return sam:encode(sam:pixels(picture)) end
      local f, prompts, truth = frozen and tensor.no_grad(encode) or encode(), {}, tensor.empty { #scene.questions, 84, 84 }
      for p, q in ipairs(scene.questions) do
        local b, k = q.bbox, 64 / 84
        prompts[p] = { image = 1, points = { { b[1] * k, b[2] * k, 2 }, { b[3] * k, b[4] * k, 3 }, { 0, 0, -1 } } }
        local to, from = tensor.data(truth) + (p - 1) * 84 * 84, q.mask()
        for i = 0, 84 * 84 - 1 do to[i] = from[i] end
      end
      local total, parts = loss.sam2(sam:decode(f, prompts), truth)
      total:backward()
      return parts.total
    end)
    opt:step()
    first = first or last
  end
  check.ok(last < 0.75 * first, ("%s: the loss falls (%.3f to %.3f)"):format(frozen and "frozen encoder" or "all weights", first, last))
  local same, changed = 0, 0
  for name, t in pairs(sam:parameters()) do
    local equal = bytes(t) == before[name]
    if of_encoder(name) then same = same + (equal and 1 or 0) elseif not equal then changed = changed + 1 end
    if frozen and of_encoder(name) then check.ok(equal, name .. " stays bit for bit") end
  end
  check.ok(changed > 60, "the decoder's weights change")
  if not frozen then check.ok(same == 0, "and all of the encoder's") end
  return sam
end
learn(true)
local sam = learn(false)

-- ---- a saved folder gives the same outputs ----
local function answers(model)
  model:set_image(picture)
  local r = model:predict { box = scene.questions[1].bbox, points = scene.questions[1].points }
  return { r.scores, bytes(r.low_res) }
end
sam:save(place .. "/saved")
check.equal(answers(sz.sam2(place .. "/saved")), answers(sam), "saved and loaded, the same bits")

-- ---- the recipe on a user's folder, with a frozen encoder ----
local folder = place .. "/data"
refshapes.write_dataset(folder, { n = 6, size = 84, seed = 3 }, sz.image.write_png)
local lines = {}
for line in io.lines(folder .. "/data.jsonl") do
  local row = cjson.decode(line)
  row.mask = "masks/" .. row.id .. ".png"
  lines[#lines + 1] = cjson.encode(row)
end
files.write(folder .. "/data.jsonl", table.concat(lines, "\n") .. "\n")
local function on_folder(output)
  return mini.run { "recipes/sam2_finetune.lua", "model_path=" .. place .. "/scratch", "train_files=" .. folder, "output=" .. output, "freeze_encoder=true",
    "steps=2", "pictures=2", "eval_pictures=1", "samples=0" }
end
text, status = on_folder(place .. "/tuned")
check.equal(status, 0, "fine-tuning on a folder: " .. text:sub(-300))
check.ok(text:find("loss at 16 px", 1, true), "at the low-resolution masks' side")
local was, is = sz.safetensors.load_folder(place .. "/scratch"), sz.safetensors.load_folder(place .. "/tuned")
local differ, count = {}, 0
for name, t in pairs(was) do
  if of_encoder(name) and bytes(t) ~= bytes(is[name]) then differ[#differ + 1] = name end
  if bytes(t) ~= bytes(is[name]) then count = count + 1 end
end
check.equal(differ, {}, "the encoder's tensors are the same bytes")
check.ok(count > 60, "the others changed")
on_folder(place .. "/again")
check.ok(files.read(place .. "/tuned/model.safetensors") == files.read(place .. "/again/model.safetensors"), "the same run gives the same file")
text, status = mini.run { "recipes/sam2_finetune.lua", "nothing=1" }
check.ok(status ~= 0 and text:find("unknown setting 'nothing'", 1, true), "an unknown setting is refused")

-- ---- the embedded checkpoint ----
if files.exists "models/tiny/sam2/config.json" then
  local tiny, sum, n = sz.sam2 "models/tiny/sam2", 0, 0
  for i = 1, 6 do
    local sample = refshapes.sample { seed = 77, split = "heldout", index = i, size = 112, level = 3, questions = 4 }
    local img = sz.image.new(112, 112)
    ffi.copy(img:pixels(), sample.rgb, 112 * 112 * 3)
    tiny:set_image(img)
    for _, q in ipairs(sample.questions) do
      local r = tiny:predict { box = q.bbox, points = q.points }
      local mask, truth, inter, union = tensor.data(r.masks) + (tiny.best(r) - 1) * 112 * 112, q.mask(), 0, 0
      for at = 0, 112 * 112 - 1 do
        if mask[at] + truth[at] == 2 then inter = inter + 1 end
        if mask[at] + truth[at] > 0 then union = union + 1 end
      end
      sum, n = sum + inter / union, n + 1
    end
    img:free()
  end
  check.ok(sum / n > 0.9, ("the embedded SAM2's masks of true boxes and points: mean IoU %.3f of %d"):format(sum / n, n))
else
  check.skip "models/tiny/sam2"
end

mini.remove()
check.finish()
