-- metrics.lua - gIoU, cIoU and the share of good boxes over evaluated rows, under three ways to count failures, with intervals.
--
--   local s = metrics.summary(records, "fixed" | "segzero" | "visionreasoner", {masks = true, resamples = 1000, seed = 0})
--   s.gIoU = {value, low, high}, s.cIoU, s.box    nil where there is nothing to count; s.rows, s.failed, s.errors, s.skipped
--   metrics.line(s)                               the line that scripts read
--   local d = metrics.difference(before, after, {masks =, resamples =, seed =})    two lists of the same rows, all counted
--   d.gIoU = {before, after, difference, low, high}, d.cIoU, d.box, d.rows; metrics.difference_line(d)
--
-- A record: intersection and union in pixels, box_hit (a box overlaps by more than half), failure_kind nil or one of
--   "answer"     the text cannot be read as an answer: counted as failed
--   "sam2"       SAM2 gave no mask
--   "iou"        the masks cannot be compared, or both are empty
--   "picture"    the row could not be read, or the policy failed on it; these last three are counted as errors
-- The caller gives a failed row intersection 0 and the area of its true mask as union. Which rows count:
--   fixed            every row
--   segzero          all but "iou": Seg-Zero's script drops those rows, so its denominator shrinks
--   visionreasoner   all but "iou" and "sam2": its script fines only answers that cannot be read
-- gIoU is the mean of intersection / union (0 where the union is empty), cIoU the ratio of the sums, an interval the 2.5 and
-- 97.5 percentiles over resamples of rows. Leaves out: intervals over pictures that several rows share.

local ffi = require "ffi"
local core = require "segzero.core.ffi"

local M = {}

local floor = math.floor

local SKIPPED = { fixed = {}, segzero = { iou = true }, visionreasoner = { iou = true, sam2 = true } }
M.protocols = { "fixed", "segzero", "visionreasoner" }

function M.counts(record, protocol)
  local skipped = SKIPPED[protocol]
  if not skipped then error(("metrics: there is no protocol '%s'"):format(tostring(protocol)), 2) end
  return not skipped[record.failure_kind]
end

function M.iou(record) return record.union > 0 and record.intersection / record.union or 0 end

-- The value below which a share q of a sorted list lies, linear between neighbours.
local function percentile(sorted, q)
  local at = 1 + (#sorted - 1) * q
  local low = floor(at)
  local high = math.min(low + 1, #sorted)
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low)
end

local bits = ffi.new "uint32_t[4]"

-- Calls take(pick) for each resample, pick being a list of n row numbers. The numbers hang on (seed, resample, place) alone.
local function resample(n, resamples, seed, take)
  local pick = {}
  for r = 1, resamples do
    for i = 1, n do
      local k = (i - 1) % 4
      if k == 0 then core.C.sz_random_bits(seed, r, 0xb007, (i - 1) / 4, bits) end
      pick[i] = floor(tonumber(bits[k]) / 2 ^ 32 * n) + 1
    end
    take(pick)
  end
end

-- Means and ratios of one choice of rows: gIoU, cIoU, box share.
local function measures(rows, pick)
  local n, iou, inside, either, hits = #pick, 0, 0, 0, 0
  for i = 1, n do
    local r = rows[pick[i]]
    iou, inside, either, hits = iou + r.iou, inside + r.intersection, either + r.union, hits + r.hit
  end
  return iou / n, either > 0 and inside / either or 0, hits / n
end

-- What measures reads of a record.
local function counted(r, masks)
  return { iou = masks and M.iou(r) or 0, intersection = masks and r.intersection or 0, union = masks and r.union or 0,
    hit = r.box_hit and 1 or 0 }
end

local MEASURES = { "gIoU", "cIoU", "box" }

-- For each measure the 2.5 and 97.5 percentiles of of(pick, k) over resamples of n rows; of returns one value for each.
local function intervals(n, opts, of)
  local lists, out = { {}, {}, {} }, {}
  resample(n, opts.resamples or 1000, opts.seed or 0, function(pick)
    local values = { of(pick) }
    for k = 1, #MEASURES do table.insert(lists[k], values[k]) end
  end)
  for k = 1, #MEASURES do
    table.sort(lists[k])
    out[k] = { percentile(lists[k], 0.025), percentile(lists[k], 0.975) }
  end
  return out
end

local function everything(n)
  local all = {}
  for i = 1, n do all[i] = i end
  return all
end

function M.summary(records, protocol, opts)
  opts = opts or {}
  local s = { protocol = protocol, rows = #records, failed = 0, errors = 0, skipped = 0 }
  local masks, rows = opts.masks ~= false, {}
  for _, r in ipairs(records) do
    local kind = r.failure_kind
    if kind == "answer" then s.failed = s.failed + 1 elseif kind then s.errors = s.errors + 1 end
    if M.counts(r, protocol) then rows[#rows + 1] = counted(r, masks) else s.skipped = s.skipped + 1 end
  end
  if #rows == 0 then return s end
  local values = { measures(rows, everything(#rows)) }
  local limits = intervals(#rows, opts, function(pick) return measures(rows, pick) end)
  for k, name in ipairs(MEASURES) do
    if masks or name == "box" then s[name] = { values[k], limits[k][1], limits[k][2] } end
  end
  return s
end

-- A resample takes the same rows of both lists, so what the rows have in common does not widen the interval.
function M.difference(before, after, opts)
  opts = opts or {}
  local d, masks, rows = { rows = #before }, opts.masks ~= false, { {}, {} }
  if #before ~= #after then error(("metrics: %d rows against %d"):format(#before, #after), 2) end
  if #before == 0 then return d end
  for i = 1, #before do rows[1][i], rows[2][i] = counted(before[i], masks), counted(after[i], masks) end
  local function change(pick)
    local a, b = { measures(rows[1], pick) }, { measures(rows[2], pick) }
    return b[1] - a[1], b[2] - a[2], b[3] - a[3]
  end
  local all = everything(#before)
  local was, is = { measures(rows[1], all) }, { measures(rows[2], all) }
  local limits = intervals(#before, opts, change)
  for k, name in ipairs(MEASURES) do
    if masks or name == "box" then d[name] = { was[k], is[k], is[k] - was[k], limits[k][1], limits[k][2] } end
  end
  return d
end

local function three(v)
  if not v then return "none [none, none]" end
  return ("%.3f [%.3f, %.3f]"):format(v[1], v[2], v[3])
end

-- gIoU=0.812 [0.790, 0.830] cIoU=0.845 [0.820, 0.870] box=0.880 [0.850, 0.910] rows=128 failed=3 errors=0 skipped=0 protocol=fixed
-- A measure that there is not is `none [none, none]`.
function M.line(s)
  return ("gIoU=%s cIoU=%s box=%s rows=%d failed=%d errors=%d skipped=%d protocol=%s"):format(three(s.gIoU), three(s.cIoU), three(s.box),
    s.rows, s.failed, s.errors, s.skipped, s.protocol)
end

-- gIoU 0.358 -> 0.401: +0.043 [+0.012, +0.075]  cIoU ...  box ...  rows=128
function M.difference_line(d)
  local parts = {}
  for _, name in ipairs(MEASURES) do
    local v = d[name]
    parts[#parts + 1] = v and ("%s %.3f -> %.3f: %+.3f [%+.3f, %+.3f]"):format(name, unpack(v)) or name .. " none"
  end
  parts[#parts + 1] = ("rows=%d"):format(d.rows)
  return table.concat(parts, "  ")
end

return M
