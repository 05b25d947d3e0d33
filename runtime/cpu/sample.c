/* sample.c - picks one token per row of logits [rows, vocab] f32 (sampling/sample.c checks the
 * call).
 *
 * In the order of transformers' generate: banned tokens are excluded, repetition penalty (a seen
 * token's logit is multiplied by it if negative, otherwise divided), temperature, top-k (ties with
 * the k-th stay), top-p (a token stays while the more likely ones add up to less than p; among
 * equals the lower id comes first). Then one uniform number is looked up in the cumulative sums of
 * the tokens that stay, in the order of ids. Temperature 0 takes the largest adjusted logit, the
 * lowest id among equals.
 *
 * The log-prob is the trainer's: log-softmax of logits / temperature over the whole vocabulary,
 * without bans, penalty, top-k or top-p. Neither top-k nor top-p sorts the vocabulary: a histogram
 * over the leading bits of the logits finds the bucket of the last token that stays, and only that
 * bucket is sorted. One thread does all of a row, so its result does not depend on other rows.
 * Leaves out: min-p, beams.
 */
#include "kernels.h"
#include "vecmath.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>

enum { CHUNK = SZ_BLOCK, BUCKET_BITS = 12, BUCKETS = 1 << BUCKET_BITS };
enum { NOT_FINITE = -1, ALL_BANNED = -2 }; /* instead of a token */

typedef struct {
    float logit;
    int32_t id;
} candidate;

typedef struct {
    const sz_sampling *s;
    int64_t vocab;
    const float *logits;          /* of one row */
    const uint8_t *banned, *seen; /* or NULL; seen of the same row */
    float *weight;                /* [vocab] exponentials of the tokens that stay, 0 elsewhere */
    double *sums;                 /* [BUCKETS] */
    int32_t *counts;              /* [BUCKETS] */
    candidate *sorted;            /* [vocab] the bucket that is sorted */
} row_work;

/* out[0..n): logits from element i on, with banned ones -inf and seen ones penalised. */
static void adjust(const row_work *w, int64_t i, int64_t n, float *restrict out)
{
    const float *restrict x = w->logits + i;
    if (w->seen) {
        const uint8_t *restrict seen = w->seen + i;
        float penalty = w->s->repetition_penalty;
        for (int64_t j = 0; j < n; j++) {
            float y = x[j] < 0.0f ? x[j] * penalty : x[j] / penalty;
            out[j] = seen[j] ? y : x[j];
        }
    } else {
        memcpy(out, x, (size_t)n * sizeof(float));
    }

    /* Bans come last. */
    if (w->banned) {
        const uint8_t *restrict banned = w->banned + i;
        for (int64_t j = 0; j < n; j++) out[j] = banned[j] ? -INFINITY : out[j];
    }
}

