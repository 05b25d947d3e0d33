-- checkpoint.lua - a training state on disk: a folder that is a loadable Hugging Face model plus what resuming needs.
--
--   checkpoint.save(folder, step, vl, opt, state)      folder/global_step_<step>/
--   checkpoint.latest(folder) -> path | nil            the newest one that is complete
--   checkpoint.load(path, vl, opt) -> state            weights and optimizer in place
--
-- It is written under global_step_<step>.tmp and renamed; the file DONE is written last, and a folder without it does not
-- count. Resuming gives the same bits as not having stopped (f32 weights, moments and step counts are all there).

local cjson = require "cjson"
local safetensors = require "segzero.safetensors"
local files = require "segzero.files"

local M = {}

local function remove_tree(path)
  os.execute(("rm -rf '%s'"):format((path:gsub("'", "'\\''"))))
end

function M.save(folder, step, vl, opt, state)
  local final = ("%s/global_step_%d"):format(folder, step)
  local temporary = final .. ".tmp"
  remove_tree(temporary)
  vl:save(temporary)
  if opt then
    safetensors.save(temporary .. "/optimizer.safetensors", opt:state(), { format = "pt" })
    state.optimizer_steps = opt:steps()
  end
  state.global_step = step
  files.write(temporary .. "/trainer_state.json", cjson.encode(state))
  files.write(temporary .. "/DONE", "")
  remove_tree(final)
  local ok, reason = os.rename(temporary, final)
  if not ok then error(("cannot finish the checkpoint %s: %s"):format(final, reason), 2) end
  files.write(folder .. "/latest", ("global_step_%d\n"):format(step))
  return final
end

function M.latest(folder)
  local name = files.read(folder .. "/latest")
  name = name and name:match "^(global_step_%d+)"
  if name and files.exists(folder .. "/" .. name .. "/DONE") then return folder .. "/" .. name end
end

function M.load(path, vl, opt)
  if not files.exists(path .. "/DONE") then
    error(("%s is not a complete checkpoint (no file DONE)"):format(path), 2)
  end
  local state = cjson.decode(assert(files.read(path .. "/trainer_state.json")))
  local saved = safetensors.load_folder(path)
  for name, t in pairs(vl:parameters()) do
    if not saved[name] then error(("checkpoint %s: missing %s"):format(path, name), 2) end
    t:copy_(saved[name])
  end
  if opt then opt:load_state(safetensors.load(path .. "/optimizer.safetensors"), state.optimizer_steps) end
  return state
end

return M
