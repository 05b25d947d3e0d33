-- sam2_finetune.lua - trains SAM2 on pictures with masks: fine-tunes a checkpoint, or makes the embedded one from scratch.
--
--   segzero recipes/sam2_finetune.lua [key=value ...]
--
-- model_path is a transformers folder or an original .pt; empty: random weights of the tiny shape below. train_files is
-- "refshapes", or a folder with data.jsonl whose rows have `image` and `mask` (lua/segzero/data/init.lua). A picture is encoded
-- once for all its prompts: boxes moved a little, a box with two points (Seg-Zero's question), or points alone. Prompts train
-- mask 0 and the best of the other three; a single point, which may mean several things, only the latter. The loss is taken
-- at loss_size x loss_size, where logits are stretched as masks are made: that is what sharpens edges.
-- Writes a transformers folder and samples.png. Leaves out: corrective clicks, mask prompts (their weights stay as they are).

local ffi = require "ffi"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local data = require "segzero.data"
local draw = require "segzero.tools.draw"
local image = require "segzero.formats.image"
local mask_loss = require "segzero.algorithms.mask_loss"
local optim = require "segzero.train.optim"
local refshapes = require "segzero.data.refshapes"
local distance = require "segzero.data.refshapes.distance"
local raster = require "segzero.data.refshapes.raster"
local rng = require "segzero.data.refshapes.rng"
local sam2 = require "segzero.models.sam2"

local options = require("segzero.config").read({
  model_path = "",
  output = "runs/sam2_finetune",
  train_files = "refshapes",
  val_files = "",               -- a folder; empty: RefShapes' held-out scenes, or a folder's last tenth
  dtype = "f32",
  freeze_encoder = false,       -- the encoder and everything in it stay; much quicker
  recompute = false,            -- the encoder keeps less for its backward pass
  seed = 1,
  steps = 1000,
  minutes = 0,                  -- above 0: the schedule follows the clock and ends after so many minutes
  pictures = 8,                 -- a step
  prompts = 4,                  -- a picture, at most
  size = 112,                   -- of RefShapes pictures
  loss_size = 0,                -- 0: RefShapes' own size; for a folder the low-resolution masks' side
  lr = 1e-3,
  final_lr = 0.02,              -- of lr, at the end of the cosine
  warmup = 50,
  weight_decay = 0.01,
  max_grad_norm = 1,
  box = 0.4, box_points = 0.35, -- shares of the prompt kinds; the rest are points alone
  jitter = 0.3,                 -- a box's sides move by up to this share of its extent, most by much less
  level3 = 0,                   -- share of the run before which RefShapes scenes have level 2
  easy = 0.1,                   -- share of RefShapes scenes of levels 1 and 2
  -- SAM2's weights. From scratch a mask_weight of 5 learns; with 20 "nothing is there" is learnt first, and for long.
  mask_weight = 20, dice_weight = 1, iou_weight = 1, object_weight = 1,
  log_every = 25,
  eval_every = 0,               -- steps; 0: before and after only
  eval_pictures = 48,
  samples = 12,                 -- pictures on the sheet
  -- from scratch
  image_size = 224, width = 16, hidden = 64, mlp = 128, decoder_heads = 4, blocks = "1,2,3,1", global_blocks = "5", windows = "8,4,14,7",
}, arg)
local frozen, recompute = options.freeze_encoder, options.recompute

-- ---- model ----
local function list_of(key)
  local list = {}
  for n in options[key]:gmatch "%d+" do list[#list + 1] = tonumber(n) end
  return list
end

-- The released tiny model's shape, smaller; heads are 16 wide. The decoder's attention is not narrowed: it would leave 8 to a head.
local function tiny_config()
  local widths, heads, channels = {}, {}, {}
  for i = 1, 4 do
    widths[i] = options.width * 2 ^ (i - 1)
    heads[i] = math.max(1, math.floor(widths[i] / math.max(options.width, 16)))
    channels[5 - i] = widths[i]
  end
  local sides = {}
  for i = 1, 3 do sides[i] = { options.image_size / 2 ^ (i + 1), options.image_size / 2 ^ (i + 1) } end
  local S, H = options.image_size, options.hidden
  return {
    architectures = { "Sam2Model" }, model_type = "sam2", dtype = options.dtype == "bf16" and "bfloat16" or "float32", initializer_range = 0.02,
    vision_config = {
      model_type = "sam2_vision_model", backbone_channel_list = channels, backbone_feature_sizes = sides, fpn_hidden_size = H,
      fpn_kernel_size = 1, fpn_padding = 0, fpn_stride = 1, fpn_top_down_levels = { 2, 3 }, num_feature_levels = 3,
      hidden_act = "gelu", layer_norm_eps = 1e-6, initializer_range = 0.02,
      backbone_config = {
        model_type = "sam2_hiera_det_model", image_size = { S, S }, num_channels = 3, hidden_size = options.width, patch_kernel_size = { 7, 7 },
        patch_stride = { 4, 4 }, patch_padding = { 3, 3 }, query_stride = { 2, 2 }, num_query_pool_stages = 3, mlp_ratio = 4,
        hidden_act = "gelu", layer_norm_eps = 1e-6, initializer_range = 0.02, embed_dim_per_stage = widths,
        num_attention_heads = heads[1], num_attention_heads_per_stage = heads, blocks_per_stage = list_of "blocks",
        window_size_per_stage = list_of "windows", global_attention_blocks = list_of "global_blocks",
        window_positional_embedding_background_size = { 7, 7 },
      },
    },
    prompt_encoder_config = {
      model_type = "sam2_prompt_encoder", hidden_size = H, image_size = S, patch_size = 16, mask_input_channels = 16, num_point_embeddings = 4,
      hidden_act = "gelu", layer_norm_eps = 1e-6, scale = 1,
    },
    mask_decoder_config = {
      model_type = "sam2_mask_decoder", hidden_size = H, hidden_act = "gelu", mlp_dim = options.mlp, num_hidden_layers = 2,
      num_attention_heads = options.decoder_heads, attention_downsample_rate = 1, num_multimask_outputs = 3, iou_head_depth = 3,
      iou_head_hidden_dim = H, dynamic_multimask_via_stability = true, dynamic_multimask_stability_delta = 0.05,
      dynamic_multimask_stability_thresh = 0.98,
    },
  }
end

-- Random weights that find their prompt. With plain ones a net this small first learns that most pixels are background, and on the
-- way that prompts do not matter: the masks of two prompts on one picture became equal and stayed so for thousands of prompts.
-- Hence picture features that are small beside the position code, so that attention begins by place; queries and keys that begin
-- as the same map, so that equal codes meet; a code whose frequencies lie along the axes, from slow ones in which "right of" is
-- almost linear up to the released models' usual one. models/README.md has what was tried.
local SLOWEST, FASTEST = 0.08, 1
local EMBEDDING, TOKEN, POSITION = 0.5, 1, 0.1          -- deviations
local NECK, MEETING = 0.2, 2

local function from_scratch()
  local sam = sam2.random(tiny_config(), { seed = options.seed, dtype = options.dtype, embedding_std = EMBEDDING })
  local all = sam:parameters()
  local f = all["shared_image_embedding.positional_embedding"]
  local half, k = f:shape()[2], {}
  for i = 1, 2 * half do
    local j = (i - 1) % half
    k[i] = (j % 2 == 0) == (i <= half) and SLOWEST * (FASTEST / SLOWEST) ^ (j / (half - 1)) or 0
  end
  f:copy_(f:cast(sz.core.C.SZ_F32):mul(tensor.new(k, { device = f:device() }):reshape(2, half)))
  for name, t in pairs(all) do
    local attention = name:match "^(mask_decoder.*attn.*%.)k_proj%.weight$"
    if attention then
      local q = all[attention .. "q_proj.weight"]
      q:copy_(q:affine(MEETING, 0))
      t:copy_(q)
    elseif name:match "tokens?%.weight$" or name:match "point_embed%.weight$" then
      t:copy_(t:affine(TOKEN / EMBEDDING, 0))
    elseif name:match "neck%.convs.*weight$" then
      t:copy_(t:affine(NECK, 0))
    elseif name:match "pos_embed" then
      t:copy_(t:affine(POSITION / EMBEDDING, 0))
    end
  end
  return sam
end

local sam = options.model_path == "" and from_scratch() or sz.sam2(options.model_path, { dtype = options.dtype })
-- What sam:encode computes with, the decoder's two convolutions of fine maps included.
local function of_encoder(name)
  return name:match "^vision_encoder%." or name == "no_memory_embedding" or name:match "^mask_decoder%.conv_s[01]%."
end
local list = sam:train(frozen and function(name) return not of_encoder(name) end or nil)
local total, trained = 0, 0
for _, t in pairs(sam:parameters()) do total = total + t:numel() end
for _, p in ipairs(list) do trained = trained + p.tensor:numel() end
local opt = optim.adamw(list, { lr = options.lr, weight_decay = options.weight_decay, max_grad_norm = options.max_grad_norm })

-- ---- pictures with things on them ----
-- A thing: bbox {x0, y0, x1, y1} (inclusive, as Seg-Zero counts), mask uint8_t [h * w] of 0 and 1, points of a true answer.
-- A scene: {image =, width =, height =, things = {..}}; the caller frees the image.
local function shapes_scene(split, index, level)
  local s = refshapes.sample { seed = options.seed, split = split, index = index, size = options.size, level = level, questions = 0 }
  local scene = { image = image.new(s.width, s.height), width = s.width, height = s.height, things = {} }
  ffi.copy(scene.image:pixels(), s.rgb, s.width * s.height * 3)
  for i, o in ipairs(s.objects) do
    local first, second = distance.two_circles(o.bbox, o.runs)
    scene.things[i] = { bbox = o.bbox, mask = raster.mask(o.runs, o.bbox, s.width, s.height, 1), points = { first, second } }
  end
  return scene
end

local function row_scene(row)
  if not row.mask then error(options.train_files .. ": rows have no mask", 0) end
  local w, h = row.image.width, row.image.height
  local t, mask = row.mask(), ffi.new("uint8_t[?]", w * h)
  ffi.copy(mask, tensor.data(t), w * h)
  t:free()
  local box = { w, h, -1, -1 }
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      if mask[y * w + x] ~= 0 then
        box = { math.min(box[1], x), math.min(box[2], y), math.max(box[3], x), math.max(box[4], y) }
      end
    end
  end
  local scene = { image = row.image, width = w, height = h, things = {} }
  if box[3] >= 0 then
    local points = {}
    local said = (row.solution or ""):match "<points>(.-)</points>" or ""
    for x, y in said:gmatch "%((%d+),(%d+)%)" do points[#points + 1] = { tonumber(x), tonumber(y) } end
    scene.things[1] = { bbox = box, mask = mask, points = #points == 2 and points or nil }
  end
  return scene
end

local train, held = {}, {}      -- count(), scene(i)
local progress = 0              -- of the run, 0 to 1
if options.train_files == "refshapes" then
  function train.count() return math.huge end
  function train.scene(i)
    local u = (i * 0.6180339887) % 1
    return shapes_scene("train", i, progress < options.level3 and 2 or u < options.easy / 2 and 1 or u < options.easy and 2 or 3)
  end
else
  local set = data.open(options.train_files, {})
  local last = options.val_files ~= "" and set:count() or math.max(1, math.floor(set:count() * 0.9))
  function train.count() return last end
  function train.scene(i) return row_scene(set:row(i)) end
  function held.count() return set:count() - last end
  function held.scene(i) return row_scene(set:row(last + i)) end
end
if options.val_files ~= "" and options.val_files ~= "refshapes" then
  local set = data.open(options.val_files, {})
  function held.count() return set:count() end
  function held.scene(i) return row_scene(set:row(i)) end
elseif not held.scene then
  function held.count() return math.huge end
  function held.scene(i) return shapes_scene("heldout", i, 3) end
end
local side = options.loss_size > 0 and options.loss_size or options.train_files == "refshapes" and options.size or sam.mask_side

-- ---- prompts ----
-- A pixel of the mask (value 1) or beside it (0), in the box grown by a little; nil when none was met.
local function pixel(r, scene, thing, value)
  local b, out = thing.bbox, value == 1 and 0 or 8
  for _ = 1, 200 do
    local x = r:int(math.max(0, b[1] - out), math.min(scene.width - 1, b[3] + out))
    local y = r:int(math.max(0, b[2] - out), math.min(scene.height - 1, b[4] + out))
    if thing.mask[y * scene.width + x] == value then return { x, y } end
  end
end

local function moved(r, scene, b)
  local much = options.jitter * r:uniform()
  local function move(v, extent, limit) return math.min(math.max(v + (2 * r:uniform() - 1) * much * extent, 0), limit) end
  local w, h = b[3] - b[1] + 1, b[4] - b[2] + 1
  return { move(b[1], w, scene.width - 1), move(b[2], h, scene.height - 1), move(b[3], w, scene.width - 1), move(b[4], h, scene.height - 1) }
end

-- A prompt for the predictor's kind of call, and which masks it trains.
local function ask(r, scene, thing)
  local u = r:uniform()
  if u < options.box then return { box = moved(r, scene, thing.bbox) }, "both" end
  local points, labels = {}, {}
  local function add(p, label)
    if p then points[#points + 1], labels[#labels + 1] = p, label end
  end
  if u < options.box + options.box_points then
    local own = thing.points and r:chance(0.5) and thing.points
    for k = 1, 2 do add(own and own[k] or pixel(r, scene, thing, 1), 1) end
    return { box = moved(r, scene, thing.bbox), points = points, labels = labels }, "both"
  end
  local n = r:chance(0.5) and 1 or r:int(2, 3)
  for _ = 1, n do add(pixel(r, scene, thing, 1), 1) end
  if n > 1 and r:chance(0.5) then add(pixel(r, scene, thing, 0), 0) end
  return { points = points, labels = labels }, n == 1 and "multi" or "both"
end

-- In pixels of the model's picture, with the padding point that the predictor adds.
local function for_decoder(prompt, scene, picture)
  local kx, ky, points = sam.image_size / scene.width, sam.image_size / scene.height, {}
  local function add(x, y, label) points[#points + 1] = { x * kx, y * ky, label } end
  if prompt.box then
    add(prompt.box[1], prompt.box[2], 2)
    add(prompt.box[3], prompt.box[4], 3)
  end
  for i, p in ipairs(prompt.points or {}) do add(p[1], p[2], prompt.labels[i]) end
  points[#points + 1] = { 0, 0, -1 }
  return { image = picture, points = points }
end

-- ---- a batch ----
local ANTIALIASED = 3
local drawn, order, epoch = 0, nil, 0

local function next_scene()
  drawn = drawn + 1
  local n = train.count()
  if n == math.huge then return train.scene(drawn) end
  local at = (drawn - 1) % n
  if at == 0 then order, epoch = data.order(n, options.seed, epoch), epoch + 1 end
  return train.scene(order[at + 1])
end

-- {pixels f32 [B, S, S, 3], prompts, modes, truth f32 [P, side, side]}, made inside a step.
local function batch(step)
  local r = rng.new(options.seed, "prompts", step)
  local out, truths = { pixels = tensor.empty { options.pictures, sam.image_size, sam.image_size, 3 }, prompts = {}, modes = {} }, {}
  for b = 1, options.pictures do
    local scene, empty = next_scene(), 0
    while #scene.things == 0 do
      scene.image:free()
      empty = empty + 1
      if empty >= train.count() then error(options.train_files .. ": every mask is empty", 0) end
      scene = next_scene()
    end
    out.pixels:narrow(b - 1, 1):copy_(sam:pixels(scene.image))
    scene.image:free()
    r:shuffle(scene.things)
    for i = 1, math.min(options.prompts, #scene.things) do
      local thing, p = scene.things[i], #out.prompts + 1
      local prompt
      prompt, out.modes[p] = ask(r, scene, thing)
      out.prompts[p] = for_decoder(prompt, scene, b)
      truths[p] = { thing.mask, scene.width, scene.height }
    end
  end
  out.truth = tensor.empty { #truths, side, side }
  for p, t in ipairs(truths) do
    local whole = tensor.empty { 1, t[3], t[2], 1 }
    local from, to = t[1], tensor.data(whole)
    for i = 0, t[2] * t[3] - 1 do to[i] = from[i] end
    if t[2] ~= side or t[3] ~= side then whole = whole:resize(side, side, ANTIALIASED) end
    out.truth:narrow(p - 1, 1):copy_(whole:reshape(1, side, side))
  end
  return out
end

local weights = { mask = options.mask_weight, dice = options.dice_weight, iou = options.iou_weight, object = options.object_weight }

local function train_step(step)
  return tensor.step(function()
    local b = batch(step)
    local encode = function() return sam:encode(b.pixels, { recompute = recompute }) end
    local features = frozen and tensor.no_grad(encode) or encode()
    local loss, parts = mask_loss.sam2(sam:decode(features, b.prompts), b.truth, { modes = b.modes, weights = weights })
    loss:backward()
    parts.prompts = #b.prompts
    return parts
  end)
end

-- ---- evaluation: held-out pictures, true boxes and points, the masks that the predictor gives ----
local function overlap(mask, truth, n)
  local inter, union = 0, 0
  for i = 0, n - 1 do
    if mask[i] ~= 0 and truth[i] ~= 0 then inter = inter + 1 end
    if mask[i] ~= 0 or truth[i] ~= 0 then union = union + 1 end
  end
  return inter / math.max(union, 1)
end

local KINDS = {
  { name = "box", multimask = false, ask = function(thing) return { box = thing.bbox } end },
  { name = "box+points", multimask = true, ask = function(thing) return { box = thing.bbox, points = thing.points } end },
  { name = "point", multimask = true, ask = function(thing) return { points = { thing.points[1] } } end },
}

-- Mean IoU of each kind of prompt; tiles for the sheet if there is room for them.
local function evaluate(tiles)
  local sums, off, low, count = {}, 0, 0, 0
  for k = 1, #KINDS do sums[k] = 0 end
  for i = 1, math.min(options.eval_pictures, held.count()) do
    local scene = held.scene(i)
    local r = rng.new(options.seed, "evaluation", i)
    sam:set_image(scene.image)
    local worst, overlay = {}, nil
    for k, kind in ipairs(KINDS) do
      local prompts = {}
      for j, thing in ipairs(scene.things) do
        thing.points = thing.points or { pixel(r, scene, thing, 1), pixel(r, scene, thing, 1) }
        prompts[j] = kind.ask(thing)
      end
      for j, result in ipairs(#prompts > 0 and sam:predict_all(prompts, { multimask = kind.multimask }) or {}) do
        local which, n = sam.best(result), scene.width * scene.height
        local iou = overlap(tensor.data(result.masks) + (which - 1) * n, scene.things[j].mask, n)
        sums[k] = sums[k] + iou
        if kind.name == "box+points" then
          count, off = count + 1, off + math.abs(result.scores[which] - iou)
          if iou < 0.8 then low = low + 1 end
          if not worst[1] or iou < worst[1] then
            if overlay then overlay:free() end
            worst, overlay = { iou, j }, result.masks:narrow(which - 1, 1):clone()
          end
        end
        result.masks:free()
        result.low_res:free()
      end
    end
    if tiles and #tiles < options.samples and overlay then
      local thing, m, p = scene.things[worst[2]], tensor.data(overlay), scene.image:pixels()
      for at = 0, scene.width * scene.height - 1 do
        if m[at] ~= 0 then
          for c = 0, 2 do p[3 * at + c] = p[3 * at + c] * 0.4 + draw.RED[c + 1] * 0.6 end
        end
      end
      tiles[#tiles + 1] = { image = scene.image, truth = thing.bbox, points = thing.points, label = ("IoU %.2f"):format(worst[1]) }
    else
      scene.image:free()
    end
    if overlay then overlay:free() end
  end
  if count == 0 then return "there are no held-out pictures" end
  local text = {}
  for k, kind in ipairs(KINDS) do text[k] = ("%s %.3f"):format(kind.name, sums[k] / count) end
  return ("held-out mean IoU: %s | of box+points %.1f%% below 0.8, score off by %.3f"):format(table.concat(text, "  "), 100 * low / count,
    off / count)
end

-- ---- training ----
local seconds = sz.core.C.sz_seconds
print(("%s: %.3f M parameters, %.3f M trained; %d pictures a step, loss at %d px"):format(tostring(sam), total / 1e6, trained / 1e6,
  options.pictures, side))
print("before  " .. evaluate())
io.stdout:flush()
local started, mean, asked, step = seconds(), {}, 0, 0
while true do
  local elapsed = seconds() - started
  progress = options.minutes > 0 and elapsed / (60 * options.minutes) or step / math.max(options.steps, 1)
  if progress >= 1 or options.steps == 0 then break end
  step = step + 1
  local lr = options.lr * math.min(1, step / options.warmup) * (options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
  local parts = train_step(step)
  asked = asked + parts.prompts
  local norm = opt:step(lr)
  for name, v in pairs(parts) do mean[name] = mean[name] and 0.95 * mean[name] + 0.05 * v or v end
  if step % options.log_every == 0 then
    local so_far = seconds() - started
    local done = options.minutes > 0 and math.min(so_far / (60 * options.minutes), 1) or step / options.steps
    print(("step %d  %4.1f%%  loss %.4f (mask %.4f dice %.4f iou %.4f)  IoU %.3f  score off by %.3f"):format(step, 100 * done, mean.total, mean.mask,
      mean.dice, mean.iou, mean.actual, mean.score_error) .. ("  norm %.2f  lr %.1e  %.0f prompts/s  ETA %.1f min"):format(norm, lr,
      asked / so_far, so_far / done * (1 - done) / 60))
    io.stdout:flush()
  end
  if options.eval_every > 0 and step % options.eval_every == 0 then
    print(("step %d  %s"):format(step, evaluate()))
    io.stdout:flush()
    sam:save(options.output)
  end
end
local tiles = {}
print("after   " .. evaluate(tiles))
sam:save(options.output)
if #tiles > 0 then
  local sheet = draw.sheet(tiles, 4, { title = "Held-out pictures, the worst mask of each" })
  sheet:save(options.output .. "/samples.png")
end
print(("saved %s after %d steps, %d prompts, %.1f minutes"):format(options.output, step, asked, (seconds() - started) / 60))
