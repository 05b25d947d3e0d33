-- sam2.lua - SAM2 as scripts see it: a checkpoint in, a picture and prompts to masks, gradients, a folder out.
--
--   local sam = sz.sam2(path, {dtype = "f32" | "bf16", device = "cpu" | "cuda"})      a transformers folder, or an original .pt file
--   sam:set_image(img)                                 embeds the picture once; any number of predictions follow
--   local r = sam:predict{box = {x0,y0,x1,y1}, points = {{x,y},..}, labels = {1,..}, multimask = true}
--   r.masks (u8 tensor [k, h, w]), r.scores ({..}, the model's own estimate of IoU), r.low_res (f32 [k, 4g, 4g], within +-32)
--   sam:predict{boxes = {{..}, ..}} -> one result for each box;   sam:predict_all{{box =, points =}, ..}: unlike prompts
--   sam.best(r) -> the index of the highest score              mask_input = t [4g, 4g]: earlier low_res as a prompt
--
-- Coordinates are pixels of the picture given. Training and rewards use the parts:
--   local features = sam:encode(pixels [B, S, S, 3])   sam:pixels(img): one picture, resized and normalised
--   local out = sam:decode(features, prompts)          prompts: {{picture = 1, points = {{x,y,label},..}, mask = t}, ..} in model pixels
--   out.logits [P, m, 4g, 4g], out.iou [P, m], out.object [P, 1]
--   sam:upsample(logits [k, 4g, 4g], h, w) -> [k, h, w]
--   sam:parameters()   sam:train(filter)   sam:save(dir)   sam:embed(img) -> features that sam:use(features) brings back
--
-- Results follow SAM2ImagePredictor. Leaves out: video, hole filling, automatic masks.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local safetensors = require "segzero.formats.safetensors"
local files = require "segzero.core.files"
local weights = require "segzero.models.weights"
local read_json = require("segzero.models.qwen_vl").read_json
local is_image = require("segzero.formats.image").is_image

local C, check = core.C, core.check

local M = {}

local methods = {}
local mt = { __index = methods }
local freed = weights.freed("sam2", methods)
local DTYPES = { f32 = true, bf16 = true }

local MEAN, STD = { 0.485, 0.456, 0.406 }, { 0.229, 0.224, 0.225 }
local BILINEAR, ANTIALIASED = 1, 3
local LOW_RES_LIMIT = 32            -- of the logits that predict() returns; masks are made before

-- ---- config ----
-- What transformers' config classes say when a key is missing: the 2.1 tiny model.
local DEFAULTS = {
  backbone = {
    image_size = { 1024, 1024 }, patch_kernel_size = { 7, 7 }, patch_stride = { 4, 4 }, patch_padding = { 3, 3 },
    embed_dim_per_stage = { 96, 192, 384, 768 }, num_attention_heads_per_stage = { 1, 2, 4, 8 }, blocks_per_stage = { 1, 2, 7, 2 },
    window_size_per_stage = { 8, 4, 14, 7 }, global_attention_blocks = { 5, 7, 9 }, window_positional_embedding_background_size = { 7, 7 },
    mlp_ratio = 4, layer_norm_eps = 1e-6, num_query_pool_stages = 3, query_stride = { 2, 2 }, hidden_act = "gelu", num_channels = 3,
  },
  vision = { fpn_hidden_size = 256, fpn_top_down_levels = { 2, 3 }, fpn_kernel_size = 1, fpn_stride = 1, fpn_padding = 0, num_feature_levels = 3 },
  prompt = { hidden_size = 256, patch_size = 16, mask_input_channels = 16, num_point_embeddings = 4 },
  decoder = {
    hidden_size = 256, mlp_dim = 2048, num_hidden_layers = 2, num_attention_heads = 8, attention_downsample_rate = 2, num_multimask_outputs = 3,
    iou_head_depth = 3, iou_head_hidden_dim = 256, dynamic_multimask_via_stability = true, dynamic_multimask_stability_delta = 0.05,
    dynamic_multimask_stability_thresh = 0.98,
  },
}
-- What is built in: another value in the file is refused.
local FIXED = {
  backbone = { num_query_pool_stages = 3, hidden_act = "gelu", num_channels = 3 },
  vision = { fpn_kernel_size = 1, fpn_stride = 1, fpn_padding = 0, num_feature_levels = 3 },
  prompt = { num_point_embeddings = 4 },
  decoder = { iou_head_depth = 3 },
}

local function section(json, name)
  local t = json[name]
  return type(t) == "table" and t or {}
end

-- A key of a section, or its default; a number where the default is one, a list as long as the default otherwise.
local function reader(name, t, defaults)
  return function(key)
    local v, default = t[key], defaults[key]
    if v == nil or v == cjson.null then v = default end
    if type(default) == "table" and type(v) == "number" then v = { v, v } end
    local good = type(v) == type(default)
    if good and type(v) == "table" and key ~= "global_attention_blocks" and key ~= "fpn_top_down_levels" then good = #v == #default end
    for _, x in ipairs(good and type(v) == "table" and v or {}) do
      if type(x) ~= "number" or x % 1 ~= 0 or math.abs(x) >= 2 ^ 31 then good = false end
    end
    if not good then error(("%s.%s is %s"):format(name, key, type(v) == "table" and cjson.encode(v) or tostring(v)), 0) end
    return v
  end
end

-- config.json (a Lua table) to the C struct and the numbers that stay in Lua.
function M.parse_config(json)
  local kind = json.model_type
  if kind ~= "sam2" and kind ~= "sam2_video" then error(("model_type %s is not supported (sam2 is)"):format(tostring(kind)), 0) end
  local vision_json = section(json, "vision_config")
  local tables = { backbone = section(vision_json, "backbone_config"), vision = vision_json, prompt = section(json, "prompt_encoder_config"),
    decoder = section(json, "mask_decoder_config") }
  local read = {}
  for name, t in pairs(tables) do
    read[name] = reader(name == "prompt" and "prompt_encoder_config" or name == "decoder" and "mask_decoder_config" or
      name == "vision" and "vision_config" or "backbone_config", t, DEFAULTS[name])
    for key, wanted in pairs(FIXED[name]) do
      local v = read[name](key)
      if v ~= wanted then error(("%s is %s, only %s is supported"):format(key, tostring(v), tostring(wanted)), 0) end
    end
  end
  local backbone, vision, prompt, decoder = read.backbone, read.vision, read.prompt, read.decoder
  local function square(key)
    local v = backbone(key)
    if v[1] ~= v[2] then error(("backbone_config.%s is %d x %d, only squares are supported"):format(key, v[1], v[2]), 0) end
    return v[1]
  end
  local c = ffi.new("sz_sam2_config")
  c.image_size, c.patch_kernel, c.patch_stride, c.patch_padding = square "image_size", square "patch_kernel_size", square "patch_stride", square "patch_padding"
  if square "query_stride" ~= 2 then error("backbone_config.query_stride must be 2", 0) end
  for i = 1, 4 do
    c.width[i - 1], c.heads[i - 1] = backbone "embed_dim_per_stage"[i], backbone "num_attention_heads_per_stage"[i]
    c.blocks[i - 1], c.windows[i - 1] = backbone "blocks_per_stage"[i], backbone "window_size_per_stage"[i]
  end
  for _, i in ipairs(backbone "global_attention_blocks") do
    if i < 0 or i >= C.SZ_SAM2_MAX_BLOCKS then error(("backbone_config.global_attention_blocks names block %d"):format(i), 0) end
    c.whole[i] = 1
  end
  for i = 1, 2 do c.background[i - 1] = backbone "window_positional_embedding_background_size"[i] end
  c.mlp_ratio, c.norm_eps = backbone "mlp_ratio", backbone "layer_norm_eps"
  for _, level in ipairs(vision "fpn_top_down_levels") do
    if level < 0 or level > 3 then error(("vision_config.fpn_top_down_levels names level %d"):format(level), 0) end
    c.top_down[level] = 1
  end
  c.hidden = vision "fpn_hidden_size"
  for _, other in ipairs { { "prompt_encoder_config", prompt "hidden_size" }, { "mask_decoder_config", decoder "hidden_size" } } do
    if other[2] ~= c.hidden then error(("%s.hidden_size %d differs from vision_config.fpn_hidden_size %d"):format(other[1], other[2], c.hidden), 0) end
  end
  c.prompt_patch, c.mask_channels = prompt "patch_size", prompt "mask_input_channels"
  c.layers, c.decoder_heads, c.downsample = decoder "num_hidden_layers", decoder "num_attention_heads", decoder "attention_downsample_rate"
  c.mlp, c.masks, c.iou_hidden = decoder "mlp_dim", decoder "num_multimask_outputs" + 1, decoder "iou_head_hidden_dim"
  return c, { dynamic = decoder "dynamic_multimask_via_stability", delta = decoder "dynamic_multimask_stability_delta",
    threshold = decoder "dynamic_multimask_stability_thresh" }
end

-- ---- weights ----
-- Of the video model; single pictures do not need them.
local VIDEO = { "^memory_", "^mask_downsample%.", "^object_pointer_proj", "^temporal_positional_encoding_projection_layer%.", "^no_memory_positional_encoding$",
  "^no_object_pointer$", "^occlusion_spatial_embedding_parameter$" }

local function stray(name)
  for _, pattern in ipairs(VIDEO) do
    if name:match(pattern) then return true end
  end
  return false
end

local SHARED, COPY = "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"

local of = weights.access(C, "sz_sam2")

local function new(json, dtype, device)
  local config, selection = M.parse_config(json)
  local c = ffi.gc(check(C.sz_sam2_new(config)), C.sz_sam2_free)
  local sam = setmetatable({ c = c, of = of, config = config, selection = selection, json = json, dtype = dtype or "f32", device = device }, mt)
  sam.image_size, sam.mask_side = config.image_size, config.image_size / config.prompt_patch * 4
  sam.weights = weights.list(c, of)
  return sam
end

function M.sam2(path, opts)
  opts = weights.opening("sam2", path, opts, DTYPES, 2)
  local device = tensor.model_device(opts.device, 2)
  local json, loaded
  if files.exists(path .. "/config.json") then
    json, loaded = read_json(path .. "/config.json"), safetensors.load_folder(path)
  elseif files.exists(path .. "/.") then
    error(("no SAM2 model in %s: it has no config.json"):format(path), 2)
  else
    local names = require "segzero.models.sam2_names"
    local ok, found = pcall(require("segzero.formats.torchfile").load, path)
    if not ok then error(weights.plain(found), 2) end
    json = names.config_of(found)
    loaded = names.from_original(found)
  end
  local ok, sam = pcall(new, json, opts.dtype, device)
  if not ok then error(("%s: %s"):format(path, weights.plain(sam)), 2) end
  sam.dir = path
  loaded[SHARED] = loaded[SHARED] or loaded[COPY]
  loaded[COPY] = nil
  weights.set(sam, loaded, path, stray)
  return sam
end

-- A model of random weights from a config table: normal with a deviation of gain / sqrt(inputs), norms 1, biases 0. For training
-- from scratch and benchmarks.
function M.random(json, opts)
  opts = opts or {}
  local sam = new(json, opts.dtype, tensor.model_device(opts.device, 2))
  for _, w in ipairs(sam.weights) do
    local t = tensor.zeros(w.shape, { dtype = sam.dtype, device = sam.device })
    local inputs = 1
    for i = 2, #w.shape do inputs = inputs * w.shape[i] end
    if w.name:match "norm[^.]*%.weight$" then
      t:copy_(tensor.zeros(w.shape):affine(0, 1))
    elseif w.name == SHARED then
      check(C.sz_random_normal_(t.ptr, opts.seed or 0, w.index, 0, 1))
    elseif w.name:match "embed" or w.name:match "token%w*%.weight$" then
      check(C.sz_random_normal_(t.ptr, opts.seed or 0, w.index, 0, w.name:match "projection%.weight$" and 1 / math.sqrt(inputs) or opts.embedding_std or 0.1))
    elseif not w.name:match "%.bias$" then
      check(C.sz_random_normal_(t.ptr, opts.seed or 0, w.index, 0, (opts.gain or 1) / math.sqrt(inputs)))
    end
    check(C.sz_sam2_weight_set(sam.c, w.index, t.ptr))
  end
  return sam
end

methods.parameters = weights.parameters

-- The frequencies of the position code are no parameter.
function methods:train(filter)
  return weights.train(self, function(name) return name ~= SHARED and (not filter or filter(name)) end)
end

function methods:free()
  if self.c ~= nil then
    self.features = nil
    C.sz_sam2_free(ffi.gc(self.c, nil))
    self.c = nil
    setmetatable(self, freed)
  end
end

-- ---- the parts ----
-- A picture as the encoder wants it: f32 [1, side, side, 3], resized as torchvision does (antialiased, not rounded), normalised.
function M.pixels(img, side)
  return tensor.step(function()
    local x = img:totensor():cast(C.SZ_F32):affine(1 / 255, 0):reshape(1, img.height, img.width, 3)
    if img.width ~= side or img.height ~= side then x = x:resize(side, side, ANTIALIASED) end
    return x:sub(tensor.new(MEAN)):div(tensor.new(STD)):clone()
  end)
end
function methods:pixels(img) return M.pixels(img, self.image_size) end

local out = ffi.new("sz_tensor *[3]")
local stage_out = ffi.new("sz_tensor *[4]")

-- pixels [B, S, S, 3] -> {embedding, high1, high0, pictures = B}; opts.recompute keeps less for the backward pass;
-- opts.stages adds the four stages' outputs.
function methods:encode(pixels, opts)
  opts = opts or {}
  check(C.sz_sam2_encode(self.c, pixels.ptr, opts.recompute and 1 or 0, out, out + 1, out + 2, opts.stages and stage_out or nil), 2)
  local features = { embedding = tensor.wrap(out[0]), high1 = tensor.wrap(out[1]), high0 = tensor.wrap(out[2]), pictures = pixels:shape()[1] }
  if opts.stages then
    features.stages = {}
    for i = 1, 4 do features.stages[i] = tensor.wrap(stage_out[i - 1]) end
  end
  return features
end

local function free_features(f)
  for _, name in ipairs { "embedding", "high1", "high0" } do f[name]:free() end
end

local function i32(values) return #values > 0 and tensor.new(values, { dtype = "i32" }) or nil end

-- prompts: {{picture = 1.., points = {{x, y, label}, ..}, mask = f32 tensor [4g, 4g] or nil}, ..}, in pixels of the S x S picture;
-- all or none have a mask.
function methods:decode(features, prompts)
  local pictures, counts, points, labels, masked = {}, {}, {}, {}, 0
  for p, prompt in ipairs(prompts) do
    pictures[p], counts[p] = (prompt.picture or 1) - 1, #prompt.points
    for _, at in ipairs(prompt.points) do
      points[#points + 1], labels[#labels + 1] = { at[1], at[2] }, at[3]
    end
    if prompt.mask then masked = masked + 1 end
  end
  if #prompts == 0 then error("sam2: no prompt", 2) end
  local masks
  if masked > 0 then
    if masked ~= #prompts then error("sam2: some prompts have a mask and some have none", 2) end
    masks = tensor.empty { #prompts, self.mask_side, self.mask_side, 1 }
    for p, prompt in ipairs(prompts) do masks:narrow(p - 1, 1):copy_(prompt.mask:reshape(1, self.mask_side, self.mask_side, 1)) end
  end
  local at, names = #points > 0 and tensor.new(points) or nil, i32(labels)
  check(C.sz_sam2_decode(self.c, features.embedding.ptr, features.high1.ptr, features.high0.ptr, i32(pictures).ptr, i32(counts).ptr,
    at and at.ptr or nil, names and names.ptr or nil, masks and masks.ptr or nil, out, out + 1, out + 2), 2)
  return { logits = tensor.wrap(out[0]), iou = tensor.wrap(out[1]), object = tensor.wrap(out[2]) }
end

-- logits [k, s, s] -> [k, h, w], bilinear without antialiasing.
function M.upsample(logits, height, width)
  local s = logits:shape()
  return logits:reshape(s[1], s[2], s[3], 1):resize(height, width, BILINEAR):reshape(s[1], height, width)
end
function methods:upsample(logits, height, width) return M.upsample(logits, height, width) end

-- ---- the predictor ----
-- A picture's features; free them with features:free(). Nothing is recorded.
function methods:embed(img)
  return tensor.no_grad(function()
    local pixels = self:pixels(img)
    local f = self:encode(pixels)
    pixels:free()
    f.width, f.height, f.free = img.width, img.height, free_features
    return f
  end)
end

function methods:use(features)
  if type(features) ~= "table" or not features.width then error("sam:use wants what sam:embed returned", 2) end
  self.features = features
end

function methods:set_image(img)
  if not is_image(img) or img.ptr == nil then
    error("sam2: set_image wants a picture (sz.image.load), got " .. (is_image(img) and "one that has been freed" or type(img)), 2)
  end
  if self.features then self.features:free() end
  self.features = nil
  self.features = self:embed(img)
end

local function numbers(v, n, what, level)
  local good = type(v) == "table" and #v == n
  for i = 1, n do good = good and type(v[i]) == "number" and v[i] == v[i] and math.abs(v[i]) < 1e9 end
  if not good then error(("sam2: %s must be %d numbers"):format(what, n), level + 1) end
end

-- A box and points in pixels of the picture behind f, as a prompt for decode: the box's corners first, then the points (labels: all 1
-- without), then the padding point that the reference always adds to points. Numbers are taken as they are.
function methods:prompt(f, box, points, labels)
  local kx, ky, list = self.image_size / f.width, self.image_size / f.height, {}
  local function add(x, y, label) list[#list + 1] = { x * kx, y * ky, label } end
  if box then
    add(box[1], box[2], 2)
    add(box[3], box[4], 3)
  end
  for i, p in ipairs(points or {}) do add(p[1], p[2], labels and labels[i] or 1) end
  if #list > 0 then add(0, 0, -1) end
  return { picture = 1, points = list }
end

-- A prompt as predict takes it, checked.
local function checked_prompt(sam, prompt, f, level)
  if type(prompt) ~= "table" then error("sam2: a prompt is a table {box =, points =, labels =}, got " .. type(prompt), level + 1) end
  local points, labels, mask = prompt.points or {}, prompt.labels, prompt.mask_input
  if type(points) ~= "table" or labels ~= nil and type(labels) ~= "table" then error("sam2: points and labels are lists", level + 1) end
  if mask ~= nil and not (tensor.is_tensor(mask) and mask:numel() == sam.mask_side ^ 2) then
    error(("sam2: mask_input must be a tensor [%d, %d]"):format(sam.mask_side, sam.mask_side), level + 1)
  end
  if prompt.box then numbers(prompt.box, 4, "box", level + 1) end
  for i, p in ipairs(points) do numbers(p, 2, "point " .. i, level + 1) end
  if labels and #labels ~= #points then error(("sam2: %d labels for %d points"):format(#labels, #points), level + 1) end
  for i, label in ipairs(labels or {}) do
    if label ~= 0 and label ~= 1 then error(("sam2: label %d is %s, expected 1 (on the thing) or 0"):format(i, tostring(label)), level + 1) end
  end
  local out = sam:prompt(f, prompt.box, points, labels)
  out.mask = prompt.mask_input
  return out
end

-- Mask 0 when a little change of the threshold changes little of it, else the best-rated of the others.
local function single(sam, logits, iou, masks)
  local side2, delta = sam.mask_side ^ 2, sam.selection.delta
  if not sam.selection.dynamic then return 0 end
  local inside, all = 0, 0
  for i = 0, side2 - 1 do
    if logits[i] > delta then inside = inside + 1 end
    if logits[i] > -delta then all = all + 1 end
  end
  if all == 0 or inside / all >= sam.selection.threshold then return 0 end
  local best = 1
  for k = 2, masks - 1 do
    if iou[k] > iou[best] then best = k end
  end
  return best
end

-- Which masks of one prompt are returned, as numbers from 0; logits float * [masks, 4g, 4g], iou float * [masks].
function methods:select(logits, iou, multimask)
  if not multimask then return { single(self, logits, iou, self.config.masks) } end
  local list = {}
  for k = 1, self.config.masks - 1 do list[k] = k end
  return list
end

local function predict(self, prompts, opts, level)
  local f = self.features
  if not f then error("sam2: set_image comes first", level + 1) end
  local multimask = not opts or opts.multimask ~= false
  local given = {}
  for p, prompt in ipairs(prompts) do given[p] = checked_prompt(self, prompt, f, level + 1) end
  if #given == 0 then return {} end
  return tensor.no_grad(tensor.step, function()
    local o = self:decode(f, given)
    local all, scores = o.logits:values(), o.iou:values()
    local masks, side = self.config.masks, self.mask_side
    local results = {}
    for p = 1, #prompts do
      local iou = tensor.data(scores) + (p - 1) * masks
      local list = self:select(tensor.data(all) + (p - 1) * masks * side * side, iou, multimask)
      local kept = all:reshape(#prompts * masks, side, side):narrow((p - 1) * masks + list[1], #list)
      local fine = self:upsample(kept, f.height, f.width)
      local inside, r = tensor.empty({ #list, f.height, f.width }, { dtype = "u8" }), { scores = {} }
      for i, k in ipairs(list) do r.scores[i] = iou[k] end
      local from, to = tensor.data(fine), tensor.data(inside)
      for i = 0, fine:numel() - 1 do to[i] = from[i] > 0 and 1 or 0 end
      r.masks, r.low_res = inside:clone(), kept:clamp(-LOW_RES_LIMIT, LOW_RES_LIMIT):clone()
      results[p] = r
    end
    return results
  end)
end

-- Results for several prompts on the picture that was set; multimask as in predict.
function methods:predict_all(prompts, opts)
  local results = predict(self, prompts, opts, 2)
  return results
end

function methods:predict(prompt)
  if type(prompt) ~= "table" then error("sam2: a prompt is a table {box =, points =, labels =}, got " .. type(prompt), 2) end
  local list = { prompt }
  for i, box in ipairs(prompt.boxes or {}) do list[i] = { box = box } end
  if prompt.boxes and #prompt.boxes == 0 then list = {} end
  local results = predict(self, list, prompt, 2)
  return prompt.boxes and results or results[1]
end

-- The index of the best-rated mask of a result; of equals the last, as Seg-Zero's sorting has it.
function M.best(result)
  local best = 1
  for i, v in ipairs(result.scores) do
    if v >= result.scores[best] then best = i end
  end
  return best
end
methods.best = M.best

-- ---- saving ----
-- Writes a folder that transformers' Sam2Model and segzero load.
function methods:save(dir)
  files.make_dir(dir)
  -- transformers takes no whole number where it declares a float.
  local text = cjson.encode(self.json):gsub('("mlp_ratio":%d+)([,}])', "%1.0%2")
  files.write(dir .. "/config.json", text)
  files.write(dir .. "/preprocessor_config.json", cjson.encode {
    image_processor_type = "Sam2ImageProcessorFast", do_resize = true, do_rescale = true, do_normalize = true, resample = 2, rescale_factor = 1 / 255,
    image_mean = MEAN, image_std = STD, size = { height = self.image_size, width = self.image_size },
    mask_size = { height = self.mask_side, width = self.mask_side } })
  local all = self:parameters()
  all[COPY] = all[SHARED]
  safetensors.save_folder(dir, all)
end

function mt.__tostring(sam)
  local c = sam.config
  return ("SAM2 %s (%d px, width %d, %d+%d+%d+%d blocks)"):format(sam.dir or "random", c.image_size, c.width[0], c.blocks[0], c.blocks[1], c.blocks[2], c.blocks[3])
end

return M
