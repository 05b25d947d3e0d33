-- run.lua - an evaluation of a policy and SAM2 over rows, from settings to a folder of results.
--
--   local summary = run.evaluate(cfg, { box_iou = f })      cfg: lua/segzero/config/evaluate.lua
--   local first, last = run.part_of(total, part, parts)     the rows of a part, from 1
--
-- box_iou(a, b) compares two of Seg-Zero's boxes (rewards/geometry.lua; the library does not depend
-- on rewards/). Rows are read, answered greedily in batches and judged one by one; a bad row is a
-- failure in its record, never an error of the run.
-- Leaves out: sharing an image's features between its rows, resuming.

local cjson = require "cjson"
local sz = require "segzero"
local core = require "segzero.core.ffi"
local data = require "segzero.data"
local evaluator = require "segzero.train.evaluator"
local files = require "segzero.core.files"
local gallery = require "segzero.evaluation.gallery"
local generations = require "segzero.inference.generation_config"
local log = require "segzero.log"
local mask_evaluation = require "segzero.train.mask_evaluation"
local prompts = require "segzero.data.prompt"
local results = require "segzero.evaluation.results"
local segmenter_of = require "segzero.inference.segmenter"

local M = {}

local null = cjson.null
local now = core.C.sz_seconds

local PROGRESS_SECONDS = 10           -- between two lines of progress within a batch
local SENTENCE_ENDS = ".?!"           -- removed from a question for VisionReasoner's prompt

local function fail(message, ...) error(message:format(...), 0) end

-- Equal parts; the last takes the rest.
function M.part_of(total, part, parts)
  local size = math.floor(total / parts)
  local last = (part + 1) * size
  if part == parts - 1 then last = total end
  return part * size + 1, last
end

-- ---- what a run is made of ----
local function load_policy(cfg)
  local policy = sz.qwen_vl(cfg.model_path, { dtype = cfg.dtype, adapter = cfg.adapter })
  policy:tokenizer()
  local plan = policy:processor():plan(cfg.frame, cfg.frame)
  if plan.resized_width ~= cfg.frame or plan.resized_height ~= cfg.frame then
    fail("frame=%d: the model would resize it to %d x %d", cfg.frame, plan.resized_width,
      plan.resized_height)
  end
  cfg.repetition_penalty = cfg.repetition_penalty or policy:generation().repetition_penalty or 1
  local penalty = ""
  if cfg.repetition_penalty ~= 1 then
    penalty = ", repetition penalty " .. cfg.repetition_penalty
  end
  print(("policy %s, %s, images of %d pixels%s"):format(tostring(policy), cfg.dtype, cfg.frame,
    penalty))
  return policy
end

local function load_segmenter(cfg)
  local ok, sam = pcall(sz.sam2, cfg.sam2_path, { dtype = cfg.sam2_dtype })
  if not ok then error("sam2_path: " .. evaluator.reason(sam), 0) end
  local segmenter = segmenter_of.new(sam)
  print(("%s, %s"):format(tostring(segmenter.sam), cfg.sam2_dtype))
  return segmenter
end

local function load_models(run)
  local cfg = run.config
  if not cfg.oracle then run.policy = load_policy(cfg) end
  if cfg.sam2_path == "" then
    print "no SAM2 (sam2_path): only boxes are evaluated"
  elseif not run.masks then
    print "the data has no masks: only boxes are evaluated"
  else
    run.segmenter = load_segmenter(cfg)
  end
end

-- Whether the data has masks: its first row says so.
local function has_masks(set, first)
  local ok, row = pcall(set.row, set, first)
  if not ok then return false end
  row.image:free()
  return row.mask ~= nil
end

-- The data, and which of its rows this part has.
local function open_rows(cfg)
  local set = data.open(cfg.data, { split = cfg.split, size = cfg.refshapes_size, seed = cfg.seed,
    rows = cfg.rows })
  local total = math.min(set:count(), cfg.rows or math.huge)
  local first, last = M.part_of(total, cfg.part, cfg.parts)
  if last < first then
    fail("part %d of %d is empty: there are %d rows", cfg.part, cfg.parts, total)
  end
  return { config = cfg, set = set, total = total, first = first, last = last, records = {},
    best = gallery.new(1), worst = gallery.new(-1) }
end

local function open_folder(run)
  run.folder = files.fresh_folder(run.config.output_path)
  local written = {}
  for key, value in pairs(run.config) do written[key] = value end
  written.merge = nil
  written.compare = nil
  for _, key in ipairs { "total", "first", "last", "masks" } do written[key] = run[key] end
  files.write(run.folder .. "/config.json", cjson.encode(written))
  local file, why = io.open(run.folder .. "/results.jsonl", "w")
  if not file then error(why, 0) end
  run.results = file
