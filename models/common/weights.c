/* weights.c - the weight registry: names, shapes and slots of a network's weights, for every
 * family. A family lists its weights once, in the network's order; files are matched by name, in
 * Lua. Leaves out: where weights come from and which dtype they have. */
#include "model.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- listing ---- */
/* A new entry, or NULL if memory runs out. */
static model_weight *append(model_weights *list)
{
    if (list->failed) return NULL;
    if (list->count == list->room) {
        int room = list->room ? 2 * list->room : 256;
        model_weight *grown = realloc(list->items, (size_t)room * sizeof *grown);
        if (!grown) {
            list->failed = true;
            return NULL;
        }
        list->items = grown;
        list->room = room;
    }
    model_weight *w = &list->items[list->count++];
    memset(w, 0, sizeof *w);
    w->vision = list->vision;
    return w;
}

/* Sets what depends on the division of the list: the local shape, slice and copies. */
static void divide(const sz_model *m, model_weight *w)
{
    const model_weights *list = &m->weights;
    const int shards = m->shards > 1 ? m->shards : 1;
    w->divided = -1;
    w->copies = shards;
    w->copy = m->shard;
    memcpy(w->shape, w->full, sizeof w->shape);
    if (list->division == MODEL_WHOLE || shards == 1) return;

    /* Neighbouring shards have the same slice where there are fewer slices than shards. */
    w->divided = list->division == MODEL_OUTPUTS ? 0 : 1;
    w->copies = shards / list->slices;
    w->copy = m->shard % w->copies;
    int64_t *size = &w->shape[w->divided];
    *size /= list->slices;
    w->first = *size * (m->shard / w->copies);
}

void model_add(sz_model *m, sz_tensor **slot, const int64_t shape[SZ_MAX_DIMS], const char *format,
               ...)
{
    model_weight *w = append(&m->weights);
    if (!w) return;
    va_list args;
    va_start(args, format);
    vsnprintf(w->name, sizeof w->name, format, args);
    va_end(args);
    memcpy(w->full, shape, sizeof w->full);
    while (w->ndim < SZ_MAX_DIMS && shape[w->ndim]) w->ndim++;
    w->slot = slot;
    divide(m, w);
}

void model_add_linear(sz_model *m, model_layer *layer, int64_t rows, int64_t cols, bool bias,
                      const char *format, ...)
{
    char name[80];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);

    model_weights *list = &m->weights;
    model_add(m, &layer->w, MODEL_SHAPE(rows, cols), "%s.weight", name);
    if (list->failed) return;
    layer->rows = list->items[list->count - 1].shape[0];
    layer->division = m->shards > 1 ? list->division : MODEL_WHOLE;
    list->items[list->count - 1].layer = layer;

    SZ_ASSERT(!bias || layer->division != MODEL_INPUTS, "each shard would add the bias");
    if (bias) model_add(m, &layer->b, MODEL_SHAPE(rows), "%s.bias", name);
}

int model_check(const sz_model *m)
{
    if (m->shards > 1 && !m->group && !sz_is_dry_run())
        return sz_fail("the model is one of %d shards, and has no group to compute with: open it "
                       "with shards = a group of ranks",
                       m->shards);
    if (m->quantized) return 0;
    for (int i = 0; i < m->weights.count; i++) {
        const model_weight *w = &m->weights.items[i];
        if (!*w->slot) return sz_fail("the model has no weight %s", w->name);
    }
    return 0;
}

/* ---- the exported functions ---- */
/* Weight i, or NULL with a message. */
static const model_weight *listed(const sz_model *m, int i)
{
    if (i < 0 || i >= m->weights.count) return sz_null("there is no weight %d", i);
    return &m->weights.items[i];
}

int sz_model_weight_count(const sz_model *m) { return m->weights.count; }

const char *sz_model_weight_name(const sz_model *m, int i)
{
    const model_weight *w = listed(m, i);
    return w ? w->name : NULL;
}

int sz_model_weight_shape(const sz_model *m, int i, int64_t shape[6])
{
    const model_weight *w = listed(m, i);
    if (!w) return -1;
    memcpy(shape, w->shape, sizeof w->shape);
    return w->ndim;
}

int sz_model_weight_set(sz_model *m, int i, sz_tensor *t)
{
    const model_weight *w = listed(m, i);
    if (!w) return -1;
    size_t bytes = sizeof *w->shape * (size_t)w->ndim;
    if (t->ndim != w->ndim || memcmp(t->shape, w->shape, bytes) != 0)
        return sz_fail("%s has another shape than the config asks for", w->name);
    sz_tensor_retain(t);
    model_move(w->slot, t);
    if (m->family->weight_changed) m->family->weight_changed(m, w->slot);
    return 0;
}

sz_tensor *sz_model_weight(sz_model *m, int i)
{
    const model_weight *w = listed(m, i);
    if (!w) return NULL;
    if (*w->slot) return *w->slot;
    if (m->quantized) return sz_null("%s is held in %d bits only", w->name, m->quantized);
    return sz_null("%s is not set", w->name);
}

int sz_model_weight_is_vision(const sz_model *m, int i)
{
    const model_weight *w = listed(m, i);
    return w && w->vision;
}

int sz_model_weight_is_packed(const sz_model *m, int i)
{
    const model_weight *w = listed(m, i);
    return w && m->quantized && !*w->slot;
}

int sz_model_weight_is_linear(const sz_model *m, int i)
{
    const model_weight *w = listed(m, i);
    return w && w->layer;
}

/* ---- a model that is split over shards ---- */
int sz_model_weight_full_shape(const sz_model *m, int i, int64_t shape[6])
{
    const model_weight *w = listed(m, i);
    if (!w) return -1;
    memcpy(shape, w->full, sizeof w->full);
    return w->ndim;
}

int sz_model_weight_slice(const sz_model *m, int i, int64_t *first)
{
    const model_weight *w = listed(m, i);
    if (!w) return -1;
    *first = w->first;
    return w->divided;
}

int sz_model_weight_copies(const sz_model *m, int i, int *copy)
{
    const model_weight *w = listed(m, i);
    if (!w) return 0;
    *copy = w->copy;
    return w->copies;
}

int sz_model_weight_gradient_is_part(const sz_model *m, int i)
{
    /* Copies of a slice are read by different heads, copies of the tower by different images. Other
     * whole weights read what all shards have. */
    const model_weight *w = listed(m, i);
    return w && w->copies > 1 && (w->divided >= 0 || w->vision);
}

int sz_model_group_set(sz_model *m, sz_comm *shards)
{
    const int want = m->shards > 1 ? m->shards : 1;
    if (shards && sz_comm_size(shards) != want)
        return sz_fail("a group of %d ranks for a model of %d shards", sz_comm_size(shards), want);
    if (shards && sz_comm_rank(shards) != m->shard)
        return sz_fail("rank %d of the group has shard %d of the model", sz_comm_rank(shards),
                       m->shard);
    m->group = shards;
    return 0;
}
