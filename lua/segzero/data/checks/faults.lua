-- faults.lua - what is wrong with the rows of a data set: collects it and writes the summary.
--
--   local list = faults.new()
--   list:add("image", "data.jsonl:41", "images/gone.png: No such file")     kind, place, what
--   list:count() -> rows with a fault; list:bad(i), after list:row(i) before the faults of row i
--   list:text(total, cure) -> the summary
--   list:only(kinds), list:without(kinds) -> the faults of these kinds, or of all others
--   list:stored() -> faults, notes   for JSON; faults.from { faults =, notes = } is the list again
--
-- One fault is one line. Of several, the first line says each kind and how often, and the first
-- three places of each kind follow. Leaves out: finding faults (check.lua, row_check.lua).

local M = {}

local SHOWN = 3

-- In the order of the summary.
local KINDS = { "line", "id", "solution", "box", "image", "size", "mask", "problem",
  "prompt" }
local TITLES = {
  line = "the line cannot be read",
  id = "the id is not unique",
  solution = "the solution cannot be read",
  box = "a box or a point is not in the image",
  image = "the image cannot be read",
  size = "the image does not have the size that the row states",
  mask = "the mask cannot be used",
  problem = "the question is empty",
  prompt = "the prompt is too long",
}
M.KINDS = KINDS

local methods = {}
local mt = { __index = methods }

function M.new() return setmetatable({ faults = {}, rows = {}, notes = {} }, mt) end

function methods:row(i) self.current = i end

function methods:add(kind, where, what)
  assert(TITLES[kind], kind)
  self.faults[#self.faults + 1] = { kind = kind, where = where, what = what, row = self.current }
  self.rows[self.current] = true
end

-- A remark that follows the title of a kind, such as what takes all of its rows.
function methods:note(kind, text) self.notes[kind] = text end

function methods:bad(i) return self.rows[i] == true end

function methods:count()
  local n = 0
  for _ in pairs(self.rows) do n = n + 1 end
  return n
end

function methods:stored() return self.faults, self.notes end

function M.from(stored)
  local list = M.new()
  for _, fault in ipairs(stored.faults) do
    list:row(fault.row)
    list:add(fault.kind, fault.where, fault.what)
  end
  list.notes = stored.notes
  return list
end

local function chosen(self, wanted)
  local other = M.new()
  other.notes = self.notes
  for _, fault in ipairs(self.faults) do
    if wanted(fault.kind) then
      other:row(fault.row)
      other:add(fault.kind, fault.where, fault.what)
    end
  end
  return other
end

local function set_of(kinds)
  local set = {}
  for _, kind in ipairs(kinds) do set[kind] = true end
  return set
end

function methods:only(kinds)
  local set = set_of(kinds)
  return chosen(self, function(kind) return set[kind] end)
end

function methods:without(kinds)
  local set = set_of(kinds)
  return chosen(self, function(kind) return not set[kind] end)
end

-- The faults of each kind.
local function by_kind(self)
  local groups = {}
  for _, fault in ipairs(self.faults) do
    groups[fault.kind] = groups[fault.kind] or {}
    table.insert(groups[fault.kind], fault)
  end
  return groups
end

local function plural(n, word)
  if n == 1 then return ("%d %s"):format(n, word) end
  return ("%d %ss"):format(n, word)
end

local function line_of(fault) return ("%s: %s"):format(fault.where, fault.what) end

local function with_note(text, note)
  if not note then return text end
  return text .. "; " .. note
end

-- name: what the rows belong to. cure: what helps, in a few words.
function methods:text(name, total, cure)
  if #self.faults == 1 then
    local only = self.faults[1]
    local text = with_note(line_of(only), self.notes[only.kind])
    return ("%s (1 of %s; %s)"):format(text, plural(total, "row"), cure)
  end
  local groups = by_kind(self)
  local titles = {}
  local places = {}
  for _, kind in ipairs(KINDS) do
    local group = groups[kind]
    if group then
      titles[#titles + 1] = with_note(("%s in %d"):format(TITLES[kind], #group), self.notes[kind])
      for i = 1, math.min(SHOWN, #group) do places[#places + 1] = "\n  " .. line_of(group[i]) end
      if #group > SHOWN then places[#places + 1] = ("\n  and %d more"):format(#group - SHOWN) end
    end
  end
  return ("%s: %d of %s cannot be used: %s (%s)%s"):format(name, self:count(),
    plural(total, "row"), table.concat(titles, ", "), cure, table.concat(places))
end

return M
