-- plan_state.lua - what a memory plan knows before it counts: the machine, the policy without
-- memory, the longest prompt, and which parts a run has.
--
--   local state = plan_state.read(cfg, opts, device)     opts: train, prompt, answer (tokens),
--                                                        ranks (of the job) and neighbours
--                                                        (those on this machine); default 1
--       {dir, device, vl, input, image_bytes, reference, evaluates, val_rows, sam2 = bytes, answer,
--        shards, replicas}
--   plan_state.device() -> {total =, free =} in bytes
--   plan_state.meta_policy(cfg, dir, shards)             the first of `shards` shards. cfg is the
--                                                        caller's own copy: adapters may freeze the
--                                                        vision tower in it

local coordinates = require "segzero.data.coordinates"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local data = require "segzero.data"
local frame = require "segzero.data.frame"
local inputs = require "segzero.train.inputs"
local lora = require "segzero.models.lora"
local opening = require "segzero.models.opening"
local prompts = require "segzero.data.prompt"
local sam2_names = require "segzero.models.sam2.names"
local plan_ranks = require "segzero.tools.plan_ranks"
local train_options = require "segzero.train.options"

local M = {}

local ROWS_READ = 8

-- ---- the machine ----
local function number_in(path, pattern)
  local text = files.read(path)
  return text and tonumber(text:match(pattern))
end

-- What this process may use: all memory, or the limit of its control group; and what is free now.
function M.device()
  local total = (number_in("/proc/meminfo", "MemTotal:%s*(%d+) kB") or 0) * 1024
  local free = (number_in("/proc/meminfo", "MemAvailable:%s*(%d+) kB") or 0) * 1024
  local limit = number_in("/sys/fs/cgroup/memory.max", "^(%d+)")
  if limit then total = math.min(limit, total) end
  return { total = total, free = free }
end

function M.file_bytes(path)
  local file = io.open(path, "rb")
  if not file then return 0 end
  local n = file:seek "end"
  file:close()
  return n or 0
end

local function folder_bytes(dir)
  local sum = 0
  for _, name in ipairs(folders.list(dir) or {}) do
    if name:match "%.safetensors$" then sum = sum + M.file_bytes(dir .. "/" .. name) end
  end
  return sum
end

-- ---- the policy and its input ----
function M.meta_policy(cfg, dir, shards)
  local family = opening.family(dir, 0)
  if not family.meta then error(dir .. ": a model of this family is not trained as a policy", 0) end
  local part
  if shards > 1 then part = { count = shards, index = 0 } end
  local ok, vl = pcall(family.meta, dir, cfg.worker.actor.model.dtype, part)
  if not ok then
    error(core.plain(vl):gsub("^config: ", dir:gsub("%%", "%%%%") .. "/config.json: "), 0)
  end
  return lora.configure(vl, cfg, true)
end

local function input_of(row, cfg, vl, prompt)
  local img, own = coordinates.resized(row.image, frame.settings(cfg.data, "data."))
  local messages = inputs.messages(row, prompt, cfg.data.system_prompt, img)
  local ok, input = pcall(vl.process, vl, messages)
  if own then img:free() end
  if not ok then error(("row %s: %s"):format(tostring(row.id), core.plain(input)), 0) end
  return input
end

-- The longest input of the first rows, and the bytes that a row's images take.
local function longest_input(cfg, vl, train, prompt)
  local d = cfg.data
  local set = train or data.sources.open(d.train_files, {
    split = "train", size = d.refshapes_size, seed = d.seed, rows = d.refshapes_rows,
    prompt_key = d.prompt_key, answer_key = d.answer_key, image_key = d.image_key,
    image_dir = d.image_dir, several = prompts.style(cfg).several,
    label = "data.train_files",
  })
  local processor = vl:processor()
  processor.min_pixels = d.min_pixels
  processor.max_pixels = d.max_pixels
  local longest
  local most = 0
  for i = 1, math.min(ROWS_READ, set:count()) do
    local row = data.sources.read_row(set, i)
    local input = input_of(row, cfg, vl, prompt)
    local patches = 0
    if input.pixel_values then patches = input.pixel_values:numel() end
    most = math.max(most, row.image.width * row.image.height * 3 + patches * 4)
    row.image:free()
    if not longest or #input.input_ids > #longest.input_ids then longest = input end
  end
  return longest, most
end

-- ---- which parts a run has ----
local function evaluates(cfg)
  if cfg.data.val_files == "" then return false end
  local t = cfg.trainer
  return t.val_before_train or t.test_freq > 0 or not t.val_only
end

-- SAM2's weights in f32, and as much again for an image's features and its arena.
local function sam2_bytes(path)
  if path == "" then return 0 end
  local original = path
  if files.exists(path .. "/.") then original = sam2_names.file_in(path) end
  if original then return 2 * M.file_bytes(original) end
  return 2 * folder_bytes(path)
end

function M.read(cfg, opts, device)
  local d = cfg.data
  local state = { dir = cfg.worker.actor.model.model_path, device = device, answer = opts.answer,
    neighbours = opts.neighbours or 1 }
  local split = plan_ranks.split(cfg, opts.ranks or 1)
  state.shards, state.replicas = split.shards, split.replicas
  state.vl = M.meta_policy(cfg, state.dir, state.shards)
  local prompt = opts.prompt or require("segzero.data.prompt").style(cfg).ask
  state.input, state.image_bytes = longest_input(cfg, state.vl, opts.train, prompt)
  state.reference = train_options.uses_reference(cfg)
  state.evaluates = evaluates(cfg)
  state.val_rows = d.val_batch_size
  if d.val_files:match "^refshapes" then state.val_rows = d.refshapes_val_rows end
  state.sam2 = sam2_bytes(cfg.worker.reward.sam2_path)
  return state
end

return M
