-- processor.lua - chat messages with pictures -> what Qwen2-VL / Qwen2.5-VL read.
--
--     local proc = processor.new(dir)                 a model folder, or a table with preprocessor_config.json's keys
--     local inp = proc:process(messages, tokenizer, {image_token_id = 151655})
--       inp.text                                      the rendered prompt, one <|image_pad|> per picture
--       inp.input_ids = {...}                         each <|image_pad|> repeated t * h * w / merge_size^2 times
--       inp.pixel_values                              f32 [patches of all pictures, 3 * temporal * patch^2]; nil without pictures
--       inp.image_grid_thw = {{t, h, w}, ...}         in patches, one per picture
--       inp.position_ids, inp.next_position           i32 [3, T], and the position of the first answer token
--       inp.images = {{width, height, resized_width, resized_height, tokens}, ...}
--     proc:plan(width, height) -> that last record    from the size alone: {..., grid = {t, h, w}}
--     local ticket = proc:start(picture)              path or picture object: a thread beside the main one reads, resizes and cuts it
--     local img = proc:take(ticket)                 process() of a message with img then has its patches already; forget(ticket)
--     processor.positions(input_ids, image_grid_thw, ids, merge_size) -> i32 tensor [3, T], next position
--
-- A picture of a message is a file name or a picture object (segzero.image). It is resized (Pillow's bicubic) only if its
-- size is not already one that smart_resize gives.
-- Settings that the config lacks: patch_size 14, temporal_patch_size 2, merge_size 2, CLIP's mean and std, rescale_factor
-- 1/255, min_pixels 3136 and max_pixels 12845056. The last is what the released folders say; transformers' class has
-- 1003520 instead, which matters only for a folder without the file.
-- Leaves out: video, pictures by URL or base64, other resampling filters.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local image = require "segzero.formats.image"
local jobs = require "segzero.core.jobs"
local item_kind = require("segzero.models.tokenizer").item_kind

local C, call, guarded = core.C, core.call, core.guarded

local M = {}
local Processor = {}
local mt = { __index = Processor }

local DEFAULT = {
  min_pixels = 3136, max_pixels = 12845056, patch_size = 14, temporal_patch_size = 2, merge_size = 2,
  image_mean = { 0.48145466, 0.4578275, 0.40821073 }, image_std = { 0.26862954, 0.26130258, 0.27577711 },
  rescale_factor = 1 / 255, resample = 3,
}
local FILTER = { [2] = "bilinear", [3] = "bicubic" }      -- Pillow's numbers
local MAX_SIZE = { patch_size = 1024, temporal_patch_size = 64, merge_size = 64, min_pixels = 2 ^ 40, max_pixels = 2 ^ 40 }


local function read_json(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("*a")
  file:close()
  local ok, value = pcall(cjson.decode, text or "")
  if not ok or type(value) ~= "table" then error(path .. ": not a JSON object: " .. tostring(value), 0) end
  return value
end

local function read_config(dir)
  local path = dir .. "/preprocessor_config.json"
  local config = read_json(path)
  if config then return config, path end
  -- Newer folders keep all processors' settings in one file.
  path = dir .. "/processor_config.json"
  local all = read_json(path)
  return all and type(all.image_processor) == "table" and all.image_processor or {}, path
end

M.new = guarded(function(source)
  local config, where = source, "processor"
  if type(source) == "string" then config, where = read_config(source)
  elseif type(source) ~= "table" then error("a folder name or a table is expected, got " .. type(source), 0) end

  local function bad(key, value) error(("%s: %s is %s"):format(where, key, tostring(value)), 0) end
  local function get(key)
    local v = config[key]
    if v == nil or v == cjson.null then return nil end
    return v
  end

  local self = setmetatable({ cut = setmetatable({}, { __mode = "k" }) }, mt)      -- cut: picture -> what finish() has of it
  -- min_pixels and max_pixels are also written as size = {shortest_edge, longest_edge}; the plain keys count.
  local size = type(get "size") == "table" and config.size or {}
  local given = {
    min_pixels = get "min_pixels" or size.shortest_edge or size.min_pixels,
    max_pixels = get "max_pixels" or size.longest_edge or size.max_pixels,
  }
  for key, most in pairs(MAX_SIZE) do
    local v = given[key] or get(key)
    if v == nil or v == cjson.null then v = DEFAULT[key] end
    if type(v) ~= "number" or v % 1 ~= 0 or v < 1 or v > most then bad(key, v) end
    self[key] = v
  end
  if self.min_pixels > self.max_pixels then bad("min_pixels", self.min_pixels .. ", more than max_pixels " .. self.max_pixels) end
  local resample = get "resample" or DEFAULT.resample
  self.filter = FILTER[resample]
  if not self.filter then bad("resample", tostring(resample) .. " (2 bilinear and 3 bicubic are handled)") end
  self.resize = get "do_resize" ~= false
  self.scale = get "do_rescale" == false and 1 or get "rescale_factor" or DEFAULT.rescale_factor
  if type(self.scale) ~= "number" then bad("rescale_factor", self.scale) end
  local normalise = get "do_normalize" ~= false
  for key, neutral in pairs{ image_mean = 0, image_std = 1 } do
    local v = get(key) or DEFAULT[key]
    if type(v) == "number" then v = { v, v, v } end
    if type(v) ~= "table" or #v ~= 3 then bad(key, "not three numbers") end
    self[key] = ffi.new("double[3]")
    for c = 1, 3 do
      if type(v[c]) ~= "number" then bad(key, "not three numbers") end
      self[key][c - 1] = normalise and v[c] or neutral
    end
  end
  return self
end)

function mt:__tostring()
  return ("processor (patch %d, merge %d, %d to %d pixels)"):format(self.patch_size, self.merge_size, self.min_pixels, self.max_pixels)
end

local out_size = ffi.new("int[2]")

local function plan(self, width, height)
  local h, w = height, width
  local block = self.patch_size * self.merge_size
  if self.resize then
    call(C.sz_qwen_smart_resize(height, width, block, self.min_pixels, self.max_pixels, out_size, out_size + 1))
    h, w = out_size[0], out_size[1]
  elseif h % block ~= 0 or w % block ~= 0 then
    error(("a picture of %d x %d is not a multiple of %d on both sides, and do_resize is off"):format(w, h, block), 0)
  end
  local grid = { 1, h / self.patch_size, w / self.patch_size }
  return {
    width = width, height = height, resized_width = w, resized_height = h, grid = grid,
    tokens = grid[2] * grid[3] / self.merge_size ^ 2,
  }
end

Processor.plan = guarded(plan)

-- The pictures of all messages in order: {{where = text for errors, source = path or picture}, ...}.
local function find_pictures(messages)
  local list = {}
  for i, message in ipairs(messages) do
    if type(message) == "table" and type(message.content) == "table" then
      for k, item in ipairs(message.content) do
        local kind = type(item) == "table" and item_kind(item)
        local where = ("message %d, item %d"):format(i, k)
        if kind == "video" then error(where .. ": video is not handled", 0) end
        if kind == "image" then
          local source = item.image or item.image_url
          if type(source) == "table" and not image.is_image(source) then source = source.url end
          where = ("%s (picture %d)"):format(where, #list + 1)
          if type(source) == "string" then source = source:gsub("^file://", "")
          elseif not image.is_image(source) then error(where .. ": neither a file name nor a picture", 0) end
          list[#list + 1] = { where = where, source = source }
        end
      end
    end
  end
  return list
end

-- ---- pictures ahead of the step ----
local function columns_of(self) return 3 * self.temporal_patch_size * self.patch_size ^ 2 end

local size = ffi.new("int[4]")

-- Begins to read (source is a path) or only to resize and cut (a picture) beside the main thread. nil when something is wrong with
-- it or a scope is open: process() says so then, or does it itself.
function Processor:start(source)
  if C.sz_scope_depth() > 0 then return nil end
  local path, img = type(source) == "string" and source or nil, nil
  local ok, ticket = pcall(function()
    local width, height
    if path then width, height = image.size(path) else img, width, height = source, source.width, source.height end
    local p = plan(self, width, height)
    local values = tensor.empty({ p.grid[2] * p.grid[3], columns_of(self) }, { dtype = "f32" })
    size[0], size[1], size[2], size[3] = width, height, p.resized_width, p.resized_height
    local job = call(C.sz_qwen_image_start(path, img and img.ptr, size, self.filter == "bicubic" and 1 or 0, self.patch_size,
      self.temporal_patch_size, self.merge_size, self.scale, self.image_mean, self.image_std, values.ptr))
    return { job = jobs.wrap(job), values = values, plan = p, image = img }
  end)
  if not ok and core.is_interrupt(ticket) then error(ticket, 0) end
  return ok and ticket or nil
end

-- Waits. The picture, whose patches process() will take: the one begin() was given or the one that was read; nil when that failed.
function Processor:take(ticket)
  local good, img = ticket.job:wait(), ticket.image
  if good and not img then img = image.wrap(C.sz_qwen_image_take(ticket.job.ptr)) end
  ticket.job:free()
  ticket.image = nil         -- else the weak table would hold its key
  if good then self.cut[img] = ticket else ticket.values:free() end
  return good and img or nil
end

-- Lets go of what was begun.
function Processor:cancel(ticket)
  ticket.job:free()
  ticket.values:free()
end

-- Opens, plans and resizes one picture; the record keeps the pixels that the patches are cut from, or the patches.
local function prepare(self, item)
  local img, own = item.source, false
  if type(img) == "string" then
    img, own = image.load(img), true
  elseif img.ptr == nil then
    error("this picture has been freed", 0)
  end
  local p = plan(self, img.width, img.height)
  local ahead = self.cut[img]
  if ahead then
    self.cut[img] = nil
    if ahead.plan.resized_width == p.resized_width and ahead.plan.resized_height == p.resized_height then
      return { values = ahead.values, own = false, plan = p }
    end
    ahead.values:free()
  end
  if p.resized_width ~= img.width or p.resized_height ~= img.height then
    local small = img:resize(p.resized_width, p.resized_height, self.filter)
    if own then img:free() end
    img, own = small, true
  end
  return { img = img, own = own, plan = p }
end

local function cut_patches(self, ready)
  if #ready == 1 and ready[1].values then
    local values = ready[1].values
    ready[1].values = nil
    return values
  end
  local patches, columns = 0, columns_of(self)
  for _, r in ipairs(ready) do patches = patches + r.plan.grid[2] * r.plan.grid[3] end
  local values, row = tensor.empty({ patches, columns }, { dtype = "f32" }), 0
  for _, r in ipairs(ready) do
    local rows = r.plan.grid[2] * r.plan.grid[3]
    if r.values then
      ffi.copy(tensor.data(values) + row * columns, tensor.data(r.values), 4 * rows * columns)
    else
      call(C.sz_qwen_patches(r.img.ptr, self.patch_size, self.temporal_patch_size, self.merge_size, self.scale, self.image_mean,
        self.image_std, values.ptr, row))
    end
    row = row + rows
  end
  return values
end

local function expand(ids, image_id, ready)
  local out, seen = {}, 0
  for _, id in ipairs(ids) do
    if id == image_id then
      seen = seen + 1
      for _ = 1, ready[seen] and ready[seen].plan.tokens or 0 do out[#out + 1] = id end
    else
      out[#out + 1] = id
    end
  end
  if seen ~= #ready then
    error(("the messages have %d pictures, but their text has %d picture marks: <|image_pad|> must not be typed into a text")
      :format(#ready, seen), 0)
  end
  return out
end

local function image_token(ids, tokenizer)
  local id = ids and (ids.image_token_id or ids.image) or tokenizer and tokenizer:id("<|image_pad|>")
  if type(id) ~= "number" then error("the id of <|image_pad|> is not known (ids.image_token_id)", 0) end
  return id
end

local function positions(input_ids, image_grid_thw, ids, merge_size)
  local n, image_id = #input_ids, image_token(ids)
  local tokens, grids = ffi.new("int32_t[?]", n + 1), ffi.new("int32_t[?]", 3 * #image_grid_thw + 1)
  for i = 1, n do tokens[i - 1] = input_ids[i] end
  for k, g in ipairs(image_grid_thw) do
    for c = 1, 3 do
      if type(g[c]) ~= "number" then error(("image_grid_thw[%d][%d] is %s"):format(k, c, tostring(g[c])), 0) end
      grids[3 * k - 4 + c] = g[c]
    end
  end
  local following = ffi.new("int32_t[1]")
  local t = call(C.sz_qwen_positions(tokens, n, grids, #image_grid_thw, image_id, merge_size or DEFAULT.merge_size, following))
  return tensor.wrap(t), following[0]
end
M.positions = guarded(positions)

Processor.process = guarded(function(self, messages, tokenizer, ids)
  if type(messages) ~= "table" then error("messages is a " .. type(messages) .. ", not a list", 0) end
  local image_id = image_token(ids, tokenizer)
  local ready = {}
  local function finish()
    for _, r in ipairs(ready) do
      if r.own then r.img:free() end
      if r.values then r.values:free() end
    end
  end
  local inp = { image_grid_thw = {}, images = {} }
  local ok, why = pcall(function()
    for _, item in ipairs(find_pictures(messages)) do
      local good, r = pcall(prepare, self, item)
      if not good then error(item.where .. ": " .. r:gsub("^[^:]*%.lua:%d+: ", ""), 0) end
      ready[#ready + 1] = r
      inp.images[#inp.images + 1] = r.plan
      inp.image_grid_thw[#inp.image_grid_thw + 1] = r.plan.grid
    end
    inp.text = require("segzero.models.tokenizer").chat(messages, { add_generation_prompt = true })
    inp.input_ids = expand(tokenizer:encode(inp.text), image_id, ready)
    inp.position_ids, inp.next_position = positions(inp.input_ids, inp.image_grid_thw, { image_token_id = image_id }, self.merge_size)
    if #ready > 0 then inp.pixel_values = cut_patches(self, ready) end
  end)
  finish()
  if not ok then error((why:gsub("^[^:]*%.lua:%d+: ", "")), 0) end
  return inp
end)

return M
