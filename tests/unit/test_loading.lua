-- test_loading.lua - model folders: many shards under both namings, used as mapped files;
-- conversions and unaligned files; damage of every kind, all of it named in one error.
--
--   ./segzero tests/unit/test_loading.lua
--
-- With SEGZERO_LARGE=1 also a folder of examples/random_checkpoint.lua at real width (0.6 GB of
-- disk, seconds).

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local C = sz.core.C
local st = sz.safetensors
local place = mini.folder()
local origin = mini.write(place .. "/origin")
local weights = st.load_folder(origin)
local input = mini.input(sz.qwen_vl(origin), 1)

-- ---- folders and their logits ----

local function last_logits(vl)
  return tensor.no_grad(function()
    local all = vl:forward(input)
    return all:narrow(all:shape()[1] - 1, 1):totable()[1]
  end)
end

-- The logits of the model in a folder.
local function logits_of(dir, dtype)
  return last_logits(sz.qwen_vl(dir, { dtype = dtype }))
end

-- A weight's newer name.
local function new_name(name)
  local vision, replaced = name:gsub("^visual%.", "model.visual.")
  if replaced > 0 then return vision end
  return (name:gsub("^model%.", "model.language_model."))
end

-- The tensors (name -> tensor) under their newer names.
local function with_new_names(tensors)
  local out = {}
  for name, t in pairs(tensors) do out[new_name(name)] = t end
  return out
end

-- Copies of the tensors in another dtype.
local function cast(tensors, dtype)
  local out = {}
  for name, t in pairs(tensors) do
    out[name] = tensor.empty(t:shape(), { dtype = dtype }):copy_(t)
  end
  return out
end

local BYTES = { bf16 = 2, f32 = 4 }
local OTHER_FILES = {
  "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
  "tokenizer_config.json",
}

local folders = 0
local function new_path()
  folders = folders + 1
  return place .. "/" .. folders
end

-- A model folder of about 16 shards with these tensors (name -> tensor).
local function folder_of(tensors, shard_bytes)
  local dir = new_path()
  files.make_dir(dir)
  for _, name in ipairs(OTHER_FILES) do
    files.write(dir .. "/" .. name, files.read(origin .. "/" .. name))
  end
  local total = 0
  for _, t in pairs(tensors) do total = total + t:numel() * BYTES[t:dtype()] end
  st.save_folder(dir, tensors, { max_shard_bytes = shard_bytes or math.ceil(total / 16) })
  return dir
end

local function index_path(dir) return dir .. "/model.safetensors.index.json" end

local function index_of(dir) return cjson.decode(files.read(index_path(dir))).weight_map end

local function write_index(dir, map)
  files.write(index_path(dir), cjson.encode { metadata = {}, weight_map = map })
end

local half = cast(weights, "bf16")
local want = logits_of(origin)
local want_half = logits_of(folder_of(half), "bf16")

-- ---- both namings, mapped ----

-- Compiled traces may name objects, which are then not collected.
local function live_bytes()
  jit.flush()
  collectgarbage()
  collectgarbage()
  return tonumber(C.sz_live_bytes())
end

local function check_mapped(tensors)
  local dir = folder_of(tensors)
  local shards = {}
  for _, shard in pairs(index_of(dir)) do shards[shard] = true end
  local n = 0
  local bytes = 0
  for shard in pairs(shards) do
    n = n + 1
    bytes = bytes + #files.read(dir .. "/" .. shard)
  end
  check.ok(n >= 10, n .. " shards")

  local before = live_bytes()
  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  check.equal(tonumber(C.sz_live_bytes()) - before, bytes,
    "bf16 files are mapped, no other memory is held")
  check.equal(last_logits(vl), want_half, "logits")
  vl:free()
  check.equal(live_bytes(), before, "freed")
end

check.case("bf16 shards under the hub's names are mapped", function() check_mapped(half) end)

