-- packing.lua - packs groups into one stream of tokens without padding, and makes the segment table
-- that says which tokens see which.
--
--   packing.stream(groups, image_token) -> {
--     ids i32 [T], positions i32 [3, T], tokens = T,
--     segments i32 [S, 6]         q_start, q_len, k_start, k_len, parent_start, parent_len
--     image_rows i32 [n] | nil    rows of image tokens
--     rows i32 [k], targets i32 [k]   for each answer token, the row that predicts it and the token
--     spans = {{{first, length}, ...answers}, ...groups} }   zero-based ranges of rows/targets
--   packing.images(inputs) -> pixel_values, grids i32 [images, 3]; nil when there are none
--   packing.ints(n, ...) -> i32 tensor, its C array          packing.list({1, 2}) -> i32 tensor
--   packing.segment(array, index, ...)            writes one row of a segment table
--
-- A group is one prompt and its answers: {input = what vl:process returned, answers = {{ids}, ...}
-- (may be empty)}. The prompt is in the stream once; each answer follows as a segment whose parent
-- is the prompt. The last token of an answer is predicted but predicts nothing, so it is not in the
-- stream. If an answer has the field `first`, its targets start at that token (1-based). A group
-- with `continues` is a continuation: its prompt was in an earlier stream (the shared prefix of
-- model:hidden). Its answers alone are in this stream, which has no other group, and the segment
-- table counts the prompt's rows first. Such answers have two tokens or more and are predicted from
-- the second token on.

local tensor = require "segzero.core.tensor"

local M = {}

local function ints(n, ...)
  local t = tensor.empty({ n, ... }, { dtype = "i32" })
  return t, tensor.data(t)
end
M.ints = ints

function M.list(list)
  local t, p = ints(#list)
  for i = 1, #list do p[i - 1] = list[i] end
  return t
end

function M.segment(p, index, q_start, q_len, k_start, k_len, parent_start, parent_len)
  p = p + 6 * index
  p[0] = q_start
  p[1] = q_len
  p[2] = k_start
  p[3] = k_len
  p[4] = parent_start
  p[5] = parent_len
end

-- ---- streams ----
-- In a continuation, no row of the stream predicts the first token.
local function first_target(group, answer)
  if group.continues then return 2 end
  return answer.first or 1
end

local function count_token(ids, token)
  local n = 0
  for _, id in ipairs(ids) do
    if id == token then n = n + 1 end
  end
  return n
end

-- Sizes of the stream's tables.
local function measure(groups, image_token)
  local n = { tokens = 0, segments = 0, targets = 0, image_tokens = 0 }
  for _, g in ipairs(groups) do
    local prompt = g.input.input_ids
    if not g.continues then
      n.tokens = n.tokens + #prompt
      n.segments = n.segments + 1
      n.image_tokens = n.image_tokens + count_token(prompt, image_token)
    end
    for _, a in ipairs(g.answers) do
      n.tokens = n.tokens + math.max(#a - 1, 0)
      n.targets = n.targets + #a - first_target(g, a) + 1
      if #a > 1 then n.segments = n.segments + 1 end
    end
  end
  return n
end

-- A stream under construction: its C arrays, and how far each is filled.
local Filling = {}
Filling.__index = Filling

local function new_filling(size, image_token)
  local s = { tokens = size.tokens, spans = {} }
  local f = setmetatable({
    stream = s, total = size.tokens, image_token = image_token, token = 0, segment = 0, target = 0,
    image = 0,
  }, Filling)
  s.ids, f.ids = ints(size.tokens)
  s.positions, f.positions = ints(3, size.tokens)
  s.segments, f.segments = ints(size.segments, 6)
  s.rows, f.rows = ints(size.targets)
  s.targets, f.targets = ints(size.targets)
  if size.image_tokens > 0 then s.image_rows, f.image_rows = ints(size.image_tokens) end
  return f
end

function Filling:put_segment(...)
  M.segment(self.segments, self.segment, ...)
  self.segment = self.segment + 1
end

function Filling:put_prompt(input)
  local prompt = input.input_ids
  local start = self.token
  local positions = tensor.data(input.position_ids)
  for i = 1, #prompt do
    local row = start + i - 1
    self.ids[row] = prompt[i]
    for axis = 0, 2 do
      self.positions[axis * self.total + row] = positions[axis * #prompt + i - 1]
    end
    if prompt[i] == self.image_token then
      self.image_rows[self.image] = row
      self.image = self.image + 1
    end
  end
  self.token = start + #prompt
  self:put_segment(start, #prompt, start, #prompt, 0, 0)
end

-- The answer's tokens as targets, and the rows that predict them: the prompt's last row, then its
-- own.
function Filling:put_targets(answer, first, prompt_end)
  for i = first, #answer do
    local row = self.token + i - 2
    if i == 1 then row = prompt_end - 1 end
    self.rows[self.target] = row
    self.targets[self.target] = answer[i]
    self.target = self.target + 1
  end
end

-- start: the prompt's first row. Returns the span of its targets.
function Filling:put_answer(group, answer, start)
  local prompt = #group.input.input_ids
  local before = group.continues and prompt or 0      -- rows that come before the stream's own
  local length = math.max(#answer - 1, 0)
  local first = first_target(group, answer)
  local span = { self.target, #answer - first + 1 }
  self:put_targets(answer, first, start + prompt)

  local row = self.token
  for i = 0, length - 1 do
    self.ids[row + i] = answer[i + 1]
    for axis = 0, 2 do
      self.positions[axis * self.total + row + i] = group.input.next_position + i
    end
  end
  if length > 0 then self:put_segment(before + row, length, before + row, length, start, prompt) end
  self.token = row + length
  return span
end

function M.stream(groups, image_token)
  local f = new_filling(measure(groups, image_token), image_token)
  for i, g in ipairs(groups) do
    local start = f.token
    if not g.continues then f:put_prompt(g.input) end
    local spans = {}
    for k, answer in ipairs(g.answers) do spans[k] = f:put_answer(g, answer, start) end
    f.stream.spans[i] = spans
  end
  return f.stream
end

-- ---- images ----
function M.images(inputs)
  local pixels = {}
  local grids = {}
  local patches = 0
  for _, input in ipairs(inputs) do
    if input.pixel_values then
      pixels[#pixels + 1] = input.pixel_values
      patches = patches + input.pixel_values:shape()[1]
      for _, g in ipairs(input.image_grid_thw) do grids[#grids + 1] = g end
    end
  end
  if patches == 0 then return nil end
  local grid_tensor, g = ints(#grids, 3)
  for i, grid in ipairs(grids) do
    for k = 1, 3 do g[3 * (i - 1) + k - 1] = grid[k] end
  end
  if #pixels == 1 then return pixels[1], grid_tensor end

  local all = tensor.empty { patches, pixels[1]:shape()[2] }
  local first = 0
  for _, t in ipairs(pixels) do
    local n = t:shape()[1]
    all:narrow(first, n):copy_(t)
    first = first + n
  end
  return all, grid_tensor
end

return M
