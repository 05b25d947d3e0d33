-- mask_prompts.lua - prompts for training SAM2: a box moved a little, a box with two points, or
-- points alone.
--
--   local prompt, masks = mask_prompts.draw(r, scene, object, options)    r: refshapes/rng.lua
--     prompt  {box =, points =, labels =} in pixels of the scene, as the predictor takes it
--     masks   which of SAM2's masks it trains: "both" (mask 0 and the best of the other three), or
--             "multi" (only the latter: a single point may mean several things)
--   mask_prompts.for_decoder(prompt, scene, sam, image)    for sam:decode, image = 1, 2, ...
--
-- Leaves out: corrective clicks, mask prompts.

local M = {}

local ATTEMPTS = 200          -- to meet a pixel of the wanted kind
local OUTSIDE = 8             -- pixels around the box in which negative points are drawn

-- A pixel of the mask (value 1), or outside it and near its box (value 0); nil when none was met.
function M.pixel(r, scene, object, value)
  local box = object.bbox
  local margin = 0
  if value == 0 then margin = OUTSIDE end
  for _ = 1, ATTEMPTS do
    local x = r:int(math.max(0, box[1] - margin), math.min(scene.width - 1, box[3] + margin))
    local y = r:int(math.max(0, box[2] - margin), math.min(scene.height - 1, box[4] + margin))
    if object.mask[y * scene.width + x] == value then return { x, y } end
  end
  return nil
end

-- A box whose sides have moved by up to options.jitter of its extent, most by much less.
local function moved(r, scene, box, options)
  local much = options.jitter * r:uniform()
  local w = box[3] - box[1] + 1
  local h = box[4] - box[2] + 1
  local function move(v, extent, limit)
    return math.min(math.max(v + (2 * r:uniform() - 1) * much * extent, 0), limit)
  end
  local x0 = move(box[1], w, scene.width - 1)
  local y0 = move(box[2], h, scene.height - 1)
  local x1 = move(box[3], w, scene.width - 1)
  local y1 = move(box[4], h, scene.height - 1)
  -- A jitter over 0.5 may turn the box around.
  return { math.min(x0, x1), math.min(y0, y1), math.max(x0, x1), math.max(y0, y1) }
end

-- Adds a point to a prompt, unless none was found.
local function add_point(prompt, point, label)
  if not point then return end
  prompt.points[#prompt.points + 1] = point
  prompt.labels[#prompt.labels + 1] = label
end

-- Seg-Zero's question: a box with two points, in half of the cases those of the true answer.
local function box_and_points(r, scene, object, options)
  local prompt = { points = {}, labels = {} }
  local own = object.points and r:chance(0.5) and object.points
  for k = 1, 2 do
    local point
    if own then point = own[k] else point = M.pixel(r, scene, object, 1) end
    add_point(prompt, point, 1)
  end
  prompt.box = moved(r, scene, object.bbox, options)
  return prompt
end

-- One point, or two or three of which the last may be outside.
local function points_alone(r, scene, object)
  local prompt = { points = {}, labels = {} }
  local n = 1
  if not r:chance(0.5) then n = r:int(2, 3) end
  for _ = 1, n do add_point(prompt, M.pixel(r, scene, object, 1), 1) end
  if n == 1 then return prompt, "multi" end
  if r:chance(0.5) then add_point(prompt, M.pixel(r, scene, object, 0), 0) end
  return prompt, "both"
end

function M.draw(r, scene, object, options)
  local u = r:uniform()
  if u < options.box then return { box = moved(r, scene, object.bbox, options) }, "both" end
  if u < options.box + options.box_points then
    return box_and_points(r, scene, object, options), "both"
  end
  return points_alone(r, scene, object)
end

-- In pixels of the model's image, with the padding point that the predictor adds.
function M.for_decoder(prompt, scene, sam, image)
  local kx = sam.image_size / scene.width
  local ky = sam.image_size / scene.height
  local points = {}
  local function add(x, y, label) points[#points + 1] = { x * kx, y * ky, label } end
  if prompt.box then
    add(prompt.box[1], prompt.box[2], 2)
    add(prompt.box[3], prompt.box[4], 3)
  end
  for i, p in ipairs(prompt.points or {}) do add(p[1], p[2], prompt.labels[i]) end
  points[#points + 1] = { 0, 0, -1 }
  return { image = image, points = points }
end

return M