check.case("bf16 shards under the newer names are mapped", function()
  check_mapped(with_new_names(half))
end)

check.case("f32 shards under the newer names", function()
  check.equal(logits_of(folder_of(with_new_names(weights))), want, "logits")
end)

-- ---- conversions, alignment ----

check.case("files of one dtype, a model of another", function()
  check.equal(logits_of(folder_of(weights), "bf16"), want_half,
    "f32 files for a bf16 model are rounded once")
  local want_wide = logits_of(folder_of(cast(half, "f32")))
  check.equal(logits_of(folder_of(half), "f32"), want_wide, "bf16 files for an f32 model")
end)

-- n as 8 little-endian bytes.
local function u64(n)
  local bytes = {}
  for i = 1, 8 do
    bytes[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(bytes)
end

check.case("a file whose data starts at an odd address is copied", function()
  -- A space after the header moves the data by one byte.
  local dir = folder_of(half, 1e9)
  local path = dir .. "/model.safetensors"
  local text = files.read(path)
  local length = 0
  for i = 8, 1, -1 do length = length * 256 + text:byte(i) end
  local header = text:sub(9, 8 + length)
  files.write(path, u64(length + 1) .. header .. " " .. text:sub(9 + length))

  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  check.equal(last_logits(vl), want_half, "an unaligned file")
  for _, t in pairs(vl:parameters()) do
    local address = ffi.cast("uintptr_t", tensor.data(t))
    check.equal(tonumber(address % 2), 0, "aligned in memory")
  end
end)

check.case("F16 is exact in f32 and rounded once in bf16", function()
  local json = '{"x":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'
  files.make_dir(place .. "/f16")
  files.write(place .. "/f16/model.safetensors", u64(#json) .. json .. "\0\60\0\192\1\60\255\123")
  local folder = st.open_folder(place .. "/f16")
  check.equal(folder:tensor("x"):totable(), { 1, -2, 1 + 2 ^ -10, 65504 }, "f16 as f32")
  check.equal(folder:tensor("x", "bf16"):totable(), { 1, -2, 1, 65536 }, "f16 as bf16")
  folder:close()
end)

check.case("writing to a mapped weight does not change its file", function()
  local NORM = "model.norm.weight"
  local dir = folder_of(half)
  local shard = dir .. "/" .. index_of(dir)[NORM]
  local before = files.read(shard)
  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  tensor.data(vl:parameters()[NORM])[0] = 0x4000
  check.equal(vl:parameters()[NORM]:totable()[1], 2, "a mapped weight can be written")
  check.ok(files.read(shard) == before, "its file is as before")
end)

-- ---- damage ----

-- Two tensors that are stored in two shards, and their names as patterns.
local A = "model.layers.0.mlp.up_proj.weight"
local B = "visual.blocks.1.attn.qkv.bias"
local A_PATTERN = A:gsub("%.", "%%.")
local B_PATTERN = B:gsub("%.", "%%.")

local whole = folder_of(weights)

-- Loads a copy of the folder after change(dir, map). map is the index; it is written back if change
-- returns true. Checks that the error matches the patterns, and returns it.
local function refused(what, patterns, change)
  local dir = mini.copy(whole, new_path())
  local map = index_of(dir)
  if change(dir, map) then write_index(dir, map) end
  local ok, why = pcall(sz.qwen_vl, dir)
  why = tostring(why)
  check.equal(ok, false, what .. ": refused")
  for _, pattern in ipairs(patterns) do
    check.ok(why:find(pattern) ~= nil, ("%s: %s in: %s"):format(what, pattern, why))
  end
  return why
end

-- Rewrites the shard after change(tensors).
local function rewrite(dir, shard, change)
  local tensors = st.load(dir .. "/" .. shard)
  change(tensors)
  st.save(dir .. "/" .. shard, tensors)
end

-- Keeps the first `bytes` of a file; a negative number drops that many from its end.
local function cut(path, bytes)
  local text = files.read(path)
  if bytes < 0 then bytes = #text + bytes end
  files.write(path, text:sub(1, bytes))
end

check.case("the two damaged tensors are in two shards", function()
  local map = index_of(whole)
  check.ok(map[A] ~= map[B], "two shards")
end)

check.case("damaged shards", function()
  local why = refused("a missing shard", { "1 weights do not fit", "No such file" },
    function(dir, map) os.remove(dir .. "/" .. map[A]) end)
  check.ok(not why:find "missing: ", "the tensors of a missing shard are not listed one by one")
  refused("a truncated shard",
    { "data_offsets %d+ to %d+, but the file has %d+ bytes of data" },
    function(dir, map) cut(dir .. "/" .. map[A], -100) end)
  refused("a shard cut in its header", { "header length %d+, but the file has only 40 bytes" },
    function(dir, map) cut(dir .. "/" .. map[A], 40) end)
  refused("an empty shard", { "0 bytes are too few" },
    function(dir, map) cut(dir .. "/" .. map[A], 0) end)
end)

check.case("damaged indexes", function()
  local wrong_shard = "'" .. A_PATTERN
    .. "' should be in model%-%d+%-of%-%d+%.safetensors, which lacks it %(it is in model%-"
  refused("an index with the wrong shard", { wrong_shard }, function(_, map)
    map[A] = map[B]
    return true
  end)
  refused("a tensor that the index does not name", { "'" .. A_PATTERN .. "' is not in the index" },
    function(_, map)
      map[A] = nil
      return true
    end)
  refused("an index that names a tensor that does not exist",
    { "'model%.layers%.9%.mlp%.up_proj%.weight' should be in" }, function(_, map)
      map["model.layers.9.mlp.up_proj.weight"] = map[A]
      return true
    end)
  refused("an index that is not JSON", { "index%.json: not valid JSON" },
    function(dir) files.write(index_path(dir), "{") end)
  refused("a shard outside the folder", { "is said to be in '%.%./" }, function(_, map)
    map[A] = "../" .. map[A]
    return true
  end)
end)

check.case("tensors that do not fit the model", function()
  refused("a missing tensor", { "missing: " .. A_PATTERN }, function(dir, map)
    rewrite(dir, map[A], function(t) t[A] = nil end)
    map[A] = nil
    return true
  end)
  refused("an extra tensor", { "unexpected: extra" }, function(dir, map)
    rewrite(dir, map[A], function(t) t.extra = sz.tensor { 1 } end)
    map.extra = map[A]
    return true
  end)
  refused("a wrong shape", { A_PATTERN .. ": shape %[2048%], expected %[64, 32%]" },
    function(dir, map)
      rewrite(dir, map[A], function(t) t[A] = t[A]:reshape(t[A]:numel()) end)
    end)
  refused("integers", { A_PATTERN .. ": dtype I32" }, function(dir, map)
    rewrite(dir, map[A], function(t) t[A] = tensor.zeros(t[A]:shape(), { dtype = "i32" }) end)
  end)
  refused("both namings at once", { "twice, under two names" }, function(dir, map)
    rewrite(dir, map[A], function(t) t[new_name(A)] = t[A] end)
    map[new_name(A)] = map[A]
    return true
  end)
end)

check.case("one error names all damage", function()
  local patterns = {
    "bytes of data",
    "'model%.nowhere%.weight' should be in",
    "unexpected: extra",
    B_PATTERN .. ": shape %[2%], expected %[96%]",
  }
  local why = refused("everything at once", patterns, function(dir, map)
    cut(dir .. "/" .. map["model.embed_tokens.weight"], -1)
    rewrite(dir, map[B], function(t)
      t[B] = sz.tensor { 1, 2 }
      t.extra = sz.tensor { 1 }
    end)
    map.extra = map[B]
    map["model.nowhere.weight"] = map[B]
    return true
  end)
  check.ok(why:find "4 weights do not fit", "one error for all: " .. why)
end)

-- Old files have rotary tables; a tied model's file may have a head.
check.case("a tied head and rotary tables are ignored", function()
  local more = {}
  for name, t in pairs(weights) do more[name] = t end
  more["lm_head.weight"] = weights["model.embed_tokens.weight"]
  more["visual.rotary_pos_emb.inv_freq"] = sz.tensor { 1 }
  check.equal(logits_of(folder_of(more)), want, "logits")
end)

-- ---- the example ----

local EXAMPLE = "examples/random_checkpoint.lua"

check.case("random_checkpoint refuses bad arguments", function()
  local function refused_arguments(name, ...)
    local _, status = mini.run { EXAMPLE, ... }
    check.equal(status, 2, name)
  end
  refused_arguments("an unknown size", "size=5b", "out=" .. place .. "/none")
  refused_arguments("no folder", "size=3b")
  refused_arguments("a folder that holds a model", "size=3b", "out=" .. origin)
  refused_arguments("no tokenizer", "size=3b", "out=" .. place .. "/none", "tokenizer=" .. place)
end)

check.case("random_checkpoint completes a model without a tokenizer", function()
  local dir = place .. "/bare"
  files.make_dir(dir)
  files.write(dir .. "/config.json", "{}")
  files.write(dir .. "/model.safetensors", "weights")
  local text, status = mini.run { EXAMPLE, "size=3b", "out=" .. dir }
  check.ok(status == 2 and text:find("tokenizer=Qwen/Qwen2.5-VL-3B-Instruct completes", 1, true),
    text)
  files.write(dir .. "/config.json", '{"image_token_id":151655}')
  text, status = mini.run { EXAMPLE, "out=" .. dir, "tokenizer=models/tiny/qwen2.5-vl" }
  check.ok(status == 2 and text:find("the model in " .. dir .. " has 151655", 1, true), text)
  files.write(dir .. "/config.json", "{}")
  text, status = mini.run { EXAMPLE, "out=" .. dir, "tokenizer=models/tiny/qwen2.5-vl" }
  check.equal(status, 0, text)
  check.ok(files.exists(dir .. "/tokenizer.json"), "the tokenizer is there")
  check.equal(files.read(dir .. "/model.safetensors"), "weights", "the model stays")
end)

local function check_random_checkpoint(names)
  local dir = place .. "/large-" .. names
  local text, status = mini.run {
    EXAMPLE, "size=2b", "layers=1", "v_depth=1", "shard=100000000", "names=" .. names,
    "out=" .. dir,
  }
  check.equal(status, 0, text)
  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  local w = vl:parameters()
  check.equal(w["visual.blocks.0.norm1.weight"]:narrow(0, 3):totable(), { 1, 1, 1 },
    "norms are 1")
  local t = w[A]:narrow(0, 1000):cast(C.SZ_F32)
  local n = t:numel()
  local mean = t:sum():item() / n
  local square = (t * t):sum():item() / n
  -- The standard errors of 1.5 million draws are 1.6e-5 of the mean and 1.2e-5 of the deviation.
  -- The tolerance is five of them, and bf16's rounding.
  check.near(mean, 0, 1e-4, "mean")
  check.near(math.sqrt(square), 0.02, 1e-4, "standard deviation")
  vl:free()
  return dir
end

check.case("random_checkpoint writes a model of real width", function()
  if not os.getenv "SEGZERO_LARGE" then
    check.skip "SEGZERO_LARGE=1 (a folder of 0.6 GB)"
    return
  end
  local NORM = "model.norm.weight"
  local hub = check_random_checkpoint "hub"
  check_random_checkpoint "new"
  local shard = hub .. "/" .. index_of(hub)[NORM]
  check.equal(st.load(shard)[NORM]:numel(), 1536, "the hub's names")
end)

mini.remove()
check.finish()
