-- run.lua - evaluates a policy and SAM2 over a split of a data set, as Seg-Zero does, and writes
-- the results.
--
--   local summary, folder, records = run.evaluate(cfg, { box_iou = f(a, b), say = f(text) })
--       cfg: settings of recipes/evaluate.lua. Nothing is returned for a part without rows, nor on
--       other ranks than the first. With several ranks all call it; the files are those of one
--       options.kept, a table, keeps SAM2 from one call to the next
--   local first, last = run.part_of(total, part, parts)
--       the rows of a part, from 1
--
-- The image is resized to cfg.resize, decoding is greedy, the first {...} of the text is read, box
-- and points are converted to the image's own pixels, and SAM2's best-rated mask is compared with
-- the true one. cfg.several asks and reads as VisionReasoner does. Under cfg.output_path:
-- config.json, results.jsonl (a line for each row as soon as it is judged), summary.json,
-- worst.png, best.png; with cfg.idx these are in a folder of the part, and output_{idx}.json is
-- written too (shared_folder.lua). Without SAM2, or on data without masks, boxes alone are
-- evaluated. Leaves out: continuing an evaluation that was stopped (evaluate in parts instead).

local cjson = require "cjson"
local check = require "segzero.data.checks.check"
local sz = require "segzero"
local coordinates = require "segzero.data.coordinates"
local data = require "segzero.data"
local evaluator = require "segzero.evaluation.evaluator"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local frame = require "segzero.data.frame"
local gallery = require "segzero.evaluation.gallery"
local integrity = require "segzero.runs.integrity"
local judge = require "segzero.evaluation.judge"
local on_ranks = require "segzero.evaluation.on_ranks"
local parallel = require "segzero.train.parallel"
local lines = require "segzero.core.lines"
local log = require "segzero.log"
local opening = require "segzero.models.opening"
local output_rows = require "segzero.evaluation.output_rows"
local prompt_text = require "segzero.data.prompt_text"
local prompts = require "segzero.data.prompt"
local results = require "segzero.evaluation.results"
local rewarding = require "segzero.evaluation.rewarding"
local segmenter_of = require "segzero.inference.segmenter"
local shared_folder = require "segzero.evaluation.shared_folder"
local stop = require "segzero.core.stop"
local target_of = require "segzero.evaluation.target"
local visible = require "segzero.core.visible"
local visual_results = require "segzero.evaluation.visual_results"
local M = {}

local null = cjson.null
local now = sz.core.C.sz_seconds

local PROGRESS_SECONDS = 10         -- at least between two lines of progress inside a batch
-- stripped from both ends of a question for VisionReasoner
local QUESTION_MARKS = '."?!'
local DEFAULT_PENALTY = 1

-- Equal parts; the last one takes the rest.
function M.part_of(total, part, parts)
  local size = math.floor(total / parts)
  local first = part * size + 1
  if part == parts - 1 then return first, total end
  return first, first + size - 1
end

-- ---- models ----
-- A frame that is given, or is the model's own, is the size that the model sees.
local function check_frame(processor, side)
  if not side then return end
  local plan = processor:plan(side, side)
  if plan.resized_width ~= side or plan.resized_height ~= side then
    local message = "frame=%d: the model would resize it to %d x %d; resize=%dx%d allows that"
    error(message:format(side, plan.resized_width, plan.resized_height, side, side), 0)
  end
end

local function limit_pixels(processor, cfg)
  processor.max_pixels = cfg.max_pixels or processor.max_pixels
  processor.min_pixels = cfg.min_pixels or processor.min_pixels
end

-- What the settings, the device and the policy's small files alone forbid.
local function check_policy(cfg)
  if cfg.oracle then return end
  opening.check_options(cfg.model_path, { dtype = cfg.dtype })
  if not cfg.frame then return end
  local processor = opening.processor(cfg.model_path)
  if not processor then return end
  limit_pixels(processor, cfg)
  check_frame(processor, cfg.frame)
end

