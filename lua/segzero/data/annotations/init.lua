-- init.lua - reads annotations of objects: COCO, refer and gRefCOCO, LISA's ReasonSeg.
--
--   local annotations = require "segzero.data.annotations"
--   local set = annotations.open(name, { image_dir = folder, purpose = "train" })    both optional
--       name: see names.lua, such as "data/refer_seg/refcocog@val" or "data/ReasonSeg@val". A name
--       that means no annotations, a missing file or a damaged one is an error of one line.
--       image_dir: where the images are, if they are not where the layout has them.
--       purpose: "train" means all texts of ReasonSeg, and the split train where the name has none;
--       "heldout" the split val, "test" the split test of refer
--   annotations.matches(name)    whether `name` means annotations
--
--   set:count()         how many entries there are
--   set:meta(i)         entry i from 1; reads its annotations now, and no image:
--     id                text, once in the set
--     where             "file ref_id 12", for messages
--     image             the path of its image, which may not exist
--     width, height     of the image in pixels as stated; ReasonSeg: of the image's file, or
--                       nil if it cannot be read
--     texts             {text, ...}, expressions that mean the same objects; raw: as typed
--     objects           {{ id =, box = {x0, y0, x1, y1} | nil, mask = value | nil, category =,
--                       crowd = }, ...}: box in pixels of the image, as stated, with fractions;
--                       mask: a value for formats/mask.lua, which draws it: mask.read(object.mask,
--                       {width =, height =}). {}: the expression names nothing in the image
--                       (gRefCOCO)
--     ignore            a value of the same kind: pixels that no answer is judged by; nil for none
--     image_id, ann_id  as text; ann_id of several objects is joined with ",", "-1" for none
--     ref_id, sent_ids, category, cat_id, split, is_sentence      where the layout has them
--     An entry that cannot be read is an error that starts with set:where(i).
--   set:where(i)        its place
--   set:texts(i)        how many texts entry i has, without reading more than that
--   set.several         whether entries may have no, one or several objects; false: exactly one
--   set.ignore_masks    true if entries may have ignore
--   set.name, set.files, set.notes      for messages, for a fingerprint, what is left out
--
--   annotations.mask(entry)      the mask of all its objects, a value for formats/mask.lua; also
--                                for no object
--
-- An entry is a ref (refer), an image and a category (COCO), an image (ReasonSeg).
-- Leaves out: rows with a question and a solution (source.lua), reading images.

local names = require "segzero.data.annotations.names"
local objects = require "segzero.data.annotations.objects"

local M = {}

M.matches = names.matches

function M.mask(entry)
  if #entry.objects == 0 then return { nothing = true } end
  return objects.union(entry.objects)
end

-- The splits of ReasonSeg and COCO that are meant where a name has none.
local USUAL = { train = { "train" }, heldout = { "val" } }

local function usual_split(choice, purpose)
  local usual = not choice.split and not choice.below and USUAL[purpose] or {}
  for _, split in ipairs(usual) do
    local found = names.find(choice.path .. "@" .. split)
    if found and found.layout ~= "choice" then return found end
  end
  names.fail(choice)
end

function M.open(name, options)
  options = options or {}
  local found = names.find(name)
  if not found then
    error(("%s: these are no annotations of COCO, refer or ReasonSeg"):format(name), 0)
  end
  if found.layout == "choice" then found = usual_split(found, options.purpose) end
  found.image_dir = options.image_dir
  found.purpose = options.purpose
  local set = require("segzero.data.annotations." .. found.layout).open(found)
  set.name = name
  set.notes = set.notes or {}
  return set
end

return M
