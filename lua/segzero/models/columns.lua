-- columns.lua - writes the parts of weights whose columns are divided over shards. In a file a
-- shard's columns are as many runs of bytes as there are rows; so the shards give each other rows
-- first (runtime/comm/columns.c), and each writes one range of bytes.
--
--   local columns = columns.new(exchange)   exchange(t, run, skip): columns_to_rows of the shards'
--                                           group (core/ranks.lua)
--   local rest = columns:write(path, piece) piece: {tensor =, begin =, place =} as for w:pieces
--                                           (core/jobs.lua). Writes its whole rows now, and returns
--                                           the pieces that are left for the list of files
--   columns:check()                         raises what could not be written
--
-- All shards write the same pieces in the same order. A failed write does not stop the exchanges,
-- which the other shards wait for; a failed exchange is an error at once. Rows take the memory of
-- one part at a time. Long runs are left as they are.
-- Leaves out: syncing, which the list of files does.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C

local M = {}

local methods = {}
local mt = { __index = methods }

local LONG = 2 ^ 18              -- bytes of a run that is a good write by itself

function M.new(exchange) return setmetatable({ exchange = exchange }, mt) end

-- Elements first .. first + count of a piece.
local function range(piece, first, count)
  local t = tensor.no_grad(function()
    return piece.tensor:reshape(piece.tensor:numel(), 0, 0, 0):narrow(first, count)
  end)
  local p = piece.place
  return { tensor = t, begin = piece.begin,
    place = ffi.new("sz_place", { p.first, p.run, p.stride, p.skip + first }) }
end

function methods:write(path, piece)
  local p = piece.place
  local run, skip, stride = tonumber(p.run), tonumber(p.skip), tonumber(p.stride)
  local n = piece.tensor:numel()
  local head = -skip % run
  local count = math.floor((n - head) / run)
  local is_long = run * tensor.WIDTH[piece.tensor:dtype()] >= LONG
  if run == stride or is_long or count < 2 then return { piece } end

  -- Rows of the whole tensor, which begin at its first column.
  local rows = self.exchange(piece.tensor, run, skip)
  if rows then
    local place = ffi.new("sz_place", { rows.first * stride, 1, 1, 0 })
    local written = C.sz_shared_file_put(path, rows.tensor.ptr, piece.begin, place)
    local ok, why = pcall(core.call, written)
    if not ok then self.failure = self.failure or why end
    rows.tensor:free()
  end

  -- What the part has of a row before and after them.
  local rest = {}
  local tail = n - head - count * run
  if head > 0 then rest[1] = range(piece, 0, head) end
  if tail > 0 then rest[#rest + 1] = range(piece, n - tail, tail) end
  return rest
end

function methods:check()
  if self.failure then error(self.failure, 0) end
end

return M
