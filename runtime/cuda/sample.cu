/* sample.cu - picks one token for each row of logits [rows, vocab] f32 on the device: what
 * sampling/sample.c does and describes.
 *
 * A block of 1024 threads processes a row and reads it a few times; nothing is sorted or stored.
 * Weights, the exponentials relative to the likeliest token, are added as integers in units of
 * 2^-44. Such sums are the same in any order, so histograms may use atomics and runs repeat. A
 * token below 2^-45 of the likeliest has no weight. For the same logits the token equals the CPU's
 * unless the random number or top-p's limit falls within the rounding of the exponentials.
 *
 * A cut (top-k, top-p) finds the key of the last token to keep: first by a histogram over the
 * distance from the likeliest token, which is linear, because the leading bits of a float would
 * put nearly all tokens into a few buckets; then by 8 bits at a time of the keys in that bucket.
 *
 * banned and seen come as bytes in host memory and are sent as one bit for each token: 19 KB for a
 * row of 152,000 tokens instead of 152 KB. The uniform number is Philox-4x32-10, as in
 * core/random.c. Leaves out: what sampling/sample.c leaves out, and its checks of the arguments. */
#include "device.cuh"
#include "philox.cuh"
#include <cstdlib>

enum { THREADS = 1024, WARPS = THREADS / 32, BUCKETS = 2048, DIGITS = 256 };

/* Units of 2^-44; a row has fewer than 2^19 tokens of weight at most 1. */
typedef unsigned long long fixed;

struct sample_row {
    int64_t row_id;
    int32_t answer_id, position;
};

struct sample_result {
    int32_t token;
    float logprob;
};

struct sample_settings {
    float scale, top_p, penalty;
    int32_t top_k;
    bool greedy;
    uint64_t seed;
};

/* One row as all its threads see it. Kept are the tokens whose key is above `key`, and those whose
 * key equals it and whose id is at most last_id. */
struct row_view {
    const float *logits;
    const uint32_t *banned, *seen; /* bit masks, or NULL */
    float penalty, scale, best;
    uint32_t key;
    int32_t last_id;

    static __device__ __forceinline__ bool has_bit(const uint32_t *mask, int64_t i)
    {
        return mask && (mask[i / 32] >> (i % 32) & 1);
    }

    /* The logit after repetition penalty and bans. */
    __device__ __forceinline__ float adjusted(int64_t i) const
    {
        float x = logits[i];
        if (has_bit(seen, i)) x = x < 0.0f ? x * penalty : x / penalty;
        if (has_bit(banned, i)) x = -INFINITY;
        return x;
    }

    /* Exactly 0 below -87, as on the CPU. */
    __device__ __forceinline__ static float exponential(float y)
    {
        return y < -87.0f ? 0.0f : expf(y);
    }
    __device__ __forceinline__ float weight(float x) const
    {
        return exponential((x - best) * scale);
    }

    /* Keys compare as the floats do; -0 counts as +0. */
    __device__ __forceinline__ static uint32_t key_of(float x)
    {
        uint32_t u = __float_as_uint(x + 0.0f);
        return u & 0x80000000u ? ~u : u | 0x80000000u;
    }
    __device__ __forceinline__ bool is_kept(uint32_t k, int64_t i) const
    {
        return k > key || (k == key && i <= last_id);
    }
};

__device__ __forceinline__ fixed to_fixed(float weight)
{
    return (fixed)((double)weight * 0x1p44 + 0.5);
}

/* The block's shared memory. */
struct block_memory {
    fixed sums[BUCKETS];
    uint32_t counts[BUCKETS];
    /* One for each warp. */
    fixed parts[WARPS];
    double doubles[WARPS];
    float values[WARPS];
    int32_t ids[WARPS];
    /* The result of find_bucket. */
    fixed found_sum;
    int64_t found_count;
    int32_t found;
};

/* ---- reductions; every thread gets the result ---- */
__device__ __forceinline__ fixed warp_sum(fixed v)
{
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

__device__ static fixed block_sum(fixed v, block_memory &m)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) m.parts[threadIdx.x / 32] = v;
    __syncthreads();
    fixed sum = 0;
    for (int i = 0; i < WARPS; i++) sum += m.parts[i];
    __syncthreads();
    return sum;
}

