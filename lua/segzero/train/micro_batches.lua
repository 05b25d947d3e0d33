-- micro_batches.lua - splits groups into micro-batches whose activations fit into memory.
--
--   micro_batches.split(groups, max_tokens, max_answers)
--     -> {{groups = {...}, chunks = nil | {{sample, ...}, ...}}, ...}
--   micro_batches.parts(groups, size)     the groups of each update of a rollout
--     -> {{group, ...}, ...}
--
-- A micro-batch takes whole groups until the next one would exceed max_tokens packed tokens or
-- max_answers answers. A group that is too large alone becomes a micro-batch with chunks: the
-- prompt is computed once, and its answers follow chunk by chunk. The prompt and a chunk together
-- stay within the limits, but a chunk has at least one answer, and an answer is never split. An
-- answer of one token is predicted by the prompt and is in no chunk.
-- Leaves out: reordering groups.

local M = {}

-- Tokens of the packed prompt and all answers.
local function packed_tokens(group)
  local tokens = #group.input.input_ids
  for _, sample in ipairs(group.samples) do tokens = tokens + #sample.ids end
  return tokens
end

local function chunks_of(group, max_tokens, max_answers)
  local chunks = {}
  local chunk
  local tokens = 0
  for _, sample in ipairs(group.samples) do
    if #sample.ids > 1 then
      local full = not chunk or tokens + #sample.ids > max_tokens or #chunk == max_answers
      if full then
        chunk = {}
        chunks[#chunks + 1] = chunk
        tokens = #group.input.input_ids
      end
      chunk[#chunk + 1] = sample
      tokens = tokens + #sample.ids
    end
  end
  return chunks
end

function M.split(groups, max_tokens, max_answers)
  local batches = {}
  local open                        -- the micro-batch that takes more groups, or nil
  local tokens = 0
  local answers = 0
  for _, group in ipairs(groups) do
    local size = packed_tokens(group)
    if size > max_tokens or #group.samples > max_answers then
      batches[#batches + 1] = { groups = { group },
        chunks = chunks_of(group, max_tokens, max_answers) }
      open = nil
    else
      if not open or tokens + size > max_tokens or answers + #group.samples > max_answers then
        open = { groups = {} }
        batches[#batches + 1] = open
        tokens = 0
        answers = 0
      end
      open.groups[#open.groups + 1] = group
      tokens = tokens + size
      answers = answers + #group.samples
    end
  end
  return batches
end

function M.parts(groups, size)
  local parts = {}
  for first = 1, #groups, size do
    parts[#parts + 1] = { unpack(groups, first, math.min(first + size - 1, #groups)) }
  end
  return parts
end

return M
