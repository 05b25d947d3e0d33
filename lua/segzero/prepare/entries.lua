-- entries.lua - what training rows are made of: a question, an image and its objects' masks, from
-- annotations or from any data set whose rows have masks.
--
--   local list = entries.open(cfg)         cfg: the settings of recipes/prepare_data.lua
--   list:count()
--   list:get(i) -> {
--     where = place for messages,
--     image = path or {bytes = of an image file, name =}, or nil,
--     load = f() -> the image, which the caller frees,
--     size = f() -> width, height,
--     parts = { { text = question, ids = { annotation, ... }, masks = { f, ... } }, ... },
--     id = f(parts) -> text, problem = f(parts) -> text }      of those parts that stay
--   f(width, height) -> u8 tensor [height, width] that the caller frees; all zeros for an object
--                       without a mask
--   list:fingerprint()                     a text that changes with the annotations or rows
--   list.name, list.notes                  for messages
--
-- One object: a row for each expression, with the mask of all that it means. cfg.several: a list of
-- objects. Refs of refer and rows of a data set about the same image are then one entry with a part
-- each, and its problem is 'a' and 'b'; an expression of gRefCOCO, a category of COCO and a
-- question of ReasonSeg are an entry of one part. Sentences are stripped and lower-cased as
-- Seg-Zero's script does. Errors are one line that starts with the place.
-- Leaves out: which parts stay (solution.lua).

local annotations = require "segzero.data.annotations"
local checksum = require "segzero.core.checksum"
local files = require "segzero.core.files"
local image = require "segzero.formats.image"
local mask_of = require "segzero.formats.mask"
local prompt = require "segzero.data.prompt"
local sources = require "segzero.data.sources"
local table_names = require "segzero.data.tables.names"
local tensor = require "segzero.core.tensor"

local M = {}

local methods = {}
local mt = { __index = methods }

local IDS_SHOWN = 3             -- annotations in an id, as Seg-Zero has them

-- ---- texts ----
local function cleaned(text)
  return prompt.normalize((text:gsub("^%s+", ""):gsub("%s+$", "")), ".?!")
end

-- f(parts): their sentences as one question.
local function problem_maker(self)
  if not self.several then return function(parts) return parts[1].text end end
  return function(parts)
    local texts = {}
    for n, part in ipairs(parts) do texts[n] = part.text end
    return "'" .. table.concat(texts, "' and '") .. "'"
  end
end

-- The first ids of the parts.
local function first_ids(parts)
  local list = {}
  for _, part in ipairs(parts) do
    for _, id in ipairs(part.ids) do
      if #list < IDS_SHOWN then list[#list + 1] = id end
    end
  end
  return table.concat(list, "_")
end

-- ---- masks ----
local function nothing(width, height)
  return tensor.zeros({ height, width }, { dtype = "u8" })
end

local function drawing(value, folder)
  if value == nil then return nothing end
  return function(width, height)
    return mask_of.read(value, { folder = folder, width = width, height = height, empty = true })
  end
end

-- ---- images ----
-- Gives an entry an image that is stored as a file, or as the bytes of one.
local function set_stored(entry, source)
  entry.image = source
  if type(source) == "string" then
    entry.size = function() return image.size(source) end
    entry.load = function() return image.load(source) end
    return
  end
  entry.size = function()
    local info = image.decode_info(source.bytes, source.name)
    return info.width, info.height
  end
  entry.load = function() return image.decode(source.bytes, source.name) end
end

-- ---- annotations ----
-- f(parts): the id of an entry; k: its sentence, nil for several refs in one.
local function id_maker(self, meta, k)
  if not meta.ref_id then
    local id = ("%s_%s"):format(meta.category and "coco" or "reasonseg", meta.id)
    if k > 1 then id = ("%s_%d"):format(id, k) end
    return function() return id end
  end
  local tail = ""
  if k then
    local sentence = meta.sent_ids and meta.sent_ids[k]
    tail = "_" .. (sentence or ("%.17g_%d"):format(meta.ref_id, k))
  end
  return function(parts) return ("%s_%s%s"):format(self.set.title, first_ids(parts), tail) end
end

local function masks_of(self, meta)
  local list = {}
  if not self.several then
    if #meta.objects > 0 then list[1] = drawing(annotations.mask(meta)) end
    return list
  end
  for n, object in ipairs(meta.objects) do list[n] = drawing(object.mask) end
  return list
end