__device__ static double block_sum(double v, block_memory &m)
{
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    if (threadIdx.x % 32 == 0) m.doubles[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARPS; i++) sum += m.doubles[i];
    __syncthreads();
    return sum;
}

/* The largest value and the lowest id that has it. id is -1 if all values are -inf or NaN. */
__device__ static void block_largest(float &value, int32_t &id, block_memory &m)
{
    for (int distance = 16; distance > 0; distance /= 2) {
        float v = __shfl_xor_sync(0xffffffffu, value, distance);
        int32_t i = __shfl_xor_sync(0xffffffffu, id, distance);
        if (v > value || (v == value && i < id)) {
            value = v;
            id = i;
        }
    }
    if (threadIdx.x % 32 == 0) {
        m.values[threadIdx.x / 32] = value;
        m.ids[threadIdx.x / 32] = id;
    }
    __syncthreads();
    value = m.values[0];
    id = m.ids[0];
    for (int i = 1; i < WARPS; i++)
        if (m.values[i] > value || (m.values[i] == value && m.ids[i] < id)) {
            value = m.values[i];
            id = m.ids[i];
        }
    __syncthreads();
}

/* ---- searches ---- */
/* Returns the first token at which the running sum of term(i), in the order of ids, passes target,
 * which is below the sum of all. */
template <typename Term>
__device__ static int32_t look_up(int32_t vocab, fixed target, block_memory &m, Term term)
{
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32;
    int32_t from = 0;
    int32_t to = vocab;
    /* Each warp adds a part of [from, to); go on with the part in which the sum passes target. */
    while (to - from > 32) {
        int32_t length = (to - from + WARPS - 1) / WARPS;
        int32_t first = min(from + warp * length, to);
        int32_t end = min(first + length, to);
        fixed sum = 0;
        for (int32_t i = first + lane; i < end; i += 32) sum += term(i);
        sum = warp_sum(sum);
        if (lane == 0) m.parts[warp] = sum;
        __syncthreads();
        int part = 0;
        while (part < WARPS - 1 && m.parts[part] <= target) target -= m.parts[part++];
        from = min(from + part * length, to);
        to = min(from + length, to);
        __syncthreads();
    }
    /* The last 32 or fewer: a running sum over the warp's lanes. */
    fixed running = from + lane < to ? term(from + lane) : 0;
    for (int distance = 1; distance < 32; distance *= 2) {
        fixed below = __shfl_up_sync(0xffffffffu, running, (unsigned)distance);
        if (lane >= distance) running += below;
    }
    int passed = __ffs((int)__ballot_sync(0xffffffffu, running > target));
    return from + (passed ? passed - 1 : 0);
}

/* What to look for, and what has been passed: the `most` largest tokens, or if most < 0 those that
 * add up to `mass`. */
struct search {
    int64_t most;
    fixed mass;
    int64_t count; /* tokens passed so far ... */
    fixed sum;     /* ... and their weight */
};

/* Walks the n buckets, from the last to the first if `down`. Finds the first bucket that is not
 * empty and in which the count reaches s.most, or the sum reaches s.mass. Leaves in m its index
 * (-1: none), and count and sum before it. One warp does the work. */
__device__ static void find_bucket(block_memory &m, int n, bool down, const search &s)
{
    const int lane = (int)threadIdx.x % 32;
    __syncthreads();
    if (threadIdx.x < 32) {
        int64_t count = s.count;
        fixed sum = s.sum;
        int found = -1;
        for (int i = 0; i < n && found < 0; i += 32) {
            /* Running count and sum over 32 buckets. */
            int b = down ? n - 1 - i - lane : i + lane;
            int64_t own_count = m.counts[b];
            fixed own_sum = m.sums[b];
            int64_t counts = own_count;
            fixed sums = own_sum;
            for (int distance = 1; distance < 32; distance *= 2) {
                int64_t lower_counts = __shfl_up_sync(0xffffffffu, counts, (unsigned)distance);
                fixed lower_sums = __shfl_up_sync(0xffffffffu, sums, (unsigned)distance);
                if (lane >= distance) {
                    counts += lower_counts;
                    sums += lower_sums;
                }
            }
            /* The first lane that reaches the limit, if there is one. */
            const bool reached = s.most >= 0 ? count + counts >= s.most : sum + sums >= s.mass;
            unsigned hits = __ballot_sync(0xffffffffu, own_count > 0 && reached);
            int last = hits ? __ffs((int)hits) - 1 : 31;
            if (hits) {
                found = down ? n - 1 - i - last : i + last;
                counts -= own_count;
                sums -= own_sum;
            }
            count += __shfl_sync(0xffffffffu, counts, last);
            sum += __shfl_sync(0xffffffffu, sums, last);
        }
        if (lane == 0) {
            m.found = found;
            m.found_count = count;
            m.found_sum = sum;
        }
    }
    __syncthreads();
}

