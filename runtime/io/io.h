/* io.h - what the files of runtime/io share: reading a whole file, and writing one whole or not at all.
 * Leaves out anything about a format. */
#ifndef SZ_IO_H
#define SZ_IO_H

#include "core/core.h"

/* Reads a regular file of 1 to max bytes; the caller frees. NULL with a message that has the path and the reason. */
uint8_t *sz_io_read(const char *path, size_t max, size_t *len);

/* A file under construction: bytes go to "path.tmp", which takes path's name on commit. */
typedef struct {
    int fd;             /* -1: closed */
    char *path, *tmp;   /* owned */
} sz_writer;

/* Each returns 0, or -1 with a message; after a failure the temporary file is gone and the writer closed. */
int  sz_writer_open(sz_writer *w, const char *path);
int  sz_writer_put(sz_writer *w, const void *bytes, size_t len);
int  sz_writer_commit(sz_writer *w);    /* syncs file and folder, renames */
void sz_writer_abort(sz_writer *w);     /* removes the temporary file; harmless after commit */

/* Work for a thread beside the main one (jobs.c). run(context) returns 0, or -1 with a message; dispose(context) runs on the main thread
 * when the job is freed, or here on failure (NULL with a message). at_once: it has ended when this returns. */
sz_job *sz_job_start(int (*run)(void *), void (*dispose)(void *), void *context, bool at_once);
void   *sz_job_context(sz_job *j);

/* Pixels as resize.c and image.c see them. */
struct sz_image {
    int refs;           /* sz_image_free drops one; the main thread's, like those of tensors */
    int width, height;
    uint8_t *pixels;    /* [height, width, 3], owned */
};

/* 0 when a picture may be so large, else -1 with a message that begins with `name`. */
int sz_image_check_size(const char *name, int64_t width, int64_t height);

#endif
