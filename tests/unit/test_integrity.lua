-- test_integrity.lua - a checkpoint that is opened as a model is checked against its manifest: a
-- flipped byte in any file that is read ends with the names of the file and of the tensor.
--
-- The checkpoints are those of a miniature run, one with all weights and one with adapters.
-- Leaves out: resuming (tests/system/test_resume.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
local safetensors = require "segzero.formats.safetensors"
local sz = require "segzero"

local place = mini.folder()
local model = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

-- The checkpoint of a run of one step.
local function train(folder, extra)
  local words = { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. model }
  for _, a in ipairs(mini.arguments) do words[#words + 1] = a end
  for _, a in ipairs { "data.val_files=None", "worker.reward.sam2_path=none",
    "worker.reward.compute_score=" .. place .. "/reward.lua", "trainer.max_steps=1",
    "trainer.save_checkpoint_path=" .. folder } do
    words[#words + 1] = a
  end
  for _, a in ipairs(extra or {}) do words[#words + 1] = a end
  local output, status = mini.run(words)
  check.equal(status, 0, output)
  return folder .. "/global_step_1"
end

local good = train(place .. "/run")

local copies = 0
local function copy(from)
  copies = copies + 1
  return mini.copy(from or good, ("%s/copy-%d"):format(place, copies))
end

-- Changes one bit of the byte at `position`.
local function flip(path, position)
  local text = files.read(path)
  local byte = text:byte(position + 1)
  local changed = string.char(byte % 2 == 0 and byte + 1 or byte - 1)
  files.write(path, text:sub(1, position) .. changed .. text:sub(position + 2))
end

local function answer_ids(dir, opts)
  local vl = sz.model(dir, opts)
  local inputs = vl:process { { role = "user", content = "the red box" } }
  local ids = vl:generate(inputs, { max_new_tokens = 4, seed = 3, temperature = 1 })[1].ids
  vl:free()
  return ids
end

local CURE = "; take another one (a file that you changed yourself: remove %s/manifest.json, and "
  .. "nothing is checked)"

local function expect_damage(name, dir, problem, f, ...)
  local ok, why = pcall(f, dir, ...)
  check.equal(ok, false, name .. ": an error")
  local expected = ("checkpoint %s is damaged: %s"):format(dir, problem) .. CURE:format(dir)
  check.ok(tostring(why):find(expected, 1, true), ("%s: %s"):format(name, why))
end

check.case("a healthy checkpoint gives the same answers", function()
  local bare = copy()
  os.remove(bare .. "/manifest.json")
  check.equal(answer_ids(good), answer_ids(bare), "with and without a manifest")
  check.equal(answer_ids(good), answer_ids(good), "opened again")
end)

check.case("a flipped byte in each tensor is found", function()
  local parts = safetensors.layout(good .. "/model.safetensors")
  local found = 0
  for i = 1, #parts, 7 do
    local dir = copy()
    flip(dir .. "/model.safetensors", math.floor((parts[i].begin + parts[i].stop) / 2))
    local where = " in the tensor " .. parts[i].name
    if parts[i].name == "" then where = " in its header" end
    -- A damaged header may be no JSON at all.
    local ok, why = pcall(answer_ids, dir)
    check.equal(ok, false, parts[i].name)
    local named = why:find("model.safetensors has other bytes than were written" .. where, 1, true)
    check.ok(named or parts[i].name == "", why)
    found = found + 1
  end
  check.ok(found >= 5, found .. " tensors")
end)

check.case("in every dtype, for training and for saving", function()
  local dir = copy()
  local parts = safetensors.layout(dir .. "/model.safetensors")
  local last = parts[#parts]
  flip(dir .. "/model.safetensors", last.stop - 1)
  local problem = "model.safetensors has other bytes than were written in the tensor " .. last.name
  for _, dtype in ipairs { "f32", "bf16", "int8" } do
    expect_damage(dtype, dir, problem, answer_ids, { dtype = dtype })
  end
  for _, name in ipairs { "parameters", "train", "save" } do
    expect_damage(name, dir, problem, function()
      local vl = sz.model(dir)
      vl[name](vl, name == "save" and place .. "/saved" or nil)
    end)
  end
  -- The error does not go away.
  local vl = sz.model(dir)
  for _ = 1, 2 do
    expect_damage("again", dir, problem, function() vl:parameters() end)
  end
end)

check.case("small files and sizes", function()
  local count = 0
  for _, name in ipairs { "config.json", "tokenizer.json", "generation_config.json",
    "preprocessor_config.json", "chat_template.json" } do
    local dir = copy()
    flip(dir .. "/" .. name, math.floor(#files.read(dir .. "/" .. name) / 2))
    expect_damage(name, dir, name .. " has other bytes than were written", answer_ids)
    count = count + 1
  end
  check.equal(count, 5, "files")
  local short = copy()
  local text = files.read(short .. "/model.safetensors")
  files.write(short .. "/model.safetensors", text:sub(1, -5))
  expect_damage("a size", short,
    ("model.safetensors has %d bytes, %d were written"):format(#text - 4, #text), answer_ids)
  local gone = copy()
  os.remove(gone .. "/model.safetensors")
  expect_damage("a file", gone, "model.safetensors is missing", answer_ids)
end)

check.case("what only training reads may change or be missing", function()
  local dir = copy()
  flip(dir .. "/optimizer.safetensors", 2000)
  check.equal(answer_ids(dir), answer_ids(good), "changed")
  os.remove(dir .. "/optimizer.safetensors")
  os.remove(dir .. "/trainer_state.json")
  check.equal(answer_ids(dir), answer_ids(good), "missing")
end)

check.case("a file that changes after the first opening", function()
  local dir = copy()
  check.equal(answer_ids(dir), answer_ids(good), "healthy")
  local parts = safetensors.layout(dir .. "/model.safetensors")
  flip(dir .. "/model.safetensors", parts[2].begin)
  expect_damage("flipped", dir, "model.safetensors has other bytes than were written in the tensor "
    .. parts[2].name, answer_ids)
end)

check.case("an unfinished checkpoint is no model", function()
  local dir = copy()
  os.rename(dir .. "/DONE", dir .. "/UNFINISHED")
  local ok, why = pcall(sz.model, dir)
  check.equal(ok, false, "an error")
  check.ok(why:find(("checkpoint %s was not finished (UNFINISHED in place of DONE)"):format(dir), 1,
    true), why)
end)

check.case("a manifest that is damaged, or of another program", function()
  local dir = copy()
  local text = files.read(dir .. "/manifest.json")
  local function refused(changed, pattern)
    files.write(dir .. "/manifest.json", changed)
    local ok, why = pcall(answer_ids, dir)
    check.equal(ok, false, pattern)
    check.ok(why:find("manifest.json: " .. pattern), why)
  end
  refused(text:gsub('"parts":%[.-%]', '"parts":[]', 1), "the parts of '.*' have 0 bytes")
  refused(text:gsub('"config.json"', '"../config.json"', 1), "'../config.json' is not the name")
  refused("[", "not valid JSON")
  -- Without DONE and trainer_state.json it may be anybody's.
  os.remove(dir .. "/DONE")
  os.remove(dir .. "/trainer_state.json")
  for _, other in ipairs { "[", "{}", '{"version":1,"files":[1]}',
    '{"files":{"config.json":{}}}' } do
    files.write(dir .. "/manifest.json", other)
    check.equal(answer_ids(dir), answer_ids(good), other)
  end
end)

check.case("adapters", function()
  local adapter = train(place .. "/lora", { "worker.actor.model.lora.rank=2" })
  check.ok(folders.kind(adapter .. "/adapter_model.safetensors"), "a run with adapters")
  local with = answer_ids(model, { adapter = adapter })
  check.equal(#with, 4, "a healthy one")
  local dir = copy(adapter)
  local parts = safetensors.layout(dir .. "/adapter_model.safetensors")
  flip(dir .. "/adapter_model.safetensors", parts[3].begin + 1)
  expect_damage("an adapter", dir, "adapter_model.safetensors has other bytes than were written in "
    .. "the tensor " .. parts[3].name, function() sz.model(model, { adapter = dir }) end)
end)

check.case("one line and status 1 from each program", function()
  local dir = copy()
  local parts = safetensors.layout(dir .. "/model.safetensors")
  flip(dir .. "/model.safetensors", parts[5].begin + 3)
  files.write(place .. "/photo.ppm", "P6 56 56 255\n" .. ("abc"):rep(56 * 56))
  local programs = {
    { "examples/infer.lua", "--image_path", place .. "/photo.ppm", "--text", "box",
      "--reasoning_model_path", dir },
    { "recipes/evaluate.lua", "model_path=" .. dir, "data=refshapes", "rows=2",
      "output_path=" .. place .. "/evaluation" },
    { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. dir,
      "data.refshapes_size=84", "data.val_files=None", "worker.reward.sam2_path=none",
      "trainer.save_checkpoint_path=" .. place .. "/other" },
  }
  for _, words in ipairs(programs) do
    local argv = { host.executable, "--threads", "1", unpack(words) }
    local output, status = process.run(argv, { timeout = 30 })
    check.equal(status, 1, words[1] .. ": " .. output)
    local line = output:match "[^\n]*\n$"
    check.ok(line and line:find(("checkpoint %s is damaged: model.safetensors has other bytes than "
      .. "were written in the tensor %s"):format(dir, parts[5].name), 1, true), output)
    check.ok(not output:find "stack traceback", "no traceback: " .. output)
  end
end)

mini.remove()
check.finish()
