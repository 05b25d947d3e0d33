/* writing.c - a list of files to write, to sync and to rename, done in order by a background thread
 * (jobs.c); or at once if a tensor is on a device, whose stream belongs to the main thread. The
 * first failure ends the list.
 *
 * Tensors are written in place, without a copy: nothing may write to them until the job has ended.
 * Each file is written under a temporary name, synced and renamed, and its folder is synced. A
 * rename syncs the folder of the new name.
 *
 * The list computes checksums on the way, for a manifest that is written near its end: one for each
 * text; for tensors one of the header (with its 8 bytes of length) and then one for each tensor;
 * for a synced file one for each of its ranges.
 * Leaves out: what the files mean (lua/segzero/formats/safetensors.lua, checkpoint.lua).
 */
#include "io.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum kind { TEXT, TENSORS, PARTS, RENAME, SYNC, MANIFEST };

typedef struct {
    enum kind kind;
    char *path;
    char *new_path; /* RENAME */
    char *text;     /* the file, the tensors' header, or the manifest's template */
    size_t text_len;
    sz_tensor **tensors;
    int64_t *ranges;  /* SYNC: count begins, then count ends; PARTS: count begins */
    sz_place *places; /* PARTS: of the tensors in whole ones */
    int count;        /* of tensors or ranges */
} action;

struct sz_writing {
    int refs; /* belongs to the main thread */
    int count, room;
    int done; /* actions that an earlier job has done */
    bool on_device;
    action *actions;
    uint64_t *sums; /* of what has been done */
    int sum_count, sum_room;
};

static void action_free(action *a)
{
    for (int i = 0; a->tensors && i < a->count; i++) sz_tensor_release(a->tensors[i]);
    free(a->tensors);
    free(a->ranges);
    free(a->places);
    free(a->text);
    free(a->path);
    free(a->new_path);
}

sz_writing *sz_writing_new(void)
{
    sz_writing *w = calloc(1, sizeof *w);
    if (!w) return sz_null("out of memory");
    w->refs = 1;
    return w;
}

void sz_writing_free(sz_writing *w)
{
    if (!w || --w->refs > 0) return;
    for (int i = 0; i < w->count; i++) action_free(&w->actions[i]);
    free(w->actions);
    free(w->sums);
    free(w);
}

/* Appends an action with copies of its texts to the list; NULL with a message on failure. */
static action *append(sz_writing *w, enum kind kind, const char *path, const char *text, size_t len)
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
    *a = (action){
        .kind = kind, .path = strdup(path), .text = malloc(len ? len : 1), .text_len = len
    };
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
    return append(w, TEXT, path, text, len) ? 0 : -1;
}

int sz_writing_manifest(sz_writing *w, const char *path, const char *text, size_t len)
{
    return append(w, MANIFEST, path, text, len) ? 0 : -1;
}

int sz_writing_rename(sz_writing *w, const char *path, const char *to)
{
    action *a = append(w, RENAME, path, "", 0);
    if (!a) return -1;
    a->new_path = strdup(to);
    return a->new_path ? 0 : sz_fail("%s: out of memory", path);
}

int sz_writing_sync(sz_writing *w, const char *path, int n, const int64_t *begin,
                    const int64_t *end)
{
    action *a = append(w, SYNC, path, "", 0);
    if (!a) return -1;
    size_t bytes = (size_t)n * sizeof *a->ranges;
    a->ranges = malloc(2 * bytes + 1);
    if (!a->ranges) return sz_fail("%s: out of memory", path);
    a->count = n;
    if (n) memcpy(a->ranges, begin, bytes);
    if (n) memcpy(a->ranges + n, end, bytes);
    return 0;
}

/* An action with tensors, which stay alive until it is freed; NULL with a message. */
static action *append_tensors(sz_writing *w, enum kind kind, const char *path, const char *header,
                              size_t header_len, sz_tensor **tensors, int n)
{
    /* All tensors must be alive now. */
    for (int i = 0; i < n; i++) {
        sz_tensor *t = tensors[i];
        if (!t || (t->numel && sz_tensor_alive(t) != 0))
            return sz_null("%s: tensor %d to be written is missing", path, i + 1);
    }

    action *a = append(w, kind, path, header, header_len);
    if (!a) return NULL;
    a->tensors = calloc((size_t)n + 1, sizeof(sz_tensor *));
    if (!a->tensors) return sz_null("%s: out of memory", path);
    for (a->count = 0; a->count < n; a->count++) {
        a->tensors[a->count] = sz_tensor_retain(tensors[a->count]);
        w->on_device |= tensors[a->count]->device != SZ_CPU;
    }
    return a;
}