end

-- ---- rows ----
-- What the model reads of a row: the image resized to frame x frame, and the question.
local function input_of(run, row)
  local cfg = run.config
  local seen = row.image
  if seen.width ~= cfg.frame or seen.height ~= cfg.frame then
    seen = seen:resize(cfg.frame, cfg.frame, "bilinear")
  end
  local text
  if cfg.several then
    text = prompts.vision_reasoner(row.problem, SENTENCE_ENDS)
  else
    text = prompts.seg_zero(row.problem)
  end
  local content = { { type = "image", image = seen }, { type = "text", text = text } }
  local ok, input = pcall(run.policy.process, run.policy, { { role = "user", content = content } })
  if seen ~= row.image then seen:free() end
  if not ok then error(input, 0) end
  return input
end

-- Judges a row, writes its record and keeps it if it is one of the best or the worst.
local function judge(run, entry)
  local started = now()
  local record, mask = mask_evaluation.judge(entry, run.judging)
  record.seconds = entry.seconds + now() - started
  run.records[#run.records + 1] = record
  run.results:write(files.json(record), "\n")
  run.results:flush()

  local kept = { record = record, mask = mask, shown = record.bbox ~= null, value = 0 }
  if run.masks then
    kept.shown = mask ~= nil
    kept.value = record.iou
  elseif record.box_iou ~= null then
    kept.value = record.box_iou
  end
  gallery.add({ run.best, run.worst }, kept)
end

-- What a row adds to the mean that the progress line shows.
local function progress_value(run, record)
  if run.masks then return record.iou end
  if record.box_hit then return 1 end
  return 0
end

-- A function that prints a line after each batch, and now and then while masks are made.
local function progress_of(run)
  local total = run.last - run.first + 1
  local what = "boxes"
  if run.masks then what = "gIoU" end
  local started = now()
  local printed = started
  return function(is_last_of_batch)
    if not is_last_of_batch and now() - printed < PROGRESS_SECONDS then return end
    printed = now()
    local done = #run.records
    local sum = 0
    for _, record in ipairs(run.records) do sum = sum + progress_value(run, record) end
    local each = (printed - started) / done
    print(("%d/%d  %s so far %.3f  %.2f s/row  ETA %s"):format(done, total, what, sum / done, each,
      log.clock(each * (total - done))))
    io.stdout:flush()
  end
end

-- Greedy answers, otherwise as the model's generation_config.json has them, and every row judged.
local function evaluate_rows(run, box_iou)
  local cfg = run.config
  run.judging = {
    frame = cfg.frame, several = cfg.several, oracle = cfg.oracle, segmenter = run.segmenter,
    masks = run.masks, box_iou = box_iou,
  }
  local generation
  if run.policy then
    generation = generations.options(run.policy:generation(), {
      do_sample = false, max_new_tokens = cfg.max_new_tokens,
      repetition_penalty = cfg.repetition_penalty,
    })
  end
  local progress = progress_of(run)
  evaluator.run {
    set = run.set, first = run.first, last = run.last, batch = cfg.val_batch_size, tolerant = true,
    policy = run.policy, generation = generation,
    input = function(row) return input_of(run, row) end,
    judge = function(entry, is_last_of_batch)
      judge(run, entry)
      progress(is_last_of_batch)
    end,
  }
end

local function write_sheets(run)
  for _, name in ipairs { "worst", "best" } do
    gallery.write(run[name], ("%s/%s.png"):format(run.folder, name),
      { name = name, set = run.set, masks = run.masks, several = run.config.several })
  end
end

local function introduce(run)
  local cfg = run.config
  local part = ""
  local oracle = ""
  if cfg.parts > 1 then part = (" (%d to %d of %d)"):format(run.first, run.last, run.total) end
  if cfg.oracle then oracle = ", SAM2 on the true boxes and points" end
  print(("%s: %d rows%s, protocol %s%s"):format(run.set.name, run.last - run.first + 1, part,
    cfg.protocol, oracle))
end

function M.evaluate(cfg, options)
  local started = now()
  local run = open_rows(cfg)
  run.masks = cfg.sam2_path ~= "" and has_masks(run.set, run.first)
  if cfg.oracle and not run.masks then
    fail("oracle=true compares masks, and %s has none (first row)", run.set.name)
  end
  load_models(run)
  open_folder(run)
  introduce(run)
  evaluate_rows(run, options.box_iou)
  run.results:close()
  write_sheets(run)
  return results.finish(cfg, run.folder, run.records,
    { masks = run.masks, seconds = now() - started })
end

return M
