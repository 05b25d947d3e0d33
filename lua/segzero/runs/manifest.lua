-- manifest.lua - manifest.json of a checkpoint: which files it has, how long they are, and the
-- checksum of each tensor and of each other file. Loading checks them, and only what a manifest
-- lists is ever removed.
--
--   {"version": 1, "run": "the run's id", "global_step": 2, "files": {
--      "model.safetensors": {"bytes": 9000, "parts": [{"tensor": "", "bytes": 800, "xxh3": "..."},
--        {"tensor": "model.norm.weight", "bytes": 128, "xxh3": "16 hexadecimal digits"}, ...]},
--      "config.json": {"bytes": 500, "xxh3": "..."}, ...}}
--
-- The part "" of a file of tensors is its header. xxh3: XXH3 with 64 bits (xxhsum -H3).
--
--   manifest.begin(folder, run, step, names) makes the folder of a checkpoint, with the file
--                                            UNFINISHED that says whose it is, and which files may
--                                            be written at once
--   manifest.add(writing, folder, run, step) adds to a list of files (jobs.writing): syncing those
--                                            that are in the folder, manifest.json, and UNFINISHED
--                                            becomes DONE. Files that the list has written
--                                            already are not synced again
--   manifest.check(folder) -> true, or nil if there is no manifest
--                                            reads every file; a damaged one is an error that names
--                                            file and tensor
--   manifest.check_sizes(folder)             every file has its size, and the small files that
--                                            resuming reads first have the right bytes. Fast: runs
--                                            before anything is loaded
--   manifest.list(folder) -> {{name =, bytes =, parts = {{tensor =, bytes =, xxh3 =}, ..}}, ..} by
--                                            name, or nil if there is no manifest
--   manifest.wrong_size(folder, file), manifest.wrong_bytes(file, sums) -> text or nil
--                                            what is wrong with a file of the list
--   manifest.ranges(file) -> begin, stop     C arrays of its parts
--   manifest.owner(folder) -> id             of the run that wrote it; "" for a run without an id,
--                                            nil if nothing says that segzero wrote it
--   manifest.is_bare(folder)                 nothing is in it, or a record that was being written
--   manifest.remove(folder) -> true, or nil and the reason    removes what the manifest (or
--                                            UNFINISHED) lists, and the folder if it is empty then
--
-- Errors are one line without a position. Leaves out: the order of writing
-- (train/run/checkpoint.lua).

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local safetensors = require "segzero.formats.safetensors"
local visible = require "segzero.core.visible"

local M = {}

local MANIFEST = "manifest.json"
local UNFINISHED = "UNFINISHED"
local DONE = "DONE"
local SHOWN = 120               -- bytes of a tensor's name that a message shows
local VERSION = 1

-- ---- writing ----
local function unfinished(folder, run, step, names)
  local record = { run = run, global_step = step, files = names }
  files.write(folder .. "/" .. UNFINISHED, cjson.encode(record) .. "\n")
end

function M.begin(folder, run, step, names)
  files.make_dir(folder)
  unfinished(folder, run, step, names)
end

-- The checksummed parts of a file that is in the folder already.
local function parts_of(path)
  if path:match "%.safetensors$" then return (safetensors.layout(path)) end
  local file = assert(io.open(path, "rb"))
  local bytes = file:seek "end"
  file:close()
  return { { begin = 0, stop = bytes } }
end

-- '%' stands for a checksum in the text that the background thread fills in.
local function quote(text) return (cjson.encode(text):gsub("%%", "\\u0025"):gsub("\\/", "/")) end

local function part_text(part)
  return ('{"tensor":%s,"bytes":%.0f,"xxh3":"%%"}'):format(quote(part.name), part.bytes)
end

-- The entry of one file. parts: in the order of their checksums.
local function file_text(name, parts)
  if not parts[1].name then
    return ('%s:{"bytes":%.0f,"xxh3":"%%"}'):format(quote(name), parts[1].bytes)
  end
  local bytes = 0
  local texts = {}
  for i, part in ipairs(parts) do
    bytes = bytes + part.bytes
    texts[i] = "\n   " .. part_text(part)
  end
  return ('%s:{"bytes":%.0f,"parts":[%s]}'):format(quote(name), bytes, table.concat(texts, ","))
end

