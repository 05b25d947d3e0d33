-- evaluate.lua - a policy and SAM2 over a split: gIoU, cIoU and boxes, every row's answer, the worst and the best pictures.
--
--   segzero recipes/evaluate.lua                                                 the embedded models on 128 held-out RefShapes rows
--   segzero recipes/evaluate.lua model_path=DIR sam2_path=PATH data=FOLDER|refshapes [key=value ...]
--   segzero recipes/evaluate.lua oracle=true ...          SAM2 on the true boxes and points: what a perfect policy would reach
--   segzero recipes/evaluate.lua parts=8 part=0 ...       part 0 to 7 of the rows, each a run of its own, and then
--   segzero recipes/evaluate.lua merge=DIR1,DIR2,...      one summary of all parts
--   segzero recipes/evaluate.lua compare=DIR1,DIR2        what changed from one run to another over the same rows, row against row
--
-- As Seg-Zero evaluates: the picture resized to frame x frame, greedy decoding, the first {...} of the text, box and points back in
-- the picture's own pixels, SAM2's best-rated mask. several=true asks and reads as VisionReasoner does, a list of objects whose
-- masks are united. protocol says which failures count (metrics.lua): "fixed" keeps every row.
--
-- Under output_path (a folder that holds a run already gets -2, -3, ...): config.json; results.jsonl, a line for each row as it is
-- done: index, id, problem, text, think, bbox, points (several: lists of boxes and of points), score, intersection, union, iou,
-- box_iou, box_hit, failure, failure_kind, seconds; summary.json; worst.png, best.png. The last line printed is metrics.line's.
-- Without SAM2, or on data without masks, boxes alone are evaluated.
-- Leaves out: sharing a picture's features between its rows, going on with a run that was stopped (parts are the way).

local sz = require "segzero"
local cli = require "segzero.config.cli"
local data = require "segzero.data"
local evaluation = require "segzero.config.evaluate"
local files = require "segzero.core.files"
local log = require "segzero.log"
local metrics = require "segzero.train.metrics"
local model = require "segzero.models.qwen_vl"
local geometry = require "rewards.geometry"
local seg_terms = require "rewards.seg_terms"
local cjson = require "cjson"

local null, now = cjson.null, sz.core.C.sz_seconds

local M = { schema = evaluation.schema, settings = evaluation.settings }

local SHEET_TILES = 12

-- An error's text without the place in our sources and without a traceback. Ctrl-C goes through.
local function reason(why)
  why = tostring(why):gsub("\nstack traceback.*", "")
  if sz.core.is_interrupt(why) then error(why, 0) end
  return (why:gsub("^[^\n]-%.lua:%d+: ", ""))
end

-- The rows first .. last of a part: equal parts, the last takes the rest.
function M.part_of(total, part, parts)
  local size = math.floor(total / parts)
  return part * size + 1, part == parts - 1 and total or (part + 1) * size
end

-- ---- truth ----
-- The true objects of a row in the picture's pixels: {{bbox =, points = {..}}, ...}, from the solution's Seg-Zero string or
-- VisionReasoner's list; without one the box around the mask.
local function true_objects(row, mask)
  local box, points = seg_terms.read_truth(row.solution)
  if box then return { { bbox = box, points = points or {} } } end
  local ok, list = pcall(cjson.decode, row.solution)
  if ok and type(list) == "table" and list[1] then
    local objects = {}
    for i, o in ipairs(list) do
      local bbox, point = type(o) == "table" and o.bbox_2d, type(o) == "table" and o.point_2d
      if type(bbox) ~= "table" or #bbox ~= 4 then error(("object %d of the solution has no bbox_2d"):format(i), 0) end
      objects[i] = { bbox = bbox, points = type(point) == "table" and { point } or {} }
    end
    return objects
  end
  if not mask then error("the row has no mask and its solution no box", 0) end
  local shape, at = mask:shape(), sz.tensor.data(mask)
  local x0, y0, x1, y1 = shape[2], shape[1], -1, -1
  for y = 0, shape[1] - 1 do
    for x = 0, shape[2] - 1 do
      if at[y * shape[2] + x] ~= 0 then x0, y0, x1, y1 = math.min(x0, x), math.min(y0, y), math.max(x1, x), math.max(y1, y) end
    end
  end
  if x1 < 0 then return {} end
  return { { bbox = { x0, y0, x1, y1 }, points = {} } }
