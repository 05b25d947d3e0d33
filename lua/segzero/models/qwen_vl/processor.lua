-- processor.lua - turns chat messages with images into the inputs of Qwen2-VL and Qwen2.5-VL.
--
--     local proc = processor.new(dir)             a model folder, or a table with the keys of
--                                                 preprocessor_config.json
--     local inp = proc:process(messages, tokenizer, {image_token_id = 151655})
--       inp.text                  the rendered prompt, one <|image_pad|> per image
--       inp.input_ids = {...}     each <|image_pad|> repeated t * h * w / merge_size^2 times
--       inp.pixel_values          f32 [patches of all images, 3 * temporal * patch^2], or nil
--       inp.image_grid_thw = {{t, h, w}, ...}       in patches, one per image
--       inp.position_ids          i32 [3, T]
--       inp.next_position         the position of the first answer token
--       inp.images = {{width, height, resized_width, resized_height, tokens}, ...}
--     proc:plan(width, height) -> that last record, from the size alone: {..., grid = {t, h, w}}
--     processor.positions(input_ids, image_grid_thw, {image_token_id =}, merge_size)
--         -> i32 tensor [3, T], next position
--
-- In the background (data/prefetch.lua):
--     local future = proc:start(source, first)
--         a thread reads, resizes and converts source: a path, {bytes = of an image file, name =}
--         or an image object. first: {width =, height =} to resize it to before, bilinear; or nil.
--         nil if the source is bad or a scope is open; process() then reports the error or does the
--         work
--     local img, resized = proc:take(future)
--         waits; process() finds the patches of `resized` ready: img itself, or the image that it
--         was resized to first. nil if the job failed
--     proc:cancel(future)
--
-- An image of a message is a file name, a data URL or an image object (formats/image.lua). It is
-- resized (Pillow's bicubic) only if its size is not already one that smart_resize gives. A
-- message's item may have limits of its own, as for qwen_vl_utils, which take the place of these.
-- do_resize, do_rescale and do_normalize are on where the config lacks them, and off where it has
-- null, false or 0, as in transformers. Texts are refused: Python takes "false" as on.
-- Settings that the config lacks: patch_size 14, temporal_patch_size 2, merge_size 2, CLIP's mean
-- and std, rescale_factor 1/255, min_pixels 3136 and max_pixels 1003520, as in transformers' class.
-- A folder without any config has 12845056, as in the released folders.
-- Leaves out: video, other resampling filters.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local jobs = require "segzero.core.jobs"
local notes = require "segzero.core.notes"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local image = require "segzero.formats.image"
local data_url = require "segzero.models.qwen_vl.data_url"
local known_keys = require "segzero.models.known_keys"
local messages_of = require "segzero.models.qwen_vl.messages"

core.declare "models/qwen_vl/qwen_vl.h"
local C = core.C
local call = core.call
local guarded = core.guarded

local M = {}
local Processor = {}
local mt = { __index = Processor }

-- ---- settings ----
local DEFAULT = {
  min_pixels = 3136, max_pixels = 1003520,
  patch_size = 14, temporal_patch_size = 2, merge_size = 2,
  image_mean = { 0.48145466, 0.4578275, 0.40821073 },
  image_std = { 0.26862954, 0.26130258, 0.27577711 },
  rescale_factor = 1 / 255, resample = 3,
}
local RELEASED_MAX_PIXELS = 12845056
local FILTER = { [2] = "bilinear", [3] = "bicubic" }      -- Pillow's numbers
local MOST = {
  patch_size = 1024, temporal_patch_size = 64, merge_size = 64,
  min_pixels = 2 ^ 40, max_pixels = 2 ^ 40,
}

-- processor_config.json of newer folders has the settings of all processors; its image_processor
-- comes first, as in transformers 5. The second result names the file and object.
local function read_config(dir)
  local path = dir .. "/processor_config.json"
  local all = files.read_json_object(path, true)
  local nested
  if all then
    known_keys.check(path, all, known_keys.PROCESSOR)
    nested = all.image_processor
    if nested == cjson.null then nested = nil end
    if nested ~= nil and type(nested) ~= "table" then
      known_keys.bad(path, "image_processor", nested, "an object")
    end
  end
  if nested then
    known_keys.check(path, nested, known_keys.IMAGE_PROCESSOR, "image_processor.")
    return nested, path .. ": image_processor"
  end
  path = dir .. "/preprocessor_config.json"
  local config = files.read_json_object(path, true)
  if not config then
    notes.say(("%s has neither processor_config.json nor preprocessor_config.json: images are "
      .. "processed as for the released folders"):format(dir))
    return { max_pixels = RELEASED_MAX_PIXELS }, path
  end
  known_keys.check(path, config, known_keys.IMAGE_PROCESSOR)
  return config, path
end

-- A reader of one config: get(key) is nil for null, bad(key, value) raises, is_on(key) reads a
-- switch.
local function reader(config, where)
  local function get(key)
    local v = config[key]
    if v == cjson.null then return nil end
    return v
  end
  local function bad(key, value, expected) known_keys.bad(where, key, value, expected) end
  local function is_on(key)
    local v = config[key]
    if v == nil then return true end
    if v == cjson.null or v == 0 then return false end
    if type(v) == "number" then return true end
    if type(v) ~= "boolean" then bad(key, v, "true, false, 1, 0 or null") end
    return v
  end
  return get, bad, is_on
end

local SIZE_KEYS = { shortest_edge = true, longest_edge = true, min_pixels = true,
  max_pixels = true }

-- min_pixels and max_pixels are also written as size = {shortest_edge, longest_edge}; the plain
-- keys win.
local function pixel_limits(get, bad)
  local size = get "size"
  if size == nil then return { min_pixels = get "min_pixels", max_pixels = get "max_pixels" } end
  local expected = "an object with shortest_edge and longest_edge"
  if type(size) ~= "table" then bad("size", size, expected) end
  local function value(key)
    if size[key] ~= cjson.null then return size[key] end
  end
  for key in pairs(size) do
    if not SIZE_KEYS[key] and value(key) ~= nil then bad("size", size, expected) end
  end
  local limits = {
    min_pixels = get "min_pixels" or value "shortest_edge" or value "min_pixels",
    max_pixels = get "max_pixels" or value "longest_edge" or value "max_pixels",
  }
  if not limits.min_pixels or not limits.max_pixels then bad("size", size, expected) end
  return limits
end

local function read_sizes(self, get, bad)
  local limits = pixel_limits(get, bad)
  for key, most in pairs(MOST) do
    local v = limits[key] or get(key)
    if v == nil or v == cjson.null then v = DEFAULT[key] end
    if type(v) == "table" and v[1] ~= nil and #v <= 3 then
      for i = 2, #v do
        if v[i] ~= v[1] then bad(key, v, "equal numbers") end
      end
      v = v[1]
    end
    if type(v) ~= "number" or v % 1 ~= 0 or v < 1 or v > most then
      bad(key, v, ("a whole number from 1 to %.0f"):format(most))
    end
    self[key] = v
  end
  if self.min_pixels > self.max_pixels then
    bad("min_pixels", self.min_pixels, ("at most max_pixels, %.0f"):format(self.max_pixels))
  end
end

-- Mean and std of the channels as double[3]; 0 and 1 where do_normalize is off.
local function read_normalisation(self, get, bad, is_on)
  local normalise = is_on "do_normalize"
  for key, neutral in pairs { image_mean = 0, image_std = 1 } do
    local v = get(key) or DEFAULT[key]
    if type(v) == "number" then v = { v, v, v } end
    if type(v) ~= "table" or #v ~= 3 then bad(key, v, "three numbers") end
    self[key] = ffi.new "double[3]"
    for c = 1, 3 do
      if type(v[c]) ~= "number" then bad(key, v, "three numbers") end
      if key == "image_std" and v[c] == 0 then bad(key, v, "numbers other than 0") end
      self[key][c - 1] = normalise and v[c] or neutral
    end
  end
end

M.new = guarded(function(source)
  local config = source
  local where = "processor"
  if type(source) == "string" then
    config, where = read_config(source)
  elseif type(source) ~= "table" then
    error("a folder name or a table is expected, got " .. type(source), 0)
  end
  local get, bad, is_on = reader(config, where)
  local self = setmetatable({}, mt)
  self.ready = setmetatable({}, { __mode = "k" })      -- image -> its finished future
  read_sizes(self, get, bad)
  read_normalisation(self, get, bad, is_on)

  local resample = get "resample" or DEFAULT.resample
  self.filter = FILTER[resample]
  if not self.filter then
    bad("resample", resample, "2 or 3 (bilinear, bicubic)")
  end
  self.resize = is_on "do_resize"
  self.scale = get "rescale_factor" or DEFAULT.rescale_factor
  if not is_on "do_rescale" then self.scale = 1 end
  if type(self.scale) ~= "number" then bad("rescale_factor", self.scale, "a number") end
  return self
end)

function mt:__tostring()
  return ("processor (patch %d, merge %d, %d to %d pixels)"):format(self.patch_size,
    self.merge_size, self.min_pixels, self.max_pixels)
end

-- ---- sizes ----
local out_size = ffi.new "int[2]"

-- As Python rounds: halves go to the even number.
local function round(x)
  local low = math.floor(x)
  if x - low ~= 0.5 then return math.floor(x + 0.5) end
  return low + low % 2
end

-- qwen_vl_utils' smart_resize, which differs from transformers': a side never rounds to 0.
local function resize_item(self, width, height, limits)
  local block = self.patch_size * self.merge_size
  local least = limits.min_pixels or self.min_pixels
  local most = limits.max_pixels or self.max_pixels
  if limits.resized_width then
    width = limits.resized_width
    height = limits.resized_height
    -- Its own limits.
    least = 4 * block ^ 2
    most = 16384 * block ^ 2
  end
  if least > most then
    error(("min_pixels %.0f is more than max_pixels %.0f"):format(least, most), 0)
  end
  if math.max(width, height) > 200 * math.min(width, height) then
    error(("one side of %d x %d is more than 200 times the other"):format(width, height), 0)
  end
  local h = math.max(block, round(height / block) * block)
  local w = math.max(block, round(width / block) * block)
  if h * w > most then
    local beta = math.sqrt(height * width / most)
    h = math.floor(height / beta / block) * block
    w = math.floor(width / beta / block) * block
  elseif h * w < least then
    local beta = math.sqrt(least / (height * width))
    h = math.ceil(height * beta / block) * block
    w = math.ceil(width * beta / block) * block
  end
  if h < block or w < block then
    error(("max_pixels %.0f leaves no whole block of %d for %d x %d pixels"):format(most, block,
      width, height), 0)
  end
  return w, h
end

-- limits: of a message's item, or nil.
local function size_of(self, width, height, limits)
  local h = height
  local w = width
  local block = self.patch_size * self.merge_size
  if limits then
    w, h = resize_item(self, width, height, limits)
  elseif self.resize then
    call(C.sz_qwen_smart_resize(height, width, block, self.min_pixels, self.max_pixels, out_size,
      out_size + 1))
    h = out_size[0]
    w = out_size[1]
  elseif h % block ~= 0 or w % block ~= 0 then
    error(("an image of %d x %d is not a multiple of %d on both sides, and do_resize is off")
      :format(w, h, block), 0)
  end
  local grid = { 1, h / self.patch_size, w / self.patch_size }
  return {
    width = width, height = height, resized_width = w, resized_height = h, grid = grid,
    tokens = grid[2] * grid[3] / self.merge_size ^ 2,
  }
end

Processor.plan = guarded(function(self, width, height) return size_of(self, width, height) end)

local function columns_of(self) return 3 * self.temporal_patch_size * self.patch_size ^ 2 end

-- ---- in the background ----
local size = ffi.new "int[6]"

-- The size of a source, and it as C takes it. The strings live as long as `source`.
local function describe(source)
  if type(source) == "string" then
    local width, height = image.size(source)
    return width, height, ffi.new("sz_qwen_image_source", { name = source })
  end
  if not source.bytes then
    return source.width, source.height, ffi.new("sz_qwen_image_source", { image = source.ptr })
  end
  local bytes = ffi.cast("const uint8_t *", source.bytes)
  local width, height = image.memory.size(bytes, #source.bytes, source.name)
  return width, height, ffi.new("sz_qwen_image_source", { name = source.name, bytes = bytes,
    count = #source.bytes })
end

local function start(self, source, first)
  local width, height, raw = describe(source)
  first = first or { width = width, height = height }
  local s = size_of(self, first.width, first.height)
  local values = tensor.empty({ s.grid[2] * s.grid[3], columns_of(self) }, { dtype = "f32" })
  size[0] = width
  size[1] = height
  size[2] = first.width
  size[3] = first.height
  size[4] = s.resized_width
  size[5] = s.resized_height
  local filter = self.filter == "bicubic" and 1 or 0
  local job = call(C.sz_qwen_image_start(raw, size, filter, self.patch_size,
    self.temporal_patch_size, self.merge_size, self.scale, self.image_mean, self.image_std,
      values.ptr))
  local img = image.is_image(source) and source or nil
  return { job = jobs.wrap(job), values = values, size = s, image = img }
end

function Processor:start(source, first)
  if C.sz_scope_depth() > 0 then return nil end
  local ok, future = pcall(start, self, source, first)
  if ok then return future end
  if core.is_interrupt(future) then error(future, 0) end
  return nil
end

function Processor:take(future)
  local good = future.job:wait()
  local img = future.image
  local resized
  if good then
    if not img then img = image.wrap(C.sz_qwen_image_take(future.job.ptr)) end
    local made = C.sz_qwen_image_take_resized(future.job.ptr)
    resized = made ~= nil and image.wrap(made) or img
  end
  future.job:free()
  future.image = nil         -- else the weak table would hold its own key
  if not good then
    future.values:free()
    return nil
  end
  self.ready[resized] = future
  return img, resized
end

function Processor:cancel(future)
  future.job:free()
  future.values:free()
end

-- ---- images of messages ----
-- The patches that a future prepared for this image, if they have the wanted size.
local function prepared(self, img, s)
  local future = self.ready[img]
  if not future then return nil end
  self.ready[img] = nil
  if future.size.resized_width == s.resized_width
    and future.size.resized_height == s.resized_height then
    return future.values
  end
  future.values:free()
end

-- Opens and resizes one image: {size =, values = its patches} or {size =, img =, own = ours to
-- free}.
local function prepare(self, item)
  local img = item.source
  local own = false
  if type(img) == "string" then
    if data_url.is(img) then
      img = data_url.load(img)
    else
      img = image.load(img)
    end
    own = true
  elseif img.ptr == nil then
    error("this image has been freed", 0)
  end
  local ok, s = pcall(size_of, self, img.width, img.height, item.limits)
  if not ok then
    if own then img:free() end
    error(s, 0)
  end
  local values = prepared(self, img, s)
  if values then return { values = values, size = s } end
  if s.resized_width ~= img.width or s.resized_height ~= img.height then
    local resized = img:resize(s.resized_width, s.resized_height, self.filter)
    if own then img:free() end
    img = resized
    own = true
  end
  return { img = img, own = own, size = s }
end

-- The patches of all images in one tensor.
local function join_patches(self, list)
  if #list == 1 and list[1].values then
    local values = list[1].values
    list[1].values = nil
    return values
  end
  local patches = 0
  local columns = columns_of(self)
  for _, r in ipairs(list) do patches = patches + r.size.grid[2] * r.size.grid[3] end
  local values = tensor.empty({ patches, columns }, { dtype = "f32" })
  local row = 0
  for _, r in ipairs(list) do
    local rows = r.size.grid[2] * r.size.grid[3]
    if r.values then
      ffi.copy(tensor.data(values) + row * columns, tensor.data(r.values), 4 * rows * columns)
    else
      call(C.sz_qwen_patches(r.img.ptr, self.patch_size, self.temporal_patch_size, self.merge_size,
        self.scale, self.image_mean, self.image_std, values.ptr, row))
    end
    row = row + rows
  end
  return values
end

-- ---- tokens ----
-- Repeats the k-th image token for each token of image k.
local function expand(ids, image_id, list, tokenizer)
  local out = {}
  local seen = 0
  for _, id in ipairs(ids) do
    if id == image_id then
      seen = seen + 1
      local count = list[seen] and list[seen].size.tokens or 0
      for _ = 1, count do out[#out + 1] = id end
    else
      out[#out + 1] = id
    end
  end
  if seen ~= #list then
    local own_id = tokenizer.id and tokenizer:id "<|image_pad|>"
    if own_id ~= image_id and (own_id or seen == 0) then
      error(("the model's image token is %d, and <|image_pad|> is %s in the tokenizer: they do not "
        .. "belong together"):format(image_id, own_id or "not a token"), 0)
    end
    error(("the messages have %d images, but their text has %d image marks: "
      .. "<|image_pad|> must not be typed into a text"):format(#list, seen), 0)
  end
  return out
end

local function image_token(ids, tokenizer)
  local id = ids and (ids.image_token_id or ids.image)
  if not id and tokenizer then id = tokenizer:id "<|image_pad|>" end
  if type(id) ~= "number" then
    error("the id of <|image_pad|> is not known (ids.image_token_id)", 0)
  end
  return id
end

local function positions(input_ids, image_grid_thw, ids, merge_size)
  local n = #input_ids
  local image_id = image_token(ids)
  local tokens = ffi.new("int32_t[?]", n + 1)
  for i = 1, n do tokens[i - 1] = input_ids[i] end
  local grids = ffi.new("int32_t[?]", 3 * #image_grid_thw + 1)
  for k, g in ipairs(image_grid_thw) do
    for c = 1, 3 do
      if type(g[c]) ~= "number" then
        error(("image_grid_thw[%d][%d] is %s"):format(k, c, tostring(g[c])), 0)
      end
      grids[3 * k - 4 + c] = g[c]
    end
  end
  local following = ffi.new "int32_t[1]"
  local t = call(C.sz_qwen_positions(tokens, n, grids, #image_grid_thw, image_id,
    merge_size or DEFAULT.merge_size, following))
  return tensor.wrap(t), following[0]
end
M.positions = guarded(positions)

-- Fills inp; opened images are appended to list.
local function process(self, messages, tokenizer, image_id, inp, list)
  for _, item in ipairs(messages_of.images(messages)) do
    local good, r = pcall(prepare, self, item)
    if not good then error(item.where .. ": " .. core.plain(r), 0) end
    list[#list + 1] = r
    inp.images[#inp.images + 1] = r.size
    inp.image_grid_thw[#inp.image_grid_thw + 1] = r.size.grid
  end
  inp.text = messages_of.render(messages, { add_generation_prompt = true }, tokenizer.system)
  inp.input_ids = expand(tokenizer:encode(inp.text), image_id, list, tokenizer)
  local ids = { image_token_id = image_id }
  inp.position_ids, inp.next_position = positions(inp.input_ids, inp.image_grid_thw, ids,
    self.merge_size)
  if #list > 0 then inp.pixel_values = join_patches(self, list) end
end

Processor.process = guarded(function(self, messages, tokenizer, ids)
  if type(messages) ~= "table" then
    error("messages is a " .. type(messages) .. ", not a list", 0)
  end
  local image_id = image_token(ids, tokenizer)
  local inp = { image_grid_thw = {}, images = {} }
  local list = {}
  local ok, why = pcall(process, self, messages, tokenizer, image_id, inp, list)
  for _, r in ipairs(list) do
    if r.own then r.img:free() end
    if r.values then r.values:free() end
  end
  if not ok then error(core.plain(why), 0) end
  return inp
end)

options.limit(Processor, { process = 3, plan = 2, start = 2, take = 1, cancel = 1 })
M.new = options.at_most("processor.new", 1, M.new)

return M
