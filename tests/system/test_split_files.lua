-- test_split_files.lua - checkpoints and model folders of D replicas of T shards: the bytes that
-- one process writes, and read back on every other split.
--
-- Each rank (tests/support/split_files_ranks.lua) makes the same updates on its parts. Needs Open
-- MPI. Left out: several machines; training steps.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local states = require "tests.support.split_files_ranks"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
local manifest = require "segzero.runs.manifest"
local safetensors = require "segzero.formats.safetensors"
local tensor = require "segzero.core.tensor"

if not runs.available() then
  check.finish()
  return
end

local place = runs.begin()
-- Rows of 48 and 96 elements and columns of 12 to 48: the blocks of 256 elements of 8-bit moments
-- are the whole's in some slices and others in the rest.
mini.write(place .. "/model", { config = { num_attention_heads = 4, num_key_value_heads = 2,
  hidden_size = 64, intermediate_size = 96,
  rope_scaling = { type = "mrope", mrope_section = { 2, 3, 3 } },
  vision_config = { depth = 1, hidden_size = 32, intermediate_size = 48, num_heads = 2,
    hidden_act = "silu", in_channels = 3, in_chans = 3, patch_size = 14, spatial_patch_size = 14,
    spatial_merge_size = 2, temporal_patch_size = 2, window_size = 112, out_hidden_size = 64,
    tokens_per_second = 2, fullatt_block_indexes = { 0 } } } })

local function name_of(split) return ("%d_%d"):format(split[1], split[2]) end