int sz_writing_tensors(sz_writing *w, const char *path, const char *header, size_t header_len,
                       sz_tensor **tensors, int n)
{
    return append_tensors(w, TENSORS, path, header, header_len, tensors, n) ? 0 : -1;
}

int sz_writing_parts(sz_writing *w, const char *path, sz_tensor **tensors, const int64_t *begin,
                     const sz_place *places, int n)
{
    action *a = append_tensors(w, PARTS, path, "", 0, tensors, n);
    if (!a) return -1;
    a->ranges = calloc((size_t)n + 1, sizeof *a->ranges);
    a->places = calloc((size_t)n + 1, sizeof *a->places);
    if (!a->ranges || !a->places) return sz_fail("%s: out of memory", path);
    if (n) memcpy(a->ranges, begin, (size_t)n * sizeof *begin);
    if (n) memcpy(a->places, places, (size_t)n * sizeof *places);
    return 0;
}

/* ---- doing it ---- */

/* Room for n more checksums; NULL with a message. */
static uint64_t *more_sums(sz_writing *w, int n)
{
    if (w->sum_count + n > w->sum_room) {
        int room = 2 * w->sum_room + n;
        uint64_t *more = realloc(w->sums, (size_t)room * sizeof *more);
        if (!more) return sz_null("out of memory");
        w->sums = more;
        w->sum_room = room;
    }
    uint64_t *place = w->sums + w->sum_count;
    w->sum_count += n;
    return place;
}

static int write_bytes(const char *path, const char *text, size_t len)
{
    sz_writer f;
    if (sz_writer_open(&f, path) != 0 || sz_writer_put(&f, text, len) != 0) return -1;
    return sz_writer_commit(&f);
}

static int write_text(sz_writing *w, const action *a)
{
    uint64_t *sum = more_sums(w, 1);
    if (!sum) return -1;
    *sum = sz_checksum(a->text, a->text_len, 0);
    return write_bytes(a->path, a->text, a->text_len);
}

/* The template with each '%' replaced by the next checksum, 16 hexadecimal digits. */
static int write_manifest(const sz_writing *w, const action *a)
{
    enum { DIGITS = 16 };
    char *text = malloc(a->text_len + (size_t)w->sum_count * DIGITS + 1);
    if (!text) return sz_fail("%s: out of memory", a->path);
    size_t len = 0;
    int next = 0;
    for (size_t i = 0; i < a->text_len; i++) {
        if (a->text[i] != '%') {
            text[len++] = a->text[i];
        } else if (next < w->sum_count) {
            len += (size_t)sprintf(text + len, "%016" PRIx64, w->sums[next++]);
        }
    }
    int rc = write_bytes(a->path, text, len);
    free(text);
    return rc;
}

/* The new name is durable once its folder is. */
static int rename_file(const action *a)
{
    if (rename(a->path, a->new_path) != 0)
        return sz_fail("%s: cannot rename to %s: %s", a->path, a->new_path, strerror(errno));
    return sz_io_sync_folder_of(a->new_path);
}

static int sync_file(sz_writing *w, const action *a)
{
    uint64_t *sums = more_sums(w, a->count);
    if (a->count && !sums) return -1;
    return sz_file_sums(a->path, a->count, a->ranges, a->ranges + a->count, 1, sums);
}

static int write_tensors(sz_writing *w, const action *a)
{
    uint64_t *sums = more_sums(w, a->count + 1);
    if (!sums) return -1;
    return sz_safetensors_write_sums(a->path, a->text, a->text_len, a->tensors, a->count, sums);
}

static int run_action(sz_writing *w, const action *a)
{
    switch (a->kind) {
    case TEXT: return write_text(w, a);
    case TENSORS: return write_tensors(w, a);
    case PARTS: return sz_shared_file_write(a->path, a->tensors, a->ranges, a->places, a->count);
    case RENAME: return rename_file(a);
    case SYNC: return sync_file(w, a);
    case MANIFEST: return write_manifest(w, a);
    }
    return 0;
}

static int run_all(void *context)
{
    sz_writing *w = context;
    int rc = 0;
    for (; rc == 0 && w->done < w->count; w->done++) rc = run_action(w, &w->actions[w->done]);
    return rc;
}

static void dispose(void *context) { sz_writing_free(context); }

sz_job *sz_writing_start_first(sz_writing *w)
{
    w->refs++;
    return sz_writing_start(w);
}

sz_job *sz_writing_start(sz_writing *w) { return sz_job_start(run_all, dispose, w, w->on_device); }
