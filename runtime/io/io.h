/* io.h - what the files of runtime/io share: reading a whole file, writing one whole or not at all,
 * images. graph.h has the background jobs of jobs.c.
 * Leaves out: anything that depends on a file format.
 */
#ifndef SZ_IO_H
#define SZ_IO_H

#include "core/core.h"

/* ---- file.c ---- */

/* Reads a regular file of 1 to max bytes; the caller frees the result. NULL with a message that
 * names the path and the reason. */
uint8_t *sz_io_read(const char *path, size_t max, size_t *len);

/* Gives back the resident pages around a range of a map, which begins at `map` and has `size`
 * bytes. They stay in the page cache. */
void sz_io_forget(const uint8_t *map, size_t size, const uint8_t *from, size_t len);

/* Makes the names in the folder of `path` durable: 0, or -1 with a message. A folder that cannot be
 * opened, or a file system that cannot sync one, is not a failure. */
int sz_io_sync_folder_of(const char *path);

/* A file under construction: bytes go to "path.tmp", which is renamed to path on commit. */
typedef struct {
    int fd;           /* -1: closed */
    char *path, *tmp; /* owned */
} sz_writer;

/* Each returns 0, or -1 with a message; after a failure the temporary file has been removed and the
 * writer closed. */
int sz_writer_open(sz_writer *w, const char *path);
int sz_writer_put(sz_writer *w, const void *bytes, size_t len);
int sz_writer_commit(sz_writer *w); /* syncs file and folder, renames */
void sz_writer_abort(sz_writer *w); /* removes the temporary file; harmless after commit */

/* ---- safetensors.c ---- */

/* sz_safetensors_write that also returns checksums, n + 1 of them: of the header with its 8 bytes
 * of length, and of each tensor. sums: NULL for none. */
int sz_safetensors_write_sums(const char *path, const char *header, size_t header_len,
                              sz_tensor **tensors, int n, uint64_t *sums);

/* ---- shared_file.c ---- */

/* Writes n tensors into the file, which exists, and syncs it: 0, or -1 with a message. Tensor i is
 * the part at places[i] of a whole tensor that begins at byte begin[i]. */
int sz_shared_file_write(const char *path, sz_tensor **tensors, const int64_t *begin,
                         const sz_place *places, int n);

/* ---- image/ ---- */

struct sz_image {
    int refs; /* sz_image_free drops one; belongs to the main thread, as for tensors */
    int width, height;
    uint8_t *pixels; /* [height, width, 3], owned */
};

/* Whether an image may have this size: 0, or -1 with a message that begins with `name`. */
int sz_image_check_size(const char *name, int64_t width, int64_t height);

#endif
