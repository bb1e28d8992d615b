// Decode attention over a quantised KV cache in CUDA C++: all that decode_attention.py does, for int8 and int4.
//
// A warp multiplies 16 tokens with 8 query heads of a KV head in one instruction of the tensor cores, and keeps its own
// running softmax: warps meet only at the end. Keys and values go from memory into registers and from there to the
// tensor cores as float16 of the levels, which are small whole numbers and so exact; scales and zeros join outside:
//
//   score = q . k  = k_scale (q . levels) + k_zero sum(q)
//   sum of p v     = sum of (p v_scale) levels + sum of p v_zero
//
// p v_scale is rounded to float16 for the product. So that it neither overflows nor vanishes, log2(v_scale) is added to
// the score and the running maximum is that of the sum; the softmax's weights are divided by v_scale again. Keys and
// values of the next tile are loaded as soon as this one's have been multiplied.
//
// Compiled by decode_quantised.py, which defines: HEAD_DIM (64 or 128), NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE, HALF (of
// the rotated values), BITS (8 or 4), ONLINE (0 or 1), MAX_SPLITS, TILE, WARPS, BLOCKS_PER_SM, IS_HALF.

#include "prelude.cuh"

constexpr int THREADS = 32 * WARPS;
constexpr int NEW_WARPS = WARPS > 1 ? 2 : 1;  // that quantise the new token
constexpr int GROUP = NUM_HEADS / NUM_KV_HEADS;
constexpr int HEADS = GROUP < 8 ? GROUP : 8;  // of a block, at most
constexpr int HEAD_TILES = NUM_KV_HEADS * ((GROUP + 7) / 8);
constexpr int GROUPS = TILE / 16;             // of 16 tokens in a tile, each within one block of the cache
static_assert(MAX_SPLITS <= 32 && BLOCK_SIZE % 16 == 0 && TILE % 16 == 0 && 2 * HALF <= HEAD_DIM, "");

__device__ __forceinline__ float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u16 half_from_float(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ u32 half_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

#include "kv_levels.cuh"
#include "new_token.cuh"
#include "split_work.cuh"

__device__ __forceinline__ void multiply(float* sums, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <int WORDS> __device__ __forceinline__ void load(u32* words, const void* address) {
    if constexpr (WORDS == 4)
        asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "l"(address));
    else if constexpr (WORDS == 2)
        asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(address));
    else
        asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(words[0]) : "l"(address));
}

__device__ __forceinline__ float load(const float* address) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(address));
    return value;
}

struct Shared {
    u32 query[HEADS][4 * 2 * STEPS + 4];  // of each quarter and product two pairs: rotated, times the scale and log2(e)
    float query_sum[HEADS], offset[HEADS];
    float new_key[HEAD_DIM], new_value[HEAD_DIM];
    float best[WARPS + 1][HEADS], weight[WARPS][HEADS];  // of each warp's tokens, and of the new one
    float attended[WARPS][HEADS][HEAD_DIM];
    float share[HEADS][32];  // of each split
    bool is_last;
};

// A warp rotates a query and leaves it as the products with keys need it: see k_pairs.
__device__ __forceinline__ void stage_query(Shared& shared, int head, const u16* values, const float* angles,
                                            float scale_log2) {
    const int lane = threadIdx.x % 32;
    float sum = 0, offset = 0;
    #pragma unroll
    for (int place = lane; place < 8 * STEPS; place += 32) {
        const int pair = place % 2, step = place / 2 % STEPS, quarter = place / 2 / STEPS;
        const float factor = pair ? 1 / SECOND_FACTOR : 1;
        const float first = rotated(values, angles, k_dimension(step, 2 * pair, quarter));
        const float second = rotated(values, angles, k_dimension(step, 2 * pair + 1, quarter));
        const u32 both = half_pair(factor * scale_log2 * first, factor * scale_log2 * second);
        shared.query[head][place] = both;
        const float found = half_to_float((u16)both) + half_to_float((u16)(both >> 16));
        sum += found / factor;
        offset += 1024 * found;
    }
    for (int distance = 16; distance; distance /= 2) {
        sum += __shfl_xor_sync(ALL, sum, distance);
        offset += __shfl_xor_sync(ALL, offset, distance);
    }
    if (lane == 0) {
        shared.query_sum[head] = sum;
        shared.offset[head] = offset;
    }
}

// By a warp: a query, as stage_query has left it, times the new key.
__device__ __forceinline__ float score_of_new(const Shared& shared, int head) {
    float score = 0;
    #pragma unroll
    for (int place = threadIdx.x % 32; place < 8 * STEPS; place += 32) {
        const int pair = place % 2, step = place / 2 % STEPS, quarter = place / 2 / STEPS;
        const u32 both = shared.query[head][place];
        const float sum = half_to_float((u16)both) * shared.new_key[k_dimension(step, 2 * pair, quarter)]
            + half_to_float((u16)(both >> 16)) * shared.new_key[k_dimension(step, 2 * pair + 1, quarter)];
        score += pair ? SECOND_FACTOR * sum : sum;
    }
    for (int distance = 16; distance; distance /= 2) score += __shfl_xor_sync(ALL, score, distance);
    return score;
}

