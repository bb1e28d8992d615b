// The new token of a sequence: rotated as rotary.py does it, quantised as kv_quantisation.py does it, and stored.
// For decode_quantised.cu.

constexpr int EACH = HEAD_DIM / 64;  // dimensions of either half of a new head that a thread of a warp has
constexpr float TOP = (1 << BITS) - 1;

// Value `dimension` of a head, rotated by the angles of its position and rounded to the model's dtype.
__device__ __forceinline__ float rotated(const u16* head, const float* angles, int dimension) {
    const float value = to_float(head[dimension]);
    if (2 * HALF < HEAD_DIM && dimension >= 2 * HALF) return value;
    const float cosine = angles[dimension % HALF], sine = angles[HALF + dimension % HALF];
    const float other = to_float(head[dimension < HALF ? dimension + HALF : dimension - HALF]);
    return to_float(from_float(dimension < HALF ? value * cosine - other * sine : value * cosine + other * sine));
}

// A new key or value that a warp has in registers: a thread the dimensions EACH * lane + e and HEAD_DIM / 2 more.
struct NewHead { float values[2][EACH]; };

__device__ __forceinline__ NewHead load_new(const u16* head, const float* angles, bool rotates) {
    NewHead loaded;
    #pragma unroll
    for (int half = 0; half < 2; ++half)
        #pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int dimension = half * (HEAD_DIM / 2) + EACH * (threadIdx.x % 32) + e;
            loaded.values[half][e] = rotates ? rotated(head, angles, dimension) : to_float(head[dimension]);
        }
    return loaded;
}

// A warp quantises it (kv_quantisation.py), stores it, and leaves in `read` what will be read from there.
__device__ __forceinline__ void quantise(const NewHead& loaded, unsigned char* stored, u16* own_scales,
                                         const float* head_scales, bool stores, float* read) {
    const int lane = threadIdx.x % 32;
    float low = INFINITE, high = -INFINITE;
    bool has_nan = false;
    #pragma unroll
    for (int half = 0; half < 2; ++half)
        #pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const float value = loaded.values[half][e];
            has_nan |= value != value;
            low = fminf(low, value);
            high = fmaxf(high, value);
        }
    float scale, zero;
    if constexpr (ONLINE) {
        for (int distance = 16; distance; distance /= 2) {
            low = fminf(low, __shfl_xor_sync(ALL, low, distance));
            high = fmaxf(high, __shfl_xor_sync(ALL, high, distance));
        }
        u16 scale_bits = half_from_float(fminf((high - low) / TOP, 65504.0f));
        const u16 zero_bits = half_from_float(fminf(fmaxf(low, -65504.0f), 65504.0f));
        if (scale_bits == 0) scale_bits = 0x3c00;  // values that are all alike are the zero
        if (__any_sync(ALL, has_nan)) scale_bits = 0x7e00;
        scale = half_to_float(scale_bits);
        zero = half_to_float(zero_bits);
        if (stores && lane == 0) {
            own_scales[0] = scale_bits;
            own_scales[1] = zero_bits;
        }
    } else {
        scale = head_scales[0];
        zero = head_scales[1];
    }
    int levels[2][EACH];
    #pragma unroll
    for (int half = 0; half < 2; ++half)
        #pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const float level = fminf(fmaxf(floorf((loaded.values[half][e] - zero) / scale + 0.5f), 0.0f), TOP);
            levels[half][e] = (int)level;
            read[half * (HEAD_DIM / 2) + EACH * lane + e] = level * scale + zero;
        }
    if (!stores) return;
    for (int e = 0; e < EACH; ++e)
        if constexpr (BITS == 8) {
            stored[EACH * lane + e] = (unsigned char)levels[0][e];
            stored[HEAD_DIM / 2 + EACH * lane + e] = (unsigned char)levels[1][e];
        } else {
            stored[EACH * lane + e] = (unsigned char)(levels[0][e] | levels[1][e] << 4);
        }
}
