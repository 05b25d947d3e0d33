-- coordinates.lua - the two frames of a row: the one its solution is in, and the one that the model
-- answers in. frame.lua says what a frame is and converts.
--
--   coordinates.locate(row, frames)          frames: of frame.settings. Sets row.solution_frame,
--                                            and keeps the solution as stored in
--                                            row.stored_solution
--   coordinates.place(row, frames, seen)     the same, and row.answer_frame and row.frame; from now
--                                            on row.solution is in the frame of answers. seen: the
--                                            size of the image as the model sees it
--   coordinates.seen(input, img)             that size; input: what policy:process(img ...)
--                                            returned
--   coordinates.resized(img, frames, made)   the image that goes to the model, and whether it is a
--                                            new one for the caller to free; made: one that was
--                                            resized ahead of time (data/prefetch.lua), or nil
--   coordinates.for_policy(frames, policy)   frames, with the answer frame of the policy's family
--   coordinates.answer_frame(row)            of a row or of a table that a script gives to a reward
--   coordinates.to_image(row, found)         a parsed answer in the image's pixels
--   coordinates.sentence(frames, set, policy)   what a run says at its start
--
-- A data source may state row.solution_frame itself, or row.frame; a setting other than "auto"
-- wins. Rows on which place() was not called count in row.frame (rows.lua).
-- Leaves out: reading solutions (truth.lua).

local core = require "segzero.core.ffi"
local frame = require "segzero.data.frame"
local image = require "segzero.formats.image"
local truth = require "segzero.data.truth"

local M = {}

local AUTO = { solution = "auto", answer = "auto" }

-- ---- the frames of a row ----
function M.locate(row, frames)
  frames = frames or AUTO
  row.stored_solution = row.stored_solution or row.solution
  if frames.solution ~= "auto" or not row.solution_frame then
    row.solution_frame = frame.solution(frames.solution, row.image)
  end
end

function M.place(row, frames, seen)
  frames = frames or AUTO
  M.locate(row, frames)
  row.answer_frame = frame.answers(frames.answer, row.image, seen)
  row.frame = frame.side(row.answer_frame) or row.answer_frame
  row.solution = truth.convert(row.stored_solution, row.solution_frame, row.answer_frame)
end

function M.answer_frame(row) return row.answer_frame or frame.of(row.frame) end

function M.to_image(row, found)
  return frame.answer(found, M.answer_frame(row), row.image)
end

-- ---- what the model sees ----
function M.seen(input, img)
  local plan = input.images and input.images[1]
  if not plan then return frame.of(img) end
  return { width = plan.resized_width, height = plan.resized_height }
end

function M.resized(img, frames, made)
  local size = frames and frames.resize
  if made and size and frame.equal(size, made) then return made, true end
  if not size or frame.equal(size, img) then return img, false end
  return img:resize(size.width, size.height, "bilinear"), true
end

function M.for_policy(frames, policy)
  if frames.answer ~= "auto" then return frames end
  local families = require "segzero.models.registry"
  local json = type(policy.json) == "table" and policy.json or {}
  local family = families:has(json.model_type) and families:get(json.model_type) or {}
  local stated = frame.settings { answer_frame = family.answer_frame or "model" }
  return { solution = frames.solution, answer = stated.answer, resize = frames.resize }
end

-- ---- what a run says ----
-- The stored size of the first row's image.
local function first_size(set)
  local path
  if set.image then path = set:image(1) end
  if type(path) == "table" then
    local width, height = image.memory.size(path.bytes, #path.bytes, path.name)
    return { width = width, height = height }
  elseif path then
    local width, height = image.size(path)
    return { width = width, height = height }
  end
  local row = set:row(1)
  local size = frame.of(row.image)
  row.image:free()
  return size
end

-- The first row as an example; nil if it cannot be read, which is reported where rows are read.
local function example_of(frames, set, policy)
  local ok, stored = pcall(first_size, set)
  if not ok and core.is_interrupt(stored) then error(stored, 0) end
  local processor = policy and policy.processor and policy:processor()
  if not ok or not stored or type(processor) ~= "table" or not processor.plan then return nil end
  local size = frames.resize or stored
  local planned, plan = pcall(processor.plan, processor, size.width, size.height)
  if not planned then return nil end
  return { stored = stored,
    seen = { width = plan.resized_width, height = plan.resized_height } }
end

function M.sentence(frames, set, policy)
  return frame.sentence(frames, example_of(frames, set, policy))
end

return M
