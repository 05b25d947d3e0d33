-- run.lua - makes training rows out of masks and writes them: recipes/prepare_data.lua.
--
--   local summary = run.run(cfg, say)       cfg: config/prepare_data.lua; say(text) prints a line
--       summary: {rows =, read =, skipped =, folder =}
--
-- Masks, boxes and points are found here, one entry after the other; images are read, resized and
-- encoded by background threads, up to AHEAD of them. Rows are written in the order of their
-- entries, so neither threads nor a run that was stopped change a byte.
-- Leaves out: what rows are made of (entries.lua, solution.lua) and where they go (output.lua).

local console = require "segzero.log.console"
local core = require "segzero.core.ffi"
local data = require "segzero.data"
local entries = require "segzero.prepare.entries"
local ffi = require "ffi"
local files = require "segzero.core.files"
local filters = require "segzero.prepare.filter"
local jobs = require "segzero.core.jobs"
local outputs = require "segzero.prepare.output"
local solution = require "segzero.prepare.solution"
local visible = require "segzero.core.visible"

local M = {}

local C = core.C

local AHEAD = 8                 -- images in work
local EVERY = 10                -- seconds between two lines of progress
local SHOWN = 3                 -- faults that are printed
local MADE_BY = 1               -- changes when the same settings make other rows

-- ---- what is prepared ----
-- The settings that decide what rows there are.
local DECIDING = { "prompt_key", "image_key", "rows", "shuffle", "seed", "on_bad_row", "several",
  "size", "sentences", "no_target", "sam2_filter", "sam2_path", "sam2_dtype", "format",
  "rows_per_file" }

local function state_of(cfg, list)
  local state = { made_by = MADE_BY, entries = list:fingerprint(), count = list:count(),
    image_dir = cfg.image_dir }
  for _, key in ipairs(DECIDING) do state[key] = cfg[key] end
  return files.json(state) .. "\n"
end

-- The numbers of the entries, in order.
local function order_of(cfg, list)
  local count = list:count()
  local last = math.min(cfg.rows or count, count)
  if not cfg.shuffle then return last, function(i) return i end end
  local order = data.permutation(count, cfg.seed, 0)
  return last, function(i) return order[i] end
end

