-- parallel.lua - who does what when several ranks train one model. W ranks are D replicas of the
-- model with T shards each: rank r is shard r mod T of replica floor(r / T). A replica takes a
-- share of the prompts; its shards hold parts of the model and work in lock step. With joining.lua
-- and balance.lua the only files of training that know ranks.
--
--   local p = parallel.new(timeout, { shards = T, copies = false, setting = name })
--                                      timeout: seconds that a collective waits; the job's ranks.
--                                      copies: each replica updates all weights by itself.
--                                      setting: of T, for a note; nil: that of training
--   local p = parallel.alone()         one rank
--   local p = parallel.all_shards()    one replica: all ranks of the job are its shards
--   p.rank, p.size                     from 0; 1 without a launcher
--   p.replica, p.replicas              this rank's replica, from 0, and D
--   p.shard, p.shards                  this rank's shard, from 0, and T
--   p.shard_group                      the ranks of this replica (core/ranks.lua); nil if T is 1
--   p.replica_group                    the ranks with this shard; nil if there is one rank
--   p:is_root()                        whether this rank writes files and prints
--   p:is_first()                       whether this is the first shard of its replica
--   p:neighbours()                     how many ranks run on this machine, this one included
--   p:name() -> text                   of this rank, for messages: "3 (host b)"
--   p:owns(i)                          whether prompt i of a step is this replica's
--   p:share_of(count) -> first, last   this replica's share of `count` rows; first > last: none
--   p:run(f, ...)                      f's results, with signals held but for what together() runs
--   p:together(f) -> list              f's results of all ranks, in their order
--   p:agreed(f) -> list                the same with signals held in f too
--   p:in_step(f) -> list               the same for an f in which the shards run the model
--   p:collective(name, ...)            one of segzero.core.ranks; if it fails, the job ends
--   p:on_root(f) -> value              f runs on rank 0, and all get its result
--   p:on_root_held(f) -> value         the same with signals held, for an f that changes what all
--                                      ranks must know alike
--   p:from_first(f) -> value           f runs on the replica's first shard, and its shards get it
--   p:alike(f, ...)                    f's results on each shard; if one fails, all of them do
--   p:later(f, ...)                    f runs on this rank alone, such as a logger on rank 0; if
--                                      it fails, check_stop() raises its error
--   p:check_stop()                     between steps: raises on all ranks if a signal came to one,
--                                      or later() failed on one
--   p:total(n) -> number               the sum of the first shards' numbers; nil stays nil
--   parallel.quiet()                   this rank prints nothing from now on but errors
--   parallel.mute()                    nor errors: another rank prints them
--   join, own, join_references, sum_statistics, join_judged       joining.lua
--
-- Ranks must agree on what comes next, so everything that can fail or be stopped on one rank alone
-- runs inside together(): if f fails on any rank, all ranks raise the same error, which names the
-- rank. Inside in_step() a shard that fails alone leaves the others waiting in the model: it prints
-- why and ends the job, unless the error came out of from_first() or alike(), which all shards see.
-- Signals stop a replica there. A collective that fails leaves no way to agree, either.
-- The results of f travel as segzero.core.ranks says. With one rank nothing travels.
-- Leaves out: the parts of an optimizer and the sums of gradients (shards.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local joining = require "segzero.train.joining"
local lock_step = require "segzero.core.lock_step"
local notes = require "segzero.core.notes"
local ranks = require "segzero.core.ranks"
local stop = require "segzero.core.stop"

local M = {}

local methods = {}
local mt = { __index = methods }

for name, method in pairs(joining.methods) do methods[name] = method end

local FAILED = 1                -- the exit status of a job whose ranks have lost each other

-- ---- replicas and shards ----
local function check_shards(size, shards)
  if size % shards == 0 then return end
  local fits = {}
  for n = 1, size do
    if size % n == 0 then fits[#fits + 1] = n end
  end
  error(("tensor_parallel_size is %d, which does not divide the %d ranks: %s would do, or "
    .. "--ranks %d"):format(shards, size, table.concat(fits, ", "):gsub(", (%d+)$", " or %1"),
    math.ceil(size / shards) * shards), 0)
end

-- What decides how this rank's results are rounded.
local function rounding()
  if (os.getenv "SEGZERO_DEVICE" or ""):find "^cuda" then return "a device" end
  return ffi.string(core.C.sz_processor_describe())
end

-- Each shard updates its own copy of what is not divided, such as norms, and so does each replica
-- of all weights if the optimizer's state is not divided. Copies stay equal only where ranks round
-- alike: each `count` ranks that follow one another. All ranks see the same, and rank 0 says it.
local function check_rounding(self, count)
  local all = self.world:gather(rounding())
  for r = 1, self.size do
    local first = r - (r - 1) % count
    if all[r] ~= all[first] then
      if self.rank > 0 then M.mute() end
      local other = self.world:name(first - 1)
      error(("rank %s computes with %s, rank %s with %s: ranks that update copies of the same "
        .. "weights must round alike, so set SEGZERO_CPU or DNNL_MAX_CPU_ISA to what all of them "
        .. "have"):format(self.world:name(r - 1), all[r], other, all[first]), 0)
    end
  end
end

function M.new(timeout, options)
  local world = ranks.world()
  if timeout then ranks.set_timeout(timeout) end
  local size = world:size()
  local rank = world:rank()
  local shards = options and options.shards or 1
  if size == 1 and shards > 1 then
    local setting = options.setting or "worker.rollout.tensor_parallel_size"
    notes.say(("%s=%d has no effect on one rank; segzero --ranks %d divides the model")
      :format(setting, shards, shards))
    shards = 1
  end
  if rank > 0 and size % shards ~= 0 then M.mute() end
  check_shards(size, shards)

  local self = setmetatable({ world = world, rank = rank, size = size, shards = shards,
    shard = rank % shards, replicas = size / shards, replica = math.floor(rank / shards) }, mt)
  if size > 1 then self.replica_group = world end
  if shards > 1 then
    self.shard_group = world:split(self.replica)
    self.replica_group = world:split(self.shard)
  end
  local alike = options and options.copies and size or shards
  if alike > 1 then check_rounding(self, alike) end
  return self
end

function M.all_shards()
  return M.new(nil, { shards = ranks.world():size() })
end

-- One rank, without a look at the launcher.
function M.alone()
  return setmetatable({ rank = 0, size = 1, replica = 0, replicas = 1, shard = 0, shards = 1 }, mt)
end

function methods:is_root() return self.rank == 0 end

function methods:is_first() return self.shard == 0 end

function methods:neighbours()
  if not self.world then return 1 end
  return self.world:neighbours()
end

function methods:name() return self.world and self.world:name(self.rank) or "0" end

function methods:owns(i) return (i - 1) % self.replicas == self.replica end

function methods:share_of(count)
  local each = math.ceil(count / self.replicas)
  return self.replica * each + 1, math.min((self.replica + 1) * each, count)
end

-- ---- who prints ----
local STDOUT = 1
local STDERR = 2

local function silence(descriptor)
  io.flush()
  local fcntl = require "posix.fcntl"
  local unistd = require "posix.unistd"
  local null = fcntl.open("/dev/null", fcntl.O_WRONLY)
  if not null then return end
  unistd.dup2(null, descriptor)
  unistd.close(null)
end

function M.quiet()
  notes.silence()
  silence(STDOUT)
end

function M.mute()
  M.quiet()
  silence(STDERR)
end

-- ---- agreeing ----
-- The ranks cannot talk any more. A rank that has got a signal meanwhile is being ended by the
-- launcher, because another one has printed why.
local function end_job(self, reason)
  if self:is_root() or not stop.signal() then
    io.stderr:write(("segzero: rank %s: %s\n"):format(self.world:name(self.rank),
      core.plain(reason)))
  end
  ranks.abort(FAILED)
  error(reason, 0)
end

local function collective(self, name, ...)
  local ok, result = pcall(self.world[name], self.world, ...)
  if ok then return result end
  return end_job(self, result)
end

methods.collective = collective

-- A collective of a group, by its name in core/ranks.lua.
function methods:collective_of(group, name, ...)
  local ok, result = pcall(group[name], group, ...)
  if ok then return result end
  return end_job(self, result)
end

function methods:run(f, ...)
  if self.size == 1 then return f(...) end
  if not self:is_root() then M.quiet() end
  stop.hold()
  local function finish(ok, ...)
    if not ok then
      if not self:is_root() then M.mute() end
      error(..., 0)
    end
    stop.release()
    return ...
  end
  return finish(pcall(f, ...))
end

-- What all ranks raise when some failed: the error of the first one. A stop that came to this rank
-- too is its own.
local function raise(self, all)
  for r, result in ipairs(all) do
    if result.failure then
      if stop.signal() and core.is_interrupt(result.failure) then error("interrupted!", 0) end
      if core.is_interrupt(result.failure) then result.failure = "stopped by a signal" end
      error(("rank %s: %s"):format(self.world:name(result.rank or r - 1), result.failure), 0)
    end
  end
end

-- The results of all ranks; this one's are those of pcall. rank: where the failure came up, nil:
-- here.
local function exchange(self, ok, value, rank)
  local mine = { value = value }
  if not ok then mine = { failure = tostring(value), rank = rank } end
  local all = collective(self, "gather", mine)
  raise(self, all)
  local values = {}
  for r, result in ipairs(all) do values[r] = result.value end
  return values
end

-- Shards must not stop in the middle of the model, so with them a signal waits for the end of f.
local function held(f)
  local ok, value = xpcall(f, stop.traced)
  if ok and stop.may_stop() and stop.signal() then return false, stop.INTERRUPTED end
  return ok, value
end

function methods:together(f)
  if self.size == 1 then return { f() } end
  if self.shards > 1 then return exchange(self, held(f)) end
  return exchange(self, stop.lifted(f))
end

function methods:in_step(f)
  if self.shards == 1 then return self:together(f) end
  lock_step.stops(self.shard_group, stop.may_stop())
  local ok, value = held(f)
  local seen = lock_step.seen_by_all(self.shard_group)
  lock_step.stops(self.shard_group, false)
  if not ok and not seen and not core.is_interrupt(value) then return end_job(self, value) end
  return exchange(self, ok, value, seen and self.replica * self.shards + seen)
end

function methods:agreed(f)
  if self.size == 1 then return { f() } end
  return exchange(self, pcall(f))
end

function methods:on_root(f)
  local function on_this() if self:is_root() then return f() end end
  return self:together(on_this)[1]
end

function methods:on_root_held(f)
  local function on_this() if self:is_root() then return f() end end
  return self:agreed(on_this)[1]
end

function methods:from_first(f) return lock_step.first(self.shard_group, f) end

function methods:alike(f, ...) return lock_step.alike(self.shard_group, f, ...) end

-- Whether the error that was just caught is one of all shards, so that they may go on alike.
function methods:seen_by_all()
  return self.shards == 1 or lock_step.seen_by_all(self.shard_group) ~= nil
end

function methods:later(f, ...)
  if self.size == 1 then return f(...) end
  local ok, reason = pcall(f, ...)
  if not ok then self.late_failure = self.late_failure or reason end
end

function methods:check_stop()
  if self.size == 1 then return stop.check() end
  self:together(function()
    stop.check()
    local failure = self.late_failure
    self.late_failure = nil
    if failure then error(failure, 0) end
  end)
end

function methods:total(n)
  if self.size == 1 or not n then return n end
  if not self:is_first() then n = 0 end
  return collective(self, "sum", { n })[1]
end

return M