/* What is known of the key that a cut looks for. */
struct known_key {
    int bucket;      /* of the first histogram */
    uint32_t prefix; /* leading bits of the key ... */
    uint32_t mask;   /* ... and which bits those are */
};

/* Makes the histogram of a level: over the distance from the best token at level 0, then over the
 * next 8 bits of the keys that match what is known. */
__device__ static __forceinline__ void fill_histogram(const row_view &row, int32_t vocab, int level,
                                                      int shift, const known_key &known,
                                                      block_memory &m)
{
    const float per_unit = BUCKETS / 87.0f;
    for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) {
        float x = row.adjusted(i);
        float w = row.weight(x);
        uint32_t key = row_view::key_of(x);
        if (!(w > 0) || !row.is_kept(key, i)) continue;
        int b = (int)((row.best - x) * row.scale * per_unit);
        b = b < BUCKETS ? b : BUCKETS - 1;
        if (level) {
            if (b != known.bucket || (key & known.mask) != known.prefix) continue;
            b = (int)(key >> shift & (DIGITS - 1));
        }
        atomicAdd(&m.counts[b], 1u);
        atomicAdd(&m.sums[b], to_fixed(w));
    }
}

/* Returns how many of `equal` tokens with the same key, which weigh `each`, are kept. At least one
 * token is kept overall. */
__device__ static __forceinline__ int64_t kept_of_equal(const search &s, int64_t equal, fixed each)
{
    if (s.most >= 0) return equal;
    int64_t kept = 0;
    if (s.sum < s.mass) kept = each > 0 ? (int64_t)((s.mass - s.sum + each - 1) / each) : equal;
    if (kept == 0 && s.count == 0) kept = 1;
    return kept;
}

/* Restricts the tokens that row keeps to the first `most` and those equal to the last of them; or,
 * if most < 0, to the first that add up to mass. */
__device__ static void cut(row_view &row, int32_t vocab, int64_t most, fixed mass, block_memory &m)
{
    known_key known = { -1, 0, 0 };
    search s = { most, mass, 0, 0 };
    for (int level = 0; level < 5; level++) {
        const int n = level ? (int)DIGITS : (int)BUCKETS;
        const int shift = 32 - 8 * level;
        for (int i = (int)threadIdx.x; i < n; i += THREADS) {
            m.counts[i] = 0;
            m.sums[i] = 0;
        }
        __syncthreads();
        fill_histogram(row, vocab, level, shift, known, m);
        find_bucket(m, n, level > 0, s);
        if (m.found < 0) return; /* fewer than `most` tokens have a weight */
        s.count = m.found_count;
        s.sum = m.found_sum;
        if (level == 0) {
            known.bucket = m.found;
        } else {
            known.prefix |= (uint32_t)m.found << shift;
            known.mask |= (uint32_t)(DIGITS - 1) << shift;
        }
    }

    /* The key is known. Of the tokens that have it, keep those with the lowest ids. */
    const uint32_t key = known.prefix;
    const int64_t equal = m.counts[m.found];
    const fixed each = m.sums[m.found] / (fixed)equal;
    __syncthreads();
    const int64_t kept = kept_of_equal(s, equal, each);
    const row_view before = row;
    row.key = key;
    if (kept == 0) row.last_id = -1;
    else if (kept < equal)
        row.last_id = look_up(vocab, (fixed)(kept - 1), m, [&](int32_t i) {
            uint32_t k = row_view::key_of(before.adjusted(i));
            return (fixed)(k == key && before.is_kept(k, i));
        });
    else row.last_id = before.key == key ? before.last_id : INT32_MAX;
}

/* ---- the kernel ---- */
__device__ static double uniform(uint64_t seed, const sample_row &place)
{
    const uint4 w = sz_philox(seed, (uint64_t)place.row_id, (uint32_t)place.answer_id,
                              (uint32_t)place.position);
    return ((double)(((uint64_t)w.y << 32 | w.x) >> 12) + 0.5) * 0x1p-52;
}

