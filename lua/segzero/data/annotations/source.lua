-- source.lua - annotations as a data source: a row for each expression, with its solution.
--
--   local set = source.open("data/refer_seg/refcocog@val", { split = "train", image_dir = folder,
--     several = true })                      all optional; split: what the rows are for
--
-- problem: the expression. solution: Seg-Zero's string; VisionReasoner's list if options.several,
-- and if it is nil in sets whose rows may name any number of objects. Its boxes and points come
-- from the masks when a row is read, in the image's own pixels; set:meta(i) has the stated boxes,
-- for the checks. mask: all the row's objects, ignore_mask: what no answer is judged by.
-- Columns: image_id, ann_id, ref_id, sent_id, category, cat_id (COCO), is_sentence, width, height.
-- An entry with several expressions gives rows with ids that end in _1, _2, ...
-- Leaves out: choosing one expression at random, as LISA does in training.

local annotations = require "segzero.data.annotations"
local checksum = require "segzero.core.checksum"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local image = require "segzero.formats.image"
local rows = require "segzero.data.rows"
local solution = require "segzero.data.annotations.solution"

local M = {}

M.matches = annotations.matches

local methods = {}
local mt = { __index = methods }

function methods:count() return self.n end

function methods:where(i)
  local where = self.entries:where(self.entry[i])
  if self.entries:texts(self.entry[i]) == 1 then return where end
  return ("%s text %d"):format(where, self.text[i])
end

-- ---- rows ----
local function columns_of(entry, k)
  local columns = { image_id = entry.image_id, ann_id = entry.ann_id, ref_id = entry.ref_id,
    category = entry.category, cat_id = entry.cat_id, is_sentence = entry.is_sentence,
    image = entry.image, width = entry.width, height = entry.height }
  if entry.sent_ids then columns.sent_id = entry.sent_ids[k] end
  return columns
end

-- The mask of all objects, one value for all rows of the entry; nil if an object has none.
local function mask_value(self, entry)
  for _, object in ipairs(entry.objects) do
    if not object.mask then return nil end
  end
  if self.mask_of ~= entry then
    self.mask = annotations.mask(entry)
    self.mask_of = entry
  end
  return self.mask
end

local function meta_of(self, i, entry)
  local k = self.text[i]
  local id = entry.id
  if #entry.texts > 1 then id = ("%s_%d"):format(id, k) end
  local columns = columns_of(entry, k)
  columns.id = id
  columns.problem = entry.texts[k]
  return { where = self:where(i), index = i, id = id, problem = entry.texts[k],
    image = entry.image, mask = mask_value(self, entry), ignore_mask = entry.ignore,
    columns = columns }
end

-- The entry of row i. The rows of an entry follow each other, so the last one is kept.
local function entry_of(self, i)
  local number = self.entry[i]
  if self.kept_number ~= number then
    self.kept = self.entries:meta(number)
    self.kept_number = number
  end
  return self.kept
end

function methods:meta(i)
  rows.check_number(self, i, 2)
  local entry = entry_of(self, i)
  local meta = meta_of(self, i, entry)
  meta.solution = solution.text(solution.stated(entry), self.several)
  meta.columns.solution = meta.solution
  return meta
end

function methods:image(i)
  rows.check_number(self, i, 2)
  return entry_of(self, i).image
end

local function load_image(meta)
  local ok, img = pcall(image.load, meta.image)
  if ok then return img end
  if core.is_interrupt(img) then error(img, 0) end
  error(("%s: %s"):format(meta.where, core.plain(img)), 0)
end

-- read: the row's image if it has been read already.
function methods:row(i, read)
  rows.check_number(self, i, 2)
  local entry = entry_of(self, i)
  local meta = meta_of(self, i, entry)
  local img = read or load_image(meta)
  local objects = solution.drawn(entry, img.width, img.height)
  meta.columns.image = nil
  meta.columns.solution = solution.text(objects, self.several)
  return rows.new {
    id = meta.id, index = i, problem = meta.problem, solution = meta.columns.solution, image = img,
    mask = rows.mask_maker(meta.where, meta.mask, img),
    ignore_mask = rows.mask_maker(meta.where, entry.ignore, img),
    columns = meta.columns,
  }
end

-- ---- the set ----
-- Several splits have the same files.
function methods:fingerprint()
  local list = {}
  for i, path in ipairs(self.entries.files) do list[i] = checksum.file(path) end
  list[#list + 1] = ("%s %d"):format(self.split or "", self.n)
  return checksum.text(table.concat(list, " "))
end

-- The files that the rows come from.
function methods:paths()
  local list = {}
  for i, path in ipairs(self.entries.files) do list[i] = path end
  list[#list + 1] = self.entries.image_folder
  return list
end

function mt:__tostring() return ("data set %s (%d rows)"):format(self.name, self.n) end

-- Numbers the rows: of which entry, and which of its texts.
local function number_rows(self)
  local entries = self.entries
  local total = 0
  for e = 1, entries:count() do total = total + entries:texts(e) end
  self.entry = ffi.new("int32_t[?]", total + 1)
  self.text = ffi.new("int32_t[?]", total + 1)
  for e = 1, entries:count() do
    for k = 1, entries:texts(e) do
      self.n = self.n + 1
      self.entry[self.n] = e
      self.text[self.n] = k
    end
  end
end

function M.open(name, options)
  options = options or {}
  local entries = annotations.open(name, { image_dir = options.image_dir, purpose = options.split })
  local several = options.several
  if several == nil then several = entries.several end
  local folder = entries.path:match "^(.*)/[^/]*$" or "."
  local self = setmetatable({ name = name, entries = entries, several = several, folder = folder,
    split = entries.split, notes = entries.notes, ignore_masks = entries.ignore_masks, n = 0 }, mt)
  number_rows(self)
  return self
end

return M