-- The parts of a list of files, grouped by file in their order: {{name =, parts =}, ...}.
local function by_file(folder, parts)
  local list = {}
  for _, part in ipairs(parts) do
    local name = part.path:sub(#folder + 2)
    if part.path:sub(1, #folder + 1) == folder .. "/" then
      local last = list[#list]
      if not last or last.name ~= name then
        last = { name = name, parts = {} }
        list[#list + 1] = last
      end
      table.insert(last.parts, part)
    end
  end
  return list
end

function M.add(writing, folder, run, step)
  -- The files that the model has written at once, such as its tokenizer.
  local known = { [UNFINISHED] = true }
  for _, file in ipairs(by_file(folder, writing.parts)) do known[file.name] = true end
  for _, name in ipairs(assert(folders.list(folder))) do
    local path = folder .. "/" .. name
    if not known[name:gsub("%.tmp$", "")] then writing:sync(path, parts_of(path)) end
  end

  -- If the run ends before the manifest is there, UNFINISHED says what may be removed.
  local list = by_file(folder, writing.parts)
  local names = {}
  local texts = {}
  for i, file in ipairs(list) do
    names[i] = file.name
    texts[i] = "\n  " .. file_text(file.name, file.parts)
  end
  unfinished(folder, run, step, names)
  local text = '{"version":%d,"run":%s,"global_step":%d,"files":{%s}}\n'
  writing:manifest(folder .. "/" .. MANIFEST,
    text:format(VERSION, quote(run), step, table.concat(texts, ",")))
  writing:rename(folder .. "/" .. UNFINISHED, folder .. "/" .. DONE)
end

-- ---- reading ----
local function bad(folder, ...)
  error(("%s/%s: %s"):format(folder, MANIFEST, (...):format(select(2, ...))), 0)
end

-- A name that stays inside the folder.
local function is_plain(name)
  return type(name) == "string" and name ~= "" and not name:find("[/%z]") and name ~= "."
    and name ~= ".."
end

local function is_size(n) return type(n) == "number" and n >= 0 and n <= 2 ^ 53 and n % 1 == 0 end

local function is_sum(text) return type(text) == "string" and text:match "^%x+$" and #text == 16 end

local function check_entry(folder, name, entry)
  if not is_plain(name) then bad(folder, "'%s' is not the name of a file", tostring(name)) end
  if type(entry) ~= "table" or not is_size(entry.bytes) then
    bad(folder, "'%s' has no size", name)
  end
  local parts = entry.parts or { { bytes = entry.bytes, xxh3 = entry.xxh3 } }
  if type(parts) ~= "table" then bad(folder, "the parts of '%s' are not a list", name) end
  local total = 0
  for _, part in ipairs(parts) do
    if type(part) ~= "table" or not is_size(part.bytes) or not is_sum(part.xxh3) then
      bad(folder, "'%s' has a part without size or checksum", name)
    end
    total = total + part.bytes
  end
  if total ~= entry.bytes then
    bad(folder, "the parts of '%s' have %.0f bytes, the file has %.0f", name, total, entry.bytes)
  end
  return parts
end

-- The manifest, or nil if there is none.
local function read(folder)
  local json = files.read_json_object(folder .. "/" .. MANIFEST, true)
  if not json then return nil end
  if type(json.files) ~= "table" then bad(folder, "there is no list of files") end
  for name, entry in pairs(json.files) do check_entry(folder, name, entry) end
  return json
end

-- ---- checking ----
local function damaged(folder, problem)
  local message = "checkpoint %s is damaged: %s; resume from another one " ..
    "(trainer.load_checkpoint_path=.../global_step_N)"
  error(message:format(folder, problem), 0)
end

-- The number in 16 hexadecimal digits.
local function number_of(text)
  return tonumber(text:sub(1, 8), 16) * 0x100000000ULL + tonumber(text:sub(9), 16)
end

function M.wrong_size(folder, file)
  local opened = io.open(folder .. "/" .. file.name, "rb")
  if not opened then return file.name .. " is missing" end
  local size = opened:seek "end"
  opened:close()
  if size == file.bytes then return nil end
  return ("%s has %.0f bytes, %.0f were written"):format(file.name, size or -1, file.bytes)
end

-- The parts follow each other.
function M.ranges(file)
  local begin = ffi.new("int64_t[?]", #file.parts)
  local stop = ffi.new("int64_t[?]", #file.parts)
  local place = 0
  for i, part in ipairs(file.parts) do
    begin[i - 1] = place
    place = place + part.bytes
    stop[i - 1] = place
  end
  return begin, stop
end

-- sums: a C array with the checksum of each part.
function M.wrong_bytes(file, sums)
  for i, part in ipairs(file.parts) do
    if sums[i - 1] ~= number_of(part.xxh3) then
      local where = ""
      if part.tensor == "" then where = " in its header" end
      if type(part.tensor) == "string" and part.tensor ~= "" then
        where = " in the tensor " .. visible.line(part.tensor, SHOWN)
      end
      return ("%s has other bytes than were written%s"):format(file.name, where)
    end
  end
end

local function check_size(folder, file)
  local problem = M.wrong_size(folder, file)
  if problem then damaged(folder, problem) end
end

local function check_file(folder, file)
  check_size(folder, file)
  local sums = ffi.new("uint64_t[?]", #file.parts)
  local begin, stop = M.ranges(file)
  core.call(core.C.sz_file_sums(folder .. "/" .. file.name, #file.parts, begin, stop, 0, sums))
  local problem = M.wrong_bytes(file, sums)
  if problem then damaged(folder, problem) end
end

function M.list(folder)
  local json = read(folder)
  if not json then return nil end
  local list = {}
  for name, entry in pairs(json.files) do
    list[#list + 1] = { name = name, bytes = entry.bytes, parts = check_entry(folder, name, entry) }
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

-- Calls check(folder, file) for the files of the manifest in the order of their names.
local function check_all(folder, check)
  local list = M.list(folder)
  for _, file in ipairs(list or {}) do check(folder, file) end
  return list and true
end

function M.check(folder) return check_all(folder, check_file) end

local READ_FIRST = { ["settings.json"] = true, ["trainer_state.json"] = true }

function M.check_sizes(folder)
  return check_all(folder, function(_, file)
    local check = READ_FIRST[file.name] and check_file or check_size
    check(folder, file)
  end)
end

-- ---- whose it is, and removing ----
-- The manifest, or what UNFINISHED says; nil if the folder has neither.
local function record_of(folder)
  local ok, json = pcall(read, folder)
  if ok and json then return json end
  ok, json = pcall(files.read_json_object, folder .. "/" .. UNFINISHED, true)
  if ok then return json end
end

function M.owner(folder)
  local json = record_of(folder)
  return json and type(json.run) == "string" and json.run or nil
end

-- The names that the record allows to remove.
local function own_names(json)
  local names = {}
  for key, value in pairs(json.files or {}) do
    local name = key
    if type(key) == "number" then name = value end
    if is_plain(name) then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- What else is in the folder, but for the two records themselves.
local function others(folder)
  local left = {}
  for _, name in ipairs(folders.list(folder) or {}) do
    local base = name:gsub("%.tmp$", "")
    if base ~= MANIFEST and base ~= UNFINISHED then left[#left + 1] = name end
  end
  return left
end

-- A folder that a kill left at the very beginning or at the end of its life.
function M.is_bare(folder)
  local names = folders.list(folder)
  if not names then return false end
  return #names == 0 or (#names == 1 and names[1] == UNFINISHED .. ".tmp")
end

-- DONE goes first, so that a folder in the middle of this is no checkpoint; what lists the files
-- goes last, so that a removal that was interrupted can go on.
function M.remove(folder)
  local json = record_of(folder)
  if not json then
    if M.is_bare(folder) then folders.remove_file(folder .. "/" .. UNFINISHED .. ".tmp") end
    if folders.remove_empty(folder) then return true end
    return nil, "it has no manifest, so it is not known what segzero wrote"
  end
  local half_written = files.exists(folder .. "/" .. UNFINISHED)
  local ok, reason = folders.remove_file(folder .. "/" .. DONE)
  if not ok then return nil, reason end
  folders.sync(folder)
  for _, name in ipairs(own_names(json)) do
    local path = folder .. "/" .. name
    ok, reason = folders.remove_file(path)
    if not ok then return nil, reason end
    if half_written then folders.remove_file(path .. ".tmp") end
  end

  local left = others(folder)
  if #left > 0 then
    local some = table.concat(left, ", ", 1, math.min(#left, 3))
    return nil, ("it holds %s, which segzero did not write"):format(some)
  end
  for _, name in ipairs { MANIFEST, UNFINISHED } do
    folders.remove_file(folder .. "/" .. name .. ".tmp")
    folders.remove_file(folder .. "/" .. name)
  end
  return folders.remove_empty(folder)
end

return M
