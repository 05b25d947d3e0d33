-- safetensors_write.lua - writes safetensors files and folders, at once or in the background, from
-- whole tensors or from the parts that several ranks have.
--
-- The functions save and save_folder are safetensors.lua's.
--
-- Where the tensors are whole ones of which this rank has parts (parts.lua), several ranks write
-- one file, and the bytes are those that one rank would write. later, a list of files
-- (jobs.writing), is needed then. The first rank makes the file (writing:share); with opts.part
-- each rank, also that one, writes its own parts. opts.columns: what writes divided columns
-- (models/columns.lua).
-- Leaves out: reading; the order in which ranks do this (models/split.lua,
-- train/run/checkpoint.lua).

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local parts = require "segzero.formats.parts"
local tensor = require "segzero.core.tensor"

local C = core.C
local call = core.call
local guarded = core.guarded

local M = {}

local NAMES = { f32 = "F32", bf16 = "BF16", i32 = "I32", u8 = "U8" }
local LENGTH_BYTES = 8          -- before the header

M.SINGLE = "model.safetensors"
M.INDEX = "model.safetensors.index.json"

-- ---- the header ----
local function sorted_names(tensors)
  local names = {}
  for name, t in pairs(tensors) do
    if type(name) ~= "string" or name == "__metadata__" then
      error("a tensor cannot be named " .. tostring(name), 0)
    end
    local is_tensor = parts.is_part(t) or tensor.is_tensor(t) and t.ptr ~= nil
    if not is_tensor then error("'" .. name .. "' is not a tensor", 0) end
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local function width_of(t) return tensor.WIDTH[t:dtype()] end

local function bytes_of(t) return t:numel() * width_of(t) end