// Adds up a row's splits, each with its weight; `first` is the first one's first head in partial and log_weights. From
// L2: other multiprocessors have written them.
__device__ __forceinline__ void merge_splits(Shared& shared, u16* output, const float* partial,
                                             const float* log_weights, long long first, int num_splits, int num_heads) {
    const int thread = threadIdx.x, lane = thread % 32;
    for (int head = thread / 32; head < num_heads; head += WARPS) {
        const float mine = lane < num_splits ? load(log_weights + first + head + lane * NUM_HEADS) : -INFINITE;
        float top = mine;
        for (int distance = 16; distance; distance /= 2) top = fmaxf(top, __shfl_xor_sync(ALL, top, distance));
        const float factor = exp2_of(mine - top);
        float all = factor;
        for (int distance = 16; distance; distance /= 2) all += __shfl_xor_sync(ALL, all, distance);
        shared.share[head][lane] = factor / all;
    }
    __syncthreads();
    for (int place = thread; place < num_heads * HEAD_DIM; place += THREADS) {
        const float* values = partial + first * HEAD_DIM + place;
        float sum = 0;
        #pragma unroll 8
        for (int each = 0; each < num_splits; ++each)
            sum += shared.share[place / HEAD_DIM][each] * load(values + (long long)each * NUM_HEADS * HEAD_DIM);
        output[place] = from_float(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) decode_quantised(
        const u16* q, const u16* k, const u16* v, const long long* positions, const float* cos_sin,
        unsigned char* k_cache, unsigned char* v_cache, void* scales, const long long* slot_mapping,
        const int* block_tables, const int* context_lens, u16* output, float* partial, float* log_weights,
        int* counters, long long q_row_stride, long long q_head_stride, long long k_row_stride,
        long long k_head_stride, long long v_row_stride, long long v_head_stride, long long table_stride, int num_rows,
        int num_items, int num_shares, int min_split, int heads_first, float scale_log2) {
    __shared__ Shared shared;
    const int item = heads_first ? blockIdx.x / HEAD_TILES : blockIdx.x % num_items;
    const int head_tile = heads_first ? blockIdx.x % HEAD_TILES : blockIdx.x / num_items;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, eighth = lane / 4, quarter = lane % 4;
    let_next_begin();
    const Work work = find_work(context_lens, num_rows, item, num_shares, min_split);
    if (work.context_len == 0) {
        wait_for_inputs();
        return;
    }
    const long long row = work.row;
    const int cached_len = work.context_len - 1, split = item - work.first_item;
    const int split_tokens = round_up(ceil_div(cached_len, work.num_splits), TILE);
    const int first_token = split * split_tokens, last_token = min(first_token + split_tokens, cached_len);
    const bool has_new = split == work.num_splits - 1;
    const int kv_head = head_tile % NUM_KV_HEADS, first_member = head_tile / NUM_KV_HEADS * 8;
    const int first_head = kv_head * GROUP + first_member, num_heads = min(HEADS, GROUP - first_member);
    const int* block_table = block_tables + row * table_stride;
    const float* angles = cos_sin + positions[row] * 2 * HALF;

    // Where the 16 tokens from `start` on begin in the cache, in rows of it; before last_token, or no matter.
    auto row_of = [&](int start) -> long long {
        const int token = start < last_token ? start : first_token;
        return ((long long)block_table[token / BLOCK_SIZE] * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE;
    };
    u32 key[GROUPS][2][K_WORDS], value[GROUPS][4][V_WORDS];
    uint2 own[GROUPS][2];  // float16: scale and zero of the key, then of the value
    auto load_keys = [&](const long long* rows) {
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group)
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                const long long token = rows[group] + eighth + 8 * half;
                const unsigned char* address = k_cache + token * ROW_BYTES;
                #pragma unroll
                for (int word = 0; word < K_WORDS; word += K_CHUNK)
                    load<K_CHUNK>(key[group][half] + word, address + (4 * word + quarter * K_CHUNK) * 4);
                if constexpr (ONLINE) load<2>(&own[group][half].x, (const u16*)scales + token * 4);
            }
    };
    auto load_values = [&](const long long* rows) {
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group)
            #pragma unroll
            for (int each = 0; each < 4; ++each) {
                const long long token = rows[group] + 2 * quarter + each % 2 + each / 2 * 8;
                load<V_WORDS>(value[group][each], v_cache + token * ROW_BYTES + eighth * 4 * V_WORDS);
            }
    };
    const int num_tiles = max(ceil_div(last_token - first_token, TILE), 0);
    int start = first_token + warp * TILE;
    long long rows[GROUPS];
    if (start < last_token)
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group) rows[group] = row_of(start + 16 * group);

    // Of earlier steps, or stored in this one before the kernel in front of this one began: see layers/attention.py.
    if (start < last_token) {
        load_keys(rows);
        load_values(rows);
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group) rows[group] = row_of(start + WARPS * TILE + 16 * group);
    }
    wait_for_inputs();
    // The new token's key and value, by the last warp or the last two: loads that wait together with the query's.
    NewHead new_heads[2 / NEW_WARPS];
    const long long slot = has_new ? slot_mapping[row] : 0;
    const int new_warp = warp - (WARPS - NEW_WARPS);
    #pragma unroll
    for (int each = 0; each < 2 / NEW_WARPS; ++each)
        if (has_new && new_warp >= 0) {
            const bool is_key = new_warp + each == 0;
            new_heads[each] = load_new(is_key ? k + row * k_row_stride + kv_head * k_head_stride
                                              : v + row * v_row_stride + kv_head * v_head_stride, angles, is_key);
        }
    #pragma unroll 1
    for (int head = warp; head < num_heads; head += WARPS)
        stage_query(shared, head, q + row * q_row_stride + (first_head + head) * q_head_stride, angles, scale_log2);
    float head_scales[4] = {1, 0, 1, 0};
    if constexpr (!ONLINE)
        for (int each = 0; each < 4; ++each) head_scales[each] = ((const float*)scales)[kv_head * 4 + each];
    #pragma unroll
    for (int each = 0; each < 2 / NEW_WARPS; ++each)
        if (has_new && new_warp >= 0) {
            const long long place = (slot / BLOCK_SIZE * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE;
            const int which = new_warp + each;
            quantise(new_heads[each], (which == 0 ? k_cache : v_cache) + place * ROW_BYTES,
                     (u16*)scales + place * 4 + 2 * which, head_scales + 2 * which, first_member == 0,
                     which == 0 ? shared.new_key : shared.new_value);
        }
    __syncthreads();

    u32 query[STEPS][2];
    #pragma unroll
    for (int step = 0; step < STEPS; ++step)
        #pragma unroll
        for (int pair = 0; pair < 2; ++pair)
            query[step][pair] = eighth < num_heads ? shared.query[eighth][(quarter * STEPS + step) * 2 + pair] : 0;
    float query_sum[2], offset[2];
    #pragma unroll
    for (int head = 0; head < 2; ++head) {
        const int member = 2 * quarter + head;
        query_sum[head] = member < num_heads ? shared.query_sum[member] : 0;
        offset[head] = member < num_heads ? shared.offset[member] : 0;
    }
    float best[2] = {-INFINITE, -INFINITE}, weight[2] = {0, 0}, zeros[2] = {0, 0};
    float attended[STEPS][4] = {};
    for (int tile = warp; tile < num_tiles; tile += WARPS, start += WARPS * TILE) {
        const bool has_next = start + WARPS * TILE < last_token;
        float score[GROUPS][4];
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            for (int each = 0; each < 4; ++each) score[group][each] = -offset[each % 2];
            #pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                u32 pairs[4];
                k_pairs(key[group][0], step, pairs[0], pairs[2]);
                k_pairs(key[group][1], step, pairs[1], pairs[3]);
                multiply(score[group], pairs, query[step][0], query[step][1]);
            }
        }
        float per_scale[GROUPS][2], zero_per_scale[GROUPS][2];
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group)
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                float k_scale = head_scales[0], k_zero = head_scales[1];
                float v_scale = head_scales[2], v_zero = head_scales[3];
                if constexpr (ONLINE) {
                    k_scale = half_to_float((u16)own[group][half].x);
                    k_zero = half_to_float((u16)(own[group][half].x >> 16));
                    v_scale = half_to_float((u16)own[group][half].y);
                    v_zero = half_to_float((u16)(own[group][half].y >> 16));
                }
                float log_scale;
                asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log_scale) : "f"(v_scale));
                const bool valid = start + 16 * group + 8 * half + eighth < last_token;
                const float inverse = __fdividef(1.0f, v_scale);
                per_scale[group][half] = valid ? inverse : 0;
                zero_per_scale[group][half] = valid ? v_zero * inverse + MIDDLE : 0;
                #pragma unroll
                for (int head = 0; head < 2; ++head) {
                    float& entry = score[group][2 * half + head];
                    entry = valid ? entry * k_scale + (k_zero * query_sum[head] + log_scale) : -INFINITE;
                }
            }
        if (has_next) load_keys(rows);

        float new_best[2] = {best[0], best[1]}, decay[2];
        #pragma unroll
        for (int head = 0; head < 2; ++head) {
            #pragma unroll
            for (int group = 0; group < GROUPS; ++group)
                new_best[head] = fmaxf(new_best[head], fmaxf(score[group][head], score[group][2 + head]));
            #pragma unroll
            for (int distance = 4; distance < 32; distance *= 2)
                new_best[head] = fmaxf(new_best[head], __shfl_xor_sync(ALL, new_best[head], distance));
            decay[head] = exp2_of(best[head] - new_best[head]);
        }
        if (__any_sync(ALL, new_best[0] > best[0] || new_best[1] > best[1])) {
            #pragma unroll
            for (int head = 0; head < 2; ++head) {
                best[head] = new_best[head];
                weight[head] *= decay[head];
                zeros[head] *= decay[head];
                #pragma unroll
                for (int step = 0; step < STEPS; ++step) {
                    attended[step][head] *= decay[head];
                    attended[step][2 + head] *= decay[head];
                }
            }
        }
        #pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            u32 probability[2];
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                float both[2];
                #pragma unroll
                for (int head = 0; head < 2; ++head) {
                    both[head] = exp2_of(score[group][2 * half + head] - best[head]);
                    weight[head] += both[head] * per_scale[group][half];
                    zeros[head] += both[head] * zero_per_scale[group][half];
                }
                probability[half] = transposed(half_pair(both[0], both[1]));
            }
            #pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const int word = step / V_HALVES, half = step % V_HALVES;
                u32 pairs[4];
                v_pairs(value[group][0][word], value[group][1][word], pairs, half);
                v_pairs(value[group][2][word], value[group][3][word], pairs + 2, half);
                multiply(attended[step], pairs, probability[0], probability[1]);
            }
        }
        if (has_next) {
            load_values(rows);
            #pragma unroll
            for (int group = 0; group < GROUPS; ++group) rows[group] = row_of(start + 2 * WARPS * TILE + 16 * group);
        }
    }

    #pragma unroll
    for (int head = 0; head < 2; ++head)
        #pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
            weight[head] += __shfl_xor_sync(ALL, weight[head], distance);
            zeros[head] += __shfl_xor_sync(ALL, zeros[head], distance);
        }
    #pragma unroll
    for (int head = 0; head < 2; ++head) {
        const int member = 2 * quarter + head;
        if (member >= num_heads) continue;
        if (eighth == 0) {
            shared.best[warp][member] = best[head];
            shared.weight[warp][member] = weight[head];
        }
        #pragma unroll
        for (int step = 0; step < STEPS; ++step)
            #pragma unroll
            for (int half = 0; half < 2; ++half)
                shared.attended[warp][member][v_dimension(step, half, eighth)] =
                    attended[step][2 * half + head] + zeros[head];
    }
    if (has_new)
        #pragma unroll 1
        for (int head = warp; head < num_heads; head += WARPS) {
            const float score = score_of_new(shared, head);
            if (lane == 0) shared.best[WARPS][head] = score;
        }
    __syncthreads();

    const bool is_whole = work.num_splits == 1;
    for (int place = thread; place < num_heads * HEAD_DIM; place += THREADS) {
        const int head = place / HEAD_DIM, dimension = place % HEAD_DIM;
        float top = has_new ? shared.best[WARPS][head] : -INFINITE;
        for (int each = 0; each < WARPS; ++each) top = fmaxf(top, shared.best[each][head]);
        float all = 0, sum = 0;
        for (int each = 0; each < WARPS; ++each) {
            const float factor = exp2_of(shared.best[each][head] - top);
            all += factor * shared.weight[each][head];
            sum += factor * shared.attended[each][head][dimension];
        }
        if (has_new) {
            const float factor = exp2_of(shared.best[WARPS][head] - top);
            all += factor;
            sum += factor * shared.new_value[dimension];
        }
        if (is_whole) {
            output[(row * NUM_HEADS + first_head + head) * HEAD_DIM + dimension] = from_float(sum / all);
        } else {
            const long long target = (long long)item * NUM_HEADS + first_head + head;
            partial[target * HEAD_DIM + dimension] = sum / all;
            if (dimension == 0) log_weights[target] = top + log2f(all);
        }
    }
    if (is_whole) return;

    __threadfence();
    __syncthreads();
    if (thread == 0) {
        int* counter = counters + row * HEAD_TILES + head_tile;
        shared.is_last = atomicAdd(counter, 1) == work.num_splits - 1;
        if (shared.is_last) *counter = 0;
    }
    __syncthreads();
    if (!shared.is_last) return;
    __threadfence();
    merge_splits(shared, output + (row * NUM_HEADS + first_head) * HEAD_DIM, partial, log_weights,
                 (long long)work.first_item * NUM_HEADS + first_head, work.num_splits, num_heads);
}
