/* sample.c - picks one token per row of logits [rows, vocab] f32.
 *
 * In the order of transformers' generate: banned tokens drop out, repetition penalty (a seen token's logit is multiplied by
 * it when negative, else divided), temperature, top-k (ties with the k-th stay), top-p (a token stays while the more likely
 * ones add up to less than p; among equals the lower id comes first). Then one uniform number is looked up in the cumulative
 * sums of what stays, in the order of token ids. Temperature 0 takes the largest adjusted logit, the lowest id among equals.
 *
 * The log-prob is the trainer's: log-softmax of logits / temperature over the whole vocabulary, without bans, penalty, top-k
 * or top-p. Neither top-k nor top-p sorts the vocabulary: a histogram over the leading bits of the logits finds the bucket
 * of the last token that stays, and only that bucket is sorted.
 * Leaves out: min-p, beams. A row is the work of one thread, so its result does not depend on the other rows.
 */
#include "core/device.h"
#include "cpu/vecmath.h"
#include "core/tape.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>

enum { CHUNK = SZ_BLOCK, BUCKET_BITS = 12, BUCKETS = 1 << BUCKET_BITS };

typedef struct { float logit; int32_t id; } candidate;

typedef struct {
    const sz_sampling *s;
    int64_t vocab;
    const float *logits;            /* of one row */
    const uint8_t *banned, *seen;   /* or NULL; seen of the same row */
    float *weight;                  /* [vocab] exponentials of what stays, 0 elsewhere */
    double *sums;                   /* [BUCKETS] */
    int32_t *counts;                /* [BUCKETS] */
    candidate *last;                /* [vocab] the bucket that is sorted */
} row_work;

/* to[0..n): logits from element i on, banned ones -inf, seen ones penalised. */
static void adjust(const row_work *w, int64_t i, int64_t n, float *restrict to)
{
    const float *restrict x = w->logits + i;
    if (w->seen) {
        const uint8_t *restrict seen = w->seen + i;
        float penalty = w->s->repetition_penalty;
        for (int64_t j = 0; j < n; j++) {
            float y = x[j] < 0.0f ? x[j] * penalty : x[j] / penalty;
            to[j] = seen[j] ? y : x[j];
        }
    } else {
        memcpy(to, x, (size_t)n * sizeof(float));
    }
    if (w->banned) {
        const uint8_t *restrict banned = w->banned + i;
        for (int64_t j = 0; j < n; j++) to[j] = banned[j] ? -INFINITY : to[j];
    }
}

static float largest(const float *restrict x, int64_t n)
{
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* e[j] = exp((x[j] - base) * scale); returns the sum. Exactly 0 below -87, so that no such token is ever picked. */
static double exponentials(const float *restrict x, int64_t n, float base, float scale, float *restrict e)
{
    for (int64_t j = 0; j < n; j++) {
        float y = (x[j] - base) * scale;
        float v = sz_exp(y);
        e[j] = y < -87.0f ? 0.0f : v;
    }
    return sz_block_sum(e, n);
}

/* Keys that order as their floats do; -0 counts as +0. */
static uint32_t order_key(float x)
{
    uint32_t u = sz_float_bits(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static int by_logit(const void *x, const void *y)
{
    const candidate *a = x, *b = y;
    return a->logit != b->logit ? (a->logit > b->logit ? -1 : 1) : (a->id > b->id) - (a->id < b->id);
}

/* Clears the weights of tokens past the first `most` (and those equal to the last of them: ties), or past the first that add
 * up to `mass`. Exactly one limit is on: most > 0, or mass >= 0. */
static void cut(row_work *w, int64_t most, double mass)
{
    const int shift = 32 - BUCKET_BITS;
    float x[CHUNK];
    memset(w->sums, 0, BUCKETS * sizeof *w->sums);
    memset(w->counts, 0, BUCKETS * sizeof *w->counts);
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        adjust(w, i, n, x);
        for (int64_t j = 0; j < n; j++) {
            if (w->weight[i + j] == 0.0f) continue;
            uint32_t b = order_key(x[j]) >> shift;
            w->sums[b] += (double)w->weight[i + j];
            w->counts[b]++;
        }
    }
    int64_t above = 0, found = 0;
    double sum = 0;
    int bucket = BUCKETS - 1;
    for (; bucket > 0; bucket--) {
        if (most > 0 ? above + w->counts[bucket] >= most : w->counts[bucket] > 0 && sum + w->sums[bucket] >= mass) break;
        above += w->counts[bucket];
        sum += w->sums[bucket];
    }
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        adjust(w, i, n, x);
        for (int64_t j = 0; j < n; j++) {
            int b = (int)(order_key(x[j]) >> shift);
            if (b == bucket && w->weight[i + j] > 0.0f) w->last[found++] = (candidate){ x[j], (int32_t)(i + j) };
            w->weight[i + j] = b < bucket ? 0.0f : w->weight[i + j];
        }
    }
    qsort(w->last, (size_t)found, sizeof *w->last, by_logit);
    int64_t stay = 0;
    if (most > 0) {
        stay = sz_min64(most - above, found);
        while (stay > 0 && stay < found && w->last[stay].logit == w->last[stay - 1].logit) stay++;
    } else {
        while (stay < found && (sum < mass || above + stay == 0)) sum += (double)w->weight[w->last[stay++].id];
    }
    for (; stay < found; stay++) w->weight[w->last[stay].id] = 0.0f;
}

/* Within one chunk: the first token whose running sum, from `running` on, passes the target; else the last with a weight. */
static int64_t walk(const row_work *w, int64_t i, double running, double target)
{
    int64_t end = sz_min64(i + CHUNK, w->vocab), token = -1;
    for (; i < end; i++) {
        if (w->weight[i] == 0.0f) continue;
        token = i;
        running += (double)w->weight[i];
        if (running > target) break;
    }
    return token;
}

/* The token where the running sum of weights passes u times their total; the last one with a weight if rounding hides it. */
static int64_t look_up(const row_work *w, double u)
{
    double total = 0, below = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) total += sz_block_sum(w->weight + i, sz_min64(CHUNK, w->vocab - i));
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
    float x[CHUNK], best = -INFINITY;
    int64_t token = -1;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        adjust(w, i, n, x);
        float m = largest(x, n);
        if (!(m > best)) continue;
        best = m;
        for (token = i; x[token - i] != m;) token++;
    }
    return token;
}

