-- safetensors_stream.lua - writes a model folder's safetensors files piece by piece, so that no
-- whole tensor need be in memory.
--
--   local bytes, names = stream.write(dir, weights, {
--     shard = 5e9,                          most bytes of a file; a larger tensor is alone
--     fill = function(weight, put) ... end, calls put(data, bytes) until the tensor is complete
--     on_shard = function(name, tensors) end })            after each file; optional
--   weights: {{name =, shape = {..}, dtype = "f32" | "bf16"}, ...}, in the order of the files
--   -> all bytes of the tensors, the files' names: model.safetensors, or shards and their index
--
-- The files are written under names that end in .tmp, synced, and renamed when all are complete;
-- the index comes last. After an error the temporary files are removed, and nothing else has
-- changed. Leaves out: other types, metadata besides {format = "pt"}.

local ffi = require "ffi"
local cjson = require "cjson"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

ffi.cdef [[
size_t fwrite(const void *data, size_t size, size_t count, void *stream);
int fflush(void *stream);
]]

local M = {}

local NAMES = { f32 = "F32", bf16 = "BF16" }
local WIDTHS = { f32 = 4, bf16 = 2 }

local function bytes_of(weight)
  local n = WIDTHS[weight.dtype]
  for _, d in ipairs(weight.shape) do n = n * d end
  return n
end

-- Lists of weights, one for each file, and all bytes.
local function divide(weights, limit)
  local shards = {}
  local total = 0
  local room = 0
  for _, w in ipairs(weights) do
    local bytes = bytes_of(w)
    if #shards == 0 or bytes > room then
      shards[#shards + 1] = {}
      room = limit
    end
    table.insert(shards[#shards], w)
    room = room - bytes
    total = total + bytes
  end
  return shards, total
end

local function quoted(name) return (cjson.encode(name):gsub("\\/", "/")) end

local function header_of(shard)
  local parts = { '"__metadata__":{"format":"pt"}' }
  local offset = 0
  for i, w in ipairs(shard) do
    local stop = offset + bytes_of(w)
    local sizes = table.concat(w.shape, ",")
    local entry = '%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'
    parts[i + 1] = entry:format(quoted(w.name), NAMES[w.dtype], sizes, offset, stop)
    offset = stop
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  return header .. (" "):rep(-#header % 8)
end

local function system_error() return ffi.string(ffi.C.strerror(ffi.errno())) end

-- Writes one file under its temporary name.
local function write_file(path, shard, fill)
  local file, why = io.open(path, "wb")
  if not file then error("cannot write " .. why, 0) end
  local function refuse(reason) error(("cannot write %s: %s"):format(path, reason), 0) end
  local written
  local function put(data, bytes)
    if tonumber(ffi.C.fwrite(data, 1, bytes, file)) ~= bytes then refuse(system_error()) end
    written = written + bytes
  end
  local ok, reason = pcall(function()
    file:setvbuf "no"
    local header = header_of(shard)
    written = 0
    put(ffi.new("uint64_t[1]", #header), 8)
    put(header, #header)
    for _, w in ipairs(shard) do
      written = 0
      fill(w, put)
      if written ~= bytes_of(w) then
        error(("%s: tensor '%s' got %.0f bytes of %.0f"):format(path, w.name, written,
          bytes_of(w)), 0)
      end
    end
    local is_flushed = ffi.C.fflush(file) == 0
    if not is_flushed or ffi.C.fsync(ffi.C.fileno(file)) ~= 0 then refuse(system_error()) end
  end)
  local closed, cause = file:close()
  if not ok then error(reason, 0) end
  if not closed then refuse(cause) end
end

local function index_text(shards, names, total)
  local map = {}
  for i, shard in ipairs(shards) do
    for _, w in ipairs(shard) do
      map[#map + 1] = ('    %s: "%s"'):format(quoted(w.name), names[i])
    end
  end
  table.sort(map)
  local index = '{\n  "metadata": {"total_size": %.0f},\n  "weight_map": {\n%s\n  }\n}\n'
  return index:format(total, table.concat(map, ",\n"))
end

local function rename(from, to)
  local ok, why = os.rename(from, to)
  if not ok then error(("cannot write %s: %s"):format(to, why), 0) end
end

function M.write(dir, weights, options)
  local shards, total = divide(weights, options.shard)
  local names = {}
  local temporary = {}
  local ok, why = pcall(function()
    for i, shard in ipairs(shards) do
      names[i] = "model.safetensors"
      if #shards > 1 then names[i] = ("model-%05d-of-%05d.safetensors"):format(i, #shards) end
      temporary[i] = ("%s/%s.tmp"):format(dir, names[i])
      write_file(temporary[i], shard, options.fill)
      if options.on_shard then options.on_shard(names[i], #shard) end
    end
    for i, name in ipairs(names) do rename(temporary[i], dir .. "/" .. name) end
    folders.sync(dir)
    if #shards > 1 then
      files.write(dir .. "/model.safetensors.index.json", index_text(shards, names, total))
    end
  end)
  if ok then return total, names end
  for _, path in ipairs(temporary) do folders.remove_file(path) end
  error(why, 0)
end

return M