-- Runs the script on 1, 2 and 4 ranks; count: checkpoints of each split, of all kinds together.
local function on_all_ranks(mode, kinds, count)
  for ranks, splits in pairs { [1] = 1, [2] = 2, [4] = 3 } do
    local words = { "tests/support/split_files_ranks.lua", mode, place }
    for _, kind in ipairs(kinds) do words[#words + 1] = kind end
    local text, status = runs.run(ranks, words)
    check.equal(status, 0, ("%s on %d ranks: %s"):format(mode, ranks, text:sub(-600)))
    local _, ended = text:gsub(("ok %d\n"):format(splits * count), "")
    check.equal(ended, ranks, "ranks that ended: " .. text:sub(-600))
  end
end

local function checkpoint(name) return ("%s/%s/global_step_2"):format(place, name) end

local function content(name, file) return files.read(checkpoint(name) .. "/" .. file) end

-- What a manifest says, without the run's id.
local function listed(name)
  local list = {}
  for _, file in ipairs(manifest.list(checkpoint(name))) do
    for _, part in ipairs(file.parts) do
      list[#list + 1] = ("%s %s %d %s"):format(file.name, part.tensor or "", part.bytes, part.xxh3)
    end
  end
  return list
end

-- Files that name the run, and list files in the order of writing.
local OWN = { DONE = true, ["manifest.json"] = true }

-- Two checkpoints with the same bytes in all files that are not the run's own.
local function check_same(a, b)
  check.equal(folders.list(checkpoint(a)), folders.list(checkpoint(b)), a .. ": names")
  local tensors = 0
  for _, file in ipairs(folders.list(checkpoint(a))) do
    if not OWN[file] then
      check.ok(content(a, file) == content(b, file), ("%s of %s and %s"):format(file, a, b))
    end
    if file:find "%.safetensors$" then tensors = tensors + 1 end
  end
  check.equal(tensors, 2, "files of tensors")
  check.equal(listed(a), listed(b), a .. ": the manifest")
end

-- kinds whose numbers do not depend on the split.
local SAME = { "f32", "bf16", "whole", "lora" }

check.case("every split writes the same checkpoint", function()
  on_all_ranks("save", SAME, #SAME)
  for _, kind in ipairs(SAME) do
    for _, split in ipairs(states.SPLITS) do
      local name = kind .. "_" .. name_of(split)
      check.ok(manifest.check(checkpoint(name)), name .. ": checksums")
      check_same(name, kind .. "_1_1")
    end
    check.ok(#content(kind .. "_1_1", "optimizer.safetensors") > 1000, "there is a state")
  end
  for _, file in ipairs { "model.safetensors", "optimizer.safetensors" } do
    check.ok(content("whole_2_2", file) == content("f32_2_2", file), "whole copies: " .. file)
  end
end)

check.case("every split saves the same model folder", function()
  for _, split in ipairs(states.SPLITS) do
    local dir = place .. "/model_" .. name_of(split)
    check.equal(folders.list(dir), folders.list(place .. "/model_1_1"), dir)
    for _, file in ipairs(folders.list(dir)) do
      check.ok(files.read(dir .. "/" .. file) == files.read(place .. "/model_1_1/" .. file),
        dir .. "/" .. file)
    end
  end
end)

check.case("saved on any split, resumed on any: the same bytes", function()
  local kinds = { "f32", "bf16", "lora" }
  on_all_ranks("resume", kinds, 6 + 3 + 3)
  local pairs_seen = 0
  for _, kind in ipairs(kinds) do
    for _, from in ipairs(states.KINDS[kind].from) do
      for _, to in ipairs(states.SPLITS) do
        local name = ("%s_%s_to_%s"):format(kind, name_of(from), name_of(to))
        check.ok(manifest.check(checkpoint(name)), name .. ": checksums")
        check_same(name, kind .. "_1_1")
        pairs_seen = pairs_seen + 1
      end
    end
  end
  check.equal(pairs_seen, 36 + 18 + 18, "pairs")
end)

-- ---- 8-bit moments ----
-- A moment as numbers: codes and scales as runtime/cpu/optim.c describes them.
local function decode(saved, name, which)
  local codes = saved[which .. "." .. name]
  local scales = saved[which .. "_scale." .. name]
  local shape = codes:shape()
  local rows = shape[1]
  local columns = codes:numel() / rows
  local grid = scales:shape()
  local down = 1
  local across = 1
  if #grid == 3 then
    down = grid[1]
    across = grid[2]
  end
  local slice_rows = rows / down
  local slice_columns = columns / across
  local blocks = math.ceil(slice_rows * slice_columns / 256)
  local octaves = which == "exp_avg" and 16 or 32
  local code = tensor.data(codes)
  local scale = tensor.data(scales)
  local out = {}
  for i = 0, codes:numel() - 1 do
    local row = math.floor(i / columns)
    local column = i % columns
    local slice = math.floor(row / slice_rows) * across + math.floor(column / slice_columns)
    local inside = row % slice_rows * slice_columns + column % slice_columns
    local size = code[i]
    local sign = 1
    if which == "exp_avg" and size >= 128 then
      size = size - 128
      sign = -1
    end
    local x = size * 2 ^ (2 - octaves) / 8
    if size >= 8 then x = (1 + size % 8 / 8) * 2 ^ (math.floor(size / 8) + 1 - octaves) end
    out[i + 1] = sign * x * scale[slice * blocks + math.floor(inside / 256)]
  end
  return out
end

-- The largest error of b's moments against a's, in parts of what rounding to the nearest code may
-- make: a 16th of the element, or half of the smallest step of the block's scale.
local function worst_error(a, b)
  local worst = 0
  local count = 0
  local one = safetensors.load(checkpoint(a) .. "/optimizer.safetensors")
  local two = safetensors.load(checkpoint(b) .. "/optimizer.safetensors")
  for name, t in pairs(one) do
    local which, parameter = name:match "^(exp_avg%w*_?s?q?)%.(.*)$"
    if which then
      local x = decode(one, parameter, which)
      local y = decode(two, parameter, which)
      local largest = 0
      for i = 1, #x do largest = math.max(largest, math.abs(x[i])) end
      local step = largest * (which == "exp_avg" and 2 ^ -16 or 2 ^ -30)
      for i = 1, #x do
        worst = math.max(worst, math.abs(x[i] - y[i]) / (math.abs(x[i]) / 16 + step + 1e-38))
      end
      count = count + t:numel()
    end
  end
  check.ok(count > 1e5, count .. " codes")
  return worst
end

check.case("8-bit moments: the same bits on the same shards, else the nearest codes", function()
  on_all_ranks("save", { "int8" }, 1)
  on_all_ranks("resume", { "int8" }, #states.SPLITS)
  local recoded = 0
  for _, from in ipairs(states.SPLITS) do
    local source = "int8_" .. name_of(from)
    for _, to in ipairs(states.SPLITS) do
      local name = ("%s_to_%s"):format(source, name_of(to))
      check.ok(manifest.check(checkpoint(name)), name .. ": checksums")
      check.ok(content(name, "model.safetensors") == content(source, "model.safetensors"),
        name .. ": weights")
      if from[2] == to[2] then
        check_same(name, source)
      else
        recoded = recoded + 1
        local worst = worst_error(source, name)
        check.ok(worst > 0 and worst <= 1.01, ("%s: %g of a code's rounding"):format(name, worst))
      end
    end
  end
  check.equal(recoded, 22, "pairs with other shards")
end)

-- ---- a device ----
check.case("weights and state on a device: the same files", function()
  local library = host.library:gsub("libsegzero%.so$", "libsegzero_cuda_emulated.so")
  if not files.exists(library) then
    check.skip "the emulated CUDA library (make cuda-emulated)"
    return
  end
  local env = { SEGZERO_CUDA_LIBRARY = library, SEGZERO_SHARE_DEVICE = "1" }
  for _, mode in ipairs { "save", "resume" } do
    for count = 1, 2 do
      local text, status = runs.run(count, { "tests/support/split_files_ranks.lua", mode, place,
        "cuda" }, env)
      check.equal(status, 0, ("%s on %d: %s"):format(mode, count, text:sub(-600)))
    end
  end
  check_same("cuda_1_2", "cuda_1_1")
  for _, from in ipairs { "1_1", "1_2" } do
    for _, to in ipairs { "1_1", "1_2" } do
      check_same(("cuda_%s_to_%s"):format(from, to), "cuda_1_1")
    end
  end
end)

-- ---- columns to rows ----
check.case("columns become rows, every element of them", function()
  for _, count in ipairs { 2, 3, 4 } do
    local text, status = runs.run(count, { "tests/support/split_files_ranks.lua", "columns" })
    check.equal(status, 0, text:sub(-400))
    local sum = 0
    for rows in text:gmatch "ok (%d+)" do sum = sum + tonumber(rows) end
    -- Whole rows of the cases, in two dtypes, and those of the large one.
    check.equal(sum, 2 * (7 + 6 + 7 + 0 + 0 + 2 + 99 + 15) + 3000, "rows of all ranks")
  end
end)

-- ---- failures ----
check.case("a shard that cannot write its part of a model is named on all", function()
  local text = runs.run(2, { "tests/support/split_files_ranks.lua", "fail", place })
  local own = "model.safetensors.tmp: cannot write: File too large\n"
  local _, lines = text:gsub(own, "")
  check.equal(lines, 2, "both shards say it: " .. text)
  local _, named = ("\n" .. text):gsub("\nrank 1 %(host [^)]+%): [^\n]*" .. own, "")
  check.equal(named, 1, "the other names it: " .. text)
  check.ok(not files.exists(place .. "/failed/model.safetensors"), "no file")
  check.ok(not files.exists(place .. "/failed/model.safetensors.tmp"), "no rest")
end)

check.case("a written file that cannot get its name leaves nothing", function()
  local text = runs.run(2, { "tests/support/split_files_ranks.lua", "blocked", place })
  local _, lines = text:gsub("model%.safetensors[^\n]*: Is a directory", "")
  check.equal(lines, 2, "both shards say it: " .. text)
  check.equal(folders.kind(place .. "/blocked/model.safetensors"), "folder", "the folder stays")
  check.ok(not files.exists(place .. "/blocked/model.safetensors.tmp"), "no rest")
end)

check.case("a shard that cannot write its part of a checkpoint is named", function()
  local text = runs.run(2, { "tests/support/split_files_ranks.lua", "full", place })
  local own = "global_step_4 is not written: rank 1 %(host [^)]+%): "
    .. "%S+model.safetensors.tmp: cannot write: File too large\n"
  local _, lines = text:gsub(own, "")
  check.equal(lines, 2, "both shards say it: " .. text)
  local run = place .. "/full_1_2"
  check.ok(manifest.check(run .. "/global_step_2"), "the older checkpoint")
  local left = 0
  for _, name in ipairs(folders.list(run)) do
    if name:find "global_step" then left = left + 1 end
  end
  check.equal(left, 1, "checkpoints")
end)

local AT_ONCE = 4
local MOST = 60                  -- exchanges of a checkpoint

local function start_broken(n)
  local output = ("%s/broken_%d.txt"):format(place, n)
  local argv = runs.command(2, { "tests/support/split_files_ranks.lua", "break", place,
    tostring(n) })
  return { n = n, output = output, child = process.start(argv, { output = output }) }
end

-- Whether nothing failed, which ends the loop.
local function check_broken(run)
  local status = process.wait(run.child)
  local text = files.read(run.output)
  local older = ("%s/broken_%d_1_2/global_step_2"):format(place, run.n)
  check.ok(manifest.check(older), ("exchange %d: the older checkpoint"):format(run.n))
  if status == 0 then return true end
  local _, lines = text:gsub("segzero: rank 1 %(host [^)]+%): a test made this collective fail", "")
  local _, all = text:gsub("segzero: ", "")
  check.equal({ lines, all }, { 1, 1 }, ("exchange %d: %s"):format(run.n, text:sub(-500)))
  return false
end

check.case("every exchange of a checkpoint fails in turn", function()
  local failed = 0
  local done = false
  for first = 0, MOST, AT_ONCE do
    local started = {}
    for i = 1, AT_ONCE do started[i] = start_broken(first + i - 1) end
    for _, run in ipairs(started) do
      if check_broken(run) then done = true else failed = failed + 1 end
    end
    if done then break end
  end
  check.ok(done, "a run in which nothing failed")
  check.ok(failed >= 14, failed .. " exchanges failed")
end)

mini.remove()
check.finish()
