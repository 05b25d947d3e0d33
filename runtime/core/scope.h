/* scope.h - what scope.c and tensor.c give each other. */
#ifndef SZ_SCOPE_H
#define SZ_SCOPE_H
#include "core.h"

/* Puts an arena tensor on the list that the innermost scope clears. 0, or -1 with a message. */
int sz_scope_add(sz_tensor *t);

#endif
