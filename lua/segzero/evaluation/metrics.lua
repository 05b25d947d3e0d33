-- metrics.lua - gIoU, cIoU and the share of good boxes over evaluated rows, with intervals, under
-- three protocols.
--
--   local s = metrics.summary(records, protocol, { masks = true, boxes = true, resamples = 1000,
--                                                  seed = 0 })
--       protocol: "fixed", "segzero" or "visionreasoner"; masks or boxes false: there are none
--       s.gIoU = {value, low, high}, s.cIoU, s.box; nil if no row counts
--       s.rows, s.failed, s.errors, s.skipped     numbers of rows
--   metrics.line(s)                               the line that scripts read
--   local d = metrics.difference(before, after, {masks =, resamples =, seed =})
--       the same rows twice; all of them count
--   d.gIoU = {before, after, difference, low, high}, d.cIoU, d.box, d.rows;
--       metrics.difference_line(d)
--   metrics.mean(values, {resamples =, seed =})     {mean, low, high} of a list of numbers, or nil
--
-- A record has intersection and union in pixels, box_hit (a box overlaps by more than half) and
-- failure_kind, nil or one of
--   "answer"     the text cannot be read as an answer
--   "sam2"       SAM2 gave no mask
--   "iou"        the masks cannot be compared, or both are empty
--   "image"      the row could not be read, or the policy failed on it
-- The first is counted in s.failed, the others in s.errors.
-- The caller gives a failed row the intersection 0 and the area of its true mask as union. Which
-- rows count:
--   fixed            every row
--   segzero          all but "iou": Seg-Zero's script drops those rows, so its denominator shrinks
--   visionreasoner   all but "iou" and "sam2": its script only fines answers that cannot be read
-- gIoU is the mean of intersection / union (where the union is empty: 1 if rightly_empty, else 0),
-- cIoU is the ratio of the sums. An interval is the 2.5 and 97.5 percentiles over resamples of
-- rows. Leaves out: intervals over images that several rows share.

local ffi = require "ffi"
local core = require "segzero.core.ffi"

local M = {}

local SKIPPED = { fixed = {}, segzero = { iou = true },
  visionreasoner = { iou = true, sam2 = true } }
M.protocols = { "fixed", "segzero", "visionreasoner" }

local MEASURES = { "gIoU", "cIoU", "box" }
local LOW = 0.025
local HIGH = 0.975
-- the stream of random numbers for resampling
local BOOTSTRAP_STREAM = 0xb007

-- True if a record counts under a protocol.
function M.counts(record, protocol)
  local skipped = SKIPPED[protocol]
  if not skipped then
    error(("metrics: unknown protocol '%s', expected one of: %s"):format(tostring(protocol),
      table.concat(M.protocols, ", ")), 2)
  end
  return not skipped[record.failure_kind]
end

function M.iou(record)
  if record.union > 0 then return record.intersection / record.union end
  if record.rightly_empty then return 1 end
  return 0
end

