-- session.lua - the models that the prompt lab asks: opened once and kept.
--
--   session.use(vl)                 a model that is open, or the name of one: a folder, a run, a
--                                   hub name; nil: the embedded one
--   session.use(vl, sam)            and a SAM2 model: open, or its path; false: none
--   session.open(name) -> model     for one call; the last one is kept
--   session.policy() -> model       opens the embedded one if none was named
--   session.segmenter() -> of inference/segmenter.lua, or nil
--   session.rows() -> data set      built-in rows for the present model: ten of RefShapes
--   session.frames(policy)          of coordinates.for_policy
--
-- Leaves out: several models at a time (options of lab.compare name one for a call).

local coordinates = require "segzero.data.coordinates"
local data = require "segzero.data"
local frame = require "segzero.data.frame"
local judging = require "segzero.workbench.judging"
local paths = require "segzero.config.paths"

local M = {}

local current = {}

local ROWS = 10
local POOL = 128

local opened = {}               -- the model that was opened by name last: {dir =, policy =}

local function open_policy(named)
  local dir = paths.policy(named or "", false, "model")
  paths.check_policy("model", dir)
  if opened.dir == dir then return opened.policy end
  local vl = require("segzero.models.opening").open(dir, {})
  vl:tokenizer()
  opened = { dir = dir, policy = vl }
  return vl
end

function M.open(named) return open_policy(named) end

function M.use(model, sam)
  if type(model) == "string" or model == nil then
    current.policy = open_policy(model)
  else
    current.policy = model
  end
  current.sam = sam
  current.segmenter = nil
  return current.policy
end

function M.policy()
  current.policy = current.policy or open_policy()
  return current.policy
end

-- ---- SAM2 ----
local function open_segmenter()
  local sam = current.sam
  if sam == false then return nil end
  if type(sam) == "table" then return require("segzero.inference.segmenter").new(sam) end
  local path = paths.sam2(sam or "", { model = M.policy().dir or "", label = "lab.use" })
  paths.check_sam2("lab.use", path)
  return judging.segmenter(path)
end

function M.segmenter()
  if current.segmenter == nil then current.segmenter = open_segmenter() or false end
  return current.segmenter or nil
end

-- ---- rows ----
function M.rows()
  local size = frame.side_of_model(M.policy().json or {})
  local set = data.open("refshapes", { split = "heldout", size = size, seed = 42, rows = POOL })
  return set:sample(ROWS)
end

function M.frames(policy)
  return coordinates.for_policy(frame.settings {}, policy)
end

return M
