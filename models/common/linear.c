/* linear.c - the linear layer of every network: bias, low-rank adapter (LoRA), form of 8 or 4 bits,
 * division among shards.
 *
 *   x [n, in] -> y [n, out], or [n, out1 + out2 + out3] of up to three layers that read the same x
 *
 * Divided by its outputs, a layer has the whole x and gives this shard's columns of y; divided by
 * its inputs, it has this shard's columns of x and gives the whole y, the sum over the shards. The
 * adapter's narrow middle is whole in both, and so are the gradients of what is whole.
 * An adapter is f32 and computes in x's dtype. Leaves out: quantising while training, adapters of
 * embeddings and convolutions. */
#include "model.h"

/* ---- forward ---- */
/* The tensor in x's dtype, as a new reference. */
static sz_tensor *as_dtype_of(sz_tensor *t, const sz_tensor *x)
{
    return x->dtype == SZ_F32 ? sz_tensor_retain(t) : sz_cast(t, x->dtype);
}

/* What goes into a layer: the gradients that the shards' outputs give x are summed. Returns a new
 * reference. */
static sz_tensor *enter(const sz_model *m, sz_tensor *x, model_division division)
{
    if (division != MODEL_OUTPUTS) return sz_tensor_retain(x);
    return sz_tp_copy(x, sz_comm_handle(m->group));
}

/* What comes out of it: the shards' parts are summed. Consumes y, which no gradient reads. */
static sz_tensor *leave(const sz_model *m, sz_tensor *y, model_division division)
{
    if (division == MODEL_INPUTS) model_move(&y, sz_tp_sum_in_place(y, sz_comm_handle(m->group)));
    return y;
}

/* Adds the product of the layer's adapter to columns col .. of y. Consumes y. */
static sz_tensor *adapt(const sz_model *m, sz_tensor *y, sz_tensor *x, const model_layer *layer,
                        int64_t col)
{
    const model_division division = layer->division;
    sz_tensor *a = as_dtype_of(layer->lora_a, x);
    sz_tensor *b = as_dtype_of(layer->lora_b, x);
    sz_tensor *low = leave(m, sz_linear(x, a, NULL), division);
    if (low) model_move(&low, enter(m, low, division));
    sz_tensor *scaled = sz_affine(low, layer->lora_scale, 0);
    sz_tensor *sum = scaled ? sz_linear_add(y, scaled, b, col) : NULL;
    MODEL_RELEASE(a, b, low, scaled, y);
    return sum;
}

/* x through the layers' weights, without adapters. */
static sz_tensor *product(sz_tensor *x, const model_packed *packed,
                          const model_layer *const layers[4])
{
    if (packed && packed->q) return model_linear_packed(x, packed, false);
    if (!layers[1]) return sz_linear(x, layers[0]->w, layers[0]->b);
    sz_tensor *w[3] = { 0 };
    sz_tensor *b[3] = { 0 };
    for (int i = 0; layers[i]; i++) {
        w[i] = layers[i]->w;
        b[i] = layers[i]->b;
    }
    return sz_linear_cat(x, w, b);
}

sz_tensor *model_linear_cat(const sz_model *m, sz_tensor *x, const model_packed *packed,
                            const model_layer *const layers[4])
{
    if (!x) return NULL;
    const model_division division = layers[0]->division;
    sz_tensor *entered = enter(m, x, division);
    sz_tensor *y = entered ? product(entered, packed, layers) : NULL;
    y = leave(m, y, division);
    sz_tensor_release(entered);

    /* An adapter's first matrix is whole where x is: it reads x itself. */
    int64_t col = 0;
    for (int i = 0; y && layers[i]; i++) {
        if (layers[i]->lora_a && !m->lora_off) y = adapt(m, y, x, layers[i], col);
        col += layers[i]->rows;
    }
    return y;
}

sz_tensor *model_linear(const sz_model *m, sz_tensor *x, const model_layer *layer)
{
    return MODEL_LINEAR(m, x, NULL, layer);
}