/* -1: a logit is NaN or +inf; -2: nothing is left to pick. */
static int64_t pick(row_work *w, int64_t row_id, int32_t answer_id, int32_t position, float *logprob)
{
    const sz_sampling *s = w->s;
    float x[CHUNK], max = -INFINITY, best = -INFINITY, scale = s->temperature > 0 ? 1.0f / s->temperature : 1.0f;
    double total = 0, stay = 0;
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        float m = largest(w->logits + i, n);
        max = m > max ? m : max;
        adjust(w, i, n, x);
        m = largest(x, n);
        best = m > best ? m : best;
    }
    if (!(max < INFINITY)) return -1;
    bool plain = !w->seen && best == max && s->temperature > 0;      /* one exponential serves both sums */
    for (int64_t i = 0; i < w->vocab; i += CHUNK) {
        int64_t n = sz_min64(CHUNK, w->vocab - i);
        float *restrict e = w->weight + i;
        total += exponentials(w->logits + i, n, max, scale, e);
        if (plain && w->banned) {
            const uint8_t *restrict banned = w->banned + i;
            for (int64_t j = 0; j < n; j++) e[j] = banned[j] ? 0.0f : e[j];
        } else if (!plain && s->temperature > 0) {
            adjust(w, i, n, x);
            stay += exponentials(x, n, best, scale, e);
        }
    }
    if (!(total > 0)) return -1;
    if (best == -INFINITY) return -2;
    int64_t token;
    if (s->temperature > 0) {
        if (s->top_k > 0 && s->top_k < w->vocab) cut(w, s->top_k, -1);
        if (s->top_p < 1) {
            stay = 0;
            for (int64_t i = 0; i < w->vocab; i += CHUNK) stay += sz_block_sum(w->weight + i, sz_min64(CHUNK, w->vocab - i));
            cut(w, 0, (double)s->top_p * stay);
        }
        token = look_up(w, sz_random_uniform(s->seed, (uint64_t)row_id, (uint32_t)answer_id, (uint32_t)position));
    } else {
        token = greedy(w);
    }
    if (token < 0) return -2;
    *logprob = (float)((double)((w->logits[token] - max) * scale) - log(total));
    return token;
}

int sz_sampling_check(const sz_sampling *s, const uint8_t *seen)
{
    if (!(s->temperature >= 0)) return sz_fail("sample: temperature is %g, must be 0 or more", (double)s->temperature);
    if (!(s->repetition_penalty > 0)) return sz_fail("sample: repetition_penalty is %g, must be more than 0", (double)s->repetition_penalty);
    if (s->repetition_penalty != 1 && !seen) return sz_fail("sample: repetition_penalty needs to know the seen tokens");
    return 0;
}

int sz_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen,
              const int64_t *row_id, const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob)
{
    if (!logits) return -1;
    if (!logits->data) return sz_fail("sample: the logits' step has ended");
    if (logits->dtype != SZ_F32 || logits->ndim != 2) return sz_fail("sample: logits must be f32 [rows, vocab]");
    if (sz_sampling_check(s, seen) != 0) return -1;
    if (logits->device != SZ_CPU) {
        sz_scratch_begin();
        int rc = sz_device->sample(logits, s, banned, seen, row_id, answer_id, position, token, logprob);
        sz_scratch_end();
        return rc;
    }
    int64_t rows = logits->shape[0], vocab = logits->shape[1], bad = -1, why = 0;
    int threads = logits->numel > SZ_PARALLEL_FROM && rows > 1 ? omp_get_max_threads() : 1;
    size_t bytes = (size_t)BUCKETS * (sizeof(double) + sizeof(int32_t)) + (size_t)sz_ceil_div(vocab, 16) * 64 * 3;
    sz_scratch_begin();
    char *memory = sz_scratch(bytes * (size_t)threads);
    if (!memory) {
        sz_scratch_end();
        return sz_fail("sample: out of memory");
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < rows; i++) {
        char *at = memory + bytes * (size_t)omp_get_thread_num();
        row_work w = { .s = s, .vocab = vocab, .logits = sz_f32(logits) + i * vocab, .banned = banned };
        w.seen = s->repetition_penalty != 1 ? seen + i * vocab : NULL;
        w.sums = (double *)at;
        w.counts = (int32_t *)(w.sums + BUCKETS);
        w.weight = (float *)(w.counts + BUCKETS);
        w.last = (candidate *)(w.weight + sz_ceil_div(vocab, 16) * 16);
        int64_t t = pick(&w, row_id[i], answer_id[i], position[i], logprob + i);
        token[i] = (int32_t)t;
        if (t < 0) {
#pragma omp critical
            if (bad < 0 || i < bad) bad = i, why = t;
        }
    }
    sz_scratch_end();
    if (bad < 0) return 0;
    return why == -1 ? sz_fail("sample: the logits of row %lld are not finite", (long long)bad)
                     : sz_fail("sample: every token of row %lld is banned", (long long)bad);
}
