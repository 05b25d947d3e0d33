-- ranks.lua - the processes of one job and what they exchange (runtime/comm/comm.h).
--
--   ranks.launched()                     whether a launcher started this process as a rank of a job
--   ranks.stray() -> text, or nil        several processes were started in a way that does not join
--                                        them
--   ranks.transport() -> "MPI" | "TCP"   what carries bytes between them; "" without a launcher
--   local world = ranks.world()          all ranks; one if no launcher started this process
--   world:rank(), world:size()           from 0; the number of ranks
--   world:neighbours()                   how many of them this machine has, this one included
--   world:split(colour) -> a group       the ranks that give the same number
--   world:all_reduce(t)                  t becomes the sum over all ranks
--   world:sum_gradient(t)                the gradient of parameter t, zeros where it has none
--   world:sum_gradient_parts(pointers, n, bounds)    the same for the ranges that this rank has
--   world:gather_parts(pointers, n, bounds)          the ranges of all ranks go to all (comm.h)
--   world:columns_to_rows(t, run, skip) -> {tensor =, first =}     of a matrix whose columns are
--                                        divided; nil where this rank gets no row (comm.h)
--   world:broadcast(t, root)             t of rank `root` becomes t of all
--   world:all_gather(part, whole)        whole = the parts of all ranks, in their order
--   world:reduce_scatter(whole, part)    part = this rank's part of the sum
--   world:sum(list) -> list              the sum of numbers, in double precision
--   world:gather(value) -> list          the values of all ranks, in their order
--   world:share(value, root) -> value    the value of rank `root` (from 0; default 0)
--   world:barrier()
--   ranks.bytes_sent() -> n, of which    of this rank so far; and how many of them for numbers and
--                                        values, not for tensors
--   ranks.set_timeout(seconds), ranks.abort(status)
--   ranks.fail_after(n), ranks.exchanges()   for tests (sz_comm_fail_after, sz_comm_exchanges)
--
-- Every rank of a group makes the same calls in the same order. A value is nil, a boolean, a
-- number, a string, or a table of these; numbers keep their bits. An error means that the job is
-- over: print it, then ranks.abort. Leaves out: who does which part of a training run
-- (train/parallel.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"

core.declare "runtime/comm/comm.h"

local C = core.C
local check = core.call
local M = {}

local methods = {}
local mt = { __index = methods }

local function wrap(pointer, owned)
  if owned then pointer = ffi.gc(check(pointer), C.sz_comm_free) end
  return setmetatable({ pointer = check(pointer) }, mt)
end

function M.launched() return C.sz_comm_launched() ~= 0 end

function M.transport() return ffi.string(C.sz_comm_transport_name()) end

function M.stray()
  local text = C.sz_comm_stray()
  return text ~= nil and ffi.string(text) or nil
end

local world

function M.world()
  world = world or wrap(C.sz_comm_world())
  return world
end

function methods:rank() return C.sz_comm_rank(self.pointer) end

function methods:size() return C.sz_comm_size(self.pointer) end

function methods:neighbours()
  local function host(rank) return self:name(rank):match "%(.*%)" end
  local own = host(self:rank())
  local count = 0
  for rank = 0, self:size() - 1 do
    if host(rank) == own then count = count + 1 end
  end
  return count
end

-- The name of a rank for messages: "3 (host b)".
function methods:name(rank) return ffi.string(C.sz_comm_name(self.pointer, rank)) end

function methods:split(colour) return wrap(C.sz_comm_split(self.pointer, colour), true) end

-- ---- tensors ----
function methods:all_reduce(t) check(C.sz_comm_all_reduce(self.pointer, handle.pointer(t, 2))) end

function methods:sum_gradient(t)
  check(C.sz_comm_sum_gradient(self.pointer, handle.pointer(t, 2)))
end

function methods:sum_gradient_parts(pointers, n, bounds)
  check(C.sz_comm_sum_gradient_parts(self.pointer, pointers, n, bounds))
end

function methods:gather_parts(pointers, n, bounds)
  check(C.sz_comm_gather_parts(self.pointer, pointers, n, bounds))
end

function methods:columns_to_rows(t, run, skip)
  local rows = ffi.new "sz_tensor *[1]"
  local first = ffi.new "int64_t[1]"
  check(C.sz_comm_columns_to_rows(self.pointer, handle.pointer(t, 2), run, skip, rows, first))
  if rows[0] == nil then return nil end
  return { tensor = handle.wrap(rows[0]), first = tonumber(first[0]) }
end

function methods:broadcast(t, root)
  check(C.sz_comm_broadcast(self.pointer, handle.pointer(t, 2), root))
end

function methods:all_gather(part, whole)
  check(C.sz_comm_all_gather(self.pointer, handle.pointer(part, 2), handle.pointer(whole, 2)))
end

function methods:reduce_scatter(whole, part)
  check(C.sz_comm_reduce_scatter(self.pointer, handle.pointer(whole, 2), handle.pointer(part, 2)))
end

function methods:barrier() check(C.sz_comm_barrier(self.pointer)) end

-- ---- numbers and values ----
function methods:sum(list)
  local numbers = ffi.new("double[?]", math.max(#list, 1), list)
  check(C.sz_comm_sum(self.pointer, numbers, #list))
  local sums = {}
  for i = 1, #list do sums[i] = numbers[i - 1] end
  return sums
end

-- The bytes of every rank: a pointer to them, and the size of each.
local function gather_bytes(self, text)
  local size = self:size()
  local sizes = ffi.new("int64_t[?]", size)
  check(C.sz_comm_sizes(self.pointer, #text, sizes))
  local total = 0
  for r = 0, size - 1 do total = total + tonumber(sizes[r]) end
  local all = ffi.new("char[?]", math.max(total, 1))
  check(C.sz_comm_all_gather_bytes(self.pointer, text, sizes, all))
  return all, sizes
end

-- LuaJIT's own serialization; versions before 2021 have none, and need it for several ranks only.
local function buffers() return require "string.buffer" end

function methods:gather(value)
  if self:size() == 1 then return { value } end
  local buffer = buffers()
  local all, sizes = gather_bytes(self, buffer.encode(value))
  local values = {}
  local at = 0
  for r = 0, self:size() - 1 do
    values[r + 1] = buffer.decode(ffi.string(all + at, sizes[r]))
    at = at + tonumber(sizes[r])
  end
  return values
end

function methods:share(value, root)
  if self:size() == 1 then return value end
  root = root or 0
  local buffer = buffers()
  local text = self:rank() == root and buffer.encode(value) or ""
  local all, sizes = gather_bytes(self, text)
  return (buffer.decode(ffi.string(all, sizes[root])))
end

-- ---- the job ----
function M.set_timeout(seconds) C.sz_comm_set_timeout(seconds) end

-- What these send is no tensor of the model. The tokens that shards agree on are broadcast.
local value_bytes = 0
for _, name in ipairs { "sum", "gather", "share", "broadcast", "barrier", "split" } do
  local method = methods[name]
  methods[name] = function(...)
    local before = C.sz_comm_bytes_sent()
    local result = method(...)
    value_bytes = value_bytes + tonumber(C.sz_comm_bytes_sent() - before)
    return result
  end
end

function M.bytes_sent() return tonumber(C.sz_comm_bytes_sent()), value_bytes end

function M.fail_after(n) C.sz_comm_fail_after(n) end

function M.exchanges() return tonumber(C.sz_comm_exchanges()) end

-- The library ends the process by exit(), which is no accident here.
function M.abort(status)
  local has_host, host = pcall(require, "segzero.host")
  if has_host and M.world():size() > 1 then host.arm(false) end
  C.sz_comm_abort(status)
end

return M
