/* scope.h - what scope.c and tensor.c give each other. */
#ifndef SZ_SCOPE_H
#define SZ_SCOPE_H
#include "core.h"
#include "memory.h"

/* An arena tensor's bytes go back to the arena: only its shape is known from now on. */
void sz_tensor_drop_bytes(sz_tensor *t);
/* Gives it bytes again, of undefined contents; 0, or -1 with a message. */
int sz_tensor_take_bytes(sz_tensor *t);
/* A tensor like t in the innermost scope, with these bytes of block b, which it retains; NULL with
 * a message. */
sz_tensor *sz_tensor_over_block(const sz_tensor *t, sz_arena_block *b, void *bytes);
/* Puts an arena tensor on the list that the innermost scope clears. 0, or -1 with a message. */
int sz_scope_add(sz_tensor *t);

#endif