/* Draws a token from the row. kept_sum is the weight of all tokens with a weight. */
__device__ static __forceinline__ int32_t draw(row_view &row, int32_t vocab,
                                               const sample_settings &s, const sample_row &place,
                                               fixed kept_sum, block_memory &m)
{
    auto weight = [&](int32_t i) {
        float x = row.adjusted(i);
        return row.is_kept(row_view::key_of(x), i) ? to_fixed(row.weight(x)) : (fixed)0;
    };
    auto sum_of_kept = [&] {
        fixed sum = 0;
        for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) sum += weight(i);
        return block_sum(sum, m);
    };
    if (s.top_k > 0 && s.top_k < vocab) {
        cut(row, vocab, s.top_k, 0, m);
        kept_sum = sum_of_kept();
    }
    if (s.top_p < 1) {
        double mass = ceil((double)s.top_p * (double)kept_sum);
        cut(row, vocab, -1, mass > 0 ? min((fixed)mass, kept_sum) : (fixed)0, m);
        kept_sum = sum_of_kept();
    }
    const fixed target = (fixed)(uniform(s.seed, place) * (double)kept_sum);
    return look_up(vocab, min(target, kept_sum - 1), m, weight);
}

/* One block for each row. The token is -1 if a logit is NaN or +inf, and -2 if no token is left. */
static __global__ void __launch_bounds__(THREADS)
    sample(const float *logits, int32_t vocab, int32_t words, const sample_settings *settings,
           const sample_row *places, const uint32_t *banned, const uint32_t *seen,
           sample_result *results)
{
    __shared__ block_memory m;
    const sample_settings s = *settings;
    const int64_t r = blockIdx.x;
    row_view row = {
        logits + r * vocab, banned, seen ? seen + r * words : NULL, s.penalty, s.scale, 0, 0,
        INT32_MAX
    };

    /* The largest logit, before and after adjusting. */
    float max = -INFINITY;
    float best = -INFINITY;
    int32_t max_id = INT32_MAX;
    int32_t best_id = INT32_MAX;
    for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) {
        float x = row.logits[i];
        float y = row.adjusted(i);
        if (x > max) {
            max = x;
            max_id = i;
        }
        if (y > best) {
            best = y;
            best_id = i;
        }
    }
    block_largest(max, max_id, m);
    block_largest(best, best_id, m);
    row.best = best;

    /* The sums of exponentials: all, for the log-probability; and adjusted, for drawing. */
    double total = 0;
    fixed kept_sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) {
        total += (double)row_view::exponential((row.logits[i] - max) * s.scale);
        if (!s.greedy && best > -INFINITY) kept_sum += to_fixed(row.weight(row.adjusted(i)));
    }
    total = block_sum(total, m);
    kept_sum = block_sum(kept_sum, m);

    int32_t token = best_id;
    if (!(max < INFINITY) || !(total > 0)) token = -1;
    else if (!(best > -INFINITY)) token = -2;
    else if (!s.greedy) token = draw(row, vocab, s, places[r], kept_sum, m);
    if (threadIdx.x == 0) {
        float logprob = 0.0f;
        if (token >= 0)
            logprob = (float)((double)((row.logits[token] - max) * s.scale) - log(total));
        results[r] = sample_result{ token, logprob };
    }
}

