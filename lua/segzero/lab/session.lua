-- session.lua - the models that the prompt lab asks: opened once and kept.
--
--   session.use(vl)                 a model that is open, or the name of one: a folder, a run, a
--                                   hub name; nil: the embedded one
--   session.use(vl, sam)            and a SAM2 model: open, or its path; false: none
--   session.model(value) -> model   for one call: as above, but nil is the model of session.use;
--                                   one that was opened by name is kept until the next one
--   session.segmenter(policy) -> of inference/segmenter.lua, or nil. Without a SAM2 of session.use
--                                   the embedded one, if the policy is the embedded one, too
--   session.rows(policy) -> data set      ten rows of RefShapes in the size of the policy's images
--
-- Leaves out: several models at a time (options of lab.compare name one for a call).

local data = require "segzero.data"
local frame = require "segzero.data.frame"
local judging = require "segzero.workbench.judging"
local paths = require "segzero.config.paths"

local M = {}

local current = {}

local ROWS = 10
local POOL = 128

-- ---- the policy ----
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

local function read_model(value)
  if value == nil or type(value) == "string" then return open_policy(value) end
  if type(value) == "table" and value.hidden and value.vision then return value end
  error(("model: a folder, a run, a name on the hub or an open model is expected, got %s"):format(
    tostring(value)), 0)
end

function M.model(value)
  if value ~= nil then return read_model(value) end
  current.policy = current.policy or open_policy()
  return current.policy
end

-- ---- SAM2 ----
local function sam2_path(named, policy)
  local path = paths.sam2(named or "", { model = policy.dir or "", label = "lab.use" })
  paths.check_sam2("lab.use", path)
  return path
end

local function check_sam(sam, policy)
  if sam == nil or sam == false then return end
  if type(sam) == "string" then
    sam2_path(sam, policy)
  elseif type(sam) ~= "table" or not sam.predict then
    error(("lab.use: SAM2 is a path, an open model or false, got %s"):format(tostring(sam)), 0)
  end
end

function M.use(model, sam)
  local policy = read_model(model)
  check_sam(sam, policy)
  current = { policy = policy, sam = sam }
  return policy
end

-- current.path and current.segmenter: the one that was asked for last.
function M.segmenter(policy)
  local sam = current.sam
  if sam == false then return nil end
  if type(sam) == "table" then
    current.segmenter = current.segmenter or require("segzero.inference.segmenter").new(sam)
    return current.segmenter
  end
  local path = sam2_path(sam, policy)
  if path ~= current.path then
    current.path = path
    current.segmenter = judging.segmenter(path)
  end
  return current.segmenter
end

-- ---- rows ----
function M.rows(policy)
  local size = frame.side_of_model(policy.json or {})
  local set = data.open("refshapes", { split = "heldout", size = size, seed = 42, rows = POOL })
  return set:sample(ROWS)
end

return M
