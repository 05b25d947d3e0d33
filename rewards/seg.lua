-- Seg-Zero's loose single-object reward (compute_score: seg), 0 to 5: as seg_strict.lua, but keys only need to contain a word.
--
--   local reward = require "rewards.seg"
--   local score, parts = reward(response_text, ground_truth, sample)
--
-- Upper and lower case are one. The box is the first key with "bbox". The format term wants two further keys with "point"
-- (a second bbox key may be one of them) and looks only at lengths, so strings of 4 and 2 characters pass. The points term
-- takes the first two keys with "points", and those may be the box's own key. parts, sample and terms: seg_strict.lua.

local terms = require "rewards.seg_terms"

local function select(object)
  local map = object.map
  local bbox_key, point_keys, points_keys = nil, {}, {}
  for _, key in ipairs(object.keys) do
    local word = key:lower()
    if not bbox_key and word:find("bbox", 1, true) then
      bbox_key = key
    elseif word:find("point", 1, true) then
      point_keys[#point_keys + 1] = key
    end
    if word:find("points", 1, true) then points_keys[#points_keys + 1] = key end
  end
  -- A key that is missing is nil here, and so is what the map holds under nil.
  local bbox, first, second = map[bbox_key], map[point_keys[1]], map[point_keys[2]]
  local format_ok = terms.length(bbox) == 4 and terms.length(first) == 2 and terms.length(second) == 2
  return format_ok, bbox, map[points_keys[1]], map[points_keys[2]]
end

return function(response_text, ground_truth, sample)
  -- No tail call: it would drop this frame, and compute's errors count on it to blame the caller.
  local score, parts = terms.compute(response_text, ground_truth, sample, select)
  return score, parts
end
