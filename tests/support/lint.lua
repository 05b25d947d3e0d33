-- lint.lua - what no compiler looks at: file names in comments and pages, links between pages, what
-- models/ includes, the length of lines.
--
--   luajit tests/support/lint.lua         from the repository's root; `make lint` does this,
--                                         luacheck and clang-format
--
-- * A file name in a comment or on a page, such as `trainer.lua` or `cpu/rowwise.c`, must be that
-- of a file in the tree,
--   or its last part. Names of examples (my_reward.lua, NAME.lua) and of other projects (EXTERNAL)
--   are allowed.
-- * A file whose first line says "NAME - what it is" must have that name.
-- * A relative link on a page must lead to a file.
-- * A file in models/ includes graph.h, files of models/common and of its own family's folder, and
-- the C library; nothing else.
-- * What our scripts require is a module under its present name.
-- * At most 1 % of a language's lines may be longer than 100 columns.
-- Prints one line for each finding and `lint: N findings`; exits 1 if there are any.
-- Left out: names that code builds at run time, links into the web, anchors within a page.

local dirent = require "posix.dirent"
local stat = require "posix.sys.stat"

local COLUMNS = 100
local LONG_LINES = 0.01         -- the share of longer lines that is accepted

local SKIPPED_FOLDERS = { ["./.git"] = true, ["./build"] = true, ["./runs"] = true }

-- Files of other projects that comments and pages may name.
local EXTERNAL = {}
for name in ([[
  cjson.lua run_seg_zero_3b.sh modeling_qwen2_5_vl.py modeling_qwen2_vl.py core_algos.py
  calculate_iou.py calculate_iou_with_bbox.py calculate_counting.py calculate_coco_ap.py
  evaluation.py evaluation_visionreasoner.py eval_reasonseg.sh inference.py
  evaluation_visionreasoner_visualization.py
  pcre2.h jpeglib.h png.h lua.h lauxlib.h cuda_runtime.h cudnn.h nccl.h mpi.h
  stdio.h math.h time.h
]]):gmatch "%S+" do EXTERNAL[name] = true end

-- How comments of a language begin and end. A page is all comment.
local C = { block = { "/%*", "%*/" }, line = "//" }
local LANGUAGES = {
  c = C, h = C, cu = C, cuh = C, cc = C, def = C,
  lua = { block = { "%-%-%[=*%[", "%]=*%]" }, line = "%-%-" },
  py = { block = { '"""', '"""' }, line = "#" },
  sh = { line = "#" },
  md = { page = true },
}

-- ---- the tree ----

local function extension(path)
  return path:match "%.(%w+)$"
end