local function load_policy(run)
  local cfg = run.config
  if cfg.oracle then return end
  run.policy = sz.model(cfg.model_path, { dtype = cfg.dtype, adapter = cfg.adapter,
    shards = run.parallel.shard_group })
  run.policy:tokenizer()
  integrity.settle(run.policy)  -- a damaged checkpoint is no error of a row
  limit_pixels(run.policy:processor(), cfg)
  check_frame(run.policy:processor(), cfg.frame)
  run.frames = coordinates.for_policy(run.frames, run.policy)
  local folder = run.policy:generation()
  cfg.repetition_penalty = cfg.repetition_penalty or folder.repetition_penalty or DEFAULT_PENALTY
  local penalty = ""
  if cfg.repetition_penalty ~= DEFAULT_PENALTY then
    penalty = ", repetition penalty " .. cfg.repetition_penalty
  end
  local policy = tostring(run.policy)
  run.say(("policy %s, %s%s"):format(policy, cfg.dtype, penalty))
end

local function load_segmenter(run)
  local cfg = run.config
  if cfg.sam2_path == "" then return run.say "no SAM2 (sam2_path): only boxes are evaluated" end
  if not run.masks then return run.say "the data has no masks: only boxes are evaluated" end
  if not run.parallel:is_first() then return end      -- a replica's first shard makes the masks
  if run.kept.segmenter then
    run.segmenter = run.kept.segmenter
    return
  end
  local ok, sam = pcall(sz.sam2, cfg.sam2_path, { dtype = cfg.sam2_dtype })
  if not ok then error("sam2_path: " .. evaluator.reason(sam), 0) end
  run.segmenter = segmenter_of.new(sam)
  run.kept.segmenter = run.segmenter
  run.say(("%s, %s"):format(tostring(run.segmenter.sam), cfg.sam2_dtype))
end

-- ---- rows ----
-- f(problem) -> the text of the question, or {text before the image, text after it}.
local function prompt_of(cfg)
  if cfg.prompt ~= "auto" then return prompt_text.read(cfg.prompt, "prompt").ask end
  if not cfg.several then return prompts.seg_zero end
  return function(problem) return prompts.vision_reasoner(problem, QUESTION_MARKS) end
end