end

-- The truth as an answer, for the oracle.
local function as_answer(objects, several)
  if not several then
    if #objects ~= 1 then error(("the row has %d true objects; several=true takes them all"):format(#objects), 0) end
    return { bbox = objects[1].bbox, points = objects[1].points }
  end
  local list = {}
  for i, o in ipairs(objects) do
    if not o.points[1] then error(("true object %d has no point"):format(i), 0) end
    list[i] = { bbox = o.bbox, point = o.points[1] }
  end
  return list
end

-- Pixels counted from corner to corner, without the last ones: VisionReasoner's box IoU.
local function exclusive_iou(a, b)
  local inter = math.max(0, math.min(a[3], b[3]) - math.max(a[1], b[1])) * math.max(0, math.min(a[4], b[4]) - math.max(a[2], b[2]))
  local union = (a[3] - a[1]) * (a[4] - a[2]) + (b[3] - b[1]) * (b[4] - b[2]) - inter
  return union > 0 and inter / union or 0
end

-- The best overlap of an answered box with a true one.
local function best_box_iou(answer, objects, several)
  local best = 0
  for _, said in ipairs(several and answer or { answer }) do
    for _, o in ipairs(objects) do best = math.max(best, (several and exclusive_iou or geometry.box_iou)(said.bbox, o.bbox)) end
  end
  return best
end

-- ---- one row ----
local function read_answer(text, img, frame, several)
  local parse, scale = sz.answer.parse, sz.answer.scale
  if several then parse, scale = sz.answer.parse_list, sz.answer.scale_list end
  local found, why = parse(text)
  if not found then return nil, why end
  return scale(found, img.width / frame, img.height / frame)
end

-- {{..}, ..} of each object's key; null when there is none, since an empty table would be written as {}.
local function column(list, key)
  local out = {}
  for i, o in ipairs(list) do out[i] = o[key] end
  return #out > 0 and out or null
end

-- A row with what the policy wrote (said.text, or said.failure) to its record, and the predicted mask or nil.
local function judge(run, row, said)
  local cfg = run.config
  local r = { index = row.index, id = row.id or null, problem = row.problem or null, text = said.text or null, think = null, bbox = null,
    points = null, score = null, intersection = null, union = null, iou = null, box_iou = null, box_hit = false, failure = null,
    failure_kind = null }
  local function fail(kind, why)
    if r.failure == null then r.failure_kind, r.failure = kind, why end
  end
  if run.masks then r.intersection, r.union, r.iou = 0, 0, 0 end
  if said.failure then fail("picture", said.failure) end
  if not row.image then return r end

  local truth, mask, mask_failure
  if run.masks then
    local good, found = pcall(row.mask)
    if good then
      truth, r.union = found, run.segment.compare(found, found)
    else
      mask_failure = reason(found)
    end
  end
  local ok, objects = pcall(true_objects, row, truth)
  if not ok then fail("picture", reason(objects)) end

  local answer
  if cfg.oracle and ok then
    local good, found = pcall(as_answer, objects, cfg.several)
    if good then answer = found else fail("picture", reason(found)) end
  elseif said.text then
    local why
    answer, why = read_answer(said.text, row.image, cfg.frame, cfg.several)
    if not answer then fail("answer", why) end
  end
  if answer then
    r.think = answer.think or null
    if cfg.several then r.bbox, r.points = column(answer, "bbox"), column(answer, "point")
    else r.bbox, r.points = answer.bbox, #answer.points > 0 and answer.points or null end
    if ok then
      r.box_iou = best_box_iou(answer, objects, cfg.several)
      r.box_hit = r.box_iou > 0.5
    end
  end
  if mask_failure then
    fail("iou", mask_failure)
  elseif answer and run.masks and r.failure == null then
    local found, result = pcall(function()
      local features = run.seg:embed(row.image)
      local good, list = pcall(run.seg.masks, run.seg, features, { answer })
      features:free()
      if not good then error(list, 0) end
      return list[1]
    end)
    if not found then
      fail("sam2", reason(result))
    else
      mask, r.score = result.mask, result.score == result.score and result.score or null      -- JSON has no NaN
      local compared, inside, either = pcall(run.segment.compare, mask, truth)
      if not compared then fail("iou", reason(inside))
      elseif either == 0 then fail("iou", "the mask and the true mask are both empty")
      else r.intersection, r.union, r.iou = inside, either, inside / either end
    end
  end
  if truth then truth:free() end
  return r, mask
