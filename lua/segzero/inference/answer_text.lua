-- answer_text.lua - the text of an answer while its tokens are sampled: stop strings, and whole
-- characters for on_text.
--
--   local texts = answer_text.stop_strings(vl, {"</answer>"})     checked; nil if there are none
--   answer_text.completes(vl, texts, a, id)
--       true if token id completes a stop string of answer a
--   answer_text.show(vl, a, id, on_text)
--       calls on_text(index, piece, group number) with the whole characters so far
--
-- As in transformers, a stop string ends the answer at the token that completes it, and the text is
-- not cut: the token may have more text, and the string may have begun in the prompt.

local M = {}

-- {strings =, longest =}
function M.stop_strings(vl, strings)
  if strings == nil or #strings == 0 then return nil end
  if not vl:has_tokenizer() then error("generate: stop_strings need a tokenizer", 0) end
  local longest = 0
  for _, s in ipairs(strings) do
    if type(s) ~= "string" or s == "" then
      error("generate: stop_strings must be texts, got " .. tostring(s), 0)
    end
    longest = math.max(longest, #s)
  end
  return { strings = strings, longest = longest }
end

-- The last bytes before a token, as many as a stop string can have there.
local function keep_tail(texts, bytes) return bytes:sub(math.max(1, #bytes - texts.longest + 2)) end

local function prompt_tail(vl, texts, input_ids)
  local tail = ""
  local i = #input_ids
  while i > 0 and #tail < texts.longest - 1 do
    tail = vl:tokenizer():bytes(input_ids[i]) .. tail
    i = i - 1
  end
  return keep_tail(texts, tail)
end

-- A stop string is complete if it ends inside the token's bytes.
function M.completes(vl, texts, a, id)
  a.tail = a.tail or prompt_tail(vl, texts, a.group.input.input_ids)
  local before = #a.tail
  local bytes = a.tail .. vl:tokenizer():bytes(id)
  a.tail = keep_tail(texts, bytes)
  for _, s in ipairs(texts.strings) do
    if bytes:find(s, math.max(1, before - #s + 2), true) then return true end
  end
  return false
end

local REPLACEMENT = "\239\191\189"      -- U+FFFD, which an incomplete character decodes to

-- Tokens that end inside a character wait for the rest of it.
function M.show(vl, a, id, on_text)
  a.waiting[#a.waiting + 1] = id
  local piece = vl:tokenizer():decode(a.waiting, { skip_special_tokens = true })
  if not a.finish and piece:sub(-3) == REPLACEMENT then return end
  a.waiting = {}
  if piece ~= "" then on_text(a.index, piece, a.group.number) end
end

return M
