-- filter.lua - keeps the objects whose mask SAM2 finds from their box and first point, as
-- VisionReasoner's data were chosen.
--
--   local filter = filters.open(cfg)      cfg.sam2_filter, sam2_path, sam2_dtype; nil: no filter
--   local judge = filter:judge(entry)     f(mask, object) -> whether the IoU is sam2_filter or more
--
-- SAM2 sees the image at its own size, once for all objects of an entry, and gives one mask.

local sam2 = require "segzero.models.sam2"
local segmenter = require "segzero.inference.segmenter"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.open(cfg)
  if cfg.sam2_filter == 0 then return nil end
  local sam = sam2.sam2(cfg.sam2_path, { dtype = cfg.sam2_dtype })
  return setmetatable({ sam = sam, least = cfg.sam2_filter }, mt)
end

function methods:judge(entry)
  local is_set = false
  return function(mask, object)
    if not is_set then
      local img = entry.load()
      self.sam:set_image(img)
      img:free()
      is_set = true
    end
    local found = self.sam:predict { box = object.box, points = { object.points[1] },
      multimask = false }
    local shape = mask:shape()
    local both, either = segmenter.compare(found.masks:reshape(shape[1], shape[2]), mask)
    found.masks:free()
    found.low_res:free()
    return either > 0 and both / either >= self.least
  end
end

function mt:__tostring()
  return ("objects that SAM2 finds with an IoU of %g or more: %s"):format(self.least,
    tostring(self.sam))
end

return M
