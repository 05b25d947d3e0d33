-- sources.lua - the registry of data sources: which reader opens what data.train_files and
-- data.val_files name.
--
--   sz.sources:register("squares", { help = "generated squares", match = match, open = open })
--
-- match(name)          true if this source reads `name`
-- open(name, options)  a data set: an object with
--     set:count()      how many rows there are
--     set:row(i)       row i from 1 (train/records.lua says what a row is); the caller frees
--                      row.image
--     set:image(i)     the path of row i's image, {bytes = of an image file, name = for messages},
--                      or nil when the row makes its image itself. Background threads read a path
--                      or bytes ahead of time, and set:row(i, image) gets the image that was read
--     set:meta(i)      what is known of row i without decoding anything, so that all rows can be
--                      checked before the first step (data/jsonl/source.lua); optional
--     set:fingerprint()   a text that changes with the rows; optional. A resumed run compares it,
--                      so it must not read images
--     set:paths()      {path, ...}: the files that the rows are read from; optional. The outcome of
--                      the check of all rows is kept while they and the images stay the same
--     set.ignore_masks true if its rows may have ignore_mask; optional
--     set.split        which rows of its files it has, where they hold several splits; optional
--     set.name         what messages call it; optional
--   and open() adds set:sample(k, seed) (sample.lua)
-- options: {split = "train" | "heldout" | "test" (not RefShapes), size = pixels, seed =, rows =,
-- level =, empty =, prompt_key =, answer_key =, image_key = names of columns, image_dir = where
-- relative paths of images start, several = whether solutions are lists of objects, check = false
-- if data/checks/check.lua follows, label = the setting that names the set, for messages}. A source
-- uses those that it knows.
--
--   sources.read_row(set, i, image)     row i; one line if the set returns no row
--
-- The sources are tried in the order of their names; "jsonl" comes last and reads any name.
-- A name on the Hugging Face hub that no other source knows becomes a folder of its cache first.
-- Leaves out: reading rows from the hub without storing them.

local annotation_source = require "segzero.data.annotations.source"
local core = require "segzero.core.ffi"
local hints = require "segzero.core.path_hints"
local hub = require "segzero.hub"
local image = require "segzero.formats.image"
local jsonl = require "segzero.data.jsonl.source"
local options_of = require "segzero.core.options"
local refshapes = require "segzero.data.refshapes.source"
local registry = require "segzero.core.registry"
local rows = require "segzero.data.rows"
local sample = require "segzero.data.sample"
local table_names = require "segzero.data.tables.names"
local table_source = require "segzero.data.tables.source"

local M = registry.new("data source", { required = { "match", "open" }, optional = { "help" } })

local FALLBACK = "jsonl"

M:register("annotations", {
  help = "annotations of COCO, refer, gRefCOCO or ReasonSeg, with their folder of images",
  match = annotation_source.matches,
  open = annotation_source.open,
})

M:register("refshapes", {
  help = "RefShapes: generated images of coloured shapes with referring sentences and masks",
  match = function(name) return name == "refshapes" end,
  open = function(_, options) return refshapes.open(options) end,
})

M:register("tables", {
  help = "Parquet or Arrow: a file, a pattern, a folder as the hub has it or "
    .. "save_to_disk writes it",
  match = table_names.matches,
  open = table_source.open,
})

local EMPTY = 0.1               -- share of questions about nothing in the image

M:register("refshapes_multi", {
  help = "RefShapes with any number of objects in a question, also none, for vision_reasoner",
  match = function(name) return name == "refshapes_multi" end,
  open = function(_, options)
    local own = { several = { empty = options.empty or EMPTY } }
    return refshapes.open(setmetatable(own, { __index = options }))
  end,
})

M:register(FALLBACK, {
  help = "a folder with data.jsonl and images, or a .jsonl file",
  match = function(name) return type(name) == "string" end,
  open = function(name, options) return jsonl.open(name, options) end,
})