static float largest(const float *restrict x, int64_t n)
{
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* e[j] = exp((x[j] - base) * scale); returns the sum. Exactly 0 below -87, so that no such token is
 * ever picked. */
static double exponentials(const float *restrict x, int64_t n, float base, float scale,
                           float *restrict e)
{
    for (int64_t j = 0; j < n; j++) {
        float y = (x[j] - base) * scale;
        float v = sz_exp(y);
        e[j] = y < -87.0f ? 0.0f : v;
    }
    return sz_block_sum(e, n);
}

static double weight_sum(const row_work *w)
{
    double sum = 0;
    for (int64_t i = 0; i < w->vocab; i += CHUNK)
        sum += sz_block_sum(w->weight + i, sz_min64(CHUNK, w->vocab - i));
    return sum;
}

/* ---- top-k and top-p ---- */

/* A key that is ordered as floats are; -0 counts as +0. */
static uint32_t order_key(float x)
{
    uint32_t u = sz_float_bits(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static int bucket_of(float x) { return (int)(order_key(x) >> (32 - BUCKET_BITS)); }

/* The largest logit first, then the lowest id. */
static int by_logit(const void *x, const void *y)
{
    const candidate *a = x;
    const candidate *b = y;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Counts and sums of the weights in each bucket of logits. */
static void fill_histogram(row_work *w)
{
    float x[CHUNK];
    memset(w->sums, 0, BUCKETS * sizeof *w->sums);
    memset(w->counts, 0, BUCKETS * sizeof *w->counts);
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        adjust(w, i, n, x);
        for (int64_t j = 0; j < n; j++) {
            if (w->weight[i + j] == 0.0f) continue;
            int b = bucket_of(x[j]);
            w->sums[b] += (double)w->weight[i + j];
            w->counts[b]++;
        }
    }
}

/* Clears the weights below the bucket, and sorts the tokens in it; returns how many there are. */
static int64_t clear_below(row_work *w, int bucket)
{
    float x[CHUNK];
    int64_t found = 0;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        adjust(w, i, n, x);
        for (int64_t j = 0; j < n; j++) {
            int b = bucket_of(x[j]);
            if (b == bucket && w->weight[i + j] > 0.0f)
                w->sorted[found++] = (candidate){ x[j], (int32_t)(i + j) };
            w->weight[i + j] = b < bucket ? 0.0f : w->weight[i + j];
        }
    }
    qsort(w->sorted, (size_t)found, sizeof *w->sorted, by_logit);
    return found;
}

/* Keeps the first `most` tokens (and those equal to the last of them: ties), or the first that add
 * up to `mass`; clears the weights of the others. Exactly one limit is on: most > 0, or mass >= 0.
 */
static void keep_top(row_work *w, int64_t most, double mass)
{
    /* The bucket with the last token that stays; above and sum: what is in higher buckets. */
    int64_t above = 0;
    double sum = 0;
    int bucket = BUCKETS - 1;
    fill_histogram(w);
    for (; bucket > 0; bucket--) {
        int32_t count = w->counts[bucket];
        if (most > 0 && above + count >= most) break;
        if (most <= 0 && count > 0 && sum + w->sums[bucket] >= mass) break;
        above += count;
        sum += w->sums[bucket];
    }

    /* How many tokens of the bucket stay. */
    int64_t found = clear_below(w, bucket);
    int64_t stay = 0;
    if (most > 0) {
        stay = sz_min64(most - above, found);
        while (stay > 0 && stay < found && w->sorted[stay].logit == w->sorted[stay - 1].logit)
            stay++;
    } else {
        while (stay < found && (sum < mass || above + stay == 0))
            sum += (double)w->weight[w->sorted[stay++].id];
    }
    for (; stay < found; stay++) w->weight[w->sorted[stay].id] = 0.0f;
}

/* ---- picking ---- */

/* Within one chunk: the first token whose running sum, which starts with `running`, exceeds the
 * target; otherwise the last token with a weight. */
static int64_t walk(const row_work *w, int64_t i, double running, double target)
{
    int64_t end = sz_min64(i + CHUNK, w->vocab);
    int64_t token = -1;
    for (; i < end; i++) {
        if (w->weight[i] == 0.0f) continue;
        token = i;
        running += (double)w->weight[i];
        if (running > target) break;
    }
    return token;
}

/* The token where the running sum of weights exceeds u times their total; the last one with a
 * weight if rounding hides it. */
static int64_t look_up(const row_work *w, double u)
{
    double total = weight_sum(w);
    double below = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        double sum = sz_block_sum(w->weight + i, sz_min64(CHUNK, w->vocab - i));
        if (sum == 0) continue;
        last = i;
        if (below + sum > u * total) break;
        below += sum;
    }
    return last < 0 ? -1 : walk(w, last, below, u * total);
}

static int64_t greedy(const row_work *w)
{
    float x[CHUNK];
    float best = -INFINITY;
    int64_t token = -1;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        /* A larger logit in this chunk: the first place where it is. */
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        adjust(w, i, n, x);
        float m = largest(x, n);
        if (!(m > best)) continue;
        best = m;
        for (token = i; x[token - i] != m;) token++;
    }
    return token;
}

/* The largest logit, and the largest adjusted one. */
static void find_largest(const row_work *w, float *max, float *best)
{
    float x[CHUNK];
    *max = -INFINITY;
    *best = -INFINITY;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        float m = largest(w->logits + i, n);
        *max = m > *max ? m : *max;
        adjust(w, i, n, x);
        m = largest(x, n);
        *best = m > *best ? m : *best;
    }
}

/* Fills the weights of all tokens, if sampling needs them. Returns the sum of exponentials over the
 * whole vocabulary, without bans and penalty. */
