-- torch_names.lua - what to write for PyTorch's methods that tensors do not have, for the message
-- that a name is unknown.
--
-- The nearest known name would mislead here: size is not resize, and log_softmax is not log.
-- Leaves out: names whose nearest known name is the right one (squeeze_, gather).

return {
  view = "t:reshape(...)",
  size = "t:shape()",
  dim = "#t:shape()",
  ndim = "#t:shape()",
  tolist = "t:totable()",
  numpy = "t:totable()",
  type = "t:dtype() or t:to{dtype =}",
  float = "t:to{dtype = \"f32\"}",
  bfloat16 = "t:to{dtype = \"bf16\"}",
  int = "t:to{dtype = \"i32\"}",
  long = "t:to{dtype = \"i32\"}",
  cpu = "t:to{device = \"cpu\"}",
  cuda = "t:to{device = \"cuda\"}",
  expand_as = "t:broadcast_to(other:shape())",
  masked_fill = "tensor.where(condition, value, t)",
  index_select = "t:gather_rows(ids)",
  split = "t:slice(dim, start, length)",
  chunk = "t:slice(dim, start, length)",
  fill_ = "t:copy_(tensor.full(t:shape(), x))",
  zero_ = "t:copy_(tensor.zeros(t:shape()))",
  mm = "t:matmul(b)",
  bmm = "t:matmul(b)",
  log_softmax = "s - s:exp():sum(dim, true):log(), with s = t - (t:max(dim, true))",
  logsumexp = "m + (t - m):exp():sum(dim, true):log(), with m = (t:max(dim, true))",
  isnan = "t:ne(t)",
}
