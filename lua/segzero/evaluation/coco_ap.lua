-- coco_ap.lua - average precision and recall of boxes, as pycocotools' COCOeval computes them
-- (bbox, the default parameters): the order of ties, crowds and the sizes of objects are as there.
--
--   local truth = coco_ap.read(path)          COCO's instances_*.json
--   local s = coco_ap.summary(truth, found)
--     truth: { images = {id, ...}, categories = {id, ...}, boxes = {{image =, category =,
--              box = {x, y, width, height}, area =, crowd = bool}, ...} }
--     found: {{image =, category =, box = {x, y, width, height}, score =}, ...}
--   s.AP, s.AP50, s.AP75, s.APs, s.APm, s.APl, s.AR1, s.AR10, s.AR100, s.ARs, s.ARm, s.ARl
--                                             -1 where no true box counts, as there
--   coco_ap.lines(s)                          COCOeval's twelve lines
--
-- A found box of an image that the truth does not have is an error; one of another category is left
-- out, as there. Leaves out: masks, keypoints, other thresholds.

local fields = require "segzero.evaluation.fields"
local files = require "segzero.core.files"

local M = {}

local IOU_STEPS = 10            -- thresholds 0.50 to 0.95
local RECALL_STEPS = 101        -- 0 to 1
local MOST_FOUND = 100          -- of an image and category
local TINY = 2.220446049250313e-16
local SIZES = {
  all = { 0, 1e10 }, small = { 0, 32 ^ 2 }, medium = { 32 ^ 2, 96 ^ 2 }, large = { 96 ^ 2, 1e10 },
}

-- numpy's linspace
local function linspace(first, last, n)
  local list = {}
  local step = (last - first) / (n - 1)
  for i = 1, n do list[i] = (i - 1) * step + first end
  list[n] = last
  return list
end

local IOUS = linspace(0.5, 0.95, IOU_STEPS)
local RECALLS = linspace(0, 1, RECALL_STEPS)

-- Sorted by key(x), falling; equal ones keep their order.
local function sorted_by(list, key)
  local order = {}
  for i, x in ipairs(list) do order[i] = { x = x, key = key(x), i = i } end
  table.sort(order, function(a, b)
    if a.key ~= b.key then return a.key > b.key end
    return a.i < b.i
  end)
  local out = {}
  for i, entry in ipairs(order) do out[i] = entry.x end
  return out
end

-- ---- reading ----
local function annotation_of(a, path, i)
  if type(a) ~= "table" or not fields.is_box(a.bbox) or a.image_id == nil
      or a.category_id == nil then
    error(("%s: annotation %d has no image_id, category_id and bbox of 4 numbers"):format(path,
      i), 0)
  end
  local b = a.bbox
  local area = a.area or b[3] * b[4]
  if not fields.is_number(area) then
    error(("%s: the area of annotation %d is no number"):format(path, i), 0)
  end
  return { image = a.image_id, category = a.category_id, box = b, area = area,
    crowd = a.iscrowd == 1 }
end

-- The ids of a list of objects.
local function ids_of(json, key, path)
  local ids = {}
  for i, one in ipairs(json[key]) do
    ids[i] = type(one) == "table" and one.id or nil
    if ids[i] == nil then error(("%s: entry %d of '%s' has no id"):format(path, i, key), 0) end
  end
  return ids
end

function M.read(path)
  local json = files.read_json_object(path)
  for _, key in ipairs { "images", "categories", "annotations" } do
    if type(json[key]) ~= "table" then error(("%s: no list '%s' in it"):format(path, key), 0) end
  end
  local truth = { images = ids_of(json, "images", path),
    categories = ids_of(json, "categories", path), boxes = {}, name = path }
  for i, a in ipairs(json.annotations) do truth.boxes[i] = annotation_of(a, path, i) end
  return truth
end

-- ---- one image and category ----
-- Overlap of a found and a true box; with a crowd, the share of the found box inside it.
local function overlap(d, g)
  local a = d.box
  local b = g.box
  local width = math.min(a[1] + a[3], b[1] + b[3]) - math.max(a[1], b[1])
  if width <= 0 then return 0 end
  local height = math.min(a[2] + a[4], b[2] + b[4]) - math.max(a[2], b[2])
  if height <= 0 then return 0 end
  local inside = width * height
  local union = a[3] * a[4]
  if not g.crowd then union = union + b[3] * b[4] - inside end
  return inside / union
