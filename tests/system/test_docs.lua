-- test_docs.lua - runs every command and script of README.md and docs/: what a reader copies must
-- work.
--
--   ./segzero tests/system/test_docs.lua [PAGE]     PAGE: a part of a page's name
--
-- A page's fenced blocks run in order in a sandbox, a folder that looks like a checkout with a user's
-- data in it:
--   ```sh       run by sh -e. `make` only says whether it knows the targets, and recipes get settings
--               that make them small.
--   ```lua      run by ./segzero. A block that starts with the comment "-- NAME.lua: ..." is saved
--               under that name first.
--   ```python   not run
-- Names on the hub are those of a server on loopback with small models and sets under them.
-- Indented blocks are output and not run. Leaves out: whether the output is what the page says.

local check = require "tests.support.check"
local host = require "segzero.host"
local image = require "segzero.formats.image"
local hub_server = require "tests.support.hub_server"
local launch_scripts = require "tests.support.launch_scripts"
local refshapes = require "segzero.data.refshapes"

local ROOT = host.root

local function quoted(s) return "'" .. s:gsub("'", "'\\''") .. "'" end

-- Output (stdout and stderr) and exit code of a shell command.
local function shell(command)
  local pipe = assert(io.popen("{ " .. command .. "\n} 2>&1; echo \"exit $?\""))
  local text = pipe:read "*a"
  pipe:close()
  local output, code = text:match "^(.*)exit (%d+)\n$"
  return output or text, tonumber(code or 1)
end

local function write(path, text)
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
end

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

-- ---- blocks of a page ----
-- {{language =, text =, line =}, ...} of the fenced blocks.
local function blocks_of(path)
  local blocks = {}
  local open
  local number = 0
  for line in io.lines(path) do
    number = number + 1
    local fence = line:match "^```(%w*)%s*$"
    if fence and open then
      open.text = table.concat(open.lines, "\n") .. "\n"
      blocks[#blocks + 1] = open
      open = nil
    elseif fence then
      open = { language = fence, lines = {}, line = number }
    elseif open then
      open.lines[#open.lines + 1] = line
    end
  end
  return blocks, open
end

-- ---- the sandbox ----
local GRPO_SMALL = {
  "data.rollout_batch_size=2", "worker.actor.global_batch_size=2", "worker.rollout.n=2",
  "data.max_response_length=16",
  "data.val_batch_size=4", "data.refshapes_val_rows=4",
}

-- Adds settings that make a run small, unless the command is not a run. A question about the
-- photograph becomes one that the embedded model can answer.
local WRAPPER = [[
#!/bin/sh
small=
case " $* " in
*" --help "*|*" plan "*) ;;
*" recipes/refcocog_grpo.lua "*|*" recipes/mask_grpo.lua "*)
    small='%s'
    case "$*" in *trainer.max_steps=*) ;; *) small="$small trainer.max_steps=1" ;; esac ;;
*" recipes/evaluate.lua "*merge=*|*" recipes/evaluate.lua "*compare=*) ;;
*" recipes/evaluate.lua "*)
    small='max_new_tokens=8'
    case "$*" in *rows=*) ;; *) small="$small rows=4" ;; esac ;;
*" examples/infer.lua "*--query*) ;;
*" examples/infer.lua "*--image_path*) set -- "$@" --text '%s' ;;
esac
exec %s "$@" $small
]]

