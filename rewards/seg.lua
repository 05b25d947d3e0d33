-- seg.lua - Seg-Zero's loose single-object reward (compute_score: seg), 0 to 5: as seg_strict.lua,
-- but keys only need to contain a word.
--
--   local reward = require "rewards.seg"
--   local score, parts, why = reward(response_text, ground_truth, sample)
--
-- Keys ignore upper and lower case. The box is the first key with "bbox". The format term asks for
-- two further keys with "point" (a second bbox key may be one of them) and looks only at lengths,
-- so strings of 4 and 2 characters pass. The points term takes the first two keys with "points",
-- and one of them may be the box's own key. parts, why and sample are those of seg_strict.lua, the
-- terms are in seg_terms.lua.

local reasons = require "rewards.reasons"
local terms = require "rewards.seg_terms"

local function select(object)
  local map = object.map
  local bbox_key
  local point_keys = {}
  local points_keys = {}
  for _, key in ipairs(object.keys) do
    local word = key:lower()
    if not bbox_key and word:find("bbox", 1, true) then
      bbox_key = key
    elseif word:find("point", 1, true) then
      point_keys[#point_keys + 1] = key
    end
    if word:find("points", 1, true) then points_keys[#points_keys + 1] = key end
  end
  -- A missing key is nil, and map[nil] is nil.
  local bbox = map[bbox_key]
  local points_ok = terms.length(map[point_keys[1]]) == 2 and terms.length(map[point_keys[2]]) == 2
  local format_ok = points_ok and terms.length(bbox) == 4
  return format_ok, bbox, map[points_keys[1]], map[points_keys[2]]
end

local READING = { select = select, asked = "one with bbox and two with points" }

return function(response_text, ground_truth, sample)
  local score, parts = terms.compute(response_text, ground_truth, sample, select)
  return score, parts, reasons.one(response_text, ground_truth, sample, READING)
end