end

-- The true box that the found box d takes at this threshold, or nil. The true boxes that count come
-- first; taken: those that have one already.
local function best_match(d, true_boxes, counts, taken, threshold)
  local best = math.min(threshold, 1 - 1e-10)
  local match
  for g = 1, #true_boxes do
    local is_free = not taken[g] or true_boxes[g].crowd
    if is_free then
      if match and counts[match] and not counts[g] then break end
      local iou = d.overlaps[true_boxes[g]]
      if iou >= best then
        best = iou
        match = g
      end
    end
  end
  return match
end

-- The true boxes with those that count for this size first, and which these are.
local function counted_first(true_boxes, size)
  local list = {}
  local counts = {}
  for _, wanted in ipairs { true, false } do
    for _, g in ipairs(true_boxes) do
      local does = not g.crowd and g.area >= size[1] and g.area <= size[2]
      if does == wanted then
        list[#list + 1] = g
        counts[#list] = does
      end
    end
  end
  return list, counts
end

-- Judges the found boxes of a cell (an image and category) at all thresholds. Returns how many true
-- boxes count, and for each found box {score =, [t] = "hit", "miss" or "none" at threshold t}.
local function judge_cell(cell, size)
  local true_boxes, counts = counted_first(cell.truth, size)
  local number = 0
  for g = 1, #true_boxes do
    if counts[g] then number = number + 1 end
  end
  local judged = {}
  for i, d in ipairs(cell.found) do judged[i] = { score = d.score } end
  for t, threshold in ipairs(IOUS) do
    local taken = {}
    for i, d in ipairs(cell.found) do
      local match = best_match(d, true_boxes, counts, taken, threshold)
      local area = d.box[3] * d.box[4]
      local verdict = "miss"
      if match then
        taken[match] = true
        verdict = "hit"
        if not counts[match] then verdict = "none" end
      elseif area < size[1] or area > size[2] then
        verdict = "none"
      end
      judged[i][t] = verdict
    end
  end
  return number, judged
end

-- ---- one category ----
-- Precision at the recalls, and the last recall. list: judged boxes by falling score.
local function curve(list, t, number)
  local recalls = {}
  local precisions = {}
  local hits = 0
  local misses = 0
  for i, d in ipairs(list) do
    if d[t] == "hit" then hits = hits + 1 end
    if d[t] == "miss" then misses = misses + 1 end
    recalls[i] = hits / number
    precisions[i] = hits / (misses + hits + TINY)
  end
  for i = #list - 1, 1, -1 do
    precisions[i] = math.max(precisions[i], precisions[i + 1])
  end
  local sum = 0
  local i = 1
  for _, recall in ipairs(RECALLS) do
    while i <= #list and recalls[i] < recall do i = i + 1 end
    sum = sum + (precisions[i] or 0)
  end
  return sum, recalls[#list] or 0
end

-- cells: of one category, in the order of the images. Returns nil if no true box counts, else
-- {sum of precisions over recalls for each threshold}, {recall for each threshold}.
local function judge_category(cells, size, most)
  local number = 0
  local list = {}
  for _, cell in ipairs(cells) do
    local n, judged = judge_cell(cell, size)
    number = number + n
    for i = 1, math.min(most, #judged) do list[#list + 1] = judged[i] end
  end
  if number == 0 then return nil end
  list = sorted_by(list, function(d) return d.score end)
  local sums = {}
  local recalls = {}
  for t = 1, #IOUS do sums[t], recalls[t] = curve(list, t, number) end
  return sums, recalls
end

-- ---- all ----
-- {{cells of a category in the order of the images}, ...} in the order of the categories.
local function cells_of(truth, found)
  local known = {}
  local image_number = {}
  local images = {}
  for i, id in ipairs(truth.images) do images[i] = id end
  table.sort(images)
  for i, id in ipairs(images) do image_number[id] = i end
  for _, id in ipairs(truth.categories) do known[id] = known[id] or {} end

  local function cell(image, category)
    local cells = known[category]
    if not cells then return nil end
    local number = image_number[image]
    if not number then
      error(("%s has no image %s"):format(truth.name or "the truth", tostring(image)), 0)
    end
    cells[number] = cells[number] or { number = number, truth = {}, found = {} }
    return cells[number]
  end
  for _, g in ipairs(truth.boxes) do
    local own = cell(g.image, g.category)
    if own then table.insert(own.truth, g) end
  end
  for _, d in ipairs(found) do
    local own = cell(d.image, d.category)
    if own then table.insert(own.found, d) end
  end

  local categories = {}
  for id in pairs(known) do categories[#categories + 1] = id end
  table.sort(categories)
  local out = {}
  for k, id in ipairs(categories) do
    local list = {}
    for _, own in pairs(known[id]) do list[#list + 1] = own end
    table.sort(list, function(a, b) return a.number < b.number end)
    out[k] = list
  end
  return out
end

-- Keeps the best found boxes of a cell, and computes their overlaps once.
local function prepare(cell)
  local best = sorted_by(cell.found, function(d) return d.score end)
  for i = #best, MOST_FOUND + 1, -1 do best[i] = nil end
  cell.found = {}
  for i, d in ipairs(best) do
    local overlaps = {}
    for _, g in ipairs(cell.truth) do overlaps[g] = overlap(d, g) end
    cell.found[i] = { score = d.score, box = d.box, overlaps = overlaps }
  end
end

-- Means over categories and thresholds; -1 without any.
local function means(categories, size, most)
  local precision = 0
  local recall = 0
  local at = { [1] = 0, [6] = 0 }
  local n = 0
  for _, cells in ipairs(categories) do
    local sums, recalls = judge_category(cells, SIZES[size], most)
    if sums then
      n = n + 1
      for t = 1, #IOUS do
        precision = precision + sums[t]
        recall = recall + recalls[t]
      end
      for t in pairs(at) do at[t] = at[t] + sums[t] end
    end
  end
  if n == 0 then return { AP = -1, AP50 = -1, AP75 = -1, AR = -1 } end
  return { AP = precision / (n * #IOUS * #RECALLS), AR = recall / (n * #IOUS),
    AP50 = at[1] / (n * #RECALLS), AP75 = at[6] / (n * #RECALLS) }
end

function M.summary(truth, found)
  local categories = cells_of(truth, found)
  for _, cells in ipairs(categories) do
    for _, cell in ipairs(cells) do prepare(cell) end
  end
  local all = means(categories, "all", MOST_FOUND)
  local small = means(categories, "small", MOST_FOUND)
  local medium = means(categories, "medium", MOST_FOUND)
  local large = means(categories, "large", MOST_FOUND)
  return {
    AP = all.AP, AP50 = all.AP50, AP75 = all.AP75, APs = small.AP, APm = medium.AP, APl = large.AP,
    AR1 = means(categories, "all", 1).AR, AR10 = means(categories, "all", 10).AR, AR100 = all.AR,
    ARs = small.AR, ARm = medium.AR, ARl = large.AR,
  }
end

-- name, IoU, size, most found boxes
local LINES = {
  { "AP", "0.50:0.95", "all", 100 }, { "AP50", "0.50", "all", 100 }, { "AP75", "0.75", "all", 100 },
  { "APs", "0.50:0.95", "small", 100 }, { "APm", "0.50:0.95", "medium", 100 },
  { "APl", "0.50:0.95", "large", 100 }, { "AR1", "0.50:0.95", "all", 1 },
  { "AR10", "0.50:0.95", "all", 10 }, { "AR100", "0.50:0.95", "all", 100 },
  { "ARs", "0.50:0.95", "small", 100 }, { "ARm", "0.50:0.95", "medium", 100 },
  { "ARl", "0.50:0.95", "large", 100 },
}

function M.lines(s)
  local out = {}
  for i, line in ipairs(LINES) do
    local title = "Average Precision  (AP)"
    if line[1]:sub(1, 2) == "AR" then title = "Average Recall     (AR)" end
    out[i] = (" %-18s @[ IoU=%-9s | area=%6s | maxDets=%3d ] = %0.3f"):format(title, line[2],
      line[3], line[4], s[line[1]])
  end
  return out
end

return M