local function list_files(folder, found)
  for name in dirent.files(folder) do
    local path = folder .. "/" .. name
    local mode = name ~= "." and name ~= ".." and stat.lstat(path).st_mode
    if mode and stat.S_ISDIR(mode) ~= 0 then
      if not SKIPPED_FOLDERS[path] then list_files(path, found) end
    elseif mode and stat.S_ISREG(mode) ~= 0 then
      found[#found + 1] = path:sub(3)         -- without "./"
    end
  end
  return found
end

local function read_lines(path)
  local lines = {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  return lines
end

-- The files' paths and every last part of them: lua/segzero/init.lua, segzero/init.lua and init.lua
-- are all found.
local function index_names(paths)
  local known = {}
  for _, path in ipairs(paths) do
    local rest = path
    while rest do
      known[rest] = true
      rest = rest:match "^[^/]*/(.*)$"
    end
  end
  return known
end

local findings = 0

local function report(path, number, text)
  findings = findings + 1
  print(("%s:%d: %s"):format(path, number, text))
end

-- ---- comments ----

-- The part of a line that is comment, "" if none; inside: whether a block comment is open. Returns
-- also the new state. Markers inside strings count too, which shows more text than the comments
-- alone and hides nothing.
local function comment_of(line, language, inside)
  if language.page then return line, false end
  local block = language.block
  local from = 1
  if not inside then
    local line_start = line:find(language.line)
    local block_start, block_end
    if block then block_start, block_end = line:find(block[1]) end
    if block_start and (not line_start or block_start <= line_start) then
      from = block_end + 1
    elseif line_start then
      return line:sub(line_start), false
    else
      return "", false
    end
  end
  local stop = line:find(block[2], from)
  if not stop then return line:sub(from), true end
  return line:sub(from, stop - 1), false
end

-- ---- file names ----

-- A user's own files in the pages: my_reward.lua, rloo.lua, ...
-- Placeholders: NAME.lua, x.lua, test_x.lua, file.lua, .lua
local EXAMPLES = {
  "^my_", "^rloo%.", "^sequence_ratio%.",
  "%u%u", "^%l%.", "_x%.", "^file%.", "^%.",
}

local function is_placeholder(name)
  local base = name:match "[^/]+$"
  for _, pattern in ipairs(EXAMPLES) do
    if base:find(pattern) then return true end
  end
  return name:find "[*<>]" ~= nil
end

local function check_names(path, number, text, known)
  for name in text:gmatch "[%w_%-%./*<>]+" do
    name = name:gsub("^%./", ""):gsub("%.+$", "")
    local ext = extension(name)
    local is_file_name = ext and LANGUAGES[ext] and name:find "^[%w_*<]" and name:find "%w%.%w+$"
    if is_file_name and not known[name] and not EXTERNAL[name] and not is_placeholder(name) then
      report(path, number, "there is no file '" .. name .. "'")
    end
  end
end

-- The header of a file that was moved or copied tends to keep its old name.
local function check_header(path, line)
  local name = line:match '^[/%-#"* ]*([%w_/]+%.%l+) %- '
  local ending = name and path:sub(-#name)
  if name and ending ~= name then
    report(path, 1, ("the header says '%s'"):format(name))
  end
end

local function file_exists(path)
  return stat.stat(path) ~= nil
end

local function check_links(path, number, line)
  local folder = path:match "^(.*/)[^/]*$" or ""
  for target in line:gmatch "%]%(([^)%s]+)%)" do
    local file = target:gsub("#.*$", "")
    local is_relative = file ~= "" and not file:find "^%a+:"
    if is_relative and not file_exists(folder .. file) then
      report(path, number, "the link '" .. target .. "' leads nowhere")
    end
  end
end

-- ---- what models/ includes ----

local MODEL_HEADERS = { ["graph.h"] = true, ["sz.h"] = true, ["models.h"] = true }

-- The same seam as between folders: the runtime reaches a model through graph.h alone.
local function check_include(path, number, line, known)
  local header = line:match '^%s*#%s*include%s*"([^"]+)"'
  local folder = path:match "^models/([^/]*)/" or "common"
  if not header or not path:find "^models/" or MODEL_HEADERS[header] then return end
  local is_own = known["models/" .. header] and header:match "^([^/]*)/" == folder
  local is_near = known["models/" .. folder .. "/" .. header]
  local is_common = known["models/" .. header] and header:find "^common/"
  if not is_own and not is_near and not is_common then
    report(path, number, ("models/ includes graph.h and its own headers, not '%s'"):format(header))
  end
end

-- ---- what scripts require ----

-- What the program itself provides.
local PROVIDED = { ["segzero.host"] = true }

-- Former module names (core/aliases.lua) are for users' scripts, not for ours.
local function check_require(path, number, line, known)
  local top = path:match "^(%a+)/"
  if extension(path) ~= "lua" or top == "tests" then return end
  local code = line:gsub("%-%-.*$", "")
  for module in code:gmatch 'require%s*%(?%s*"(segzero[%w_.]*)"' do
    local file = "lua/" .. module:gsub("%.", "/")
    local is_there = known[file .. ".lua"] or known[file .. "/init.lua"]
    local is_built = module:find "%.$"          -- at run time
    if not is_there and not is_built and not PROVIDED[module] then
      report(path, number, ("there is no module '%s' by this name"):format(module))
    end
  end
end

-- ---- line lengths ----

local GROUPS = {
  c = "C", h = "C", def = "C", cu = "CUDA", cuh = "CUDA", cc = "CUDA", lua = "Lua", py = "Python",
    sh = "shell",
}
local counts = {}       -- language -> { lines, long, an example }

local function count_length(path, number, line)
  local group = GROUPS[extension(path)]
  if not group then return end
  local c = counts[group] or { lines = 0, long = 0 }
  counts[group] = c
  if line:find "%S" then c.lines = c.lines + 1 end
  local _, continuation_bytes = line:gsub("[\128-\191]", "")
  if #line - continuation_bytes > COLUMNS then
    c.long = c.long + 1
    c.example = c.example or path .. ":" .. number
  end
end

local function check_lengths()
  for group, c in pairs(counts) do
    if c.long > LONG_LINES * c.lines then
      findings = findings + 1
      print(("%s: %d of %d lines are longer than %d columns, such as %s"):format(
        group, c.long, c.lines, COLUMNS, c.example))
    end
  end
end

-- ---- all of it ----

local paths = list_files(".", {})
table.sort(paths)
local known = index_names(paths)

for _, path in ipairs(paths) do
  local language = LANGUAGES[extension(path) or ""]
  if language then
    local inside = false
    for number, line in ipairs(read_lines(path)) do
      local text
      text, inside = comment_of(line, language, inside)
      check_names(path, number, text, known)
      if number == 1 and not language.page then check_header(path, line) end
      count_length(path, number, line)
      check_include(path, number, line, known)
      check_require(path, number, line, known)
      if language.page then check_links(path, number, line) end
    end
  end
end
check_lengths()

print(("lint: %d findings"):format(findings))
os.exit(findings == 0 and 0 or 1)
