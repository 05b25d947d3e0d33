-- lock_step.lua - ranks that do the same work at the same time, such as the shards of one model:
-- what only one of them may decide, and failures that all of them must see.
--
--   lock_step.first(group, f) -> value       f runs on the first rank of the group; all get its
--                                            result, or raise its error. group: of core/ranks.lua
--   lock_step.alike(group, f, ...)           f's results on each rank; where f fails on one, all
--                                            raise that rank's error
--   lock_step.tokens(group, draw, count, f)  f fills draw.token and draw.logprob (C arrays of
--                                            `count`) on the first rank; all get them
--   lock_step.least(group, n) -> number      the least of all ranks' numbers
--   lock_step.seen_by_all(group) -> rank     of the group, on which the last error came up, if it
--                                            is one that all have raised; else nil. Asking forgets
--                                            it
--   lock_step.stops(group, on)               a signal on any rank stops all of them in first() and
--                                            alike(), with the error of core/stop.lua; at first off
--
-- group = nil: a rank that works alone; f runs, and nothing is sent. An error that one rank alone
-- raises outside these calls leaves the others waiting: the caller ends the job
-- (train/parallel.lua). A value is what ranks.lua can send. Leaves out: who belongs to which group.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local stop = require "segzero.core.stop"
local tensor = require "segzero.core.tensor"

local M = {}

local WEAK = { __mode = "k" }
local shared = setmetatable({}, WEAK)        -- group -> the rank whose error all have raised
local stopping = setmetatable({}, WEAK)      -- group -> whether signals stop it

function M.stops(group, on) stopping[group] = on end

function M.seen_by_all(group)
  local rank = shared[group]
  shared[group] = nil
  return rank
end

local function raise(group, failure, rank)
  shared[group] = rank
  error(failure, 0)
end

-- What f came to on this rank, as a value that travels. A signal counts as a failure.
local function outcome(group, ok, value)
  if not ok then return { failure = tostring(value) } end
  if stopping[group] and stop.signal() then return { failure = stop.INTERRUPTED } end
  return { value = value }
end

function M.first(group, f)
  if not group then return f() end
  local mine
  if group:rank() == 0 then mine = outcome(group, xpcall(f, stop.traced)) end
  local result = group:share(mine, 0)
  if result.failure then raise(group, result.failure, 0) end
  return result.value
end

function M.alike(group, f, ...)
  if not group then return f(...) end
  local function finish(ok, ...)
    local all = group:gather(outcome(group, ok, not ok and (...) or nil))
    for r, result in ipairs(all) do
      if result.failure then raise(group, result.failure, r - 1) end
    end
    return ...
  end
  return finish(xpcall(f, stop.traced, ...))
end

-- ---- tokens ----
local FAILED = 1

-- One message: whether f failed, the tokens, the bits of the log-probabilities.
function M.tokens(group, draw, count, f)
  if not group then return f() end
  local message = tensor.zeros({ 1 + 2 * count }, { dtype = "i32" })
  local numbers = tensor.data(message)
  local width = ffi.sizeof "int32_t" * count
  local ok, failure = true, nil
  if group:rank() == 0 then
    ok, failure = pcall(f)
    if not ok then numbers[0] = FAILED end
    ffi.copy(numbers + 1, draw.token, width)
    ffi.copy(numbers + 1 + count, draw.logprob, width)
  end
  group:broadcast(message, 0)
  if numbers[0] == FAILED then
    raise(group, group:share(not ok and core.plain(failure) or nil, 0), 0)
  end
  ffi.copy(draw.token, numbers + 1, width)
  ffi.copy(draw.logprob, numbers + 1 + count, width)
  message:free()
end

function M.least(group, n)
  if not group then return n end
  local least = n
  for _, other in ipairs(group:gather(n)) do least = math.min(least, other) end
  return least
end

return M