-- Runs before a Lua block: its recipes become small in the same way.
local PRELOAD = [[
local recipe = require "recipes.refcocog_grpo"
local run = recipe.run
function recipe.run(args, overrides)
  local all = {}
  for _, a in ipairs(args) do
    local short = a:gsub("trainer%%.max_steps=%%d+", "trainer.max_steps=1")
    all[#all + 1] = short
  end
  for a in ("%s"):gmatch "%%S+" do all[#all + 1] = a end
  return run(all, overrides)
end
]]

local function make_sandbox()
  local folder = shell("mktemp -d"):gsub("%s+$", "")
  for _, name in ipairs { "lua", "recipes", "rewards", "examples", "models", "runtime", "tests" } do
    shell(("ln -s %s %s"):format(quoted(ROOT .. "/" .. name), quoted(folder .. "/" .. name)))
  end
  local small = table.concat(GRPO_SMALL, " ")
  -- The embedded model can answer a question about its own kind of image, so the photograph is one.
  local photograph = refshapes.sample {
    seed = 1, split = "train", index = 1, size = 112, questions = 1,
  }
  local question = photograph.questions[1].problem
  write(folder .. "/segzero", WRAPPER:format(small, question, quoted(host.executable)))
  write(folder .. "/preload.lua", PRELOAD:format(small))
  -- make says what it would do, which is an error for a target that does not exist
  write(folder .. "/make", ("#!/bin/sh\nexec /usr/bin/make -n -C %s \"$@\"\n"):format(quoted(ROOT)))
  shell(("chmod +x %s/segzero %s/make"):format(quoted(folder), quoted(folder)))

  -- What a user has: a checkpoint, SAM2, data sets, annotations, a photograph, a run of Seg-Zero.
  shell(("ln -s models/tiny/qwen2.5-vl %s/Qwen2.5-VL-3B-Instruct"):format(quoted(folder)))
  shell(("ln -s models/tiny/sam2 %s/sam2.1-hiera"):format(quoted(folder)))
  shell(("mkdir %s/data && ln -s %s/tests/golden/annotations/* %s/data"):format(quoted(folder),
    quoted(ROOT), quoted(folder)))
  shell(("mkdir -p %s/refcocog"):format(quoted(folder)))
  local step = quoted(folder .. "/seg_zero_run/global_step_50")
  local golden = quoted(ROOT .. "/tests/golden/dtensor/seg_zero/actor")
  shell(("mkdir -p %s && cp -r %s %s"):format(step, golden, step))
  -- What Seg-Zero's training script names.
  shell(("mkdir %s/pretrained_models %s/training_scripts"):format(quoted(folder), quoted(folder)))
  shell(("ln -s %s/models/tiny/qwen2.5-vl-several %s/pretrained_models/Qwen2.5-VL-7B-Instruct")
    :format(quoted(ROOT), quoted(folder)))
  shell(("ln -s %s/tests/golden/hub_sets/VisionReasoner_multi_object_saved "
    .. "%s/data/VisionReasoner_multi_object_1k_840"):format(quoted(ROOT), quoted(folder)))
  local yaml = "training_scripts/visionreasoner_7b.yaml"
  write(folder .. "/" .. yaml, launch_scripts.as_yaml(launch_scripts.yaml[yaml]))
  for _, split in ipairs { "train", "val" } do
    local options = { n = 4, size = 112, seed = 1, split = "train" }
    refshapes.write_dataset(folder .. "/refcocog/" .. split, options, image.write_png)
  end
  image.write_png(folder .. "/photo.png", photograph.width, photograph.height, 3, photograph.rgb)
  return folder
end

-- What the pages name on the hub.
local POLICY = { folder = "models/tiny/qwen2.5-vl" }
local SETS = "tests/golden/hub_sets/"
local function start_hub()
  local server = hub_server.start {
    models = { ["Qwen/Qwen2.5-VL-3B-Instruct"] = POLICY, ["Ricky06662/Seg-Zero-7B"] = POLICY,
      ["facebook/sam2-hiera-large"] = { folder = "models/tiny/sam2" } },
    datasets = { ["Ricky06662/refCOCOg_2k_840"] = { folder = SETS .. "refCOCOg_2k_840" },
      ["Ricky06662/ReasonSeg_test"] = { folder = SETS .. "ReasonSeg_test" } },
  }
  local home = shell("mktemp -d"):gsub("%s+$", "")
  local variables = { HF_HUB_OFFLINE = "", HF_ENDPOINT = server.url, HF_HOME = home }
  for name, value in pairs(variables) do require("posix.stdlib").setenv(name, value) end
  return function()
    server:stop()
    shell("rm -rf " .. quoted(home))
  end
end

local runners = {}

function runners.sh(folder, block)
  write(folder .. "/block.sh", block.text)
  local place = quoted(folder)
  return shell(("cd %s && PATH=%s:$PATH sh -e block.sh </dev/null"):format(place, place))
end

function runners.lua(folder, block)
  local name = block.text:match "^%-%- ([%w_]+%.lua):" or "block.lua"
  write(folder .. "/" .. name, block.text)
  local chunk = read(folder .. "/preload.lua")
  local command = ("cd %s && %s -e %s %s </dev/null"):format(quoted(folder), quoted(host.executable),
    quoted(chunk), name)
  return shell(command)
end

local function run_page(page)
  local blocks, open = blocks_of(ROOT .. "/" .. page)
  check.ok(open == nil, page .. ": every fenced block is closed")
  local folder
  for _, block in ipairs(blocks) do
    local where = ("%s:%d"):format(page, block.line)
    local runner = runners[block.language]
    if runner then
      folder = folder or make_sandbox()
      local output, code = runner(folder, block)
      if not check.equal(code, 0, where .. ": exit code") then print(output) end
    else
      check.ok(block.language == "python", where .. ": a block is sh, lua or python")
    end
  end
  if folder then shell("rm -rf " .. quoted(folder)) end
end

local wanted = arg[1] or ""
local count = 0
local stop_hub = start_hub()
local list = shell("cd " .. quoted(ROOT) .. " && ls README.md docs/*.md docs/*/*.md")
for page in list:gmatch "%S+" do
  if page:find(wanted, 1, true) then
    count = count + 1
    run_page(page)
  end
end
stop_hub()
check.ok(count > 0, "a page has '" .. wanted .. "' in its name")
check.finish()