-- ---- intervals ----
-- The q-quantile of a sorted list, with linear interpolation.
local function percentile(sorted, q)
  local place = 1 + (#sorted - 1) * q
  local low = math.floor(place)
  local high = math.min(low + 1, #sorted)
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low)
end

local bits = ffi.new "uint32_t[4]"

-- Calls take(pick) for each resample; pick is a list of n row numbers. It depends on (seed,
-- resample, position) only.
local function resample(n, resamples, seed, take)
  local pick = {}
  for r = 1, resamples do
    for i = 1, n do
      local k = (i - 1) % 4
      if k == 0 then core.C.sz_random_bits(seed, r, BOOTSTRAP_STREAM, (i - 1) / 4, bits) end
      pick[i] = math.floor(tonumber(bits[k]) / 2 ^ 32 * n) + 1
    end
    take(pick)
  end
end

-- gIoU, cIoU and the share of good boxes of the rows that `pick` lists.
local function measures(rows, pick)
  local n = #pick
  local iou = 0
  local intersection = 0
  local union = 0
  local hits = 0
  for i = 1, n do
    local row = rows[pick[i]]
    iou = iou + row.iou
    intersection = intersection + row.intersection
    union = union + row.union
    hits = hits + row.hit
  end
  local ciou = union > 0 and intersection / union or 0
  return iou / n, ciou, hits / n
end

-- What measures() reads of a record.
local function counted(record, masks)
  local row = { iou = 0, intersection = 0, union = 0, hit = record.box_hit and 1 or 0 }
  if masks then
    row.iou = M.iou(record)
    row.intersection = record.intersection
    row.union = record.union
  end
  return row
end

-- For each measure the two percentiles of value(pick) over resamples of n rows; value returns one
-- number a measure.
local function intervals(n, opts, value)
  local lists = { {}, {}, {} }
  resample(n, opts.resamples or 1000, opts.seed or 0, function(pick)
    local values = { value(pick) }
    for k = 1, #MEASURES do table.insert(lists[k], values[k]) end
  end)
  local limits = {}
  for k, list in ipairs(lists) do
    table.sort(list)
    limits[k] = { percentile(list, LOW), percentile(list, HIGH) }
  end
  return limits
end

function M.mean(values, opts)
  local n = #values
  if n == 0 then return nil end
  local function mean(pick)
    local sum = 0
    for i = 1, n do sum = sum + values[pick[i]] end
    return sum / n
  end
  local all = {}
  for i = 1, n do all[i] = i end
  local list = {}
  resample(n, opts.resamples or 1000, opts.seed or 0, function(pick)
    list[#list + 1] = mean(pick)
  end)
  table.sort(list)
  return { mean(all), percentile(list, LOW), percentile(list, HIGH) }
end

local function everything(n)
  local all = {}
  for i = 1, n do all[i] = i end
  return all
end

-- ---- summaries ----
local function count_failure(summary, kind)
  if not kind then return end
  local field = "errors"
  if kind == "answer" then field = "failed" end
  summary[field] = summary[field] + 1
end

function M.summary(records, protocol, opts)
  opts = opts or {}
  local summary = { protocol = protocol, rows = #records, failed = 0, errors = 0, skipped = 0 }
  local masks = opts.masks ~= false
  local rows = {}
  for _, record in ipairs(records) do
    count_failure(summary, record.failure_kind)
    if M.counts(record, protocol) then
      rows[#rows + 1] = counted(record, masks)
    else
      summary.skipped = summary.skipped + 1
    end
  end
  if #rows == 0 then return summary end

  local values = { measures(rows, everything(#rows)) }
  local limits = intervals(#rows, opts, function(pick) return measures(rows, pick) end)
  for k, name in ipairs(MEASURES) do
    local is_known = masks
    if name == "box" then is_known = opts.boxes ~= false end
    if is_known then summary[name] = { values[k], limits[k][1], limits[k][2] } end
  end
  return summary
end

-- A resample takes the same rows from both lists, so differences between rows do not widen the
-- interval.
function M.difference(before, after, opts)
  opts = opts or {}
  if #before ~= #after then error(("metrics: %d rows against %d"):format(#before, #after), 2) end
  local result = { rows = #before }
  if #before == 0 then return result end
  local masks = opts.masks ~= false
  local first = {}
  local second = {}
  for i = 1, #before do
    first[i] = counted(before[i], masks)
    second[i] = counted(after[i], masks)
  end

  local function change(pick)
    local a = { measures(first, pick) }
    local b = { measures(second, pick) }
    return b[1] - a[1], b[2] - a[2], b[3] - a[3]
  end
  local all = everything(#before)
  local old = { measures(first, all) }
  local new = { measures(second, all) }
  local limits = intervals(#before, opts, change)
  for k, name in ipairs(MEASURES) do
    if masks or name == "box" then
      result[name] = { old[k], new[k], new[k] - old[k], limits[k][1], limits[k][2] }
    end
  end
  return result
end

-- ---- text ----
local function interval_text(v)
  if not v then return "none [none, none]" end
  return ("%.3f [%.3f, %.3f]"):format(v[1], v[2], v[3])
end

-- gIoU=0.812 [0.790, 0.830] cIoU=0.845 [0.820, 0.870] box=0.880 [0.850, 0.910] rows=128 failed=3
-- errors=0 skipped=0 protocol=fixed, in one line. A measure that does not exist is `none [none,
-- none]`.
function M.line(s)
  local parts = {}
  for i, name in ipairs(MEASURES) do parts[i] = ("%s=%s"):format(name, interval_text(s[name])) end
  for _, name in ipairs { "rows", "failed", "errors", "skipped" } do
    parts[#parts + 1] = ("%s=%d"):format(name, s[name])
  end
  parts[#parts + 1] = "protocol=" .. s.protocol
  return table.concat(parts, " ")
end

-- gIoU 0.358 -> 0.401: +0.043 [+0.012, +0.075]  cIoU ...  box ...  rows=128
function M.difference_line(d)
  local parts = {}
  for i, name in ipairs(MEASURES) do
    local v = d[name]
    parts[i] = name .. " none"
    if v then parts[i] = ("%s %.3f -> %.3f: %+.3f [%+.3f, %+.3f]"):format(name, unpack(v)) end
  end
  parts[#parts + 1] = ("rows=%d"):format(d.rows)
  return table.concat(parts, "  ")
end

return M
