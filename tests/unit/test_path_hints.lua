-- test_path_hints.lua - what is said of a path that does not exist or holds something else
-- (core/path_hints.lua). The messages themselves are in tests/system/test_messages.lua.

local check = require "tests.support.check"
local files = require "segzero.core.files"
local hints = require "segzero.core.path_hints"
local mini = require "tests.support.miniature"

local place = mini.folder()
for _, name in ipairs { "pretrained_models", "pretrained_models/Qwen2.5-VL-7B-Instruct", "run" } do
  files.make_dir(place .. "/" .. name)
end
files.write(place .. "/photo.png", "")
files.write(place .. "/run/run.json", "{}")

check.case("a name that is nearly right", function()
  local whole = place .. "/pretrained_models/Qwen2.5-VL-7B-Instruct"
  local wrong = { "/pretrained_models/Qwen2.5-VL-7B-Instuct", "/pretrained_models/qwen2.5-vl-7b",
    "/pretrained_model/Qwen2.5-VL-7B-Instruct", "/pretrained_model//Qwen2.5-VL-7B-Instruct" }
  for _, path in ipairs(wrong) do
    local found = hints.similar(place .. path)
    check.equal(found and found:gsub("//", "/"), whole, path)
  end
  check.equal(hints.similar(place .. "/phto.png"), place .. "/photo.png", "a file")
  check.equal(hints.similar(whole), nil, "a path that exists")
  check.equal(hints.similar(place .. "/elsewhere"), nil, "nothing near")
  check.equal(hints.question(place .. "/elsewhere"), "", "no question")
  check.equal(hints.question("refshaps", { "refshapes" }), "; did you mean refshapes?",
    "other names")
end)

check.case("what a folder holds", function()
  check.equal(hints.holds "models/tiny/sam2", "a SAM2 model", "SAM2")
  check.equal(hints.holds "models/tiny/qwen2.5-vl", "a qwen2_5_vl model", "a policy")
  check.equal(hints.holds(place .. "/run"), "a training run", "a run")
  check.equal(hints.holds(place), nil, "a folder of anything")
  files.write(place .. "/data.jsonl", "")
  check.equal(hints.holds(place), "a data set", "rows")
  check.ok(hints.is_policy "models/tiny/qwen2.5-vl" and not hints.is_policy "models/tiny/sam2")
end)

mini.remove()
check.finish()
