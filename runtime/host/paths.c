/* paths.c - finds the core library and the Lua files from the executable's own location.
 *
 *     core:    EXE/libsegzero.so   EXE/build/libsegzero.so   EXE/../lib/segzero/libsegzero.so
 *     scripts: EXE                 EXE/../.. (build/address) EXE/../share/segzero
 *
 * EXE is the folder of the executable; the first candidate that exists wins, so an installed tree
 * can be moved as a whole. Leaves out: Windows and macOS (it reads /proc/self/exe).
 */
#include "host.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

host_paths sz_paths;

/* Sets dst (PATH_MAX bytes) to the real path of dir + tail if the file dir + tail + probe is
 * readable. Returns whether it is; dst is "" if not. */
static bool find(char *dst, const char *dir, const char *tail, const char *probe)
{
    char path[PATH_MAX + 64];

    int n = snprintf(path, sizeof path, "%s%s%s", dir, tail, probe);
    if (n > 0 && n < PATH_MAX && access(path, R_OK) == 0) {
        path[strlen(dir) + strlen(tail)] = 0;
        if (realpath(path, dst)) return true;
    }
    dst[0] = 0;
    return false;
}

int sz_paths_find(void)
{
    static const char probe[] = "/lua/segzero/core/strict.lua";
    char *executable = sz_paths.executable;
    char dir[PATH_MAX];

    /* The folder of the executable. */
    ssize_t n = readlink("/proc/self/exe", executable, sizeof sz_paths.executable - 1);
    if (n <= 0) {
        fprintf(stderr, "segzero: cannot find its own folder: /proc/self/exe is not readable\n");
        return -1;
    }
    executable[n] = 0;
    memcpy(dir, executable, (size_t)n + 1);
    *strrchr(dir, '/') = 0;

    /* The core may be missing: scripts that compute nothing run without it. */
    bool found = find(sz_paths.library, dir, "/libsegzero.so", "");
    if (!found) found = find(sz_paths.library, dir, "/build/libsegzero.so", "");
    if (!found) find(sz_paths.library, dir, "/../lib/segzero/libsegzero.so", "");

    /* The Lua files are needed. */
    found = find(sz_paths.root, dir, "", probe);
    if (!found) found = find(sz_paths.root, dir, "/../..", probe);
    if (!found) found = find(sz_paths.root, dir, "/../share/segzero", probe);
    if (!found) {
        fprintf(stderr, "segzero: cannot find lua/segzero next to %s or in ../share/segzero\n",
                executable);
        return -1;
    }
    return 0;
}
