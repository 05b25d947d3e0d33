-- scheduler.lua - decides which answers are in the key-value cache, and in which rows of it.
--
--   local s = scheduler.new(groups, {n =, max_new_tokens =, blocks =, move =})
--                                move: as in kv_blocks.new
--   local chunk = s:admit()      what enters now, or nil: {prompts = groups to compute,
--                                started = new answers, resumed = readmitted answers}
--   s:grow()                     makes room for the next token of every answer in s.running
--   local ended = s:settle()     removes the answers that have a finish and frees their blocks
--   s:finished()
--
-- A group is {input =, answers = {{group =, ids = {}}, ...}}. While groups and answers are in the
-- cache they have a `range` of it (kv_blocks.lua). A prompt is stored once for its group, as long
-- as one of its answers runs or has not started. An answer has blocks for the tokens that it has,
-- not for those that it may get. Answers enter in the order of groups while there is room for
-- answers as long as the finished ones were on average. When the cache is full, the most recently
-- admitted answer is preempted; it keeps its tokens and is the first to be readmitted: its keys and
-- values are then computed again. Room for one prompt and one whole answer is always enough.
-- Leaves out: the model, sampling, prompts shared by two groups.

local kv_blocks = require "segzero.inference.kv_blocks"

local M = {}

M.BLOCK = 16                -- rows
M.MAX_RUNNING = 256         -- answers; more only make a step longer and its logits larger

local methods = {}
local mt = { __index = methods }

local function blocks_of(rows) return math.ceil(rows / M.BLOCK) end

-- The last token of an answer is never fed back, so it has no row.
local function most_blocks(max_new_tokens) return blocks_of(math.max(1, max_new_tokens - 1)) end