/* ---- host: the block of inputs, and the results ---- */
/* Packs n bytes into bits: 1 where a byte is not 0. */
static void pack_bits(const uint8_t *from, int64_t n, uint32_t *to)
{
    uint8_t *out = (uint8_t *)to;
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t v = 0;
        memcpy(&v, from + i, (size_t)(n - i < 8 ? n - i : 8));
        /* Move any set bit of a byte to its lowest bit, then gather the eight lowest bits. */
        v |= v >> 4;
        v |= v >> 2;
        v |= v >> 1;
        *out++ = (uint8_t)((v & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

/* The block has the same layout on both sides: settings, places, the bits of banned, those of
 * seen. */
int sz_cuda_sample_layout(int64_t rows, int64_t vocab, bool banned, bool seen, sz_sample_layout *to)
{
    if (vocab >= 1 << 19)
        return sz_fail("sample: a vocabulary of %lld is too large, it may be %d", (long long)vocab,
                       (1 << 19) - 1);
    sz_sample_layout l = {};
    l.rows = rows;
    l.vocab = vocab;
    l.words = (vocab + 31) / 32;
    l.places = (sizeof(sample_settings) + 15) / 16 * 16;
    l.bytes = l.places + (size_t)rows * sizeof(sample_row);
    if (banned) {
        l.banned = l.bytes;
        l.bytes += (size_t)l.words * 4;
    }
    if (seen) {
        l.seen = l.bytes;
        l.bytes += (size_t)(rows * l.words) * 4;
    }
    l.results = (size_t)rows * sizeof(sample_result);
    *to = l;
    return 0;
}

void sz_cuda_sample_fill(const sz_sample_layout &l, const sz_sampling *s, const uint8_t *banned,
                         const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                         const int32_t *position, char *block)
{
    memset(block, 0, l.bytes);
    sample_settings settings;
    settings.scale = s->temperature > 0 ? 1.0f / s->temperature : 1.0f;
    settings.top_p = s->top_p;
    settings.penalty = s->repetition_penalty;
    settings.top_k = s->top_k;
    settings.greedy = !(s->temperature > 0);
    settings.seed = s->seed;
    *(sample_settings *)block = settings;
    sample_row *places = (sample_row *)(block + l.places);
    for (int64_t i = 0; i < l.rows; i++)
        places[i] = sample_row{ row_id[i], answer_id[i], position[i] };
    if (l.banned) pack_bits(banned, l.vocab, (uint32_t *)(block + l.banned));
    for (int64_t i = 0; l.seen && i < l.rows; i++)
        pack_bits(seen + i * l.vocab, l.vocab, (uint32_t *)(block + l.seen) + i * l.words);
}

int sz_cuda_sample_launch(const sz_sample_layout &l, const sz_tensor *logits, const char *block,
                          char *results)
{
    const sample_settings *settings = (const sample_settings *)block;
    const sample_row *places = (const sample_row *)(block + l.places);
    const uint32_t *banned = l.banned ? (const uint32_t *)(block + l.banned) : NULL;
    const uint32_t *seen = l.seen ? (const uint32_t *)(block + l.seen) : NULL;
    SZ_LAUNCH(sample, (unsigned)l.rows, THREADS, 0, sz_f32(logits), (int32_t)l.vocab,
              (int32_t)l.words, settings, places, banned, seen, (sample_result *)results);
    return sz_cuda_launched("sample");
}

int sz_cuda_sample_read(const sz_sample_layout &l, const char *from, int32_t *token, float *logprob)
{
    const sample_result *results = (const sample_result *)from;
    for (int64_t i = 0; i < l.rows; i++) {
        token[i] = results[i].token;
        logprob[i] = results[i].logprob;
        if (token[i] == -1)
            return sz_fail("sample: the logits of row %lld are not finite", (long long)i);
        if (token[i] < 0) return sz_fail("sample: every token of row %lld is banned", (long long)i);
    }
    return 0;
}

extern "C" int sz_cuda_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                              const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                              const int32_t *position, int32_t *token, float *logprob)
{
    sz_sample_layout l = {};
    if (logits->shape[0] == 0) return 0;
    if (s->repetition_penalty == 1) seen = NULL;
    if (sz_cuda_sample_layout(logits->shape[0], logits->shape[1], banned, seen, &l) != 0) return -1;
    const size_t results = (l.bytes + 15) / 16 * 16; /* their offset on the device */
    char *block = (char *)malloc(l.bytes + l.results);
    if (!block) return sz_fail("sample: out of memory");
    char *device = (char *)sz_cuda_scratch(l.bytes + l.results + 16);
    int rc = device ? 0 : -1;
    if (rc == 0) {
        sz_cuda_sample_fill(l, s, banned, seen, row_id, answer_id, position, block);
        rc = sz_cuda_to_device(device, block, l.bytes);
    }
    if (rc == 0) rc = sz_cuda_sample_launch(l, logits, device, device + results);
    if (rc == 0) rc = sz_cuda_to_host(block + l.bytes, device + results, l.results);
    if (rc == 0) rc = sz_cuda_sample_read(l, block + l.bytes, token, logprob);
    free(block);
    return rc;
}
