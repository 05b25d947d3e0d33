-- row_check.lua - the checks of one row that need no pixels of its image.
--
--   local checker = row_check.new { faults = list, facts = file_facts.open(folder),
--     reward = "seg_strict", prompt = counter,        these two are optional
--     masks = true,                                   whether masks will be read
--     empty_masks = true,                             one with nothing inside is no fault: the
--                                                     question has no target
--     solution_frame = spec }                         of frame.settings; nil: "auto"
--   checker:row(i, meta)                  meta: what set:meta(i) returns (data/jsonl/source.lua)
--
-- reward: a name in rewards/; its solutions must be readable. "" judges a row that needs a solution
-- or a mask, as evaluation does; nil judges none, because only a user's own reward knows its
-- solutions. prompt: train/run/prompt_length.lua. What is wrong is added to `faults`.
--
-- A solution's coordinates may be anywhere in its frame (data/frame.lua). width and height state
-- the image's size; img_width and img_height do too, unless the image is 840 x 840: then they are
-- the size before Seg-Zero's resizing. Leaves out: decoding images, what a user's own reward needs.

local cjson = require "cjson"
local frame = require "segzero.data.frame"
local key_set = require "segzero.data.checks.key_set"
local mask_of = require "segzero.formats.mask"
local truth = require "segzero.data.truth"

local M = {}

local SEG_ZERO_SIDE = frame.SEG_ZERO_SIDE
-- Frames that other programs write, for the hint at a box that leaves its own.
local KNOWN_FRAMES = { "840x840", "1000" }
-- Rewards that read Seg-Zero's string; mask_iou reads the mask alone.
local READS_STRING = { seg = true, seg_strict = true }

local methods = {}
local mt = { __index = methods }

function M.new(options)
  return setmetatable({ options = options, ids = key_set.new(), rows = {} }, mt)
end

local function fault(self, kind, meta, message, ...)
  self.options.faults:add(kind, meta.where, message:format(...))
end

-- ---- the id ----
local function check_id(self, i, meta)
  if meta.id == nil then return end
  local number, is_new = self.ids:add(meta.id)
  if is_new then
    -- A number is its row's unless a row before had no id, or one that was taken.
    if number ~= i then self.rows[number] = i end
    return
  end
  local place = self.options.where(self.rows[number] or number)
  fault(self, "id", meta, "the id '%s' is also that of %s", meta.id, place:match "[^/]*$")
end

-- ---- sizes ----
-- The size that two columns state, or nil.
local function stated(columns, width, height)
  local w = tonumber(columns[width])
  local h = tonumber(columns[height])
  if not w or not h then return nil end
  return w, h
end

local function check_stated(self, meta, fact, width, height)
  local w, h = stated(meta.columns, width, height)
  if not w or (w == fact.width and h == fact.height) then return end
  fault(self, "size", meta, "the image %s has %d x %d pixels, the columns %s and %s say %g x %g",
    meta.columns.image, fact.width, fact.height, width, height, w, h)
end

local function check_sizes(self, meta, fact)
  check_stated(self, meta, fact, "width", "height")
  local is_resized = fact.width == SEG_ZERO_SIDE and fact.height == SEG_ZERO_SIDE
  if not is_resized then check_stated(self, meta, fact, "img_width", "img_height") end
end

-- ---- the solution ----
-- Its objects as {{bbox =, points =}, ...}, or nil and what is missing.
local function objects_of(solution)
  local box, points = truth.read(solution)
  if box or points then return { { bbox = box, points = points or {} } }, box and points end
  local ok, list = pcall(cjson.decode, solution)
  if not ok or type(list) ~= "table" then return nil end
  if next(list) == nil and truth.is_list(solution) then return {}, false end
  if list[1] == nil then return nil end
  local objects = {}
  for i, entry in ipairs(list) do
    local bbox = type(entry) == "table" and entry.bbox_2d
    if type(bbox) ~= "table" or #bbox ~= 4 then return nil end
    local point = entry.point_2d
    objects[i] = { bbox = bbox, points = type(point) == "table" and { point } or {} }
  end
  return objects, false
end

-- Whether a row without a solution has something to compare an answer with.
local function states_truth(meta)
  return meta.mask ~= nil or meta.columns.bbox ~= nil or meta.columns.count ~= nil
end

local function check_readable(self, meta, objects, is_string)
  local reward = self.options.reward
  if READS_STRING[reward] and objects and truth.is_list(meta.solution) then
    fault(self, "solution", meta, "the solution is a list of objects, which the reward %s does not "
      .. "read; use recipes/vision_reasoner_grpo.lua, or "
      .. "worker.reward.compute_score=vision_reasoner", reward)
  elseif READS_STRING[reward] and not is_string then
    fault(self, "solution", meta, "the reward %s reads <box>(x,y),(x,y)</box><points>(x,y),(x,y)"
      .. "</points>, and the solution is %q", reward, meta.solution:sub(1, 60))
  elseif reward == "vision_reasoner" and (is_string or not objects) then
    fault(self, "solution", meta, "the reward vision_reasoner reads [{\"bbox_2d\": [...], "
      .. "\"point_2d\": [x,y]}, ...], and the solution is %q", meta.solution:sub(1, 60))
  elseif reward == "" and not objects and not states_truth(meta) then
    fault(self, "solution", meta, "the row has no mask and its solution no box: %q",
      meta.solution:sub(1, 60))
  elseif reward == "mask_iou" and meta.mask == nil then
    fault(self, "mask", meta, "the reward mask_iou needs the column 'mask'")
  end