-- Rows that a cache can use for prompts of these lengths with n answers each, within `limit` rows.
function M.rows(lengths, n, max_new_tokens, limit)
  local sorted = {}
  local answer = most_blocks(max_new_tokens)
  for i, length in ipairs(lengths) do sorted[i] = length end
  table.sort(sorted, function(a, b) return a > b end)
  local useful = math.min(#sorted * n, M.MAX_RUNNING) * answer
  for i = 1, math.min(#sorted, M.MAX_RUNNING) do useful = useful + blocks_of(sorted[i]) end
  local least = blocks_of(sorted[1]) + answer
  return M.BLOCK * math.max(least, math.min(useful, math.floor(limit / M.BLOCK)))
end

function M.new(groups, opts)
  for _, g in ipairs(groups) do
    g.started = 0
    g.live = 0
    g.ended = 0
  end
  return setmetatable({
    groups = groups,
    n = opts.n,
    most = most_blocks(opts.max_new_tokens),
    blocks = opts.blocks,
    pool = kv_blocks.new(opts.blocks, opts.move),
    running = {},
    preempted = {},
    next_group = 1,             -- the first group that may have answers to start
    left = #groups * opts.n,    -- answers that have not finished
    ended_count = 0,
    ended_blocks = 0,
    stats = { peak_running = 0, refills = 0, preemptions = 0 },
  }, mt)
end

function methods:finished() return self.left == 0 end

-- ---- sizes ----
local function needs(a) return math.max(1, blocks_of(#a.ids)) end

-- Blocks that an answer needs now, and one to grow into, so that a full cache is not rearranged at
-- every step.
function methods:needs_soon(a) return math.min(self.most, needs(a) + 1) end

-- Blocks that an answer will probably need, judging by the finished answers.
function methods:expected(a)
  local mean = math.ceil(self.most / 4)
  if self.ended_count > 0 then mean = math.ceil(self.ended_blocks / self.ended_count) end
  return math.max(self:needs_soon(a), math.min(mean, self.most))
end

-- Blocks of all ranges, answers as one of the two methods above says.
function methods:total_blocks(of_answer)
  local sum = 0
  for _, r in ipairs(self.pool.ranges) do
    if r.answer then sum = sum + of_answer(self, r.answer) else sum = sum + r.used end
  end
  return sum
end

-- ---- places ----
-- How many blocks a range must have, and how many hold something.
local function measure(r)
  if not r.answer then return r.used, r.used end
  local used = 0
  if r.start then used = blocks_of(math.max(0, #r.answer.ids - 1)) end
  return needs(r.answer), used
end

-- Gives every answer what it needs and an equal share of the free blocks, up to its expected size.
-- The rest stays free.
function methods:arrange(new)
  local spare = self.blocks
  local answers = {}
  for _, list in ipairs { self.pool.ranges, new or {} } do
    for _, r in ipairs(list) do
      r.wanted, r.used = measure(r)
      if r.answer then answers[#answers + 1] = r end
      spare = spare - r.wanted
    end
  end
  local share = math.floor(spare / math.max(1, #answers))
  for _, r in ipairs(answers) do
    r.wanted = r.wanted + math.min(share, self:expected(r.answer) - r.wanted)
  end
  self.pool:arrange(new)
end

-- Tries room for a whole answer, which then never moves, and falls back to the minimum.
local function insert(self, r)
  local least = r.used
  local most = r.used
  if r.answer then
    least = needs(r.answer)
    most = self.most
  end
  return self.pool:insert(r, most) or self.pool:insert(r, least)
end

function methods:place(new)
  for i, r in ipairs(new) do
    if not insert(self, r) then
      self:arrange { unpack(new, i) }
      return
    end
  end
end

-- owner: a group or an answer.
local function release(self, owner)
  self.pool:remove(owner.range)
  owner.range = nil
end

-- Releases a prompt that no running answer reads, but not that of `except`. False when there is
-- none.
function methods:drop_idle(except)
  for _, r in ipairs(self.pool.ranges) do
    if r.group and r.group.live == 0 and r.group ~= except then
      release(self, r.group)
      return true
    end
  end
  return false
end

-- ---- admitting ----
function methods:next_answer()
  if self.preempted[1] then return self.preempted[1] end
  local groups = self.groups
  while groups[self.next_group] and groups[self.next_group].started == self.n do
    self.next_group = self.next_group + 1
  end
  local g = groups[self.next_group]
  if g then return g.answers[g.started + 1] end
end

-- Adds an answer, and its prompt if necessary, to the chunk that enters the cache.
local function enter(self, a, prompt_blocks, chunk, new)
  local g = a.group
  if prompt_blocks > 0 then
    g.range = { group = g, used = prompt_blocks }
    chunk.prompts[#chunk.prompts + 1] = g
    new[#new + 1] = g.range
  end
  a.range = { answer = a, used = 0 }
  new[#new + 1] = a.range
  if #a.ids > 0 then
    table.remove(self.preempted, 1)
    chunk.resumed[#chunk.resumed + 1] = a
  else
    g.started = g.started + 1
    chunk.started[#chunk.started + 1] = a
  end
  g.live = g.live + 1
  self.running[#self.running + 1] = a
end

function methods:admit()
  local before = #self.running
  local total = self:total_blocks(self.expected)
  local chunk = { prompts = {}, started = {}, resumed = {} }
  local new = {}
  while #self.running < M.MAX_RUNNING do
    local a = self:next_answer()
    if not a then break end
    local prompt = 0
    if not a.group.range then prompt = blocks_of(#a.group.input.input_ids) end
    local wants = prompt + self:expected(a)
    if total + wants > self.blocks then
      if #self.running > 0 then break end
      -- Nothing runs: with the other prompts gone, this answer fits.
      while self:drop_idle(a.group) do end
    end
    enter(self, a, prompt, chunk, new)
    total = total + wants
  end
  if #new == 0 then return nil end
  self:place(new)
  local stats = self.stats
  stats.peak_running = math.max(stats.peak_running, #self.running)
  if before > 0 then stats.refills = stats.refills + #self.running - before end
  return chunk
end

-- ---- growing ----
function methods:preempt()
  local a = table.remove(self.running)
  release(self, a)
  a.group.live = a.group.live - 1
  table.insert(self.preempted, 1, a)
  self.stats.preemptions = self.stats.preemptions + 1
end

-- True if the answer has room for its next token, or can grow in place.
local function has_room(self, a)
  if needs(a) <= a.range.room then return true end
  return self.pool:grow(a.range, self:expected(a)) or self.pool:grow(a.range, needs(a))
end

function methods:grow()
  local short = false
  for _, a in ipairs(self.running) do
    if not has_room(self, a) then short = true end
  end
  if not short then return end
  while self:total_blocks(self.needs_soon) > self.blocks do
    if not self:drop_idle() then self:preempt() end
  end
  self:arrange()
end

-- ---- finished answers ----
local function retire(self, a)
  local g = a.group
  release(self, a)
  g.live = g.live - 1
  g.ended = g.ended + 1
  if g.ended == self.n then release(self, g) end
  self.ended_count = self.ended_count + 1
  self.ended_blocks = self.ended_blocks + needs(a)
end

function methods:settle()
  local going = {}
  local ended = {}
  for _, a in ipairs(self.running) do
    if a.finish then ended[#ended + 1] = a else going[#going + 1] = a end
  end
  if #ended == 0 then return ended end
  self.running = going
  self.left = self.left - #ended
  for _, a in ipairs(ended) do retire(self, a) end
  return ended
end

return M