static double fill_weights(row_work *w, float max, float best, float scale)
{
    float x[CHUNK];
    double total = 0;
    bool samples = w->s->temperature > 0;
    /* Without adjusted logits, one exponential serves both. */
    bool shared = !w->seen && best == max && samples;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        float *restrict e = w->weight + i;
        total += exponentials(w->logits + i, n, max, scale, e);
        if (shared && w->banned) {
            const uint8_t *restrict banned = w->banned + i;
            for (int64_t j = 0; j < n; j++) e[j] = banned[j] ? 0.0f : e[j];
        } else if (!shared && samples) {
            adjust(w, i, n, x);
            exponentials(x, n, best, scale, e);
        }
    }
    return total;
}

/* A token of one row, or NOT_FINITE or ALL_BANNED. */
static int64_t pick(row_work *w, int64_t row_id, int32_t answer_id, int32_t position,
                    float *logprob)
{
    const sz_sampling *s = w->s;
    float scale = s->temperature > 0 ? 1.0f / s->temperature : 1.0f;
    float max, best;

    /* A NaN or +inf shows in the maximum or in the sum. */
    find_largest(w, &max, &best);
    if (!(max < INFINITY)) return NOT_FINITE;
    double total = fill_weights(w, max, best, scale);
    if (!(total > 0)) return NOT_FINITE;
    if (best == -INFINITY) return ALL_BANNED;

    int64_t token;
    if (s->temperature > 0) {
        if (s->top_k > 0 && s->top_k < w->vocab) keep_top(w, s->top_k, -1);
        if (s->top_p < 1) keep_top(w, 0, (double)s->top_p * weight_sum(w));
        token = look_up(w, sz_random_uniform(s->seed, (uint64_t)row_id, (uint32_t)answer_id,
                                             (uint32_t)position));
    } else {
        token = greedy(w);
    }
    if (token < 0) return ALL_BANNED;
    *logprob = (float)((double)((w->logits[token] - max) * scale) - log(total));
    return token;
}

/* Bytes of a thread's row_work. */
static size_t work_bytes(int64_t vocab)
{
    size_t histogram = (size_t)BUCKETS * (sizeof(double) + sizeof(int32_t));
    return histogram + (size_t)sz_ceil_div(vocab, 16) * 64 * 3;
}

static row_work place_work(char *memory, int64_t vocab)
{
    row_work w = { .vocab = vocab };
    w.sums = (double *)memory;
    w.counts = (int32_t *)(w.sums + BUCKETS);
    w.weight = (float *)(w.counts + BUCKETS);
    w.sorted = (candidate *)(w.weight + sz_ceil_div(vocab, 16) * 16);
    return w;
}

/* memory: work_bytes for each thread. Returns 0, or -1 with a message about the first bad row. */
static int sample_rows(const sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                       const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                       const int32_t *position, int32_t *token, float *logprob, int threads,
                       char *memory)
{
    int64_t rows = logits->shape[0];
    int64_t vocab = logits->shape[1];
    int64_t bad = -1;
    int64_t why = 0;

    /* The threads share the rows. */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; i++) {
        row_work w = place_work(memory + work_bytes(vocab) * (size_t)omp_get_thread_num(), vocab);
        w.s = s;
        w.logits = sz_f32(logits) + i * vocab;
        w.banned = banned;
        w.seen = s->repetition_penalty != 1 ? seen + i * vocab : NULL;
        int64_t t = pick(&w, row_id[i], answer_id[i], position[i], logprob + i);
        token[i] = (int32_t)t;
        if (t < 0) {
#pragma omp critical
            if (bad < 0 || i < bad) {
                bad = i;
                why = t;
            }
        }
    }
    if (bad < 0) return 0;
    if (why == NOT_FINITE)
        return sz_fail("sample: the logits of row %lld are not finite", (long long)bad);
    return sz_fail("sample: every token of row %lld is banned", (long long)bad);
}

int sz_cpu_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                  const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                  const int32_t *position, int32_t *token, float *logprob)
{
    bool parallel = logits->numel > SZ_PARALLEL_FROM && logits->shape[0] > 1;
    int threads = parallel ? omp_get_max_threads() : 1;
    char *memory = sz_scratch(work_bytes(logits->shape[1]) * (size_t)threads);
    if (!memory) return sz_fail("sample: out of memory");
    return sample_rows(logits, s, banned, seen, row_id, answer_id, position, token, logprob,
                       threads, memory);
}
