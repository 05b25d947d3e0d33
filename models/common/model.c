/* model.c - the functions that every network has; each calls the family's table.
 * Leaves out: weights (weights.c), adapters (linear.c), the cache itself
 * (runtime/sampling/cache.c). */
#include "model.h"
#include <stdlib.h>

/* Fails with the message that the family lacks a function. */
static int missing(const sz_model *m, const char *what)
{
    return sz_fail("%s: %s has no such function", what, m->family->name);
}

void sz_model_free(sz_model *m)
{
    if (!m) return;
    for (int i = 0; i < m->weights.count; i++) {
        const model_weight *w = &m->weights.items[i];
        model_move(w->slot, NULL);
        if (w->layer) model_release_adapter(w->layer);
    }
    if (m->family->release) m->family->release(m);
    free(m->weights.items);
    free(m);
}

int sz_model_quantize(sz_model *m, int bits)
{
    if (bits != 8 && bits != 4) return sz_fail("a model is quantised to 8 or 4 bits, not %d", bits);
    if (!m->family->quantize) return missing(m, "quantize");
    if (model_check(m) != 0) return -1;
    if (m->quantized) return sz_fail("the model is in %d bits already", m->quantized);
    if (sz_scope_depth() > 0) return sz_fail("a model is not quantised inside a step");
    return m->family->quantize(m, bits);
}

int sz_model_release_packed_head(sz_model *m)
{
    if (!m->family->release_packed_head) return missing(m, "release_packed_head");
    m->family->release_packed_head(m);
    return 0;
}

sz_tensor *sz_model_vision(sz_model *m, sz_tensor *pixel_values, sz_tensor *grids, int recompute)
{
    if (!m->family->vision) {
        missing(m, "vision");
        return NULL;
    }
    if (model_check(m) != 0) return NULL;
    return m->family->vision(m, pixel_values, grids, recompute);
}

/* Are all weights set, and do ids and positions belong to one stream? */
static int check_stream(const sz_model *m, const model_stream *s)
{
    if (model_check(m) != 0) return -1;
    if (!sz_tensor_data(s->ids) || !sz_tensor_data(s->positions) || !sz_tensor_data(s->segments))
        return -1;
    const sz_tensor *p = s->positions;
    if (s->ids->dtype != SZ_I32 || p->dtype != SZ_I32 || p->ndim != 2 || p->shape[0] != 3 ||
        p->shape[1] != s->ids->numel)
        return sz_fail("hidden: ids must be i32 [T] and positions i32 [3, T]");
    return 0;
}

sz_tensor *sz_model_hidden(sz_model *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments,
                           sz_tensor *image_rows, sz_tensor *features, sz_tensor *rows,
                           sz_cache *cache, sz_tensor *cache_rows, sz_tensor **prefix,
                           int recompute)
{
    const model_stream stream = {
        .ids = ids,
        .positions = positions,
        .segments = segments,
        .image_rows = image_rows,
        .features = features,
        .rows = rows,
        .cache = cache,
        .cache_rows = cache_rows,
        .prefix = prefix,
        .recompute = recompute,
    };
    if (!m->family->hidden) {
        missing(m, "hidden");
        return NULL;
    }
    if (check_stream(m, &stream) != 0) return NULL;
    if (!features != !image_rows) return sz_null("hidden: features and image_rows come together");
    if (cache && (!cache_rows || cache_rows->numel != ids->numel))
        return sz_null("hidden: a cache needs one cache row for each token");
    if (cache && prefix) return sz_null("hidden: a cache or a prefix, not both");
    return m->family->hidden(m, &stream);
}

sz_tensor *sz_model_logits(sz_model *m, sz_tensor *hidden)
{
    if (!m->family->logits) {
        missing(m, "logits");
        return NULL;
    }
    return hidden ? m->family->logits(m, hidden) : NULL;
}

int sz_model_logprob(sz_model *m, sz_tensor *hidden, sz_tensor *ids, double temperature,
                     sz_tensor **logprob, sz_tensor **entropy)
{
    if (!m->family->logprob) return missing(m, "logprob");
    if (!(temperature > 0)) return sz_fail("logprob: temperature is %g", temperature);
    return m->family->logprob(m, hidden, ids, temperature, logprob, entropy);
}

sz_cache *sz_model_cache(sz_model *m, int64_t rows)
{
    if (!m->family->cache) {
        missing(m, "cache");
        return NULL;
    }
    return model_check(m) == 0 ? m->family->cache(m, rows) : NULL;
}

int sz_model_decode(sz_model *m, sz_tensor *ids, sz_tensor *positions, sz_tensor *segments,
                    sz_cache *cache, sz_tensor *cache_rows, const sz_sampling *s,
                    const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                    const int32_t *answer_id, const int32_t *position, int32_t *token,
                    float *logprob)
{
    const model_stream stream = {
        .ids = ids,
        .positions = positions,
        .segments = segments,
        .cache = cache,
        .cache_rows = cache_rows,
    };
    const model_draw draw = {
        .sampling = s,
        .banned = banned,
        .seen = seen,
        .row_id = row_id,
        .answer_id = answer_id,
        .position = position,
        .token = token,
        .logprob = logprob,
    };
    if (!m->family->decode) return missing(m, "decode");
    if (check_stream(m, &stream) != 0) return -1;
    return m->family->decode(m, &stream, &draw);
}
