-- streams.lua - makes packed streams from pieces of prompts and answers, with rows in the key-value
-- cache.
--
-- A piece is some consecutive tokens of a prompt or of an answer, computed with the tokens before
-- them in the cache: {group =, answer = a | nil, first = tokens before, count =}. stream_of sets
-- its `last`: the stream row of its last token.
--
--   streams.stream_of(vl, pieces) -> {ids, positions, segments, image_rows, cache_rows}
--       cache_rows i32 [T]: where each token's keys and values are stored; the rest as in
--       packing.stream, with key ranges in rows of the cache
--   streams.decode(vl, running) -> the stream with one token for each running answer
--   streams.split(chunk, most) -> lists of pieces of at most `most` tokens
--       chunk: what the scheduler admits

local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local scheduler = require "segzero.inference.scheduler"

local M = {}

local BLOCK = scheduler.BLOCK

local function count_tokens(pieces, image_token)
  local total = 0
  local images = 0
  for _, p in ipairs(pieces) do
    total = total + p.count
    if not p.answer then
      for _, id in ipairs(p.group.input.input_ids) do
        if id == image_token then images = images + 1 end
      end
    end
  end
  return total, images
end

-- Writes the tokens of one piece from stream row `row` on. at: the C arrays of the stream.
local function put_tokens(at, piece, row, total, image_token)
  local input = piece.group.input
  local first = piece.first
  local list = input.input_ids
  local range = piece.group.range
  local prompt_positions
  if piece.answer then
    list = piece.answer.ids
    range = piece.answer.range
  else
    prompt_positions = tensor.data(input.position_ids)
  end
  local length = #input.input_ids
  local cache_row = range.start * BLOCK + first
  for k = 0, piece.count - 1 do
    local id = list[first + k + 1]
    at.ids[row + k] = id
    at.cache_rows[row + k] = cache_row + k
    for axis = 0, 2 do
      local position = input.next_position + first + k
      if prompt_positions then position = prompt_positions[axis * length + k] end
      at.positions[axis * total + row + k] = position
    end
    if prompt_positions and id == image_token then
      at.image_rows[at.images] = row + k
      at.images = at.images + 1
    end
  end
end

-- The segment of a piece: an answer sees its prompt and its own tokens.
local function put_segment(at, index, piece, row)
  local group = piece.group
  local prompt_row = group.range.start * BLOCK
  local length = #group.input.input_ids
  local keys = piece.first + piece.count
  if piece.answer then
    local own_row = piece.answer.range.start * BLOCK
    packing.segment(at.segments, index, row, piece.count, own_row, keys, prompt_row, length)
  else
    packing.segment(at.segments, index, row, piece.count, prompt_row, keys, 0, 0)
  end
end

function M.stream_of(vl, pieces)
  local total, images = count_tokens(pieces, vl.image_token_id)
  local s = {}
  local at = { images = 0 }
  s.ids, at.ids = packing.ints(total)
  s.positions, at.positions = packing.ints(3, total)
  s.segments, at.segments = packing.ints(#pieces, 6)
  s.cache_rows, at.cache_rows = packing.ints(total)
  if images > 0 then s.image_rows, at.image_rows = packing.ints(images) end
  local row = 0
  for i, p in ipairs(pieces) do
    put_tokens(at, p, row, total, vl.image_token_id)
    put_segment(at, i - 1, p, row)
    row = row + p.count
    p.last = row - 1
  end
  return s
end

function M.decode(vl, running)
  local pieces = {}
  for i, a in ipairs(running) do
    pieces[i] = { group = a.group, answer = a, first = #a.ids - 1, count = 1 }
  end
  return M.stream_of(vl, pieces)
end

-- Prompts stay whole; the tokens of readmitted answers are split where a stream is full.
function M.split(chunk, most)
  local lists = {}
  local tokens = math.huge
  local function put(piece)
    if tokens + piece.count > most then
      lists[#lists + 1] = {}
      tokens = 0
    end
    table.insert(lists[#lists], piece)
    tokens = tokens + piece.count
  end
  for _, g in ipairs(chunk.prompts) do put { group = g, first = 0, count = #g.input.input_ids } end
  for _, a in ipairs(chunk.resumed) do
    local done = 0
    local all = #a.ids - 1
    while done < all do
      local room = most
      if tokens < most then room = most - tokens end
      local count = math.min(all - done, room)
      put { group = a.group, answer = a, first = done, count = count }
      done = done + count
    end
  end
  return lists
end

return M
