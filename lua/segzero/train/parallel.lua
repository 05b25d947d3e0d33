-- parallel.lua - who does what when several ranks train one model: each rank is a replica of the
-- model and takes a share of the prompts. The only file of training that knows ranks.
--
--   local p = parallel.new(timeout)    timeout: seconds that a collective waits; the job's ranks
--   local p = parallel.alone()         one rank
--   p.rank, p.size                     from 0; 1 without a launcher
--   p:is_root()                        whether this rank writes files and prints
--   p:neighbours()                     how many ranks run on this machine, this one included
--   p:name() -> text                   of this rank, for messages: "3 (host b)"
--   p:owns(i)                          whether prompt i of a step is this rank's
--   p:share_of(count) -> first, last   this rank's share of `count` rows; first > last: none
--   p:run(f, ...)                      f's results, with signals held but for what together() runs
--   p:together(f) -> list              f's results of all ranks, in their order
--   p:agreed(f) -> list                the same with signals held in f too
--   p:collective(name, ...)            one of segzero.core.ranks; if it fails, the job ends
--   p:on_root(f) -> value              f runs on rank 0, and all get its result
--   p:join(f) -> groups                f makes this rank's scored groups; those of all ranks
--   p:own(groups) -> groups            those that this rank trains on
--   p:join_references(groups, f)       f sets the reference's log-probabilities of its own
--   p:sum_statistics(f) -> stats       f computes this rank's gradients and sums
--   p:with_gradients(parameters)       the numbers of those that have a gradient on some rank
--   p:sum_gradients(parameters)        each gradient becomes the sum over all ranks
--   p:join_judged(f) -> shares         f judges this rank's held-out rows; those of all
--   parallel.quiet()                   this rank prints nothing from now on but errors
--   parallel.mute()                    nor errors: another rank prints them
--
-- Ranks must agree on what comes next, so everything that can fail or be stopped on one rank alone
-- runs inside together(): if f fails on any rank, all ranks raise the same error, which names the
-- rank. A collective that fails leaves no way to agree: the rank prints why and ends the job.
-- The results of f travel as segzero.core.ranks says. With one rank nothing travels.
-- Leaves out: a model that is split over ranks; the parts of an optimizer (shards.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local notes = require "segzero.core.notes"
local ranks = require "segzero.core.ranks"
local stop = require "segzero.core.stop"
local tensor = require "segzero.core.tensor"

local M = {}

local methods = {}
local mt = { __index = methods }

local FAILED = 1                -- the exit status of a job whose ranks have lost each other

function M.new(timeout)
  local world = ranks.world()
  if timeout then ranks.set_timeout(timeout) end
  return setmetatable({ world = world, rank = world:rank(), size = world:size() }, mt)
end

-- One rank, without a look at the launcher.
function M.alone() return setmetatable({ rank = 0, size = 1 }, mt) end

function methods:is_root() return self.rank == 0 end

function methods:neighbours()
  if not self.world then return 1 end
  return self.world:neighbours()
end

function methods:name() return self.world and self.world:name(self.rank) or "0" end

function methods:owns(i) return (i - 1) % self.size == self.rank end

function methods:share_of(count)
  local each = math.ceil(count / self.size)
  return self.rank * each + 1, math.min((self.rank + 1) * each, count)
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
-- When a collective fails, the ranks cannot talk any more. A rank that has got a signal meanwhile is
-- being ended by the launcher, because another one has printed why.
local function collective(self, name, ...)
  local ok, result = pcall(self.world[name], self.world, ...)
  if ok then return result end
  if self:is_root() or not stop.signal() then
    io.stderr:write(("segzero: rank %s: %s\n"):format(self.world:name(self.rank),
      core.plain(result)))
  end
  ranks.abort(FAILED)
  error(result, 0)
end

methods.collective = collective

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
      error(("rank %s: %s"):format(self.world:name(r - 1), result.failure), 0)
    end
  end
end

-- The results of all ranks; this one's are those of pcall.
local function exchange(self, ok, value)
  local mine = { value = value }
  if not ok then mine = { failure = tostring(value) } end
  local all = collective(self, "gather", mine)
  raise(self, all)
  local values = {}
  for r, result in ipairs(all) do values[r] = result.value end
  return values
end

function methods:together(f)
  if self.size == 1 then return { f() } end
  return exchange(self, stop.lifted(f))
end

function methods:agreed(f)
  if self.size == 1 then return { f() } end
  return exchange(self, pcall(f))
end

function methods:on_root(f)
  local function on_this() if self:is_root() then return f() end end
  return self:together(on_this)[1]
end

-- ---- a step ----
-- What others need of a group: nothing that is on a device or belongs to the image.
local function as_message(group, place)
  local row = group.row
  local samples = {}
  for k, sample in ipairs(group.samples) do
    samples[k] = {
      ids = sample.ids, text = sample.text, length = sample.length, finish = sample.finish,
      logprobs = sample.logprobs, score = sample.score, parts = sample.parts,
    }
  end
  return { place = place, samples = samples, row = { id = row.id, index = row.index,
    number = row.number, problem = row.problem, solution = row.solution,
    prompt_tokens = #group.input.input_ids } }
end

function methods:join(f)
  if self.size == 1 then return f() end
  local own = {}
  local all = self:together(function()
    local messages = {}
    for i, group in ipairs(f()) do
      own[group.place] = group
      messages[i] = as_message(group, group.place)
    end
    return messages
  end)
  local groups = {}
  for r = 1, self.size do
    for _, message in ipairs(all[r]) do
      local group = own[message.place]
      if not group then
        group = { row = message.row, samples = message.samples, place = message.place,
          is_elsewhere = true }
      end
      groups[message.place] = group
    end
  end
  return groups
end

-- The groups that this rank trains on.
function methods:own(groups)
  if self.size == 1 then return groups end
  local list = {}
  for _, group in ipairs(groups) do
    if not group.is_elsewhere then list[#list + 1] = group end
  end
  return list
end

-- f computes the reference's log-probabilities of this rank's groups.
function methods:join_references(groups, f)
  if self.size == 1 then return f() end
  local all = self:together(function()
    f()
    local lists = {}
    for _, group in ipairs(self:own(groups)) do
      local list = {}
      for k, sample in ipairs(group.samples) do list[k] = sample.reference end
      lists[group.place] = list
    end
    return lists
  end)
  for r = 1, self.size do
    for _, group in ipairs(groups) do
      local list = all[r][group.place]
      for k, values in ipairs(list or {}) do group.samples[k].reference = values end
    end
  end
end

-- ---- the update ----
-- A parameter takes part if it has a gradient on some rank: a rank without answers has none.
function methods:with_gradients(parameters)
  local has = {}
  for i, p in ipairs(parameters) do has[i] = p.tensor:grad() and 1 or 0 end
  local numbers = {}
  for i, count in ipairs(collective(self, "sum", has)) do
    if count > 0 then numbers[#numbers + 1] = i end
  end
  return numbers
end

function methods:sum_gradients(parameters)
  if self.size == 1 then return end
  for _, i in ipairs(self:with_gradients(parameters)) do
    collective(self, "sum_gradient", parameters[i].tensor)
  end
end

-- f computes this rank's part of the sums; the largest mismatch counts.
function methods:sum_statistics(f)
  if self.size == 1 then return f() end
  local sums = { mismatch = 0 }
  for _, stats in ipairs(self:together(f)) do
    local mismatch = math.max(sums.mismatch, stats.mismatch or 0)
    for name, v in pairs(stats) do sums[name] = (sums[name] or 0) + v end
    sums.mismatch = mismatch
  end
  return sums
end

-- ---- evaluation ----
-- A mask u8 [height, width] as a value that travels, and back; nil stays nil.
local function packed(mask)
  if not mask then return nil end
  local bytes = ffi.string(tensor.data(mask), mask:numel())
  local value = { shape = mask:shape(), bytes = bytes }
  mask:free()
  return value
end

local function unpacked(value)
  if not value then return nil end
  local mask = tensor.zeros(value.shape, { dtype = "u8" })
  ffi.copy(tensor.data(mask), value.bytes, #value.bytes)
  return mask
end

-- f judges this rank's rows: {judged = {{record =}, ...}, with_masks =, errors = a count or nil};
-- record.mask may be a mask.
function methods:join_judged(f)
  if self.size == 1 then return f() end
  local all = self:together(function()
    local share = f()
    for _, one in ipairs(share.judged) do one.record.mask = packed(one.record.mask) end
    return share
  end)
  local joined = { judged = {} }
  for _, share in ipairs(all) do
    for _, one in ipairs(share.judged) do
      one.record.mask = unpacked(one.record.mask)
      joined.judged[#joined.judged + 1] = one
    end
    joined.with_masks = joined.with_masks or share.with_masks
    if share.errors then joined.errors = (joined.errors or 0) + share.errors end
  end
  return joined
end

return M
