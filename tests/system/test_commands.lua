-- test_commands.lua - segzero's commands: --help of each, mistakes, completion in bash and zsh, the
-- man page, make install.
--
--   ./segzero tests/system/test_commands.lua
--
-- Leaves out: what the commands do, which their own tests say.

local check = require "tests.support.check"
local commands = require "segzero.commands"
local completion = require "segzero.commands.completion"
local files = require "segzero.core.files"
local host = require "segzero.host"
local man = require "segzero.commands.man"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local scripts = require "segzero.tools.scripts"

local ENV = { LC_ALL = "C" }

-- Output and exit status of segzero with these words, started in the root folder of the system.
local function segzero(...)
  local argv = { "sh", "-c", 'cd / && exec "$@"', "sh", host.executable, ... }
  return process.run(argv, { timeout = 60, env = ENV })
end

local function has(text, part, name)
  if not check.ok(text:find(part, 1, true) ~= nil, name .. ": has " .. part) then print(text) end
end

check.case("every command has a row and --help", function()
  check.ok(#commands.list >= 10, "ten commands")
  for _, row in ipairs(commands.list) do
    check.ok(row.about and #row.about <= 60, row.name .. ": a short sentence")
    check.ok((row.script ~= nil) ~= (row.module ~= nil), row.name .. ": a script or a module")
    local text, status = segzero(row.name, "--help")
    check.equal(status, 0, row.name .. " --help: exit status")
    has(text, "usage: segzero", row.name .. " --help")
    has(text, row.name, row.name .. " --help")
    check.ok(not text:find("stack traceback", 1, true), row.name .. " --help: no traceback")
    local same = segzero("help", row.name)
    check.equal(same, text, "help " .. row.name .. " is " .. row.name .. " --help")
  end
end)

check.case("the overview", function()
  local text, status = segzero "--help"
  check.equal(status, 0, "--help")
  check.equal(segzero "help", text, "segzero help is segzero --help")
  check.equal(text:match "^[^\n]*", "usage: segzero [options] COMMAND [ARGS ...]", "the first line")
  for _, row in ipairs(commands.list) do has(text, "\n  " .. row.name, "--help") end
  for _, option in ipairs(commands.options) do has(text, "\n  " .. option.name, "--help") end
  local listed = 0
  for _, entry in ipairs(scripts.list()) do
    listed = listed + 1
    has(text, "  " .. entry.path, "--help")
    check.ok(#entry.about > 0 and text:find(entry.about:sub(1, 20), 1, true),
      "--help describes " .. entry.path)
  end
  check.ok(listed >= 9, "--help lists recipes and examples")
  for line in text:gmatch "[^\n]+" do
    check.ok(#line <= 100, "a line of --help fits a terminal: " .. line)
  end
  has(text, "SCRIPT --help", "--help says how to list a script's settings")
end)

check.case("the program takes each option of the table", function()
  local values = { CHUNK = "", D = "cpu", N = "1" }
  for _, option in ipairs(commands.options) do
    local words = { option.name }
    if option.value then words[2] = values[option.value] end
    words[#words + 1] = "--version"
    if option.name == "--" then words = { "-e", "", "--" } end
    local text, status = segzero(unpack(words))
    if not check.equal(status, 0, option.name) then print(text) end
  end
end)

check.case("a name that is no command", function()
  local function missing(name, nearest)
    local text, status = segzero(name)
    check.equal(status, 2, name .. ": exit status")
    local line = ("segzero: cannot open %s: there is no such file; did you mean %s? "
      .. "segzero --help lists the scripts\n"):format(name, nearest)
    check.equal(text, line, name .. ": one line that names the nearest")
  end
  missing("trian", "train")
  missing("evalute", "evaluate")
  missing("docter", "doctor")
  missing("predict", "infer")
  missing("grpo", "train")
  missing("download", "fetch")
  missing("refcoco", "recipes/refcocog_grpo.lua")
  missing("recipes/evalute.lua", "recipes/evaluate.lua")
  local text, status = segzero "/nonexistent.lua"
  check.equal(status, 2, "a path elsewhere: exit status")
  check.equal(text, "segzero: cannot open /nonexistent.lua: there is no such file; "
    .. "segzero --help lists the scripts\n", "no guess for a path elsewhere")
  text, status = segzero("help", "trian")
  check.equal(status, 2, "help of no command: exit status")
  has(text, "no command 'trian': did you mean 'train'", "help of no command")
end)

check.case("mistakes in a command's settings", function()
  local text, status = segzero("train", "trainer.max_stepz=1")
  check.equal(status, 2, "train with a wrong setting")
  has(text, "did you mean 'trainer.max_steps'", "train")
  check.ok(not text:find "stack traceback", "one line")
  text, status = segzero("infer", "--image_pat", "x.png")
  check.equal(status, 2, "infer with a wrong option")
  has(text, "did you mean 'image_path'", "infer")
  text, status = segzero("completion", "tcsh")
  check.equal(status, 2, "completion of an unknown shell")
  has(text, "bash or zsh", "completion of an unknown shell")
end)

check.case("a mistake in the command line or its settings is status 2", function()
  local NONE = "/nonexistent"
  local script = mini.folder() .. "/reward.lua"
  files.write(script, "return function( end")
  local mistakes = {
    { "train", "worker.rollout.n=0" }, { "train", "config=" .. NONE },
    { "train", "data.train_files=" .. NONE }, { "train", "worker.reward.sam2_path=" .. NONE },
    { "train", "worker.actor.model.model_path=" .. NONE },
    { "train", "worker.reward.compute_score=nosuch" },
    { "train", "trainer.load_checkpoint_path=" .. NONE },
    { "recipes/mask_grpo.lua", "nosuch=1" }, { "recipes/vision_reasoner_grpo.lua", "nosuch=1" },
    { "examples/experiment.lua", "nosuch=1" }, { "evaluate", "rows=0" },
    { "evaluate", "data=" .. NONE }, { "evaluate", "model_path=" .. NONE },
    { "evaluate", "compare=" .. NONE .. ",/b" }, { "evaluate", "output_dir=" .. NONE },
    { "infer", "--image_path", NONE, "--text", "a" }, { "infer", "--demo", "x" },
    { "plan", "worker.rollout.n=0" }, { "plan", "answer_tokens=x" }, { "plan", "nosuch.lua" },
    { "plan", "data.train_files=" .. NONE }, { "report", NONE }, { "report" },
    { "fetch", "name" }, { "reward", "nosuch" }, { "reward", "seg_strict", "data=" .. NONE },
    { "replay", NONE }, { "why", NONE, "step=x" }, { "why", NONE }, { "doctor", "more" },
    { "model_merger", "--local_dir", NONE }, { "completion" }, { "--nosuch" },
  }
  for _, words in ipairs(mistakes) do
    local text, status = segzero(unpack(words))
    if not check.equal(status, 2, table.concat(words, " ")) then print(text) end
  end
  local text, status = segzero("train", "worker.reward.compute_score=" .. script)
  if not check.equal(status, 1, "a reward with an error") then print(text) end
end)

check.case("a command runs its script from any folder", function()
  local text, status = segzero("infer", "--image_path", "/nonexistent.png", "--text", "a dog")
  check.equal(status, 2, "infer")
  has(text, "/nonexistent.png", "infer")
  text, status = segzero("plan", "worker.rollout.n=0")
  check.ok(status ~= 0, "plan without a recipe takes settings")
  has(text, "worker.rollout.n", "plan without a recipe")
  text, status = segzero("plan", "--ranks", "4", "--worker.rollout.n", "2")
  check.equal(status, 0, "plan without a recipe takes options: " .. text)
  has(text, "the 4 ranks of this machine", "plan without a recipe")
end)

-- ---- completion ----
local function words(...) return completion.words { ... } end

check.case("the words that a shell offers", function()
  check.equal(words "tr", { "train" }, "a command")
  check.equal(words "recipes/refco", { "recipes/refcocog_grpo.lua" }, "a script")
  check.equal(words "--thr", { "--threads" }, "an option")
  check.equal(words("--device", "cu"), { "cuda" }, "an option's value")
  check.equal(words("--threads", "1", "eval"), { "evaluate" }, "a command after options")
  check.equal(words("help", "inf"), { "infer" }, "help of a command")
  check.equal(words("completion", ""), { "bash", "zsh" }, "shells")
  check.equal(words("reward", "seg_s"), { "seg_strict" }, "a reward")
  for _, word in ipairs(words("reward", "")) do
    check.ok(word:find "/$" or word:find "%.lua$"
      or type(require("rewards." .. word)) == "function", word .. " is a reward")
  end
  check.equal(words("reward", "seg", "--wa"), { "--watch=" }, "its options")
  check.equal(words("why", "runs/x", "st"), { "step=" }, "a setting after a run")
  check.equal(words("why", "runs/x", "replay="), { "replay=false", "replay=true" }, "its values")
  check.equal(words("train", "trainer.lo"), { "trainer.load_checkpoint_path=", "trainer.logger=" },
    "settings")
  check.equal(words("recipes/refcocog_grpo.lua", "trainer.logg"), { "trainer.logger=" },
    "settings of a script")
  check.equal(words("train", "trainer.val_only=t"), { "trainer.val_only=true" }, "a boolean")
  check.equal(words("train", "worker.reward.compute_score=seg_s"),
    { "worker.reward.compute_score=seg_strict" }, "a reward")
  check.equal(words("infer", "--image_p"), { "--image_path=" }, "an option of infer")
  check.equal(words("infer", "--dtype", "b"), { "bf16" }, "the value of an option of infer")
  check.equal(words("plan", "recipes/re"), { "recipes/refcocog_grpo.lua" }, "plan")
  check.equal(words("report", "--out"), { "--output" }, "a flag")
  check.equal(words("train", "zzz"), {}, "nothing")
  local groups = words("train", "")
  check.ok(#groups < 40, "many settings begin with their groups")
  local first = {}
  for _, word in ipairs(groups) do first[word] = true end
  check.ok(first["trainer."] and first["worker."], "groups end in a point")
end)

check.case("files that a shell offers", function()
  local folder = os.tmpname()
  os.remove(folder)
  process.run({ "mkdir", "-p", folder .. "/sub" }, {})
  for _, name in ipairs { "a.lua", "b.png", ".hidden" } do
    assert(io.open(folder .. "/" .. name, "w")):close()
  end
  check.equal(words(folder .. "/"), { folder .. "/a.lua", folder .. "/sub/" }, "scripts, folders")
  check.equal(words("infer", "--image_path", folder .. "/b"), { folder .. "/b.png" }, "an image")
  check.equal(words("infer", "--image_path=" .. folder .. "/b"),
    { "--image_path=" .. folder .. "/b.png" }, "an image after =")
  -- What all have in common must not be taken from the first ones.
  for i = 1, 1000 do assert(io.open(("%s/sub/%04d"):format(folder, i), "w")):close() end
  check.equal(#words("infer", "--image_path", folder .. "/sub/"), 1000, "all of many files")
  process.run({ "rm", "-r", folder }, {})
end)

local HAS_ZSH = os.execute "command -v zsh >/dev/null 2>&1" == 0

-- What bash puts in place of the last word, one candidate a line, each in <>.
local function in_bash(line)
  local chunk = [=[
set -- "$1" "$2"
source <("$1" completion bash)
COMP_LINE=$2 COMP_POINT=${#2}
words=${2//=/ = }
read -ra COMP_WORDS <<<"$words"
[[ $2 == *[\ =] ]] && [[ $2 != *= ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_segzero
printf '<%s>\n' "${COMPREPLY[@]}"
]=]
  return (process.run({ "bash", "-c", chunk, "bash", host.executable, line }, { timeout = 30 }))
end

check.case("bash", function()
  local exe = host.executable
  check.equal(in_bash(exe .. " tra"), "<train >\n", "a command and a space")
  check.equal(in_bash(exe .. " train trainer.logg"), "<trainer.logger=>\n", "no space after =")
  check.equal(in_bash(exe .. " train algorithm.kl_penalty=low"), "<low_var_kl >\n",
    "only what follows = is replaced")
  check.equal(in_bash(exe .. " train trainer.val_only="), "<false>\n<true>\n", "after = alone")
  check.equal(in_bash(exe .. " help ev"), "<evaluate >\n", "a second word")
end)

check.case("zsh", function()
  if not HAS_ZSH then
    check.skip "zsh"
    return
  end
  -- compadd prints what it gets; the rest is as in a completion.
  local chunk = [=[
compadd() { while [[ $1 == -* ]]; do [[ $1 == -S ]] && shift; shift; done; print -l -- "$@" }
compdef() { }
source <($1 completion zsh)
words=($1 train trainer.logg) CURRENT=3 PREFIX=trainer.logg
_segzero
]=]
  local text = process.run({ "zsh", "-f", "-c", chunk, "zsh", host.executable }, { timeout = 30 })
  check.equal(text, "trainer.logger=\n", "a setting")
end)

-- ---- the man page ----
check.case("the man page", function()
  local text = man.text()
  for _, row in ipairs(commands.list) do
    has(text, "\\fB" .. row.name:gsub("%-", "\\-"), "the man page")
  end
  check.ok(text:find("^%.TH SEGZERO 1"), "it begins with its title")
  local requests = {}
  for name in ("TH SH TP PP B I BR RI br"):gmatch "%S+" do requests[name] = true end
  for line in text:gmatch "[^\n]+" do
    local request = line:match "^%.(%S+)"
    check.ok(not request or requests[request], "no line is an unknown request: " .. line)
  end
end)

-- ---- make install ----
-- Builds nothing: -o all takes the program as it is.
local function make(...)
  local argv = { "make", "-C", host.root, "-s", "-o", "all", ... }
  local output, status = process.run(argv, { timeout = 60, env = ENV })
  if not check.equal(status, 0, "make " .. (...)) then print(output) end
end

check.case("uninstall removes the folders that install made, and no others", function()
  local folder = mini.folder()
  local kept = folder .. "/stage/opt/bin"
  files.make_dir(kept)
  for _, prefix in ipairs { "/opt", "/made/by/install" } do
    local where = { "DESTDIR=" .. folder .. "/stage", "PREFIX=" .. prefix }
    local installed = folder .. "/stage" .. prefix
    make("install", unpack(where))
    make("install", unpack(where))
    check.ok(files.exists(installed .. "/share/man/man1/segzero.1"), prefix .. ": installed")
    make("uninstall", unpack(where))
    check.ok(not files.exists(installed .. "/share"), prefix .. ": share is gone")
    check.ok(not files.exists(installed .. "/lib"), prefix .. ": lib is gone")
  end
  check.ok(not files.exists(folder .. "/stage/made"), "a new prefix is gone")
  check.ok(files.exists(kept), "an empty folder that was there before stays")
end)

check.finish()