-- An entry of annotations: one sentence of one of the set's, or several about an image.
local function annotated(self, place)
  local entry = { parts = {}, problem = problem_maker(self) }
  for n, i in ipairs(place.members) do
    local meta = self.set:meta(i)
    local ids = {}
    for id in meta.ann_id:gmatch "[^,]+" do ids[#ids + 1] = id end
    entry.parts[n] = { text = cleaned(meta.raw[place.sentence or 1]), ids = ids,
      masks = masks_of(self, meta) }
    if n == 1 then
      entry.where = meta.where
      entry.id = id_maker(self, meta, place.sentence)
      set_stored(entry, meta.image)
    end
  end
  return entry
end

-- Which entries of the set make which of ours: {{members = {i, ...}, sentence = k | nil}, ...}.
local function places_of_images(set)
  local places = {}
  local by_image = {}
  for i = 1, set:count() do
    local image_id = set:meta(i).image_id
    local place = by_image[image_id]
    if not place then
      place = { members = {} }
      by_image[image_id] = place
      places[#places + 1] = place
    end
    table.insert(place.members, i)
  end
  return places
end

local function places_of_sentences(set, all)
  local places = {}
  for i = 1, set:count() do
    for k = 1, all and set:texts(i) or 1 do
      places[#places + 1] = { members = { i }, sentence = k }
    end
  end
  return places
end

-- Several splits have the same files.
local function files_print(set)
  local list = { [0] = set.split or "" }
  for i, path in ipairs(set.files) do list[i] = checksum.file(path) end
  return checksum.text(table.concat(list, " ", 0))
end

local function open_annotations(self, cfg)
  self.set = annotations.open(cfg.data, { image_dir = cfg.image_dir, purpose = "train" })
  local is_refer = self.set.title ~= nil and not self.set.several
  if cfg.several and is_refer then
    if cfg.sentences == "all" then
      error("sentences=all is for one object: with several=true a ref has its first sentence", 0)
    end
    self.places = places_of_images(self.set)
  else
    self.places = places_of_sentences(self.set, cfg.sentences == "all")
  end
  self.make = annotated
  self.print = files_print
end

-- ---- data sets ----
local function image_of(self, entry, meta, i)
  local stored = self.set.image and self.set:image(i)
  if stored then return set_stored(entry, stored) end
  entry.load = function() return sources.read_row(self.set, i).image end
  entry.size = function()
    local size, why = meta.size()
    if not size then error(("%s: %s"):format(meta.where, why), 0) end
    return size.width, size.height
  end
end

-- A row without an id is known by its annotation or image, and its number.
local function row_id(meta, i)
  if meta.id then return tostring(meta.id) end
  local known = meta.columns.ann_id or meta.columns.image_id
  return known and ("%s_%d"):format(tostring(known), i) or tostring(i)
end

local function of_rows(self, place)
  local entry = { parts = {}, problem = problem_maker(self), id = first_ids }
  for n, i in ipairs(place.members) do
    local meta = self.set:meta(i)
    if meta.mask == nil then error(meta.where .. ": the row has no mask", 0) end
    entry.parts[n] = { text = cleaned(meta.problem), ids = { row_id(meta, i) },
      masks = { drawing(meta.mask, meta.folder) } }
    if n == 1 then
      entry.where = meta.where
      image_of(self, entry, meta, i)
    end
  end
  return entry
end

local function path_of(set, i)
  local source = set.image and set:image(i)
  return type(source) == "string" and source or nil
end

-- Rows with the same image_id, or the same image file, belong together.
local function places_of_rows(set, several)
  local places = {}
  local by_image = {}
  for i = 1, set:count() do
    local image_id
    if several then
      image_id = set:meta(i).columns.image_id or path_of(set, i)
    end
    local place = image_id and by_image[image_id]
    if not place then
      place = { members = {} }
      places[#places + 1] = place
      if image_id then by_image[image_id] = place end
    end
    table.insert(place.members, i)
  end
  return places
end

local function open_rows(self, cfg)
  local options = { split = "train", prompt_key = cfg.prompt_key, image_key = cfg.image_key,
    check = false, label = "data" }
  -- Solutions are not read; lines of JSON need the column, so it may be any.
  if files.exists(cfg.data) and not table_names.matches(cfg.data) then
    options.answer_key = cfg.prompt_key
  end
  self.set = sources.open(cfg.data, options)
  if type(self.set.meta) ~= "function" then
    error(("%s: this kind of data has no masks to prepare"):format(cfg.data), 0)
  end
  self.places = places_of_rows(self.set, cfg.several)
  self.make = of_rows
  self.print = self.set.fingerprint
end

-- ---- opening ----
local GENERATED = { refshapes = true, refshapes_multi = true }

function methods:count() return #self.places end

function methods:get(i) return self:make(self.places[i]) end

function methods:fingerprint() return self.print(self.set) end

function M.open(cfg)
  if GENERATED[cfg.data] then
    error(("data=%s: generated images are training rows already; name annotations or a folder")
      :format(cfg.data), 0)
  end
  local self = setmetatable({ several = cfg.several }, mt)
  if annotations.matches(cfg.data) then open_annotations(self, cfg) else open_rows(self, cfg) end
  self.name = self.set.name
  self.notes = self.set.notes or {}
  if #self.places == 0 then error(self.name .. ": there is nothing to prepare", 0) end
  return self
end

return M
