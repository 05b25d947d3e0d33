-- files.lua - file operations that plain Lua lacks: making folders, atomic writes, tests for
-- existence, JSON with sorted keys, new run folders, and the folders of the embedded models.
--
-- A file is written under a temporary name, synced and renamed, and its folder is synced, so a
-- half-written file never appears under its own name.
-- Leaves out: listing and removing (folders.lua).

local ffi = require "ffi"
local cjson = require "cjson"

ffi.cdef [[
int mkdir(const char *path, unsigned int mode);
int fsync(int fd);
int fileno(void *stream);
char *strerror(int code);
int access(const char *path, int mode);
]]

local core = require "segzero.core.ffi"

local M = {}

local EEXIST = 17

function M.make_dir(path)
  local so_far = ""
  if path:sub(1, 1) == "/" then so_far = "/" end
  for part in path:gmatch "[^/]+" do
    so_far = so_far .. part
    if ffi.C.mkdir(so_far, 493) ~= 0 and ffi.errno() ~= EEXIST then        -- 0755
      error(("cannot make the folder %s: %s"):format(so_far,
        ffi.string(ffi.C.strerror(ffi.errno()))), 2)
    end
    so_far = so_far .. "/"
  end
end

-- Opens nothing: a pipe would wait for its writer.
function M.exists(path)
  local READABLE = 4
  return ffi.C.access(path, READABLE) == 0
end

-- Raises an error for a path that is not a file of bytes: a folder, a pipe, a device.
function M.check_regular(path)
  local stat = require "posix.sys.stat"
  local found = stat.stat(path)
  if found and stat.S_ISREG(found.st_mode) == 0 then error(path .. ": not a regular file", 0) end
end

function M.read(path)
  local file, reason = io.open(path, "rb")
  if not file then return nil, reason end
  local text, why = file:read "*a"
  file:close()
  if not text then return nil, ("%s: %s"):format(path, why or "cannot be read") end
  return text
end

function M.write(path, text)
  local temporary = path .. ".tmp"
  local file, reason = io.open(temporary, "wb")
  if not file then error(reason, 2) end
  local ok, why = file:write(text)
  if ok then ok, why = file:flush() end
  if ok and ffi.C.fsync(ffi.C.fileno(file)) ~= 0 then
    ok = nil
    why = ffi.string(ffi.C.strerror(ffi.errno()))
  end
  file:close()
  if ok then ok, why = os.rename(temporary, path) end
  if ok then require("segzero.core.folders").sync(path:match "^(.*)/[^/]*$" or ".") end
  if not ok then
    os.remove(temporary)
    error(("cannot write %s: %s"):format(path, tostring(why)), 2)
  end
end

-- The Lua value of the text of a JSON file; null is cjson.null. Errors name the file.
function M.decode_json(path, text)
  if text:sub(1, 3) == "\239\187\191" then
    error(path .. ": begins with a byte order mark, which JSON does not have: save it without", 0)
  end
  local ok, value = pcall(cjson.decode, text)
  if not ok then error(("%s: not valid JSON: %s"):format(path, tostring(value)), 0) end
  return value
end

-- The same for a text that must hold an object or a list.
function M.decode_json_object(path, text)
  local value = M.decode_json(path, text)
  if type(value) ~= "table" then error(path .. ": not a JSON object", 0) end
  return value
end

-- The text of a JSON file. optional: returns nil if the file does not exist.
local function json_text(path, optional)
  M.check_regular(path)
  local text, reason = M.read(path)
  if not text and not optional then error(reason, 0) end
  return text
end

-- The Lua value of a JSON file, as decode_json gives it.
function M.read_json(path, optional)
  local text = json_text(path, optional)
  if text then return M.decode_json(path, text) end
end

function M.read_json_object(path, optional)
  local text = json_text(path, optional)
  if text then return M.decode_json_object(path, text) end
end

-- JSON with sorted keys. cjson writes keys in hash order, which changes from process to process,
-- but equal runs must write equal bytes.
function M.json(value)
  if type(value) ~= "table" or next(value) == nil then return cjson.encode(value) end
  local parts = {}
  local keys = {}
  for k in pairs(value) do keys[#keys + 1] = k end
  if #keys == #value then
    for i, v in ipairs(value) do parts[i] = M.json(v) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  for i, k in ipairs(keys) do parts[i] = cjson.encode(tostring(k)) .. ":" .. M.json(value[k]) end
  return "{" .. table.concat(parts, ",") .. "}"
end

local function is_list_of_values(value)
  for _, v in ipairs(value) do
    if type(v) == "table" then return false end
  end
  return #value > 0
end

-- The same for a file that people read and compare, with a line for each key and an indent of 2. A
-- list of plain values is one line.
local function indented(value, indent)
  local is_plain = type(value) ~= "table" or next(value) == nil
  if is_plain or is_list_of_values(value) then return (M.json(value):gsub("\\/", "/")) end
  local inner = indent .. "  "
  local parts = {}
  if #value > 0 then
    for i, v in ipairs(value) do parts[i] = inner .. indented(v, inner) end
    return "[\n" .. table.concat(parts, ",\n") .. "\n" .. indent .. "]"
  end
  local keys = {}
  for k in pairs(value) do keys[#keys + 1] = k end
  table.sort(keys)
  for i, k in ipairs(keys) do
    parts[i] = ("%s%s: %s"):format(inner, indented(k, ""), indented(value[k], inner))
  end
  return "{\n" .. table.concat(parts, ",\n") .. "\n" .. indent .. "}"
end

function M.indented_json(value) return indented(value, "") .. "\n" end

-- A folder for what a program writes: `wanted` if it does not exist or is empty, else wanted-2,
-- wanted-3, ... The config.json that the caller writes marks it as taken.
function M.fresh_folder(wanted)
  return require("segzero.core.folders").claim(wanted, "config.json", "{}\n", wanted).path
end

-- The path of an embedded model: in the current folder if it exists there, else in the
-- installation.
function M.embedded(path)
  if M.exists(path .. "/config.json") then return path end
  return core.root .. "/" .. path
end

-- The path of a model in models/tiny, as examples name it, from any folder; other paths as they
-- are.
function M.shipped(path)
  if not path:find "^models/tiny/" or M.exists(path) then return path end
  local installed = core.root .. "/" .. path
  return M.exists(installed) and installed or path
end

return M
