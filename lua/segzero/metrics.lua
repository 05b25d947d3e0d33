-- metrics.lua - gIoU, cIoU and the share of good boxes over evaluated rows, under three ways to count failures, with intervals.
--
--   local s = metrics.summary(records, "fixed" | "segzero" | "visionreasoner", {masks = true, resamples = 1000, seed = 0})
--   s.gIoU = {value, low, high}, s.cIoU, s.box    nil where there is nothing to count; s.rows, s.failed, s.errors, s.skipped
--   metrics.line(s)                               the line that scripts read
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
local core = require "segzero.ffi"

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

function M.summary(records, protocol, opts)
  opts = opts or {}
  local s = { protocol = protocol, rows = #records, failed = 0, errors = 0, skipped = 0 }
  local masks, rows = opts.masks ~= false, {}
  for _, r in ipairs(records) do
    local kind = r.failure_kind
    if kind == "answer" then s.failed = s.failed + 1 elseif kind then s.errors = s.errors + 1 end
    if M.counts(r, protocol) then
      rows[#rows + 1] = { iou = masks and M.iou(r) or 0, intersection = masks and r.intersection or 0, union = masks and r.union or 0,
        hit = r.box_hit and 1 or 0 }
    else
      s.skipped = s.skipped + 1
    end
  end
  if #rows == 0 then return s end

  local all, lists = {}, { {}, {}, {} }
  for i = 1, #rows do all[i] = i end
  local values = { measures(rows, all) }
  resample(#rows, opts.resamples or 1000, opts.seed or 0, function(pick)
    local a, b, c = measures(rows, pick)
    local k = #lists[1] + 1
    lists[1][k], lists[2][k], lists[3][k] = a, b, c
  end)
  for i, name in ipairs { "gIoU", "cIoU", "box" } do
    table.sort(lists[i])
    if masks or name == "box" then s[name] = { values[i], percentile(lists[i], 0.025), percentile(lists[i], 0.975) } end
  end
  return s
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

return M