-- The image and the text as parts of a message.
local function content_of(img, text)
  local image = { type = "image", image = img }
  if type(text) == "string" then return { image, { type = "text", text = text } } end
  local content = {}
  if text[1] ~= "" then content[1] = { type = "text", text = text[1] } end
  content[#content + 1] = image
  if text[2] ~= "" then content[#content + 1] = { type = "text", text = text[2] } end
  return content
end

-- The model's input for a row: the image, resized if cfg.resize says so, and the question.
local function input_of(run, row)
  local img, own = coordinates.resized(row.image, run.frames)
  local content = content_of(img, run.ask(row.problem))
  local ok, input = pcall(run.policy.process, run.policy, { { role = "user", content = content } })
  local seen = ok and coordinates.seen(input, img)
  if own then img:free() end
  if not ok then error(input, 0) end
  coordinates.place(row, run.frames, seen)
  return input
end

local SHOWN_ERRORS = 3

-- Says which row could not be evaluated, for the first ones. A lack of memory is no row's fault and
-- ends the evaluation.
local function report_error(run, failure, record)
  if not failure then return end
  run.errors = (run.errors or 0) + 1
  if run.errors > SHOWN_ERRORS then return end
  local name = record.id
  if name == cjson.null then name = record.index end
  run.say(("row %s is an error: %s"):format(visible.line(tostring(name)), visible.line(failure)))
end

local function judge_row(run, entry)
  local started = now()
  local rewarded = {}
  if run.rewarding then run.rewarding:judge(entry, rewarded) end
  local record, mask, objects = judge.row(entry, run.judging)
  for name, value in pairs(rewarded) do record[name] = value end
  record.seconds = entry.seconds + now() - started
  local failure = entry.failure
  if failure and failure:find("out of memory", 1, true) then error(failure, 0) end
  return { record = record, mask = mask, objects = objects, failure = failure }
end

-- row: nil if another rank judged it.
local function write_visual(run, record, mask, row)
  if row then return run.write_visual(row, record, mask) end
  local ok, again = pcall(run.set.row, run.set, record.index)
  if not ok then return end
  run.write_visual(again, record, mask)
  again.image:free()
end

-- Writes the record of a row, and keeps the row if it is one of the best or the worst.
local function take_row(run, judged, row)
  local record, mask, objects = judged.record, judged.mask, judged.objects
  run.records[#run.records + 1] = record
  run.results:write(files.json(record) .. "\n")
  report_error(run, judged.failure, record)
  if run.write_visual then write_visual(run, record, mask, row) end

  local kept = { record = record, mask = mask, objects = objects, held = 2 }
  if run.masks then
    kept.shown = mask ~= nil
    kept.value = record.iou
  else
    kept.shown = record.bbox ~= null
    kept.value = 0
    if record.box_iou ~= null then kept.value = record.box_iou end
  end
  run.best:add(kept)
  run.worst:add(kept)
end

-- Reports progress after each batch, and every ten seconds while masks are made.
local function new_progress(run, total)
  local started = now()
  local last = started

  local function value(record)
    if run.masks then return record.iou end
    return record.box_hit and 1 or 0
  end

  return function(is_batch_end)
    if not is_batch_end and now() - last < PROGRESS_SECONDS then return end
    last = now()
    local done = #run.records
    local sum = 0
    for _, record in ipairs(run.records) do sum = sum + value(record) end
    local each = (last - started) / done
    local measure = run.masks and "gIoU" or "boxes"
    run.say(("%d/%d  %s so far %.3f  %.2f s/row  ETA %s"):format(done, total, measure, sum / done,
      each, log.duration(each * (total - done))))
  end
end

-- Asks for greedy answers, with the folder's generation_config.json, and judges every row.
local function evaluate_rows(run, first, last)
  local cfg = run.config
  local progress = new_progress(run, last - first + 1)
  run.judging = {
    frames = run.frames, several = cfg.several, oracle = cfg.oracle, segmenter = run.segmenter,
    masks = run.masks, ignore = cfg.ignore_regions, task = cfg.task, box_iou = run.box_iou,
  }
  local generation
  if run.policy then
    generation = sz.generation.options(run.policy:generation(), {
      do_sample = false, max_new_tokens = cfg.max_new_tokens,
      repetition_penalty = cfg.repetition_penalty,
    })
  end
  on_ranks.run(run.parallel, {
    set = run.set, first = first, last = last, batch = cfg.val_batch_size, tolerant = true,
    policy = run.policy, generation = generation,
    input = function(row) return input_of(run, row) end,
  }, function(entry) return judge_row(run, entry) end, function(judged, row, is_batch_end)
    take_row(run, judged, row)
    progress(is_batch_end)
  end)
  judge.done(run.judging)
end

-- ---- the run ----
-- What the first row says of the set: masks are compared if there is a SAM2 model and the row has a
-- mask; the task; whether there are ignore masks.
local function look_at(run, first)
  local cfg = run.config
  local set = run.set
  local ok, row
  if set.meta then
    ok, row = pcall(set.meta, set, first)
  else
    ok, row = pcall(set.row, set, first)
    if ok then row.image:free() end
  end
  if not ok then row = {} end
  run.masks = cfg.sam2_path ~= "" and row.mask ~= nil
  if cfg.task == "auto" then cfg.task = target_of.task(row) end
  if cfg.task ~= "segmentation" and not cfg.several then
    error(("task=%s reads lists of objects: set several=true"):format(cfg.task), 0)
  end
  results.check_truth(cfg, cfg.task)
  local columns = row.columns or {}
  cfg.has_ignored = set.ignore_masks == true or row.ignore_mask ~= nil
    or columns.ignore_mask ~= nil
  if cfg.ignore_regions == "left_out" and not cfg.has_ignored then
    error(("ignore_regions=left_out needs ignore masks (the column ignore_mask, or LISA's own "
      .. "files), and %s has none"):format(set.name), 0)
  end
end

local function write_config(run, total, first, last)
  local written = {}
  for name, v in pairs(run.config) do written[name] = v end
  written.merge = nil
  written.compare = nil
  written.tensor_parallel_size = nil          -- the files are the same on any ranks
  written.total = total
  written.first = first
  written.last = last
  written.masks = run.masks
  files.write(run.folder .. "/config.json", files.indented_json(written))
end

-- The script that an evaluation with Seg-Zero's or VisionReasoner's arguments follows.
local function script_of(cfg)
  if not cfg.several then return "Seg-Zero's evaluation.py" end
  -- VisionReasoner's own scripts take 2048.
  if cfg.max_new_tokens == 2048 then return "VisionReasoner's evaluation scripts" end
  return "Seg-Zero's evaluation_visionreasoner.py"
end

-- How such an evaluation differs from its script.
local function differences(cfg)
  local list = {}
  local function compare(name, ours, theirs)
    if ours ~= theirs then list[#list + 1] = ("%s %s instead of %s"):format(name, ours, theirs) end
  end
  compare("images", cfg.resize, "840x840")
  if not cfg.several or cfg.max_new_tokens ~= 2048 then
    compare("max_new_tokens", cfg.max_new_tokens, 1024)
  end
  if not cfg.oracle then compare("the model in", cfg.dtype, "bf16") end
  if cfg.sam2_path ~= "" then compare("SAM2 in", cfg.sam2_dtype, "bf16") end
  local text = ("as %s: greedy, one prompt a row"):format(script_of(cfg))
  if #list == 0 then return text end
  return text .. "; other than there: " .. table.concat(list, ", ")
end

-- The line below the title of worst.png and best.png.
local function about(run)
  local cfg = run.config
  local who = ("%s (%s)"):format(cfg.model_path or "", cfg.dtype or "")
  if cfg.oracle then who = "SAM2 on the true boxes and points" end
  return ("%s, %d rows judged"):format(who, #run.records)
end

local function introduce(run, total, first, last)
  local cfg = run.config
  local part = ""
  if cfg.parts > 1 then part = (" (%d to %d of %d)"):format(first, last, total) end
  local oracle = ""
  if cfg.oracle then oracle = ", SAM2 on the true boxes and points" end
  run.say(("%s: %d rows%s, protocol %s%s"):format(run.set.name, last - first + 1, part,
    cfg.protocol, oracle))
  if cfg.has_ignored then
    local meanings = { target = "part of the target, as in Seg-Zero's sets",
      left_out = "left out, as LISA does" }
    run.say("ignore regions: " .. meanings[cfg.ignore_regions])
  end
  if cfg.idx then run.say(differences(cfg)) end
  if run.policy then run.say(coordinates.sentence(run.frames, run.set, run.policy)) end
end

-- The set as it is stored.
local function open_set(cfg)
  local is_generated = cfg.data == "refshapes" or cfg.data == "refshapes_multi"
  local split = cfg.split
  if cfg.idx and not is_generated then split = "test" end
  return data.sources.open(cfg.data, {
    split = split, size = cfg.refshapes_size, seed = cfg.seed, rows = cfg.rows, check = false,
    prompt_key = cfg.prompt_key, answer_key = cfg.answer_key, image_key = cfg.image_key,
    image_dir = cfg.image_dir, several = cfg.several, label = "data",
  })
end

-- How many rows there are, and the first and last one of this part.
local function divide(cfg, set)
  local total = math.min(set:count(), cfg.rows or math.huge)
  return total, M.part_of(total, cfg.part, cfg.parts)
end

-- The set, checked before a model is loaded, and what divide() returns. A part checks its own rows.
-- If bad ones are left out, all are checked, so that all parts leave out the same.
local function open_part(cfg, say)
  local set = open_set(cfg)
  local options = {
    name = "data", key = "on_bad_row", on_bad_row = cfg.on_bad_row, reward = "",
    solution_frame = frame.settings(cfg).solution, masks = cfg.sam2_path ~= "",
    empty_masks = cfg.several, say = say,
  }
  if cfg.on_bad_row ~= "skip" then
    local _
    _, options.first, options.last = divide(cfg, set)
  end
  set = check.rows(set, options)
  return set, divide(cfg, set)
end

-- Judges the rows. A stop is an error that says what results.jsonl has.
local function judge_all(run, first, last)
  local ok, reason = stop.try(evaluate_rows, run, first, last)
  local name = stop.signal()
  if name then
    if run.results then run.results:close() end
    reason = ("stopped by %s after %d of %d rows, which are in %s/results.jsonl"):format(name,
      #run.records, last - first + 1, run.folder)
  end
  if name or not ok then error(reason, 0) end
  stop.release()
end

-- Seg-Zero's scripts write an empty file for a part without rows.
local function finish_empty(cfg, total, say)
  local text = ("part %d of %d is empty: there are %d rows"):format(cfg.part, cfg.parts, total)
  if not cfg.idx then error(text, 0) end
  local own = shared_folder.claim(cfg.output_path, cfg.idx, say)
  files.write(own.path .. "/config.json",
    files.indented_json { idx = cfg.idx, parts = cfg.parts })
  files.write(own.path .. "/results.jsonl", "")
  shared_folder.write(own, output_rows.text {})
  say(text)
end

-- The folder for results; with Seg-Zero's arguments it is inside one that all parts share.
local function claim_folder(run)
  local cfg = run.config
  if cfg.idx then
    run.own = shared_folder.claim(cfg.output_path, cfg.idx, run.say)
    return run.own.path
  end
  return folders.claim(cfg.output_path, "config.json", "{}\n", "output_path").path
end

local function write_outputs(run)
  if not run.own then return end
  local cfg = run.config
  local rows = output_rows.of(run.records, { task = cfg.task, protocol = cfg.protocol })
  shared_folder.write(run.own, output_rows.text(rows))
  run.say(("rows: %s (%d)"):format(run.own.output, #rows))
end

-- Opens the set and the models; nil for a part without rows.
local function open_all(p, cfg, options)
  folders.check(cfg.output_path, "output_path")
  if cfg.idx then shared_folder.check(cfg.output_path, cfg.idx) end
  check_policy(cfg)
  local set, total, first, last = open_part(cfg, options.say)
  if last < first then return nil, total end
  local run = {
    config = cfg, set = set, records = {}, best = gallery.new(1), worst = gallery.new(-1),
    say = options.say, frames = frame.settings(cfg), box_iou = options.box_iou,
    kept = options.kept or {}, ask = prompt_of(cfg), parallel = p,
  }
  look_at(run, first)
  if cfg.oracle and not run.masks then
    error(("oracle=true compares masks, and %s has none (first row)"):format(set.name), 0)
  end
  load_policy(run)
  load_segmenter(run)
  if p:is_first() then run.rewarding = rewarding.open(cfg, run.segmenter) end
  return run, total, first, last
end

-- The folder exists once everything that it needs has been loaded.
local function begin_files(run, total, first, last)
  run.folder = claim_folder(run)
  write_config(run, total, first, last)
  run.results = lines.create(run.folder .. "/results.jsonl")
  if run.config.visual_results then
    run.write_visual = visual_results.writer(run.folder .. "/visual_results")
  end
  introduce(run, total, first, last)
end

-- Returns the summary.
local function finish_files(run, seconds)
  run.results:close()
  local options = { masks = run.masks, several = run.config.several, subtitle = about(run) }
  for _, name in ipairs { "worst", "best" } do
    local title = ("%s rows of %s"):format(name:gsub("^%l", string.upper), run.set.name)
    run[name]:write(("%s/%s.png"):format(run.folder, name), title, run.set, options)
  end
  write_outputs(run)
  return results.finish(run.config, run.folder, run.records, run.masks, seconds, run.say)
end

local function evaluate(p, cfg, options)
  local started = now()
  local run, total, first, last
  p:together(function() run, total, first, last = open_all(p, cfg, options) end)
  if not run then
    p:on_root(function() finish_empty(cfg, total, options.say) end)
    return
  end
  p:on_root(function() begin_files(run, total, first, last) end)
  judge_all(run, first, last)
  local summary
  p:on_root(function() summary = finish_files(run, now() - started) end)
  if run.policy then run.policy:free() end
  if not p:is_root() then return end
  return summary, run.folder, run.records
end

local function evaluate_on_ranks(cfg, options)
  local p = parallel.new(nil, { shards = cfg.tensor_parallel_size,
    setting = "tensor_parallel_size" })
  return p:run(evaluate, p, cfg, options)
end

function M.evaluate(cfg, options) return stop.run(evaluate_on_ranks, cfg, options) end

return M
