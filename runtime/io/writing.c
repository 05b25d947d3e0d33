/* writing.c - a list of files to write and of renames, done in order by a background thread
 * (jobs.c); or at once if a tensor is on a device, whose stream belongs to the main thread. The
 * first failure ends the list.
 *
 * Tensors are written in place, without a copy: nothing may write to them until the job has ended.
 * Each file is written under a temporary name and renamed.
 * Leaves out: what the files mean (lua/segzero/formats/safetensors.lua, checkpoint.lua).
 */
#include "io.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    char *path;
    char *new_path; /* not NULL: rename path to this */
    char *text;
    size_t text_len;
    sz_tensor **tensors; /* NULL: the text is the file; otherwise it is their header */
    int count;
} action;

struct sz_writing {
    int count, room;
    bool on_device;
    action *actions;
};

static void action_free(action *a)
{
    for (int i = 0; i < a->count; i++) sz_tensor_release(a->tensors[i]);
    free(a->tensors);
    free(a->text);
    free(a->path);
    free(a->new_path);
}

sz_writing *sz_writing_new(void)
{
    sz_writing *w = calloc(1, sizeof *w);
    return w ? w : sz_null("out of memory");
}

void sz_writing_free(sz_writing *w)
{
    if (!w) return;
    for (int i = 0; i < w->count; i++) action_free(&w->actions[i]);
    free(w->actions);
    free(w);
}

/* Appends an action with copies of its texts to the list; NULL with a message on failure. */
static action *append(sz_writing *w, const char *path, const char *text, size_t len)
{
    /* Room in the list. */
    if (w->count == w->room) {
        int room = w->room ? 2 * w->room : 8;
        action *more = realloc(w->actions, (size_t)room * sizeof *more);
        if (!more) return sz_null("%s: out of memory", path);
        w->actions = more;
        w->room = room;
    }

    /* The action counts once it is complete. */
    action *a = &w->actions[w->count];
    *a = (action){ .path = strdup(path), .text = malloc(len ? len : 1), .text_len = len };
    if (!a->path || !a->text) {
        action_free(a);
        return sz_null("%s: out of memory", path);
    }
    memcpy(a->text, text, len);
    w->count++;
    return a;
}

int sz_writing_text(sz_writing *w, const char *path, const char *text, size_t len)
{
    return append(w, path, text, len) ? 0 : -1;
}

int sz_writing_rename(sz_writing *w, const char *path, const char *to)
{
    action *a = append(w, path, "", 0);
    if (!a) return -1;
    a->new_path = strdup(to);
    return a->new_path ? 0 : sz_fail("%s: out of memory", path);
}

int sz_writing_tensors(sz_writing *w, const char *path, const char *header, size_t header_len,
                       sz_tensor **tensors, int n)
{
    /* All tensors must be alive now. */
    for (int i = 0; i < n; i++) {
        sz_tensor *t = tensors[i];
        if (!t || (t->numel && sz_tensor_alive(t) != 0))
            return sz_fail("%s: tensor %d to be written is missing", path, i + 1);
    }

    /* They stay alive until the action is freed. */
    action *a = append(w, path, header, header_len);
    if (!a) return -1;
    a->tensors = calloc((size_t)n + 1, sizeof(sz_tensor *));
    if (!a->tensors) return sz_fail("%s: out of memory", path);
    for (a->count = 0; a->count < n; a->count++) {
        a->tensors[a->count] = sz_tensor_retain(tensors[a->count]);
        w->on_device |= tensors[a->count]->device != SZ_CPU;
    }
    return 0;
}

static int write_text(const action *a)
{
    sz_writer f;
    if (sz_writer_open(&f, a->path) != 0 || sz_writer_put(&f, a->text, a->text_len) != 0) return -1;
    return sz_writer_commit(&f);
}

static int rename_file(const action *a)
{
    if (rename(a->path, a->new_path) == 0) return 0;
    return sz_fail("%s: cannot rename to %s: %s", a->path, a->new_path, strerror(errno));
}

static int run_action(const action *a)
{
    if (a->new_path) return rename_file(a);
    if (!a->tensors) return write_text(a);
    return sz_safetensors_write(a->path, a->text, a->text_len, a->tensors, a->count);
}

static int run_all(void *context)
{
    sz_writing *w = context;
    int rc = 0;
    for (int i = 0; rc == 0 && i < w->count; i++) rc = run_action(&w->actions[i]);
    return rc;
}

static void dispose(void *context) { sz_writing_free(context); }

sz_job *sz_writing_start(sz_writing *w) { return sz_job_start(run_all, dispose, w, w->on_device); }
