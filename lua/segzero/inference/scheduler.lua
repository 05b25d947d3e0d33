-- scheduler.lua - which answers run and where their keys and values lie: groups in, rows of one cache of fixed size out.
--
--   local s = scheduler.new(groups, {n =, max_new_tokens =, blocks =, move =})     move: as blocks.new wants it
--   local chunk = s:admit()      what enters now, or nil: {prompts = groups to compute, started = answers, resumed = answers}
--   s:grow()                     room for the next token of every answer in s.running
--   local ended = s:settle()     takes out the answers that have a finish; their places are free
--   s:finished()
--
-- A group is {input =, answers = {{group =, ids = {}}, ...}}; the scheduler gives groups and answers a `range` of the cache
-- (blocks.lua) while they are in it. A prompt is held once for its group, as long as an answer runs or is still to start. An
-- answer has blocks for the tokens it has, not for those it may get. Answers enter in the order of groups while there is room
-- for them as long as the ended ones were on average. When the cache is full the one that entered last goes out, keeps its
-- tokens, and comes back first: its keys and values are then computed again. Room for one prompt and one whole answer is
-- always enough.
-- Leaves out: the model, sampling; a prompt shared by two groups.

local blocks = require "segzero.inference.kv_blocks"

local M = {}

M.BLOCK = 16                -- rows
M.MAX_RUNNING = 256         -- answers: beyond it a step only gets longer, and its logits larger

local methods = {}
local mt = { __index = methods }

local function blocks_of(rows) return math.ceil(rows / M.BLOCK) end

-- The last token of an answer is never fed back, so it has no row.
local function most_blocks(max_new_tokens) return blocks_of(math.max(1, max_new_tokens - 1)) end

