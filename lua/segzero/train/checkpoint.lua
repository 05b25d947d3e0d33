-- checkpoint.lua - a training state on disk: a loadable Hugging Face model (or PEFT adapter) plus
-- what resuming needs.
--
--   checkpoint.save(folder, step, vl, opt, state) -> path     folder/global_step_<step>/
--   checkpoint.finish(checkpoint.begin(...)) -> path
--       the same in two calls; a background thread writes in between
--   checkpoint.latest(folder) -> path | nil                   the newest complete checkpoint
--   checkpoint.load(path, vl, opt) -> state
--       loads weights and optimizer in place; opt may be nil
--
-- A checkpoint is written as global_step_<step>.tmp and renamed. Its file DONE is written last; a
-- folder without it is incomplete. An existing checkpoint of the same step is renamed to .old first
-- and removed afterwards; if the run ends in between, .old is used. A resumed run gives the same
-- bits as one that never stopped.
-- Leaves out: deleting old checkpoints.

local safetensors = require "segzero.formats.safetensors"
local files = require "segzero.core.files"
local core = require "segzero.core.ffi"
local lora = require "segzero.models.lora"
local jobs = require "segzero.core.jobs"

local M = {}

local function quoted(path) return "'" .. path:gsub("'", "'\\''") .. "'" end

local function remove_tree(path) os.execute("rm -rf -- " .. quoted(path)) end

local function is_complete(path) return files.exists(path .. "/DONE") end

-- ---- writing ----
-- Removes the files of a failed write, which may have filled the disk.
local function give_up(final, reason)
  remove_tree(final .. ".tmp")
  error(("the checkpoint %s is not written: %s"):format(final, core.plain(reason)), 0)
end

-- Adds the files of a checkpoint in the order of writing. DONE is last.
local function add_files(writing, temporary, step, vl, opt, state)
  vl:save(temporary, { later = writing })
  if opt then
    safetensors.save(temporary .. "/optimizer.safetensors", opt:state(), { format = "pt" }, writing)
    state.optimizer_steps = opt:steps()
  end
  state.global_step = step
  writing:text(temporary .. "/trainer_state.json", files.json(state))
  writing:text(temporary .. "/DONE", "")
end

-- Starts writing. Returns what finish() takes: the final path, the job, and the path of a replaced
-- checkpoint or false. Tensors are written from their own memory: nothing may change them until
-- finish() returns.
function M.begin(folder, step, vl, opt, state)
  local final = ("%s/global_step_%d"):format(folder, step)
  local temporary = final .. ".tmp"
  local old = final .. ".old"
  remove_tree(temporary)
  -- An .old next to an incomplete folder comes from a run that ended between the two renames.
  if is_complete(final) then remove_tree(old) else os.rename(old, final) end

  local writing = jobs.writing()
  local ok, reason = pcall(add_files, writing, temporary, step, vl, opt, state)
  if not ok then give_up(final, reason) end
  local replaces = is_complete(final)
  if replaces then writing:rename(final, old) else remove_tree(final) end
  writing:rename(temporary, final)
  writing:text(folder .. "/latest", ("global_step_%d\n"):format(step))
  return final, writing:start(), replaces and old
end

-- Waits for what begin() started.
function M.finish(final, job, old)
  local ok, message = job:wait()
  job:free()
  if not ok then give_up(final, message) end
  if old then remove_tree(old) end
  return final
end

function M.save(...) return M.finish(M.begin(...)) end

-- ---- finding ----
-- The step in a folder's name, or nil.
local function step_of(name)
  local number, suffix = name:match "^global_step_(%d+)(.*)$"
  if suffix == "" or suffix == ".old" then return tonumber(number) end
end

-- Looks at the folders and not at the file `latest`: a run may end before that file is updated.
function M.latest(folder)
  local newest = -1
  local path
  local listing = io.popen("ls " .. quoted(folder) .. " 2>/dev/null")
  for name in listing:lines() do       -- sorted, so a step's own folder comes before its .old
    local step = step_of(name)
    if step and step > newest and is_complete(folder .. "/" .. name) then
      newest = step
      path = folder .. "/" .. name
    end
  end
  listing:close()
  return path
end

-- ---- loading ----
-- Runs f on loaded tensors and frees them.
local function with(tensors, f)
  local ok, reason = pcall(f, tensors)
  for _, t in pairs(tensors) do t:free() end
  if not ok then error(reason, 0) end
end

local function shape_text(t) return table.concat(t:shape(), ", ") end

-- Checks that every tensor of `into` has a saved one of its name and shape; if same_dtype, of its
-- dtype too.
local function compare(path, into, saved, same_dtype)
  for name, t in pairs(into) do
    local other = saved[name]
    if not other then error(("checkpoint %s: missing %s"):format(path, name), 0) end
    if shape_text(other) ~= shape_text(t) then
      local message = "checkpoint %s: %s has shape [%s], expected [%s]"
      error(message:format(path, name, shape_text(other), shape_text(t)), 0)
    end
    if same_dtype and other:dtype() ~= t:dtype() then
      error(("checkpoint %s: %s is %s, expected %s: worker.actor.optim.state_dtype was different")
        :format(path, name, other:dtype(), t:dtype()), 0)
    end
  end
end

local function copy(into, saved)
  for name, t in pairs(into) do t:copy_(saved[name]) end
end

-- A checkpoint of adapters belongs to a model with the same adapters.
local function check_adapters(path, vl)
  local has_adapters = files.exists(path .. "/adapter_config.json")
  if has_adapters ~= (vl.lora ~= nil) then
    local content = "no adapters"
    local rank = 0
    if has_adapters then
      content = "adapters alone"
      rank = lora.read_config(path).r
    end
    local message = "checkpoint %s has %s: it was written with worker.actor.model.lora.rank=%s"
    error(message:format(path, content, rank), 0)
  end
  if vl.lora then lora.same_settings(vl, path) end
end

local function check_unused(path, vl, parameters, saved)
  if not vl.lora then return end
  for name in pairs(saved) do
    if not parameters[name] then
      error(("checkpoint %s: %s would not be used: lora.target_modules or lora.exclude_modules " ..
        "were different"):format(path, name), 0)
    end
  end
end

local function load_optimizer(path, opt, then_copy)
  if not opt then return then_copy() end
  path = path .. "/optimizer.safetensors"
  with(safetensors.load(path), function(saved)
    compare(path, opt:state(), saved, true)
    copy(opt:state(), saved)
    then_copy()
  end)
end

function M.load(path, vl, opt)
  if not is_complete(path) then
    error(("%s is not a complete checkpoint (no file DONE)"):format(path), 2)
  end
  local state = files.read_json(path .. "/trainer_state.json")
  if type(state) ~= "table" or type(state.global_step) ~= "number" then
    error(("checkpoint %s: trainer_state.json has no global_step"):format(path), 2)
  end
  check_adapters(path, vl)
  local parameters, saved_weights
  if vl.lora then
    parameters = lora.parameters(vl)
    saved_weights = lora.read(path)
  else
    parameters = vl:parameters()
    saved_weights = safetensors.load_folder(path)
  end
  -- Everything is checked before anything is changed.
  with(saved_weights, function(saved)
    compare(path, parameters, saved)
    check_unused(path, vl, parameters, saved)
    load_optimizer(path, opt, function() copy(parameters, saved) end)
  end)
  if opt then opt:set_steps(state.optimizer_steps) end
  return state
end

return M
