-- shared_folder.lua - the output folder of Seg-Zero's evaluation loop, which several processes
-- share: each writes output_{idx}.json into it.
--
--   shared_folder.check(path, idx)      before models are loaded: may it be written?
--   local own = shared_folder.claim(path, idx, say)
--     own.path      path/part_{idx}, or part_{idx}-2, -3, ...: this process's own results
--     own.output    path/output_{idx}.json
--   shared_folder.write(own, text)                      writes output_{idx}.json
--   shared_folder.outputs(path) -> {{path =, idx =, part = folder | nil}, ...} by name
--
-- A file output_{idx}.json of an earlier evaluation is replaced, since its own folder keeps its
-- rows; one that segzero did not write is never touched. outputs() finds the folder that each file
-- came from: an error if a newer one has not finished, or if the file was changed. Leaves out: what
-- is in the files (output_rows.lua) and what they amount to (tally.lua).

local checksum = require "segzero.core.checksum"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local mistake = require "segzero.core.mistake"
local hints = require "segzero.core.path_hints"

local M = {}

local MARK = "written.json"     -- in a part's folder: the checksum of the output file it wrote

local function fail(message, ...) error(message:format(...), 0) end

local function sum_of(folder)
  local ok, json = pcall(files.read_json_object, folder .. "/" .. MARK, true)
  return ok and json and json.checksum
end

-- The folders of a part, the newest last.
local function parts_of(path, idx)
  local list = {}
  for _, name in ipairs(folders.list(path) or {}) do
    local part, n = name:match "^part_(%d+)%-?(%d*)$"
    if part and tonumber(part) == idx and (n == "") == (name == "part_" .. part) then
      list[#list + 1] = { path = path .. "/" .. name, number = tonumber(n) or 1 }
    end
  end
  table.sort(list, function(a, b) return a.number < b.number end)
  return list
end

-- The folder whose evaluation wrote this output file; nil if there is none.
local function writer_of(parts, output)
  local sum = checksum.file(output)
  for i = #parts, 1, -1 do
    if sum_of(parts[i].path) == sum then return parts[i] end
  end
  return nil
end

-- Raises an error if the output file is not ours. Returns its path, and the folder it came from.
function M.check(path, idx)
  path = path:gsub("(.)/+$", "%1")
  folders.check(path, "output_path")
  local output = ("%s/output_%d.json"):format(path, idx)
  if folders.kind(output) then
    local writer = writer_of(parts_of(path, idx), output)
    if not writer then
      fail("output_path: %s exists already and is no result of segzero: remove it, or name another "
        .. "folder", output)
    end
    return output, writer.path
  end
  return output, nil
end

function M.claim(path, idx, say)
  path = path:gsub("(.)/+$", "%1")
  local output, earlier = M.check(path, idx)
  if earlier then say(("%s will be replaced; %s keeps its rows"):format(output, earlier)) end
  local own = folders.claim(("%s/part_%d"):format(path, idx), "config.json", "{}\n", "output_path")
  return { path = own.path, output = output }
end

function M.write(own, text)
  files.write(own.output, text)
  files.write(own.path .. "/" .. MARK, files.json { checksum = checksum.text(text) })
end

function M.outputs(path)
  path = path:gsub("(.)/+$", "%1")
  local names, why = folders.list(path)
  if not names then mistake.raise(("output_dir: %s%s"):format(why, hints.question(path))) end
  local list = {}
  for _, name in ipairs(names) do
    local idx = tonumber(name:match "^output_(%d+)%.json$")
    local one = name:match "^output_.*%.json$" and { path = path .. "/" .. name, idx = idx }
    local parts = idx and parts_of(path, idx) or {}
    if one and #parts > 0 then
      local newest = parts[#parts]
      one.part = newest.path
      if sum_of(newest.path) ~= checksum.file(one.path) then
        fail("output_dir: %s is not what the newest evaluation of this part wrote (%s): it has not "
          .. "finished, or the file was changed", one.path, newest.path)
      end
    end
    list[#list + 1] = one or nil
  end
  if #list == 0 then fail("output_dir: %s holds no output_*.json", path) end
  return list
end

return M