-- Rows that a cache can use for prompts of these lengths, n answers each, when it may have `limit` rows.
function M.rows(lengths, n, max_new_tokens, limit)
  local sorted, answer = {}, most_blocks(max_new_tokens)
  for i, length in ipairs(lengths) do sorted[i] = length end
  table.sort(sorted, function(a, b) return a > b end)
  local useful = math.min(#sorted * n, M.MAX_RUNNING) * answer
  for i = 1, math.min(#sorted, M.MAX_RUNNING) do useful = useful + blocks_of(sorted[i]) end
  return M.BLOCK * math.max(blocks_of(sorted[1]) + answer, math.min(useful, math.floor(limit / M.BLOCK)))
end

function M.new(groups, opts)
  local s = setmetatable({ groups = groups, n = opts.n, most = most_blocks(opts.max_new_tokens), blocks = opts.blocks,
    pool = blocks.new(opts.blocks, opts.move), running = {}, waiting = {}, at = 1, left = #groups * opts.n,
    ended_count = 0, ended_blocks = 0, stats = { peak_running = 0, refills = 0, preemptions = 0 } }, mt)
  for _, g in ipairs(groups) do g.started, g.live, g.ended = 0, 0, 0 end
  return s
end

function methods:finished() return self.left == 0 end

-- ---- how much an answer takes ----
local function needs(a) return math.max(1, blocks_of(#a.ids)) end

-- With a block to grow into, so that a full cache is not arranged anew at every step.
function methods:soon(a) return math.min(self.most, needs(a) + 1) end

-- What it will take in the end, as far as the ended answers tell.
function methods:expected(a)
  local mean = self.ended_count > 0 and math.ceil(self.ended_blocks / self.ended_count) or math.ceil(self.most / 4)
  return math.max(self:soon(a), math.min(mean, self.most))
end

-- Blocks of all ranges, answers as one of the two above says.
function methods:total(of_answer)
  local sum = 0
  for _, r in ipairs(self.pool.ranges) do sum = sum + (r.answer and self[of_answer](self, r.answer) or r.used) end
  return sum
end

-- ---- places ----
-- Every answer gets what it needs and an equal share of what is free, up to what is expected of it; the rest stays for others.
function methods:arrange(new)
  local spare, answers, all = self.blocks, 0, {}
  for _, list in ipairs { self.pool.ranges, new or {} } do
    for _, r in ipairs(list) do
      r.wanted = r.used
      if r.answer then
        r.wanted, r.used = needs(r.answer), r.start and blocks_of(math.max(0, #r.answer.ids - 1)) or 0
        answers = answers + 1
        all[answers] = r
      end
      spare = spare - r.wanted
    end
  end
  local share = math.floor(spare / math.max(1, answers))
  for _, r in ipairs(all) do r.wanted = r.wanted + math.min(share, self:expected(r.answer) - r.wanted) end
  self.pool:arrange(new)
end

-- First with room for a whole answer, which then never moves, where the cache has it.
function methods:place(new)
  for i, r in ipairs(new) do
    local least = r.answer and needs(r.answer) or r.used
    if not self.pool:insert(r, r.answer and self.most or least) and not self.pool:insert(r, least) then
      return self:arrange { unpack(new, i) }
    end
  end
end

local function let_go(self, owner)
  self.pool:remove(owner.range)
  owner.range = nil
end

-- Lets go of a prompt that no running answer reads, but not of `except`'s. False when there is none.
function methods:drop_idle(except)
  for _, r in ipairs(self.pool.ranges) do
    if r.group and r.group.live == 0 and r.group ~= except then
      let_go(self, r.group)
      return true
    end
  end
  return false
end

-- ---- in ----
function methods:next_answer()
  if self.waiting[1] then return self.waiting[1] end
  while self.groups[self.at] and self.groups[self.at].started == self.n do self.at = self.at + 1 end
  local g = self.groups[self.at]
  return g and g.answers[g.started + 1]
end

function methods:admit()
  local before, total = #self.running, self:total "expected"
  local chunk, new = { prompts = {}, started = {}, resumed = {} }, {}
  while #self.running < M.MAX_RUNNING do
    local a = self:next_answer()
    if not a then break end
    local g = a.group
    local prompt = g.range and 0 or blocks_of(#g.input.input_ids)
    local wants = prompt + self:expected(a)
    if total + wants > self.blocks then
      if #self.running > 0 then break end
      while self:drop_idle(g) do end       -- alone it fits
    end
    if prompt > 0 then
      g.range = { group = g, used = prompt }
      chunk.prompts[#chunk.prompts + 1], new[#new + 1] = g, g.range
    end
    a.range = { answer = a, used = 0 }
    new[#new + 1] = a.range
    if #a.ids > 0 then
      table.remove(self.waiting, 1)
      chunk.resumed[#chunk.resumed + 1] = a
    else
      g.started = g.started + 1
      chunk.started[#chunk.started + 1] = a
    end
    g.live, total = g.live + 1, total + wants
    self.running[#self.running + 1] = a
  end
  if #new == 0 then return nil end
  self:place(new)
  local stats = self.stats
  stats.peak_running = math.max(stats.peak_running, #self.running)
  if before > 0 then stats.refills = stats.refills + #self.running - before end
  return chunk
end

-- ---- on ----
function methods:preempt()
  local a = table.remove(self.running)
  let_go(self, a)
  a.group.live = a.group.live - 1
  table.insert(self.waiting, 1, a)
  self.stats.preemptions = self.stats.preemptions + 1
end

function methods:grow()
  local short = false
  for _, a in ipairs(self.running) do
    if needs(a) > a.range.room and not self.pool:grow(a.range, self:expected(a)) and not self.pool:grow(a.range, needs(a)) then short = true end
  end
  if not short then return end
  while self:total "soon" > self.blocks do
    if not self:drop_idle() then self:preempt() end
  end
  self:arrange()
end

-- ---- out ----
function methods:settle()
  local going, ended = {}, {}
  for _, a in ipairs(self.running) do
    if a.finish then ended[#ended + 1] = a else going[#going + 1] = a end
  end
  if #ended == 0 then return ended end
  self.running, self.left = going, self.left - #ended
  for _, a in ipairs(ended) do
    local g = a.group
    let_go(self, a)
    g.live, g.ended = g.live - 1, g.ended + 1
    if g.ended == self.n then let_go(self, g) end
    self.ended_count, self.ended_blocks = self.ended_count + 1, self.ended_blocks + needs(a)
  end
  return ended
end

return M
