-- locals.lua - lets a `local` of one entry be used in the next: at the outermost level of an entry
-- `local x = 5` becomes `x = 5`.
--
--   locals.kept("local x, y = 1") -> "      x, y = 1", {"x", "y"}
--   locals.kept("local print = 1", is_taken) -> the same text, {}, {"print"}
--
-- A name that is_taken(name) says Lua or segzero has already stays local, because a global of that
-- name would change more than the entry. Lines stay where they are. Text that is no Lua is returned
-- as it is. Leaves out: locals in blocks and functions, which end with them as in all of Lua.

local M = {}

local OPENS = { ["function"] = true, ["do"] = true, ["if"] = true, ["repeat"] = true }
local CLOSES = { ["end"] = true, ["until"] = true }

-- The end of a comment or a text that begins at i; nil if there is none there.
local function skip(text, i)
  local equals = text:match("^%-%-%[(=*)%[", i) or text:match("^%[(=*)%[", i)
  if equals then
    local _, last = text:find("]" .. equals .. "]", i, true)
    return last or #text
  end
  if text:find("^%-%-", i) then return (text:find("\n", i, true) or #text + 1) - 1 end
  local quote = text:match("^[\"']", i)
  if not quote then return nil end
  local at = i + 1
  while at <= #text do
    local c = text:sub(at, at)
    if c == quote then return at end
    if c == "\\" then at = at + 1 end
    at = at + 1
  end
  return #text
end

-- Words and signs of a text, without comments and strings: {text =, at =}.
local function tokens(text)
  local list = {}
  local i = 1
  while i <= #text do
    local last = skip(text, i)
    local word = not last and text:match("^[%a_][%w_]*", i)
    if word then
      list[#list + 1] = { text = word, at = i }
      last = i + #word - 1
    elseif not last and text:find("^[^%s]", i) then
      list[#list + 1] = { text = text:sub(i, i), at = i }
    elseif last and not text:find("^%-%-", i) then
      list[#list + 1] = { text = "''", at = i }
    end
    i = (last or i) + 1
  end
  return list
end

-- The names of a local statement that begins at token k; what follows them.
local function names_at(list, k)
  local names = {}
  local next_one = list[k + 1]
  if next_one and next_one.text == "function" then
    return { list[k + 2] and list[k + 2].text }, k + 3, true
  end
  local i = k + 1
  while list[i] and list[i].text:find "^[%a_]" do
    names[#names + 1] = list[i].text
    if not list[i + 1] or list[i + 1].text ~= "," then return names, i + 1 end
    i = i + 2
  end
  return names, i
end

local function any(names, test)
  for _, name in ipairs(names) do
    if test(name) then return true end
  end
  return false
end

function M.kept(text, is_taken)
  local list = tokens(text)
  local depth = 0
  local kept = {}
  local left = {}
  local changes = {}            -- {at, length, replacement}
  for k, token in ipairs(list) do
    if token.text == "local" and depth == 0 then
      local names, after, is_function = names_at(list, k)
      if is_taken and any(names, is_taken) then
        for _, name in ipairs(names) do left[#left + 1] = name end
      else
        for _, name in ipairs(names) do kept[#kept + 1] = name end
        changes[#changes + 1] = { token.at, 5, "     " }
        local follows = list[after]
        if not is_function and not (follows and follows.text == "=") then
          local last = list[after - 1]
          changes[#changes + 1] = { last.at + #last.text, 0, " = nil" }
        end
      end
    elseif OPENS[token.text] then
      depth = depth + 1
    elseif CLOSES[token.text] then
      depth = depth - 1
    end
  end
  for i = #changes, 1, -1 do
    local at, length, replacement = unpack(changes[i])
    text = text:sub(1, at - 1) .. replacement .. text:sub(at + length)
  end
  return text, kept, left
end

return M
