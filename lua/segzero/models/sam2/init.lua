-- init.lua - SAM2 for scripts: loads a checkpoint, turns an image and prompts into masks, trains,
-- and saves a folder.
--
--   local sam = sz.sam2(path, {dtype = "f32" | "bf16", device = "cpu" | "cuda"})
--       path: a transformers folder, an original .pt file, or a folder that holds one
--   sam:set_image(img), sam:predict{box =, points =}         the predictor: predictor.lua
--
-- Training and rewards use the parts:
--   sam:pixels(img) -> f32 [1, S, S, 3]                one image, resized and normalised
--   sam:encode(pixels [B, S, S, 3], {recompute =, stages =})
--       -> {embedding, high1, high0, images = B}       recompute: keep less for the backward pass;
--                                                      stages: add the four stages' outputs
--   sam:decode(features, prompts) -> {logits [P, m, 4g, 4g], iou [P, m], object [P, 1]}
--       prompts: {{image = 1, points = {{x, y, label}, ..}, mask = t}, ..} in pixels of the S x S
--       image
--   sam:upsample(logits [k, 4g, 4g], h, w) -> [k, h, w]
--   sam:parameters()   sam:train(filter)   sam:save(dir)   sam:free()
--
-- Results follow SAM2ImagePredictor. Leaves out: video, hole filling, automatic masks.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local safetensors = require "segzero.formats.safetensors"
local network = require "segzero.models.network"
local opening = require "segzero.models.opening"
local predictor = require "segzero.models.sam2.predictor"
local random_weights = require "segzero.models.random_weights"
local sam2_config = require "segzero.models.sam2.config"
local sam2_names = require "segzero.models.sam2.names"
local weights = require "segzero.models.weights"

local C = core.C
local check = core.check

local M = {}

M.parse_config = sam2_config.parse
M.best = predictor.best

local network_methods = network.methods()
local methods = {}
for _, name in ipairs { "parameters", "set_weight", "is_vision_weight", "set_adapter",
  "enable_adapters" } do
  methods[name] = network_methods[name]
end
for name, f in pairs(predictor.methods) do methods[name] = f end

local mt = { __index = methods }
local freed = network.freed("sam2", methods)

local MEAN = { 0.485, 0.456, 0.406 }
local STD = { 0.229, 0.224, 0.225 }
local BILINEAR, ANTIALIASED = 1, 3      -- modes of the op resize

-- ---- loading ----
-- Weights of the video model, which single images do not need.
local VIDEO = {
  "^memory_", "^mask_downsample%.", "^object_pointer_proj",
  "^temporal_positional_encoding_projection_layer%.", "^no_memory_positional_encoding$",
  "^no_object_pointer$", "^occlusion_spatial_embedding_parameter$",
}

local function is_video_weight(name)
  for _, pattern in ipairs(VIDEO) do
    if name:match(pattern) then return true end
  end
  return false
end

-- The frequencies of the position code are stored twice: for the image and for the prompts.
local SHARED = "shared_image_embedding.positional_embedding"
local COPY = "prompt_encoder.shared_embedding.positional_embedding"

local function is_same(a, b)
  if a:numel() ~= b:numel() then return false end
  return (a:cast(C.SZ_F32) - b:cast(C.SZ_F32)):sum_squares():item() == 0
end

-- One matrix serves both here, as in the original package and the released models.
local function drop_copy(loaded, path)
  local copy = loaded[COPY]
  loaded[COPY] = nil
  if not copy then return end
  if not loaded[SHARED] then
    loaded[SHARED] = copy
  elseif not tensor.step(is_same, loaded[SHARED]:reshape(-1), copy:reshape(-1)) then
    error(("%s: %s and %s differ, but SAM2 has one matrix for both: copy the right one over the "
      .. "other"):format(path, SHARED, COPY), 0)
  end
end

-- path: config.json's, for messages.
local function new(json, dtype, device, path)
  local config, selection = sam2_config.parse(json, path)
  local c = ffi.gc(check(C.sz_sam2_new(config)), C.sz_model_free)
  local sam = setmetatable({
    c = c, config = config, selection = selection, json = json, dtype = dtype or "f32",
    device = device,
  }, mt)
  sam.image_size = config.image_size
  sam.mask_side = config.image_size / config.prompt_patch * 4
  sam.weights = weights.list(c)
  return sam
end

-- An original checkpoint: config.json's table and the tensors in transformers' names.
local function read_original(path)
  local found = require("segzero.formats.torchfile").load(path)
  return sam2_names.config_of(found), (sam2_names.from_original(found))
