-- packing.lua - groups to one packed stream of tokens without padding, and the segment table that says who sees whom.
--
-- A group is one prompt and its answers: {input = what vl:process returned, answers = {{ids}, ...} (may be empty)}. Of an
-- answer with a field `first`, only the tokens from that place (1-based) on are targets: what stands before is given.
-- Of a group with `behind` the prompt has been in an earlier stream (model:hidden's prefix): its answers alone are in this one, which is then the
-- only group, and the segment table counts the prompt's rows first. Its answers, of two tokens or more, are predicted from the second token on.
-- The prompt stands in the stream once; each answer follows as a segment whose parent is the prompt. The last token of an
-- answer is predicted but predicts nothing, so it is not in the stream.
--
--   packing.stream(groups, image_token) -> {
--     ids i32 [T], positions i32 [3, T], segments i32 [S, 6] (q_start, q_len, k_start, k_len, p_start, p_len),
--     image_rows i32 [n] | nil, tokens = T,
--     rows i32 [k], targets i32 [k]   for every answer token the row that predicts it and the token itself,
--     spans = {{{first, length}, ...answers}, ...groups} }   zero-based ranges of rows/targets

local tensor = require "segzero.core.tensor"

local M = {}

local function ints(n, ...)
  local t = tensor.empty({ n, ... }, { dtype = "i32" })
  return t, tensor.data(t)
end
M.ints = ints

-- A Lua list of integers as an i32 tensor [#list].
function M.list(list)
  local t, p = ints(#list)
  for i = 1, #list do p[i - 1] = list[i] end
  return t
end

function M.segment(p, index, q_start, q_len, k_start, k_len, parent_start, parent_len)
  p = p + 6 * index
  p[0], p[1], p[2], p[3], p[4], p[5] = q_start, q_len, k_start, k_len, parent_start, parent_len
end

-- A first token after a prompt that is not in the stream has no row to predict it.
local function first_target(group, answer) return group.behind and 2 or answer.first or 1 end

function M.stream(groups, image_token)
  local total, segments, targets, pictures = 0, 0, 0, 0
  for _, g in ipairs(groups) do
    if not g.behind then
      total, segments = total + #g.input.input_ids, segments + 1
      for _, id in ipairs(g.input.input_ids) do
        if id == image_token then pictures = pictures + 1 end
      end
    end
    for _, a in ipairs(g.answers) do
      total, targets = total + math.max(#a - 1, 0), targets + #a - first_target(g, a) + 1
      if #a > 1 then segments = segments + 1 end
    end
  end

  local s = { tokens = total, spans = {} }
  local ids, positions, table_, image_rows, rows, wanted
  s.ids, ids = ints(total)
  s.positions, positions = ints(3, total)
  s.segments, table_ = ints(segments, 6)
  s.rows, rows = ints(targets)
  s.targets, wanted = ints(targets)
  if pictures > 0 then s.image_rows, image_rows = ints(pictures) end

  local at, segment, target, picture = 0, 0, 0, 0
  for gi, g in ipairs(groups) do
    local prompt, start = g.input.input_ids, at
    local before = g.behind and #prompt or 0
    if not g.behind then
      local p = tensor.data(g.input.position_ids)
      for i = 1, #prompt do
        ids[at] = prompt[i]
        for axis = 0, 2 do positions[axis * total + at] = p[axis * #prompt + i - 1] end
        if prompt[i] == image_token then
          image_rows[picture] = at
          picture = picture + 1
        end
        at = at + 1
      end
      M.segment(table_, segment, start, #prompt, start, #prompt, 0, 0)
      segment = segment + 1
    end
    s.spans[gi] = {}
    for ai, answer in ipairs(g.answers) do
      local length = math.max(#answer - 1, 0)
      local first = first_target(g, answer)
      s.spans[gi][ai] = { target, #answer - first + 1 }
      for i = first, #answer do
        rows[target] = i == 1 and start + #prompt - 1 or at + i - 2
        wanted[target] = answer[i]
        target = target + 1
      end
      for i = 1, length do
        ids[at + i - 1] = answer[i]
        for axis = 0, 2 do positions[axis * total + at + i - 1] = g.input.next_position + i - 1 end
      end
      if length > 0 then
        M.segment(table_, segment, before + at, length, before + at, length, start, #prompt)
        segment = segment + 1
      end
      at = at + length
    end
  end
  return s
end

-- The pictures of several inputs as one pixel tensor and one grid tensor; nil when there are none.
function M.images(inputs)
  local patches, grids = 0, {}
  local width
  for _, input in ipairs(inputs) do
    if input.pixel_values then
      local shape = input.pixel_values:shape()
      patches, width = patches + shape[1], shape[2]
      for _, g in ipairs(input.image_grid_thw) do grids[#grids + 1] = g end
    end
  end
  if patches == 0 then return nil end
  local grid_tensor, g = ints(#grids, 3)
  for i, grid in ipairs(grids) do
    for k = 1, 3 do g[3 * (i - 1) + k - 1] = grid[k] end
  end
  local with = {}
  for _, input in ipairs(inputs) do
    if input.pixel_values then with[#with + 1] = input.pixel_values end
  end
  if #with == 1 then return with[1], grid_tensor end
  local all, at = tensor.empty({ patches, width }), 0
  for _, pixels in ipairs(with) do
    local n = pixels:shape()[1]
    all:narrow(at, n):copy_(pixels)
    at = at + n
  end
  return all, grid_tensor
end

return M
