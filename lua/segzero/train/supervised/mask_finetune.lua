-- mask_finetune.lua - training SAM2 on images with masks: batches, a step, the evaluation, the
-- loop.
--
--   local t = mask_finetune.new(sam, options, say)
--       options: lua/segzero/config/sam2_finetune.lua; say(text) gets each line of progress
--   t:train()       trains, evaluates and saves to options.output
--
-- An image is encoded once for all its prompts. Prompts train mask 0 and the best of the other
-- three; a single point only the latter. The loss is taken at loss_size x loss_size, where logits
-- are stretched as masks are made: that is what sharpens edges.
-- Leaves out: corrective clicks, mask prompts (their weights stay as they are), resuming.

local data = require "segzero.data"
local draw = require "segzero.tools.draw"
local mask_loss = require "segzero.algorithms.mask_loss"
local mask_prompts = require "segzero.train.supervised.mask_prompts"
local mask_scenes = require "segzero.data.refshapes.mask_scenes"
local optim = require "segzero.train.optim"
local rng = require "segzero.data.refshapes.rng"
local supervised = require "segzero.train.supervised.loop"
local tensor = require "segzero.core.tensor"

local M = {}
local methods = {}
local mt = { __index = methods }

local ANTIALIASED = 3         -- tensor:resize's number for antialiased bilinear
local GOOD = 0.8              -- masks below this IoU are counted in the evaluation

-- True for the weights that sam:encode uses, including the decoder's two convolutions of fine maps.
local function is_encoder(name)
  return name:match "^vision_encoder%." or name == "no_memory_embedding" or
    name:match "^mask_decoder%.conv_s[01]%."
end

local function is_decoder(name) return not is_encoder(name) end

-- The side at which the loss compares masks.
local function loss_side(sam, options)
  if options.loss_size > 0 then return options.loss_size end
  if options.train_files == "refshapes" then return options.size end
  return sam.mask_side
end

function M.new(sam, options, say)
  local self = setmetatable({ sam = sam, options = options, say = say, drawn = 0, epoch = 0 }, mt)
  self.side = loss_side(sam, options)
  self.train_set, self.held_set = mask_scenes.open(options, say)
  local filter
  if options.freeze_encoder then filter = is_decoder end
  self.parameters = sam:train(filter)
  self.optimizer = optim.adamw(self.parameters, {
    lr = options.lr,
    weight_decay = options.weight_decay,
    max_grad_norm = options.max_grad_norm,
  })
  self.weights = {
    mask = options.mask_weight, dice = options.dice_weight,
    iou = options.iou_weight, object = options.object_weight,
  }
  return self
end

-- How many parameters the model has, and how many of them are trained.
function methods:parameter_counts()
  local total = 0
  local trained = 0
  for _, t in pairs(self.sam:parameters()) do total = total + t:numel() end
  for _, p in ipairs(self.parameters) do trained = trained + p.tensor:numel() end
  return total, trained
end

-- ---- a batch ----
-- The next scene of the training set. Endless sets are read in order, others in a new random order
-- each epoch.
local function next_scene(self, progress)
  self.drawn = self.drawn + 1
  local n = self.train_set.count()
  if n == math.huge then return self.train_set.scene(self.drawn, progress) end
  local place = (self.drawn - 1) % n
  if place == 0 then
    self.order = data.order(n, self.options.seed, self.epoch)
    self.epoch = self.epoch + 1
  end
  return self.train_set.scene(self.order[place + 1], progress)
end

local function next_scene_with_objects(self, progress)
  local scene = next_scene(self, progress)
  local empty = 0
  while #scene.objects == 0 do
    scene.image:free()
    empty = empty + 1
    if empty >= self.train_set.count() then
      error(self.options.train_files .. ": every mask is empty", 0)
    end
    scene = next_scene(self, progress)
  end
  return scene
end

-- A mask as f32 [1, side, side], resized to the side at which the loss compares.
local function truth_of(object, scene, side)
  local whole = tensor.empty { 1, scene.height, scene.width, 1 }
  local out = tensor.data(whole)
  for i = 0, scene.width * scene.height - 1 do out[i] = object.mask[i] end
  if scene.height ~= side or scene.width ~= side then
    whole = whole:resize(side, side, ANTIALIASED)
  end
  return whole:reshape(1, side, side)