end

local OPEN = options.set { "dtype", "device" }

-- The config is checked before any weight is read.
local function open_folder(path, opts, device)
  local config = path .. "/config.json"
  local json = files.read_json_object(config)
  local ok, sam = pcall(new, json, opts.dtype, device, config)
  if not ok then
    local why = core.plain(sam):gsub("^config: ", "")
    if why:sub(1, #path) ~= path then why = config .. ": " .. why end
    error(why, 0)
  end
  return sam, safetensors.load_folder(path)
end

local function open(path, opts, device)
  local sam, loaded
  local original = path
  if files.exists(path .. "/.") then original = sam2_names.file_in(path) end
  if original then
    if not files.exists(original) then error(path .. ": No such file or directory", 0) end
    files.check_regular(original)
    local json
    json, loaded = read_original(original)
    sam = new(json, opts.dtype, device, original)
  elseif files.exists(path .. "/config.json") then
    sam, loaded = open_folder(path, opts, device)
  else
    error(("no SAM2 model in %s: it has no config.json and no .pt file"):format(path), 0)
  end
  sam.dir = path
  drop_copy(loaded, path)
  weights.set(sam, loaded, path, is_video_weight)
  return sam
end

function M.sam2(path, opts)
  opts = opening.check("sam2", path, opts, OPEN, { "bf16", "f32" }, 2)
  local device = tensor.model_device(opts.device, 2)
  path = opening.resolve(path, 2)
  local ok, sam = pcall(open, path, opts, device)
  if ok then return sam end
  if core.is_interrupt(sam) then error(sam, 0) end
  error(core.plain(sam), 2)
end

-- ---- random weights ----
local RANDOM = options.set { "dtype", "device", "seed", "gain", "embedding_std" }

-- The deviation of a weight that is neither a norm nor a bias.
local function deviation(w, opts)
  local inputs = 1
  for i = 2, #w.shape do inputs = inputs * w.shape[i] end
  if w.name == SHARED then return 1 end
  local is_embedding = w.name:match "embed" or w.name:match "token%w*%.weight$"
  if not is_embedding then return (opts.gain or 1) / math.sqrt(inputs) end
  if w.name:match "projection%.weight$" then return 1 / math.sqrt(inputs) end
  return opts.embedding_std or 0.1
end

-- True for a bias, which begins as 0. The biases of embeddings are random numbers.
local function is_zero(name)
  if name:match "embed" or name:match "token%w*%.weight$" then return false end
  return name:match "%.bias$" ~= nil
end

-- A model of random weights from a config table: normal with a deviation of gain / sqrt(inputs),
-- norms 1, biases 0. For training from scratch and benchmarks.
function M.random(json, opts)
  opts = options.check("random", opts, RANDOM, 2)
  local sam = new(json, opts.dtype, tensor.model_device(opts.device, 2))
  for _, w in ipairs(sam.weights) do
    local t = random_weights.empty(sam, w)
    if w.name:match "norm[^.]*%.weight$" then
      random_weights.ones(t, w)
    elseif not is_zero(w.name) then
      random_weights.normal(t, opts.seed or 0, w, deviation(w, opts))
    end
    random_weights.place(sam, w, t)
  end
  return sam
end

-- The frequencies of the position code are not a parameter.
function methods:train(filter)
  return weights.train(self, function(name)
    if name == SHARED then return false end
    return not filter or filter(name)
  end)
end

function methods:free()
  if self.c ~= nil then self.features = nil end
  network.free(self, freed)
end

-- ---- the parts ----
-- An image as input for the encoder: f32 [1, side, side, 3], resized as torchvision does it
-- (antialiased, not rounded) and normalised.
function M.pixels(img, side)
  return tensor.step(function()
    local x = img:totensor():cast(C.SZ_F32):affine(1 / 255, 0):reshape(1, img.height, img.width, 3)
    if img.width ~= side or img.height ~= side then x = x:resize(side, side, ANTIALIASED) end
    return x:sub(tensor.new(MEAN)):div(tensor.new(STD)):clone()
  end)
end
function methods:pixels(img) return M.pixels(img, self.image_size) end

local out = ffi.new "sz_tensor *[3]"
local stage_out = ffi.new "sz_tensor *[4]"
local ENCODE = options.set { "recompute", "stages" }

function methods:encode(pixels, opts)
  opts = options.check("encode", opts, ENCODE, 2)
  local recompute = opts.recompute and 1 or 0
  local stages = opts.stages and stage_out or nil
  check(C.sz_sam2_encode(self.c, pixels.ptr, recompute, out, out + 1, out + 2, stages), 2)
  local features = {
    embedding = tensor.wrap(out[0]), high1 = tensor.wrap(out[1]), high0 = tensor.wrap(out[2]),
    images = pixels:shape()[1],
  }
  if opts.stages then
    features.stages = {}
    for i = 1, 4 do features.stages[i] = tensor.wrap(stage_out[i - 1]) end
  end
  return features
end

-- An i32 tensor of a list; nil for an empty one.
local function i32(values)
  if #values == 0 then return nil end
  return tensor.new(values, { dtype = "i32" })
end

local PROMPT = options.set { "image", "points", "mask" }

-- The prompts' masks as one tensor [P, 4g, 4g, 1]; nil if none has one.
local function masks_of(sam, prompts, level)
  local masked = 0
  for _, prompt in ipairs(prompts) do
    if prompt.mask then masked = masked + 1 end
  end
  if masked == 0 then return nil end
  if masked ~= #prompts then
    error("sam2: some prompts have a mask and some have none", level + 1)
  end
  local side = sam.mask_side
  local masks = tensor.empty { #prompts, side, side, 1 }
  for p, prompt in ipairs(prompts) do
    masks:narrow(p - 1, 1):copy_(prompt.mask:reshape(1, side, side, 1))
  end
  return masks
end

-- All prompts or none have a mask.
function methods:decode(features, prompts)
  if #prompts == 0 then error("sam2: no prompt", 2) end
  local images = {}
  local counts = {}
  local points = {}
  local labels = {}
  for p, prompt in ipairs(prompts) do
    options.check("sam2: prompt " .. p, prompt, PROMPT, 2)
    images[p] = (prompt.image or 1) - 1
    counts[p] = #prompt.points
    for _, point in ipairs(prompt.points) do
      points[#points + 1] = { point[1], point[2] }
      labels[#labels + 1] = point[3]
    end
  end
  local masks = masks_of(self, prompts, 2)
  local point_tensor
  if #points > 0 then point_tensor = tensor.new(points) end
  local label_tensor = i32(labels)
  check(C.sz_sam2_decode(self.c, features.embedding.ptr, features.high1.ptr, features.high0.ptr,
    i32(images).ptr, i32(counts).ptr, point_tensor and point_tensor.ptr, label_tensor
      and label_tensor.ptr,
    masks and masks.ptr, out, out + 1, out + 2), 2)
  return { logits = tensor.wrap(out[0]), iou = tensor.wrap(out[1]), object = tensor.wrap(out[2]) }
end

-- logits [k, s, s] -> [k, h, w], bilinear without antialiasing.
function M.upsample(logits, height, width)
  local s = logits:shape()
  local maps = logits:reshape(s[1], s[2], s[3], 1)
  return maps:resize(height, width, BILINEAR):reshape(s[1], height, width)
end
function methods:upsample(logits, height, width) return M.upsample(logits, height, width) end

-- ---- saving ----
-- Writes a folder that transformers' Sam2Model and segzero load.
function methods:save(dir)
  files.make_dir(dir)
  -- transformers accepts no whole number where it declares a float.
  local text = files.indented_json(self.json):gsub('("mlp_ratio": %d+)([,\n])', "%1.0%2")
  files.write(dir .. "/config.json", text)
  files.write(dir .. "/preprocessor_config.json", files.indented_json {
    image_processor_type = "Sam2ImageProcessorFast", do_resize = true, do_rescale = true,
    do_normalize = true, resample = 2, rescale_factor = 1 / 255, image_mean = MEAN, image_std = STD,
    size = { height = self.image_size, width = self.image_size },
    mask_size = { height = self.mask_side, width = self.mask_side },
  })
  local all = self:parameters()
  all[COPY] = all[SHARED]
  safetensors.save_folder(dir, all)
end

options.limit(methods, { set_image = 1, embed = 1, use = 1, predict = 1, predict_all = 2,
  parameters = 0, save = 1, free = 0, pixels = 1, train = 1 })

function mt.__tostring(sam)
  local c = sam.config
  local blocks = {}
  for s = 0, 3 do blocks[s + 1] = c.blocks[s] end
  return ("SAM2 %s (%d px, width %d, %s blocks)"):format(sam.dir or "random", c.image_size,
    c.width[0], table.concat(blocks, "+"))
end

return M
