-- checkpoint.lua - a training state on disk: a folder that is a loadable Hugging Face model (or PEFT adapter) plus what resuming needs.
--
--   checkpoint.save(folder, step, vl, opt, state)      folder/global_step_<step>/
--   checkpoint.finish(checkpoint.begin(...))           the same in two: between them a thread beside the main one writes
--   checkpoint.latest(folder) -> path | nil            the newest one that is complete
--   checkpoint.load(path, vl, opt) -> state            weights and optimizer in place
--
-- It is written under global_step_<step>.tmp and renamed; the file DONE is written last, and a folder without it does not
-- count. One that takes another's place puts that aside as .old for a moment; where a run ended in that moment, .old counts.
-- Resuming gives the same bits as not having stopped (weights, moments, masters and step counts are all there).

local safetensors = require "segzero.formats.safetensors"
local files = require "segzero.core.files"
local core = require "segzero.core.ffi"
local lora = require "segzero.models.lora"
local jobs = require "segzero.core.jobs"

local M = {}

local function quoted(path) return "'" .. path:gsub("'", "'\\''") .. "'" end
local function remove_tree(path) os.execute("rm -rf -- " .. quoted(path)) end

-- What one that could not be written leaves; on a full disk its bytes are the ones that lack.
local function give_up(final, why)
  remove_tree(final .. ".tmp")
  error(("the checkpoint %s is not written: %s"):format(final, core.plain(why)), 0)
end

-- Makes the list of files and starts writing them; returns the final path and the job. The tensors are written from where they are:
-- until the job has ended nothing may change them. Everything else is as it is now.
function M.begin(folder, step, vl, opt, state)
  local final = ("%s/global_step_%d"):format(folder, step)
  local temporary, old = final .. ".tmp", final .. ".old"
  remove_tree(temporary)
  if files.exists(final .. "/DONE") then remove_tree(old) else os.rename(old, final) end
  local writing = jobs.writing()
  local saved, why = pcall(vl.save, vl, temporary, { later = writing })
  if not saved then give_up(final, why) end
  if opt then
    safetensors.save(temporary .. "/optimizer.safetensors", opt:state(), { format = "pt" }, writing)
    state.optimizer_steps = opt:steps()
  end
  state.global_step = step
  writing:text(temporary .. "/trainer_state.json", files.json(state))
  writing:text(temporary .. "/DONE", "")
  local replaces = files.exists(final .. "/DONE")
  if replaces then writing:rename(final, old) else remove_tree(final) end
  writing:rename(temporary, final)
  writing:text(folder .. "/latest", ("global_step_%d\n"):format(step))
  return final, writing:start(), replaces and old
end

-- Waits for what begin() began.
function M.finish(final, job, old)
  local ok, message = job:wait()
  job:free()
  if not ok then give_up(final, message) end
  if old then remove_tree(old) end
  return final
end

function M.save(...) return M.finish(M.begin(...)) end

-- The folders themselves are asked, not the file `latest`: that one is for people, and a run may end between the two.
function M.latest(folder)
  local best, path = -1, nil
  local listing = io.popen("ls " .. quoted(folder) .. " 2>/dev/null")
  for name in listing:lines() do       -- in order: a step's own folder before its .old
    local number, aside = name:match "^global_step_(%d+)(.*)$"
    local step = (aside == "" or aside == ".old") and tonumber(number)
    if step and step > best and files.exists(folder .. "/" .. name .. "/DONE") then best, path = step, folder .. "/" .. name end
  end
  listing:close()
  return path
end

-- Runs f on loaded tensors and lets go of them.
local function with(tensors, f)
  local ok, why = pcall(f, tensors)
  for _, t in pairs(tensors) do t:free() end
  if not ok then error(why, 0) end
end

-- Whether every tensor of `into` has a saved one of its name and shape; same: and of its dtype.
local function compare(path, into, saved, same)
  for name, t in pairs(into) do
    if not saved[name] then error(("checkpoint %s: missing %s"):format(path, name), 0) end
    local has, want = table.concat(saved[name]:shape(), ", "), table.concat(t:shape(), ", ")
    if has ~= want then error(("checkpoint %s: %s has shape [%s], expected [%s]"):format(path, name, has, want), 0) end
    if same and saved[name]:dtype() ~= t:dtype() then
      error(("checkpoint %s: %s is %s, expected %s: worker.actor.optim.state_dtype was another one"):format(path, name, saved[name]:dtype(),
        t:dtype()), 0)
    end
  end
end

local function copy(into, saved)
  for name, t in pairs(into) do t:copy_(saved[name]) end
end

function M.load(path, vl, opt)
  if not files.exists(path .. "/DONE") then
    error(("%s is not a complete checkpoint (no file DONE)"):format(path), 2)
  end
  local state = files.read_json(path .. "/trainer_state.json")
  if type(state) ~= "table" or type(state.global_step) ~= "number" then
    error(("checkpoint %s: trainer_state.json has no global_step"):format(path), 2)
  end
  local parameters = vl.lora and lora.parameters(vl) or vl:parameters()
  local adapters = files.exists(path .. "/adapter_config.json")
  if adapters ~= (vl.lora ~= nil) then
    error(("checkpoint %s has %s: worker.actor.model.lora.rank was %s"):format(path, adapters and "adapters alone" or "no adapters",
      adapters and lora.read_config(path).r or "0"), 0)
  end
  if vl.lora then lora.same_settings(vl, path) end
  -- All is looked at before anything is changed.
  with(vl.lora and lora.read(path) or safetensors.load_folder(path), function(saved_weights)
    compare(path, parameters, saved_weights)
    for name in pairs(vl.lora and saved_weights or {}) do
      if not parameters[name] then
        error(("checkpoint %s: %s would not be used: lora.target_modules or lora.exclude_modules were others"):format(path, name), 0)
      end
    end
    with(opt and safetensors.load(path .. "/optimizer.safetensors") or {}, function(saved)
      if opt then
        compare(path .. "/optimizer.safetensors", opt:state(), saved, true)
        copy(opt:state(), saved)
        opt:set_steps(state.optimizer_steps)
      end
      copy(parameters, saved_weights)
    end)
  end)
  return state
end

return M