/* ---- adapters ---- */
void model_release_adapter(model_layer *layer)
{
    model_move(&layer->lora_a, NULL);
    model_move(&layer->lora_b, NULL);
}

/* Do a [rank, in] and b [out, rank] fit the weight [out, in]? */
static bool adapter_fits(const model_weight *w, const sz_tensor *a, const sz_tensor *b)
{
    if (a->dtype != SZ_F32 || b->dtype != SZ_F32 || a->ndim != 2 || b->ndim != 2) return false;
    if (a->shape[1] != w->shape[1] || b->shape[0] != w->shape[0]) return false;
    return a->shape[0] == b->shape[1] && a->shape[0] >= 1;
}

int sz_model_lora_set(sz_model *m, int i, sz_tensor *a, sz_tensor *b, double scale)
{
    if (!sz_model_weight_is_linear(m, i)) {
        const char *name = sz_model_weight_name(m, i);
        if (!name) name = "this";
        return sz_fail("%s is not a linear layer's weight: it takes no adapter", name);
    }
    const model_weight *w = &m->weights.items[i];
    if (!a != !b) return sz_fail("%s: an adapter has two parts", w->name);
    if (a && !adapter_fits(w, a, b))
        return sz_fail("%s: its adapter must be f32 [rank, %lld] and [%lld, rank]", w->name,
                       (long long)w->shape[1], (long long)w->shape[0]);

    sz_tensor_retain(a);
    sz_tensor_retain(b);
    model_release_adapter(w->layer);
    w->layer->lora_a = a;
    w->layer->lora_b = b;
    w->layer->lora_scale = scale;
    return 0;
}

int sz_model_lora_enable(sz_model *m, int on)
{
    int before = !m->lora_off;
    m->lora_off = !on;
    return before;
}

/* ---- 8 and 4 bits ---- */
/* The biases of the layers, joined. */
static int join_biases(model_packed *packed, model_layer *const layers[4])
{
    const sz_tensor *first = layers[0]->b;
    packed->bias = sz_new1(first->dtype, packed->rows, first->device);
    if (!packed->bias) return -1;
    size_t offset = 0;
    for (int i = 0; layers[i]; i++) {
        const sz_tensor *b = layers[i]->b;
        char *to = (char *)packed->bias->data + offset;
        if (sz_bytes_copy(packed->bias->device, to, b->device, b->data, sz_bytes(b)) != 0)
            return -1;
        offset += sz_bytes(b);
    }
    return 0;
}

int model_quantize_layers(model_packed *packed, int bits, model_layer *const layers[4])
{
    sz_tensor *w[3] = { 0 };
    for (int i = 0; layers[i]; i++) {
        w[i] = layers[i]->w;
        packed->rows += layers[i]->rows;
    }
    packed->bits = bits;
    int rc;
    if (bits == 4) rc = sz_quantize_int4(w, &packed->q, &packed->scale);
    else rc = sz_quantize_int8(w, &packed->q, &packed->scale);
    if (rc != 0) return -1;
    return layers[0]->b ? join_biases(packed, layers) : 0;
}

sz_tensor *model_linear_packed(sz_tensor *x, const model_packed *p, bool f32_out)
{
    if (p->bits == 4) return sz_linear_int4(x, p->q, p->scale, p->bias, p->rows, f32_out);
    return sz_linear_int8(x, p->q, p->scale, p->bias, p->rows, f32_out);
}

void model_unload_layer(model_layer *layer)
{
    /* Other weights keep the file mapped. Without unloading, the bf16 pages of the whole model
     * would stay resident next to its packed copy. */
    sz_tensor_unload(layer->w);
    model_move(&layer->w, NULL);
    model_move(&layer->b, NULL);
}

void model_release_packed(model_packed *packed)
{
    MODEL_RELEASE(packed->q, packed->scale, packed->bias);
    *packed = (model_packed){ 0 };
}
