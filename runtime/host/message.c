/* message.c - what a user sees of an error: a mistake is one line, a failing script shows its own
 * traceback, and an error inside segzero shows everything.
 *
 * A message may begin with a place, "FILE:LINE: ", of a function that runs. If the file is the
 * user's, the traceback shows the user's functions only. If it is ours, the message is meant for
 * the user and the place is removed, unless Lua itself raised it ("attempt to index ..."): that is
 * a fault of segzero, whose report needs the traceback. A place in another file, such as
 * data.jsonl:7, belongs to the message.
 * Leaves out: values that are no text (interrupt.c).
 */
#include "host.h"
#include <string.h>
#include <sys/stat.h>

/* Whether a running function comes from the file or chunk of this name, as messages show it. */
static bool is_running(lua_State *L, const char *name, size_t n)
{
    lua_Debug ar;

    for (int level = 0; lua_getstack(L, level, &ar); level++)
        if (lua_getinfo(L, "S", &ar) && strlen(ar.short_src) == n &&
            memcmp(ar.short_src, name, n) == 0)
            return true;
    return false;
}

/* The length of "FILE:LINE: " at the start of s, if the file is of a function that runs; or 0. */
static size_t place_length(lua_State *L, const char *s)
{
    size_t line = strcspn(s, "\n");

    for (size_t i = 1; i < line; i++) {
        if (s[i] != ':') continue;
        size_t end = i + 1;
        while (s[end] >= '0' && s[end] <= '9') end++;
        if (end == i + 1 || s[end] != ':' || !is_running(L, s, i)) continue;
        return s[end + 1] == ' ' ? end + 2 : end + 1;
    }
    return 0;
}

/* Whether the current folder is that of segzero. */
static bool is_root_here(void)
{
    struct stat here;
    struct stat root;
    if (stat(".", &here) || stat(sz_paths.root, &root)) return false;
    return here.st_dev == root.st_dev && here.st_ino == root.st_ino;
}

/* Whether the text of n bytes names a file of ours. Lua shortens a long path to "...its end". */
static bool is_our_file(const char *s, size_t n)
{
    static const char *const folders[] = { "/lua/segzero/", "/recipes/", "/rewards/",
                                           "/examples/" };
    size_t root = strlen(sz_paths.root);

    if (n > root && strncmp(s, sz_paths.root, root) == 0)
        for (int i = 0; i < 4; i++)
            if (strncmp(s + root, folders[i], strlen(folders[i])) == 0) return true;
    /* A name without a folder, when the current folder is ours. */
    for (int i = 0; i < 4; i++)
        if (strncmp(s, folders[i] + 1, strlen(folders[i]) - 1) == 0 && is_root_here()) return true;
    const char *found = strstr(s, folders[0]);
    return strncmp(s, "...", 3) == 0 && found && found < s + n;
}

/* Whether Lua raised the message because of a wrong program. */
static bool is_fault(const char *s)
{
    static const char *const starts[] = { "attempt to ",       "bad argument #",
                                          "bad self",          "stack overflow",
                                          "assertion failed",  "undefined global",
                                          "assignment to und", "table index is",
                                          "invalid value" };
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (strncmp(s, starts[i], strlen(starts[i])) == 0) return true;
    return false;
}

/* Replaces the traceback on top of the stack by its lines of the user's; "" if there are none. It
 * ends at the call that protects the code, host.call. */
static void filter_traceback(lua_State *L)
{
    const char *p = lua_tostring(L, -1);
    luaL_Buffer b;
    bool kept = false;

    luaL_buffinit(L, &b);
    while (*p) {
        size_t n = strcspn(p, "\n");
        const char *text = p + strspn(p, "\t ");
        size_t length = n - (size_t)(text - p);
        if (strncmp(text, "[C]: in function 'call'", 23) == 0) break;
        bool is_c = strncmp(text, "[C]", 3) == 0 || strncmp(text, "...", 3) == 0;
        bool is_head = strncmp(text, "stack traceback", 15) == 0;
        if (!is_c && !is_head && !is_our_file(text, length)) {
            luaL_addchar(&b, '\n');
            luaL_addlstring(&b, p, n);
            kept = true;
        }
        p += n;
        if (*p) p++;
    }
    luaL_pushresult(&b);
    if (kept) {
        lua_pushliteral(L, "stack traceback:");
        lua_insert(L, -2);
        lua_concat(L, 2);
    }
    lua_remove(L, -2);
}

int sz_explain(lua_State *L)
{
    const char *message = luaL_checkstring(L, 1);
    size_t place = place_length(L, message);

    lua_settop(L, 1);
    if (strcmp(message, "interrupted!") == 0) {
        luaL_traceback(L, L, message, 1);
        return 1;
    }
    if (place == 0 || strstr(message, "\nstack traceback:")) return 1;

    if (is_our_file(message, place)) {
        if (is_fault(message + place)) luaL_traceback(L, L, message, 1);
        else lua_pushstring(L, message + place);
        return 1;
    }
    luaL_traceback(L, L, NULL, 1);
    filter_traceback(L);
    if (lua_tostring(L, -1)[0] == 0) {
        lua_pop(L, 1);
        return 1;
    }
    lua_pushliteral(L, "\n");
    lua_insert(L, -2);
    lua_concat(L, 3);
    return 1;
}