-- Row i of a set, checked: a source of the user's may return anything. read: see above.
function M.read_row(set, i, read)
  local row = set:row(i, read)
  local name = set.name or "of the script"
  local message = "the data set %s: row(%d) %s; make it with segzero.data.rows.new"
  if type(row) ~= "table" then
    error(message:format(name, i, "returned " .. tostring(row)), 0)
  end
  if type(row.problem) ~= "string" then
    local what = ("has the problem %s, expected a string"):format(tostring(row.problem))
    error(message:format(name, i, what), 0)
  end
  if row.solution == nil then error(message:format(name, i, "has no solution"), 0) end
  if not image.is_image(row.image) then
    local what = ("has the image %s, expected an image"):format(tostring(row.image))
    error(message:format(name, i, what), 0)
  end
  if not row.images then rows.new(row) end
  return row
end

local function matching(name)
  for _, source in ipairs(M:names()) do
    if source ~= FALLBACK and M:get(source).match(name) then return source end
  end
  return FALLBACK
end

-- A source of the user's may have options of its own.
local BUILT_IN = { refshapes = true, refshapes_multi = true, jsonl = true, tables = true,
  annotations = true }
local GENERATED = { refshapes = true, refshapes_multi = true }
local OPTIONS = options_of.set { "split", "size", "seed", "rows", "level", "check", "empty",
  "prompt_key", "answer_key", "image_key", "image_dir", "several", "label" }

-- Generated images have no size, number or split of their own. Level as for error().
local function check_generated(options, level)
  for _, key in ipairs { "split", "size", "seed", "rows" } do
    if options[key] == nil then
      error(("data.open: refshapes needs the option '%s'"):format(key), level)
    end
  end
  if options.split ~= "train" and options.split ~= "heldout" then
    error(("data.open: split is %s, expected train or heldout"):format(tostring(options.split)),
      level)
  end
end

-- A level of error() as the function below sees it; 0 leaves the place out.
local function above(level)
  if level == 0 then return 0 end
  return level + 1
end

-- What a source of ours finds wrong blames the caller that level says, as for error().
local function open_own(source, name, options, level)
  local ok, set = pcall(M:get(source).open, name, options)
  if ok then return set end
  if core.is_interrupt(set) then error(set, 0) end
  local text = core.plain(set)
  if text == name .. ": No such file or directory" then text = text .. hints.question(name) end
  if options.label then text = ("%s: %s"):format(options.label, (text:gsub("^data set ", ""))) end
  error(text, above(level))
end

-- The folder of a name on the hub; another name stays.
local function from_hub(name, options, level)
  local ok, path = pcall(hub.data, name,
    { purpose = options.split, label = options.label or "data set" })
  if ok then return path end
  if core.is_interrupt(path) then error(path, 0) end
  error(core.plain(path), above(level))
end

-- Opens a data set by the name that the settings give it. level: as for error(); without it, errors
-- have no place, for a name in the settings.
function M.open(name, options, level)
  level = level or 0
  if type(name) ~= "string" then
    error(("data.open: a data set's name is expected, got %s"):format(tostring(name)), level)
  end
  options = options or {}
  local given = name
  local source = matching(name)
  if source == FALLBACK then
    name = from_hub(name, options, level)
    source = matching(name)
  end
  local set
  if BUILT_IN[source] then
    options_of.check("data.open", options, OPTIONS, level)
    if GENERATED[source] then check_generated(options, above(level)) end
    set = open_own(source, name, options, level)
  else
    set = M:get(source).open(name, options)
  end
  for _, method in ipairs { "count", "row" } do
    if type(set) ~= "table" or type(set[method]) ~= "function" then
      error(("the data source '%s' opened '%s' as something without %s()"):format(source, name,
        method), 0)
    end
  end
  set.name = set.name or name
  if name ~= given then set.name = given end
  return sample.give(set)
end

return M