end

local function are_numbers(list, n)
  if #list ~= n then return false end
  for _, v in ipairs(list) do
    if type(v) ~= "number" then return false end
  end
  return true
end

-- Why the box is none inside width x height; nil if it is.
local function box_fault(box, width, height)
  if not are_numbers(box, 4) then return "is no box of four numbers" end
  local x0, y0, x1, y1 = unpack(box, 1, 4)
  if x0 >= x1 or y0 >= y1 then return "has its corners in the wrong order" end
  if x0 < 0 or y0 < 0 or x1 > width or y1 > height then
    return ("leaves the %d x %d pixels"):format(width, height)
  end
end

local function point_fault(point, width, height)
  if not are_numbers(point, 2) then return "is no point of two numbers" end
  local x, y = unpack(point, 1, 2)
  if x < 0 or y < 0 or x > width or y > height then
    return ("leaves the %d x %d pixels"):format(width, height)
  end
end

local function text_of(list)
  local parts = {}
  for i, v in ipairs(list) do parts[i] = tostring(v) end
  return "[" .. table.concat(parts, ",") .. "]"
end

-- The setting that may be meant if all coordinates fit into its frame but not into their own.
local function hint(self, object)
  local setting = self.options.solution_frame or "auto"
  if setting ~= "auto" then return "" end
  for _, name in ipairs(KNOWN_FRAMES) do
    local f = frame.settings { solution_frame = name }.solution
    local fits = not object.bbox or not box_fault(object.bbox, f.width, f.height)
    for _, point in ipairs(object.points) do
      fits = fits and not point_fault(point, f.width, f.height)
    end
    if fits then return (", or data.solution_frame=%s is meant"):format(name) end
  end
  return ""
end

local function check_object(self, meta, object, f)
  local function bad(what, list, why)
    local meant = ""
    if why:find "^leaves" then meant = hint(self, object) end
    fault(self, "box", meta, "the %s %s %s%s", what, text_of(list), why, meant)
  end
  if object.bbox then
    local why = box_fault(object.bbox, f.width, f.height)
    if why then return bad("box", object.bbox, why) end
  end
  for _, point in ipairs(object.points) do
    local why = point_fault(point, f.width, f.height)
    if why then return bad("point", point, why) end
  end
end

local function check_solution(self, meta, fact)
  if self.options.reward == nil then return end
  local objects, is_string = objects_of(meta.solution)
  check_readable(self, meta, objects, is_string)
  if not fact then return end
  local f = frame.solution(self.options.solution_frame or "auto", fact)
  for _, object in ipairs(objects or {}) do check_object(self, meta, object, f) end
end

-- ---- the mask ----
local function file_mask_fault(self, meta, fact, path)
  local name = "the mask " .. path
  local found, why = self.options.facts:mask(mask_of.in_folder(meta.folder, path))
  if not found then return why end
  local ok, reason = pcall(mask_of.check_size, name, found.width, found.height, fact)
  if not ok then return reason end
  if found.empty ~= 0 and not self.options.empty_masks then return mask_of.empty(name) end
end

-- Rows about the same object may share its mask, one after the other.
local function stored_mask_fault(self, mask, fact)
  local last = self.last
  local is_same = type(mask) == "table" and last and last.mask == mask
    and last.width == fact.width and last.height == fact.height
  if not is_same then
    last = { mask = mask, width = fact.width, height = fact.height,
      empty = self.options.empty_masks }
    last.why = mask_of.fault(mask, last)
    self.last = last
  end
  return last.why
end

-- A row with an empty list of boxes has no target, and needs no mask.
local function names_nothing(self, meta)
  local boxes = meta.columns.bbox
  return self.options.empty_masks and type(boxes) == "table" and next(boxes) == nil
end

local function check_mask(self, meta, fact)
  if meta.mask == nil or not self.options.masks or names_nothing(self, meta) then return end
  local path = mask_of.file(meta.mask)
  local why
  if path then
    why = file_mask_fault(self, meta, fact, path)
  else
    why = stored_mask_fault(self, meta.mask, fact)
  end
  if why then fault(self, "mask", meta, "%s", why) end
end

-- ---- the prompt ----
local function check_prompt(self, meta, fact)
  local prompt = self.options.prompt
  if not prompt then return end
  if not meta.columns.problem:find "%S" then
    return fault(self, "problem", meta, "the column 'problem' is empty")
  end
  local why, kind = prompt:fault(meta, fact)
  if why then fault(self, kind, meta, "%s", why) end
end

-- ---- one row ----
-- The image's size; nil and why it cannot be read.
local function image_fact(self, meta)
  if meta.size then return meta.size(self.options.facts) end
  return self.options.facts:image(meta.image)
end

function methods:row(i, meta)
  check_id(self, i, meta)
  local fact, why = image_fact(self, meta)
  check_solution(self, meta, fact)
  if not fact then return fault(self, "image", meta, "%s", why) end
  check_sizes(self, meta, fact)
  check_mask(self, meta, fact)
  check_prompt(self, meta, fact)
end

return M
