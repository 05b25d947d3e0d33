-- scripts.lua - lists the scripts that come with segzero, and finds the nearest to a mistyped name.
--
--   scripts.list()          -> {{path = "recipes/evaluate.lua", about = "evaluates a ..."}, ...}
--   scripts.print()         what `segzero --help` prints after the options
--   scripts.missing(name)   raises one line: the file, the nearest script, how to list them all
--   scripts.python(name, ...)  the same for a script in Python: what takes its place
--
-- What a script is about is the first line of its file: "-- NAME.lua - what it does.". Only that
-- line is read.
-- Leaves out: scripts in other folders than recipes/ and examples/.

local host = require "segzero.host"
local nearest = require "segzero.core.nearest"

local M = {}

local WRONG_WORDS = 2             -- the exit status

local FOLDERS = { "recipes", "examples" }
local WIDTH = 100

-- Names that users of programs with subcommands type.
local USUAL_NAMES = {
  grpo = "train",
  test = "evaluate",
  eval = "evaluate",
  prepare = "recipes/prepare_data.lua",
  predict = "infer",
  generate = "infer",
  download = "fetch",
  ["verl.trainer.main"] = "recipes/refcocog_grpo.lua",
  ["verl.trainer.main_ppo"] = "recipes/refcocog_grpo.lua",
}

-- What takes the place of Seg-Zero's and VisionReasoner's scripts, with the same arguments.
local IN_PLACE_OF = {
  ["infer.py"] = "examples/infer.lua",
  ["infer_multi_object.py"] = "examples/infer.lua --multi",
  ["inference.py"] = "examples/infer.lua",
  ["evaluation.py"] = "recipes/evaluate.lua",
  ["evaluation_visionreasoner.py"] = "recipes/evaluate_vision_reasoner.lua",
  ["evaluation_visionreasoner_visualization.py"] =
    "recipes/evaluate_vision_reasoner.lua visual_results=true",
  ["calculate_iou.py"] = "recipes/evaluate.lua",
  ["calculate_counting.py"] = "recipes/evaluate.lua",
  ["calculate_coco_ap.py"] = "recipes/evaluate.lua",
  ["main.py"] = "recipes/refcocog_grpo.lua",
}

-- The names of the Lua files in a folder, in order; none if the folder cannot be read.
local function lua_files(folder)
  local has_posix, dirent = pcall(require, "posix.dirent")
  local names = {}
  if not has_posix then return names end
  local readable, entries = pcall(dirent.dir, folder)
  if not readable then return names end
  for _, name in ipairs(entries) do
    if name:find "^[^.].*%.lua$" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- "trains a model." from the first line "-- NAME.lua - trains a model."
local function about(path)
  local file = io.open(path)
  if not file then return "" end
  local line = file:read "*l" or ""
  file:close()
  return line:match "^%-%- %S+ %- (.*)$" or line:match "^%-%-%s*(.*)$" or ""
end

function M.list()
  local scripts = {}
  for _, folder in ipairs(FOLDERS) do
    for _, name in ipairs(lua_files(host.root .. "/" .. folder)) do
      local path = folder .. "/" .. name
      scripts[#scripts + 1] = { path = path, about = about(host.root .. "/" .. path) }
    end
  end
  return scripts
end

function M.print()
  local scripts = M.list()
  local longest = 0
  for _, script in ipairs(scripts) do longest = math.max(longest, #script.path) end
  print "\nScripts (SCRIPT --help lists a script's settings):"
  for _, script in ipairs(scripts) do
    local line = "  " .. script.path .. (" "):rep(longest - #script.path + 2) .. script.about
    if #line > WIDTH then line = line:sub(1, WIDTH - 3):gsub("%s*%S*$", "") .. " ..." end
    print(line)
  end
end

-- The script or command that name probably means; nil for a path outside recipes/ and examples/.
local function suggestion(name)
  local bare = name:gsub("%.lua$", "")
  if USUAL_NAMES[bare] then return USUAL_NAMES[bare] end
  local folder = bare:match "^(.*)/"
  if folder and folder ~= "recipes" and folder ~= "examples" then return nil end

  -- The beginning of a name is enough.
  local scripts = M.list()
  for _, script in ipairs(scripts) do
    local file = script.path:match "[^/]+$"
    if #bare >= 3 and file:sub(1, #bare) == bare then return script.path end
  end

  local path_of = {}
  local known = {}
  local function add(candidate, path)
    if not path_of[candidate] then known[#known + 1] = candidate end
    path_of[candidate] = path_of[candidate] or path
  end
  for _, name_of in ipairs(require("segzero.commands").names()) do add(name_of, name_of) end
  for _, script in ipairs(scripts) do
    -- With and without the folder: `infer`, `infer.lua` and `examples/infer` find
    -- examples/infer.lua.
    local path = script.path:gsub("%.lua$", "")
    add(path, script.path)
    add(path:match "[^/]+$", script.path)
  end
  return path_of[nearest(bare, known)]
end

function M.python(name, ...)
  local file = name:match "[^/]*$"
  -- This one takes the same arguments, and users call it by its path.
  if file == "model_merger.py" then return require("segzero.commands").main("model_merger", ...) end
  local cure = "segzero --help lists the scripts"
  if IN_PLACE_OF[file] then
    cure = ("write segzero %s, with the same arguments"):format(IN_PLACE_OF[file])
  elseif file == "download_dataset.py" then
    cure = "segzero fetch --dataset OWNER/NAME downloads a data set, and so does naming it"
  end
  local message = "%s is a Python script, which does not run here: %s"
  host.fail("segzero", message:format(name, cure), WRONG_WORDS)
end

function M.missing(name)
  local hint = ""
  local wanted = suggestion(name)
  if wanted then hint = (" did you mean %s?"):format(wanted) end
  local message = "cannot open %s: there is no such file;%s segzero --help lists the scripts"
  host.fail("segzero", message:format(name, hint), WRONG_WORDS)
end

return M