end

-- ---- a batch: the policy's answers ----
local function input_of(run, row)
  local cfg, img = run.config, row.image
  local same = img.width == cfg.frame and img.height == cfg.frame
  local seen = same and img or img:resize(cfg.frame, cfg.frame, "bilinear")
  local text = cfg.several and sz.prompt.vision_reasoner(row.problem, ".?!") or sz.prompt.seg_zero(row.problem)
  local ok, input = pcall(run.policy.process, run.policy, { { role = "user", content = { { type = "image", image = seen }, { type = "text", text = text } } } })
  if not same then seen:free() end
  if not ok then error(input, 0) end
  return input
end

local function free_input(input)
  if input.pixel_values then input.pixel_values:free() end
  input.position_ids:free()
end

-- Greedy answers for some rows: said[k].text, or said[k].failure. When a batch fails its rows are tried one by one.
local function ask(run, rows, said)
  local inputs, owner = {}, {}
  for k, row in ipairs(rows) do
    if row.image then
      local ok, input = pcall(input_of, run, row)
      if ok then inputs[#inputs + 1], owner[#owner + 1] = input, k else said[k].failure = reason(input) end
    end
  end
  local options = sz.generation.options(run.policy:generation(), { do_sample = false, max_new_tokens = run.config.max_new_tokens,
    repetition_penalty = run.config.repetition_penalty })
  local ok, answers
  if #inputs > 0 then ok, answers = pcall(sz.rollout.generate, run.policy, inputs, options) end
  if ok == false then
    local why = reason(answers)
    answers = {}
    for i, input in ipairs(inputs) do
      local good, one = false, why
      if #inputs > 1 then good, one = pcall(sz.rollout.generate, run.policy, { input }, options) end
      if good then answers[i] = one[1] else said[owner[i]].failure = reason(one) end
    end
  end
  for i, input in ipairs(inputs) do
    if answers[i] then said[owner[i]].text = answers[i][1].text end
    free_input(input)
  end
end

-- ---- pictures of the worst and the best ----
-- The first SHEET_TILES in an order, with their masks; entries that fall out are freed. Rows with a mask come before those
-- without: a sheet of unreadable answers shows nothing that results.jsonl does not say better.
local function gallery(sign)
  local g = { list = {} }
  local function before(a, b)
    if a.shown ~= b.shown then return a.shown end
    if a.value ~= b.value then return sign * a.value > sign * b.value end
    return a.record.index < b.record.index
  end
  function g.add(entry)
    g.list[#g.list + 1] = entry
    table.sort(g.list, before)
    local out = #g.list > SHEET_TILES and table.remove(g.list) or nil
    if out then
      out.held = out.held - 1
      if out.held == 0 and out.mask then out.mask:free() end
    end
  end
  return g
end

-- Colours the mask's pixels that have a pixel outside it (or the picture's border) within `width` steps up, down, left or right.
local function outline(img, mask, colour, width)
  local p, m, w, h = img:pixels(), sz.tensor.data(mask), img.width, img.height
  local function inside(x, y) return x >= 0 and y >= 0 and x < w and y < h and m[y * w + x] ~= 0 end
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      if m[y * w + x] ~= 0 and not (inside(x - width, y) and inside(x + width, y) and inside(x, y - width) and inside(x, y + width)) then
        local q = p + 3 * (y * w + x)
        q[0], q[1], q[2] = colour[1], colour[2], colour[3]
      end
    end
  end
end

local function tile_of(entry, run)
  local ok, row = pcall(run.set.row, run.set, entry.record.index)
  if not ok then return nil end
  local draw, r, objects = require "segzero.tools.draw", entry.record, nil
  local good, truth = pcall(row.mask or function() end)
  if not good then truth = nil end
  local tile = { image = row.image, label = row.problem, note = r.failure ~= null and r.failure or nil }
  if run.masks then
    if entry.mask then draw.mask(row.image, entry.mask) end
    if truth then outline(row.image, truth, draw.GREEN, math.max(1, math.floor(row.image.width / 280 + 0.5))) end
    tile.note = tile.note or ("IoU %.3f, score %.2f"):format(r.iou, r.score ~= null and r.score or 0 / 0)
  else
    ok, objects = pcall(true_objects, row, truth)
    if ok and objects[1] then tile.truth = objects[1].bbox end
    tile.note = tile.note or ("box IoU %.3f"):format(r.box_iou ~= null and r.box_iou or 0)
  end
  if truth then truth:free() end
  local several = run.config.several
  if r.bbox ~= null then tile.bbox = several and r.bbox[1] or r.bbox end
  if r.points ~= null then tile.points = r.points end
  return tile
end

local function write_sheet(g, run, name)
  local tiles = {}
  for _, entry in ipairs(g.list) do tiles[#tiles + 1] = tile_of(entry, run) end
  if #tiles == 0 then return end
  local sheet = require("segzero.tools.draw").sheet(tiles, 4, { title = ("%s of %s"):format(name, run.set.name), masks = run.masks })
  sheet:save(("%s/%s.png"):format(run.folder, name))
  sheet:free()
  for _, tile in ipairs(tiles) do tile.image:free() end
end

-- ---- the run ----
local function rounded(s)
  local out = {}
  for k, v in pairs(s) do out[k] = v end
  for _, key in ipairs { "gIoU", "cIoU", "box" } do out[key] = s[key] and { value = s[key][1], low = s[key][2], high = s[key][3] } or null end
  return out
end

-- null to nil, as metrics.lua reads records.
local function counted(records)
  local out = {}
  for i, r in ipairs(records) do
    out[i] = { index = r.index, intersection = r.intersection ~= null and r.intersection or 0, union = r.union ~= null and r.union or 0,
      box_hit = r.box_hit == true, failure_kind = r.failure_kind ~= null and r.failure_kind or nil }
  end
  return out
end

local function finish(cfg, folder, records, masks, seconds)
  local s = metrics.summary(counted(records), cfg.protocol, { masks = masks, resamples = cfg.resamples })
  s.seconds, s.oracle, s.several = seconds, cfg.oracle, cfg.several
  files.write(folder .. "/summary.json", cjson.encode(rounded(s)))
  if s.skipped > 0 then print(("%d of %d rows do not count under protocol=%s"):format(s.skipped, s.rows, cfg.protocol)) end
  print("results: " .. folder)
  print(metrics.line(s))
  return s
end

local function load_models(run)
  local cfg = run.config
  if not cfg.oracle then
    run.policy = sz.qwen_vl(cfg.model_path, { dtype = cfg.dtype, adapter = cfg.adapter })
    run.policy:tokenizer()
    local plan = run.policy:processor():plan(cfg.frame, cfg.frame)
    if plan.resized_width ~= cfg.frame or plan.resized_height ~= cfg.frame then
      error(("frame=%d: the model would resize it to %d x %d"):format(cfg.frame, plan.resized_width, plan.resized_height), 0)
    end
    cfg.repetition_penalty = cfg.repetition_penalty or run.policy:generation().repetition_penalty or 1
    print(("policy %s, %s, pictures of %d pixels%s"):format(tostring(run.policy), cfg.dtype, cfg.frame,
      cfg.repetition_penalty ~= 1 and ", repetition penalty " .. cfg.repetition_penalty or ""))
  end
  if cfg.sam2_path == "" then
    print "no SAM2 (sam2_path): only boxes are evaluated"
  elseif not run.masks then
    print "the data has no masks: only boxes are evaluated"
  else
    run.segment = require "segzero.inference.segmenter"
    local ok, sam = pcall(sz.sam2, cfg.sam2_path, { dtype = cfg.sam2_dtype })
    if not ok then error("sam2_path: " .. reason(sam), 0) end
    run.seg = run.segment.new(sam)
    print(("%s, %s"):format(tostring(run.seg.sam), cfg.sam2_dtype))
  end
end

local function read_row(run, index)
  local ok, row = pcall(run.set.row, run.set, index)
  if ok then return row, {} end
  return { index = index }, { failure = reason(row) }
end

local function batch(run, first, last, progress)
  local rows, said, started = {}, {}, now()
  for i = first, last do rows[#rows + 1], said[#said + 1] = read_row(run, i) end
  if run.policy then ask(run, rows, said) end
  local each = (now() - started) / #rows
  for k, row in ipairs(rows) do
    local start = now()
    local record, mask = judge(run, row, said[k])
    record.seconds = each + now() - start
    run.records[#run.records + 1] = record
    run.results:write(files.json(record), "\n")
    run.results:flush()
    local entry = { record = record, mask = mask, shown = run.masks and mask ~= nil or not run.masks and record.bbox ~= null, held = 2,
      value = run.masks and record.iou or record.box_iou ~= null and record.box_iou or 0 }
    run.best.add(entry)
    run.worst.add(entry)
    if row.image then row.image:free() end
    progress(k == #rows)
  end
end

-- A line after each batch, and every ten seconds while masks are made.
local function progress_of(run, total)
  local started, said = now(), now()
  return function(must)
    if not must and now() - said < 10 then return end
    said = now()
    local done, sum = #run.records, 0
    for _, r in ipairs(run.records) do sum = sum + (run.masks and r.iou or r.box_hit and 1 or 0) end
    local each = (said - started) / done
    print(("%d/%d  %s so far %.3f  %.2f s/row  ETA %s"):format(done, total, run.masks and "gIoU" or "boxes", sum / done, each, log.clock(each * (total - done))))
    io.stdout:flush()
  end
end

function M.evaluate(cfg)
  local started = now()
  local set = data.open(cfg.data, { split = cfg.split, size = cfg.refshapes_size, seed = cfg.seed, rows = cfg.rows })
  local total = math.min(set:count(), cfg.rows or math.huge)
  local first, last = M.part_of(total, cfg.part, cfg.parts)
  if last < first then error(("part %d of %d is empty: there are %d rows"):format(cfg.part, cfg.parts, total), 0) end
  local run = { config = cfg, set = set, records = {}, best = gallery(1), worst = gallery(-1) }
  local probe = read_row(run, first)
  run.masks = cfg.sam2_path ~= "" and probe.mask ~= nil
  if probe.image then probe.image:free() end
  if cfg.oracle and not run.masks then error(("oracle=true compares masks, and %s has none (first row)"):format(set.name), 0) end
  load_models(run)

  run.folder = files.fresh_folder(cfg.output_path)
  local written = {}
  for k, v in pairs(cfg) do written[k] = v end
  written.merge, written.compare, written.total, written.first, written.last, written.masks = nil, nil, total, first, last, run.masks
  files.write(run.folder .. "/config.json", cjson.encode(written))
  local why
  run.results, why = io.open(run.folder .. "/results.jsonl", "w")
  if not run.results then error(why, 0) end

  print(("%s: %d rows%s, protocol %s%s"):format(set.name, last - first + 1, cfg.parts > 1 and (" (%d to %d of %d)"):format(first, last, total) or "",
    cfg.protocol, cfg.oracle and ", SAM2 on the true boxes and points" or ""))
  local progress = progress_of(run, last - first + 1)
  for from = first, last, cfg.val_batch_size do batch(run, from, math.min(from + cfg.val_batch_size - 1, last), progress) end
  run.results:close()
  write_sheet(run.worst, run, "worst")
  write_sheet(run.best, run, "best")
  return finish(cfg, run.folder, run.records, run.masks, now() - started)
end

-- ---- merging parts ----
local SAME = { "data", "split", "seed", "refshapes_size", "model_path", "sam2_path", "frame", "several", "oracle", "masks", "total", "max_new_tokens" }

local function read_config(dir, what)
  if not files.exists(dir .. "/config.json") then error(("%s: %s holds no evaluation (config.json)"):format(what, dir), 0) end
  return model.read_json(dir .. "/config.json")
end

-- Calls add(record, path) for each line of an earlier run's results.
local function read_results(dir, what, add)
  local path, number = dir .. "/results.jsonl", 0
  local file, why = io.open(path, "r")
  if not file then error(what .. ": " .. why, 0) end
  for line in file:lines() do
    number = number + 1
    local ok, r = pcall(cjson.decode, line)
    if not ok or type(r) ~= "table" or type(r.index) ~= "number" then error(("%s:%d: not a result"):format(path, number), 0) end
    add(r, path)
  end
  file:close()
end

local function same_setting(what, key, a, b, dirs, i)
  if a[key] ~= b[key] then
    error(("%s: %s is %s in %s and %s in %s"):format(what, key, tostring(a[key]), dirs[1], tostring(b[key]), dirs[i]), 0)
  end
end

function M.merge(cfg, given)
  local by_index, records, first_config, seconds = {}, {}, nil, 0
  for i, dir in ipairs(cfg.merge) do
    local one = read_config(dir, "merge")
    first_config = first_config or one
    for _, key in ipairs(SAME) do same_setting("merge", key, first_config, one, cfg.merge, i) end
    read_results(dir, "merge", function(r, path)
      if by_index[r.index] then error(("merge: row %d is in %s twice or in two folders"):format(r.index, path), 0) end
      by_index[r.index], records[#records + 1] = r, r
      seconds = seconds + (tonumber(r.seconds) or 0)
    end)
  end
  for i = 1, first_config.total do
    if not by_index[i] then
      error(("merge: the folders hold %d of %d rows; row %d is the first that is missing"):format(#records, first_config.total, i), 0)
    end
  end
  table.sort(records, function(a, b) return a.index < b.index end)
  cfg.protocol = given.protocol and cfg.protocol or first_config.protocol
  if first_config.several ~= cfg.several and given.protocol then error("merge: protocol=" .. cfg.protocol .. " does not go with how the answers were read", 0) end
  cfg.several, cfg.oracle = first_config.several, first_config.oracle
  local folder = files.fresh_folder(cfg.output_path)
  first_config.merged, first_config.part, first_config.parts, first_config.first, first_config.last = cfg.merge, nil, nil, 1, first_config.total
  first_config.protocol = cfg.protocol
  files.write(folder .. "/config.json", cjson.encode(first_config))
  local lines = {}
  for i, r in ipairs(records) do lines[i] = files.json(r) .. "\n" end
  files.write(folder .. "/results.jsonl", table.concat(lines))
  return finish(cfg, folder, records, first_config.masks, seconds)
end

-- ---- one run against another ----
-- The rows must be the same; the models and the ways to answer may differ.
local SAME_ROWS = { "data", "split", "seed", "refshapes_size", "masks", "total", "first", "last" }

function M.compare(cfg)
  local dirs, lists, configs = cfg.compare, {}, {}
  if #dirs ~= 2 then error(("compare: two folders are wanted, not %d"):format(#dirs), 0) end
  for i, dir in ipairs(dirs) do
    lists[i], configs[i] = {}, read_config(dir, "compare")
    for _, key in ipairs(SAME_ROWS) do same_setting("compare", key, configs[1], configs[i], dirs, i) end
    read_results(dir, "compare", function(r, path)
      if lists[i][r.index] then error(("compare: row %d is in %s twice"):format(r.index, path), 0) end
      lists[i][r.index] = r
    end)
  end
  local before, after = {}, {}
  for index = configs[1].first, configs[1].last do
    if not lists[1][index] or not lists[2][index] then
      error(("compare: %s lacks row %d"):format(lists[1][index] and dirs[2] or dirs[1], index), 0)
    end
    before[#before + 1], after[#after + 1] = lists[1][index], lists[2][index]
  end
  local d = metrics.difference(before, after, { masks = configs[1].masks, resamples = cfg.resamples, seed = cfg.seed })
  print(metrics.difference_line(d))
  return d
end

function M.execute(cfg, given)
  if #cfg.compare > 0 then return M.compare(cfg) end
  if #cfg.merge > 0 then return M.merge(cfg, given) end
  return M.evaluate(cfg)
end

M.run = cli.runner(M)

cli.main(M)

return M