end

-- {pixels f32 [B, S, S, 3], prompts, modes, truth f32 [P, side, side]}, made inside a step.
local function make_batch(self, step, progress)
  local o = self.options
  local sam = self.sam
  local r = rng.new(o.seed, "prompts", step)
  local batch = { pixels = tensor.empty { o.images, sam.image_size, sam.image_size, 3 },
    prompts = {}, modes = {} }
  local asked = {}
  for b = 1, o.images do
    local scene = next_scene_with_objects(self, progress)
    batch.pixels:narrow(b - 1, 1):copy_(sam:pixels(scene.image))
    scene.image:free()
    r:shuffle(scene.objects)
    for i = 1, math.min(o.prompts, #scene.objects) do
      local object = scene.objects[i]
      local p = #batch.prompts + 1
      local prompt
      prompt, batch.modes[p] = mask_prompts.draw(r, scene, object, o)
      batch.prompts[p] = mask_prompts.for_decoder(prompt, scene, sam, b)
      asked[p] = { object = object, scene = scene }
    end
  end
  batch.truth = tensor.empty { #asked, self.side, self.side }
  for p, one in ipairs(asked) do
    batch.truth:narrow(p - 1, 1):copy_(truth_of(one.object, one.scene, self.side))
  end
  return batch
end

-- Runs forward and backward; returns the loss's parts and the number of prompts.
local function accumulate(self, step, progress)
  local o = self.options
  return tensor.step(function()
    local batch = make_batch(self, step, progress)
    local function encode() return self.sam:encode(batch.pixels, { recompute = o.recompute }) end
    local features
    if o.freeze_encoder then
      features = tensor.no_grad(encode)
    else
      features = encode()
    end
    local out = self.sam:decode(features, batch.prompts)
    local choice = { modes = batch.modes, weights = self.weights }
    local loss, parts = mask_loss.sam2(out, batch.truth, choice)
    loss:backward()
    return parts, #batch.prompts
  end)
end

-- ---- evaluation: held-out images, true boxes and points, the masks that the predictor gives ----
local function overlap(mask, truth, n)
  local inter = 0
  local union = 0
  for i = 0, n - 1 do
    if mask[i] ~= 0 and truth[i] ~= 0 then inter = inter + 1 end
    if mask[i] ~= 0 or truth[i] ~= 0 then union = union + 1 end
  end
  return inter / math.max(union, 1)
end

local KINDS = {
  { name = "box", multimask = false, ask = function(object) return { box = object.bbox } end },
  { name = "box+points", multimask = true, worst = true,
    ask = function(object) return { box = object.bbox, points = object.points } end },
  { name = "point", multimask = true,
    ask = function(object) return { points = { object.points[1] } } end },
}

-- Adds one prediction to the sums. For the kind of prompt that is scored, also keeps the scene's
-- worst mask for the sheet.
local function judge(sums, kind, scene, object, result, worst)
  local which = result.which
  local n = scene.width * scene.height
  local iou = overlap(tensor.data(result.masks) + (which - 1) * n, object.mask, n)
  sums[kind.name] = (sums[kind.name] or 0) + iou
  if not kind.worst then return end
  sums.count = sums.count + 1
  sums.off = sums.off + math.abs(result.scores[which] - iou)
  if iou < GOOD then sums.low = sums.low + 1 end
  if worst.iou and iou >= worst.iou then return end
  if worst.mask then worst.mask:free() end
  worst.iou = iou
  worst.object = object
  worst.mask = result.masks:narrow(which - 1, 1):clone()
end

-- Predicts with every kind of prompt for each object of a scene. Returns the worst prediction,
-- {iou, object, mask}, or {} if there are no objects.
local function evaluate_scene(self, scene, r, sums)
  local worst = {}
  self.sam:set_image(scene.image)
  for _, kind in ipairs(KINDS) do
    local prompts = {}
    for j, object in ipairs(scene.objects) do
      if not object.points then
        local first = mask_prompts.pixel(r, scene, object, 1)
        object.points = { first, mask_prompts.pixel(r, scene, object, 1) }
      end
      prompts[j] = kind.ask(object)
    end
    local results = {}
    if #prompts > 0 then results = self.sam:predict_all(prompts, { multimask = kind.multimask }) end
    for j, result in ipairs(results) do
      result.which = self.sam.best(result)
      judge(sums, kind, scene, scene.objects[j], result, worst)
      result.masks:free()
      result.low_res:free()
    end
  end
  return worst
end

-- The image with the worst mask. The caller frees the image.
local function tile_of(scene, worst)
  draw.mask(scene.image, worst.mask:reshape(scene.height, scene.width))
  return { image = scene.image, truth = worst.object.bbox, points = worst.object.points,
    label = ("IoU %.2f"):format(worst.iou) }
end

-- A line with the mean IoU of each kind of prompt. tiles, if given, gets up to options.samples
-- images.
function methods:evaluate(tiles)
  local o = self.options
  local sums = { off = 0, low = 0, count = 0 }
  for i = 1, math.min(o.eval_images, self.held_set.count()) do
    local scene = self.held_set.scene(i)
    local worst = evaluate_scene(self, scene, rng.new(o.seed, "evaluation", i), sums)
    if tiles and #tiles < o.samples and worst.mask then
      tiles[#tiles + 1] = tile_of(scene, worst)
    else
      scene.image:free()
    end
    if worst.mask then worst.mask:free() end
  end
  if sums.count == 0 then return "there are no held-out images" end
  local text = {}
  for k, kind in ipairs(KINDS) do
    text[k] = ("%s %.3f"):format(kind.name, sums[kind.name] / sums.count)
  end
  local line = "held-out mean IoU: %s | of box+points %.1f%% below %g, score off by %.3f"
  local low = 100 * sums.low / sums.count
  return line:format(table.concat(text, "  "), low, GOOD, sums.off / sums.count)
end

-- ---- training ----
-- The log line of a step: running means of the loss's parts, then the rates.
local function step_line(s, mean, norm, prompts)
  local done, elapsed = s.now()
  local percent = 100 * math.min(done, 1)
  local losses = ("loss %.4f (mask %.4f dice %.4f iou %.4f)"):format(mean.total, mean.mask,
    mean.dice, mean.iou)
  local fit = ("IoU %.3f  score off by %.3f"):format(mean.actual, mean.score_error)
  local rates = ("norm %.2f  lr %.1e  %.0f prompts/s"):format(norm, s.lr, prompts / elapsed)
  return ("step %d  %4.1f%%  %s  %s  %s  ETA %s"):format(s.step, percent, losses, fit, rates,
    supervised.eta(done, elapsed))
end

local function write_sheet(tiles, path)
  if #tiles == 0 then return end
  draw.sheet(tiles, 4, { title = "Held-out images, the worst mask of each" }):save(path)
end

function methods:train()
  local o = self.options
  self.say("before  " .. self:evaluate())
  local mean = {}
  local prompts = 0
  local function save()
    self.sam:save(o.output)
    return o.output
  end
  local steps, elapsed = supervised.loop(o, save, function(s)
    local parts, asked = accumulate(self, s.step, s.progress)
    prompts = prompts + asked
    local norm = self.optimizer:step(s.lr)
    for name, value in pairs(parts) do mean[name] = supervised.smooth(mean[name], value) end
    if s.step % o.log_every == 0 then self.say(step_line(s, mean, norm, prompts)) end
    if o.eval_every > 0 and s.step % o.eval_every == 0 then
      self.say(("step %d  %s"):format(s.step, self:evaluate()))
      self.sam:save(o.output)
    end
  end)
  local tiles = {}
  self.say("after   " .. self:evaluate(tiles))
  self.sam:save(o.output)
  write_sheet(tiles, o.output .. "/samples.png")
  local saved = "saved %s after %d steps, %d prompts, %.1f minutes"
  self.say(saved:format(o.output, steps, prompts, elapsed / 60))
end

return M