-- ---- one row ----
-- The background job that makes an entry's PNG.
local function start_image(entry, size)
  local source = entry.image
  if type(source) == "string" then
    return C.sz_image_png_start(source, nil, 0, nil, size, size)
  elseif source then
    return C.sz_image_png_start(source.name, source.bytes, #source.bytes, nil, size, size)
  end
  local img = entry.load()
  local job = C.sz_image_png_start(nil, nil, 0, img.ptr, size, size)
  img:free()
  return job
end

-- The row of an entry with its image in work, or nil if nothing of the entry stays.
local function start_row(run, i)
  local entry = run.list:get(run.number(i))
  local options = run.options
  if run.filter then options.judge = run.filter:judge(entry) end
  local row, dropped = solution.make(entry, options)
  for why, count in pairs(dropped) do run.dropped[why] = (run.dropped[why] or 0) + count end
  if not row then return nil end
  row.index = i
  row.where = entry.where
  row.job = jobs.wrap(core.call(start_image(entry, run.cfg.size)))
  return row
end

local length = ffi.new "size_t[1]"
local side = ffi.new "int[2]"

-- Waits for the row's image.
local function finish_row(row)
  local ok, why = row.job:wait()
  if not ok then error(("%s: %s"):format(row.where, why), 0) end
  local bytes = C.sz_image_png_of(row.job.ptr, length, side, side + 1)
  row.png = ffi.string(bytes, length[0])
  row.width = side[0]
  row.height = side[1]
  row.job:free()
  row.job = nil
end

-- ---- counting and telling ----
local function note_fault(run, message)
  if run.cfg.on_bad_row == "error" then
    error(message .. " (on_bad_row=skip leaves such rows out)", 0)
  end
  run.faults = run.faults + 1
  if run.faults <= SHOWN then run.say("  left out: " .. visible.line(message)) end
end

-- f(...), whose error is a fault of the row.
local function try(run, f, ...)
  local ok, result = pcall(f, ...)
  if ok then return result end
  if core.is_interrupt(result) then error(result, 0) end
  note_fault(run, core.plain(result))
  return nil
end

local function tell(run)
  local now = C.sz_seconds()
  if now - run.told < EVERY then return end
  run.told = now
  local each = (now - run.started) / run.read
  run.say(("  %d/%d read, %d rows, %.1f a second, %s left"):format(run.done + run.read, run.total,
    run.rows, 1 / each, console.duration(each * (run.total - run.done - run.read))))
end

-- ---- a part ----
local function write_oldest(run)
  local row = table.remove(run.queue, 1)
  if try(run, function()
    finish_row(row)
    return true
  end) then
    run.out:row(row)
    run.rows = run.rows + 1
  end
end

local function prepare_part(run, first, last)
  for i = first, last do
    local row = try(run, start_row, run, i)
    if row then run.queue[#run.queue + 1] = row end
    if #run.queue >= AHEAD then write_oldest(run) end
    run.read = run.read + 1
    tell(run)
  end
  while #run.queue > 0 do write_oldest(run) end
end

local function prepare_parts(run)
  local per = run.cfg.rows_per_file
  for k = 1, run.cfg.parts do
    local first = (k - 1) * per + 1
    local last = math.min(k * per, run.total)
    if run.out:has(k) then
      run.done = run.done + last - first + 1
    else
      run.out:begin(k)
      prepare_part(run, first, last)
      run.out:finish_part()
    end
  end
end

-- ---- the run ----
local function summarize(run, count)
  local parts = {}
  for why, text in pairs(solution.REASONS) do
    local dropped = run.dropped[why]
    if dropped then parts[#parts + 1] = ("%d %s"):format(dropped, text) end
  end
  table.sort(parts)
  if run.faults > 0 then parts[#parts + 1] = ("%d that cannot be read"):format(run.faults) end
  local tail = #parts > 0 and "; left out: " .. table.concat(parts, ", ") or ""
  run.say(("%d rows of %d entries in %s%s"):format(count, run.total, run.out.folder, tail))
  if count == 0 then error("no row could be made of " .. run.list.name, 0) end
  return { rows = count, read = run.total, skipped = run.faults, folder = run.out.folder }
end

local function introduce(run)
  local cfg = run.cfg
  local form = cfg.several and "lists of objects" or "one object each"
  run.say(("%s: %d entries, %s, images of %d x %d, to %s"):format(run.list.name, run.total, form,
    cfg.size, cfg.size, run.out.folder))
  for _, note in ipairs(run.list.notes) do run.say("  " .. visible.line(note)) end
  if run.filter then run.say("  " .. tostring(run.filter)) end
  if run.out.found > 0 then
    run.say(("  %d of %d parts are there from a run before"):format(run.out.found, cfg.parts))
  end
end

function M.run(cfg, say)
  local list = entries.open(cfg)
  local total, number = order_of(cfg, list)
  cfg.parts = math.ceil(total / cfg.rows_per_file)
  local filter = filters.open(cfg)
  local run = { cfg = cfg, say = say, list = list, total = total, number = number, filter = filter,
    out = outputs.open(cfg, state_of(cfg, list)), queue = {}, read = 0, done = 0, rows = 0,
    faults = 0, dropped = {}, started = C.sz_seconds(), told = C.sz_seconds(),
    options = { several = cfg.several, size = cfg.size, no_target = cfg.no_target } }
  introduce(run)
  local ok, why = pcall(prepare_parts, run)
  if not ok then
    local kept = run.out:cancel()
    if kept > 0 then
      pcall(say, ("  %d of %d parts are kept: the same command goes on"):format(kept, cfg.parts))
    end
    error(why, 0)
  end
  return summarize(run, run.out:finish())
end

return M
