-- entries.lua - what training rows are made of: a question, an image and its objects' masks, from
-- annotations or from any data set whose rows have masks.
--
--   local list = entries.open(cfg)         cfg: the settings of recipes/prepare_data.lua
--   list:count()
--   list:get(i) -> {
--     id = text, problem = text, where = place for messages,
--     image = path or {bytes = of an image file, name =}, or nil,
--     load = f() -> the image, which the caller frees,
--     size = f() -> width, height,
--     masks = { f(width, height) -> u8 tensor [height, width] that the caller frees, ... } }
--   list:fingerprint()                     a text that changes with the annotations or rows
--   list.name, list.notes                  for messages
--
-- One object: a row for each expression, with the mask of all that it means. cfg.several: a list of
-- objects. Refs of refer and rows of a data set about the same image are then one entry, with the
-- sentences 'a' and 'b'; an expression of gRefCOCO, a category of COCO and a question of ReasonSeg
-- are an entry each. Sentences are stripped and lower-cased as Seg-Zero's script does.
-- Errors are one line that starts with the place. Leaves out: objects without a mask.

local annotations = require "segzero.data.annotations"
local checksum = require "segzero.core.checksum"
local files = require "segzero.core.files"
local image = require "segzero.formats.image"
local mask_of = require "segzero.formats.mask"
local prompt = require "segzero.data.prompt"
local sources = require "segzero.data.sources"
local table_names = require "segzero.data.tables.names"

local M = {}

local methods = {}
local mt = { __index = methods }

local IDS_SHOWN = 3             -- annotations in an id, as Seg-Zero has them

-- ---- texts ----
local function cleaned(text)
  return prompt.normalize((text:gsub("^%s+", ""):gsub("%s+$", "")), ".?!")
end

local function quoted(texts) return "'" .. table.concat(texts, "' and '") .. "'" end

local function problem_of(self, texts)
  if self.several then return quoted(texts) end
  return texts[1]
end

-- ---- masks ----
local function drawing(value, folder)
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
local function first_ids(metas)
  local list = {}
  for _, meta in ipairs(metas) do
    for id in meta.ann_id:gmatch "[^,]+" do
      if #list < IDS_SHOWN then list[#list + 1] = id end
    end
  end
  return table.concat(list, "_")
end

-- The id of an entry; k: its sentence, nil for several refs in one.
local function id_of(self, metas, k)
  local meta = metas[1]
  if not meta.ref_id then
    local id = ("%s_%s"):format(meta.category and "coco" or "reasonseg", meta.id)
    return k > 1 and ("%s_%d"):format(id, k) or id
  end
  local id = ("%s_%s"):format(self.set.title, first_ids(metas))
  if not k then return id end
  local sentence = meta.sent_ids and meta.sent_ids[k]
  return ("%s_%s"):format(id, sentence or ("%.17g_%d"):format(meta.ref_id, k))
end

local function add_masks(self, list, meta)
  if not self.several then
    if #meta.objects > 0 then list[1] = drawing(annotations.mask(meta)) end
    return
  end
  for _, object in ipairs(meta.objects) do
    if object.mask then list[#list + 1] = drawing(object.mask) end
  end
end

-- An entry of annotations: one sentence of one of the set's, or several about an image.
local function annotated(self, place)
  local metas = {}
  local texts = {}
  local masks = {}
  for n, i in ipairs(place.members) do
    local meta = self.set:meta(i)
    metas[n] = meta
    texts[n] = cleaned(meta.raw[place.sentence or 1])
    add_masks(self, masks, meta)
  end
  local entry = { id = id_of(self, metas, place.sentence), problem = problem_of(self, texts),
    where = metas[1].where, masks = masks }
  set_stored(entry, metas[1].image)
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

local function files_print(set)
  local list = {}
  for i, path in ipairs(set.files) do list[i] = checksum.file(path) end
  return checksum.text(table.concat(list, " "))
end

local function open_annotations(self, cfg)
  self.set = annotations.open(cfg.data, { image_dir = cfg.image_dir, purpose = "train" })
  local is_refer = self.set.title ~= nil and not self.set.several
  if cfg.several and is_refer then
    self.places = places_of_images(self.set)
  else
    self.places = places_of_sentences(self.set, cfg.sentences == "all")
  end
  self.make = annotated
  self.print = files_print
end

-- ---- data sets ----
-- The mask of row i, read with the whole row only if the table holds the image.
local function add_row(self, entry, i)
  local meta = self.set:meta(i)
  if meta.mask == nil then error(meta.where .. ": the row has no mask", 0) end
  entry.masks[#entry.masks + 1] = drawing(meta.mask, meta.folder)
  return meta
end

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
  local entry = { masks = {} }
  local texts = {}
  local ids = {}
  for n, i in ipairs(place.members) do
    local meta = add_row(self, entry, i)
    texts[n] = cleaned(meta.problem)
    if n <= IDS_SHOWN then ids[n] = row_id(meta, i) end
    if n == 1 then
      entry.where = meta.where
      image_of(self, entry, meta, i)
    end
  end
  entry.id = table.concat(ids, "_")
  entry.problem = problem_of(self, texts)
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
    check = false }
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
