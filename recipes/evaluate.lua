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
local evaluator = require "segzero.train.evaluator"
local geometry = require "rewards.geometry"
local mask_evaluation = require "segzero.train.mask_evaluation"
local truth_of = require "segzero.data.truth"
local cjson = require "cjson"

local null, now = cjson.null, sz.core.C.sz_seconds

local M = { schema = evaluation.schema, settings = evaluation.settings }

local SHEET_TILES = 12

local reason = evaluator.reason

-- The rows first .. last of a part: equal parts, the last takes the rest.
function M.part_of(total, part, parts)
  local size = math.floor(total / parts)
  return part * size + 1, part == parts - 1 and total or (part + 1) * size
end

-- ---- a batch: the policy's answers ----
-- What the model reads of a row: the image resized to frame x frame, and the question.
local function input_of(run, row)
  local cfg = run.config
  local img = row.image
  local same = img.width == cfg.frame and img.height == cfg.frame
  local seen = same and img or img:resize(cfg.frame, cfg.frame, "bilinear")
  local text = cfg.several and sz.prompt.vision_reasoner(row.problem, ".?!") or sz.prompt.seg_zero(row.problem)
  local content = { { type = "image", image = seen }, { type = "text", text = text } }
  local ok, input = pcall(run.policy.process, run.policy, { { role = "user", content = content } })
  if not same then seen:free() end
  if not ok then error(input, 0) end
  return input
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
    ok, objects = pcall(truth_of.objects, row, truth)
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

-- Judges a row, writes its record and keeps it if it is one of the best or the worst.
local function judge(run, entry)
  local started = now()
  local record, mask = mask_evaluation.judge(entry, run.judging)
  record.seconds = entry.seconds + now() - started
  run.records[#run.records + 1] = record
  run.results:write(files.json(record), "\n")
  run.results:flush()
  local shown = record.bbox ~= null
  local value = record.box_iou ~= null and record.box_iou or 0
  if run.masks then
    shown = mask ~= nil
    value = record.iou
  end
  local kept = { record = record, mask = mask, shown = shown, held = 2, value = value }
  run.best.add(kept)
  run.worst.add(kept)
end

-- Greedy answers as the folder's generation_config.json has them, and every row judged.
local function evaluate_rows(run, first, last, progress)
  local cfg = run.config
  run.judging = {
    frame = cfg.frame, several = cfg.several, oracle = cfg.oracle, segmenter = run.seg, masks = run.masks,
    box_iou = geometry.box_iou,
  }
  local generation = run.policy and sz.generation.options(run.policy:generation(), {
    do_sample = false, max_new_tokens = cfg.max_new_tokens, repetition_penalty = cfg.repetition_penalty,
  })
  evaluator.run {
    set = run.set, first = first, last = last, batch = cfg.val_batch_size, tolerant = true,
    policy = run.policy, generation = generation,
    input = function(row) return input_of(run, row) end,
    judge = function(entry, is_last)
      judge(run, entry)
      progress(is_last)
    end,
  }
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
  local readable, probe = pcall(set.row, set, first)
  run.masks = cfg.sam2_path ~= "" and readable and probe.mask ~= nil
  if readable then probe.image:free() end
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
  evaluate_rows(run, first, last, progress)
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
