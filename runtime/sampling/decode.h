/* decode.h - a decode step of a language model on a device: the next token of each running answer
 * in one call of the backend, with one copy each way and one wait. The backend can record the
 * step's launches and repeat them for later steps like it.
 * Leaves out: the CPU, where there is nothing to gain, and the network itself, which is a callback.
 */
#ifndef SZ_DECODE_H
#define SZ_DECODE_H

#include "graph.h"

/* One token for each of `rows` answers. */
typedef struct {
    int64_t rows, vocab;
    /* The host tensors that the step's ops read or copy to the device; NULL ends the list. */
    const sz_tensor *tables[6];
    /* The table among them that the step's attention_cached calls use. They are causal. */
    const sz_tensor *segments;
    int heads, kv_heads; /* of these calls */
    /* Ranks exchange tensors in the step through host memory, so it cannot be recorded. */
    bool has_collectives;
    /* As for sz_sample. */
    const sz_sampling *sampling;
    const uint8_t *banned, *seen;
    const int64_t *row_id;
    const int32_t *answer_id, *position;
    /* A hash of everything else that fixes the launches: shapes, settings, addresses of weights
     * and caches. */
    uint64_t key;
    /* sz_decode_run sets these. */
    uint64_t arena; /* which of the arena's blocks are in use when it begins (sz_arena_state) */
    bool repeat;    /* the step may be recorded, and then replayed without run */
} sz_decode_step;

/* What the ops of a step check of its ids i32 [a], cache rows i32 [a] and segments i32 [a, 6], all
 * at once: a step that is replayed does not run them. */
bool sz_decode_fits(const sz_tensor *ids, int64_t vocab, const sz_tensor *cache_rows,
                    const sz_tensor *segments, int64_t rows);
/* 0, or -1 with a message that names the setting. */
int sz_sampling_check(const sz_sampling *s, const uint8_t *seen);

/* Runs a step of a model whose weights are on a device. run(context, sample) calls the step's ops
 * in a scope of its own and then sz_decode_sample(sample, logits), with logits f32 [rows, vocab] on
 * the device. It is called once, twice where recording fails, and not at all for a step that was
 * recorded before. Writes `rows` tokens and log-probabilities. 0, or -1 with a message. */
int sz_decode_run(sz_decode_step *step, int (*run)(void *context, int (*sample)(sz_tensor *logits)),
                  void *context, int32_t *token, float *logprob);
int sz_decode_sample(int (*sample)(sz_tensor *logits), sz_tensor *logits);

#endif
