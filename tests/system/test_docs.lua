-- test_docs.lua - walks README.md and docs/: what a reader copies must work, one page after the
-- other.
--
--   ./segzero tests/system/test_docs.lua [PAGE]     PAGE: a part of a page's name
--
-- All pages share one new clone with nothing in runs/, in the order of README's table, so a command
-- may use what one before it left. Fenced blocks are run:
--   ```sh       by sh -e; recipes get settings that make them small
--   ```lua      by ./segzero. A block that starts with the comment "-- NAME.lua: ..." is saved
--               under that name first.
--   ```repl     the lines after "> " and "...> " are typed at the prompt; the rest is its output
-- What cannot be run here has a line above it, in the block's comment sign:
--   # Not run by the tests: why
-- It holds for the next command, or for the whole block if it is the block's first line. The test
-- counts these marks: a new one changes MARKS below. `make run` runs the recipe, `make help` is
-- run, other goals of make are looked up. Real weights and data are stand-ins: what USERS_FILES
-- says, and names on the hub are those of a server on loopback.
-- Indented blocks are output, and a command in one is a failure. No table has two rows of one name.
-- Leaves out: whether the output is what the page says.

local check = require "tests.support.check"
local host = require "segzero.host"
local image = require "segzero.formats.image"
local hub_server = require "tests.support.hub_server"
local launch_scripts = require "tests.support.launch_scripts"
local refshapes = require "segzero.data.refshapes"

local ROOT = host.root

-- Commands and blocks that are marked as not run, in all pages.
local MARKS = 4
local LEAST_COMMANDS = 100      -- that are run, in all pages

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
-- The default run is the one that later pages look into, so it has three steps.
local DEFAULT_STEPS = 3
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
*" --help "*|" help "*|*" plan "*) ;;
*" recipes/refcocog_grpo.lua "*|*" recipes/mask_grpo.lua "*|*" train "*)
    small='%s'
    case "$*" in *trainer.max_steps=*) ;; *) small="$small trainer.max_steps=%d" ;; esac ;;
*" evaluate"*merge=*|*" evaluate"*compare=*|*"/evaluate"*merge=*|*"/evaluate"*compare=*) ;;
*" recipes/evaluate.lua "*|*" evaluate "*)
    small='max_new_tokens=8'
    case "$*" in *rows=*) ;; *) small="$small rows=4" ;; esac ;;
*"infer"*--query*) ;;
*" examples/infer.lua "*--image_path*|*" infer "*--image_path*) set -- "$@" --text '%s' ;;
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

-- make: the default run is run, help is shown, and other goals are looked up in the Makefile.
local MAKE = [[
#!/bin/sh
case "$1" in
run) shift
    /usr/bin/make -n -C %s run "$@" >/dev/null || exit
    for word in "$@"; do case "$word" in ARGS=*) exec ./segzero train ${word#ARGS=} ;; esac; done
    exec ./segzero train ;;
help) exec /usr/bin/make help ;;
esac
exec /usr/bin/make -n -C %s "$@"
]]

-- What a reader has before the first command, except for what was built. build/ and the libraries
-- are where the host program looks for them.
local CLONED = "Makefile README.md docs lua recipes rewards examples models runtime tests"

-- What a user has: a checkpoint, SAM2, data sets, annotations, a photograph, a run of Seg-Zero, and
-- what Seg-Zero's training script names.
local USERS_FILES = [[
ln -s models/tiny/qwen2.5-vl Qwen2.5-VL-3B-Instruct
ln -s models/tiny/sam2 sam2.1-hiera
mkdir data && ln -s "$ROOT"/tests/golden/annotations/* data
mkdir refcocog
mkdir -p seg_zero_run/global_step_50
cp -r "$ROOT"/tests/golden/dtensor/seg_zero/actor seg_zero_run/global_step_50
mkdir pretrained_models training_scripts
ln -s "$ROOT"/models/tiny/qwen2.5-vl-several pretrained_models/Qwen2.5-VL-7B-Instruct
ln -s "$ROOT"/tests/golden/hub_sets/VisionReasoner_multi_object_saved \
    data/VisionReasoner_multi_object_1k_840
]]

local function make_clone()
  local folder = shell("mktemp -d"):gsub("%s+$", "")
  -- Large folders are links: no command of a page writes to them.
  for name in CLONED:gmatch "%S+" do
    shell(("ln -s %s %s"):format(quoted(ROOT .. "/" .. name), quoted(folder .. "/" .. name)))
  end
  local text, status = shell(("cd %s && ROOT=%s && set -e\n%s"):format(quoted(folder), quoted(ROOT),
    USERS_FILES))
  check.equal(status, 0, "what a user has: " .. text)

  -- The embedded model can answer a question about its own kind of image, so the photograph is one.
  local photograph = refshapes.sample {
    seed = 1, split = "train", index = 1, size = 112, questions = 1,
  }
  image.write_png(folder .. "/photo.png", photograph.width, photograph.height, 3, photograph.rgb)
  for _, split in ipairs { "train", "val" } do
    local options = { n = 4, size = 112, seed = 1, split = "train" }
    refshapes.write_dataset(folder .. "/refcocog/" .. split, options, image.write_png)
  end
  local yaml = "training_scripts/visionreasoner_7b.yaml"
  write(folder .. "/" .. yaml, launch_scripts.as_yaml(launch_scripts.yaml[yaml]))

  -- The programs.
  local small = table.concat(GRPO_SMALL, " ")
  local question = photograph.questions[1].problem
  write(folder .. "/segzero", WRAPPER:format(small, DEFAULT_STEPS, question,
    quoted(host.executable)))
  write(folder .. "/preload.lua", PRELOAD:format(small))
  write(folder .. "/make", MAKE:format(quoted(ROOT), quoted(ROOT)))
  shell(("chmod +x %s/segzero %s/make"):format(quoted(folder), quoted(folder)))
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

-- ---- running blocks ----
local SIGNS = { sh = "#", lua = "--", python = "#", repl = "--" }

-- The text of a block without what is marked, the number of marks, and of commands that are run.
local function runnable(block)
  local sign = SIGNS[block.language]
  local mark = "^%s*" .. sign:gsub("%p", "%%%0") .. " Not run by the tests: %S"
  if block.text:find(mark) then return "", 1, 0 end
  if block.language ~= "sh" then return block.text, 0, 1 end
  local kept = {}
  local marks = 0
  local commands = 0
  local skipping = false
  local goes_on = false         -- the line before ended with a backslash
  for line in block.text:gmatch "([^\n]*)\n" do
    if line:find(mark) then
      skipping = true
      marks = marks + 1
    elseif not line:find "^%s*#" and line:find "%S" then
      if not skipping then kept[#kept + 1] = line end
      if not goes_on and not skipping and not line:find "^%s" then commands = commands + 1 end
      goes_on = line:find "\\$" ~= nil
      if not goes_on then skipping = false end
    end
  end
  return table.concat(kept, "\n") .. "\n", marks, commands
end

local runners = {}

function runners.sh(folder, text)
  write(folder .. "/block.sh", text)
  local place = quoted(folder)
  return shell(("cd %s && PATH=%s:$PATH sh -e block.sh </dev/null"):format(place, place))
end

function runners.lua(folder, text)
  local name = text:match "^%-%- ([%w_]+%.lua):" or "block.lua"
  write(folder .. "/" .. name, text)
  local chunk = read(folder .. "/preload.lua")
  local command = ("cd %s && %s -e %s %s </dev/null"):format(quoted(folder),
    quoted(host.executable), quoted(chunk), name)
  return shell(command)
end

-- The entries of a session, each as if it were typed; an error in one is status 1.
local TYPE = [[
local lines = {}
for line in io.lines "session.txt" do lines[#lines + 1] = line:match "^%.*> (.*)$" end
local failed = false
require("segzero.repl").run { quiet = true,
  read = function() return table.remove(lines, 1) end,
  print = function(text)
    if text:find "^stdin:%d" or text:find "^there is no command" then failed = true end
    print(text)
  end }
if failed then os.exit(1) end
]]

function runners.repl(folder, text)
  write(folder .. "/session.txt", text)
  return shell(("cd %s && %s --threads 1 -e %s </dev/null"):format(quoted(folder),
    quoted(host.executable), quoted(TYPE)))
end

-- A merge of two branches may leave a row of a table twice.
local function check_tables(page)
  local seen = {}
  local number = 0
  for line in io.lines(ROOT .. "/" .. page) do
    number = number + 1
    local first = line:match "^|(.-)|"
    if not first then
      seen = {}
    elseif first:find "%w" then
      check.ok(not seen[first], ("%s:%d: a second row of%s"):format(page, number, first))
      seen[first] = true
    end
  end
end

-- Output is indented by four blanks; a command there would not be run. docs/settings.md is made
-- from the code and shows forms, not commands.
local function check_output_blocks(page)
  local number = 0
  local fenced = false
  local found = {}
  for line in io.lines(ROOT .. "/" .. page) do
    number = number + 1
    if line:find "^```" then fenced = not fenced end
    if not fenced and line:find "^    %.?/?segzero " then found[#found + 1] = number end
  end
  if page ~= "docs/settings.md" then
    check.equal(found, {}, page .. ": lines with a command that nothing runs")
  end
end

local counts = { commands = 0, marks = 0, blocks = 0 }

local function run_page(page, folder)
  local blocks, open = blocks_of(ROOT .. "/" .. page)
  check.ok(open == nil, page .. ": every fenced block is closed")
  for _, block in ipairs(blocks) do
    local where = ("%s:%d"):format(page, block.line)
    if check.ok(SIGNS[block.language], where .. ": a block is sh, lua, repl or python") then
      local text, marks, commands = runnable(block)
      local runner = runners[block.language]
      counts.blocks = counts.blocks + 1
      counts.marks = counts.marks + marks
      counts.commands = counts.commands + commands
      check.ok(runner or marks > 0, where .. ": what is not run says so")
      if runner and text:find "%S" then
        local output, code = runner(folder, text)
        if not check.equal(code, 0, where .. ": exit code") then print(output) end
      end
    end
  end
end

-- ---- pages, in the order in which a reader meets them ----
local function pages_in_order()
  local list = { "README.md" }
  local seen = { ["README.md"] = true }
  local function add(page)
    if seen[page] then return end
    seen[page] = true
    list[#list + 1] = page
  end
  for page in read(ROOT .. "/README.md"):gmatch "%]%((docs/guide/[%w_]+%.md)%)" do add(page) end
  local all = shell("cd " .. quoted(ROOT) .. " && ls docs/*.md docs/*/*.md")
  for page in all:gmatch "%S+" do
    if page:find "^docs/guide/" then
      check.ok(seen[page], "README.md has a link to " .. page)
    end
    add(page)
  end
  return list
end

local wanted = arg[1] or ""
local walked = 0
local stop_hub = start_hub()
local clone = make_clone()
for _, page in ipairs(pages_in_order()) do
  if page:find(wanted, 1, true) then
    walked = walked + 1
    check_tables(page)
    check_output_blocks(page)
    run_page(page, clone)
  end
end
stop_hub()
shell("rm -rf " .. quoted(clone))

check.ok(walked > 0, "a page has '" .. wanted .. "' in its name")
print(("%d pages: %d commands run in %d blocks, %d marked as not run"):format(walked,
  counts.commands, counts.blocks, counts.marks))
if wanted == "" then
  check.equal(counts.marks, MARKS, "marks 'Not run by the tests'")
  check.ok(counts.commands >= LEAST_COMMANDS, "commands that were run: " .. counts.commands)
end
check.finish()
