-- joining.lua - what the replicas of a training run tell each other in a step: scored groups, who
-- trains on which, the reference's numbers, statistics, judged rows. Methods of parallel.lua's
-- object.
--
--   p:join(f) -> groups                f makes this replica's scored groups; those of all replicas
--   p:own(groups) -> groups            those that this replica trains on
--   p:rebalance(parts, take, release)  groups move until all replicas have about as many tokens
--       parts     the groups of each update
--       take(group)     reads the row again, for a group that comes to this replica
--       release(group)  frees the row of a group that leaves it
--   p:join_references(groups, f)       f sets the reference's log-probabilities of its own
--   p:sum_statistics(f) -> stats       f computes this replica's gradients and sums
--   p:join_judged(f) -> shares         f judges this replica's held-out rows; those of all
--
-- All shards of a replica call these, and their f, alike; what the first shard has counts. A group
-- has owner (its replica, from 0) and place (in the step). With one rank nothing travels.
-- Leaves out: agreement and failures (parallel.lua), gradients (shards.lua).

local balance = require "segzero.train.balance"
local mask_runs = require "segzero.formats.mask_runs"

local M = {}

local methods = {}
M.methods = methods

-- ---- a step ----
-- What others need of a group: nothing that is on a device or belongs to the image.
local function as_message(group)
  local row = group.row
  local samples = {}
  for k, sample in ipairs(group.samples) do
    samples[k] = {
      ids = sample.ids, text = sample.text, length = sample.length, finish = sample.finish,
      logprobs = sample.logprobs, score = sample.score, parts = sample.parts,
      why = sample.why,
    }
  end
  return { place = group.place, samples = samples, row = { id = row.id, index = row.index,
    number = row.number, problem = row.problem, solution = row.solution,
    prompt_tokens = #group.input.input_ids } }
end

-- The groups of a step by their places. own: this replica's, by place; all: the ranks' messages.
local function by_place(self, own, all)
  local groups = {}
  for r = 1, self.size do
    for _, message in ipairs(all[r]) do
      local group = own[message.place] or { row = message.row, samples = message.samples,
        place = message.place, is_elsewhere = true }
      group.owner = math.floor((r - 1) / self.shards)
      groups[message.place] = group
    end
  end
  return groups
end

function methods:join(f)
  if self.size == 1 then return f() end
  local own = {}
  local all = self:in_step(function()
    local messages = {}
    for _, group in ipairs(f()) do
      own[group.place] = group
      if self:is_first() then messages[#messages + 1] = as_message(group) end
    end
    return messages
  end)
  return by_place(self, own, all)
end

-- The groups that this replica trains on.
function methods:own(groups)
  if self.size == 1 then return groups end
  local list = {}
  for _, group in ipairs(groups) do
    if not group.is_elsewhere then list[#list + 1] = group end
  end
  return list
end

-- ---- moving groups ----
-- The groups that change their replica, with the new one: {{group =, to =}, ...}.
local function moves_of(parts, replicas)
  local moves = {}
  for _, groups in ipairs(parts) do
    local sizes = {}
    local owners = {}
    for i, group in ipairs(groups) do
      sizes[i] = balance.tokens(group)
      owners[i] = group.owner
    end
    for i, owner in ipairs(balance.owners(sizes, owners, replicas)) do
      if owner ~= owners[i] then moves[#moves + 1] = { group = groups[i], to = owner } end
    end
  end
  return moves
end

function methods:rebalance(parts, take, release)
  if self.replicas == 1 then return end
  local moves = moves_of(parts, self.replicas)
  if #moves == 0 then return end
  self:together(function()
    for _, move in ipairs(moves) do
      local group = move.group
      if group.owner == self.replica then
        group.row.prompt_tokens = #group.input.input_ids
        release(group)
        group.input = nil
        group.is_elsewhere = true
      elseif move.to == self.replica then
        take(group)
        group.is_elsewhere = nil
      end
      group.owner = move.to
    end
  end)
end

-- ---- the reference ----
local function references_of(groups)
  local lists = {}
  for _, group in ipairs(groups) do
    local list = {}
    for k, sample in ipairs(group.samples) do list[k] = sample.reference end
    lists[group.place] = list
  end
  return lists
end

function methods:join_references(groups, f)
  if self.size == 1 then return f() end
  local all = self:in_step(function()
    f()
    if not self:is_first() then return {} end
    return references_of(self:own(groups))
  end)
  for r = 1, self.size do
    for _, group in ipairs(groups) do
      local list = all[r][group.place]
      for k, values in ipairs(list or {}) do group.samples[k].reference = values end
    end
  end
end

-- ---- the update ----
-- f computes this replica's part of the sums; the largest mismatch counts.
function methods:sum_statistics(f)
  if self.size == 1 then return f() end
  local sums = { mismatch = 0 }
  for r, stats in ipairs(self:in_step(f)) do
    local mismatch = math.max(sums.mismatch, stats.mismatch or 0)
    local is_first = (r - 1) % self.shards == 0
    for name, v in pairs(is_first and stats or {}) do sums[name] = (sums[name] or 0) + v end
    sums.mismatch = mismatch
  end
  return sums
end

-- ---- evaluation ----
-- f judges this replica's rows: {judged = {{record =}, ...}, with_masks =, errors = a count or
-- nil}; record.mask may be a mask.
function methods:join_judged(f)
  if self.size == 1 then return f() end
  local all = self:in_step(function()
    local share = f()
    if not self:is_first() then return { judged = {} } end
    for _, one in ipairs(share.judged) do one.record.mask = mask_runs.pack(one.record.mask) end
    return share
  end)
  local joined = { judged = {} }
  for _, share in ipairs(all) do
    for _, one in ipairs(share.judged) do
      one.record.mask = mask_runs.unpack(one.record.mask)
      joined.judged[#joined.judged + 1] = one
    end
    joined.with_masks = joined.with_masks or share.with_masks
    if share.errors then joined.errors = (joined.errors or 0) + share.errors end
  end
  return joined
end

return M