-- The text of __metadata__, or nil.
local function metadata_text(metadata)
  local keys = {}
  for k, v in pairs(metadata) do
    if type(k) ~= "string" or type(v) ~= "string" then
      error("metadata must be texts; '" .. tostring(k) .. "' is not", 0)
    end
    keys[#keys + 1] = k
  end
  if #keys == 0 then return nil end
  table.sort(keys)
  for i, k in ipairs(keys) do keys[i] = cjson.encode(k) .. ":" .. cjson.encode(metadata[k]) end
  return '"__metadata__":{' .. table.concat(keys, ",") .. "}"
end

-- The header, and the tensors in the order of the file: {{name =, begin =, stop =}, ...}, in bytes
-- of the data part. The JSON is written by hand, because cjson encodes an empty list as {} and does
-- not sort keys.
local function lay_out(names, tensors, metadata)
  -- Wider types come first, so that every tensor is aligned to its element size.
  local order = {}
  for i, name in ipairs(names) do
    order[i] = { name = name, i = i, size = width_of(tensors[name]) }
  end
  table.sort(order, function(a, b)
    if a.size ~= b.size then return a.size > b.size end
    return a.i < b.i
  end)

  -- The place and the text of each.
  local at = 0
  local text = {}
  for _, o in ipairs(order) do
    local t = tensors[o.name]
    local stop = at + bytes_of(t)
    local sizes = table.concat(t:shape(), ",")
    local entry = '%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'
    text[o.name] = entry:format(cjson.encode(o.name), NAMES[t:dtype()], sizes, at, stop)
    o.begin = at
    o.stop = stop
    at = stop
  end

  local list = { metadata_text(metadata) }
  for _, name in ipairs(names) do list[#list + 1] = text[name] end
  local header = "{" .. table.concat(list, ",") .. "}"
  return header .. (" "):rep(-#header % 8), order
end

-- ---- one file ----
local function write_whole(path, names, tensors, metadata, later)
  local header, order = lay_out(names, tensors, metadata)
  local pointers = ffi.new("sz_tensor *[?]", #order + 1)
  local list = {}
  local in_file = {}
  for i, o in ipairs(order) do
    in_file[i] = o.name
    list[i] = tensors[o.name]
    pointers[i - 1] = list[i].ptr
  end
  if later then
    later:tensors(path, header, list, in_file)
  else
    call(C.sz_safetensors_write(path, header, #header, pointers, #order))
  end
end

-- A file that several ranks write: makes it, or with how.part adds this rank's parts.
local function write_parts(path, names, tensors, metadata, later, how)
  if not later then error(path .. ": parts of tensors are written by a list of files", 0) end
  local header, order = lay_out(names, tensors, metadata)
  local start = LENGTH_BYTES + #header
  if not how.part then
    local layout = { { name = "", begin = 0, stop = start } }
    for i, one in ipairs(order) do
      layout[i + 1] = { name = one.name, begin = start + one.begin, stop = start + one.stop }
    end
    return later:share(path, header, layout[#layout].stop, layout)
  end

  local own = {}
  for _, one in ipairs(order) do
    local t = tensors[one.name]
    if t.part and not t.elsewhere then
      local piece = { tensor = t.part, begin = start + one.begin, place = t:place() }
      local pieces = { piece }
      if how.columns then pieces = how.columns:write(path .. ".tmp", piece) end
      for _, each in ipairs(pieces) do own[#own + 1] = each end
    end
  end
  later:pieces(path .. ".tmp", own)
end

-- Whether several ranks write the tensors.
local function is_shared(names, tensors) return #names > 0 and parts.is_part(tensors[names[1]]) end

local function write(path, names, tensors, metadata, later, how)
  if is_shared(names, tensors) then
    return write_parts(path, names, tensors, metadata, later, how)
  end
  write_whole(path, names, tensors, metadata, later)
end

-- later: a list of files (jobs.writing) that writes this one in the background. how: {part =,
-- columns =}, see above.
M.save = guarded(function(path, tensors, metadata, later, how)
  if type(path) ~= "string" then error("a file name is expected, got " .. type(path), 0) end
  if type(tensors) ~= "table" then
    error("a table of tensors is expected, got " .. type(tensors), 0)
  end
  if metadata ~= nil and type(metadata) ~= "table" then
    error("metadata is a " .. type(metadata) .. ", not a table of texts", 0)
  end
  if later ~= nil and not later.tensors then
    error("save: the fourth argument is a list of files (jobs.writing), not a table of options", 0)
  end
  write(path, sorted_names(tensors), tensors, metadata or { format = "pt" }, later, how or {})
end)

-- ---- folders ----
-- Lists of names, one for each file, and the bytes of all tensors.
local function divide(names, tensors, limit)
  local shards = {}
  local total = 0
  local size = 0
  for _, name in ipairs(names) do
    local n = bytes_of(tensors[name])
    if #shards == 0 or (size + n > limit and size > 0) then
      shards[#shards + 1] = {}
      size = 0
    end
    table.insert(shards[#shards], name)
    size = size + n
    total = total + n
  end
  return shards, total
end

local function shard_name(i, count)
  return ("model-%05d-of-%05d.safetensors"):format(i, count)
end

local function index_text(shards, total)
  local map = {}
  for i, shard in ipairs(shards) do
    local file = cjson.encode(shard_name(i, #shards))
    for _, name in ipairs(shard) do
      map[#map + 1] = ("    %s: %s"):format(cjson.encode(name), file)
    end
  end
  local text = '{\n  "metadata": {"total_size": %.0f},\n  "weight_map": {\n%s\n  }\n}\n'
  return text:format(total, table.concat(map, ",\n"))
end

local function write_index(path, text)
  local file, why = io.open(path .. ".tmp", "wb")
  if not file then error(why, 0) end
  local written, reason = file:write(text)
  if not file:close() or not written then
    error(path .. ": cannot write: " .. tostring(reason), 0)
  end
  local moved, cause = os.rename(path .. ".tmp", path)
  if not moved then error(cause, 0) end
end

local SAVE_FOLDER = options.set { "max_shard_bytes", "metadata", "later", "part", "columns" }

-- Removes a file that an earlier save left, and that a reader would take for one of this save: an
-- index of other files, or one file that is read before an index. Where several ranks write, it
-- stays until all have.
local function remove_left(path, opts, shared)
  if opts.part then return end
  if shared then return opts.later:at_end(function() os.remove(path) end) end
  os.remove(path)
end

-- Writes one file, or numbered shards and then the index. The index comes last, because shards
-- without one are not read as a model. An older index goes when the first new file has its name: it
-- would call new and old files one model if the rest fails. opts.later, opts.part and opts.columns:
-- see above.
M.save_folder = guarded(function(dir, tensors, opts)
  opts = options.check("save_folder", opts, SAVE_FOLDER, 0)
  local limit = opts.max_shard_bytes or 5e9
  if type(limit) ~= "number" or not (limit >= 1) then
    error("max_shard_bytes is " .. tostring(limit), 0)
  end
  local names = sorted_names(tensors)
  local shards, total = divide(names, tensors, limit)
  local metadata = opts.metadata or { format = "pt" }
  local single = dir .. "/" .. M.SINGLE
  local index_path = dir .. "/" .. M.INDEX
  local shared = is_shared(names, tensors)
  if #shards <= 1 then
    write(single, names, tensors, metadata, opts.later, opts)
    return remove_left(index_path, opts, shared)
  end
  for i, shard in ipairs(shards) do
    local path = dir .. "/" .. shard_name(i, #shards)
    write(path, shard, tensors, metadata, opts.later, opts)
    if i == 1 then remove_left(index_path, opts, shared) end
  end
  if opts.part then return end
  local text = index_text(shards, total)
  if shared then
    opts.later:at_end(function(writing) writing:text(index_path, text) end)
  elseif opts.later then
    opts.later:text(index_path, text)
  else
    write_index(index_path, text)
  end
  remove_left(single, opts, shared)
end)

return M
