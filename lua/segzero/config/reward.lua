-- reward.lua - the settings of `segzero reward`.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local schema = require "segzero.config.schema"
local visible = require "segzero.core.visible"

local M = {}

local what = {
  { key = "replay", type = "text", optional = true, path = true,
    help = "score the stored answers of this run folder again" },
  { key = "step", type = "count", optional = true, max = 2 ^ 31,
    help = "of a replay: only this step; null: all" },
  { key = "against", type = "text", default = "auto", null = "none", path = true,
    help = "another reward, to see where the two disagree: a name, a FILE.lua or none; auto: "
      .. "seg_strict, or vision_reasoner for lists; a replay compares with the stored rewards" },
  { key = "watch", type = "boolean", default = false,
    help = "run again whenever the file is saved, until Ctrl-C" },
}

local rows = {
  { key = "data", type = "text", default = "refshapes", path = true,
    help = "a data set of yours, or the built-in refshapes or refshapes_multi" },
  { key = "rows", type = "count", default = 8, max = 2 ^ 20, help = "how many rows are sampled" },
  { key = "seed", type = "integer", default = 0, min = 0, max = 2 ^ 53, help = "of the sample" },
  { key = "prompt_key", type = "text", default = "problem", help = "the column of the question" },
  { key = "answer_key", type = "text", default = "solution",
    help = "the column of the ground truth" },
  { key = "image_key", type = "text", default = "image", help = "the column of the image" },
  { key = "image_dir", type = "text", default = "", null = "", path = true,
    help = "the folder that relative paths of images start from" },
  { key = "sam2_path", type = "text", optional = true, null = "none", path = true,
    help = "SAM2 for rewards that ask for masks; null: that of the replayed run, or the embedded "
      .. "one for built-in rows" },
}

local how = {
  { key = "kwargs", type = "mapping", default = {},
    help = "the reward's fourth argument: {name: value}, or kwargs.name=value" },
  { key = "timeout", type = "number", default = 10, min = 0, unit = "seconds",
    help = "time limit for one answer; 0: none" },
  { key = "worst", type = "integer", default = 5, min = 0, max = 1000,
    help = "how many disagreements are shown" },
  { key = "output", type = "text", optional = true, path = true,
    help = "of a replay: a new file for the new rewards, a JSON line for each answer" },
}

local function check_replay(cfg)
  if cfg.replay then return end
  for _, key in ipairs { "step", "output" } do
    if cfg[key] ~= nil then error(("%s belongs to replay=RUN"):format(key), 0) end
  end
end

-- A replay has the rows of its run and the rewards that the run stored.
local function check_rows(cfg)
  if not cfg.replay then return end
  if cfg.against ~= "auto" then
    error("against: a replay compares with the stored rewards; leave it out", 0)
  end
  for _, row in ipairs(rows) do
    if row.key ~= "sam2_path" and cfg[row.key] ~= row.default then
      error(("%s: the rows of a replay are those of its run; leave it out"):format(row.key), 0)
    end
  end
end

-- The second save would find the file of the first one.
local function check_output(cfg)
  if not cfg.output then return end
  if cfg.watch then error("output: a file is written once; leave out watch", 0) end
  if files.exists(cfg.output) then
    error(("output: %s is there already; name a new file"):format(visible.line(cfg.output)), 0)
  end
  local folder = folders.parent(cfg.output)
  if folders.kind(folder .. "/") ~= "folder" then
    error(("output: there is no folder %s"):format(visible.line(folder)), 0)
  end
end

M.schema = schema.new {
  name = "reward",
  about = "Tries a reward on answers of known quality, or on the stored answers of a run.",
  usage = { "REWARD [key=value ...]", "REWARD --replay RUN [key=value ...]", "REWARD --watch" },
  notes = { "REWARD is a FILE.lua, FILE.lua:NAME or a name in rewards/. Exit status 1: it failed "
    .. "on an answer." },
  groups = {
    { title = "What", rows = what },
    { title = "Rows", rows = rows },
    { title = "How", rows = how },
  },
  checks = { check_replay, check_rows, check_output },
}

return M
